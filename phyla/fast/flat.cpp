// Attention of several texts side by side in one row: new keys and values go to their pages, then each token looks at
// the pages of its own text. Keys lie as (pages, G, E, P), so that scores of a page need no sum across lanes.
//
// A query's maximum, sum and weighted values run over its pages in order, each with sums of a fixed order: its result
// does not depend on what else is in the row, nor on how a text was cut into calls.

#include <math.h>

#include "lanes.h"

extern "C" {

// q (N, H, E), k and v (N, G, E) by strides in elements, E contiguous; out (N, H, E).
struct Flat {
    long is_bfloat16, tokens, heads, kv_heads, width, page, window;
    float scale;
    const void *q, *k, *v;
    long q_head, q_token, k_head, k_token, v_head, v_token;
    void *keys, *values;                      // (pages, G, E, P) and (pages, G, P, E)
    const int64_t *pages, *offsets, *places;  // of each token: its page, its slot there, its position in its text
    const int64_t *rows, *table;              // of each token: the row of `table` that lists its text's pages
    long table_stride;
    const int64_t *tiles;  // (tile_count, 2): first token and count, all of one text, one behind the other
    long tile_count;
    void *out;
};

}  // extern "C"

namespace {

enum { FEW = 4, TILE = 8 };

struct Job {
    const Flat *what;
    long items, next, failed;
};

template <class T> void write(void *data) {
    Job &job = *(Job *)data;
    const Flat &f = *job.what;
    const long E = f.width, P = f.page, G = f.kv_heads;
    for (long n; (n = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED)) < f.tokens;)
        for (long g = 0; g < G; g++) {
            T *key = (T *)f.keys + (f.pages[n] * G + g) * E * P + f.offsets[n];
            T *value = (T *)f.values + ((f.pages[n] * G + g) * P + f.offsets[n]) * E;
            const T *k = (const T *)f.k + g * f.k_head + n * f.k_token, *v = (const T *)f.v + g * f.v_head + n * f.v_token;
            for (long e = 0; e < E; e++) key[e * P] = k[e];
            memcpy(value, v, E * sizeof(T));
        }
}

