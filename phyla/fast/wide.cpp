// Pieces of a layer for many rows: norms, rotations into the cache, attention and gates, in one pass over memory each.
//
// Attention takes 32 queries side by side in lanes: scores of a block of keys, running maximum and sum, and weighted
// values need no sum across lanes (Dao et al. 2022, arXiv:2205.14135, with y^T = v^T p^T in place of y = p v).

#include <math.h>

#include "lanes.h"

extern "C" {

// q, k, v (rows of tokens, their strides in elements) turned and laid out by heads; see `place`.
struct Turned {
    long is_bfloat16, batch, length, heads, kv_heads, head_width;
    long turned, paired, angle_rows;
    const float *cos, *sin;
    const void *q, *k, *v;
    long q_stride, k_stride, v_stride;
    void *q_out, *keys, *values;  // (B, H, S, E); (B, G, capacity, E) from slot `used` on
    long capacity, used;
};

struct Attended {
    long is_bfloat16, batch, heads, kv_heads, head_width, length, keys_used, start;
    long window, ahead;  // a query sees the last `window` keys (0: all), itself included, and so many after itself
    float scale;
    const void *q, *keys, *values;  // q (B, H, S, E); keys and values (B, G, capacity, E)
    long capacity;
    const uint8_t *mask;  // (B, mask_stride) or none
    long mask_stride;
    const float *bias;  // (1 or B, H, keys) added to scores, or none
    long bias_row, bias_head;
    void *out;  // (B, S, H, E)
};

struct Normed {
    long is_bfloat16, rows, width;
    void *x;        // (rows, width): x + multiplier * out(change), then post of it, stays here
    const void *change;
    float multiplier;
    Norm out, post, pre;
    void *h;  // pre(x), or none
};

struct Gated {
    long is_bfloat16, rows, width, act, gate_stride, up_stride;
    const void *gate, *up;
    void *out;
};

}  // extern "C"

