/* The call of a depthwise convolution, and which taps its outputs read along each axis (depthwise.c). */
#ifndef DCTPS_DEPTHWISE_SPANS_H
#define DCTPS_DEPTHWISE_SPANS_H

#include "call.h"
#include "common/numbers.h"
#include "common/runtime.h"
#include "common/window.h"

#define SIDE 3 /* taps of a span, at most */

/* Outputs out, out + out_step, ...; the first of them reads tap `tap` at `in`, the next tap, tap_step on, in_tap on. */
typedef struct {
    int64_t out, out_step, count, in, in_step, in_tap, tap, tap_step, taps;
    int adds; /* to what earlier taps made */
} span;

typedef struct {
    const depthwise_call *a;
    int64_t slots, per_slot, blocks, groups, per_group, taps;
    const int64_t *from, *to;       /* sizes of what a tile reads and of what it makes */
    int ahead;                      /* whether to prefetch */
    int64_t ahead_read, ahead_made; /* floats from where a tile begins to what is prefetched meanwhile */
    span *spans[2];
    int64_t counts[2];
    V *weights, *sums; /* by blocks of channels: (blocks, taps), and for each slot */
} job;

/* Whether output o reads tap t, in backward an output of the transposed convolution, and which pixel, which may lie in
   the padding. */
INLINE int reads(const depthwise_call *a, int axis, int backward, int64_t o, int64_t t, int64_t *in)
{
    const int64_t stride = a->stride[axis], shift = t * a->dilation[axis] - a->padding[axis];
    *in = backward ? (o - shift) / stride : o * stride + shift;
    return !backward || (o - shift) % stride == 0;
}

/* The taps that output o reads, by ascending pixels: all, or those at pixels of the image. */
static span taps_of(const depthwise_call *a, int axis, int backward, int64_t o, int all)
{
    span s = {.out = o, .count = 1, .tap_step = 1, .in_tap = 1};
    s.out_step = backward ? a->stride[axis] : 1, s.in_step = backward ? 1 : a->stride[axis];
    const int64_t pixels = backward ? a->out[axis] : a->in[axis], last = a->kernel[axis] - 1;
    for (int64_t i = 0, in; i <= last; i++) {
        const int64_t t = backward ? last - i : i;
        if (!reads(a, axis, backward, o, t, &in) || (!all && (in < 0 || in >= pixels))) continue;
        if (s.taps == 0) s.tap = t, s.in = in;
        if (s.taps == 1) s.tap_step = t - s.tap, s.in_tap = in - s.in;
        s.taps++;
    }
    return s;
}

/* The span, in parts of up to SIDE taps; of one where pixels side by side have no columns in common to speak of. */
static span *split(span s, span *end, int axis)
{
    const int64_t pieces = most(1, parts(s.taps, axis == 1 && (s.in_tap > 1 || s.in_step > 2) ? 1 : SIDE));
    for (int64_t i = 0; i < pieces; i++) {
        const int64_t first = s.taps * i / pieces, past = s.taps * (i + 1) / pieces;
        span piece = s;
        piece.tap += first * s.tap_step, piece.in += first * s.in_tap;
        piece.taps = past - first, piece.adds = i > 0;
        *end++ = piece;
    }
    return end;
}

/* Those of an axis, by their places, of up to `longest` outputs; outputs a step apart read alike. */
static int make_spans(job *j, int axis, int backward, int64_t longest, int all)
{
    const depthwise_call *a = j->a;
    const int64_t outputs = j->to[axis], step = backward ? a->stride[axis] : 1;
    span *end = j->spans[axis] = dctps_take(sizeof(span) * (size_t)(outputs * a->kernel[axis]));
    if (!end) return -1;
    for (int64_t band = 0; band < outputs; band += longest * step)
        for (int64_t first = band; first < least(band + step, outputs); first++) {
            span open = taps_of(a, axis, backward, first, all);
            for (int64_t o = first + step; o < least(band + longest * step, outputs); o += step) {
                const span next = taps_of(a, axis, backward, o, all);
                if (next.tap == open.tap && next.taps == open.taps) {
                    open.count++;
                } else {
                    end = split(open, end, axis);
                    open = next;
                }
            }
            end = split(open, end, axis);
        }
    j->counts[axis] = end - j->spans[axis];
    return 0;
}

#endif
