/* The call of a convolution, forward and backward. */
#ifndef DCTPS_CONV_CALL_H
#define DCTPS_CONV_CALL_H

#include "common/call.h"

#define CONV_CALL(field) \
    /* images: (batch, channels, height, width), strides in numbers */ \
    field(int64_t, batch) field(int64_t, channels) field(int64_t, height) field(int64_t, width) \
    field(int64_t, outputs) field(int64_t, out_height) field(int64_t, out_width) field(int64_t, groups) \
    field(int64_t, kernel, [2]) field(int64_t, stride, [2]) field(int64_t, padding, [2]) field(int64_t, dilation, [2]) \
    field(int64_t, x_strides, [4]) field(int64_t, y_strides, [4]) field(int64_t, grad_x_strides, [4]) \
    field(int64_t, half) /* whether x, y and grad_x are bfloat16; else they are float32, as all others are */ \
    field(const void *, x) field(const float *, bias) /* bias: forward */ \
    field(void *, y) /* forward: the result; backward: its gradient, which is read */ \
    field(void *, grad_x) /* positions that no tap reads are left alone */ \
    field(float *, grad_values) field(float *, grad_alpha) \
    /* S: positions in (outputs, channels / groups, kernel) */ \
    field(int64_t, nnz) field(const int64_t *, support) field(const float *, values) \
    /* alpha * D: output o is the sum of its terms, each a filter on a map, see terms.h */ \
    field(const float *, alpha) \
    field(int64_t, mix) field(int64_t, maps) field(int64_t, rank) field(int64_t, terms) field(int64_t, filters) \
    field(const float *, first) /* (maps, channels), or (rank, channels) of a product */ \
    field(const float *, second) /* (maps, rank) of a product, whose maps are the outputs' terms in order */ \
    field(int64_t, cosine) /* length of a cosine transform */ \
    field(const float *, signs) /* of the channels, (maps / cosine, channels), one transform for each row */ \
    field(const int32_t *, source) field(const int32_t *, filter) \
    field(const float *, bank) /* (filters, kernel) */ \
    field(const int32_t *, plan) field(const float *, tables) /* of the cosine transform, see fft.h */ \
    field(int64_t, scratch_floats) /* that one thread's rows should fit */ \
    field(int64_t, threads)

typedef STRUCT(CONV_CALL) conv_call;

#endif
