/* What a convolution is given, and what is worked out of it for the call. */
#ifndef DCTPS_CONV_CALL_H
#define DCTPS_CONV_CALL_H

#include "fft.h"
#include "common/runtime.h"

#define ROWS 48 /* outputs, or channels, that are finished together */

enum { MIX_NONE, MIX_PLAIN, MIX_PRODUCT, MIX_COSINE };

typedef struct {
    /* images: (batch, channels, height, width), strides in elements */
    int64_t batch, channels, height, width;
    int64_t outputs, out_height, out_width, groups;
    int64_t kernel[2], stride[2], padding[2], dilation[2];
    int64_t x_strides[4], y_strides[4], dx_strides[4];
    const float *x, *bias; /* bias: forward, or null */
    float *y; /* forward: the result; backward: its gradient, which is read */
    float *dx;      /* or null; of dx_strides; positions that no tap reads are left alone */
    float *d_values; /* or null */
    float *d_alpha; /* or null */
    /* S: sorted flat positions in (outputs, channels / groups, kernel) */
    int64_t nnz;
    const int64_t *support;
    const float *values;
    /* alpha * D: output o is the sum of its terms, each a filter on a map, see terms.h */
    const float *alpha;
    int64_t mix, maps, rank, terms;
    const float *first;  /* (maps, channels), or (rank, channels) of a product */
    const float *second; /* (maps, rank) of a product, whose maps are the outputs' terms in order */
    int64_t cosine;      /* length of a cosine transform */
    const float *signs;  /* of the channels, (maps / cosine, channels), one transform for each row; or null */
    const int32_t *plan; /* of it, see fft.h */
    const float *tables;
    const int32_t *source, *filter;
    const float *bank; /* filters: (*, kernel) */
    /* machinery */
    int64_t scratch_floats; /* that one thread's rows should fit */
    int64_t threads;
} conv_call;


typedef struct {
    int32_t offset;
    float coefficient;
} entry;

typedef struct {
    int64_t taps, phases;
    int64_t *phase, *shift;         /* of each tap */
    int64_t *first_row, *first_col; /* of each phase, in the image */
    int64_t low, high;              /* rows above and below that a tap may reach */
    int64_t grid_rows, grid_cols;   /* of a phase */
    int64_t pitch, height;          /* PW, PH */
    int64_t guard, length, stride;  /* of a strip's row: zeros before and after, positions, floats in memory */
    int64_t images, band;           /* of a unit: images, or rows where one image is too large */
    int64_t bands, units, slots, per_slot;
} geometry;

typedef struct {
    int64_t x, z, mixed, g, y, by_x, panels, total; /* first floats of each kind of row in a thread's scratch */
} layout;

typedef struct {
    const conv_call *call;
    geometry geo;
    layout at;
    dct_plan plan;
    float *blocks[2]; /* the mixing matrices */
    int64_t *starts;  /* of the lists of outputs (forward) or of (phase, channel)s (backward) */
    entry *entries;
    int64_t *back_starts; /* of the lists of (phase, map)s */
    entry *back_entries;
    int64_t *nonzeros; /* first of each output's, for their gradient */
    int32_t *offsets;  /* where each one's x lies against its output's g */
    float *partial;  /* (slots, nnz) */
    double *alphas;  /* (slots) */
} job;

typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE V read(const float *p) { return (V) * (const loose *)p; }
INLINE V splat(float f) { return f - (V){0}; }

INLINE float total(V v)
{
    float parts[LANES];
    memcpy(parts, &v, sizeof parts);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
static int64_t floor_div(int64_t a, int64_t by) { return a >= 0 ? a / by : -((by - 1 - a) / by); }

#endif
