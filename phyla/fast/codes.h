// Products with weights kept as codes of four or eight bits, a scale and perhaps a zero for each group of inputs.
//
// ROWS rows of w lie side by side, column after column: lanes are rows, so that a column is decoded once for all rows of
// x, scales are vectors, and no sum runs across lanes. Each output is one chain of sums over K in order, whatever the
// number of rows of x, the thread and the place in w.

#ifndef PHYLA_CODES_H
#define PHYLA_CODES_H

#include "lanes.h"

extern "C" {

enum { BY_TABLE, WHOLE, FLOAT8 };        // four bits that name one of 16 values, int8, e4m3
enum { SINGLE, HALF, BRAIN };            // float32, float16, bfloat16
enum { CODE_ROWS = 32, CODE_PANEL = 8 };  // rows of w in a block, rows of x in a panel

struct Codes {
    const uint8_t *codes;     // (blocks, K, 16 or 32); of four bits: row j low, row j + 16 high
    const void *scale, *zero;  // (blocks, groups, 32), zero or none
    const float *table;
    const int32_t *order;  // the input of each column, or none
    long outs, width, group, groups, kind, scale_kind, zero_kind;
    long relative;  // w = scale * (code - zero), otherwise w = scale * code + zero
};

// What a block is multiplied with: x (K, M) and its sums over each group (groups, M), M rows side by side.
struct Panel {
    const float *x, *sums;
};

// Block b of w with the rows of a panel: out (rows of the panel, CODE_ROWS).
typedef void (*Block)(const Codes &, long b, const Panel &, float *out);
Block phyla_code_block(const Codes *, long panel_rows);

}  // extern "C"

namespace {

// The next items [n, end) of `all`, many at first and single ones at last; false where none is left.
inline bool claim(long *counter, long all, long threads, long &n, long &end) {
    n = __atomic_load_n(counter, __ATOMIC_RELAXED);
    do {
        if (n >= all) return false;
        const long share = (all - n) / (2 * threads);
        end = n + (share < 1 ? 1 : share);
    } while (!__atomic_compare_exchange_n(counter, &n, end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return true;
}

// Rows of a panel that is to hold so many: what the functions are made for.
inline long panel_of(long rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : CODE_PANEL; }

// Floats that `arrange` needs: x and sums of a panel, and one row.
inline long panel_size(const Codes &c, long m) { return (c.width + c.groups) * m + c.width + 48; }

// Up to m rows of x as a panel of m in `room`, what is missing filled with zeros.
inline Panel arrange(const Codes &c, const float *x, long stride, long rows, long m, float *room) {
    float *panel = room, *sums = panel + (c.width * m + 15) / 16 * 16, *row = sums + (c.groups * m + 15) / 16 * 16;
    const bool same = m == 1 && !c.order;
    for (long i = 0; i < m; i++) {
        const float *from = x + i * stride;
        if (i >= rows) {
            for (long k = 0; k < c.width; k++) panel[k * m + i] = 0;
            for (long g = 0; g < c.groups; g++) sums[g * m + i] = 0;
            continue;
        }
        if (c.order) {
            for (long k = 0; k < c.width; k++) row[k] = from[c.order[k]];
            from = row;
        }
        if (!same)
            for (long k = 0; k < c.width; k++) panel[k * m + i] = from[k];
        if (!c.zero) continue;
        for (long g = 0; g < c.groups; g++) {
            const long first = g * c.group, left = c.width - first;
            sums[g * m + i] = sum_of(from + first, left < c.group ? left : c.group);
        }
    }
    return Panel{same ? x : panel, sums};
}

}  // namespace

#endif
