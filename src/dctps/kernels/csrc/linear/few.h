/* Backward on few rows: one walk over S as it is stored. */
#ifndef DCTPS_LINEAR_FEW_H
#define DCTPS_LINEAR_FEW_H

#include "groups.h"

#define FEW_TILES 2          /* that are walked over together, with no index */

/* As `nonzeros`; a value's gradient is whole when it is left. Returns whether the support is sorted. */
INLINE int few_nonzeros(const job *j, const hot *h, int group, int need_x, int need_values)
{
    const linear_call *a = &j->a;
    const float *values = a->values;
    const int64_t *support = a->support;
    const int32_t *slot = a->transform == DCT ? j->plan.slot : NULL;
    float *by_values = a->grad_values;
    V waiting[LANES], g[FEW_TILES];
    int64_t k = 0;
    for (int64_t r = 0; r < a->m && k < a->nnz; r++) {
        const int64_t begin = r * a->n, end = begin + a->n;
        int64_t next = begin; /* position at least */
        for (int i = 0; i < group; i++) g[i] = load(h->g + i * h->g_step + r * LANES);
        for (; k < a->nnz && support[k] < end; k++) {
            if (support[k] < next) return 0;
            next = support[k] + 1;
            const int64_t column = support[k] - begin;
            const ptrdiff_t c = (slot ? slot[column] : column) * LANES;
            if (need_x)
                for (int i = 0; i < group; i++) {
                    float *to = h->z + i * h->z_step + c;
                    store(to, load(to) + values[k] * g[i]);
                }
            if (!need_values) continue;
            V sum = g[0] * load(h->x + c);
            for (int i = 1; i < group; i++) sum += g[i] * load(h->x + i * h->x_step + c);
            waiting[k % LANES] = sum;
            if (k % LANES < LANES - 1) continue;
            const V sums = lane_sums(waiting);
            memcpy(by_values + k + 1 - LANES, &sums, sizeof sums);
        }
    }
    if (need_values && k % LANES) {
        for (int i = (int)(k % LANES); i < LANES; i++) waiting[i] = (V){0};
        const V sums = lane_sums(waiting);
        for (int i = 0; i < k % LANES; i++) by_values[k / LANES * LANES + i] = sums[i];
    }
    return k == a->nnz;
}

typedef struct {
    const job *j;
    hot h;
    float *bias; /* for each tile (m) */
    double by_alpha[FEW_TILES];
} few;

static hot one_tile(const few *f, int64_t tile)
{
    hot h = f->h;
    h.group = 1;
    h.g += tile * h.g_step, h.x += tile * h.x_step, h.z += tile * h.z_step;
    h.wide += tile * wide_floats(f->j);
    return h;
}

static void few_in(void *argument, int64_t tile, void *scratch)
{
    few *f = argument;
    const hot h = one_tile(f, tile);
    float *bias = f->j->a.grad_bias ? f->bias + tile * f->j->a.m : NULL;
    (void)scratch;
    if (bias) memset(bias, 0, sizeof(float) * (size_t)f->j->a.m);
    f->by_alpha[tile] = group_in(f->j, &h, tile, bias);
}

static void few_out(void *argument, int64_t tile, void *scratch)
{
    const few *f = argument;
    const hot h = one_tile(f, tile);
    (void)scratch;
    group_out(f->j, &h, tile);
}

static int backward_few(job *j)
{
    const linear_call *a = &j->a;
    const int64_t tiles = j->group = j->tiles;
    float *memory = dctps_take(sizeof(float) * (hot_floats(j) + (size_t)((tiles + 1) * a->m)));
    if (!memory) return NO_MEMORY;
    few f = {.j = j, .h = hot_of(j, memory), .bias = memory + hot_floats(j)};
    f.h.group = tiles;
    j->source = (uint32_t *)(f.bias + tiles * a->m);
    for (int64_t r = 0; a->transform && r < a->m; r++) j->source[r] = (uint32_t)source_of(j, r);
    int failed = dctps_parallel(tiles, a->threads, 0, few_in, &f), sorted = 1;
    switch (4 * (tiles > 1) + 2 * needs_x(j) + needs_values(j)) {
    case 1: sorted = few_nonzeros(j, &f.h, 1, 0, 1); break;
    case 2: sorted = few_nonzeros(j, &f.h, 1, 1, 0); break;
    case 3: sorted = few_nonzeros(j, &f.h, 1, 1, 1); break;
    case 5: sorted = few_nonzeros(j, &f.h, 2, 0, 1); break;
    case 6: sorted = few_nonzeros(j, &f.h, 2, 1, 0); break;
    case 7: sorted = few_nonzeros(j, &f.h, 2, 1, 1); break;
    }
    if (!failed) failed = dctps_parallel(tiles, a->threads, 0, few_out, &f);
    for (int64_t r = 0; a->grad_bias && r < a->m; r++)
        a->grad_bias[r] = tiles > 1 ? f.bias[r] + f.bias[a->m + r] : f.bias[r];
    if (a->grad_alpha) *a->grad_alpha = (float)(tiles > 1 ? f.by_alpha[0] + f.by_alpha[1] : f.by_alpha[0]);
    dctps_give(memory);
    return sorted ? failed : BAD_SUPPORT;
}

#endif
