/* A depthwise convolution, channels last,

       y[o] = b + sum_t  w_t x[o * stride - padding + t * dilation],     all of them vectors of channels,

   and its derivatives. Along an axis outputs are divided into spans that read the same taps, three of them at most
   (depthwise_spans.h). A span of rows and one of columns make a tile, whose taps stay in registers; a larger kernel adds
   tiles up. The gradient of x is a convolution of the same kind, whose outputs read some of the taps each under a stride,
   and W's gradient

       d w_t = sum_o  x[o * stride - padding + t * dilation] g[o]

   is summed on the same tiles, since each of its products meets there.

   Images are dealt to slots, and channels to groups, by shapes alone; the slots' sums are added in order. */
#include "spans.h"

#define WIDE 4         /* pixels at once */
#define UNROLL _Pragma("GCC unroll 9")
#define TILE 32        /* pixels of a tile, about: less than that, and loading its taps takes the time */
#define SLOT 32        /* pixels of a slot, at least: its sums are as many numbers as W */
#define SLOTS 32       /* at most */
#define ITEMS 16       /* for the threads, at least, where there are so many channels */
#define NEAR (1 << 20) /* numbers of x and y that the caches may still hold, so that prefetching only costs */
#define LINE 16        /* floats of a line of the cache */

/* ---- tiles ------------------------------------------------------------------------------------------------- */

/* What is prefetched, in the order of memory, since tiles' strides hide that from the processor. */
typedef struct {
    const float *read, *here, *made;
    int64_t read_step; /* floats that are read for a vector that is made */
    int on;
} ahead;

/* A span of rows by one of columns of an image. */
typedef struct {
    const span *rows, *columns;
    const float *read, *here; /* the image in what is convolved; backward: in x */
    float *made;              /* in what is made; null where it is not wanted */
    V *sums;                  /* backward: of the slot */
    int64_t first, past;      /* blocks of channels */
    ahead next;
} tile;

/* Where WIDE pixels of a block lie. */
typedef struct {
    int64_t row, column_size, made;     /* to the tap below, to the next column that is read, to the next pixel */
    int64_t column, column_step, width; /* the first that is read, the pixels' step, and how many there are */
    int64_t left;                       /* pixels of the span from here on */
    some lanes;
    int adds;
} place;

INLINE V read_one(const float *p, const int edge, some lanes)
{
    if (edge) return load_some(p, lanes);
    return *(const anywhere *)p;
}

INLINE some lanes_at(const place *at, int64_t column)
{
    return column >= 0 && column < at->width ? at->lanes : first_lanes(0);
}

INLINE void prefetch(const ahead *next, const int backward, const int makes)
{
    for (int64_t i = 0; i < WIDE * next->read_step; i += LINE) __builtin_prefetch(next->read + i, 0, 2);
    UNROLL for (int i = 0; i < WIDE * LANES; i += LINE) {
        if (backward) __builtin_prefetch(next->here + i, 0, 2);
        if (makes) __builtin_prefetch(next->made + i, 1, 2);
    }
}

/* WIDE pixels, one block; `edge`: some may lie outside of the images or of the channels. Taps read neighbours, each
   pixel `apart` columns after the last, so that a column is loaded once; a single tap any columns. All is read before
   any is stored: a load waits for a store that merely might be to its place, and the pages of x and y often lie alike. */
INLINE void convolve_pixels(const int down, const int across, const int apart, const int edge, const int backward,
                            const place *at, V (*weight)[SIDE], V (*sums)[SIDE], const float *read, const float *here,
                            float *made, const V start)
{
    const int columns = across == 1 ? WIDE : (WIDE - 1) * apart + across;
    V x[WIDE], y[WIDE];
    some own[WIDE];
    UNROLL for (int p = 0; p < WIDE; p++) {
        own[p] = edge && p >= at->left ? first_lanes(0) : at->lanes;
        if (backward) x[p] = read_one(here + p * at->made, edge, own[p]);
        y[p] = at->adds && made ? read_one(made + p * at->made, edge, own[p]) : start;
    }
    UNROLL for (int i = 0; i < down; i++, read += at->row) {
        UNROLL for (int u = 0; u < columns; u++) {
            const int64_t column = across == 1 ? u * at->column_step : u;
            const V there = read_one(read + column * at->column_size, edge, lanes_at(at, at->column + column));
            UNROLL for (int p = 0; p < WIDE; p++) {
                const int c = across == 1 ? 0 : u - p * apart;
                if (across == 1 ? p != u : c < 0 || c >= across) continue;
                y[p] += weight[i][c] * there;
                if (backward) sums[i][c] += x[p] * there;
            }
        }
    }
    if (!made) return;
    UNROLL for (int p = 0; p < WIDE; p++) {
        if (edge) store_some(made + p * at->made, y[p], own[p]);
        else *(anywhere *)(made + p * at->made) = y[p];
    }
}

