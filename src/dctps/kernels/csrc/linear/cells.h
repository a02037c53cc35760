/* Backward: S's nonzeros sorted into cells, and the walk over them. */
#ifndef DCTPS_LINEAR_CELLS_H
#define DCTPS_LINEAR_CELLS_H

#include "index.h"

#define CELL_BYTES (16 << 10) /* of x, and of z, in a cell: together in L1 */
#define STRIPES 8            /* of rows, each sorted into cells by one thread */
#define RUN 5                /* nonzeros in a column from which on it is worth a cell of its own */

typedef struct {
    int64_t group;      /* tiles here */
    float *g, *x, *z;   /* tiles of the group: g (m vectors), x and D^T g (in slots) */
    ptrdiff_t g_step, x_step, z_step;
    float *absent;      /* a row of zeros */
    float *wide;        /* of a tile of bfloat16, see `tile_rows` */
    float *values;      /* this part's sums for the values in the order of the cells, to be added to */
} hot;

/* Sort the nonzeros of one stripe of rows into its cells, stably. */
static void sort_stripe(void *argument, int64_t stripe, void *scratch)
{
    const job *j = argument;
    const float *values = j->a.values;
    const int64_t first = stripe * j->stripe, end = first + j->stripe < j->a.m ? first + j->stripe : j->a.m;
    uint32_t *cell = j->cell + stripe * j->blocks, *next = scratch;
    const int shift = j->block_shift;
    memset(next, 0, sizeof(uint32_t) * (size_t)j->blocks);
    for (uint32_t k = j->start[first]; k < j->start[end]; k++) next[j->column[k] >> shift]++;
    for (int64_t b = 0, at = j->start[first]; b < j->blocks; b++) {
        cell[b] = (uint32_t)at;
        at += next[b];
        next[b] = cell[b];
    }
    for (int64_t r = first; r < end; r++)
        for (uint32_t k = j->start[r]; k < j->start[r + 1]; k++) {
            const uint32_t c = j->column[k], p = next[c >> shift]++;
            j->entry[p] = (entry){(uint16_t)(r - first), (uint16_t)((c & ((1u << shift) - 1)) / LANES), k, values[k]};
        }
}

/* The nonzeros by cells, of which g's, x's and z's vectors fit into the caches together. */
static int make_cells(job *j)
{
    const int64_t nnz = j->a.nnz;
    int block = CELL_BYTES / (int)sizeof(float) / LANES / (int)j->group;
    j->block_shift = __builtin_ctz(LANES);
    j->stripes = nnz < INDEX_CHUNK ? 1 : STRIPES;
    j->by_column = nnz > RUN * j->vectors;
    if (j->by_column) {
        while (j->stripes > 2 && nnz < 2 * RUN * j->stripes * j->vectors) j->stripes /= 2;
    } else {
        while (block > 1) block /= 2, j->block_shift++;
    }
    while ((j->stripe = (j->a.m + j->stripes - 1) / j->stripes) > 1 << 16) j->stripes *= 2;
    j->stripes = (j->a.m + j->stripe - 1) / j->stripe;
    j->blocks = ((j->vectors * LANES - 1) >> j->block_shift) + 1;
    j->cell = dctps_take(sizeof(uint32_t) * (size_t)(j->stripes * j->blocks + 1) + sizeof(entry) * (size_t)nnz);
    if (!j->cell) return NO_MEMORY;
    j->entry = (entry *)(j->cell + j->stripes * j->blocks + 1);
    j->cell[j->stripes * j->blocks] = (uint32_t)nnz;
    return dctps_parallel(j->stripes, j->a.threads, sizeof(uint32_t) * (size_t)j->blocks, sort_stripe, j);
}

INLINE void add_sums(const V *waiting, float *to)
{
    V old, sums = lane_sums(waiting);
    memcpy(&old, to, sizeof old);
    old += sums;
    memcpy(to, &old, sizeof old);
}

