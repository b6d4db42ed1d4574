// y = x w^T + b for many rows of x: x (M, K), w (N, K), y (M, N), rows contiguous; float32 or bfloat16, float32 sums.
//
// Computed as y^T = w x^T: w is read where it lies, element after element of some rows at once, and only x, which is
// small, is put into panels of rows side by side. No second copy of a weight is ever made.
// Blocks of x stay in the second cache while the threads take rows of w in turn; each sum runs over K in order,
// block after block, so results do not depend on the number of threads.

#include "vectors.h"
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define PAIRS 1
#else
#define PAIRS 0
#endif

#if defined(__AVX512F__)
enum { ROWS = 12 };
#else
enum { ROWS = 6 };
#endif
// Rows of x in a panel; bytes of x that stay in a core's second cache; rows of w in one item.
enum { PANEL = 2 * LANES, CACHE = 480 * 1024, STRIPE = 8 * ROWS };

namespace {

inline uint32_t bits(float v) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

struct Product {
    const void *x, *w, *bias;
    void *y;
    float *panels;  // (panels, K, PANEL) float32; with PAIRS and bfloat16 (panels, K / 2, PANEL) pairs
    long rows, outs, width, x_stride, y_stride, block, stripes, items, next, next_panel;
};

// One vector's worth of one row of x, widened, or as pairs of bfloat16; zeros past the end.
template <class T, bool Paired> inline Words piece(const T *x, long k, long count) {
    Words v;
    if (sizeof(T) == 4 || Paired) {
        uint32_t u[LANES] = {};
        memcpy(u, (const uint32_t *)x + k, (count < LANES ? count : LANES) * 4);
        memcpy(&v, u, sizeof v);
        return v;
    }
    for (int i = 0; i < LANES; i++) v[i] = i < count ? bits(widen(x[k + i])) : 0;
    return v;
}

// A thread's share of putting x into panels.
template <class T, bool Paired> void arrange(void *data) {
    Product &p = *(Product *)data;
    const long width = Paired ? p.width / 2 : p.width, panels = (p.rows + PANEL - 1) / PANEL;
    for (long at; (at = __atomic_fetch_add(&p.next_panel, 1, __ATOMIC_RELAXED)) < panels;) {
        uint32_t *out = (uint32_t *)p.panels + at * width * PANEL;
        for (int half = 0; half < 2; half++) {
            const long first = at * PANEL + half * LANES;
            for (long k = 0; k < width; k += LANES) {
                Words a[LANES];
                const long left = width - k;
                for (int r = 0; r < LANES; r++) {
                    if (first + r < p.rows)
                        a[r] = piece<T, Paired>((const T *)p.x + (first + r) * p.x_stride, k, left);
                    else
                        a[r] = (Words){};
                }
                transpose(a);
                for (int i = 0; i < LANES && i < left; i++) memcpy(out + (k + i) * PANEL + half * LANES, &a[i], sizeof a[i]);
            }
        }
    }
}

// R rows of w with V vectors of x, K elements from k0 on.
template <class T, bool Paired, int R, int V>
inline __attribute__((always_inline)) void multiply(Floats (&sums)[R][V], const T *w, long w_stride, const float *x, long depth) {
    if (sizeof(T) == 4) {
        for (long k = 0; k < depth; k++, x += PANEL) {
            Floats v[V];
            for (int j = 0; j < V; j++) memcpy(&v[j], x + j * LANES, sizeof v[j]);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const Floats one = splat(widen(w[r * w_stride + k]));
#pragma GCC unroll 2
                for (int j = 0; j < V; j++) sums[r][j] += v[j] * one;
            }
        }
        return;
    }
    for (long k = 0; k < depth / 2; k++) {
#if PAIRS
        if (Paired) {
            __m512 v[V];
            for (int j = 0; j < V; j++) v[j] = _mm512_loadu_ps(x + k * PANEL + j * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                int pair;
                memcpy(&pair, w + r * w_stride + 2 * k, sizeof pair);
                const __m512bh one = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
                for (int j = 0; j < V; j++)
                    sums[r][j] = (Floats)_mm512_dpbf16_ps((__m512)sums[r][j], (__m512bh)v[j], one);
            }
            continue;
        }
#endif
        Floats even[V], odd[V];
        for (int j = 0; j < V; j++) {
            memcpy(&even[j], x + 2 * k * PANEL + j * LANES, sizeof even[j]);
            memcpy(&odd[j], x + (2 * k + 1) * PANEL + j * LANES, sizeof odd[j]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            uint32_t pair;
            memcpy(&pair, w + r * w_stride + 2 * k, sizeof pair);
            const Words both = (Words){} + pair;
            const Floats first = (Floats)(both << 16), second = (Floats)(both & 0xffff0000u);
#pragma GCC unroll 2
            for (int j = 0; j < V; j++) {
                sums[r][j] += even[j] * first;
                sums[r][j] += odd[j] * second;
            }
        }
    }
}

// Sums (R, V vectors of rows of x) to y, turned back; `count` rows of x are there.
template <class T, int R, int V>
inline void finish(const Product &p, Floats (&sums)[R][V], long n, long m, long count) {
    for (int j = 0; j < V; j++) {
        Words a[LANES] = {};
        for (int r = 0; r < R; r++) {
            const Floats s = p.bias ? sums[r][j] + widen(((const T *)p.bias)[n + r]) : sums[r][j];
            a[r] = sizeof(T) == 4 ? (Words)s : rounded((Words)s);
        }
        transpose(a);
        for (long i = 0; i < LANES && j * LANES + i < count; i++) {
            T *y = (T *)p.y + (m + j * LANES + i) * p.y_stride + n;
            if (sizeof(T) == 4) {
                memcpy(y, &a[i], R * sizeof(float));
            } else {
                const Halves h = __builtin_convertvector(a[i], Halves);
                memcpy(y, &h, R * sizeof(bfloat16));
            }
        }
    }
}

// R rows of w from n on with the panel of rows m of x, over all of K.
template <class T, bool Paired, int R, int V> void tile(const Product &p, long n, long m, long count) {
    const long words = Paired ? p.width / 2 : p.width;
    const float *x = p.panels + m / PANEL * words * PANEL;
    Floats sums[R][V] = {};
    multiply<T, Paired, R, V>(sums, (const T *)p.w + n * p.width, p.width, x, p.width);
    finish<T, R, V>(p, sums, n, m, count);
}

template <class T, bool Paired, int R> void strip(const Product &p, long n, long m, long end) {
    for (; m < end; m += PANEL) {
        const long count = end - m < PANEL ? end - m : PANEL;
        if (count > LANES)
            tile<T, Paired, R, 2>(p, n, m, count);
        else
            tile<T, Paired, R, 1>(p, n, m, count);
    }
}

template <class T, bool Paired> void work(void *data) {
    Product &p = *(Product *)data;
    for (long item; (item = __atomic_fetch_add(&p.next, 1, __ATOMIC_RELAXED)) < p.items;) {
        const long m = item / p.stripes * p.block, last = m + p.block < p.rows ? m + p.block : p.rows;
        long n = item % p.stripes * STRIPE;
        const long end = n + STRIPE < p.outs ? n + STRIPE : p.outs;
        for (; n + ROWS <= end; n += ROWS) strip<T, Paired, ROWS>(p, n, m, last);
        for (; n + 4 <= end; n += 4) strip<T, Paired, 4>(p, n, m, last);
        for (; n < end; n++) strip<T, Paired, 1>(p, n, m, last);
    }
}

}  // namespace

