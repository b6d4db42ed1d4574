// Vectors of floats of the processor's width, bfloat16, and sums whose order depends on nothing but their length.

#ifndef PHYLA_VECTORS_H
#define PHYLA_VECTORS_H

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
// Elements of a row taken at once, in so many sums of LANES each that none has to wait for the one before.
enum { STEP = 64, SUMS = STEP / LANES };

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef int32_t Signs __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint16_t bfloat16;
// GOMP_parallel of the OpenMP runtime that torch uses: work, its data, threads, flags.
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

static inline void save(float *p, Floats v) { memcpy(p, &v, sizeof v); }

// One number in all lanes: minus zero, so that the compiler sees that nothing is added.
static inline Floats splat(float v) { return v - (Floats){}; }

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

// The same for the bits of LANES floats at once.
static inline Words rounded(Words u) {
    const Words is_nan = (Words)((u & 0x7fffffffu) > 0x7f800000u);
    return (is_nan & ((u >> 16) | 64)) | (~is_nan & ((u + 0x7fff + ((u >> 16) & 1)) >> 16));
}

template <class T, int M>
static inline __attribute__((always_inline)) void add(Floats (&sums)[M][SUMS], const float *x, long x_stride, const T *w) {
#pragma GCC unroll 16
    for (int s = 0; s < SUMS; s++) {
        const Floats row = load(w + s * LANES);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) sums[m][s] += load(x + m * x_stride + s * LANES) * row;
    }
}

// The sum of all lanes, by halves.
static inline float across(Floats v) {
#if defined(__AVX512F__)
    typedef float Half __attribute__((vector_size(32)));
    Half low, high;
    memcpy(&low, &v, 32);
    memcpy(&high, (const char *)&v + 32, 32);
    const Half eight = low + high;
#elif defined(__AVX__)
    const Floats eight = v;
#endif
    typedef float Quarter __attribute__((vector_size(16)));
    Quarter a;
#if defined(__AVX__)
    Quarter b;
    memcpy(&a, &eight, 16);
    memcpy(&b, (const char *)&eight + 16, 16);
    a += b;
#else
    a = v;
#endif
    return (a[0] + a[2]) + (a[1] + a[3]);
}

template <int M> static inline __attribute__((always_inline)) void total(const Floats (&sums)[M][SUMS], float *out) {
    for (int m = 0; m < M; m++) {
        Floats sum[SUMS];
        for (int s = 0; s < SUMS; s++) sum[s] = sums[m][s];
        for (int half = SUMS / 2; half; half /= 2)
            for (int s = 0; s < half; s++) sum[s] += sum[s + half];
        out[m] = across(sum[0]);
    }
}

// What is left of a row after whole steps, added to the sums of M rows of x.
template <class T, int M>
static __attribute__((noinline)) void rest(const float *x, long x_stride, const T *w, long width, float *out) {
    for (int m = 0; m < M; m++) {
        Floats sum = {};
        long k = 0;
        for (; k + LANES <= width; k += LANES) sum += load(x + m * x_stride + k) * load(w + k);
        float y = across(sum);
        for (; k < width; k++) y += x[m * x_stride + k] * widen(w[k]);
        out[m] += y;
    }
}

// M rows of x with one row of w: running sums over K, reduced in one order whatever M.
template <class T, int M> static inline void dots(const float *x, long x_stride, const T *w, long width, float *out) {
    Floats sums[M][SUMS] = {};
    long k = 0;
    for (; k + STEP <= width; k += STEP) add<T, M>(sums, x + k, x_stride, w + k);
    total<M>(sums, out);
    if (k < width) rest<T, M>(x + k, x_stride, w + k, width - k, out);
}

// One row of w with one to eight rows of x.
template <class T> static inline void dots_of(long rows, const float *x, long x_stride, const T *w, long width, float *out) {
    for (long m = 0; m < rows; m += 4) {
        const long left = rows - m;
        if (left == 1) dots<T, 1>(x + m * x_stride, x_stride, w, width, out + m);
        if (left == 2) dots<T, 2>(x + m * x_stride, x_stride, w, width, out + m);
        if (left == 3) dots<T, 3>(x + m * x_stride, x_stride, w, width, out + m);
        if (left >= 4) dots<T, 4>(x + m * x_stride, x_stride, w, width, out + m);
    }
}

#if defined(__clang__)
#define SHUFFLE(a, b, index) shuffle_lanes(a, b, index)
static inline Words shuffle_lanes(Words a, Words b, Signs index) {
    Words y;
    for (int i = 0; i < LANES; i++) y[i] = index[i] < LANES ? a[index[i]] : b[index[i] - LANES];
    return y;
}
#else
#define SHUFFLE(a, b, index) __builtin_shuffle(a, b, index)
#endif

// Rows become columns: LANES vectors in, the transposed ones out, by exchanging ever larger blocks.
static inline __attribute__((always_inline)) void transpose(Words (&a)[LANES]) {
#pragma GCC unroll 4
    for (int s = 1; s < LANES; s *= 2) {
        Signs low, high;
        for (int c = 0; c < LANES; c++) {
            low[c] = c & s ? LANES + c - s : c;
            high[c] = c & s ? LANES + c : c + s;
        }
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++)
            if (!(r & s)) {
                const Words top = a[r], bottom = a[r + s];
                a[r] = SHUFFLE(top, bottom, low);
                a[r + s] = SHUFFLE(top, bottom, high);
            }
    }
}

#endif
