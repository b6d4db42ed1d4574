// Products with weights kept as codes of four or eight bits, a scale and perhaps a zero for each group of inputs.
//
// CODE_ROWS rows of w lie side by side, a word of four bytes of each in turn: four columns, or eight halves of bytes.
// Lanes are rows, so that a word is decoded once for all rows of x, scales are vectors, and no sum runs across lanes.
// Each output is one chain of sums over K in order, whatever the number of rows of x, the thread and the place in w.
//
// Where codes are steps of one and the processor multiplies bytes (VNNI), x becomes whole numbers of 24 bits within
// each group: three digits of a byte, which are multiplied and summed exactly.

#ifndef PHYLA_CODES_H
#define PHYLA_CODES_H

#include "lanes.h"
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

extern "C" {

enum { BY_TABLE, WHOLE, FLOAT8 };        // four bits that name one of 16 values, int8, e4m3
enum { SINGLE, HALF, BRAIN };            // float32, float16, bfloat16
enum { CODE_ROWS = 32, CODE_PANEL = 8 };  // rows of w in a block, rows of x in a panel

struct Codes {
    const uint8_t *codes;      // (blocks, K / 8 or K / 4, 32, 4); of four bits: column i low, i + 4 high
    const void *scale, *zero;  // (blocks, groups, 32), zero or none
    const float *table;
    const int32_t *order;  // the input of each column, or none
    long outs, width, group, groups, kind, scale_kind, zero_kind;
    long relative;  // w = scale * (code - zero), otherwise w = scale * code + zero
    long steps;     // whether code c stands for first + c
    float first;
};

// What a block is multiplied with, M rows side by side: x (K, M), its sums over each group (groups, M); where there
// are digits, (K / 4, M) times four bytes of each of three digits and four unused ones.
struct Panel {
    const float *x, *sums;
    const int8_t *digits;
    const struct Whole *whole;  // (groups, M)
};

// The digits of a group: their sums, and what each of them counts.
struct Whole {
    int32_t sums[4];
    float counts[4];
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

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
enum { HAS_DIGITS = 1 };

// A group of a row of x as digits: x = unit * (d0 + 256 d1 + 65536 d2), a unit for the group, rounded to nearest.
inline float digits_of(const float *x, long width, long m, int8_t *out, Whole &whole) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), halves = _mm512_set1_epi32(0x808080), ones = _mm512_set1_epi8(1);
    const __m512i turned = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1));
    __m512i most = _mm512_setzero_si512(), sums = most;
    for (long k = 0; k < width; k += 16) {
        const __mmask16 there = width - k < 16 ? (1 << (width - k)) - 1 : 0xffff;
        most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(_mm512_maskz_loadu_ps(there, x + k)), magnitude));
    }
    const uint32_t largest = _mm512_reduce_max_epu32(most);
    float bound;
    memcpy(&bound, &largest, sizeof bound);
    bound *= 1.0078125f;  // the largest number of three digits is a little below 2^23
    uint32_t bits;
    memcpy(&bits, &bound, sizeof bits);
    long exponent = (long)(bits >> 23) - 127;
    const bool finite = exponent < 128;
    exponent = exponent < -100 ? -100 : exponent;
    const uint32_t down = (uint32_t)(exponent - 22 + 127) << 23, up = (uint32_t)(22 - exponent + 127) << 23;
    float unit, scale;
    memcpy(&unit, &down, sizeof unit);
    memcpy(&scale, &up, sizeof scale);
    if (!finite) unit = NAN, scale = 0;
    for (long k = 0; k < width; k += 16) {
        const __mmask16 there = width - k < 16 ? (1 << (width - k)) - 1 : 0xffff;
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + k), _mm512_set1_ps(scale)));
        const __m512i bytes = _mm512_shuffle_epi8(_mm512_xor_si512(_mm512_add_epi32(q, halves), halves), turned);
        sums = _mm512_dpbusd_epi32(sums, ones, bytes);
        if (m == 1 && width - k >= 16) {
            _mm512_storeu_si512(out + k * 4, bytes);
            continue;
        }
        __m128i four[4];
        _mm512_storeu_si512(four, bytes);
        for (long j = 0; j < 4 && k + 4 * j < width; j++) _mm_storeu_si128((__m128i *)(out + (k / 4 + j) * m * 16), four[j]);
    }
    const __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    _mm_storeu_si128((__m128i *)whole.sums, _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1)));
    whole.counts[0] = unit;
    whole.counts[1] = unit * 256;
    whole.counts[2] = unit * 65536;
    return whole.counts[2] * whole.sums[2] + (whole.counts[1] * whole.sums[1] + whole.counts[0] * whole.sums[0]);
}
#else
enum { HAS_DIGITS = 0 };
inline float digits_of(const float *, long, long, int8_t *, Whole &) { return 0; }
#endif

// Whether x is put into digits: groups of whole words, whose sums stay below 2^31.
inline bool wants_digits(const Codes &c) { return HAS_DIGITS && c.group % 8 == 0 && c.group <= 32768; }

inline long lines_of(long floats) { return (floats + 15) / 16 * 16; }

// Floats that `arrange` needs: x and sums of a panel, one row, digits (to whole words) and their sums.
inline long panel_size(const Codes &c, long m) {
    const long digits = HAS_DIGITS ? lines_of((c.width + 7) / 8 * 8 * m) + lines_of(c.groups * m * 8) : 0;
    return lines_of(c.width * m) + lines_of(c.groups * m) + lines_of(c.width) + digits + 16;
}

// Where a panel lies in `room`; x itself where one row is taken as it stands.
inline Panel panel_in(const Codes &c, const float *x, long m, float *room) {
    float *sums = room + lines_of(c.width * m), *whole = sums + lines_of(c.groups * m) + lines_of(c.width);
    return Panel{m == 1 && !c.order ? x : room, sums, (int8_t *)(whole + lines_of(c.groups * m * 8)), (Whole *)whole};
}

// Up to m rows of x as a panel of m in `room`, what is missing filled with zeros.
inline Panel arrange(const Codes &c, const float *x, long stride, long rows, long m, float *room) {
    const Panel made = panel_in(c, x, m, room);
    float *sums = (float *)made.sums, *row = sums + lines_of(c.groups * m);
    int8_t *digits = (int8_t *)made.digits;
    const bool whole_numbers = wants_digits(c);
    if (whole_numbers && c.width % 8) memset(digits + c.width / 8 * 8 * m * 4, 0, 8 * m * 4);
    for (long i = 0; i < m; i++) {
        const float *from = x + i * stride;
        if (i >= rows || c.order) {
            for (long k = 0; k < c.width; k++) row[k] = i < rows ? from[c.order[k]] : 0;
            from = row;
        }
        if (made.x == room)
            for (long k = 0; k < c.width; k++) room[k * m + i] = from[k];
        for (long g = 0; (whole_numbers || c.zero) && g < c.groups; g++) {
            const long first = g * c.group, left = c.width - first, size = left < c.group ? left : c.group;
            Whole *whole = (Whole *)made.whole + g * m + i;
            sums[g * m + i] = whole_numbers ? digits_of(from + first, size, m, digits + (first / 4 * m + i) * 16, *whole)
                                            : sum_of(from + first, size);
        }
    }
    return made;
}

}  // namespace

#endif
