/* Where a kernel reads: whether its sizes and those of the images agree. */
#ifndef DCTPS_WINDOW_H
#define DCTPS_WINDOW_H

#include "call.h"
#include "vec.h"

/* Along one axis: `out` outputs of `taps` taps on `in` pixels. */
INLINE int is_axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t padding, int64_t dilation)
{
    if (in < 1 || out < 1 || taps < 1 || stride < 1 || padding < 0 || dilation < 1) return 0;
    return out == (in + 2 * padding - dilation * (taps - 1) - 1) / stride + 1;
}

#endif