// 0, or 1 where there is no memory for the panels. Strides count elements; bfloat16 needs an even K.
extern "C" int phyla_many_rows(int is_bfloat16, long rows, long outs, long width, const void *x, long x_stride,
                               const void *w, const void *bias, void *y, long y_stride, unsigned threads,
                               Parallel parallel) {
    const bool paired = PAIRS && is_bfloat16;
    Product p = {x, w, bias, y, 0, rows, outs, width, x_stride, y_stride, 0, 0, 0, 0, 0};
    const long panels = (rows + PANEL - 1) / PANEL, words = paired ? width / 2 : width;
    if (posix_memalign((void **)&p.panels, 64, panels * PANEL * words * 4 + 64)) return 1;
    const long fits = CACHE / (words * 4) / PANEL * PANEL;
    p.block = fits < PANEL ? PANEL : fits;
    p.stripes = (outs + STRIPE - 1) / STRIPE;
    p.items = p.stripes * ((rows + p.block - 1) / p.block);
    void (*const first)(void *) = paired ? arrange<bfloat16, true> : is_bfloat16 ? arrange<bfloat16, false> : arrange<float, false>;
    void (*const second)(void *) = paired ? work<bfloat16, true> : is_bfloat16 ? work<bfloat16, false> : work<float, false>;
    if (threads > 1 && panels > 1)
        parallel(first, &p, threads, 0);
    else
        first(&p);
    if (threads > 1 && p.items > 1)
        parallel(second, &p, threads, 0);
    else
        second(&p);
    free(p.panels);
    return 0;
}
