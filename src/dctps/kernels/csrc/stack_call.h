/* Stacked networks: the operations, layers and scratch of a call. */
#ifndef DCTPS_STACK_CALL_H
#define DCTPS_STACK_CALL_H

#include <math.h>

#include "vec.h"
#include "common/runtime.h"

#define CHUNK 64                 /* images */
#define G 4                      /* vectors of a register block, and */
#define M (LANES == 16 ? 6 : 3)  /* its rows: as many as registers hold, with the vectors that they are made from */
#define K 4                      /* columns of a block of dW */
#define STEP (G * LANES)         /* images of a block */
#define SPARSE 3                 /* S runs over its nonzeros where they are fewer than one in so many */

typedef int32_t I __attribute__((vector_size(4 * LANES)));

enum { WEIGHTED, RELU, POOL };

typedef struct {
    int64_t kind, channels, rows, columns;       /* of what goes in */
    int64_t outputs, out_rows, out_columns;      /* of what comes out */
    int64_t window_rows, window_columns;         /* of the kernel, or of the pool, whose windows do not overlap */
    const int32_t *taps;                         /* of a weighted layer: where input k of an output's is, in pixels */
} operation;

/* A nonzero, as its channel sees it. */
typedef struct {
    int32_t nonzero, output, row, column;
} reader;

typedef struct {
    int64_t nnz;
    const int64_t *support;
    const int32_t *start, *place;  /* S by rows: where each begins, and where each nonzero reads, in pixels */
    const int32_t *column;         /* S by channels: where each begins, and its nonzeros */
    const reader *readers;
    const float *values, *alpha, *bias, *offset; /* alpha and D, or null */
    float *d_values, *d_alpha, *d_bias;          /* each may be null */
    int64_t shared; /* which of the products D x of the first layer, or -1 */
} layer;

typedef struct {
    int64_t networks, operations, images, chunks, threads, backward, classes;
    const operation *ops;
    const layer *layers; /* (networks, operations) */
    const float *x;      /* (chunks, channels, pixels, CHUNK) */
    const int64_t *labels;
    int64_t shared; /* products D x of the first layer */
    const float *const *offsets;
    float *products; /* (shared, chunks, outputs, pixels, CHUNK) */
    double *loss;    /* (networks,) summed over the images */
    int64_t *correct;
} arguments;

/* One network's scratch. */
typedef struct {
    float *act[64], *weight[64], *d_weight[64];
    double d_alpha[64];
    float *g, *g_other;
    V *sums;
    int32_t *at_g, *at_w;
    float *by;
} space;

INLINE int64_t pixels_in(const operation *op) { return op->rows * op->columns; }
INLINE int64_t pixels_out(const operation *op) { return op->out_rows * op->out_columns; }
INLINE int64_t taps_of(const operation *op) { return op->window_rows * op->window_columns; }
INLINE int64_t inputs_of(const operation *op) { return op->channels * taps_of(op); }
INLINE int64_t weights_of(const operation *op) { return op->outputs * inputs_of(op); }
INLINE int64_t numbers_out(const operation *op) { return op->outputs * pixels_out(op) * CHUNK; }
INLINE int is_sparse(const operation *op, const layer *l) { return l->nnz * SPARSE < weights_of(op); }
INLINE int is_full(const operation *op, const layer *l) { return l->nnz == weights_of(op) && !l->offset; }

INLINE V positive(V v) { return (V)(~(I)(v < 0) & (I)v); } /* keeps what is no number */
INLINE V where_positive(V y, V v) { return (V)((I)(y > 0) & (I)v); }
INLINE float total(V v)
{
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += v[l];
    return sum;
}

#endif
