// y = x w^T + b with a w of codes (codes.h), and pieces of w expanded.

#include "codes.h"
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// Vectors of a block's rows; columns summed before their scale is applied; bytes to ask memory for ahead of their use.
enum { V = CODE_ROWS / LANES, RUN = 128, AHEAD = 512 };

typedef int8_t Octets __attribute__((vector_size(LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

inline Words bytes_at(const uint8_t *p) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    Bytes v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Words);
#endif
}

inline Floats whole_at(const uint8_t *p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
    Octets v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(__builtin_convertvector(v, Signs), Floats);
#endif
}

inline Floats half_floats(const uint16_t *p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__) && defined(__AVX__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    Halves v;
    memcpy(&v, p, sizeof v);
    const Words u = __builtin_convertvector(v, Words), magnitude = (u & 0x7fffu) << 13;
    const Floats f = (Floats)magnitude * 0x1p112f;
    const Words sign = (u & 0x8000u) << 16, special = (Words)((u & 0x7c00u) == 0x7c00u) & 0x7f800000u;
    return (Floats)((Words)f | sign | special);
#endif
}

inline Floats numbers_at(const void *p, long at, long kind) {
    if (kind == SINGLE) return load((const float *)p + at);
    if (kind == BRAIN) return load((const bfloat16 *)p + at);
    return half_floats((const uint16_t *)p + at);
}

// The 16 values in registers, and the lanes that they are given to.
struct Table {
#if defined(__AVX512F__)
    __m512 all;
    explicit Table(const float *t) : all(t ? _mm512_loadu_ps(t) : _mm512_setzero_ps()) {}
    Floats operator()(Words code) const { return (Floats)_mm512_permutexvar_ps((__m512i)code, all); }
#else
    const float *all;
    explicit Table(const float *t) : all(t) {}
    Floats operator()(Words code) const {
        Floats y;
        for (int i = 0; i < LANES; i++) y[i] = all[code[i] & 15];
        return y;
    }
#endif
};

inline Floats float8(const uint8_t *p) {
    // As float16 with an exponent that is eight too small.
#if defined(__AVX512F__)
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)), 7);
    return (Floats)_mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16((short)0xbfff)));
#else
    const Words u = bytes_at(p);
    uint16_t halves[LANES];
    for (int i = 0; i < LANES; i++) halves[i] = (uint16_t)((u[i] & 128) << 8 | (u[i] & 127) << 7);
    return half_floats(halves);
#endif
}

template <int Kind> constexpr long bytes_of() { return Kind == BY_TABLE ? CODE_ROWS / 2 : CODE_ROWS; }

// One column of a block, without its scale.
template <int Kind> inline __attribute__((always_inline)) void decode(const uint8_t *p, const Table &table, Floats (&w)[V]) {
    if (Kind == BY_TABLE) {
#pragma GCC unroll 4
        for (int v = 0; v < V / 2; v++) {
            const Words both = bytes_at(p + v * LANES);
            w[v] = table(both);
            w[v + V / 2] = table(both >> 4);
        }
        return;
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) w[v] = Kind == FLOAT8 ? float8(p + v * LANES) : whole_at(p + v * LANES);
}

inline Floats scale_at(const Codes &c, long at) {
    // What float8 has lost in its exponent.
    const Floats s = numbers_at(c.scale, at, c.scale_kind);
    return c.kind == FLOAT8 ? s * 256.0f : s;
}