// scores (Q, P) = q (Q, E) times keys (E, P), two vectors of positions at a time.
template <class T, int Q, int V> inline void compare(const float *q, const T *keys, long E, long P, float *scores) {
    Floats sums[Q][V] = {};
    for (long e = 0; e < E; e++) {
        Floats key[V];
#pragma GCC unroll 2
        for (int j = 0; j < V; j++) key[j] = load(keys + e * P + j * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < Q; i++) {
            const Floats one = splat(q[i * E + e]);
#pragma GCC unroll 2
            for (int j = 0; j < V; j++) sums[i][j] += key[j] * one;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 2
        for (int j = 0; j < V; j++) save(scores + i * P + j * LANES, sums[i][j]);
}

// out (Q, E) += weights (Q, P) times values (count, E), V vectors of elements at a time.
template <class T, int Q, int V> inline void blend(const float *weights, const T *values, long E, long P, long count, float *out) {
    Floats sums[Q][V];
#pragma GCC unroll 4
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) sums[i][j] = load(out + i * E + j * LANES);
    for (long n = 0; n < count; n++) {
        Floats value[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) value[j] = load(values + n * E + j * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < Q; i++) {
            const Floats one = splat(weights[i * P + n]);
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) sums[i][j] += value[j] * one;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) save(out + i * E + j * LANES, sums[i][j]);
}

// Q queries with one page: positions from `from` on, `places` those of the queries.
template <class T, int Q>
void look(const Flat &f, const float *q, const int64_t *places, const T *keys, const T *values, long from, long count,
          float *scores, float *most, float *sum, float *out) {
    const long E = f.width, P = f.page;
    long j = 0;
    for (; j + 2 * LANES <= P; j += 2 * LANES) compare<T, Q, 2>(q, keys + j, E, P, scores + j);
    for (; j < P; j += LANES) compare<T, Q, 1>(q, keys + j, E, P, scores + j);
    for (int i = 0; i < Q; i++) {
        float *s = scores + i * P;
        const long last = places[i] - from, first = f.window ? last - f.window + 1 : 0;
        for (j = last + 1 > 0 ? last + 1 : 0; j < P; j++) s[j] = -INFINITY;
        for (j = 0; j < first && j < P; j++) s[j] = -INFINITY;
        Floats top = splat(-INFINITY), total = {};
        for (j = 0; j < P; j += LANES) {
            const Floats v = load(s + j);
            top = v > top ? v : top;
        }
        float best = most[i];
        for (int l = 0; l < LANES; l++) best = top[l] > best ? top[l] : best;
        if (best == -INFINITY) {
            memset(s, 0, P * sizeof(float));
            continue;
        }
        const Floats floor = splat(-1e30f);
        for (j = 0; j < P; j += LANES) {
            const Floats v = load(s + j), p = power(v - best), seen = v > floor ? p : (Floats){};
            save(s + j, seen);
            total += seen;
        }
        if (best > most[i]) {
            const Floats less = most[i] == -INFINITY ? (Floats){} : power(splat(most[i] - best));
            sum[i] *= less[0];
            for (long e = 0; e < E; e++) out[i * E + e] *= less[0];
            most[i] = best;
        }
        sum[i] += across(total);
    }
    long e = 0;
    for (; e + 4 * LANES <= E; e += 4 * LANES) blend<T, Q, 4>(scores, values + e, E, P, count, out + e);
    for (; e + LANES <= E; e += LANES) blend<T, Q, 1>(scores, values + e, E, P, count, out + e);
    for (; e < E; e++)
        for (int i = 0; i < Q; i++) {
            float y = out[i * E + e];
            for (long n = 0; n < count; n++) y += scores[i * P + n] * widen(values[n * E + e]);
            out[i * E + e] = y;
        }
}

template <class T> void attend(void *data) {
    Job &job = *(Job *)data;
    const Flat &f = *job.what;
    const long E = f.width, P = f.page, G = f.kv_heads, group = f.heads / G, most_queries = TILE * group;
    float *own = 0;
    if (posix_memalign((void **)&own, 64, (2 * most_queries * E + FEW * P + 2 * most_queries + 64) * sizeof(float) + most_queries * 8)) {
        job.failed = 1;
        return;
    }
    float *q = own, *out = q + most_queries * E, *scores = out + most_queries * E, *most = scores + FEW * P, *sum = most + most_queries;
    int64_t *places = (int64_t *)(((uintptr_t)(sum + most_queries) + 15) & ~(uintptr_t)15);
    for (long item; (item = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED)) < job.items;) {
        const long g = item % G, first = f.tiles[item / G * 2], count = f.tiles[item / G * 2 + 1], queries = count * group;
        for (long i = 0; i < count; i++)
            for (long h = 0; h < group; h++) {
                const long x = i * group + h;
                const T *from = (const T *)f.q + (g * group + h) * f.q_head + (first + i) * f.q_token;
                for (long e = 0; e < E; e++) q[x * E + e] = widen(from[e]) * (f.scale * 1.44269504f);
                places[x] = f.places[first + i];
                most[x] = -INFINITY;
                sum[x] = 0;
            }
        memset(out, 0, queries * E * sizeof(float));
        const int64_t *table = f.table + f.rows[first] * f.table_stride;
        const long low = places[0], high = places[queries - 1];
        const long begin = f.window && low - f.window + 1 > 0 ? (low - f.window + 1) / P : 0;
        for (long page = begin; page * P <= high; page++) {
            const T *keys = (const T *)f.keys + (table[page] * G + g) * E * P, *values = (const T *)f.values + (table[page] * G + g) * P * E;
            const long n = high + 1 - page * P < P ? high + 1 - page * P : P;
            long x = 0;
            for (; x + FEW <= queries; x += FEW)
                look<T, FEW>(f, q + x * E, places + x, keys, values, page * P, n, scores, most + x, sum + x, out + x * E);
            if (queries - x == 3) look<T, 3>(f, q + x * E, places + x, keys, values, page * P, n, scores, most + x, sum + x, out + x * E);
            if (queries - x == 2) look<T, 2>(f, q + x * E, places + x, keys, values, page * P, n, scores, most + x, sum + x, out + x * E);
            if (queries - x == 1) look<T, 1>(f, q + x * E, places + x, keys, values, page * P, n, scores, most + x, sum + x, out + x * E);
        }
        for (long i = 0; i < count; i++)
            for (long h = 0; h < group; h++) {
                const long x = i * group + h;
                T *y = (T *)f.out + ((first + i) * f.heads + g * group + h) * E;
                const float share = sum[x] > 0 ? 1.0f / sum[x] : 0.0f;
                for (long e = 0; e < E; e++) store(y + e, out[x * E + e] * share);
            }
    }
    free(own);
}

int run(void (*work)(void *), const Flat *what, long items, unsigned threads, Parallel parallel) {
    Job job = {what, items, 0, 0};
    if (threads > 1 && items > 1)
        parallel(work, &job, threads, 0);
    else
        work(&job);
    return (int)job.failed;
}

}  // namespace

extern "C" int phyla_flat(const Flat *f, unsigned threads, Parallel parallel) {
    run(f->is_bfloat16 ? write<bfloat16> : write<float>, f, f->tokens, f->tokens >= 16 ? threads : 1, parallel);
    return run(f->is_bfloat16 ? attend<bfloat16> : attend<float>, f, f->tile_count * f->kv_heads, threads, parallel);
}
