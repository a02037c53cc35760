/* The derivatives of y = alpha D x + S x + b: D^T g, and one walk over S's nonzeros for S^T g and <g[r], x[c]>. */
#include "few.h"

static void backward_part(void *argument, int64_t part, void *scratch)
{
    const job *j = argument;
    const linear_call *a = &j->a;
    const int64_t first = j->groups * part / j->parts, last = j->groups * (part + 1) / j->parts;
    hot h = hot_of(j, scratch);
    float *bias = a->grad_bias ? j->part_bias + part * a->m : NULL;
    double by_alpha = 0;
    if (bias) memset(bias, 0, sizeof(float) * (size_t)a->m);
    if (needs_values(j)) {
        h.values = j->part_values + part * j->padded;
        memset(h.values, 0, sizeof(float) * (size_t)j->padded);
    }
    for (int64_t at = first; at < last; at++) {
        const int64_t tile = at * j->group;
        h.group = j->tiles - tile < j->group ? j->tiles - tile : j->group;
        by_alpha += group_in(j, &h, tile, bias);
        if (needs_x(j) && needs_values(j)) nonzeros_of(j, &h, 1, 1);
        else if (needs_values(j)) nonzeros_of(j, &h, 0, 1);
        else if (needs_x(j) && a->nnz) nonzeros_of(j, &h, 1, 0);
        group_out(j, &h, tile);
    }
    if (a->grad_alpha) j->part_alpha[part] = by_alpha;
}

/* Sums over the parts, in their order. */
static void add_parts(void *argument, int64_t item, void *scratch)
{
    const job *j = argument;
    const int64_t items = index_items(j), nnz = j->a.grad_values ? j->a.nnz : 0, m = j->a.grad_bias ? j->a.m : 0;
    (void)scratch;
    for (int64_t k = nnz * item / items; k < nnz * (item + 1) / items; k++) {
        float sum = j->part_values[k];
        for (int64_t p = 1; p < j->parts; p++) sum += j->part_values[p * j->padded + k];
        j->a.grad_values[j->entry[k].from] = sum;
    }
    for (int64_t r = m * item / items; r < m * (item + 1) / items; r++) {
        float sum = j->part_bias[r];
        for (int64_t p = 1; p < j->parts; p++) sum += j->part_bias[p * m + r];
        j->a.grad_bias[r] = sum;
    }
}

/* Parts of the batch, each with sums of its own: many, but not so many that the sums outweigh the rows. */
static void divide_sums(job *j)
{
    const linear_call *a = &j->a;
    j->parts = j->groups;
    if (a->grad_values && a->nnz) {
        int64_t most = a->batch * (a->m + a->n) / a->nnz;
        most = most < 4 ? 4 : most;
        if (j->parts > most) j->parts = most;
    }
    if (j->parts > 64 && (a->grad_values || a->grad_bias)) j->parts = 64;
}

EXPORT int DPS(linear_backward)(const linear_call *a)
{
    job j = {.a = *a};
    read_plan(&j);
    int failed = check(&j);
    if (failed) return failed;
    divide(&j, MAX_GROUP);
    if (j.tiles <= FEW_TILES) return backward_few(&j);
    divide_sums(&j);
    j.padded = (a->nnz + LANES - 1) / LANES * LANES;
    const int64_t sums = (a->grad_values ? j.padded : 0) + (a->grad_bias ? a->m : 0);
    double *sums_memory = dctps_take(sizeof(double) * (size_t)j.parts + sizeof(float) * (size_t)(sums * j.parts));
    failed = sums_memory ? make_index(&j) : NO_MEMORY;
    if (!failed) failed = make_cells(&j);
    if (!failed) {
        j.part_alpha = sums_memory;
        j.part_values = (float *)(sums_memory + j.parts);
        j.part_bias = j.part_values + (a->grad_values ? j.padded * j.parts : 0);
        failed = dctps_parallel(j.parts, a->threads, sizeof(float) * hot_floats(&j), backward_part, &j);
    }
    if (!failed && sums) failed = dctps_parallel(index_items(&j), a->threads, 0, add_parts, &j);
    if (!failed && a->grad_alpha) {
        double by_alpha = 0;
        for (int64_t p = 0; p < j.parts; p++) by_alpha += j.part_alpha[p];
        *a->grad_alpha = (float)by_alpha;
    }
    dctps_give(j.start);
    dctps_give(j.cell);
    dctps_give(sums_memory);
    return failed;
}
