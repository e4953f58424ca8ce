/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The row kernels again, as plain loops that the compiler vectorises. Built once per instruction level: BX_LEVEL names
 * it and the build gives the flags that allow its instructions. Nothing here may be called before runs_here() said yes.
 *
 * Same bits as ref.c: each prior is a lane of its own, its operations happen in ref's order, and contraction is off.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "internal.h"
#include "loss/sigmoid_focal.h"
#include "loss/softmax_ce.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b)  PASTE_(a, b)
#define TEXT_(a)     #a
#define TEXT(a)      TEXT_(a)

#ifdef __AVX2__
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float vector __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t bits __attribute__((vector_size(WIDTH * sizeof(int32_t))));

static bool runs_here(void) {
#ifdef __AVX512F__ /* from the generation on that does not slow down for them */
    return __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined __AVX2__
    return __builtin_cpu_supports("avx2");
#else
    return true;
#endif
}

/* ---- conversions ------------------------------------------------------------------------------------------------- */

static void load_half(float *restrict out, const char *restrict in, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, in + 2 * i, 2);
        uint32_t u = h & 0x7fffu;
        /* halves are floats with another bias: shift into place and multiply it right, exact for subnormals too */
        uint32_t finite = (uint32_t)bx_bits(bx_float((int32_t)(u << 13)) * 0x1p112f);
        uint32_t magnitude = u >= 0x7c00u ? (u << 13 | 0x7f800000u) : finite;
        out[i] = bx_float((int32_t)(magnitude | (uint32_t)(h & 0x8000u) << 16));
    }
}

static void load_bfloat(float *restrict out, const char *restrict in, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, in + 2 * i, 2);
        out[i] = bx_float((int32_t)((uint32_t)h << 16));
    }
}

static void load_double(float *restrict out, const char *restrict in, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double d;
        memcpy(&d, in + 8 * i, 8);
        out[i] = (float)d;
    }
}

static void load(float *out, const void *in, bx_dtype dtype, size_t n) {
    switch (dtype) {
    case BX_F16:
        load_half(out, in, n);
        break;
    case BX_BF16:
        load_bfloat(out, in, n);
        break;
    case BX_F64:
        load_double(out, in, n);
        break;
    default:
        memcpy(out, in, n * sizeof(float));
        break;
    }
}

static size_t count_bad(const void *x, size_t n) {
    const char *at = x;
    size_t bad = 0;
    while (n > 0) { /* in runs short enough for 32-bit lanes */
        size_t run = n < 65536 ? n : 65536;
        int32_t in_run = 0;
        for (size_t i = 0; i < run; i++) {
            int32_t bits;
            memcpy(&bits, at + i * sizeof bits, sizeof bits);
            in_run += (bits & 0x7f800000) == 0x7f800000;
        }
        bad += (size_t)in_run;
        at += run * sizeof(float);
        n -= run;
    }
    return bad;
}

/* ---- matching ---------------------------------------------------------------------------------------------------- */

enum { RUNS = BX_BLOCK / BX_CULL };

/* IoU of one culling run with one object; returns the greatest one's bits (IoU >= 0, so they order as integers). Called
 * with a constant `sizes`. */
static inline __attribute__((always_inline)) int32_t iou_run(const bx_priors *priors, int32_t first, int32_t count,
                                                             const bx_object *object, int sizes, float *restrict iou) {
    const float *restrict x1 = priors->x1 + first, *restrict y1 = priors->y1 + first;
    const float *restrict x2 = priors->x2 + first, *restrict y2 = priors->y2 + first;
    const float *restrict area = (sizes ? priors->size : priors->area) + first;
    const bx_object o = *object;
    int32_t top = 0;
    for (int32_t i = 0; i < count; i++) {
        iou[i] = bx_iou_of(bx_intersection(&o, x1[i], y1[i], x2[i], y2[i]), o.area, area[i], sizes);
        top = bx_bits(iou[i]) > top ? bx_bits(iou[i]) : top;
    }
    return top;
}

/* Priors that this object overlaps more than any before. */
static inline void take_run(const float *restrict iou, int32_t count, int32_t index, float *restrict overlap,
                            int32_t *restrict owner) {
    for (int32_t i = 0; i < count; i++) {
        float had = overlap[i];
        int32_t held = owner[i];
        overlap[i] = iou[i] > had ? iou[i] : had;
        owner[i] = iou[i] > had ? index : held;
    }
}

