// y = x w^T + b with a w of codes (codes.h), and pieces of w expanded.

#include "codes.h"

namespace {

// Vectors of a block's rows; columns summed before their scale is applied; bytes to ask memory for ahead of their use.
enum { V = CODE_ROWS / LANES, RUN = 128, AHEAD = 4096 };

inline Words words_at(const uint8_t *p) {
    Words v;
    memcpy(&v, p, sizeof v);
    return v;
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

// The 16 values in registers, and the lanes that they are given to: the lowest four bits of a word name one.
struct Table {
#if defined(__AVX512F__)
    __m512 all;
    explicit Table(const Codes &c) : all(c.table ? _mm512_loadu_ps(c.table) : _mm512_setzero_ps()) {}
    Floats operator()(Words code) const { return (Floats)_mm512_permutexvar_ps((__m512i)code, all); }
#else
    const Codes &c;
    explicit Table(const Codes &c) : c(c) {}
    Floats operator()(Words code) const {
        if (c.steps) return __builtin_convertvector((Signs)(code & 15), Floats) + c.first;
        Floats y;
        for (int i = 0; i < LANES; i++) y[i] = c.table[code[i] & 15];
        return y;
    }
#endif
};

// The lowest bytes of words as e4m3: float16 with an exponent that is eight too small.
inline Floats float8(Words u) {
    const Signs s = (Signs)(u << 24) >> 17 & (Signs)((Words){} + 0xffffbfffu);
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)s));
#else
    uint16_t halves[LANES];
    for (int i = 0; i < LANES; i++) halves[i] = (uint16_t)s[i];
    return half_floats(halves);
#endif
}

template <int Kind> constexpr long columns() { return Kind == BY_TABLE ? 8 : 4; }

// Bytes of a block of a width.
template <int Kind> inline long bytes_of(long width) { return (width + columns<Kind>() - 1) / columns<Kind>() * CODE_ROWS * 4; }

// Column c of a word, without its scale.
template <int Kind> inline __attribute__((always_inline)) Floats decode(Words word, int c, const Table &table) {
    if (Kind == BY_TABLE) return table(word >> (c < 4 ? 8 * c : 8 * c - 28));
    if (Kind == FLOAT8) return float8(word >> 8 * c);
    return __builtin_convertvector((Signs)(word << (24 - 8 * c)) >> 24, Floats);
}

inline Floats scale_at(const Codes &c, long at) {
    // What float8 has lost in its exponent.
    const Floats s = numbers_at(c.scale, at, c.scale_kind);
    return c.kind == FLOAT8 ? s * 256.0f : s;
}

// What ends a group: its sums times the scale, and its zero.
template <int M> inline __attribute__((always_inline)) void close_group(const Codes &c, long at, long v, const float *sums, Floats (&total)[M]) {
    if (!c.zero) return;
    Floats zero = numbers_at(c.zero, at + v * LANES, c.zero_kind);
    if (c.relative) zero = -(zero * scale_at(c, at + v * LANES));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) total[m] += zero * splat(sums[m]);
}

// Columns [from, from + count) of a chunk of words with M rows of x, into sums.
template <int Kind, int M>
inline __attribute__((always_inline)) void chunk(const uint8_t *p, int from, int count, const float *x, const Table &table, Floats (&sums)[V][M]) {
    Words word[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) word[v] = words_at(p + v * LANES * 4);
    auto column = [&](int c) __attribute__((always_inline)) {
        Floats w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) w[v] = decode<Kind>(word[v], c, table);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const Floats one = splat(x[(c - from) * M + m]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sums[v][m] += w[v] * one;
        }
    };
    if (count == columns<Kind>()) {
#pragma GCC unroll 8
        for (int c = 0; c < columns<Kind>(); c++) column(c);
    } else {
        for (int c = from; c < from + count; c++) column(c);
    }
}

