// What stands between the products of a layer: norms of rows and activations, in lanes.

#ifndef PHYLA_LANES_H
#define PHYLA_LANES_H

#include <math.h>
#include <sched.h>

#include "vectors.h"

extern "C" {

enum { NO_NORM, RMS_NORM, LAYER_NORM };
enum { RELU, SILU, GELU_TANH, GELU_ERF, QUICK_GELU };

struct Norm {
    const void *weight, *bias;
    float eps, offset;
    long kind;
};

}  // extern "C"

namespace {

typedef int (*Asked)(void);  // omp_get_num_threads, omp_get_thread_num

// Where the threads of a team meet.
struct Meeting {
    volatile long arrived, turn;
};

// Wait for all threads: at first by looking, then leaving the core to others that may be the ones waited for.
inline void meet(Meeting &m, long threads) {
    const long pauses = 4000;
    if (threads == 1) return;
    const long turn = __atomic_load_n(&m.turn, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&m.arrived, 1, __ATOMIC_ACQ_REL) == threads) {
        __atomic_store_n(&m.arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&m.turn, turn + 1, __ATOMIC_RELEASE);
        return;
    }
    for (long i = 0; __atomic_load_n(&m.turn, __ATOMIC_ACQUIRE) == turn; i++) {
        if (i > pauses) sched_yield();
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

// 2^x in lanes, by the exponent's bits and a polynomial on [-1/2, 1/2]; relative error below 2e-7.
inline Floats power(Floats x) {
    const Floats low = splat(-126), high = splat(127.4f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Floats magic = splat(12582912.0f), shifted = x + magic, f = x - (shifted - magic);
    Floats p = splat(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return (Floats)((Words)p + ((Words)shifted << 23));
}

// erf(x) in lanes as a ratio of polynomials on [-4, 4]; absolute error below 4e-7, and +-1 outside.
inline Floats error_function(Floats x) {
    const Floats z = x * x;
    Floats p = splat(-2.72614225801306e-10f), q = splat(-1.45660718464996e-05f);
    p = p * z + 2.77068142495902e-08f;
    p = p * z - 2.10102402082508e-06f;
    p = p * z - 5.69250639462346e-05f;
    p = p * z - 7.34990630326855e-04f;
    p = p * z - 2.95459980854025e-03f;
    p = p * z - 1.60960333262415e-02f;
    q = q * z - 2.13374055278905e-04f;
    q = q * z - 1.68282697438203e-03f;
    q = q * z - 7.37332916720468e-03f;
    q = q * z - 1.42647390514189e-02f;
    const Floats one = splat(1.0f), y = x * p / q;
    return z < 16.0f ? y : x > 0.0f ? one : x < 0.0f ? -one : x;
}

inline Floats activated(Floats x, long act) {
    const float log2e = 1.44269504f;
    if (act == SILU) return x / (1.0f + power(x * -log2e));
    if (act == QUICK_GELU) return x / (1.0f + power(x * (-1.702f * log2e)));
    if (act == GELU_TANH) {
        const Floats z = 0.7978845608f * (x + 0.044715f * x * x * x);
        return x - x / (1.0f + power(z * (2 * log2e)));
    }
    if (act == GELU_ERF) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    return x > 0 ? x : (Floats){};
}

inline float sum_of(const float *x, long width) {
    Floats sums[4] = {};
    long k = 0;
    for (; k + 4 * LANES <= width; k += 4 * LANES)
        for (int i = 0; i < 4; i++) sums[i] += load(x + k + i * LANES);
    for (; k + LANES <= width; k += LANES) sums[0] += load(x + k);
    float y = across((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; k < width; k++) y += x[k];
    return y;
}

// y = norm(x) for one row of `width`; every sum in one order.
template <class T> void norm(const Norm &n, const float *x, long width, float *y) {
    if (n.kind == NO_NORM) {
        if (y != x) memcpy(y, x, width * sizeof(float));
        return;
    }
    float square;
    long k = 0;
    if (n.kind == LAYER_NORM) {
        const float mean = sum_of(x, width) / width;
        for (; k + LANES <= width; k += LANES) save(y + k, load(x + k) - mean);
        for (; k < width; k++) y[k] = x[k] - mean;
        x = y;
    }
    dots<float, 1>(x, width, x, width, &square);
    const float gain = 1.0f / sqrtf(square / width + n.eps);
    const T *w = (const T *)n.weight, *b = (const T *)n.bias;
    for (k = 0; k + LANES <= width; k += LANES) {
        Floats v = load(x + k) * gain;
        if (w) v *= load(w + k) + n.offset;
        if (b) v += load(b + k);
        save(y + k, v);
    }
    for (; k < width; k++) {
        const float v = x[k] * gain * (w ? widen(w[k]) + n.offset : 1.0f);
        y[k] = b ? v + widen(b[k]) : v;
    }
}

}  // namespace

#endif
