// y = x w^T + b for one to eight rows of x: x (M, K), w (N, K) contiguous, y (M, N); float32 or bfloat16, float32 sums.
//
// Such products are bound by reading w once. Every output is one vector of running sums over K, reduced in a fixed
// order, whatever M, the thread or the place in w: a row of a batch has the bits it has alone.
// The threads are those of the OpenMP runtime that torch uses: its GOMP_parallel comes in as a pointer.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, SUMS = 16 };
#elif defined(__aarch64__)
enum { LANES = 4, SUMS = 16 };
#else
enum { LANES = 8, SUMS = 8 };
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint16_t bfloat16;
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

static inline Floats load(const float *p) {
    Floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline Floats load(const bfloat16 *p) {
    Halves h;
    memcpy(&h, p, sizeof h);
    return (Floats)(__builtin_convertvector(h, Words) << 16);
}

// The first `count` values, then zeros.
template <class T> static inline Floats load_part(const T *p, long count) {
    T part[LANES] = {};
    memcpy(part, p, count * sizeof(T));
    return load(part);
}

static inline float widen(float v) { return v; }
static inline float widen(bfloat16 v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline void store(float *p, float v) { *p = v; }
static inline void store(bfloat16 *p, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    // To the nearest, ties to even; a NaN stays a NaN.
    *p = v != v ? (bits >> 16) | 64 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static inline float sum(Floats v) {
    float part[LANES];
    memcpy(part, &v, sizeof v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

struct Product {
    const float *x;
    const void *w, *bias;
    void *y;
    long rows, outs, width, x_stride, y_stride, chunk, chunks, next;
};

// M rows of x with R rows of w, which are read side by side while the next R are on their way to the cache.
template <class T, int M, int R> static inline void tile(const Product &p, long n) {
    const long width = p.width, whole = width / LANES * LANES;
    const T *w = (const T *)p.w + n * width;
    Floats sums[M][R] = {};
    for (long k = 0; k < whole; k += LANES) {
        Floats x[M];
        _Pragma("GCC unroll 8")
        for (int m = 0; m < M; m++) x[m] = load(p.x + m * p.x_stride + k);
        _Pragma("GCC unroll 8")
        for (int r = 0; r < R; r++) {
            const T *at = w + r * width + k;
            __builtin_prefetch(at + PREFETCH);
            const Floats row = load(at);
            _Pragma("GCC unroll 8")
            for (int m = 0; m < M; m++) sums[m][r] += x[m] * row;
        }
    }
    if (whole < width)
        _Pragma("GCC unroll 8")
        for (int m = 0; m < M; m++) {
            const Floats x = load_part(p.x + m * p.x_stride + whole, width - whole);
            _Pragma("GCC unroll 8")
            for (int r = 0; r < R; r++) sums[m][r] += x * load_part(w + r * width + whole, width - whole);
        }
    _Pragma("GCC unroll 8")
    for (int m = 0; m < M; m++)
        _Pragma("GCC unroll 8")
        for (int r = 0; r < R; r++) {
            const float bias = p.bias ? widen(((const T *)p.bias)[n + r]) : 0;
            store((T *)p.y + m * p.y_stride + n + r, sum(sums[m][r]) + bias);
        }
}

template <class T, int M> static void work(void *data) {
    Product &p = *(Product *)data;
    const int R = NR < SUMS / M ? NR : SUMS / M;
    for (long c; (c = __atomic_fetch_add(&p.next, 1, __ATOMIC_RELAXED)) < p.chunks;) {
        long n = c * p.chunk;
        const long end = n + p.chunk < p.outs ? n + p.chunk : p.outs;
        for (; n + R <= end; n += R) tile<T, M, R>(p, n);
        for (; n < end; n++) tile<T, M, 1>(p, n);
    }
}

template <class T> static void (*worker(long rows))(void *) {
    static void (*const workers[])(void *) = {work<T, 1>, work<T, 2>, work<T, 3>, work<T, 4>,
                                              work<T, 5>, work<T, 6>, work<T, 7>, work<T, 8>};
    return workers[rows - 1];
}

extern "C" int phyla_few_rows(int half, long rows, long outs, long width, const void *x, long x_stride, const void *w,
                              const void *bias, void *y, long y_stride, unsigned threads, Parallel parallel) {
    if (rows < 1 || rows > 8) return 1;
    float *wide = 0;
    if (half) {
        wide = (float *)malloc((rows * width + 1) * sizeof(float));
        if (!wide) return 1;
        for (long m = 0; m < rows; m++)
            for (long k = 0; k < width; k++) wide[m * width + k] = widen(((const bfloat16 *)x)[m * x_stride + k]);
    }
    // Chunks are a multiple of a cache line of y, and not so small that handing them out shows.
    const long bytes = outs * width * (half ? 2 : 4), most = bytes / 65536;
    long chunks = most < CH * (long)threads ? most : CH * (long)threads;
    if (threads < 2 || chunks < 1) chunks = 1;
    const long chunk = ((outs + chunks - 1) / chunks + 31) / 32 * 32;
    Product p = {wide ? wide : (const float *)x, w, bias, y, rows, outs, width, wide ? width : x_stride, y_stride,
                 chunk, chunks, 0};
    void (*run)(void *) = half ? worker<bfloat16>(rows) : worker<float>(rows);
    if (chunks > 1)
        parallel(run, &p, threads, 0);
    else
        run(&p);
    free(wide);
    return 0;
}
