// What a step of few new tokens is told of its layers, and attention of those tokens over the cache.

#ifndef PHYLA_STEP_H
#define PHYLA_STEP_H

#include <math.h>

#include "codes.h"

extern "C" {

struct Map {
    const void *weight, *bias;
    const Codes *codes;  // in place of a weight
};

// A mixture of experts in place of a feed-forward: one map of gate, up and down for each.
struct Mixture {
    long experts, chosen;
    float power;  // weights are divided by their norm of this power, 0: they stay
    Map router;
    const Map *gate, *up, *down;
};

// Attention over an encoder's states, whose keys and values (B, G, count, E) were made before.
struct Cross {
    Norm pre, out, post;
    Map q, o;
    float multiplier;
    long keeps;
    const void *keys, *values;
    long count;
};

// One layer: weights, norms, and its cache of keys and values (B, G, capacity, E), `used` of them filled.
struct Layer {
    Norm attn_pre, attn_out, attn_post, ffn_pre, ffn_out, ffn_post, q_norm, k_norm;
    Map q, k, v, o, gate, up, down;
    float attn_multiplier, ffn_multiplier, clip;  // clip: of queries, keys and values, 0: none
    long side_by_side, attn_keeps, ffn_keeps;     // both branches read x; the sum starts from the normed input
    long inner, act, gated;
    const Mixture *mixture;
    const Cross *cross;
    long turned, paired, angle_rows;  // rotary elements of a head, (2i, 2i + 1) pairs or halves, 1 or B rows of angles
    const float *cos, *sin;           // (1 or B, length, turned)
    const float *bias;                // (1 or B, heads, keys) added to scores, from slot `first` on, or none
    long bias_row, bias_head;
    void *keys, *values;
    long capacity, used, first, window, ahead;  // ahead: see wide.cpp
};

struct Stack {
    long is_bfloat16, coded, layers, batch, length, width, heads, kv_heads, head_width, norm_by_head;
    float scale;
    const uint8_t *mask;  // (B, mask_stride), 1 where a slot may be attended, or none
    long mask_stride;
    const uint8_t *memory_mask;  // the same over the encoder's states
    long memory_stride;
    float *x;
    const Layer *layer;
};

}  // extern "C"

