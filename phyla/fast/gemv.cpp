// y = x w^T + b for one to eight rows of x: x (M, K), w (N, K) contiguous, y (M, N); float32 or bfloat16, float32 sums.
//
// Such products are bound by reading w, which is fastest row after row: several rows at once, or prefetching by hand,
// halved the speed where it was measured. Every output is the same running sums over K, reduced in the same
// order, whatever M, the thread and the place in w: a row of a batch has the bits that it has alone.
// The threads are those of the OpenMP runtime that torch uses: its GOMP_parallel comes in as a pointer.

#include "vectors.h"

enum { CHUNKS_PER_THREAD = 4, CHUNK_BYTES = 65536, LINE = 32, MOST_ROWS = 8 };

namespace {

struct Product {
    const float *x;
    const void *w, *bias;
    void *y;
    long rows, outs, width, x_stride, y_stride, chunk, next;
};

// One thread's share: chunks of rows of w, taken until none is left, however many threads come.
template <class T> void work(void *data) {
    Product &p = *(Product *)data;
    for (long n; (n = __atomic_fetch_add(&p.next, p.chunk, __ATOMIC_RELAXED)) < p.outs;) {
        const long end = n + p.chunk < p.outs ? n + p.chunk : p.outs;
        for (; n < end; n++) {
            const T *w = (const T *)p.w + n * p.width;
            const float bias = p.bias ? widen(((const T *)p.bias)[n]) : 0;
            float out[MOST_ROWS];
            dots_of<T>(p.rows, p.x, p.x_stride, w, p.width, out);
            for (long m = 0; m < p.rows; m++) store((T *)p.y + m * p.y_stride + n, p.bias ? out[m] + bias : out[m]);
        }
    }
}

}  // namespace

// 0, or 1 where there is no memory for x in float32. Strides count elements.
extern "C" int phyla_few_rows(int is_bfloat16, long rows, long outs, long width, const void *x, long x_stride,
                              const void *w, const void *bias, void *y, long y_stride, unsigned threads,
                              Parallel parallel) {
    Product p = {(const float *)x, w, bias, y, rows, outs, width, x_stride, y_stride, outs, 0};
    float *wide = 0;
    if (is_bfloat16) {
        if (posix_memalign((void **)&wide, 64, (rows * width + 1) * sizeof(float))) return 1;
        for (long m = 0; m < rows; m++)
            for (long k = 0; k < width; k++) wide[m * width + k] = widen(((const bfloat16 *)x)[m * x_stride + k]);
        p.x = wide;
        p.x_stride = width;
    }
    // Not so small that handing them out shows, and whole cache lines of y.
    const long most = outs * width * (is_bfloat16 ? 2 : 4) / CHUNK_BYTES;
    const long chunks = most < CHUNKS_PER_THREAD * (long)threads ? most : CHUNKS_PER_THREAD * (long)threads;
    if (threads > 1 && chunks > 1) p.chunk = ((outs + chunks - 1) / chunks + LINE - 1) / LINE * LINE;
    void (*const run)(void *) = is_bfloat16 ? work<bfloat16> : work<float>;
    if (p.chunk < outs)
        parallel(run, &p, threads, 0);
    else
        run(&p);
    free(wide);
    return 0;
}
