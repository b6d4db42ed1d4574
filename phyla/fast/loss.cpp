// Cross-entropy over a vocabulary: the loss of each row without a copy of the scores, and its gradient in one pass.

#include <math.h>

#include "lanes.h"

extern "C" {

struct Scored {
    long rows, classes, stride;  // scores (rows, classes), rows `stride` elements apart
    const float *scores;
    const int64_t *labels;  // (rows)
    int64_t ignored;        // rows with this label cost nothing
    float *log_sums;        // (rows): log of the sum of exp(scores)
    float *losses;          // (rows), forward
    const float *change;    // (rows): gradient of the losses, backward
    float *gradient;        // (rows, classes), backward
    int64_t bad;            // out: a label that names no class, or -1
};

}  // extern "C"

namespace {

const float LOG2E = 1.44269504f;

struct Rows {
    Scored *s;
    long next;
};

inline bool take(Rows &r, long &row) {
    row = __atomic_fetch_add(&r.next, 1, __ATOMIC_RELAXED);
    return row < r.s->rows;
}

float log_sum(const float *x, long count) {
    Floats tops[4];
    for (auto &t : tops) t = splat(-INFINITY);
    long k = 0;
    for (; k + 4 * LANES <= count; k += 4 * LANES)
        for (int i = 0; i < 4; i++) {
            const Floats v = load(x + k + i * LANES);
            tops[i] = v > tops[i] ? v : tops[i];
        }
    float top = -INFINITY;
    for (const auto &t : tops)
        for (int i = 0; i < LANES; i++) top = t[i] > top ? t[i] : top;
    for (; k < count; k++) top = x[k] > top ? x[k] : top;
    const float safe = top > -INFINITY && top < INFINITY ? top : 0.0f;
    // Sums of a stretch in lanes, stretches in double: the rounding does not grow with the vocabulary.
    double sum = 0;
    const Floats least = splat(-126.0f);
    for (k = 0; k + LANES <= count;) {
        Floats part = {};
        for (long end = k + 64 * LANES; k < end && k + LANES <= count; k += LANES) {
            const Floats v = (load(x + k) - safe) * LOG2E;
            const Floats p = power(v);
            part += v < least ? (Floats){} : v == v ? p : v;
        }
        sum += across(part);
    }
    for (; k < count; k++) sum += expf(x[k] - safe);
    if (top == INFINITY) return sum == sum ? INFINITY : NAN;
    return safe + (float)log(sum);
}

void forward(void *data) {
    Rows &r = *(Rows *)data;
    Scored &s = *r.s;
    for (long row; take(r, row);) {
        const int64_t label = s.labels[row];
        const float *x = s.scores + row * s.stride;
        if (label == s.ignored) {
            s.losses[row] = s.log_sums[row] = 0;
            continue;
        }
        if (label < 0 || label >= s.classes) {
            __atomic_store_n(&s.bad, label < 0 ? s.classes : label, __ATOMIC_RELAXED);
            s.losses[row] = s.log_sums[row] = 0;
            continue;
        }
        s.log_sums[row] = log_sum(x, s.classes);
        s.losses[row] = s.log_sums[row] - x[label];
    }
}

void backward(void *data) {
    Rows &r = *(Rows *)data;
    const Scored &s = *r.s;
    const Floats least = splat(-126.0f);
    for (long row; take(r, row);) {
        float *y = s.gradient + row * s.classes;
        if (s.labels[row] == s.ignored) {
            memset(y, 0, s.classes * sizeof(float));
            continue;
        }
        const float *x = s.scores + row * s.stride, g = s.change[row], log_sum = s.log_sums[row];
        long k = 0;
        for (; k + LANES <= s.classes; k += LANES) {
            const Floats v = (load(x + k) - log_sum) * LOG2E;
            const Floats p = power(v);
            save(y + k, g * (v < least ? (Floats){} : v == v ? p : v));
        }
        for (; k < s.classes; k++) y[k] = g * expf(x[k] - log_sum);
        y[s.labels[row]] -= g;
    }
}

int run(void (*work)(void *), Scored *s, unsigned threads, Parallel parallel) {
    Rows r = {s, 0};
    if (threads > 1 && s->rows > 1)
        parallel(work, &r, threads, 0);
    else
        work(&r);
    return 0;
}

}  // namespace

extern "C" int phyla_losses(Scored *s, unsigned threads, Parallel parallel) {
    s->bad = -1;
    return run(forward, s, threads, parallel);
}

extern "C" int phyla_losses_back(Scored *s, unsigned threads, Parallel parallel) { return run(backward, s, threads, parallel); }
