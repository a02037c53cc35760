/* The call of stacked networks: their operations, layers and batch. */
#ifndef DCTPS_STACK_CALL_H
#define DCTPS_STACK_CALL_H

#include "common/call.h"

#define CHUNK 64 /* images that are side by side in memory */
#define MOST_OPERATIONS 64

#define STACK_KINDS(name) name(WEIGHTED) name(RELU) name(POOL)
enum { STACK_KINDS(ENUMERATOR) };

#define STACK_OPERATION(field) \
    field(int64_t, kind) \
    field(int64_t, channels) field(int64_t, rows) field(int64_t, columns) /* of what goes in */ \
    field(int64_t, outputs) field(int64_t, out_rows) field(int64_t, out_columns) /* of what comes out */ \
    field(int64_t, window, [2]) /* of the kernel, or of the pool, whose windows do not overlap */ \
    field(const int32_t *, taps) /* of a weighted layer: where input k of an output's is, in pixels */

typedef STRUCT(STACK_OPERATION) operation;

/* A nonzero, as its channel sees it. */
typedef struct {
    int32_t nonzero, output, row, column;
} reader;

#define STACK_LAYER(field) \
    field(int64_t, nnz) \
    field(const int64_t *, support) field(const int64_t *, laid_out) /* now, and when the tables here were made */ \
    field(const int32_t *, start) field(const int32_t *, place) /* S by rows: where each begins; each nonzero's pixel */ \
    field(const int32_t *, column) field(const reader *, readers) /* S by channels: where each begins; its nonzeros */ \
    field(const float *, values) field(const float *, alpha) field(const float *, bias) field(const float *, offset) \
    field(float *, grad_values) field(float *, grad_alpha) field(float *, grad_bias) \
    field(int64_t, shared) /* which of the products D x of the first layer, or -1 */

typedef STRUCT(STACK_LAYER) layer;

#define STACK_CALL(field) \
    field(int64_t, networks) field(int64_t, operations) field(int64_t, images) field(int64_t, chunks) \
    field(int64_t, threads) field(int64_t, backward) field(int64_t, classes) \
    field(const operation *, ops) field(const layer *, layers) /* (networks, operations) */ \
    field(const float *, x) /* (chunks, channels, pixels, CHUNK) */ \
    field(const int64_t *, labels) \
    field(int64_t, shared) field(const float *const *, offsets) /* products D x of the first layer, and their D */ \
    field(float *, products) /* (shared, chunks, outputs, pixels, CHUNK) */ \
    field(double *, loss) field(int64_t *, correct) /* (networks): summed over the images */

typedef STRUCT(STACK_CALL) stack_call;

#endif