// Block b of w with M rows of x: out (M, CODE_ROWS).
template <int Kind, int M> void block_of(const Codes &c, long b, const Panel &panel, float *out) {
    const uint8_t *p = c.codes + b * c.width * bytes_of<Kind>();
    const Table table(c.table);
    Floats total[M][V] = {};
    for (long g = 0, k = 0; g < c.groups; g++) {
        const long end = (g + 1) * c.group < c.width ? (g + 1) * c.group : c.width, at = (b * c.groups + g) * CODE_ROWS;
        Floats scale[V];
        for (int v = 0; v < V; v++) scale[v] = scale_at(c, at + v * LANES);
        while (k < end) {
            const long stop = k + RUN < end ? k + RUN : end;
            Floats sums[M][V] = {};
#pragma GCC unroll 4
            for (; k < stop; k++, p += bytes_of<Kind>()) {
                // One row of x waits for memory; for several the arithmetic hides it.
                if (M == 1 && k % (64 / bytes_of<Kind>()) == 0) __builtin_prefetch(p + AHEAD);
                Floats w[V];
                decode<Kind>(p, table, w);
#pragma GCC unroll 8
                for (int m = 0; m < M; m++) {
                    const Floats one = splat(panel.x[k * M + m]);
#pragma GCC unroll 8
                    for (int v = 0; v < V; v++) sums[m][v] += w[v] * one;
                }
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; m++)
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) total[m][v] += scale[v] * sums[m][v];
        }
        if (!c.zero) continue;
        for (int v = 0; v < V; v++) {
            Floats zero = numbers_at(c.zero, at + v * LANES, c.zero_kind);
            if (c.relative) zero = -(zero * scale[v]);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) total[m][v] += zero * splat(panel.sums[g * M + m]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) save(out + m * CODE_ROWS + v * LANES, total[m][v]);
}


template <int Kind> inline Block block_for(long m) {
    return m == 1 ? block_of<Kind, 1> : m == 2 ? block_of<Kind, 2> : m == 4 ? block_of<Kind, 4> : block_of<Kind, CODE_PANEL>;
}


enum { HELD = 480 * 1024 };  // bytes of x that stay in a core's second cache

struct Coded {
    const Codes *c;
    const float *x;
    const void *bias;
    void *y;
    float *panels;
    long rows, x_stride, y_stride, m, size, together, blocks, items, threads, next, next_panel;
};

void arrange_all(void *data) {
    Coded &j = *(Coded *)data;
    for (long n; (n = __atomic_fetch_add(&j.next_panel, 1, __ATOMIC_RELAXED)) * j.m < j.rows;) {
        const long first = n * j.m;
        arrange(*j.c, j.x + first * j.x_stride, j.x_stride, j.rows - first, j.m, j.panels + n * j.size);
    }
}

template <class T> void multiply(void *data) {
    Coded &j = *(Coded *)data;
    const Codes &c = *j.c;
    const Block block = phyla_code_block(&c, j.m);
    float out[CODE_PANEL * CODE_ROWS] __attribute__((aligned(64)));
    for (long item = 0, end = 0; item < end || claim(&j.next, j.items, j.threads, item, end); item++) {
        const long b = item % j.blocks, n = b * CODE_ROWS, count = c.outs - n < CODE_ROWS ? c.outs - n : CODE_ROWS;
        const long from = item / j.blocks * j.together, last = from + j.together < j.rows ? from + j.together : j.rows;
        float bias[CODE_ROWS] = {};
        if (j.bias)
            for (long i = 0; i < count; i++) bias[i] = widen(((const T *)j.bias)[n + i]);
        for (long row = from; row < last; row += j.m) {
            const float *room = j.panels + row / j.m * j.size;
            const bool same = j.m == 1 && !c.order;
            block(c, b, Panel{same ? j.x + row * j.x_stride : room, room + (c.width * j.m + 15) / 16 * 16}, out);
            for (long m = 0; m < j.m && row + m < last; m++)
                for (long i = 0; i < count; i++)
                    store((T *)j.y + (row + m) * j.y_stride + n + i, j.bias ? out[m * CODE_ROWS + i] + bias[i] : out[m * CODE_ROWS + i]);
        }
    }
}

struct Expanded {
    const Codes *c;
    void *y;
    long first, blocks, stride, next;
};

inline void put(float *p, Words v) { memcpy(p, &v, sizeof v); }
inline void put(bfloat16 *p, Words v) {
    const Halves h = __builtin_convertvector(rounded(v), Halves);
    memcpy(p, &h, sizeof h);
}