/* The first of n values with these bits. */
static inline int32_t first_equal(const float *iou, int32_t n, int32_t bits_of_it) {
    int32_t first = n;
    for (int32_t i = 0; i < n; i++) {
        int32_t here = bx_bits(iou[i]) == bits_of_it ? i : n;
        first = here < first ? here : first;
    }
    return first;
}

/* Lists those of n culling runs from the run `first` on that the object meets, as bx_next_meeting has it, and where an
 * IoU may reach `need`. With corners an IoU is at most the smaller area over the larger one, but for rounding: four
 * operations, far less than the margin. */
static int32_t meeting_runs(const bx_priors *priors, int32_t first, int32_t n, const bx_object *object, float need,
                            int32_t *found) {
    const size_t runs = (size_t)bx_runs(priors->n);
    const float *restrict x1 = priors->extent + first, *restrict y1 = x1 + runs;
    const float *restrict x2 = y1 + runs, *restrict y2 = x2 + runs;
    const float *restrict least_area = y2 + runs, *restrict most_area = least_area + runs;
    const bx_object o = *object;
    const float smallest = 0.99999f * need * o.area, largest = need > 0 ? 1.00001f * (o.area / need) : FLT_MAX;
    int32_t meets[RUNS], n_found = 0;
    for (int32_t i = 0; i < n; i++) {
        meets[i] = (o.box[2] > x1[i]) & (o.box[3] > y1[i]) & (o.box[0] < x2[i]) & (o.box[1] < y2[i]) &
                   (most_area[i] >= smallest) & (least_area[i] <= largest);
    }
    for (int32_t i = 0; i < n; i++) {
        found[n_found] = first + i;
        n_found += meets[i];
    }
    return n_found;
}

/* n priors of one run. Called with a constant `sizes`, and a constant n when it is a whole run. */
static inline __attribute__((always_inline)) void match_run(const bx_priors *priors, int32_t at, int32_t n,
                                                            const bx_object *object, int sizes, int32_t index,
                                                            float *overlap, int32_t *owner, bx_best *best) {
    float iou[BX_CULL];
    int32_t top = iou_run(priors, at, n, object, sizes, iou);
    if (top > 0) {
        take_run(iou, n, index, overlap, owner);
    }
    if (top > bx_bits(best->iou)) {
        *best = (bx_best){bx_float(top), at + first_equal(iou, n, top)};
    }
}

static void match_corners(const bx_priors *priors, int32_t at, int32_t n, const bx_object *object, int32_t index,
                          float *overlap, int32_t *owner, bx_best *best) {
    if (n == BX_CULL) {
        match_run(priors, at, BX_CULL, object, 0, index, overlap, owner, best);
    } else {
        match_run(priors, at, n, object, 0, index, overlap, owner, best);
    }
}

static void match_sizes(const bx_priors *priors, int32_t at, int32_t n, const bx_object *object, int32_t index,
                        float *overlap, int32_t *owner, bx_best *best) {
    if (n == BX_CULL) {
        match_run(priors, at, BX_CULL, object, 1, index, overlap, owner, best);
    } else {
        match_run(priors, at, n, object, 1, index, overlap, owner, best);
    }
}

static void iou_row(const bx_priors *priors, int32_t first, int32_t count, const bx_object *object, bx_iou kind,
                    float least, int32_t index, float *overlap, int32_t *owner, bx_best *best) {
    const int32_t end = first + count, last = bx_runs(end);
    const float both = least < best->iou ? least : best->iou;
    const float need = kind == BX_IOU_SIZES || both < FLT_MIN ? 0 : both; /* subnormals round too much for the margin */
    for (int32_t run = first / BX_CULL; run < last; run += RUNS) {
        int32_t found[RUNS];
        int32_t n = meeting_runs(priors, run, last - run < RUNS ? last - run : RUNS, object, need, found);
        for (int32_t i = 0; i < n; i++) {
            const int32_t at = found[i] * BX_CULL > first ? found[i] * BX_CULL : first;
            (kind == BX_IOU_SIZES ? match_sizes : match_corners)(priors, at, bx_run_end(at, end) - at, object, index,
                                                                 overlap + (at - first), owner + (at - first), best);
        }
    }
}

