/* Channels last: a row is a pixel, and the lanes are its channels. Rows are divided into slots and channels into groups, so
 * that the sums of a chunk of rows stay in the first cache. */
#ifndef DCTPS_NORM_ROWS_H
#define DCTPS_NORM_ROWS_H

#include "steps.h"

#define GROUP 256 /* channels */
#define SLOT 128  /* rows of a slot, at least */

typedef V sums[GROUP / LANES];

/* `step` on the rows from `begin` to `end`, TOGETHER of them at a time, and on `width` channels from `from` on. */
#define OVER(begin, end, from, width, step) \
    for (int64_t row = (begin), left = 0; row < (end); row += left) { \
        left = (end) - row >= TOGETHER ? TOGETHER : 1; \
        for (int64_t c = 0; c < (width); c += LANES) { \
            const place w = {row * channels + (from) + c, channels, first_lanes(least(LANES, (width) - c))}; \
            const int64_t v = c / LANES; \
            (void)v; \
            if (left == TOGETHER && (width) - c >= LANES) step(TOGETHER, 0); \
            else if (left == TOGETHER) step(TOGETHER, 1); \
            else step(1, 1); \
        } \
    }

INLINE factors load_factors(const job *j, int64_t channel, const int backward, const int edge)
{
    const int64_t channels = j->a->channels;
    const place w = {channel, channels, first_lanes(least(LANES, channels - channel))};
    factors f = {read(j->a->table, &w, 0, edge), read(j->a->table, &w, 2, edge), read(j->a->table, &w, 3, edge), {0}, {0}};
    if (backward) f.slope = read(j->slope, &w, 0, edge), f.drift = read(j->drift, &w, 0, edge);
    return f;
}

/* The rows and channels of an item. */
typedef struct {
    int64_t begin, end, from, width, sums;
} part;

static part part_of(const job *j, int64_t item)
{
    const int64_t channels = j->a->channels, slot = item / j->groups, from = item % j->groups * GROUP;
    const int64_t begin = slot * j->per_slot;
    return (part){begin, least(begin + j->per_slot, j->rows), from, least(GROUP, channels - from), slot * channels + from};
}

/* Mean and squares of a slot's rows, for one group of channels. */
static void describe_rows(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    const job *j = argument;
    const part p = part_of(j, item);
    const int64_t channels = j->a->channels;
    double *mean = j->first + p.sums, *square = j->second + p.sums;
    for (int64_t c = 0; c < p.width; c++) mean[c] = square[c] = 0;
    for (int64_t chunk = p.begin; chunk < p.end; chunk += CHUNK) {
        const int64_t past = least(chunk + CHUNK, p.end);
        const float each = 1.0f / (float)(past - chunk);
        sums about = {{0}}, rest = {{0}}, squares = {{0}};
#define STEP(count, edge) add_up(j->a->x, &w, count, edge, about + v)
        OVER(chunk, past, p.from, p.width, STEP)
#undef STEP
        for (int64_t v = 0; v < parts(p.width, LANES); v++) about[v] *= each;
#define STEP(count, edge) add_squares(j->a->x, about[v], &w, count, edge, rest + v, squares + v)
        OVER(chunk, past, p.from, p.width, STEP)
#undef STEP
        const float *near = (const float *)about, *off = (const float *)rest, *found = (const float *)squares;
        const double before = (double)(chunk - p.begin), count = (double)(past - chunk);
        for (int64_t c = 0; c < p.width; c++) {
            const double more = off[c] / count;
            merge(mean + c, square + c, before, near[c] + more, found[c] - off[c] * more, count);
        }
    }
}

static void sum_rows(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    const job *j = argument;
    const part p = part_of(j, item);
    const int64_t channels = j->a->channels;
    double *sum = j->first + p.sums, *product = j->second + p.sums;
    for (int64_t c = 0; c < p.width; c++) sum[c] = product[c] = 0;
    for (int64_t chunk = p.begin; chunk < p.end; chunk += CHUNK) {
        sums of_g = {{0}}, of_gx = {{0}};
#define STEP(count, edge) \
    do { \
        const factors f = load_factors(j, p.from + c, 0, edge); \
        add_gradients(j, &f, &w, count, edge, of_g + v, of_gx + v); \
    } while (0)
        OVER(chunk, least(chunk + CHUNK, p.end), p.from, p.width, STEP)
#undef STEP
        const float *g = (const float *)of_g, *gx = (const float *)of_gx;
        for (int64_t c = 0; c < p.width; c++) sum[c] += g[c], product[c] += gx[c];
    }
}

INLINE int64_t block_of_rows(const norm_call *a) { return round_up(most(1, BLOCK / a->channels), TOGETHER); }

/* The second pass over an item's rows: y, or the gradient of x. */
INLINE void pass_rows(const job *j, int64_t item, const int backward)
{
    const int64_t channels = j->a->channels, begin = item * block_of_rows(j->a);
#define STEP(count, edge) \
    do { \
        const factors f = load_factors(j, c, backward, edge); \
        second_step(j, &f, &w, count, edge, backward); \
    } while (0)
    OVER(begin, least(begin + block_of_rows(j->a), j->rows), 0, channels, STEP)
#undef STEP
}

static void apply_rows(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    pass_rows(argument, item, 0);
}

static void back_rows(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    pass_rows(argument, item, 1);
}

#endif
