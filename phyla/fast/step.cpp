// All layers of a plain decoder for one to eight new tokens, in one call: x (M, D) float32 in and out, M = batch * length.
//
// A step of so few rows is bound by reading the weights once. Here nothing else stands between two reads: one team of
// threads goes through all layers; each thread keeps its own copy of the stream, norms it by itself, and takes chunks
// of weight rows in turn. Rotated keys and values go straight into the caches. Every sum has a fixed order that does
// not depend on the threads or on other rows of the batch.

#include "step.h"

namespace {

enum { MOST_ROWS = 8, CHUNK_BYTES = 40960, CHUNKS_PER_THREAD = 8, ENDS = 64 };
enum { MOST_CHOSEN = 32 };  // experts of a token
// What is handed out piece by piece in each layer.
enum { PROJECT, ATTEND, OUT, ASK, LOOK, ANSWER, ROUTE, INNER, DOWN, PHASES };

struct Sizes {
    long qkv, parts, inner, change, scores, shared, stream, scratch, panel, own;
    explicit Sizes(const Stack &s) {
        const long M = s.batch * s.length, E = s.head_width, queries = s.heads / s.kv_heads * s.length;
        const long line = 16;
        long longest = 0, ends = 0, experts = 0;  // ends: results of the inner maps
        panel = 0;
        for (long i = 0; i < s.layers; i++) {
            const Layer &l = s.layer[i];
            const Mixture *mix = l.mixture;
            longest = l.used > longest ? l.used : longest;
            if (l.cross) {
                longest = l.cross->count > longest ? l.cross->count : longest;
                fit(l.cross->q), fit(l.cross->o);
            }
            const long wide = l.inner * (mix ? mix->chosen : 1);
            ends = wide > ends ? wide : ends;
            const Map *const maps[] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
            for (const Map *map : maps) fit(*map);
            if (!mix) continue;
            experts = mix->experts > experts ? mix->experts : experts;
            fit(mix->router);
            for (long e = 0; e < mix->experts; e++) fit(mix->gate[e]), fit(mix->up[e]), fit(mix->down[e]);
        }
        const long chunks = (longest + s.length + KEYS - 1) / KEYS;
        qkv = M * (s.heads + 2 * s.kv_heads) * E + line;
        parts = s.batch * s.kv_heads * chunks * queries * (E + 2) + line;
        inner = M * ends + line;
        change = M * s.width + line;
        scores = M * experts + line;
        shared = qkv + parts + inner + 2 * change + scores + line;
        const long widest = s.width > s.heads * E ? s.width : s.heads * E;
        stream = M * widest + line;
        scratch = queries * E + queries * KEYS + 2 * E + s.width + line;
        own = (experts ? 3 : 2) * stream + scratch + 2 * ENDS * MOST_ROWS + 2 * panel + line;
    }

