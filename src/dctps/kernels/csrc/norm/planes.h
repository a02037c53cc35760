/* NCHW: a plane is one channel of one image, and the lanes are its pixels. A slot is a part of the images. */
#ifndef DCTPS_NORM_PLANES_H
#define DCTPS_NORM_PLANES_H

#include "steps.h"

#define FEW 16 /* channels below which images are divided into slots */

/* `step` on `count` pixels from `start` on. */
#define ALONG(start, count, step) \
    for (int64_t i = 0, taken = 0; i < (count); i += taken) { \
        const int64_t left = (count) - i; \
        const place w = {(start) + i, LANES, first_lanes(least(LANES, left))}; \
        if (left >= TOGETHER * LANES) { \
            taken = TOGETHER * LANES; \
            step(TOGETHER, 0); \
        } else { \
            taken = LANES; \
            if (left >= LANES) step(1, 0); \
            else step(1, 1); \
        } \
    }

INLINE factors splat_factors(const job *j, int64_t channel, const int backward)
{
    const float *mean = j->a->table + channel;
    const int64_t channels = j->a->channels;
    factors f = {splat(mean[0]), splat(mean[2 * channels]), splat(mean[3 * channels]), {0}, {0}};
    if (backward) f.slope = splat(j->slope[channel]), f.drift = splat(j->drift[channel]);
    return f;
}

/* Mean and squares of one channel in a slot's images. */
static void describe_planes(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    const job *j = argument;
    const int64_t channels = j->a->channels, pixels = j->a->pixels, channel = item % channels, slot = item / channels;
    const int64_t past = least((slot + 1) * j->per_slot, j->a->images);
    double mean = 0, square = 0, before = 0;
    for (int64_t image = slot * j->per_slot; image < past; image++)
        for (int64_t chunk = 0; chunk < pixels; chunk += CHUNK * LANES) {
            const int64_t count = least(CHUNK * LANES, pixels - chunk), start = (image * channels + channel) * pixels + chunk;
            V sum = {0}, rest = {0}, squares = {0};
#define STEP(count, edge) add_up(j->a->x, &w, count, edge, &sum)
            ALONG(start, count, STEP)
#undef STEP
            const float about = halved_total(sum) / (float)count;
            const V near = splat(about);
#define STEP(count, edge) add_squares(j->a->x, near, &w, count, edge, &rest, &squares)
            ALONG(start, count, STEP)
#undef STEP
            const double off = halved_total(rest), more = off / (double)count;
            merge(&mean, &square, before, about + more, halved_total(squares) - off * more, (double)count);
            before += (double)count;
        }
    j->first[item] = mean, j->second[item] = square;
}

static void sum_planes(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    const job *j = argument;
    const int64_t channels = j->a->channels, pixels = j->a->pixels, channel = item % channels, slot = item / channels;
    const int64_t past = least((slot + 1) * j->per_slot, j->a->images);
    const factors f = splat_factors(j, channel, 0);
    double sum = 0, product = 0;
    for (int64_t image = slot * j->per_slot; image < past; image++)
        for (int64_t chunk = 0; chunk < pixels; chunk += CHUNK * LANES) {
            V of_g = {0}, of_gx = {0};
#define STEP(count, edge) add_gradients(j, &f, &w, count, edge, &of_g, &of_gx)
            ALONG((image * channels + channel) * pixels + chunk, least(CHUNK * LANES, pixels - chunk), STEP)
#undef STEP
            sum += halved_total(of_g), product += halved_total(of_gx);
        }
    j->first[item] = sum, j->second[item] = product;
}

INLINE int64_t block_of_planes(const norm_call *a) { return most(1, BLOCK / a->pixels); }

/* The second pass over an item's planes: y, or the gradient of x. */
INLINE void pass_planes(const job *j, int64_t item, const int backward)
{
    const int64_t pixels = j->a->pixels, channels = j->a->channels, begin = item * block_of_planes(j->a);
    for (int64_t plane = begin; plane < least(begin + block_of_planes(j->a), j->a->images * channels); plane++) {
        const factors f = splat_factors(j, plane % channels, backward);
#define STEP(count, edge) second_step(j, &f, &w, count, edge, backward)
        ALONG(plane * pixels, pixels, STEP)
#undef STEP
    }
}

static void apply_planes(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    pass_planes(argument, item, 0);
}

static void back_planes(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    pass_planes(argument, item, 1);
}

#endif