/* ---- scoring ----------------------------------------------------------------------------------------------------- */

/* Four columns of a row, at any address; a tile's lanes, at any float's. */
typedef float quad __attribute__((vector_size(4 * sizeof(float)), aligned(1), may_alias));
typedef float lanes_of_column __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));

#if WIDTH == 8 /* rows i and i + 4 side by side: the two halves turn as one */
#define ROWS(i)                                                                                                        \
    __builtin_shufflevector(*(const quad *)(const void *)(rows + (i)*stride),                                          \
                            *(const quad *)(const void *)(rows + ((i) + 4) * stride), 0, 1, 2, 3, 4, 5, 6, 7)
#define LOW(a, b)   __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b)  __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define FIRST(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define LAST(a, b)  __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#else
#define ROWS(i)     (*(const quad *)(const void *)(rows + (i)*stride))
#define LOW(a, b)   __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH(a, b)  __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define FIRST(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define LAST(a, b)  __builtin_shufflevector(a, b, 2, 3, 6, 7)
#endif

/* WIDTH rows of `stride` bytes, columns 0 .. 3, turned so that each column's WIDTH lanes lie together in the tile. All
 * bits of the result are 0 when all elements are finite: what is not differs from itself by NaN. */
static inline bits transpose_block(const char *rows, size_t stride, float *tile, size_t lanes) {
    vector r0 = ROWS(0), r1 = ROWS(1), r2 = ROWS(2), r3 = ROWS(3);
    vector low01 = LOW(r0, r1), high01 = HIGH(r0, r1), low23 = LOW(r2, r3), high23 = HIGH(r2, r3);
    *(lanes_of_column *)tile = FIRST(low01, low23);
    *(lanes_of_column *)(tile + lanes) = LAST(low01, low23);
    *(lanes_of_column *)(tile + 2 * lanes) = FIRST(high01, high23);
    *(lanes_of_column *)(tile + 3 * lanes) = LAST(high01, high23);
    return ((bits)(r0 - r0) | (bits)(r1 - r1)) | ((bits)(r2 - r2) | (bits)(r3 - r3));
}

/* Rows (n,C) -> tile (C,lanes); lanes past n repeat the last row. Returns whether all is finite. */
static inline bool fill_tile(const char *rows, int32_t n, int32_t n_columns, float *tile, int32_t n_lanes) {
    const size_t columns = (size_t)n_columns, stride = columns * sizeof *tile;
    const size_t lanes = (size_t)n_lanes, end = (size_t)n;
    bits wrong = {0};
    bool finite = true;
    size_t done = 0;
    for (; n_columns >= 4 && n >= WIDTH && done < end; done += WIDTH) { /* a last block overlaps the one before */
        const size_t i = done + WIDTH <= end ? done : end - WIDTH;
        const char *from = rows + i * stride;
        size_t c = 0;
        for (; c + 4 <= columns; c += 4) {
            wrong |= transpose_block(from + c * sizeof *tile, stride, tile + c * lanes + i, lanes);
        }
        if (c < columns) {
            c = columns - 4;
            wrong |= transpose_block(from + c * sizeof *tile, stride, tile + c * lanes + i, lanes);
        }
    }
    for (int lane = 0; lane < WIDTH; lane++) {
        finite &= wrong[lane] == 0;
    }
    for (; done < end; done++) {
        for (size_t c = 0; c < columns; c++) {
            memcpy(tile + c * lanes + done, rows + done * stride + c * sizeof *tile, sizeof *tile);
            finite &= (bx_bits(tile[c * lanes + done]) & 0x7f800000) != 0x7f800000;
        }
    }
    for (size_t c = 0; end < lanes && c < columns; c++) {
        const float last = tile[c * lanes + end - 1];
        for (size_t i = end; i < lanes; i++) {
            tile[c * lanes + i] = last;
        }
    }
    return finite;
}

/* Of `columns` columns of a tile, a constant: the maximum. */
static inline __attribute__((always_inline)) void raise_max(const float *restrict x, int32_t lanes, int32_t columns,
                                                            float *restrict max) {
    for (int32_t i = 0; i < lanes; i++) {
        float most = max[i];
        for (int32_t c = 0; c < columns; c++) {
            most = x[c * lanes + i] > most ? x[c * lanes + i] : most;
        }
        max[i] = most;
    }
}