    void fit(const Map &map) {
        const long needed = map.codes ? panel_size(*map.codes, MOST_ROWS) : 0;
        panel = needed > panel ? needed : panel;
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
inline void gate_block(const Layer &l, const float *gate, const float *up, long count, float *y) {
    for (long j = 0; j < count; j += LANES) {
        const Floats v = l.gated ? activated(load(gate + j), l.act) * load(up + j) : activated(load(up + j), l.act);
        if (j + LANES <= count)
            save(y + j, v);
        else
            memcpy(y + j, &v, (count - j) * sizeof(float));
    }
}

// x = post(x + multiplier * out(y)), in this thread's copy of the stream; kept: a norm of x that is to stay, or none.
template <class T>
void join_stream(const Stack &s, const Norm *kept, const Norm &out, const Norm &post, float multiplier, const float *y, float *x, float *spare) {
    const long M = s.batch * s.length, D = s.width;
    for (long m = 0; m < M; m++) {
        const float *change = y + m * D;
        if (kept) norm<T>(*kept, x + m * D, D, x + m * D);
        if (out.kind != NO_NORM) {
            norm<T>(out, change, D, spare);
            change = spare;
        }
        for (long d = 0; d < D; d++) x[m * D + d] += multiplier * change[d];
        if (post.kind != NO_NORM) norm<T>(post, x + m * D, D, x + m * D);
    }
}

// The tokens of one expert: `count` of them from `first` on, among all pairs of a token and its expert.
struct Group {
    long expert, first, count;
};

// Which experts the tokens go to: pairs in order of the experts, and of the tokens within one.
struct Picks {
    Group groups[MOST_ROWS * MOST_CHOSEN];
    long rows[MOST_ROWS * MOST_CHOSEN], count;
    float weights[MOST_ROWS * MOST_CHOSEN];

    // From the router's scores (rows, experts): softmax, the best of each row, their weights.
    Picks(const Mixture &mix, const float *scores, long tokens) : count(0) {
        long experts[MOST_ROWS][MOST_CHOSEN];
        float shares[MOST_ROWS][MOST_CHOSEN];
        for (long m = 0; m < tokens; m++) {
            const float *row = scores + m * mix.experts;
            float most = row[0], sum = 0, norm = 0;
            for (long e = 1; e < mix.experts; e++) most = row[e] > most ? row[e] : most;
            for (long e = 0; e < mix.experts; e++) sum += expf(row[e] - most);
            for (long k = 0; k < mix.chosen; k++) {
                long best = -1;
                for (long e = 0; e < mix.experts; e++) {
                    bool is_taken = false;
                    for (long i = 0; i < k; i++) is_taken = is_taken || experts[m][i] == e;
                    if (!is_taken && (best < 0 || row[e] > row[best])) best = e;
                }
                experts[m][k] = best;
                shares[m][k] = expf(row[best] - most) / sum;
                norm += mix.power == 1 ? shares[m][k] : powf(shares[m][k], mix.power);
            }
            if (mix.power > 0 && mix.power != 1) norm = powf(norm, 1 / mix.power);
            for (long k = 0; mix.power > 0 && k < mix.chosen; k++) shares[m][k] /= norm;
        }
        long pairs = 0;
        for (long e = 0; e < mix.experts; e++) {
            const long first = pairs;
            for (long m = 0; m < tokens; m++)
                for (long k = 0; k < mix.chosen; k++)
                    if (experts[m][k] == e) rows[pairs] = m, weights[pairs++] = shares[m][k];
            if (pairs > first) groups[count++] = Group{e, first, pairs - first};
        }
    }
};

// One thread's way through the layers.
template <class T> struct Worker {
    Team &t;
    const Stack &s;
    const Sizes &size;
    const long threads, me, M, D, E, Q, KV, row;
    float *qkv, *parts, *inner, *attn_change, *ffn_change, *scores;  // of all threads
    float *x, *h, *picked, *scratch, *ends, *room;                   // this one's
    long *counter;

    explicit Worker(Team &t)
        : t(t), s(*t.s), size(*t.size), threads(t.count()), me(t.number()), M(s.batch * s.length), D(s.width), E(s.head_width),
          Q(s.heads * E), KV(s.kv_heads * E), row(Q + 2 * KV) {
        qkv = align(t.shared);
        parts = qkv + size.qkv;
        inner = parts + size.parts;
        attn_change = inner + size.inner;
        ffn_change = attn_change + size.change;
        scores = ffn_change + size.change;
        x = align(t.own + me * t.own_size);
        h = x + size.stream;
        scratch = h + size.stream;
        ends = scratch + size.scratch;
        room = ends + 2 * ENDS * MOST_ROWS;
        picked = room + 2 * size.panel;
    }

    void meet_all() { meet(t.meeting, threads); }

    // y (M, stride) = one to three maps of x side by side, by this thread's share of the rows of their weights.
    void multiply(long phase, const Map *const *maps, const long *outs, long count, const float *x, long width, float *y, long stride) {
        if (s.coded) return fill(Blocks<T>(x, width, M, threads, room), counter + phase, maps, outs, count, y, stride);
        float out[MOST_ROWS];
        for (long n, end; take<T>(counter + phase, stride, width, threads, n, end);)
            for (; n < end; n++) {
                long i = 0, at = n;
                for (; at >= outs[i]; i++) at -= outs[i];
                rows_of<T>(*maps[i], at, M, x, width, out);
                for (long m = 0; m < M; m++) y[m * stride + n] = out[m];
            }
    }

    void multiply(long phase, const Map &map, long outs, const float *x, long width, float *y) {
        const Map *const maps[] = {&map};
        multiply(phase, maps, &outs, 1, x, width, y, outs);
    }

    void norm_all(const Norm &n, float *y) {
        for (long m = 0; m < M; m++) norm<T>(n, x + m * D, D, y + m * D);
    }

    // What stands between a projection and its heads: clips, and norms over all heads.
    void refine(const Layer &l) {
        const bool whole = !s.norm_by_head && l.q_norm.kind != NO_NORM;
        if (!whole && !l.clip) return;
        for (long m = me; m < M; m += threads) {
            float *y = qkv + m * row;
            if (whole) {
                norm<T>(l.q_norm, y, Q, y);
                norm<T>(l.k_norm, y + Q, KV, y + Q);
            }
            for (long n = 0; l.clip && n < row; n++) y[n] = y[n] > l.clip ? l.clip : y[n] < -l.clip ? -l.clip : y[n];
        }
        meet_all();
    }

    void attention(const Layer &l) {
        const Map *const maps[] = {&l.q, &l.k, &l.v};
        const long outs[] = {Q, KV, KV};
        multiply(PROJECT, maps, outs, 3, h, D, qkv, row);
        meet_all();
        refine(l);
        look(l, 0, ATTEND, l.used + s.length);
        multiply(OUT, l.o, D, h, Q, attn_change);
    }

    // h = what the queries find in so many keys, heads side by side.
    void look(const Layer &l, const Cross *cross, long phase, long keys) {
        const long chunks = (keys + KEYS - 1) / KEYS, items = s.batch * s.kv_heads * chunks;
        const long part = s.heads / s.kv_heads * s.length * (E + 2);
        for (long item; (item = __atomic_fetch_add(counter + phase, 1, __ATOMIC_RELAXED)) < items;) {
            const long c = item % chunks, g = item / chunks % s.kv_heads, b = item / chunks / s.kv_heads;
            attend<T>(s, l, cross, qkv, b, g, c * KEYS, parts + item * part, scratch);
        }
        meet_all();
        join(s, parts, chunks, h);
    }

    // The branch that looks at the encoder's states.
    void crossing(const Layer &l, const Cross &c) {
        norm_all(c.pre, h);
        multiply(ASK, c.q, Q, h, D, qkv);
        meet_all();
        look(l, &c, LOOK, c.count);
        multiply(ANSWER, c.o, D, h, Q, attn_change);
        meet_all();
        join_stream<T>(s, c.keeps ? &c.pre : 0, c.out, c.post, c.multiplier, attn_change, x, scratch);
    }

    // y (rows, stride) from column n on: count outputs, at most ENDS, of a gate with its up.
    void gate_rows(const Layer &l, const Map &gate, const Map &up, long n, long count, const float *x, long rows, float *y, long stride) {
        float out[MOST_ROWS];
        for (int gates = 0; gates <= (l.gated ? 1 : 0); gates++)
            for (long j = 0; j < count; j++) {
                rows_of<T>(gates ? gate : up, n + j, rows, x, D, out);
                for (long m = 0; m < rows; m++) ends[(gates * MOST_ROWS + m) * ENDS + j] = out[m];
            }
        for (long m = 0; m < rows; m++) gate_block(l, ends + (MOST_ROWS + m) * ENDS, ends + m * ENDS, count, y + m * stride + n);
    }

    // The same for one block of codes.
    void gate_codes(const Layer &l, Blocks<T> &gates, Blocks<T> &ups, const Map &gate, const Map &up, long b, float *y, long stride) {
        float *of_up = ends, *of_gate = ends + MOST_ROWS * CODE_ROWS;
        const long count = ups(up, b, l.inner, of_up);
        if (l.gated) gates(gate, b, l.inner, of_gate);
        for (long m = 0; m < ups.rows; m++)
            gate_block(l, of_gate + m * CODE_ROWS, of_up + m * CODE_ROWS, count, y + m * stride + b * CODE_ROWS);
    }

    void feed_forward(const Layer &l) {
        if (s.coded) {
            Blocks<T> ups(h, D, M, threads, room), gates(h, D, M, threads, room + size.panel);
            for (long b = 0, last = 0; b < last || claim(counter + INNER, blocks_of(l.inner), threads, b, last); b++)
                gate_codes(l, gates, ups, l.gate, l.up, b, inner, l.inner);
        }
        for (long n, end; !s.coded && take<T>(counter + INNER, l.inner, D, threads, n, end);)
            for (; n < end; n += ENDS) gate_rows(l, l.gate, l.up, n, end - n < ENDS ? end - n : (long)ENDS, h, M, inner, l.inner);
        meet_all();
        multiply(DOWN, l.down, D, inner, l.inner, ffn_change);
    }

    // The normed states of a group's tokens, side by side.
    const float *gather(const Picks &picks, const Group &g) {
        if (g.count == 1) return h + picks.rows[g.first] * D;
        if (g.count == M) return h;
        for (long i = 0; i < g.count; i++) memcpy(picked + i * D, h + picks.rows[g.first + i] * D, D * sizeof(float));
        return picked;
    }

    // inner (pairs, F) of the chosen experts, then their sums by weight, in order of the experts.
    void mixture(const Layer &l) {
        const Mixture &mix = *l.mixture;
        multiply(ROUTE, mix.router, mix.experts, h, D, scores);
        meet_all();
        const Picks picks(mix, scores, M);
        long at = -1;  // the group whose states are gathered
        const float *states = 0;
        if (s.coded) {
            const long blocks = blocks_of(l.inner);
            Blocks<T> ups(0, D, 1, threads, room), gates(0, D, 1, threads, room + size.panel);
            for (long n = 0, last = 0; n < last || claim(counter + INNER, picks.count * blocks, threads, n, last); n++) {
                const Group &g = picks.groups[n / blocks];
                if (at != n / blocks) {
                    at = n / blocks;
                    states = gather(picks, g);
                    ups = Blocks<T>(states, D, g.count, threads, room);
                    gates = Blocks<T>(states, D, g.count, threads, room + size.panel);
                }
                gate_codes(l, gates, ups, mix.gate[g.expert], mix.up[g.expert], n % blocks, inner + g.first * l.inner, l.inner);
            }
        }
        for (long n, end; !s.coded && take<T>(counter + INNER, picks.count * l.inner, D, threads, n, end);)
            for (long count; n < end; n += count) {
                const Group &g = picks.groups[n / l.inner];
                const long from = n % l.inner, left = l.inner - from < end - n ? l.inner - from : end - n;
                count = left < ENDS ? left : (long)ENDS;
                if (at != n / l.inner) {
                    at = n / l.inner;
                    states = gather(picks, g);
                }
                gate_rows(l, mix.gate[g.expert], mix.up[g.expert], from, count, states, g.count, inner + g.first * l.inner, l.inner);
            }
        meet_all();
        float out[MOST_ROWS * CODE_ROWS] __attribute__((aligned(64)));
        for (long n, end; s.coded && claim(counter + DOWN, blocks_of(D), threads, n, end);) {
            const long from = n * CODE_ROWS, to = end * CODE_ROWS < D ? end * CODE_ROWS : D;
            clear(from, to);
            for (long i = 0; i < picks.count; i++) {
                const Group &g = picks.groups[i];
                Blocks<T> blocks(inner + g.first * l.inner, l.inner, g.count, threads, room);
                for (long b = n; b < end; b++) {
                    const long count = blocks(mix.down[g.expert], b, D, out);
                    for (long m = 0; m < g.count; m++) add(picks, g.first + m, out + m * CODE_ROWS, b * CODE_ROWS, count);
                }
            }
        }
        for (long n, end; !s.coded && take<T>(counter + DOWN, D, l.inner, threads, n, end);) {
            clear(n, end);
            for (long i = 0; i < picks.count; i++) {
                const Group &g = picks.groups[i];
                for (long d = n; d < end; d++) {
                    rows_of<T>(mix.down[g.expert], d, g.count, inner + g.first * l.inner, l.inner, out);
                    for (long m = 0; m < g.count; m++) add(picks, g.first + m, out + m, d, 1);
                }
            }
        }
    }

    void clear(long from, long to) {
        for (long m = 0; m < M; m++) memset(ffn_change + m * D + from, 0, (to - from) * sizeof(float));
    }

    // Columns from n on of what one pair's expert says, to the change of its token.
    void add(const Picks &picks, long pair, const float *y, long n, long count) {
        float *change = ffn_change + picks.rows[pair] * D + n;
        for (long i = 0; i < count; i++) change[i] += picks.weights[pair] * y[i];
    }

    void layer(const Layer &l) {
        norm_all(l.attn_pre, h);
        attention(l);
        if (!l.side_by_side) {
            meet_all();
            join_stream<T>(s, l.attn_keeps ? &l.attn_pre : 0, l.attn_out, l.attn_post, l.attn_multiplier, attn_change, x, scratch);
        }
        if (l.cross) crossing(l, *l.cross);
        norm_all(l.ffn_pre, h);
        if (l.mixture)
            mixture(l);
        else
            feed_forward(l);
        meet_all();
        if (l.side_by_side) join_stream<T>(s, 0, l.attn_out, l.attn_post, l.attn_multiplier, attn_change, x, scratch);
        const Norm *kept = l.ffn_keeps ? &l.ffn_pre : 0;
        join_stream<T>(s, kept, l.ffn_out, l.ffn_post, l.ffn_multiplier, ffn_change, x, scratch);
    }

    void go() {
        memcpy(x, s.x, M * D * sizeof(float));
        for (long i = 0; i < s.layers; i++) {
            counter = t.counters + i * PHASES;
            layer(s.layer[i]);
        }
        if (me == 0) memcpy(s.x, x, M * D * sizeof(float));
    }
};

void enter(void *data) {
    Team &t = *(Team *)data;
    if (t.s->is_bfloat16)
        Worker<bfloat16>(t).go();
    else
        Worker<float>(t).go();
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
