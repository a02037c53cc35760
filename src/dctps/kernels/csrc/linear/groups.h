/* Backward: groups of tiles, g and x in, dx out, with what they say of biases and alpha. */
#ifndef DCTPS_LINEAR_GROUPS_H
#define DCTPS_LINEAR_GROUPS_H

#include "cells.h"

/* g's columns to the tile, and to their frequencies in z; bias sums on the way. */
static void gradient_in(const job *j, const float *const *row, float *t, float *z, float *bias)
{
    const int64_t m = j->a.m;
    for (int64_t r = 0; r < m; r += LANES) {
        const int count = m - r < LANES ? (int)(m - r) : LANES;
        V v[LANES];
        if (count == LANES)
            transpose(row, r, v);
        else
            for (int i = 0; i < LANES; i++) v[i] = i < count ? column_of(row, r + i) : (V){0};
        for (int i = 0; t && i < count; i++) store(t + (r + i) * LANES, v[i]);
        for (int i = 0; z && i < count; i++) store(z + j->source[r + i], v[i]);
        if (!bias) continue;
        const V sums = lane_sums(v);
        for (int i = 0; i < count; i++) bias[r + i] += sums[i];
    }
}

/* z = alpha z on the inputs; returns <z, x> of z as it was, summed in float64. */
static double scale_and_dot(const job *j, float *z, const float *x, int need_x)
{
    const float alpha = j->alpha * j->scale;
    const V zero = {0};
    double total = 0;
    for (int64_t start = 0; start < j->vectors; start += 64) {
        const int64_t end = start + 64 < j->vectors ? start + 64 : j->vectors;
        V sum = zero;
        for (int64_t i = start; i < end; i++) {
            V v = load(z + i * LANES);
            if (x) sum += v * load(x + i * LANES);
            if (need_x) store(z + i * LANES, alpha * v);
        }
        if (x)
            for (int i = 0; i < LANES; i++) total += sum[i];
    }
    return total * j->scale;
}

static void tile_out(const job *j, const float *z, float *const *row, int rows)
{
    const int64_t n = j->a.n;
    for (int64_t c = 0; c < n; c += LANES) {
        const int count = n - c < LANES ? (int)(n - c) : LANES;
        V v[LANES];
        prefetch_rows(row, c + AHEAD, n, rows);
        for (int i = 0; i < count; i++) v[i] = load(z + tile_slot(j, c + i) * LANES);
        if (count == LANES)
            transpose_out(v, row, c, rows);
        else
            for (int i = 0; i < rows; i++)
                for (int l = 0; l < count; l++) row[i][c + l] = v[l][i];
    }
}

static int needs_x(const job *j) { return j->a.grad_x != 0; }
static int needs_values(const job *j) { return j->a.grad_values && j->a.nnz; }
static int is_transformed(const job *j) { return j->a.transform && (j->a.grad_x || j->a.grad_alpha); }

/* Floats of the scratch of a group: its tiles and a row of zeros. */
static size_t hot_floats(const job *j)
{
    const linear_call *a = &j->a;
    const int64_t tile = (a->m + 1) + (j->vectors + 1) + (j->vectors * a->rounds + 1);
    return (size_t)(j->group * (tile * LANES + wide_floats(j)) + (a->n > a->m ? a->n : a->m));
}

static hot hot_of(const job *j, float *scratch)
{
    const linear_call *a = &j->a;
    hot h = {.g_step = (a->m + 1) * LANES, .x_step = (j->vectors + 1) * LANES, .z_step = (j->vectors * a->rounds + 1) * LANES};
    h.g = scratch, h.x = h.g + j->group * h.g_step, h.z = h.x + j->group * h.x_step;
    h.wide = h.z + j->group * h.z_step;
    h.absent = h.wide + j->group * wide_floats(j);
    if (a->batch % LANES) memset(h.absent, 0, sizeof(float) * (size_t)(a->n > a->m ? a->n : a->m));
    return h;
}

/* The tiles of g, x and z = alpha D^T g from `tile` on; adds to the sums for bias, returns that for alpha. */
static double group_in(const job *j, const hot *h, int64_t tile, float *bias)
{
    const linear_call *a = &j->a;
    const int transformed = is_transformed(j), hot_g = a->nnz && (needs_x(j) || needs_values(j));
    double by_alpha = 0;
    for (int64_t i = 0; i < h->group; i++) {
        const float *in[LANES];
        float *x = h->x + i * h->x_step, *z = h->z + i * h->z_step;
        if (needs_values(j) || a->grad_alpha) {
            tile_rows(j, in, a->x, a->x_stride, a->n, tile + i, h->absent, h->wide + i * wide_floats(j));
            tile_in(j, in, x);
        }
        if (!transformed && needs_x(j)) memset(z, 0, sizeof(float) * (size_t)(j->vectors * LANES));
        if (transformed && a->m < j->vectors * a->rounds)
            memset(z, 0, sizeof(float) * (size_t)(j->vectors * a->rounds * LANES));
        tile_rows(j, in, a->g, a->g_stride, a->m, tile + i, h->absent, h->wide + i * wide_floats(j));
        gradient_in(j, in, hot_g ? h->g + i * h->g_step : NULL, transformed ? z : NULL, bias);
        if (!transformed) continue;
        transform_adjoint(j, z);
        by_alpha += scale_and_dot(j, z, a->grad_alpha ? x : NULL, needs_x(j));
    }
    return by_alpha;
}

static void group_out(const job *j, const hot *h, int64_t tile)
{
    for (int64_t i = 0; needs_x(j) && i < h->group; i++) {
        float *row[LANES];
        const int rows = rows_out(j, row, j->a.grad_x, j->a.n, tile + i, h->wide + i * wide_floats(j));
        tile_out(j, h->z + i * h->z_step, row, rows);
        round_rows(j, row, j->a.grad_x, j->a.n, tile + i, rows, 0, j->a.n);
    }
}

#endif