enum { STRIP = 4 };
_Static_assert(BX_SUM_RUN % STRIP == 0, "no run ends within a strip, nor in the columns left over from strips");

/* Of `columns` columns of a tile, a constant at most STRIP: the terms of the rows' sums. In two loops, since what one
 * element takes is a long chain: more of them are then under way at a time. */
static inline __attribute__((always_inline)) void add_terms(const float *restrict x, int32_t lanes, int32_t columns,
                                                            const float *restrict max, float *restrict sum,
                                                            int32_t *restrict below) {
    float r[STRIP * BX_LANES];
    int32_t scale[STRIP * BX_LANES];
    for (int32_t i = 0; i < lanes; i++) {
        int32_t count = below[i];
        for (int32_t c = 0; c < columns; c++) {
            r[c * lanes + i] = bx_softmax_reduce(x[c * lanes + i], max[i], &count, &scale[c * lanes + i]);
        }
        below[i] = count;
    }
    for (int32_t i = 0; i < lanes; i++) {
        float so_far = sum[i];
        for (int32_t c = 0; c < columns; c++) {
            so_far += bx_exp_series(r[c * lanes + i], scale[c * lanes + i]);
        }
        sum[i] = so_far;
    }
}

/* After column c: a run of the rows' sums that is whole goes to what was before, as bx_row_add has it. */
static inline __attribute__((always_inline)) void end_run(int32_t c, int32_t lanes, float *restrict run,
                                                          double *restrict whole) {
    if ((c + 1) % BX_SUM_RUN == 0) {
        for (int32_t i = 0; i < lanes; i++) {
            whole[i] += (double)run[i];
            run[i] = 0;
        }
    }
}

/* Called with a constant `lanes`, so that the inner loops have no remainder. Fetches as many bytes at `ahead`, the next
 * rows, as it works on: reading memory then overlaps with the exponentials. */
static inline __attribute__((always_inline)) void softmax_tile(const float *restrict tile, int32_t lanes,
                                                               int32_t n_columns, const float *restrict x_label,
                                                               float *restrict out, uintptr_t ahead) {
    float max[BX_LANES], sum[BX_LANES];
    double whole[BX_LANES];
    int32_t below[BX_LANES], c = 1;
    for (int32_t i = 0; i < lanes; i++) {
        max[i] = tile[i];
        sum[i] = 0;
        whole[i] = 0;
        below[i] = 0;
    }
    for (; c + STRIP <= n_columns; c += STRIP) {
        raise_max(tile + (size_t)c * (size_t)lanes, lanes, STRIP, max);
    }
    for (; c < n_columns; c++) {
        raise_max(tile + (size_t)c * (size_t)lanes, lanes, 1, max);
    }
    for (c = 0; c + STRIP <= n_columns; c += STRIP) {
        for (int32_t i = 0; i < STRIP * lanes; i += 16) {
            __builtin_prefetch((const void *)(ahead + ((size_t)c * (size_t)lanes + (size_t)i) * sizeof(float)));
        }
        add_terms(tile + (size_t)c * (size_t)lanes, lanes, STRIP, max, sum, below);
        end_run(c + STRIP - 1, lanes, sum, whole);
    }
    for (; c < n_columns; c++) {
        add_terms(tile + (size_t)c * (size_t)lanes, lanes, 1, max, sum, below);
    }
    for (int32_t i = 0; i < lanes; i++) {
        const float rest = bx_softmax_rest(bx_row_total(whole[i], sum[i]), below[i], n_columns);
        out[i] = bx_softmax_ce(bx_log1p(rest), max[i] - x_label[i]);
    }
}

/* Class weights and smoothing: what softmax_tile gave to `out` becomes the weighted sum over all columns. The logarithm
 * is taken once more; these options are rare. */
