// What stands between the products of a training step, float32: RMS norm and silu(gate) * up, with their gradients.

#include <math.h>

#include "lanes.h"

// Rows whose share of the weight's gradient is one sum; elements of a gated activation taken at once.
enum { BLOCK = 32, STRETCH = 1 << 14 };

extern "C" {

struct Normed {
    long rows, width;
    const float *x, *weight;  // (rows, width), (width)
    float eps;
    float *y, *scales;     // forward: (rows, width), 1 / root of each row's mean square (rows)
    const float *dy;       // backward
    float *dx, *parts;     // (rows, width); (blocks of BLOCK rows, width), or none
    float *dw;             // (width), or none
};

struct Gated {
    long count;
    const float *gate, *up;
    float *y;             // forward
    const float *dy;      // backward
    float *dgate, *dup;
};

}  // extern "C"

namespace {

struct Queue {
    void *what;
    long items, next;
};

inline bool take(Queue &q, long &item) {
    item = __atomic_fetch_add(&q.next, 1, __ATOMIC_RELAXED);
    return item < q.items;
}

void run(void (*work)(void *), void *what, long items, unsigned threads, Parallel parallel) {
    Queue q = {what, items, 0};
    if (threads > 1 && items > 1)
        parallel(work, &q, threads, 0);
    else
        work(&q);
}

void norm_forward(void *data) {
    Queue &q = *(Queue *)data;
    const Normed &n = *(const Normed *)q.what;
    for (long block; take(q, block);)
        for (long row = block * BLOCK; row < n.rows && row < (block + 1) * BLOCK; row++) {
            const float *x = n.x + row * n.width;
            float *y = n.y + row * n.width, square;
            dots<float, 1>(x, n.width, x, n.width, &square);
            const float scale = n.scales[row] = 1.0f / sqrtf(square / n.width + n.eps);
            long k = 0;
            for (; k + LANES <= n.width; k += LANES) save(y + k, load(x + k) * scale * load(n.weight + k));
            for (; k < n.width; k++) y[k] = x[k] * scale * n.weight[k];
        }
}

// dx = scale (g - z mean(g z)) for g = dy weight and z = x scale; the weight's gradient is the sum of dy z.
void norm_backward(void *data) {
    Queue &q = *(Queue *)data;
    const Normed &n = *(const Normed *)q.what;
    for (long block; take(q, block);) {
        float *part = n.parts ? n.parts + block * n.width : 0;
        if (part) memset(part, 0, n.width * sizeof(float));
        for (long row = block * BLOCK; row < n.rows && row < (block + 1) * BLOCK; row++) {
            const float *x = n.x + row * n.width, *dy = n.dy + row * n.width;
            const float scale = n.scales[row];
            Floats sums[2] = {};
            float sum = 0;
            long k = 0;
            for (; k + 2 * LANES <= n.width; k += 2 * LANES)
                for (int i = 0; i < 2; i++)
                    sums[i] += load(dy + k + i * LANES) * load(n.weight + k + i * LANES) * load(x + k + i * LANES);
            for (; k < n.width; k++) sum += dy[k] * n.weight[k] * x[k];
            const float mean = (across(sums[0] + sums[1]) + sum) * scale * scale / n.width;
            if (n.dx) {
                float *dx = n.dx + row * n.width;
                for (k = 0; k + LANES <= n.width; k += LANES)
                    save(dx + k, (load(dy + k) * load(n.weight + k) - load(x + k) * mean) * scale);
                for (; k < n.width; k++) dx[k] = (dy[k] * n.weight[k] - x[k] * mean) * scale;
            }
            if (!part) continue;
            for (k = 0; k + LANES <= n.width; k += LANES) save(part + k, load(part + k) + load(dy + k) * load(x + k) * scale);
            for (; k < n.width; k++) part[k] += dy[k] * x[k] * scale;
        }
    }
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + power(x * -1.44269504f)); }

inline void gate_one(const Gated &g, Floats gate, Floats up, Floats dy, Floats &y, Floats &dgate, Floats &dup) {
    const Floats s = sigmoid(gate), a = gate * s;
    y = a * up;
    if (!g.dy) return;
    dup = dy * a;
    dgate = dy * up * (s + a * (1.0f - s));
}

void gate_all(void *data) {
    Queue &q = *(Queue *)data;
    const Gated &g = *(const Gated *)q.what;
    for (long item; take(q, item);) {
        const long end = (item + 1) * STRETCH < g.count ? (item + 1) * STRETCH : g.count;
        for (long k = item * STRETCH; k < end; k += LANES) {
            const long left = end - k < LANES ? end - k : LANES;
            Floats gate = {}, up = {}, dy = {}, y, dgate, dup;
            if (left == LANES) {
                gate = load(g.gate + k), up = load(g.up + k);
                if (g.dy) dy = load(g.dy + k);
            } else {
                memcpy(&gate, g.gate + k, left * sizeof(float));
                memcpy(&up, g.up + k, left * sizeof(float));
                if (g.dy) memcpy(&dy, g.dy + k, left * sizeof(float));
            }
            gate_one(g, gate, up, dy, y, dgate, dup);
            if (!g.dy) {
                memcpy(g.y + k, &y, left * sizeof(float));
                continue;
            }
            memcpy(g.dgate + k, &dgate, left * sizeof(float));
            memcpy(g.dup + k, &dup, left * sizeof(float));
        }
    }
}

}  // namespace

extern "C" void phyla_norm_learn(Normed *n, unsigned threads, Parallel parallel) {
    run(norm_forward, n, (n->rows + BLOCK - 1) / BLOCK, threads, parallel);
}

extern "C" void phyla_norm_back(Normed *n, unsigned threads, Parallel parallel) {
    const long blocks = (n->rows + BLOCK - 1) / BLOCK;
    run(norm_backward, n, blocks, threads, parallel);
    if (!n->dw) return;
    memcpy(n->dw, n->parts, n->width * sizeof(float));
    for (long block = 1; block < blocks; block++)
        for (long k = 0; k < n->width; k++) n->dw[k] += n->parts[block * n->width + k];
}

extern "C" void phyla_gate_learn(Gated *g, unsigned threads, Parallel parallel) {
    run(gate_all, g, (g->count + STRETCH - 1) / STRETCH, threads, parallel);
}
