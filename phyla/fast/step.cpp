// All layers of a plain decoder for one to eight new tokens, in one call: x (M, D) float32 in and out, M = batch * length.
//
// A step of so few rows is bound by reading the weights once. Here nothing else stands between two reads: one team of
// threads goes through all layers; each thread keeps its own copy of the stream, norms it by itself, and takes chunks
// of weight rows in turn. Rotated keys and values go straight into the caches. Every sum has a fixed order that does
// not depend on the threads or on other rows of the batch.

#include <math.h>

#include "codes.h"

extern "C" {

struct Map {
    const void *weight, *bias;
    const Codes *codes;  // in place of a weight
};

// One layer: weights, norms, and its cache of keys and values (B, G, capacity, E), `used` of them filled.
struct Layer {
    Norm attn_pre, attn_out, attn_post, ffn_pre, ffn_out, ffn_post;
    Map q, k, v, o, gate, up, down;
    float attn_multiplier, ffn_multiplier;
    void *keys, *values;
    long capacity, used, first, window, ahead;  // ahead: see wide.cpp
};

struct Stack {
    long is_bfloat16, coded, layers, batch, length, width, heads, kv_heads, head_width, inner, act, gated;
    float scale;
    long turned, paired, angle_rows;  // rotary elements of a head, (2i, 2i + 1) pairs or halves, 1 or B rows of angles
    const float *cos, *sin;           // (1 or B, length, turned)
    const uint8_t *mask;              // (B, mask_stride), 1 where a slot may be attended, or none
    long mask_stride;
    float *x;
    const Layer *layer;
};

}  // extern "C"

