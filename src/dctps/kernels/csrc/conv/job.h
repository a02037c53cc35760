/* What is worked out of a convolution for the call. */
#ifndef DCTPS_CONV_JOB_H
#define DCTPS_CONV_JOB_H

#include "call.h"
#include "common/fft.h"
#include "common/half.h"
#include "common/numbers.h"
#include "common/runtime.h"
#include "common/terms.h"
#include "common/window.h"

#define ROWS 48 /* outputs, or channels, that are finished together */

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

#endif