static __attribute__((noinline)) void weigh_softmax_tile(const bx_scoring *s, const float *restrict tile, int32_t lanes,
                                                         const int32_t *restrict label, float *restrict out) {
    float max[BX_LANES], sum[BX_LANES], all[BX_LANES] = {0};
    double whole[BX_LANES] = {0};
    int32_t below[BX_LANES];
    for (int32_t i = 0; i < lanes; i++) {
        max[i] = tile[i];
        sum[i] = 0;
        below[i] = 0;
    }
    for (int32_t c = 1; c < s->n_columns; c++) {
        const float *restrict x = tile + (size_t)c * (size_t)lanes;
        for (int32_t i = 0; i < lanes; i++) {
            max[i] = x[i] > max[i] ? x[i] : max[i];
        }
    }
    for (int32_t c = 0; s->smoothing > 0 && c < s->n_columns; c++) {
        const float *restrict x = tile + (size_t)c * (size_t)lanes;
        for (int32_t i = 0; i < lanes; i++) {
            sum[i] += bx_softmax_term(x[i], max[i], &below[i]);
        }
        end_run(c, lanes, sum, whole);
    }
    for (int32_t i = 0; i < lanes; i++) {
        sum[i] = bx_log1p(bx_softmax_rest(bx_row_total(whole[i], sum[i]), below[i], s->n_columns));
        whole[i] = 0;
    }
    for (int32_t c = 0; s->smoothing > 0 && c < s->n_columns; c++) {
        const float *restrict x = tile + (size_t)c * (size_t)lanes;
        const float factor = s->hard[c];
        for (int32_t i = 0; i < lanes; i++) {
            all[i] += factor * bx_softmax_ce(sum[i], max[i] - x[i]);
        }
        end_run(c, lanes, all, whole);
    }
    for (int32_t i = 0; i < lanes; i++) {
        float own = s->hard[label[i]] * out[i];
        out[i] =
            bx_rank((1 - s->smoothing) * own + s->smoothing / (float)s->n_columns * bx_row_total(whole[i], all[i]));
    }
}

static void softmax_rows(const bx_scoring *s, const char *rows, int32_t n, const int32_t *label, float *out,
                         float *tile, int32_t lanes) {
    float gathered[BX_LANES];
    const float *x_label = gathered;
    if (label) {
        for (int32_t i = 0; i < lanes; i++) {
            gathered[i] = tile[(size_t)label[i < n ? i : n - 1] * (size_t)lanes + (size_t)i];
        }
    } else {
        x_label = tile + (size_t)s->background * (size_t)lanes;
    }
    uintptr_t ahead = (uintptr_t)rows + (size_t)n * (size_t)s->n_columns * sizeof(float);
    if (lanes == BX_LANES) {
        softmax_tile(tile, BX_LANES, s->n_columns, x_label, out, ahead);
    } else {
        softmax_tile(tile, BX_MIN_LANES, s->n_columns, x_label, out, ahead);
    }
    if (!s->plain) {
        int32_t own[BX_LANES];
        for (int32_t i = 0; i < lanes; i++) {
            own[i] = label ? label[i < n ? i : n - 1] : s->background;
        }
        weigh_softmax_tile(s, tile, lanes, own, out);
    }
}

/* Called with constant lanes, gamma and smoothing where they are the usual ones, and labelled = 0 where no column is
 * the row's class. A loop for each link of the chain, as in add_terms. */
static inline __attribute__((always_inline)) void sigmoid_tile(const bx_scoring *s, const float *restrict tile,
                                                               int32_t lanes, float gamma, float smoothing,
                                                               int labelled, const int32_t *restrict label,
                                                               float *restrict out) {
    float sum[BX_LANES];
    double whole[BX_LANES];
    for (int32_t i = 0; i < lanes; i++) {
        sum[i] = 0;
        whole[i] = 0;
    }
    for (int32_t c = 0; c < s->n_columns; c++) {
        const float *restrict x = tile + (size_t)c * (size_t)lanes;
        const float hard_factor = s->hard[c], soft_factor = s->soft[c];
        float e[BX_LANES], log_rest[BX_LANES];
        int32_t scale[BX_LANES];
        for (int32_t i = 0; i < lanes; i++) {
            e[i] = bx_exp_reduce(bx_abs(x[i]), &scale[i]);
        }
        for (int32_t i = 0; i < lanes; i++) {
            e[i] = bx_exp_series(e[i], scale[i]);
        }
        for (int32_t i = 0; i < lanes; i++) {
            log_rest[i] = bx_log1p_unit(e[i]);
        }
        for (int32_t i = 0; i < lanes; i++) {
            int32_t hard = labelled ? label[i] == c : 0;
            float slope;
            float value = bx_focal_of(hard ? x[i] : -x[i], e[i], log_rest[i], gamma, smoothing, &slope);
            sum[i] += (hard ? hard_factor : soft_factor) * value;
        }
        end_run(c, lanes, sum, whole);
    }
    for (int32_t i = 0; i < lanes; i++) {
        out[i] = bx_rank(bx_row_total(whole[i], sum[i]));
    }
}

