/* Stacked networks: the pools, and the loss. */
#ifndef DCTPS_STACK_POOL_H
#define DCTPS_STACK_POOL_H

#include "job.h"

static void pool_forward(const operation *op, const float *x, float *y)
{
    const float scale = 1.0f / (float)taps_of(op);
    for (int64_t c = 0; c < op->channels; c++)
        for (int64_t row = 0; row < op->out_rows; row++)
            for (int64_t column = 0; column < op->out_columns; column++, y += CHUNK) {
                const int64_t first = row * op->window[0] * op->columns + column * op->window[1];
                const float *from = x + (c * pixels_in(op) + first) * CHUNK;
                for (int s = 0; s < CHUNK; s += LANES) {
                    V sum = {0};
                    for (int64_t i = 0; i < op->window[0]; i++)
                        for (int64_t j = 0; j < op->window[1]; j++)
                            sum += load(from + (i * op->columns + j) * CHUNK + s);
                    store(y + s, scale * sum);
                }
            }
}

/* The gradient before the pool; where `x`, what went in, is a positive part, that part's too. */
static void pool_backward(const operation *op, const float *g, const float *x, float *dx)
{
    const float scale = 1.0f / (float)taps_of(op);
    if (op->out_rows * op->window[0] < op->rows || op->out_columns * op->window[1] < op->columns)
        memset(dx, 0, sizeof(float) * (size_t)(op->channels * pixels_in(op) * CHUNK));
    for (int64_t c = 0; c < op->channels; c++)
        for (int64_t row = 0; row < op->out_rows; row++)
            for (int64_t column = 0; column < op->out_columns; column++, g += CHUNK) {
                const int64_t first = row * op->window[0] * op->columns + column * op->window[1];
                for (int64_t i = 0; i < op->window[0]; i++)
                    for (int64_t j = 0; j < op->window[1]; j++) {
                        const int64_t at = (c * pixels_in(op) + first + i * op->columns + j) * CHUNK;
                        for (int s = 0; s < CHUNK; s += LANES) {
                            const V v = scale * load(g + s);
                            store(dx + at + s, x ? where_positive(load(x + at + s), v) : v);
                        }
                    }
            }
}

/* Cross-entropy of logits (classes, CHUNK), and its gradient's share of a mean over all images. */
static void head(const stack_call *a, const float *logits, float *g, int64_t chunk, double *loss, int64_t *correct)
{
    const int64_t first = chunk * CHUNK, here = a->images - first < CHUNK ? a->images - first : CHUNK;
    memset(g, 0, sizeof(float) * (size_t)(a->classes * CHUNK));
    for (int64_t b = 0; b < here; b++) {
        const int64_t label = a->labels[first + b];
        int64_t best = 0;
        for (int64_t k = 1; k < a->classes; k++)
            if (logits[k * CHUNK + b] > logits[best * CHUNK + b]) best = k;
        const float most = logits[best * CHUNK + b];
        float sum = 0;
        for (int64_t k = 0; k < a->classes; k++) sum += g[k * CHUNK + b] = expf(logits[k * CHUNK + b] - most);
        *loss += (double)(logf(sum) + most - logits[label * CHUNK + b]);
        *correct += best == label;
        const float scale = 1 / (sum * (float)a->images);
        for (int64_t k = 0; k < a->classes; k++) g[k * CHUNK + b] *= scale;
        g[label * CHUNK + b] -= 1 / (float)a->images;
    }
}

#endif
