/* Stacked networks: products with S over its nonzeros, and the gradients of biases and alpha. */
#ifndef DCTPS_STACK_SPARSE_H
#define DCTPS_STACK_SPARSE_H

#include "job.h"

/* y = alpha * product + S x + b, the product D x if there is one */
static void sparse_forward(const operation *op, const layer *l, const float *product, const float *x, float *y, int relu)
{
    const int64_t pixels = pixels_out(op);
    const float alpha = product ? *l->alpha : 0;
    for (int64_t o = 0; o < op->outputs; o++)
        for (int64_t p = 0; p < pixels; p++) {
            const float *from = x + (p / op->out_columns * op->columns + p % op->out_columns) * CHUNK;
            const int64_t to = (o * pixels + p) * CHUNK;
            for (int s = 0; s < CHUNK; s += STEP) {
                V acc[G];
                for (int j = 0; j < G; j++) {
                    acc[j] = (V){0} + (l->bias ? l->bias[o] : 0.0f);
                    if (product) acc[j] += alpha * load(product + to + s + j * LANES);
                }
                for (int64_t k = l->start[o]; k < l->start[o + 1]; k++) {
                    const float *in = from + (int64_t)l->place[k] * CHUNK + s, by = l->values[k];
                    for (int j = 0; j < G; j++) acc[j] += by * load(in + j * LANES);
                }
                for (int j = 0; j < G; j++) store(y + to + s + j * LANES, relu ? positive(acc[j]) : acc[j]);
            }
        }
}

/* dx += S^T g, or = where there is nothing yet: at each pixel the nonzeros of its channel that read it. */
static void sparse_backward(const operation *op, const layer *l, const float *g, float *dx, const space *sp, int add)
{
    const int64_t pixels = pixels_out(op), wide = op->out_columns;
    for (int64_t c = 0; c < op->channels; c++)
        for (int64_t row = 0; row < op->rows; row++) {
            int64_t terms = 0; /* nonzeros that read this row */
            for (int64_t k = l->column[c]; k < l->column[c + 1]; k++) {
                const reader *by = l->readers + k;
                const int64_t i = row - by->row;
                if (i < 0 || i >= op->out_rows) continue;
                sp->at_g[terms] = (int32_t)(by->output * pixels + i * wide - by->column);
                sp->at_w[terms] = by->column;
                sp->by[terms++] = l->values[by->nonzero];
            }
            for (int64_t column = 0; column < op->columns; column++, dx += CHUNK) {
                const int all = column >= op->window[1] - 1 && column < wide;
                for (int s = 0; s < CHUNK; s += STEP) {
                    const float *from = g + column * CHUNK + s;
                    V acc[G] = {0};
                    for (int j = 0; add && j < G; j++) acc[j] = load(dx + s + j * LANES);
                    for (int64_t t = 0; t < terms; t++) {
                        if (!all && (uint64_t)(column - sp->at_w[t]) >= (uint64_t)wide) continue;
                        const float *in = from + (int64_t)sp->at_g[t] * CHUNK, by = sp->by[t];
                        for (int j = 0; j < G; j++) acc[j] += by * load(in + j * LANES);
                    }
                    for (int j = 0; j < G; j++) store(dx + s + j * LANES, acc[j]);
                }
            }
        }
}

/* sum[k] += g x for `count` nonzeros of a row of S, over a row of pixels. */
INLINE void outer_rows(const float *g, const float *x, const int32_t *place, int64_t wide, V *sum, const int count)
{
    V acc[2][G] = {0};
    for (int64_t at = 0; at < wide; at += STEP)
        for (int j = 0; j < G; j++) {
            const V by = load(g + at + j * LANES);
            for (int k = 0; k < count; k++) acc[k][j] += by * load(x + (int64_t)place[k] * CHUNK + at + j * LANES);
        }
    for (int k = 0; k < count; k++)
        for (int j = 0; j < G; j++) sum[k] += acc[k][j];
}

/* grad_values += (g x^T) at the support */
static void sparse_outer(const operation *op, const layer *l, const float *g, const float *x, V *sums)
{
    const int64_t pixels = pixels_out(op), wide = op->out_columns * CHUNK;
    for (int64_t o = 0; o < op->outputs; o++) {
        const int64_t first = l->start[o], count = l->start[o + 1] - first;
        memset(sums, 0, sizeof(V) * (size_t)(count + LANES));
        for (int64_t row = 0; row < op->out_rows; row++) {
            const float *by = g + o * pixels * CHUNK + row * wide, *from = x + row * op->columns * CHUNK;
            int64_t k = 0;
            for (; k + 2 <= count; k += 2) outer_rows(by, from, l->place + first + k, wide, sums + k, 2);
            for (; k < count; k++) outer_rows(by, from, l->place + first + k, wide, sums + k, 1);
        }
        for (int64_t k = 0; k < count; k += LANES) {
            const V found = lane_sums(sums + k);
            for (int64_t i = 0; i < LANES && k + i < count; i++) l->grad_values[first + k + i] += found[i];
        }
    }
}

/* What g says of the biases, and of alpha by the shared product D x: <g, D x>. */
static double sums_of(const operation *op, const layer *l, const float *product, const float *g)
{
    const int64_t numbers = pixels_out(op) * CHUNK;
    double by_alpha = 0;
    if (!l->grad_bias && !product) return 0;
    for (int64_t o = 0; o < op->outputs; o++) {
        V sum[G] = {0}, dot[G] = {0};
        for (int64_t at = 0; at < numbers; at += STEP)
            for (int j = 0; j < G; j++) {
                const V gj = load(g + o * numbers + at + j * LANES);
                sum[j] += gj;
                if (product) dot[j] += gj * load(product + o * numbers + at + j * LANES);
            }
        double by_bias = 0;
        for (int j = 0; j < G; j++) {
            by_bias += total(sum[j]);
            if (product) by_alpha += total(dot[j]);
        }
        if (l->grad_bias) l->grad_bias[o] += (float)by_bias;
    }
    return by_alpha;
}

#endif