namespace {

enum { KEYS = 128 };  // keys that are taken at once

// The head x turned by the angles of token (b, i), into y.
inline void turn(const Stack &s, const Layer &l, const float *x, long b, long i, float *y) {
    memcpy(y, x, s.head_width * sizeof(float));
    if (!l.turned) return;
    const long row = ((l.angle_rows > 1 ? b : 0) * s.length + i) * l.turned, half = l.turned / 2;
    const float *cos = l.cos + row, *sin = l.sin + row;
    for (long e = 0; e < l.turned; e++) {
        const long other = l.paired ? e ^ 1 : e < half ? e + half : e - half;
        y[e] = x[e] * cos[e] + x[other] * sin[e];
    }
}

// A head of queries or keys, normed and turned.
template <class T>
inline void place(const Stack &s, const Layer &l, const Norm &n, const float *x, long b, long i, float *spare, float *y) {
    if (s.norm_by_head && n.kind != NO_NORM) {
        norm<T>(n, x, s.head_width, spare);
        x = spare;
    }
    turn(s, l, x, b, i, y);
}

// Q queries with N keys, both side by side: scores (Q, KEYS).
template <class T, int Q, int N> inline void compare(const float *q, const T *k, long width, float *scores) {
    Floats sums[Q][N] = {};
    long e = 0;
    for (; e + LANES <= width; e += LANES) {
        Floats keys[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) keys[n] = load(k + n * width + e);
#pragma GCC unroll 4
        for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sums[i][n] += load(q + i * width + e) * keys[n];
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            float y = across(sums[i][n]);
            for (long r = e; r < width; r++) y += q[i * width + r] * widen(k[n * width + r]);
            scores[i * KEYS + n] = y;
        }
}

template <class T, int Q> void compare_all(const float *q, const T *keys, long width, long count, float *scores) {
    long j = 0;
    for (; j + 4 <= count; j += 4) compare<T, Q, 4>(q, keys + j * width, width, scores + j);
    for (; j < count; j++) compare<T, Q, 1>(q, keys + j * width, width, scores + j);
}

// out (N * LANES) = sum over j of weights[j] * values[j].
template <class T, int N> inline void gather(const float *weights, const T *values, long stride, long count, float *out) {
    Floats sums[N] = {};
    for (long j = 0; j < count; j++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sums[n] += weights[j] * load(values + j * stride + n * LANES);
    for (int n = 0; n < N; n++) save(out + n * LANES, sums[n]);
}

// Keys [c, c + KEYS) of row b and key head g, for all its queries: maximum, sum of weights, weighted values.
// cross: those of the encoder, in place of the layer's own.
template <class T>
void attend(const Stack &s, const Layer &l, const Cross *cross, const float *qkv, long b, long g, long c, float *part, float *own) {
    const long E = s.head_width, group = s.heads / s.kv_heads, queries = group * s.length;
    const long all = cross ? cross->count : l.used + s.length, capacity = cross ? cross->count : l.capacity;
    const long row = (cross ? s.heads : s.heads + 2 * s.kv_heads) * E, end = c + KEYS < all ? c + KEYS : all;
    const long at = (b * s.kv_heads + g) * capacity * E;
    T *keys = (T *)(cross ? cross->keys : l.keys) + at, *values = (T *)(cross ? cross->values : l.values) + at;
    float *q = own, *scores = q + queries * E, *head = scores + queries * KEYS, *spare = head + E;
    for (long i = 0; i < s.length; i++) {
        const float *x = qkv + (b * s.length + i) * row;
        for (long h = 0; h < group; h++) {
            float *y = q + (h * s.length + i) * E;
            if (cross)
                memcpy(y, x + (g * group + h) * E, E * sizeof(float));
            else
                place<T>(s, l, l.q_norm, x + (g * group + h) * E, b, i, spare, y);
            for (long e = 0; e < E; e++) y[e] *= s.scale;
        }
        const long slot = l.used + i;
        if (cross || slot < c || slot >= end) continue;
        place<T>(s, l, l.k_norm, x + (s.heads + g) * E, b, i, spare, head);
        for (long e = 0; e < E; e++) store(keys + slot * E + e, head[e]);
        for (long e = 0; e < E; e++) store(values + slot * E + e, x[(s.heads + s.kv_heads + g) * E + e]);
    }
    const uint8_t *mask = s.mask ? s.mask + b * s.mask_stride + l.first : 0;
    if (cross) mask = s.memory_mask ? s.memory_mask + b * s.memory_stride : 0;
    const float none = -INFINITY;
    long done = 0;
    for (; done + 3 <= queries; done += 3) compare_all<T, 3>(q + done * E, keys + c * E, E, end - c, scores + done * KEYS);
    for (; done < queries; done++) compare_all<T, 1>(q + done * E, keys + c * E, E, end - c, scores + done * KEYS);
    for (long x = 0; x < queries; x++) {
        float *p = scores + x * KEYS;
        long j;
        const long slot = l.used + x % s.length, oldest = l.window ? slot - l.window : -1;
        if (l.bias && !cross) {
            const float *bias = l.bias + b * l.bias_row + (g * group + x / s.length) * l.bias_head + c;
            for (j = 0; j < end - c; j++) p[j] += bias[j];
        }
        for (j = 0; !cross && j < end - c && c + j <= oldest; j++) p[j] = none;
        for (j = slot + 1 - c > 0 ? slot + 1 - c : 0; !cross && j < end - c; j++) p[j] = none;
        if (mask)
            for (j = 0; j < end - c; j++) p[j] = mask[c + j] ? p[j] : none;
    }
    for (long x = 0; x < queries; x++) {
        float *p = scores + x * KEYS, *out = part + x * (E + 2), most = none, sum = 0;
        for (long j = 0; j < end - c; j++) most = p[j] > most ? p[j] : most;
        out[0] = most;
        if (most == none) {
            for (long e = 0; e < E + 1; e++) out[1 + e] = 0;
            continue;
        }
        for (long j = end - c; j % LANES; j++) p[j] = none;
        for (long j = 0; j < end - c; j += LANES) save(p + j, power((load(p + j) - most) * 1.44269504f));
        for (long j = 0; j < end - c; j++) sum += p[j];
        out[1] = sum;
        const T *value = values + c * E;
        long e = 0;
        for (; e + 4 * LANES <= E; e += 4 * LANES) gather<T, 4>(p, value + e, E, end - c, out + 2 + e);
        for (; e + LANES <= E; e += LANES) gather<T, 1>(p, value + e, E, end - c, out + 2 + e);
        for (; e < E; e++) {
            out[2 + e] = 0;
            for (long j = 0; j < end - c; j++) out[2 + e] += widen(value[j * E + e]) * p[j];
        }
    }
}

// The parts of all chunks of keys joined: y (M, H * E).
void join(const Stack &s, const float *parts, long chunks, float *y) {
    const long E = s.head_width, group = s.heads / s.kv_heads, queries = group * s.length, size = queries * (E + 2);
    for (long b = 0; b < s.batch; b++)
        for (long h = 0; h < s.heads; h++)
            for (long i = 0; i < s.length; i++) {
                const float *part = parts + (b * s.kv_heads + h / group) * chunks * size + ((h % group) * s.length + i) * (E + 2);
                float *out = y + ((b * s.length + i) * s.heads + h) * E, most = -INFINITY, sum = 0;
                for (long c = 0; c < chunks; c++) most = part[c * size] > most ? part[c * size] : most;
                for (long e = 0; e < E; e++) out[e] = 0;
                for (long c = 0; c < chunks; c++) {
                    const float *p = part + c * size;
                    if (p[1] == 0) continue;
                    const float weight = expf(p[0] - most);
                    sum += p[1] * weight;
                    for (long e = 0; e < E; e++) out[e] += p[2 + e] * weight;
                }
                const float share = sum > 0 ? 1.0f / sum : 0.0f;
                for (long e = 0; e < E; e++) out[e] *= share;
            }
}

}  // namespace

#endif