// Block b as rows of w, y (CODE_ROWS, stride); what stands behind the last whole vector of columns goes one by one.
template <class T, int Kind> void expand(const Codes &c, long b, T *y, long rows, long stride) {
    const uint8_t *p = c.codes + b * c.width * bytes_of<Kind>();
    const Table table(c.table);
    Floats scale[V], zero[V] = {};
    long g = -1, end = 0;
    for (long k = 0; k < c.width; k += LANES) {
        Words columns[V][LANES];
        for (long i = 0; i < LANES; i++) {
            Floats w[V] = {};
            if (k + i >= end && end < c.width) {
                g++;
                end = (g + 1) * c.group < c.width ? (g + 1) * c.group : c.width;
                const long at = (b * c.groups + g) * CODE_ROWS;
                for (int v = 0; v < V; v++) {
                    scale[v] = scale_at(c, at + v * LANES);
                    if (c.zero) zero[v] = numbers_at(c.zero, at + v * LANES, c.zero_kind);
                }
            }
            if (k + i < c.width) decode<Kind>(p + (k + i) * bytes_of<Kind>(), table, w);
            for (int v = 0; v < V; v++)
                columns[v][i] = (Words)(c.relative ? scale[v] * (w[v] - zero[v]) : c.zero ? scale[v] * w[v] + zero[v] : scale[v] * w[v]);
        }
        for (int v = 0; v < V; v++) {
            transpose(columns[v]);
            for (long r = 0; r < LANES && v * LANES + r < rows; r++) {
                T *to = y + (v * LANES + r) * stride + k;
                if (k + LANES <= c.width) {
                    put(to, columns[v][r]);
                    continue;
                }
                T last[LANES];
                put(last, columns[v][r]);
                memcpy(to, last, (c.width - k) * sizeof(T));
            }
        }
    }
}

template <class T> void expand_all(void *data) {
    Expanded &e = *(Expanded *)data;
    const Codes &c = *e.c;
    for (long n; (n = __atomic_fetch_add(&e.next, 1, __ATOMIC_RELAXED)) < e.blocks;) {
        const long b = e.first + n, left = c.outs - b * CODE_ROWS, rows = left < CODE_ROWS ? left : CODE_ROWS;
        T *y = (T *)e.y + n * CODE_ROWS * e.stride;
        if (c.kind == BY_TABLE) expand<T, BY_TABLE>(c, b, y, rows, e.stride);
        if (c.kind == WHOLE) expand<T, WHOLE>(c, b, y, rows, e.stride);
        if (c.kind == FLOAT8) expand<T, FLOAT8>(c, b, y, rows, e.stride);
    }
}

void share(void (*work)(void *), void *job, bool worth, unsigned threads, Parallel parallel) {
    if (threads > 1 && worth)
        parallel(work, job, threads, 0);
    else
        work(job);
}

}  // namespace

extern "C" Block phyla_code_block(const Codes *c, long m) {
    return c->kind == BY_TABLE ? block_for<BY_TABLE>(m) : c->kind == WHOLE ? block_for<WHOLE>(m) : block_for<FLOAT8>(m);
}

// x (rows, K) float32; bias and y are bfloat16 or float32. 0, or 1 where there is no memory for x in panels.
extern "C" int phyla_codes(const Codes *c, int is_bfloat16, long rows, const float *x, long x_stride, const void *bias, void *y,
                           long y_stride, unsigned threads, Parallel parallel) {
    Coded j = {c, x, bias, y, 0, rows, x_stride, y_stride, panel_of(rows), 0, 0, 0, 0, (long)threads, 0, 0};
    j.size = (panel_size(*c, j.m) + 15) / 16 * 16;
    const long panels = (rows + j.m - 1) / j.m, fits = HELD / (j.size * 4);
    j.together = (fits < 1 ? 1 : fits) * j.m;
    j.blocks = (c->outs + CODE_ROWS - 1) / CODE_ROWS;
    j.items = j.blocks * ((rows + j.together - 1) / j.together);
    if (posix_memalign((void **)&j.panels, 64, (panels * j.size + 64) * sizeof(float))) return 1;
    share(arrange_all, &j, panels > 1, threads, parallel);
    share(is_bfloat16 ? multiply<bfloat16> : multiply<float>, &j, c->outs * c->width > 1 << 16, threads, parallel);
    free(j.panels);
    return 0;
}

// Rows of w from block `first` on, in order of the columns: y (rows, stride), bfloat16 or float32.
extern "C" int phyla_codes_expand(const Codes *c, int is_bfloat16, long first, long blocks, void *y, long stride, unsigned threads,
                                  Parallel parallel) {
    Expanded e = {c, y, first, blocks, stride, 0};
    share(is_bfloat16 ? expand_all<bfloat16> : expand_all<float>, &e, blocks > 1, threads, parallel);
    return 0;
}
