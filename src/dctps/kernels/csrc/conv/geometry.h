/* How images become strips: taps and phases, units and slots, and where each position lies in memory. */
#ifndef DCTPS_CONV_GEOMETRY_H
#define DCTPS_CONV_GEOMETRY_H

#include "job.h"

static void *take(int64_t bytes) { return dctps_take((size_t)bytes); }

static void *take_zeros(int64_t bytes)
{
    void *memory = take(bytes);
    if (memory) memset(memory, 0, (size_t)bytes);
    return memory;
}

static int find_taps(const conv_call *c, geometry *geo)
{
    const int64_t kh = c->kernel[0], kw = c->kernel[1];
    int64_t low_c = 0, high_c = 0;
    geo->taps = kh * kw;
    int64_t *numbers = take(sizeof(int64_t) * geo->taps * 6);
    if (!numbers) return NO_MEMORY;
    geo->phase = numbers, geo->shift = numbers + geo->taps;
    geo->first_row = numbers + 2 * geo->taps, geo->first_col = numbers + 3 * geo->taps;
    int64_t *up = numbers + 4 * geo->taps, *across = numbers + 5 * geo->taps;
    for (int64_t t = 0; t < geo->taps; t++) {
        const int64_t row = t / kw * c->dilation[0] - c->padding[0];
        const int64_t col = t % kw * c->dilation[1] - c->padding[1];
        up[t] = floor_div(row, c->stride[0]), across[t] = floor_div(col, c->stride[1]);
        const int64_t first_row = row - up[t] * c->stride[0], first_col = col - across[t] * c->stride[1];
        int64_t p = 0;
        while (p < geo->phases && (geo->first_row[p] != first_row || geo->first_col[p] != first_col)) p++;
        if (p == geo->phases) geo->first_row[p] = first_row, geo->first_col[p] = first_col, geo->phases++;
        geo->phase[t] = p;
        geo->low = least(geo->low, up[t]), geo->high = most(geo->high, up[t]);
        low_c = least(low_c, across[t]), high_c = most(high_c, across[t]);
    }
    geo->grid_rows = (c->height + c->stride[0] - 1) / c->stride[0];
    geo->grid_cols = (c->width + c->stride[1] - 1) / c->stride[1];
    geo->pitch = most(geo->grid_cols - low_c, c->out_width + high_c);
    geo->height = most(geo->grid_rows - geo->low, c->out_height + geo->high);
    for (int64_t t = 0; t < geo->taps; t++) geo->shift[t] = up[t] * geo->pitch + across[t];
    const int64_t reach = most(-geo->low, geo->high) * geo->pitch + most(-low_c, high_c);
    geo->guard = round_up(reach, 16);
    return 0;
}

#define SHORT 128 /* positions of a unit at least */

/* Units, for which `rows` rows of a strip fit the cache; slots, enough for many threads and few enough that
   their sums are small. */
static void divide(const conv_call *c, geometry *geo, int64_t rows)
{
    const int64_t all_rows = most(geo->grid_rows, c->out_height);
    /* Positions for which the rows fit the cache; shorter ones would cost more than the cache saves. */
    const int64_t budget = most(c->scratch_floats / rows, 2 * geo->guard + SHORT);
    const int64_t image = geo->height * geo->pitch;
    const int64_t wanted = most(2, least(8, c->batch * image / 128)); /* units: some for each thread, none short */
    geo->images = most(1, least((budget - 2 * geo->guard) / image, (c->batch + wanted - 1) / wanted));
    geo->band = all_rows, geo->bands = 1;
    if (image + 2 * geo->guard > budget) {
        geo->band = most(1, least(all_rows, (budget - 2 * geo->guard) / geo->pitch));
        geo->bands = (all_rows + geo->band - 1) / geo->band;
        geo->band = (all_rows + geo->bands - 1) / geo->bands;
        geo->bands = (all_rows + geo->band - 1) / geo->band;
    }
    geo->length = geo->bands > 1 ? geo->band * geo->pitch : geo->images * image;
    geo->units = geo->bands > 1 ? c->batch * geo->bands : (c->batch + geo->images - 1) / geo->images;
    /* The odd number of cache lines keeps rows from falling into the same cache sets. */
    geo->stride = (round_up(geo->length, 16) + 2 * geo->guard) / 16 * 16;
    geo->stride += geo->stride / 16 % 2 ? 0 : 16;
    const int64_t slots = most(8, least(64, (1 << 18) / most(c->nnz, 1)));
    geo->per_slot = most(1, (geo->units + slots - 1) / slots);
    geo->slots = (geo->units + geo->per_slot - 1) / geo->per_slot;
}

typedef struct {
    int64_t image, images, top, rows, length; /* top, rows: of the grid */
} unit;

static unit find_unit(const job *j, int64_t index)
{
    const geometry *geo = &j->geo;
    if (geo->bands > 1) {
        const int64_t top = index % geo->bands * geo->band;
        const int64_t all = most(geo->grid_rows, j->call->out_height);
        const int64_t rows = least(geo->band, all - top);
        return (unit){index / geo->bands, 1, top, rows, rows * geo->pitch};
    }
    const int64_t image = index * geo->images, images = least(geo->images, j->call->batch - image);
    return (unit){image, images, 0, geo->band, images * geo->height * geo->pitch};
}

/* Where each position of a unit's row lies in memory, relative to the channel's first element; -1: a zero.
   `above` and `below` widen a band by the rows that taps reach. Grid row i is row i * stride + first. */
static void locate(const geometry *geo, unit u, int64_t above, int64_t below, const int64_t strides[4],
                   int64_t first_row, int64_t step_row, int64_t rows, int64_t first_col, int64_t step_col,
                   int64_t cols, int64_t *where)
{
    for (int64_t p = 0; p < geo->stride; p++) where[p] = -1;
    where += geo->guard;
    const int64_t from = u.top + above, to = u.top + u.rows + below;
    for (int64_t n = 0; n < u.images; n++)
        for (int64_t i = most(from, 0); i < to && i * step_row + first_row < rows; i++) {
            int64_t *row = where + (n * geo->height + i - u.top) * geo->pitch;
            const int64_t base = (u.image + n) * strides[0] + (i * step_row + first_row) * strides[2];
            for (int64_t k = 0; k * step_col + first_col < cols; k++)
                row[k] = base + (k * step_col + first_col) * strides[3];
        }
}

/* The columns that a mixing covers: a band's neighbours too, as taps reach them; images end in zeros. */
static void columns(const geometry *g, int64_t length, int64_t *from, int64_t *to)
{
    *from = g->bands > 1 ? 0 : g->guard;
    *to = g->bands > 1 ? g->guard + length + g->guard : g->guard + length;
}

#endif