// Block b of w with M rows of x: out (M, CODE_ROWS).
template <int Kind, int M> void block_of(const Codes &c, long b, const Panel &panel, float *out) {
    const uint8_t *p = c.codes + b * bytes_of<Kind>(c.width);
    const Table table(c);
    Floats total[V][M] = {};
    for (long g = 0, k = 0; g < c.groups; g++) {
        const long end = (g + 1) * c.group < c.width ? (g + 1) * c.group : c.width, at = (b * c.groups + g) * CODE_ROWS;
        while (k < end) {
            const long stop = k + RUN < end ? k + RUN : end;
            Floats sums[V][M] = {};
            while (k < stop) {
                const long from = k % columns<Kind>(), last = k - from + columns<Kind>(), next = last < stop ? last : stop;
                const uint8_t *word = p + k / columns<Kind>() * CODE_ROWS * 4;
                // One row of x waits for memory; for several the arithmetic hides it.
                if (M == 1) __builtin_prefetch(word + AHEAD), __builtin_prefetch(word + AHEAD + 64);
                chunk<Kind, M>(word, from, next - k, panel.x + k * M, table, sums);
                k = next;
            }
            for (int v = 0; v < V; v++)
                for (int m = 0; m < M; m++) total[v][m] += scale_at(c, at + v * LANES) * sums[v][m];
        }
        for (int v = 0; v < V; v++) close_group<M>(c, at, v, panel.sums + g * M, total[v]);
    }
    for (int v = 0; v < V; v++)
        for (int m = 0; m < M; m++) save(out + m * CODE_ROWS + v * LANES, total[v][m]);
}

