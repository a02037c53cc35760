/* Stacked networks: the operations, layers and scratch of a call. */
#ifndef DCTPS_STACK_JOB_H
#define DCTPS_STACK_JOB_H

#include <math.h>

#include "call.h"
#include "common/runtime.h"
#include "common/support.h"

#define G 4                      /* vectors of a register block, and */
#define M (REGISTERS == 32 ? 6 : 3) /* its rows: as many as registers hold, with the vectors that they are made from */
#define K 4                      /* columns of a block of dW */
#define STEP (G * LANES)         /* images of a block */
#define SPARSE 3                 /* S runs over its nonzeros where they are fewer than one in so many */

typedef int32_t I __attribute__((vector_size(4 * LANES)));

/* One network's scratch. */
typedef struct {
    float *act[MOST_OPERATIONS], *weight[MOST_OPERATIONS], *grad_weight[MOST_OPERATIONS];
    double grad_alpha[MOST_OPERATIONS];
    float *g, *g_other;
    V *sums;
    int32_t *at_g, *at_w;
    float *by;
} space;

INLINE int64_t pixels_in(const operation *op) { return op->rows * op->columns; }
INLINE int64_t pixels_out(const operation *op) { return op->out_rows * op->out_columns; }
INLINE int64_t taps_of(const operation *op) { return op->window[0] * op->window[1]; }
INLINE int64_t inputs_of(const operation *op) { return op->channels * taps_of(op); }
INLINE int64_t weights_of(const operation *op) { return op->outputs * inputs_of(op); }
INLINE int64_t numbers_out(const operation *op) { return op->outputs * pixels_out(op) * CHUNK; }
INLINE int is_sparse(const operation *op, const layer *l) { return l->nnz * SPARSE < weights_of(op); }
INLINE int is_full(const operation *op, const layer *l) { return l->nnz == weights_of(op) && !l->offset; }

INLINE V positive(V v) { return (V)(~(I)(v < 0) & (I)v); } /* keeps what is no number */
INLINE V where_positive(V y, V v) { return (V)((I)(y > 0) & (I)v); }

#endif
