/* The call of a linear layer's product, forward and backward. */
#ifndef DCTPS_LINEAR_CALL_H
#define DCTPS_LINEAR_CALL_H

#include "common/call.h"

#define TRANSFORMS(name) name(NO_TRANSFORM) name(DCT) name(HADAMARD)
enum { TRANSFORMS(ENUMERATOR) };

#define LINEAR_CALL(field) \
    field(int64_t, batch) field(int64_t, m) field(int64_t, n) field(int64_t, nnz) field(int64_t, threads) \
    field(int64_t, half) /* whether x, y, g and grad_x are bfloat16; else they are float32, as all others are */ \
    field(const void *, x) field(int64_t, x_stride) /* (batch, n), unit inner stride */ \
    field(void *, y) field(const float *, bias) /* forward: (batch, m); (m) */ \
    field(const float *, values) field(const int64_t *, support) /* (nnz) each */ \
    field(const float *, alpha) \
    field(int64_t, transform) field(int64_t, q) field(int64_t, rounds) /* outputs pick among `rounds` of length q */ \
    field(const int32_t *, plan) field(const float *, tables) /* see plans.py */ \
    field(const int32_t *, order) /* (m): output -> round * q + frequency; absent: itself */ \
    field(const int8_t *, signs) field(int64_t, sign_stride) /* (rounds, sign_stride >= n); one beyond n is common */ \
    field(const void *, g) field(int64_t, g_stride) /* backward: (batch, m), unit inner stride */ \
    field(void *, grad_x) field(float *, grad_values) field(float *, grad_alpha) field(float *, grad_bias)

typedef STRUCT(LINEAR_CALL) linear_call;

#endif
