/* What y = alpha D x + S x + b and its derivatives share: the arguments, the index of S, and tiles of LANES rows,
 * held transposed.
 *
 * S is read from its sorted flat positions: row pointers and tile offsets of the columns are made for the call,
 * in one linear pass. Rows are taken in groups of up to MAX_GROUP tiles, so that an index is read once for each
 * group. How rows are divided depends on shapes alone, and sums over rows are taken in a fixed order: results do
 * not depend on the number of threads.
 */
#ifndef DCTPS_LINEAR_INDEX_H
#define DCTPS_LINEAR_INDEX_H

#include "call.h"
#include "common/fft.h"
#include "common/half.h"
#include "common/runtime.h"
#include "common/support.h"
#include "hadamard.h"

#include <stdatomic.h>

#define MAX_GROUP 4
#define AHEAD (2 * LANES)    /* columns between writing a line and asking for it */
#define INDEX_CHUNK 8192     /* nonzeros and rows that one thread indexes at a time */

/* A nonzero: row and column in its cell, place in S, value. */
typedef struct {
    uint16_t row, column;
    uint32_t from;
    float value;
} entry;

typedef struct {
    linear_call a;
    dct_plan plan;
    int64_t vectors; /* of one transform's tile: 2 L for the DCT, else q or n */
    int64_t tiles, group, groups, parts;
    float alpha, scale;
    uint32_t *start, *column, *source; /* of S's rows; tile offsets of its columns; of each output's frequency */
    uint32_t *cell; /* of the backward: the first nonzero of each cell */
    entry *entry;
    int64_t stripe, stripes, blocks;
    int block_shift, by_column;
    int64_t padded; /* nnz to whole vectors */
    float *part_values, *part_bias;
    double *part_alpha;
    atomic_int unsorted;
} job;

LOCAL void read_plan(job *j)
{
    const linear_call *a = &j->a;
    j->vectors = a->n;
    j->alpha = a->alpha ? *a->alpha : 0;
    j->scale = 1;
    if (a->transform == HADAMARD) {
        j->vectors = a->q;
        j->scale = 1 / __builtin_sqrtf((float)a->n);
    }
    if (a->transform != DCT) return;
    read_dct_plan(&j->plan, a->plan, a->tables, a->q);
    j->vectors = 2 * j->plan.length;
}

/* What Python cannot see at little cost: whether outputs' frequencies exist, and indices fit into 32 bits. */
LOCAL int check(const job *j)
{
    const linear_call *a = &j->a;
    if (a->transform == HADAMARD && (a->q & (a->q - 1) || a->rounds != 1)) return BAD_TABLE;
    const int64_t rounds = a->transform ? a->rounds : 1, furthest = (j->vectors + 1) * rounds * LANES;
    if (a->nnz + a->m >= INT32_MAX || furthest >= UINT32_MAX) return TOO_LARGE;
    return !a->transform || is_below(a->order, a->m, a->rounds * a->q) ? DONE : BAD_TABLE;
}

LOCAL int64_t tile_slot(const job *j, int64_t column)
{
    return j->a.transform == DCT ? j->plan.slot[column] : column;
}

/* Where output r's frequency lies in z. */
INLINE int64_t source_of(const job *j, int64_t r)
{
    const linear_call *a = &j->a;
    int64_t from = a->order ? a->order[r] : r;
    const int64_t round = a->rounds > 1 ? from / a->q : 0;
    if (a->transform == DCT) from = round * j->vectors + j->plan.place[from - round * a->q];
    return from * LANES;
}

/* ---- the index of S ---- */

LOCAL int64_t index_items(const job *j) { return (j->a.nnz + j->a.m) / INDEX_CHUNK + 1; }

LOCAL void index_rows(void *argument, int64_t item, void *scratch)
{
    job *j = argument;
    const linear_call *a = &j->a;
    const int64_t items = index_items(j), *support = a->support;
    const int64_t first = a->m * item / items, last = a->m * (item + 1) / items;
    int64_t k = seam(support, a->nnz, first * a->n, a->m * a->n);
    (void)scratch;
    for (int64_t r = first; r < last; r++) {
        const int64_t begin = r * a->n, end = begin + a->n;
        int64_t next = begin; /* position at least */
        j->start[r] = (uint32_t)k;
        for (; k < a->nnz && support[k] < end; k++) {
            if (support[k] < next) break; /* not ascending: caught below */
            next = support[k] + 1;
            const int64_t c = support[k] - begin;
            j->column[k] = (uint32_t)(a->transform == DCT ? j->plan.slot[c] : c) * LANES;
        }
        if (a->transform) j->source[r] = (uint32_t)source_of(j, r);
    }
    if (last == a->m) j->start[a->m] = (uint32_t)a->nnz;
    if (k != seam(support, a->nnz, last * a->n, a->m * a->n)) atomic_store(&j->unsorted, 1);
}

LOCAL int make_index(job *j)
{
    j->start = dctps_take(sizeof(uint32_t) * (size_t)(j->a.nnz + 2 * j->a.m + 1));
    if (!j->start) return NO_MEMORY;
    j->source = j->start + j->a.m + 1;
    j->column = j->source + j->a.m;
    int failed = dctps_parallel(index_items(j), j->a.threads, 0, index_rows, j);
    return atomic_load(&j->unsorted) ? BAD_SUPPORT : failed;
}

/* ---- tiles ---- */

/* A tile's rows of bfloat16 are widened to float32 for the time of the tile. */
LOCAL int64_t wide_stride(const job *j) { return (j->a.n > j->a.m ? j->a.n : j->a.m) + LANES; }
LOCAL int64_t wide_floats(const job *j) { return j->a.half ? wide_stride(j) * LANES : 0; }