static void sigmoid_rows(const bx_scoring *s, int32_t n, const int32_t *given, float *out, const float *tile,
                         int32_t lanes) {
    int32_t label[BX_LANES];
    for (int32_t i = 0; i < lanes; i++) {
        label[i] = given ? given[i < n ? i : n - 1] : s->background;
    }
    bool usual = s->gamma == 2 && s->smoothing == 0, labelled = given || s->background >= 0;
    if (usual && !labelled && lanes == BX_LANES) {
        sigmoid_tile(s, tile, BX_LANES, 2, 0, 0, label, out);
    } else if (usual) {
        sigmoid_tile(s, tile, lanes, 2, 0, 1, label, out);
    } else {
        sigmoid_tile(s, tile, lanes, s->gamma, s->smoothing, 1, label, out);
    }
}

/* The skeletons that have a form of their own here; the others are ref's. */
static bool score_rows(const bx_scoring *s, const void *rows, int32_t n, const int32_t *label, float *out,
                       float *tile) {
    float lane[BX_LANES];
    int32_t lanes = n > BX_MIN_LANES ? BX_LANES : BX_MIN_LANES;
    bool softmax = s->kind == BX_CLASSIFICATION_SOFTMAX_CE;
    bool sigmoid = s->kind == BX_CLASSIFICATION_SIGMOID_FOCAL;
    if (!softmax && !sigmoid) {
        return bx_kernels_ref.score_rows(s, rows, n, label, out, tile);
    }
    bool usable = fill_tile(rows, n, s->n_columns, tile, lanes);
    if (softmax) {
        softmax_rows(s, rows, n, label, lane, tile, lanes);
    } else {
        sigmoid_rows(s, n, label, lane, tile, lanes);
    }
    memcpy(out, lane, (size_t)n * sizeof *out);
    return usable;
}

/* ---- selection --------------------------------------------------------------------------------------------------- */

static size_t count_reaching(const float *x, size_t n, int32_t cut) {
    size_t reach = 0;
    for (size_t first = 0; first < n; first += BX_MAX_PRIORS) { /* in runs short enough for 32-bit lanes */
        size_t end = n - first < BX_MAX_PRIORS ? n : first + BX_MAX_PRIORS;
        int32_t in_run = 0;
        for (size_t i = first; i < end; i++) {
            in_run += bx_bits(x[i]) >= cut;
        }
        reach += (size_t)in_run;
    }
    return reach;
}

/* Bisects the bit patterns between 0 and the maximum; done as soon as a cut leaves exactly k. */
static int32_t kth_largest_bits(const float *x, size_t n, size_t k) {
    int32_t low = 0, high = 0; /* at least k reach low; fewer than k reach high + 1 */
    for (size_t i = 0; i < n; i++) {
        high = bx_bits(x[i]) > high ? bx_bits(x[i]) : high;
    }
    while (low < high) {
        int32_t middle = low + (high - low + 1) / 2;
        size_t reach = count_reaching(x, n, middle);
        if (reach == k) {
            return middle - 1; /* exactly the wanted ones exceed this */
        }
        if (reach > k) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static void mark_largest(const float *restrict x, uint8_t *restrict state, size_t n, size_t k, uint8_t mark) {
    int32_t cut = kth_largest_bits(x, n, k);
    size_t above = cut == INT32_MAX ? 0 : count_reaching(x, n, cut + 1);
    for (size_t i = 0; i < n; i++) {
        state[i] |= bx_bits(x[i]) > cut ? mark : 0;
    }
    for (size_t i = 0; above < k && i < n; i++) { /* ties at the cut: the lowest */
        if (bx_bits(x[i]) == cut) {
            state[i] |= mark;
            above++;
        }
    }
}

const bx_kernels PASTE(bx_kernels_, BX_LEVEL) = {TEXT(BX_LEVEL), runs_here,  load,        count_bad,
                                                 iou_row,        score_rows, mark_largest};
