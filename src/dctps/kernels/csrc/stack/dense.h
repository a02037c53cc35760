/* Stacked networks: a product with a dense W, and its transposes. */
#ifndef DCTPS_STACK_DENSE_H
#define DCTPS_STACK_DENSE_H

#include "job.h"

/* acc[i] += sum over t of weight[at_w[t] + i * row] * x[at_x[t]], for `count` rows of weights. */
INLINE void multiply(const float *weight, const int32_t *at_w, int64_t row, const float *x, const int32_t *at_x,
                     int64_t terms, V acc[M][G], const int count)
{
    for (int64_t t = 0; t < terms; t++) {
        const float *from = x + (int64_t)at_x[t] * CHUNK, *w = weight + (at_w ? at_w[t] : t);
        V in[G];
        for (int j = 0; j < G; j++) in[j] = load(from + j * LANES);
        for (int i = 0; i < count; i++) {
            const float by = w[i * row];
            for (int j = 0; j < G; j++) acc[i][j] += by * in[j];
        }
    }
}

/* y = W x + b, and its positive part if asked */
INLINE void dense_rows(const operation *op, const float *w, const float *bias, const float *x, float *y, int64_t o,
                       int64_t p, int relu, const int count)
{
    const int64_t n = inputs_of(op), pixels = pixels_out(op);
    const int64_t from = p / op->out_columns * op->columns + p % op->out_columns;
    for (int s = 0; s < CHUNK; s += STEP) {
        V acc[M][G];
        for (int i = 0; i < count; i++)
            for (int j = 0; j < G; j++) acc[i][j] = (V){0} + (bias ? bias[o + i] : 0.0f);
        multiply(w + o * n, NULL, n, x + from * CHUNK + s, op->taps, n, acc, count);
        for (int i = 0; i < count; i++)
            for (int j = 0; j < G; j++)
                store(y + ((o + i) * pixels + p) * CHUNK + s + j * LANES, relu ? positive(acc[i][j]) : acc[i][j]);
    }
}

static void dense_forward(const operation *op, const float *w, const float *bias, const float *x, float *y, int relu)
{
    for (int64_t p = 0; p < pixels_out(op); p++) {
        int64_t o = 0;
        for (; o + M <= op->outputs; o += M) dense_rows(op, w, bias, x, y, o, p, relu, M);
        for (; o + 2 <= op->outputs; o += 2) dense_rows(op, w, bias, x, y, o, p, relu, 2);
        for (; o < op->outputs; o++) dense_rows(op, w, bias, x, y, o, p, relu, 1);
    }
}

/* dx = scale W^T g; gives <W^T g, x> */
INLINE double dense_columns(const operation *op, const float *w, float scale, const float *g, const float *x, float *dx,
                            const space *sp, int64_t terms, int64_t c, int64_t q, const int count)
{
    const int64_t taps = taps_of(op), pixels = pixels_in(op);
    V dot[G] = {0};
    for (int s = 0; s < CHUNK; s += STEP) {
        V acc[M][G] = {0};
        multiply(w + c * taps, sp->at_w, taps, g + s, sp->at_g, terms, acc, count);
        for (int i = 0; i < count; i++)
            for (int j = 0; j < G; j++) {
                const int64_t at = ((c + i) * pixels + q) * CHUNK + s + j * LANES;
                if (x) dot[j] += acc[i][j] * load(x + at);
                store(dx + at, scale * acc[i][j]);
            }
    }
    double sum = 0;
    for (int j = 0; x && j < G; j++) sum += total(dot[j]);
    return sum;
}

static double dense_backward(const operation *op, const float *w, float scale, const float *g, const float *x, float *dx,
                             const space *sp)
{
    const int64_t n = inputs_of(op), pixels = pixels_out(op);
    double dot = 0;
    for (int64_t row = 0, q = 0; row < op->rows; row++) {
        const int64_t i0 = row < op->out_rows ? 0 : row - op->out_rows + 1;
        const int64_t i1 = row < op->window[0] ? row + 1 : op->window[0];
        for (int64_t column = 0; column < op->columns; column++, q++) {
            const int64_t j0 = column < op->out_columns ? 0 : column - op->out_columns + 1;
            const int64_t j1 = column < op->window[1] ? column + 1 : op->window[1];
            int64_t terms = 0, c = 0;
            for (int64_t o = 0; o < op->outputs; o++)
                for (int64_t i = i0; i < i1; i++)
                    for (int64_t j = j0; j < j1; j++, terms++) {
                        sp->at_g[terms] = (int32_t)(o * pixels + (row - i) * op->out_columns + column - j);
                        sp->at_w[terms] = (int32_t)(o * n + i * op->window[1] + j);
                    }
            for (; c + M <= op->channels; c += M) dot += dense_columns(op, w, scale, g, x, dx, sp, terms, c, q, M);
            for (; c + 2 <= op->channels; c += 2) dot += dense_columns(op, w, scale, g, x, dx, sp, terms, c, q, 2);
            for (; c < op->channels; c++) dot += dense_columns(op, w, scale, g, x, dx, sp, terms, c, q, 1);
        }
    }
    return dot;
}

/* dW += g x^T: a block of `count` rows and K columns, over a row of pixels */
INLINE void outer_block(const operation *op, const float *g, const float *x, float *dw, int64_t o, int64_t k,
                        int64_t row, const int count, const int width)
{
    const int64_t n = inputs_of(op), pixels = pixels_out(op);
    V acc[M][K] = {0}, flat[M * K + LANES] = {0};
    const float *from[K];
    for (int b = 0; b < width; b++) from[b] = x + (op->taps[k + b] + row * op->columns) * CHUNK;
    const float *by = g + (o * pixels + row * op->out_columns) * CHUNK;
    for (int64_t at = 0; at < op->out_columns * CHUNK; at += LANES) {
        V in[K];
        for (int b = 0; b < width; b++) in[b] = load(from[b] + at);
        for (int i = 0; i < count; i++) {
            const V gi = load(by + i * pixels * CHUNK + at);
            for (int b = 0; b < width; b++) acc[i][b] += gi * in[b];
        }
    }
    for (int i = 0; i < count; i++)
        for (int b = 0; b < width; b++) flat[i * width + b] = acc[i][b];
    for (int first = 0; first < count * width; first += LANES) {
        const V sums = lane_sums(flat + first);
        for (int i = first; i < first + LANES && i < count * width; i++)
            dw[(o + i / width) * n + k + i % width] += sums[i - first];
    }
}

static void dense_outer(const operation *op, const float *g, const float *x, float *dw)
{
    const int64_t n = inputs_of(op);
    for (int64_t row = 0; row < op->out_rows; row++) {
        int64_t o = 0;
        for (; o + M <= op->outputs; o += M) {
            int64_t k = 0;
            for (; k + K <= n; k += K) outer_block(op, g, x, dw, o, k, row, M, K);
            for (; k < n; k++) outer_block(op, g, x, dw, o, k, row, M, 1);
        }
        for (; o < op->outputs; o++) {
            int64_t k = 0;
            for (; k + K <= n; k += K) outer_block(op, g, x, dw, o, k, row, 1, K);
            for (; k < n; k++) outer_block(op, g, x, dw, o, k, row, 1, 1);
        }
    }
}

#endif