/* The rows of a tile of x or g, `size` numbers each; those beyond the batch are `absent`. */
LOCAL void tile_rows(const job *j, const float **row, const void *x, int64_t stride, int64_t size, int64_t tile,
                     const float *absent, float *wide)
{
    const int64_t left = j->a.batch - tile * LANES;
    for (int i = 0; i < LANES; i++) {
        const int64_t from = (tile * LANES + i) * stride;
        row[i] = i >= left ? absent : j->a.half ? wide + i * wide_stride(j) : (const float *)x + from;
        if (j->a.half && i < left) widen(wide + i * wide_stride(j), (const uint16_t *)x + from, size);
    }
}

/* Where the rows of a tile of y or dx, `size` numbers each, are to be written; returns how many there are. */
LOCAL int rows_out(const job *j, float **row, void *y, int64_t size, int64_t tile, float *wide)
{
    const int64_t left = j->a.batch - tile * LANES;
    for (int i = 0; i < LANES && i < left; i++)
        row[i] = j->a.half ? wide + i * wide_stride(j) : (float *)y + (tile * LANES + i) * size;
    return left < LANES ? (int)left : LANES;
}

/* Round columns first..last of those rows, once they are written. */
LOCAL void round_rows(const job *j, float *const *row, void *y, int64_t size, int64_t tile, int rows, int64_t first,
                      int64_t last)
{
    for (int i = 0; j->a.half && i < rows; i++)
        narrow((uint16_t *)y + (tile * LANES + i) * size + first, row[i] + first, last - first);
}

/* The lines that will be written next: more rows than the processor's own prefetching follows. */
INLINE void prefetch_rows(float *const *row, int64_t at, int64_t size, int rows)
{
    if (at < size)
        for (int i = 0; i < rows; i++) __builtin_prefetch(row[i] + at, 1);
}

INLINE V column_of(const float *const *row, int64_t c)
{
    V v = {0};
    for (int i = 0; i < LANES; i++) v[i] = row[i][c];
    return v;
}

/* x's columns to their vectors in the tile, zeros where the transform is longer. */
LOCAL void tile_in(const job *j, const float *const *row, float *t)
{
    const int64_t n = j->a.n;
    const int32_t *slot = j->plan.slot;
    const V zero = {0};
    float *out[LANES];
    int64_t c = 0;
    if (j->a.transform == DCT) {
        for (; c + LANES <= n; c += LANES) {
            for (int i = 0; i < LANES; i++) out[i] = t + (int64_t)slot[c + i] * LANES;
            transpose_in(row, c, out);
        }
        for (; c < n; c++) store(t + (int64_t)slot[c] * LANES, column_of(row, c));
        for (; c < j->a.q; c++) store(t + (int64_t)slot[c] * LANES, zero);
        if (j->a.q & 1)
            for (c = 0; c < j->a.q; c++) store(t + (2 * c + 1) * LANES, zero);
        return;
    }
    for (; c + LANES <= n; c += LANES) {
        for (int i = 0; i < LANES; i++) out[i] = t + (c + i) * LANES;
        transpose_in(row, c, out);
    }
    for (; c < n; c++) store(t + c * LANES, column_of(row, c));
    for (; c < j->vectors; c++) store(t + c * LANES, zero);
}

/* The sign of input c in a round. */
INLINE float sign_of(const job *j, int64_t round, int64_t c)
{
    const int8_t *s = j->a.signs + round * j->a.sign_stride;
    return j->a.sign_stride > j->a.n ? (float)(s[c] * s[j->a.n]) : (float)s[c];
}

LOCAL int has_signs(const job *j, int64_t round)
{
    return j->a.signs && (j->a.transform == HADAMARD || round > 0);
}

/* All rounds' transforms of the tile t to z. */
LOCAL void transform(const job *j, const float *t, float *z)
{
    for (int64_t round = 0; round < j->a.rounds; round++, z += j->vectors * LANES) {
        const float *from = t;
        if (has_signs(j, round)) {
            if (j->vectors > j->a.n) memcpy(z, t, sizeof(float) * (size_t)(j->vectors * LANES));
            for (int64_t c = 0; c < j->a.n; c++) {
                const int64_t at = tile_slot(j, c) * LANES;
                store(z + at, sign_of(j, round, c) * load(t + at));
            }
            from = z;
        }
        if (j->a.transform == DCT) fft(&j->plan, from, z), spectrum(&j->plan, z);
        else hadamard(from, z, j->a.q);
    }
}

/* The transpose of `transform`, in place: its result is the first round's part of z. */
LOCAL void transform_adjoint(const job *j, float *z)
{
    for (int64_t round = 0; round < j->a.rounds; round++) {
        float *from = z + round * j->vectors * LANES;
        if (j->a.transform == DCT) spectrum_adjoint(&j->plan, from), fft_adjoint(&j->plan, from);
        else hadamard(from, from, j->a.q);
        if (!has_signs(j, round)) continue;
        for (int64_t c = 0; c < j->a.n; c++) {
            const int64_t at = tile_slot(j, c) * LANES;
            V v = sign_of(j, round, c) * load(from + at);
            store(z + at, round ? load(z + at) + v : v);
        }
    }
}

/* Tiles to a group: one stays in L2 best, more share the reading of S, where it has much to read; but some
 * groups for every thread to do. */
LOCAL void divide(job *j, int most)
{
    const int64_t sides = j->a.m + j->a.n;
    j->tiles = (j->a.batch + LANES - 1) / LANES;
    j->group = 2 * j->a.nnz < 5 * sides ? 1 : j->a.nnz < 12 * sides || most == 2 ? 2 : most;
    while (j->group > 1 && j->tiles < 4 * j->group) j->group /= 2;
    j->groups = (j->tiles + j->group - 1) / j->group;
}

#endif
