/* The call that makes a convolution's weight, or reads a gradient of it. */
#ifndef DCTPS_WEIGHT_CALL_H
#define DCTPS_WEIGHT_CALL_H

#include "common/call.h"

#define WEIGHT_CALL(field) \
    field(int64_t, outputs) field(int64_t, channels) field(int64_t, taps) field(int64_t, channels_last) \
    field(int64_t, threads) \
    field(int64_t, mix) field(int64_t, maps) field(int64_t, rank) field(int64_t, terms) field(int64_t, filters) \
    field(const float *, first) field(const float *, second) /* as in conv/call.h */ \
    field(int64_t, cosine) /* MIX_ROWS: output o is row o of the orthonormal DCT-II of this length */ \
    field(const float *, signs) field(const int32_t *, source) field(const int32_t *, filter) \
    field(const float *, bank) \
    field(const float *, cosines) /* cos(pi t / 2q), t < 4q, of a cosine transform of length q */ \
    field(const float *, alpha) \
    field(int64_t, nnz) field(const int64_t *, support) field(const float *, values) \
    field(float *, weight) /* (outputs, channels, taps), or (outputs, taps, channels) where channels are last */ \
    field(float *, grad_values) field(float *, grad_alpha) /* backward, where `weight` is the gradient */

typedef STRUCT(WEIGHT_CALL) weight_call;

#endif