/* As `nonzeros`, for cells of one column, whose vectors stay in registers. */
INLINE void nonzeros_by_column(const job *j, const hot *h, int group, int need_x, int need_values)
{
    V waiting[LANES];
    uint32_t p = 0;
    for (int64_t stripe = 0; stripe < j->stripes; stripe++) {
        const float *rows = h->g + stripe * j->stripe * LANES;
        const uint32_t *end = j->cell + stripe * j->blocks + 1;
        for (int64_t c = 0; c < j->blocks; c++) {
            V x[MAX_GROUP], z[MAX_GROUP];
            if (p == end[c]) continue;
            for (int i = 0; i < group; i++) {
                if (need_values) x[i] = load(h->x + i * h->x_step + c * LANES);
                if (need_x) z[i] = load(h->z + i * h->z_step + c * LANES);
            }
            for (; p < end[c]; p++) {
                const float *row = rows + j->entry[p].row * LANES, v = j->entry[p].value;
                V sum = {0};
                for (int i = 0; i < group; i++) {
                    const V g = load(row + i * h->g_step);
                    if (need_x) z[i] += v * g;
                    if (need_values) sum += g * x[i];
                }
                if (need_values) waiting[p % LANES] = sum;
                if (need_values && p % LANES == LANES - 1) add_sums(waiting, h->values + (p + 1 - LANES));
            }
            for (int i = 0; need_x && i < group; i++) store(h->z + i * h->z_step + c * LANES, z[i]);
        }
    }
    if (need_values && p % LANES) {
        for (int i = (int)(p % LANES); i < LANES; i++) waiting[i] = (V){0};
        add_sums(waiting, h->values + p / LANES * LANES);
    }
}

/* dz[c] += v g[r] and dv += <g[r], x[c]> over the nonzeros; the latter's lanes are summed LANES at a time. */
INLINE void nonzeros(const job *j, const hot *h, int group, int need_x, int need_values)
{
    V waiting[LANES];
    uint32_t p = 0;
    for (int64_t cell = 0; cell < j->stripes * j->blocks; cell++) {
        const uint32_t end = j->cell[cell + 1];
        const float *rows = h->g + cell / j->blocks * j->stripe * LANES;
        const ptrdiff_t block = (cell % j->blocks) << j->block_shift;
        for (; p < end; p++) {
            const float *row = rows + j->entry[p].row * LANES;
            const ptrdiff_t c = block + j->entry[p].column * LANES;
            V g[MAX_GROUP];
            for (int i = 0; i < group; i++) g[i] = load(row + i * h->g_step);
            if (need_x) {
                const float v = j->entry[p].value;
                for (int i = 0; i < group; i++) {
                    float *to = h->z + i * h->z_step + c;
                    store(to, load(to) + v * g[i]);
                }
            }
            if (need_values) {
                V sum = g[0] * load(h->x + c);
                for (int i = 1; i < group; i++) sum += g[i] * load(h->x + i * h->x_step + c);
                waiting[p % LANES] = sum;
                if (p % LANES == LANES - 1) add_sums(waiting, h->values + (p + 1 - LANES));
            }
        }
    }
    if (need_values && p % LANES) {
        for (int i = (int)(p % LANES); i < LANES; i++) waiting[i] = (V){0};
        add_sums(waiting, h->values + p / LANES * LANES);
    }
}

INLINE void nonzeros_of(const job *j, const hot *h, int need_x, int need_values)
{
    const int by_column = j->by_column ? 4 : 0;
    switch (by_column + h->group) {
    case 1: nonzeros(j, h, 1, need_x, need_values); break;
    case 2: nonzeros(j, h, 2, need_x, need_values); break;
    case 3: nonzeros(j, h, 3, need_x, need_values); break;
    case 4: nonzeros(j, h, 4, need_x, need_values); break;
    case 5: nonzeros_by_column(j, h, 1, need_x, need_values); break;
    case 6: nonzeros_by_column(j, h, 2, need_x, need_values); break;
    case 7: nonzeros_by_column(j, h, 3, need_x, need_values); break;
    default: nonzeros_by_column(j, h, 4, need_x, need_values);
    }
}

#endif