INLINE void convolve(const job *j, tile *t, const int down, const int across, const int apart, const int backward)
{
    const span *r = t->rows, *k = t->columns;
    const int64_t channels = j->a->channels, kernel_width = j->a->kernel[1], width = j->from[1];
    place at = {.row = r->in_tap * width * channels, .column_size = channels, .made = k->out_step * channels,
                .column_step = k->in_step, .width = width, .adds = r->adds || k->adds};
    const int64_t reach = (WIDE - 1) * k->in_step + across - 1;
    const int64_t read_row = r->in_step * width * channels, made_row = r->out_step * j->to[1] * channels;
    const int64_t read_at = (r->in * width + k->in) * channels, made_at = (r->out * j->to[1] + k->out) * channels;
    ahead next = t->next;
    for (int64_t block = t->first; block < t->past; block++) {
        const int64_t channel = block * LANES, lanes = least(LANES, channels - channel);
        const V *weights = j->weights + block * j->taps;
        V *slot = backward ? t->sums + block * j->taps : NULL, start = {0}, weight[SIDE][SIDE], sums[SIDE][SIDE];
        at.lanes = first_lanes(lanes);
        if (!backward && j->a->bias) start = load_some(j->a->bias + channel, at.lanes);
        UNROLL for (int i = 0; i < down; i++)
            UNROLL for (int c = 0; c < across; c++) {
                const int64_t tap = (r->tap + i * r->tap_step) * kernel_width + k->tap + c * k->tap_step;
                weight[i][c] = weights[tap];
                if (backward) sums[i][c] = slot[tap];
            }
        for (int64_t row = 0; row < r->count; row++) {
            const float *read = t->read + read_at + row * read_row + channel;
            const float *here = backward ? t->here + made_at + row * made_row + channel : NULL;
            float *made = t->made ? t->made + made_at + row * made_row + channel : NULL;
            at.column = k->in, at.left = k->count;
            for (; at.left > 0; at.left -= WIDE, at.column += WIDE * k->in_step) {
                if (next.on) prefetch(&next, backward, made != NULL);
                if (lanes == LANES && at.left >= WIDE && at.column >= 0 && at.column + reach < width)
                    convolve_pixels(down, across, apart, 0, backward, &at, weight, sums, read, here, made, start);
                else
                    convolve_pixels(down, across, apart, 1, backward, &at, weight, sums, read, here, made, start);
                const int64_t pixels = least(at.left, WIDE);
                next.read += pixels * next.read_step, next.here += pixels * LANES, next.made += pixels * LANES;
                read += WIDE * k->in_step * channels;
                if (backward) here += WIDE * at.made;
                if (made) made += WIDE * at.made;
            }
        }
        UNROLL for (int i = 0; i < down && backward; i++)
            UNROLL for (int c = 0; c < across; c++)
                slot[(r->tap + i * r->tap_step) * kernel_width + k->tap + c * k->tap_step] = sums[i][c];
    }
    t->next = next;
}

/* The number of taps as a constant, for each that there is. */
#define CASE(down, across, apart, backward) \
    case (down) * (SIDE + 1) + (across): convolve(j, t, down, across, apart, backward); break;
#define CASES(across, apart, backward) \
    CASE(1, across, apart, backward) CASE(2, across, apart, backward) CASE(3, across, apart, backward)

static void convolve_forward(const job *j, tile *t)
{
    const int64_t down = t->rows->taps, across = t->columns->taps;
    if (!down || !across) {
        if (!t->rows->adds && !t->columns->adds) convolve(j, t, 0, 0, 1, 0);
    } else if (across == 1 || t->columns->in_step == 1) {
        switch (down * (SIDE + 1) + across) { CASES(1, 1, 0) CASES(2, 1, 0) CASES(3, 1, 0) }
    } else {
        switch (down * (SIDE + 1) + across) { CASES(2, 2, 0) CASES(3, 2, 0) }
    }
}

static void convolve_backward(const job *j, tile *t)
{
    const int64_t down = t->rows->taps, across = t->columns->taps;
    if (down && across)
        switch (down * (SIDE + 1) + across) { CASES(1, 1, 1) CASES(2, 1, 1) CASES(3, 1, 1) }
    else if (t->made && !t->rows->adds && !t->columns->adds)
        convolve(j, t, 0, 0, 1, 0);
}

/* ---- the call ---------------------------------------------------------------------------------------------- */

