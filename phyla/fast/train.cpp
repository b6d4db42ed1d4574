// The gradient of a linear map's weight in training, float32: dw (N, K) = dy^T x, and db (N) = the sum of dy's rows.
//
// A tile of ROWS x PANEL sums stays in registers while rows of dy and x pass by (Goto & van de Geijn 2008,
// doi:10.1145/1356052.1356053). x is put into panels of PANEL columns once; dy into panels of ROWS columns by the
// thread that takes those rows of dw. Each sum runs over the rows in order, whatever the number of threads.

#include <sched.h>

#include "vectors.h"

#if defined(__AVX512F__)
enum { ROWS = 12 };
#else
enum { ROWS = 6 };
#endif
// Columns of a tile; rows of x and dy in one pass; columns of x in one pass; most panels of dy in one item.
enum { PANEL = 2 * LANES, DEPTH = 512, CHUNK = 3072, GROUP = 8 };

extern "C" {

// Strides count elements.
struct Learned {
    long count, outs, width;  // M rows of dy (M, N) and x (M, K)
    const float *dy;
    long dy_stride;
    const float *x;
    long x_stride;
    float *dw, *db;  // db may be none
};

}  // extern "C"

namespace {

// `count` of WIDE columns of (depth, ...) rows into a panel (depth, WIDE), zeros where there are none.
template <int WIDE> void arrange(const float *from, long stride, long count, long depth, float *out) {
    if (count >= WIDE) {
        for (long k = 0; k < depth; k++) memcpy(out + k * WIDE, from + k * stride, WIDE * sizeof(float));
        return;
    }
    for (long k = 0; k < depth; k++)
        for (long i = 0; i < WIDE; i++) out[k * WIDE + i] = i < count ? from[k * stride + i] : 0.0f;
}

// ROWS rows of dw with V vectors of columns, over the rows of one pass; `more` adds to what is there.
template <int V>
inline void tile(const float *a, const float *b, long depth, float *c, long c_row, long rows, long columns, bool more) {
    Floats sums[ROWS][V] = {};
    for (long k = 0; k < depth; k++, a += ROWS, b += PANEL) {
        Floats v[V];
#pragma GCC unroll 2
        for (int j = 0; j < V; j++) v[j] = load(b + j * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const Floats one = splat(a[r]);
#pragma GCC unroll 2
            for (int j = 0; j < V; j++) sums[r][j] += v[j] * one;
        }
    }
    if (rows >= ROWS && columns >= V * LANES) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int j = 0; j < V; j++) {
                float *to = c + r * c_row + j * LANES;
                save(to, more ? sums[r][j] + load(to) : sums[r][j]);
            }
        return;
    }
    for (long r = 0; r < ROWS && r < rows; r++)
        for (long i = 0; i < V * LANES && i < columns; i++) {
            const float s = sums[r][i / LANES][i % LANES];
            c[r * c_row + i] = more ? c[r * c_row + i] + s : s;
        }
}

// Work that threads take piece by piece, and how much of it is done.
struct Share {
    long items, next, done;
};

inline bool take(Share &s, long &item) {
    item = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED);
    return item < s.items;
}

inline void finish(Share &s) { __atomic_fetch_add(&s.done, 1, __ATOMIC_RELEASE); }

// Until the others have done what they took: no longer than one piece.
inline void await(const Share &s) {
    for (long turn = 0; __atomic_load_n(&s.done, __ATOMIC_ACQUIRE) < s.items; turn++)
        if (turn > 200) sched_yield();
}

struct Pass {
    long first, columns;  // of x
    long k, depth;        // rows of x and dy
    Share packing, work;
};

struct Job {
    const Learned *g;
    float *panels;
    long group, passes, failed;
    Pass *pass;
};

void rows_of_dw(const Learned &g, const Pass &p, const float *panels, long row, long rows, float *own) {
    for (long r = 0; r < rows; r += ROWS) {
        float *panel = own + r * p.depth;
        const long n = row + r, count = rows - r < ROWS ? rows - r : ROWS;
        arrange<ROWS>(g.dy + p.k * g.dy_stride + n, g.dy_stride, count, p.depth, panel);
        if (!g.db || p.first) continue;
        float sums[ROWS] = {};
        for (long k = 0; k < p.depth; k++)
            for (int i = 0; i < ROWS; i++) sums[i] += panel[k * ROWS + i];
        for (long i = 0; i < count; i++) g.db[n + i] = p.k ? g.db[n + i] + sums[i] : sums[i];
    }
    for (long q = 0; q < p.columns; q += PANEL)
        for (long r = 0; r < rows; r += ROWS) {
            const float *a = own + r * p.depth, *b = panels + q * p.depth;
            float *c = g.dw + (row + r) * g.width + p.first + q;
            const long left = p.columns - q;
            if (left > LANES)
                tile<2>(a, b, p.depth, c, g.width, rows - r, left, p.k > 0);
            else
                tile<1>(a, b, p.depth, c, g.width, rows - r, left, p.k > 0);
        }
}

void work(void *data) {
    Job &job = *(Job *)data;
    const Learned &g = *job.g;
    const long most = job.group * ROWS;
    float *own = 0;
    if (posix_memalign((void **)&own, 64, DEPTH * most * sizeof(float))) job.failed = 1;
    for (long i = 0; i < job.passes; i++) {
        Pass &p = job.pass[i];
        if (i) await(job.pass[i - 1].work);  // the panels are free again
        for (long item; take(p.packing, item); finish(p.packing)) {
            const long q = item * PANEL;
            arrange<PANEL>(g.x + p.k * g.x_stride + p.first + q, g.x_stride, p.columns - q, p.depth, job.panels + q * p.depth);
        }
        await(p.packing);
        for (long item; take(p.work, item); finish(p.work)) {
            const long row = item * most, rows = g.outs - row < most ? g.outs - row : most;
            if (own) rows_of_dw(g, p, job.panels, row, rows, own);
        }
    }
    free(own);
}

inline long parts_of(long length, long most) { return (length + most - 1) / most; }

}  // namespace

// 0, or 1 where there is no memory for the panels. All lengths are positive.
extern "C" int phyla_learn(const Learned *g, unsigned threads, Parallel parallel) {
    const long chunk = parts_of(parts_of(g->width, parts_of(g->width, CHUNK)), PANEL) * PANEL;
    const long depth = parts_of(g->count, parts_of(g->count, DEPTH));
    const long panels = parts_of(g->outs, ROWS), each = parts_of(panels, threads * 4);
    Job job = {g, 0, each < GROUP ? each : GROUP, parts_of(g->width, chunk) * parts_of(g->count, depth), 0, 0};
    job.pass = (Pass *)calloc(job.passes, sizeof(Pass));
    if (!job.pass || posix_memalign((void **)&job.panels, 64, chunk * depth * sizeof(float))) {
        free(job.pass);
        return 1;
    }
    Pass *p = job.pass;
    for (long first = 0; first < g->width; first += chunk)
        for (long k = 0; k < g->count; k += depth, p++) {
            p->first = first, p->columns = g->width - first < chunk ? g->width - first : chunk;
            p->k = k, p->depth = g->count - k < depth ? g->count - k : depth;
            p->packing.items = parts_of(p->columns, PANEL), p->work.items = parts_of(g->outs, job.group * ROWS);
        }
    if (threads > 1)
        parallel(work, &job, threads, 0);
    else
        work(&job);
    free(job.panels);
    free(job.pass);
    return (int)job.failed;
}
