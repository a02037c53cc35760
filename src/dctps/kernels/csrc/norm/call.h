/* The call of a batch normalisation with what follows it, all its parts (norm.c). */
#ifndef DCTPS_NORM_CALL_H
#define DCTPS_NORM_CALL_H

#include "common/call.h"

#define NORM_CALL(field) \
    field(int64_t, images) field(int64_t, channels) field(int64_t, pixels) /* pixels: of an image */ \
    field(int64_t, channels_last) field(int64_t, threads) \
    field(int64_t, training) /* whether mean and variance are the batch's */ \
    field(double, epsilon) field(double, momentum) field(double, lower) field(double, upper) /* bounds of y; nan: none */ \
    field(const float *, x) field(const float *, weight) field(const float *, bias) \
    field(float *, running_mean) field(float *, running_var) \
    field(float *, table) /* (4, channels): mean, 1 / std, scale = weight / std, bias */ \
    field(const float *, residual) field(float *, y) /* y is read in backward, where the residual was added */ \
    field(const float *, g) field(float *, grad_x) field(float *, grad_weight) field(float *, grad_bias) \
    field(float *, grad_residual)

typedef STRUCT(NORM_CALL) norm_call;

#endif