INLINE void run_item(const job *j, int64_t item, const float *read, const float *here, float *made, const int backward)
{
    const depthwise_call *a = j->a;
    const int64_t slot = item / j->groups, group = item % j->groups;
    const int64_t read_size = j->from[0] * j->from[1] * a->channels, made_size = j->to[0] * j->to[1] * a->channels;
    tile t = {.first = group * j->per_group, .past = least((group + 1) * j->per_group, j->blocks)};
    if (backward) {
        t.sums = j->sums + slot * j->blocks * j->taps;
        memset(t.sums + t.first * j->taps, 0, sizeof(V) * (size_t)((t.past - t.first) * j->taps));
    }
    for (int64_t image = slot * j->per_slot; image < least((slot + 1) * j->per_slot, a->batch); image++) {
        t.read = read + image * read_size, t.here = here ? here + image * made_size : NULL;
        t.made = made ? made + image * made_size : NULL;
        t.next = (ahead){.on = j->ahead, .read_step = most(1, LANES * read_size / made_size)};
        t.next.read = t.read + j->ahead_read;
        t.next.made = (made ? t.made : t.read) + j->ahead_made, t.next.here = (here ? t.here : t.read) + j->ahead_made;
        for (t.rows = j->spans[0]; t.rows < j->spans[0] + j->counts[0]; t.rows++)
            for (t.columns = j->spans[1]; t.columns < j->spans[1] + j->counts[1]; t.columns++)
                (backward ? convolve_backward : convolve_forward)(j, &t);
    }
}

static void forward_item(void *argument, int64_t item, void *scratch)
{
    const job *j = argument;
    (void)scratch;
    run_item(j, item, j->a->x, NULL, j->a->y, 0);
}

static void backward_item(void *argument, int64_t item, void *scratch)
{
    const job *j = argument;
    (void)scratch;
    run_item(j, item, j->a->y, j->a->x, j->a->grad_x, 1);
}

static void pack_weights(const job *j)
{
    const depthwise_call *a = j->a;
    memset(j->weights + (j->blocks - 1) * j->taps, 0, sizeof(V) * (size_t)j->taps);
    for (int64_t c = 0; c < a->channels; c++) {
        float *to = (float *)(j->weights + c / LANES * j->taps) + c % LANES;
        for (int64_t t = 0; t < j->taps; t++) to[t * LANES] = a->weight[c * j->taps + t];
    }
}

static void add_slots(const job *j)
{
    const depthwise_call *a = j->a;
    const int64_t all = j->blocks * j->taps;
    for (int64_t block = 0; block < j->blocks; block++)
        for (int64_t t = 0; t < j->taps; t++) {
            V sum = j->sums[block * j->taps + t];
            for (int64_t s = 1; s < j->slots; s++) sum += j->sums[s * all + block * j->taps + t];
            for (int64_t c = block * LANES; c < least((block + 1) * LANES, a->channels); c++)
                a->grad_weight[c * j->taps + t] = sum[c % LANES];
        }
}

static int run(const depthwise_call *a, int backward)
{
    for (int i = 0; i < 2; i++)
        if (!is_axis(a->in[i], a->out[i], a->kernel[i], a->stride[i], a->padding[i], a->dilation[i])) return BAD_WINDOW;
    job j = {.a = a, .taps = a->kernel[0] * a->kernel[1], .blocks = parts(a->channels, LANES)};
    j.from = backward ? a->out : a->in, j.to = backward ? a->in : a->out;
    const int64_t slots = least(least(a->batch, SLOTS), parts(a->batch * a->out[0] * a->out[1], SLOT));
    j.per_slot = parts(a->batch, slots), j.slots = parts(a->batch, j.per_slot);
    j.per_group = parts(j.blocks, least(j.blocks, parts(ITEMS, j.slots))), j.groups = parts(j.blocks, j.per_group);
    const size_t weights = sizeof(V) * (size_t)(j.blocks * j.taps);
    int failed = !(j.weights = dctps_take(weights)) || (backward && !(j.sums = dctps_take(weights * (size_t)j.slots)));
    const int64_t rows = most(1, TILE / j.to[1]);
    j.ahead = j.groups == 1 && a->batch * a->channels * (a->in[0] * a->in[1] + a->out[0] * a->out[1]) > NEAR;
    j.ahead_made = rows * (backward ? a->stride[0] : 1) * j.to[1] * a->channels;
    j.ahead_read = (rows * (backward ? 1 : a->stride[0]) + SIDE - 1) * j.from[1] * a->channels;
    failed = failed || make_spans(&j, 0, backward, rows, 0) || make_spans(&j, 1, backward, j.to[1], 1);
    if (!failed) {
        pack_weights(&j);
        failed = dctps_parallel(j.slots * j.groups, a->threads, 0, backward ? backward_item : forward_item, &j);
        if (!failed && a->grad_weight) add_slots(&j);
    }
    dctps_give(j.weights), dctps_give(j.sums), dctps_give(j.spans[0]), dctps_give(j.spans[1]);
    return failed ? NO_MEMORY : DONE;
}

EXPORT int DPS(depthwise_forward)(const depthwise_call *a) { return run(a, 0); }
EXPORT int DPS(depthwise_backward)(const depthwise_call *a) { return run(a, 1); }