template <int Kind> inline Block block_for(long m) {
    return m == 1 ? block_of<Kind, 1> : m == 2 ? block_of<Kind, 2> : m == 4 ? block_of<Kind, 4> : block_of<Kind, CODE_PANEL>;
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

// W vectors of words of N chunks of columns with the digits of M rows of x, added to the sums of each digit.
template <int Kind, int M, int W, int N>
inline __attribute__((always_inline)) void whole_chunks(const uint8_t *p, const int8_t *digits, __m512i (&sums)[W][M][3]) {
    const __m512i low = _mm512_set1_epi8(15), turn = _mm512_set1_epi8((char)0x80);
#pragma GCC unroll 4
    for (int n = 0; n < N; n++, p += CODE_ROWS * 4, digits += columns<Kind>() * 4 * M) {
        if (M == 1) _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0), _mm_prefetch((const char *)p + AHEAD + 64, _MM_HINT_T0);
        __m512i w[W][2];
#pragma GCC unroll 2
        for (int v = 0; v < W; v++) {
            const __m512i both = _mm512_loadu_si512(p + v * 64);
            w[v][0] = Kind == BY_TABLE ? _mm512_and_si512(both, low) : _mm512_xor_si512(both, turn);
            if (Kind == BY_TABLE) w[v][1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
#pragma GCC unroll 2
        for (int h = 0; h < (Kind == BY_TABLE ? 2 : 1); h++)
#pragma GCC unroll 8
            for (int m = 0; m < M; m++)
#pragma GCC unroll 3
                for (int d = 0; d < 3; d++) {
                    int32_t four;
                    memcpy(&four, digits + (h * M + m) * 16 + d * 4, 4);
                    const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 2
                    for (int v = 0; v < W; v++) sums[v][m][d] = _mm512_dpbusd_epi32(sums[v][m][d], w[v][h], x);
                }
    }
}

// A group of so many chunks of columns.
template <int Kind, int M, int W>
inline __attribute__((always_inline)) void whole_group(const uint8_t *p, long chunks, const int8_t *digits, __m512i (&sums)[W][M][3]) {
    const long size = CODE_ROWS * 4, step = columns<Kind>() * 4 * M;
    enum { MANY = Kind == BY_TABLE ? 4 : 1 };  // fewer turns, fewer copies of registers
    if (chunks == MANY) return whole_chunks<Kind, M, W, MANY>(p, digits, sums);
    for (; chunks >= MANY; chunks -= MANY, p += MANY * size, digits += MANY * step) whole_chunks<Kind, M, W, MANY>(p, digits, sums);
    for (; chunks; chunks--, p += size, digits += step) whole_chunks<Kind, M, W, 1>(p, digits, sums);
}

// As block_of, in whole numbers: sums over a group are exact, and only they are rounded.
template <int Kind, int M> void whole_block(const Codes &c, long b, const Panel &panel, float *out) {
    enum { W = M <= 4 ? 2 : 1 };
    const uint8_t *p = c.codes + b * bytes_of<Kind>(c.width);
    const float first = Kind == BY_TABLE ? c.first : -128.0f, floor = floorf(first), rest = first - floor;
    const __m512i offset = _mm512_set1_epi32((int)floor);
    Floats total[2][M] = {};
    for (long g = 0; g < c.groups; g++) {
        const long from = g * c.group, size = c.width - from < c.group ? c.width - from : c.group, at = (b * c.groups + g) * CODE_ROWS;
        const uint8_t *words = p + from / columns<Kind>() * CODE_ROWS * 4;
        const int8_t *digits = panel.digits + from * 4 * M;
        const Whole *whole = panel.whole + g * M;
#pragma GCC unroll 1
        for (int v = 0; v < 2; v += W) {
            __m512i sums[W][M][3];
#pragma GCC unroll 2
            for (int i = 0; i < W; i++)
#pragma GCC unroll 8
                for (int m = 0; m < M; m++)
#pragma GCC unroll 3
                    for (int d = 0; d < 3; d++) sums[i][m][d] = _mm512_mullo_epi32(offset, _mm512_set1_epi32(whole[m].sums[d]));
            whole_group<Kind, M, W>(words + v * 64, (size + columns<Kind>() - 1) / columns<Kind>(), digits, sums);
#pragma GCC unroll 2
            for (int i = 0; i < W; i++) {
                const Floats scale = scale_at(c, at + (v + i) * LANES);
#pragma GCC unroll 8
                for (int m = 0; m < M; m++) {
                    Floats y = (Floats)_mm512_cvtepi32_ps(sums[i][m][0]) * whole[m].counts[0];
                    y += (Floats)_mm512_cvtepi32_ps(sums[i][m][1]) * whole[m].counts[1];
                    y += (Floats)_mm512_cvtepi32_ps(sums[i][m][2]) * whole[m].counts[2];
                    if (rest) y += rest * panel.sums[g * M + m];
                    total[v + i][m] += scale * y;
                }
                close_group<M>(c, at, v + i, panel.sums + g * M, total[v + i]);
            }
        }
    }
    for (int v = 0; v < 2; v++)
        for (int m = 0; m < M; m++) save(out + m * CODE_ROWS + v * LANES, total[v][m]);
}

template <int Kind> inline Block whole_for(long m) {
    return m == 1 ? whole_block<Kind, 1> : m == 2 ? whole_block<Kind, 2> : m == 4 ? whole_block<Kind, 4> : whole_block<Kind, CODE_PANEL>;
}
#endif

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
            block(c, b, panel_in(c, j.x + row * j.x_stride, j.m, (float *)room), out);
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
    const uint8_t *p = c.codes + b * bytes_of<Kind>(c.width);
    const Table table(c);
    Floats scale[V], zero[V] = {};
    long g = -1, end = 0;
    for (long k = 0; k < c.width; k += LANES) {
        Words turned[V][LANES];
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
            const uint8_t *words = p + (k + i) / columns<Kind>() * CODE_ROWS * 4;
            for (int v = 0; k + i < c.width && v < V; v++) w[v] = decode<Kind>(words_at(words + v * LANES * 4), (k + i) % columns<Kind>(), table);
            for (int v = 0; v < V; v++)
                turned[v][i] = (Words)(c.relative ? scale[v] * (w[v] - zero[v]) : c.zero ? scale[v] * w[v] + zero[v] : scale[v] * w[v]);
        }
        for (int v = 0; v < V; v++) {
            transpose(turned[v]);
            for (long r = 0; r < LANES && v * LANES + r < rows; r++) {
                T *to = y + (v * LANES + r) * stride + k;
                if (k + LANES <= c.width) {
                    put(to, turned[v][r]);
                    continue;
                }
                T last[LANES];
                put(last, turned[v][r]);
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
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    if (wants_digits(*c) && c->kind == BY_TABLE && c->steps) return whole_for<BY_TABLE>(m);
    if (wants_digits(*c) && c->kind == WHOLE) return whole_for<WHOLE>(m);
#endif
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
