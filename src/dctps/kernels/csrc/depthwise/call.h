/* The call of a depthwise convolution, forward and backward. */
#ifndef DCTPS_DEPTHWISE_CALL_H
#define DCTPS_DEPTHWISE_CALL_H

#include "common/call.h"

#define DEPTHWISE_CALL(field) \
    field(int64_t, batch) field(int64_t, channels) \
    field(int64_t, in, [2]) field(int64_t, out, [2]) /* sizes of x and y: rows, columns */ \
    field(int64_t, kernel, [2]) field(int64_t, stride, [2]) field(int64_t, padding, [2]) field(int64_t, dilation, [2]) \
    field(int64_t, threads) \
    field(const float *, x) field(const float *, weight) field(const float *, bias) \
    field(float *, y) /* in backward the gradient of y, which is read */ \
    field(float *, grad_x) field(float *, grad_weight)

typedef STRUCT(DEPTHWISE_CALL) depthwise_call;

#endif
