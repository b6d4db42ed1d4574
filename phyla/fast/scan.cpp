// Recurrences, float32. That of a selective state space (Gu & Dao, arXiv:2312.00752, eq. 2) in one pass over its
// inputs: h_t = exp(step_t a) h_{t-1} + step_t b_t x_t; y_t = c_t h_t. That of an LSTM (Hochreiter & Schmidhuber 1997)
// after the product of its inputs: gates_t + W h_{t-1} are i, f, g, o; c_t = f c_{t-1} + i g; h_t = o tanh(c_t).
//
// The scan: a thread takes LANES channels through all steps; their states stay in registers or the first cache, and no product of
// channels and states is ever written. Sums run over the states in order, whatever the number of threads.
// The LSTM: each thread keeps to its own units, whose rows of W stay in its second cache where they fit, and the
// threads meet after each step.

#include "lanes.h"

extern "C" {

struct Scanned {
    long batch, length, inner, states;
    const float *x, *step;  // (B, S, I)
    const float *a;         // (I, N)
    const float *b, *c;     // (B, S, N), steps b_stride and c_stride elements apart
    long b_stride, c_stride;
    const float *before;  // (B, I, N) or none
    float *y, *after;     // (B, S, I), (B, I, N)
};

struct Remembered {
    long length, batch, width;
    const float *gates, *weight;  // (T, B, 4W), (4W, W)
    float *cell, *out;            // (B, W), changed; (T + 1, B, W), whose first step is h_0
};

}  // extern "C"

namespace {

enum { MOST_STATES = 256, MOST_ROWS = 8, UNITS = 64 };

struct Job {
    const Scanned *s;
    long blocks, items, next;
};

inline Floats some(const float *p, long count) {
    if (count == LANES) return load(p);
    Floats v = {};
    memcpy(&v, p, count * sizeof(float));
    return v;
}

void work(void *data) {
    Job &job = *(Job *)data;
    const Scanned &s = *job.s;
    const long N = s.states;
    Floats a[MOST_STATES], h[MOST_STATES];
    for (long item; (item = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED)) < job.items;) {
        const long row = item / job.blocks, first = item % job.blocks * LANES;
        const long count = s.inner - first < LANES ? s.inner - first : LANES;
        const long base = (row * s.inner + first) * N;
        for (long n = 0; n < N; n++) {
            a[n] = h[n] = (Floats){};
            for (long i = 0; i < count; i++) {
                a[n][i] = s.a[(first + i) * N + n] * 1.44269504f;
                if (s.before) h[n][i] = s.before[base + i * N + n];
            }
        }
        for (long t = 0; t < s.length; t++) {
            const long at = (row * s.length + t) * s.inner + first;
            const Floats step = some(s.step + at, count), entry = step * some(s.x + at, count);
            const float *b = s.b + (row * s.length + t) * s.b_stride, *c = s.c + (row * s.length + t) * s.c_stride;
            Floats y = {};
            for (long n = 0; n < N; n++) {
                h[n] = power(step * a[n]) * h[n] + entry * b[n];
                y += h[n] * c[n];
            }
            memcpy(s.y + at, &y, count * sizeof(float));
        }
        for (long i = 0; i < count; i++)
            for (long n = 0; n < N; n++) s.after[base + i * N + n] = h[n][i];
    }
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + power(x * -1.44269504f)); }
inline Floats tangent(Floats x) { return 1.0f - 2.0f / (1.0f + power(x * 2.88539008f)); }

struct Steps {
    const Remembered *r;
    Asked count, number;
    Meeting meeting;
};

// One step of units [u, u + n) of all rows, n at most UNITS; `sums` has room for 4 gates of them.
void advance(const Remembered &r, long t, long u, long n, float *sums) {
    const long W = r.width, B = r.batch;
    const float *h = r.out + t * B * W, *gates = r.gates + t * B * 4 * W;
    float one[MOST_ROWS];
    for (long g = 0; g < 4; g++)
        for (long i = 0; i < n; i++) {
            dots_of<float>(B, h, W, r.weight + (g * W + u + i) * W, W, one);
            for (long b = 0; b < B; b++) sums[(b * 4 + g) * UNITS + i] = one[b] + gates[b * 4 * W + g * W + u + i];
        }
    for (long b = 0; b < B; b++)
        for (long i = 0; i < n; i += LANES) {
            const long count = n - i < LANES ? n - i : LANES;
            float *cell = r.cell + b * W + u + i;
            const float *of = sums + b * 4 * UNITS + i;
            const Floats c = sigmoid(load(of + UNITS)) * some(cell, count) + sigmoid(load(of)) * tangent(load(of + 2 * UNITS));
            const Floats y = sigmoid(load(of + 3 * UNITS)) * tangent(c);
            memcpy(cell, &c, count * sizeof(float));
            memcpy(r.out + ((t + 1) * B + b) * W + u + i, &y, count * sizeof(float));
        }
}

void remember(void *data) {
    Steps &s = *(Steps *)data;
    const Remembered &r = *s.r;
    const long threads = s.count(), me = s.number(), share = (r.width + threads - 1) / threads;
    const long first = me * share < r.width ? me * share : r.width, end = first + share < r.width ? first + share : r.width;
    float sums[MOST_ROWS * 4 * UNITS] = {};
    for (long t = 0; t < r.length; t++) {
        for (long u = first; u < end; u += UNITS) advance(r, t, u, end - u < UNITS ? end - u : UNITS, sums);
        meet(s.meeting, threads);
    }
}

int alone(void) { return 1; }
int first(void) { return 0; }

}  // namespace

// 0, or 1 where there are more rows than there is room for.
extern "C" int phyla_lstm(const Remembered *r, unsigned threads, Parallel parallel, Asked count, Asked number) {
    if (r->batch > MOST_ROWS) return 1;
    Steps s = {r, count, number, {0, 0}};
    if (threads > 1 && r->width > UNITS) {
        parallel(remember, &s, threads, 0);
    } else {
        s.count = alone;
        s.number = first;
        remember(&s);
    }
    return 0;
}

// 0, or 1 where there are more states to a channel than there is room for.
extern "C" int phyla_selective_scan(const Scanned *s, unsigned threads, Parallel parallel) {
    if (s->states > MOST_STATES) return 1;
    const long blocks = (s->inner + LANES - 1) / LANES;
    Job job = {s, blocks, blocks * s->batch, 0};
    if (threads > 1 && job.items > 1)
        parallel(work, &job, threads, 0);
    else
        work(&job);
    return 0;
}