namespace {

enum { MOST_ROWS = 8, KEYS = 128, CHUNK_BYTES = 40960, CHUNKS_PER_THREAD = 8, ENDS = 64, PHASES = 5 };

struct Sizes {
    long qkv, parts, inner, change, shared, stream, scratch, panel, own;
    explicit Sizes(const Stack &s) {
        long longest = 0;
        panel = 0;
        for (long i = 0; i < s.layers; i++) {
            const Layer &l = s.layer[i];
            longest = l.used > longest ? l.used : longest;
            const Map *const maps[] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
            for (const Map *map : maps) {
                const long needed = map->codes ? panel_size(*map->codes, MOST_ROWS) : 0;
                panel = needed > panel ? needed : panel;
            }
        }
        const long chunks = (longest + s.length + KEYS - 1) / KEYS;
        const long M = s.batch * s.length, E = s.head_width, queries = s.heads / s.kv_heads * s.length;
        const long line = 16;
        qkv = M * (s.heads + 2 * s.kv_heads) * E + line;
        parts = s.batch * s.kv_heads * chunks * queries * (E + 2) + line;
        inner = M * s.inner + line;
        change = M * s.width + line;
        shared = qkv + parts + inner + 2 * change + line;
        const long widest = s.width > s.heads * E ? s.width : s.heads * E;
        stream = M * widest + line;
        scratch = queries * E + queries * KEYS + E + s.width + line;
        own = 2 * stream + scratch + 2 * ENDS * MOST_ROWS + 2 * panel + line;
    }
};

struct Team {
    const Stack *s;
    const Sizes *size;
    Asked count, number;
    float *shared, *own;  // buffers of all threads, and of each
    long own_size;
    Meeting meeting;
    long *counters;  // work handed out, one for each phase of each layer
};

inline float *align(float *p) { return (float *)(((uintptr_t)p + 63) & ~(uintptr_t)63); }

// The next chunk of rows of weights of `width` elements, as [n, end); false where none is left. Long runs of memory
// are read fastest, so chunks are as large as lets the threads end together.
template <class T> bool take(long *counter, long outs, long width, long threads, long &n, long &end) {
    const long fair = outs / (threads * CHUNKS_PER_THREAD) / 4 * 4;
    long rows = CHUNK_BYTES / (width * (long)sizeof(T)) / 4 * 4;
    rows = rows < 4 ? 4 : rows > 64 ? 64 : rows;
    rows = rows < fair ? fair : rows;
    n = __atomic_fetch_add(counter, rows, __ATOMIC_RELAXED);
    end = n + rows < outs ? n + rows : outs;
    return n < outs;
}

template <class T> inline void rows_of(const Map &map, long n, long rows, const float *x, long width, float *out) {
    dots_of<T>(rows, x, width, (const T *)map.weight + n * width, width, out);
    if (map.bias)
        for (long m = 0; m < rows; m++) out[m] += widen(((const T *)map.bias)[n]);
}

// Blocks of rows of maps that read one input; its panel is made anew where a map groups it in another way.
template <class T> struct Blocks {
    const float *x;
    long width, rows, threads, m;
    float *room;
    const Codes *last;
    Panel panel;

    Blocks(const float *x, long width, long rows, long threads, float *room)
        : x(x), width(width), rows(rows), threads(threads), m(panel_of(rows)), room(room), last(0) {}

    // Block b of a map of so many rows: out (rows of x, CODE_ROWS); how many rows it has.
    long operator()(const Map &map, long b, long outs, float *out) {
        const long n = b * CODE_ROWS, left = outs - n, count = left < CODE_ROWS ? left : (long)CODE_ROWS;
        if (map.codes) {
            const Codes &c = *map.codes;
            if (!last || last->group != c.group || last->order != c.order || !last->zero != !c.zero)
                panel = arrange(c, x, width, rows, m, room);
            last = &c;
            phyla_code_block(&c, m)(c, b, panel, out);
        } else {
            float y[MOST_ROWS];
            for (long i = 0; i < count; i++) {
                dots_of<T>(rows, x, width, (const T *)map.weight + (n + i) * width, width, y);
                for (long r = 0; r < rows; r++) out[r * CODE_ROWS + i] = y[r];
            }
        }
        if (map.bias)
            for (long r = 0; r < rows; r++)
                for (long i = 0; i < count; i++) out[r * CODE_ROWS + i] += widen(((const T *)map.bias)[n + i]);
        return count;
    }
};

inline long blocks_of(long outs) { return (outs + CODE_ROWS - 1) / CODE_ROWS; }

// All rows of one to three maps side by side, y (rows of x, stride), by this thread's share of their blocks.
template <class T> void fill(Blocks<T> blocks, long *counter, const Map *const *maps, const long *outs, long count, float *y, long stride) {
    float out[MOST_ROWS * CODE_ROWS] __attribute__((aligned(64)));
    long all = 0;
    for (long i = 0; i < count; i++) all += blocks_of(outs[i]);
    for (long n = 0, end = 0; n < end || claim(counter, all, blocks.threads, n, end); n++) {
        long b = n, i = 0, first = 0;
        for (; b >= blocks_of(outs[i]); i++) b -= blocks_of(outs[i]), first += outs[i];
        const long rows = blocks(*maps[i], b, outs[i], out);
        for (long m = 0; m < blocks.rows; m++)
            memcpy(y + m * stride + first + b * CODE_ROWS, out + m * CODE_ROWS, rows * sizeof(float));
    }
}

// y = act(gate) * up, or act(up).
inline void gate_block(const Stack &s, const float *gate, const float *up, long count, float *y) {
    for (long j = 0; j < count; j += LANES) {
        const Floats v = s.gated ? activated(load(gate + j), s.act) * load(up + j) : activated(load(up + j), s.act);
        if (j + LANES <= count)
            save(y + j, v);
        else
            memcpy(y + j, &v, (count - j) * sizeof(float));
    }
}

// The head x turned by the angles of token (b, i), into y.
inline void turn(const Stack &s, const float *x, long b, long i, float *y) {
    memcpy(y, x, s.head_width * sizeof(float));
    if (!s.turned) return;
    const long row = ((s.angle_rows > 1 ? b : 0) * s.length + i) * s.turned, half = s.turned / 2;
    const float *cos = s.cos + row, *sin = s.sin + row;
    for (long e = 0; e < s.turned; e++) {
        const long other = s.paired ? e ^ 1 : e < half ? e + half : e - half;
        y[e] = x[e] * cos[e] + x[other] * sin[e];
    }
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
template <class T> void attend(const Stack &s, const Layer &l, const float *qkv, long b, long g, long c, float *part, float *own) {
    const long E = s.head_width, group = s.heads / s.kv_heads, queries = group * s.length, all = l.used + s.length;
    const long row = (s.heads + 2 * s.kv_heads) * E, end = c + KEYS < all ? c + KEYS : all;
    T *keys = (T *)l.keys + (b * s.kv_heads + g) * l.capacity * E, *values = (T *)l.values + (b * s.kv_heads + g) * l.capacity * E;
    float *q = own, *scores = q + queries * E, *head = scores + queries * KEYS;
    for (long i = 0; i < s.length; i++) {
        const float *x = qkv + (b * s.length + i) * row;
        for (long h = 0; h < group; h++) {
            float *y = q + (h * s.length + i) * E;
            turn(s, x + (g * group + h) * E, b, i, y);
            for (long e = 0; e < E; e++) y[e] *= s.scale;
        }
        const long slot = l.used + i;
        if (slot < c || slot >= end) continue;
        turn(s, x + (s.heads + g) * E, b, i, head);
        for (long e = 0; e < E; e++) store(keys + slot * E + e, head[e]);
        for (long e = 0; e < E; e++) store(values + slot * E + e, x[(s.heads + s.kv_heads + g) * E + e]);
    }
    const uint8_t *mask = s.mask ? s.mask + b * s.mask_stride + l.first : 0;
    const float none = -INFINITY;
    long done = 0;
    for (; done + 3 <= queries; done += 3) compare_all<T, 3>(q + done * E, keys + c * E, E, end - c, scores + done * KEYS);
    for (; done < queries; done++) compare_all<T, 1>(q + done * E, keys + c * E, E, end - c, scores + done * KEYS);
    for (long x = 0; x < queries; x++) {
        float *p = scores + x * KEYS;
        long j;
        const long slot = l.used + x % s.length, oldest = l.window ? slot - l.window : -1;
        for (j = 0; j < end - c && c + j <= oldest; j++) p[j] = none;
        for (j = slot + 1 - c > 0 ? slot + 1 - c : 0; j < end - c; j++) p[j] = none;
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

// x = post(x + multiplier * out(y)), in this thread's copy of the stream.
template <class T> void join_stream(const Stack &s, const Norm &out, const Norm &post, float multiplier, const float *y, float *x, float *spare) {
    const long M = s.batch * s.length, D = s.width;
    for (long m = 0; m < M; m++) {
        const float *change = y + m * D;
        if (out.kind != NO_NORM) {
            norm<T>(out, change, D, spare);
            change = spare;
        }
        for (long d = 0; d < D; d++) x[m * D + d] += multiplier * change[d];
        if (post.kind != NO_NORM) norm<T>(post, x + m * D, D, x + m * D);
    }
}

template <class T> void go(Team &t) {
    const Stack &s = *t.s;
    const long threads = t.count(), me = t.number(), M = s.batch * s.length, D = s.width, E = s.head_width;
    const long Q = s.heads * E, KV = s.kv_heads * E, row = Q + 2 * KV;
    const Sizes &size = *t.size;
    float *qkv = align(t.shared), *parts = qkv + size.qkv, *inner = parts + size.parts;
    float *attn_change = inner + size.inner, *ffn_change = attn_change + size.change;
    float *x = align(t.own + me * t.own_size), *h = x + size.stream, *scratch = h + size.stream, *ends = scratch + size.scratch, *room = ends + 2 * ENDS * MOST_ROWS;
    memcpy(x, s.x, M * D * sizeof(float));
    for (long i = 0; i < s.layers; i++) {
        const Layer &l = s.layer[i];
        long *counter = t.counters + i * PHASES, n, end;
        float out[MOST_ROWS];
        for (long m = 0; m < M; m++) norm<T>(l.attn_pre, x + m * D, D, h + m * D);
        if (s.coded) {
            const Map *const maps[] = {&l.q, &l.k, &l.v};
            const long outs[] = {Q, KV, KV};
            fill(Blocks<T>(h, D, M, threads, room), counter, maps, outs, 3, qkv, row);
        }
        while (!s.coded && take<T>(counter, row, D, threads, n, end))
            for (; n < end; n++) {
                if (n < Q)
                    rows_of<T>(l.q, n, M, h, D, out);
                else if (n < Q + KV)
                    rows_of<T>(l.k, n - Q, M, h, D, out);
                else
                    rows_of<T>(l.v, n - Q - KV, M, h, D, out);
                for (long m = 0; m < M; m++) qkv[m * row + n] = out[m];
            }
        meet(t.meeting, threads);
        const long chunks = (l.used + s.length + KEYS - 1) / KEYS, items = s.batch * s.kv_heads * chunks;
        const long part = s.heads / s.kv_heads * s.length * (E + 2);
        for (long item; (item = __atomic_fetch_add(counter + 1, 1, __ATOMIC_RELAXED)) < items;) {
            const long c = item % chunks, g = item / chunks % s.kv_heads, b = item / chunks / s.kv_heads;
            attend<T>(s, l, qkv, b, g, c * KEYS, parts + item * part, scratch);
        }
        meet(t.meeting, threads);
        join(s, parts, chunks, h);
        if (s.coded) {
            const Map *const maps[] = {&l.o};
            fill(Blocks<T>(h, Q, M, threads, room), counter + 2, maps, &D, 1, attn_change, D);
        }
        while (!s.coded && take<T>(counter + 2, D, Q, threads, n, end))
            for (; n < end; n++) {
                rows_of<T>(l.o, n, M, h, Q, out);
                for (long m = 0; m < M; m++) attn_change[m * D + n] = out[m];
            }
        meet(t.meeting, threads);
        join_stream<T>(s, l.attn_out, l.attn_post, l.attn_multiplier, attn_change, x, scratch);
        for (long m = 0; m < M; m++) norm<T>(l.ffn_pre, x + m * D, D, h + m * D);
        if (s.coded) {
            Blocks<T> blocks(h, D, M, threads, room), gates(h, D, M, threads, room + size.panel);
            float *up = ends, *gate = ends + MOST_ROWS * CODE_ROWS;
            for (long b = 0, last = 0; b < last || claim(counter + 3, blocks_of(s.inner), threads, b, last); b++) {
                const long count = blocks(l.up, b, s.inner, up);
                if (s.gated) gates(l.gate, b, s.inner, gate);
                for (long m = 0; m < M; m++)
                    gate_block(s, gate + m * CODE_ROWS, up + m * CODE_ROWS, count, inner + m * s.inner + b * CODE_ROWS);
            }
        }
        while (!s.coded && take<T>(counter + 3, s.inner, D, threads, n, end))
            for (; n < end; n += ENDS) {
                const long count = n + ENDS < end ? (long)ENDS : end - n;
                for (int gates = 0; gates <= (s.gated ? 1 : 0); gates++)
                    for (long j = 0; j < count; j++) {
                        rows_of<T>(gates ? l.gate : l.up, n + j, M, h, D, out);
                        for (long m = 0; m < M; m++) ends[(gates * MOST_ROWS + m) * ENDS + j] = out[m];
                    }
                for (long m = 0; m < M; m++)
                    gate_block(s, ends + (MOST_ROWS + m) * ENDS, ends + m * ENDS, count, inner + m * s.inner + n);
            }
        meet(t.meeting, threads);
        if (s.coded) {
            const Map *const maps[] = {&l.down};
            fill(Blocks<T>(inner, s.inner, M, threads, room), counter + 4, maps, &D, 1, ffn_change, D);
        }
        while (!s.coded && take<T>(counter + 4, D, s.inner, threads, n, end))
            for (; n < end; n++) {
                rows_of<T>(l.down, n, M, inner, s.inner, out);
                for (long m = 0; m < M; m++) ffn_change[m * D + n] = out[m];
            }
        meet(t.meeting, threads);
        join_stream<T>(s, l.ffn_out, l.ffn_post, l.ffn_multiplier, ffn_change, x, scratch);
    }
    if (me == 0) memcpy(s.x, x, M * D * sizeof(float));
}

void enter(void *data) {
    Team &t = *(Team *)data;
    if (t.s->is_bfloat16)
        go<bfloat16>(t);
    else
        go<float>(t);
}

int alone(void) { return 1; }
int first(void) { return 0; }

}  // namespace

// 0, or 1 where there is no memory. count and number are omp_get_num_threads and omp_get_thread_num.
extern "C" int phyla_stack(const Stack *s, unsigned threads, Parallel parallel, Asked count, Asked number) {
    const Sizes size(*s);
    Team t = {s, &size, count, number, 0, 0, size.own + 64, {0, 0}, 0};
    const long bytes = (size.shared + 64 + t.own_size * threads) * sizeof(float), counters = s->layers * PHASES * sizeof(long);
    char *memory = 0;
    if (posix_memalign((void **)&memory, 64, bytes + counters)) return 1;
    t.counters = (long *)memory;
    memset(memory, 0, counters);
    t.shared = align((float *)(memory + counters));
    t.own = t.shared + size.shared;
    if (threads > 1) {
        parallel(enter, &t, threads, 0);
    } else {
        t.count = alone;
        t.number = first;
        enter(&t);
    }
    free(memory);
    return 0;
}