namespace {

enum { QUERIES = 2 * LANES, BLOCK = 96, ROWS = LANES == 16 ? 12 : 6, OUTS = LANES == 16 ? 8 : 4, GRAIN = 16 };

struct Job {
    const void *what;
    long items, next, failed;
};

inline bool take(Job &job, long &item) {
    item = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
    return item < job.items;
}

inline void keep(float *p, Floats v) { save(p, v); }
inline void keep(bfloat16 *p, Floats v) {
    const Halves h = __builtin_convertvector(rounded((Words)v), Halves);
    memcpy(p, &h, sizeof h);
}

template <class T> void widen_row(const T *x, long width, float *y) {
    long k = 0;
    for (; k + LANES <= width; k += LANES) save(y + k, load(x + k));
    for (; k < width; k++) y[k] = widen(x[k]);
}

template <class T> void narrow_row(const float *x, long width, T *y) {
    long k = 0;
    for (; k + LANES <= width; k += LANES) keep(y + k, load(x + k));
    for (; k < width; k++) store(y + k, x[k]);
}

template <class T> void norm_rows(void *data) {
    Job &job = *(Job *)data;
    const Normed &n = *(const Normed *)job.what;
    const long D = n.width;
    float *own = (float *)malloc((3 * D + 48) * sizeof(float)), *x = own, *y = own + D + 16, *h = y + D + 16;
    if (!own) {
        job.failed = 1;
        return;
    }
    for (long item; take(job, item);)
        for (long m = item * GRAIN; m < n.rows && m < (item + 1) * GRAIN; m++) {
            T *row = (T *)n.x + m * D;
            widen_row(row, D, x);
            if (n.change) {
                widen_row((const T *)n.change + m * D, D, y);
                if (n.out.kind != NO_NORM) norm<T>(n.out, y, D, y);
                for (long d = 0; d < D; d++) x[d] += n.multiplier * y[d];
                if (n.post.kind != NO_NORM) norm<T>(n.post, x, D, x);
                narrow_row(x, D, row);
                if (sizeof(T) == 2) widen_row(row, D, x);  // as the stream is stored
            }
            if (!n.h) continue;
            norm<T>(n.pre, x, D, h);
            narrow_row(h, D, (T *)n.h + m * D);
        }
    free(own);
}

template <class T> void place(void *data) {
    Job &job = *(Job *)data;
    const Turned &t = *(const Turned *)job.what;
    const long E = t.head_width, half = t.turned / 2;
    float x[512], y[512];
    for (long item; take(job, item);) {
        const long b = item / t.length, i = item % t.length, row = ((t.angle_rows > 1 ? b : 0) * t.length + i) * t.turned;
        const float *cos = t.cos + row, *sin = t.sin + row;
        for (long h = 0; h < t.heads + t.kv_heads; h++) {
            const bool query = h < t.heads;
            const long g = h - t.heads;
            const T *from = query ? (const T *)t.q + item * t.q_stride + h * E : (const T *)t.k + item * t.k_stride + g * E;
            T *to = query ? (T *)t.q_out + ((b * t.heads + h) * t.length + i) * E
                          : (T *)t.keys + ((b * t.kv_heads + g) * t.capacity + t.used + i) * E;
            if (!t.turned) {
                memcpy(to, from, E * sizeof(T));
                continue;
            }
            widen_row(from, E, x);
            if (t.paired)
                for (long e = 0; e < t.turned; e++) y[e] = x[e] * cos[e] + x[e ^ 1] * sin[e];
            else
                for (long e = 0; e < half; e++) {
                    y[e] = x[e] * cos[e] + x[e + half] * sin[e];
                    y[e + half] = x[e + half] * cos[e + half] + x[e] * sin[e + half];
                }
            narrow_row(y, t.turned, to);
            memcpy(to + t.turned, from + t.turned, (E - t.turned) * sizeof(T));
        }
        for (long g = 0; g < t.kv_heads; g++)
            memcpy((T *)t.values + ((b * t.kv_heads + g) * t.capacity + t.used + i) * E, (const T *)t.v + item * t.v_stride + g * E,
                   E * sizeof(T));
    }
}

// scores (R keys, QUERIES) = keys (R, E) times the queries (E, QUERIES).
template <class T, int R> inline void compare(const T *keys, const float *q, long E, float *scores) {
    Floats sums[R][2] = {};
    for (long e = 0; e < E; e++) {
        const Floats a = load(q + e * QUERIES), b = load(q + e * QUERIES + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const Floats one = splat(widen(keys[r * E + e]));
            sums[r][0] += a * one;
            sums[r][1] += b * one;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        save(scores + r * QUERIES, sums[r][0]);
        save(scores + r * QUERIES + LANES, sums[r][1]);
    }
}

// out (R elements of the head, QUERIES) += values (count, R of E) with the weights (count, QUERIES).
template <class T, int R> inline void blend(const T *values, long E, const float *weights, long count, float *out) {
    Floats sums[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        sums[r][0] = load(out + r * QUERIES);
        sums[r][1] = load(out + r * QUERIES + LANES);
    }
    for (long j = 0; j < count; j++, values += E, weights += QUERIES) {
        const Floats a = load(weights), b = load(weights + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const Floats one = splat(widen(values[r]));
            sums[r][0] += a * one;
            sums[r][1] += b * one;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        save(out + r * QUERIES, sums[r][0]);
        save(out + r * QUERIES + LANES, sums[r][1]);
    }
}

template <class T> void attend(void *data) {
    Job &job = *(Job *)data;
    const Attended &a = *(const Attended *)job.what;
    const long E = a.head_width, panels = (a.length + QUERIES - 1) / QUERIES, group = a.heads / a.kv_heads;
    float *own = 0;
    if (posix_memalign((void **)&own, 64, (2 * E * QUERIES + BLOCK * QUERIES + 4 * QUERIES) * sizeof(float))) {
        job.failed = 1;
        return;
    }
    float *q = own, *out = q + E * QUERIES, *scores = out + E * QUERIES, *most = scores + BLOCK * QUERIES, *sum = most + QUERIES,
          *shrink = sum + QUERIES;
    const float log2e = 1.44269504f;
    const Floats none = splat(-INFINITY), floor = splat(-1e30f);
    for (long item; take(job, item);) {
        // The longest rows first: with a causal mask the last panel has most to do.
        const long panel = panels - 1 - item / (a.batch * a.heads), h = item % a.heads, b = item / a.heads % a.batch, g = h / group;
        const long first = panel * QUERIES, count = a.length - first < QUERIES ? a.length - first : QUERIES;
        const T *from = (const T *)a.q + ((b * a.heads + h) * a.length + first) * E;
        const T *keys = (const T *)a.keys + (b * a.kv_heads + g) * a.capacity * E;
        const T *values = (const T *)a.values + (b * a.kv_heads + g) * a.capacity * E;
        const uint8_t *mask = a.mask ? a.mask + b * a.mask_stride : 0;
        const float *bias = a.bias ? a.bias + b * a.bias_row + h * a.bias_head : 0;
        for (long i = 0; i < QUERIES; i++)
            for (long e = 0; e < E; e++) q[e * QUERIES + i] = i < count ? widen(from[i * E + e]) * (a.scale * log2e) : 0;
        memset(out, 0, E * QUERIES * sizeof(float));
        for (long i = 0; i < QUERIES; i++) most[i] = -INFINITY, sum[i] = 0;
        const long low = a.start + first, high = low + count - 1;  // slots of the first and the last query
        long begin = a.window && low - a.window + 1 > 0 ? low - a.window + 1 : 0;
        const long end = high + 1 + a.ahead < a.keys_used ? high + 1 + a.ahead : a.keys_used;
        for (long c = begin; c < end; c += BLOCK) {
            const long n = c + BLOCK < end ? BLOCK : end - c;
            long j = 0;
            for (; j + ROWS <= n; j += ROWS) compare<T, ROWS>(keys + (c + j) * E, q, E, scores + j * QUERIES);
            for (; j < n; j++) compare<T, 1>(keys + (c + j) * E, q, E, scores + j * QUERIES);
            for (j = 0; bias && j < n; j++)
                for (int half = 0; half < QUERIES; half += LANES)
                    save(scores + j * QUERIES + half, load(scores + j * QUERIES + half) + bias[c + j] * log2e);
            const bool edge = c + n - 1 > low + a.ahead || (a.window && c <= high - a.window);
            if (edge || mask)
                for (j = 0; j < n; j++)
                    for (long i = 0; i < QUERIES; i++) {
                        const long behind = low + i - (c + j);
                        if (-behind > a.ahead || (a.window && behind >= a.window) || (mask && !mask[c + j]))
                            scores[j * QUERIES + i] = -INFINITY;
                    }
            for (int half = 0; half < 2; half++) {
                float *s = scores + half * LANES, *at = most + half * LANES;
                const Floats old = load(at);
                Floats top = old, total = {};
                for (j = 0; j < n; j++) {
                    const Floats v = load(s + j * QUERIES);
                    top = v > top ? v : top;
                }
                const Floats safe = top > floor ? top : (Floats){};
                for (j = 0; j < n; j++) {
                    const Floats v = load(s + j * QUERIES), p = power(v - safe);
                    const Floats seen = v > floor ? p : (Floats){};
                    save(s + j * QUERIES, seen);
                    total += seen;
                }
                const Floats less = old > floor ? power(old - safe) : (Floats){};
                save(shrink + half * LANES, less);
                save(sum + half * LANES, load(sum + half * LANES) * less + total);
                save(at, top > none ? top : none);
            }
            if (c > begin)
                for (long e = 0; e < E; e++)
                    for (int half = 0; half < QUERIES; half += LANES)
                        save(out + e * QUERIES + half, load(out + e * QUERIES + half) * load(shrink + half));
            long e = 0;
            for (; e + OUTS <= E; e += OUTS) blend<T, OUTS>(values + c * E + e, E, scores, n, out + e * QUERIES);
            for (; e < E; e++) blend<T, 1>(values + c * E + e, E, scores, n, out + e * QUERIES);
        }
        for (long i = 0; i < count; i++) {
            T *y = (T *)a.out + ((b * a.length + first + i) * a.heads + h) * E;
            const float share = sum[i] > 0 ? 1.0f / sum[i] : 0.0f;
            for (long e = 0; e < E; e++) store(y + e, out[e * QUERIES + i] * share);
        }
    }
    free(own);
}

template <class T> void gate_rows(void *data) {
    Job &job = *(Job *)data;
    const Gated &g = *(const Gated *)job.what;
    for (long item; take(job, item);)
        for (long m = item * GRAIN; m < g.rows && m < (item + 1) * GRAIN; m++) {
            const T *a = (const T *)g.gate + m * g.gate_stride, *b = (const T *)g.up + m * g.up_stride;
            T *y = (T *)g.out + m * g.width;
            long k = 0;
            for (; k + LANES <= g.width; k += LANES) {
                const Floats v = activated(load(a + k), g.act);
                keep(y + k, g.up ? v * load(b + k) : v);
            }
            for (; k < g.width; k++) {
                Floats v = splat(widen(a[k]));
                v = activated(v, g.act);
                store(y + k, g.up ? v[0] * widen(b[k]) : v[0]);
            }
        }
}

int run(void (*work)(void *), const void *what, long items, unsigned threads, Parallel parallel) {
    Job job = {what, items, 0, 0};
    if (threads > 1 && items > 1)
        parallel(work, &job, threads, 0);
    else
        work(&job);
    return (int)job.failed;
}

}  // namespace

extern "C" int phyla_norm(const Normed *n, unsigned threads, Parallel parallel) {
    return run(n->is_bfloat16 ? norm_rows<bfloat16> : norm_rows<float>, n, (n->rows + GRAIN - 1) / GRAIN, threads, parallel);
}

extern "C" int phyla_turn(const Turned *t, unsigned threads, Parallel parallel) {
    return run(t->is_bfloat16 ? place<bfloat16> : place<float>, t, t->batch * t->length, threads, parallel);
}

extern "C" int phyla_attend(const Attended *a, unsigned threads, Parallel parallel) {
    const long panels = (a->length + QUERIES - 1) / QUERIES;
    return run(a->is_bfloat16 ? attend<bfloat16> : attend<float>, a, panels * a->batch * a->heads, threads, parallel);
}

extern "C" int phyla_gate(const Gated *g, unsigned threads, Parallel parallel) {
    return run(g->is_bfloat16 ? gate_rows<bfloat16> : gate_rows<float>, g, (g->rows + GRAIN - 1) / GRAIN, threads, parallel);
}
