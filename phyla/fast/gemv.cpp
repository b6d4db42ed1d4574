// y = x w^T + b for one to eight rows of x: x (M, K), w (N, K) contiguous, y (M, N); float32 or bfloat16, float32 sums.
//
// Such products are bound by reading w, which is fastest row after row: several rows at once, or prefetching by hand,
// halved the speed where it was measured. Every output is the same sixteen running sums over K, reduced in the same
// order, whatever M, the thread and the place in w: a row of a batch has the bits that it has alone.
// The threads are those of the OpenMP runtime that torch uses: its GOMP_parallel comes in as a pointer.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { STEP = 16, SUMS = STEP / LANES };
enum { CHUNKS_PER_THREAD = 4, CHUNK_BYTES = 65536, LINE = 32 };

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
    Halves v;
    memcpy(&v, p, sizeof v);
    return (Floats)(__builtin_convertvector(v, Words) << 16);
}

static inline float widen(float v) { return v; }
static inline float widen(bfloat16 v) {
    const uint32_t bits = (uint32_t)v << 16;
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

template <class T, int M>
static inline __attribute__((always_inline)) void add(Floats (&sums)[M][SUMS], const float *x, long x_stride, const T *w) {
#pragma GCC unroll 4
    for (int s = 0; s < SUMS; s++) {
        const Floats row = load(w + s * LANES);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) sums[m][s] += load(x + m * x_stride + s * LANES) * row;
    }
}

// M rows of x with one row of w.
template <class T, int M> static inline void dots(const float *x, long x_stride, const T *w, long width, float *out) {
    Floats sums[M][SUMS] = {};
    long k = 0;
    for (; k + STEP <= width; k += STEP) add<T, M>(sums, x + k, x_stride, w + k);
    if (k < width) {
        float x_end[M][STEP] = {};
        T w_end[STEP] = {};
        memcpy(w_end, w + k, (width - k) * sizeof(T));
        for (int m = 0; m < M; m++) memcpy(x_end[m], x + m * x_stride + k, (width - k) * sizeof(float));
        add<T, M>(sums, x_end[0], STEP, w_end);
    }
    for (int m = 0; m < M; m++) {
        float all[STEP], half[STEP / 2], quarter[STEP / 4];
        memcpy(all, sums[m], sizeof all);
        for (int i = 0; i < STEP / 2; i++) half[i] = all[i] + all[i + STEP / 2];
        for (int i = 0; i < STEP / 4; i++) quarter[i] = half[i] + half[i + STEP / 4];
        out[m] = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
    }
}

struct Product {
    const float *x;
    const void *w, *bias;
    void *y;
    long rows, outs, width, x_stride, y_stride, chunk, next;
};

// One thread's share: chunks of rows of w, taken until none is left, however many threads come.
template <class T> static void work(void *data) {
    Product &p = *(Product *)data;
    for (long n; (n = __atomic_fetch_add(&p.next, p.chunk, __ATOMIC_RELAXED)) < p.outs;) {
        const long end = n + p.chunk < p.outs ? n + p.chunk : p.outs;
        for (; n < end; n++) {
            const T *w = (const T *)p.w + n * p.width;
            const float bias = p.bias ? widen(((const T *)p.bias)[n]) : 0;
            for (long m = 0; m < p.rows; m += 4) {
                const float *x = p.x + m * p.x_stride;
                const long left = p.rows - m, group = left < 4 ? left : 4;
                float out[4];
                if (group == 1) dots<T, 1>(x, p.x_stride, w, p.width, out);
                if (group == 2) dots<T, 2>(x, p.x_stride, w, p.width, out);
                if (group == 3) dots<T, 3>(x, p.x_stride, w, p.width, out);
                if (group == 4) dots<T, 4>(x, p.x_stride, w, p.width, out);
                for (long g = 0; g < group; g++) {
                    T *y = (T *)p.y + (m + g) * p.y_stride + n;
                    store(y, p.bias ? out[g] + bias : out[g]);
                }
            }
        }
    }
}

// 0, or 1 where there is no memory for x in float32. Strides count elements.
extern "C" int phyla_few_rows(int is_bfloat16, long rows, long outs, long width, const void *x, long x_stride,
                              const void *w, const void *bias, void *y, long y_stride, unsigned threads,
                              Parallel parallel) {
    Product p = {(const float *)x, w, bias, y, rows, outs, width, x_stride, y_stride, outs, 0};
    float *wide = 0;
    if (is_bfloat16) {
        if (posix_memalign((void **)&wide, 64, (rows * width + 1) * sizeof(float))) return 1;
        for (long m = 0; m < rows; m++)
            for (long k = 0; k < width; k++) wide[m * width + k] = widen(((const bfloat16 *)x)[m * x_stride + k]);
        p.x = wide;
        p.x_stride = width;
    }
    // Not so small that handing them out shows, and whole cache lines of y.
    const long most = outs * width * (is_bfloat16 ? 2 : 4) / CHUNK_BYTES;
    const long chunks = most < CHUNKS_PER_THREAD * (long)threads ? most : CHUNKS_PER_THREAD * (long)threads;
    if (threads > 1 && chunks > 1) p.chunk = ((outs + chunks - 1) / chunks + LINE - 1) / LINE * LINE;
    void (*const run)(void *) = is_bfloat16 ? work<bfloat16> : work<float>;
    if (p.chunk < outs)
        parallel(run, &p, threads, 0);
    else
        run(&p);
    free(wide);
    return 0;
}
