/* A convolution with W = alpha * D + S, forward and backward, without im2col and without W.

   Images are cut into units (some images, or a band of rows of one) that fit the cache. A unit's channels are
   packed as rows of a strip: pixel (i, j) of its n-th image at position (n * PH + i) * PW + j, with zeros in
   between, so that every tap of the kernel is the same shift of the whole row. A stride splits the image into
   phases, each of which is a strip, and tap t reads one phase at one shift. On strips everything is one loop,

       out[p] = sum_e  coefficient_e * row_e[p + shift_e],

   the nonzeros of S and the filters of D alike. D is the channels' mixing, A or B A or a cosine transform,
   followed by one small filter for each of an output's terms. Backward runs the transposed lists.

   Results depend on shapes alone: units are dealt to a fixed number of slots, whose sums are added in order. */
#include "combine.h"
#include "geometry.h"
#include "lists.h"
#include "mixing.h"
#include "strips.h"

/* ---- a unit ------------------------------------------------------------------------------------------------ */

typedef struct {
    float *base;
    int64_t *where;
} scratch;

static void forward_unit(const job *j, unit u, scratch s)
{
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t stride = g->stride, length = round_up(u.length, 16);
    float *x = s.base + j->at.x, *z = s.base + j->at.z, *y = s.base + j->at.y;
    float *mixed = s.base + j->at.mixed, *panel = s.base + j->at.panels;
    int64_t from, to;
    columns(g, length, &from, &to);
    for (int64_t f = 0; f < g->phases; f++) {
        locate(g, u, g->low, g->high, c->x_strides, g->first_row[f], c->stride[0], c->height, g->first_col[f],
               c->stride[1], c->width, s.where);
        float *rows = x + f * c->channels * stride;
        pack(c->x, c->half, c->x_strides[1], c->channels, s.where, stride, rows);
        if (c->mix == MIX_PLAIN)
            mix(j->blocks[0], c->maps, c->channels, rows, z + f * c->maps * stride, stride, from, to, panel, 0);
        if (c->mix == MIX_COSINE) cosine(j, rows, z + f * c->maps * stride, stride, from, to, panel);
        if (c->mix == MIX_PRODUCT)
            mix(j->blocks[0], c->rank, c->channels, rows, mixed + f * c->rank * stride, stride, from, to, panel, 0);
    }
    if (g->bands == 1) clear_guards(g, z, map_rows(c, g->phases), length);
    locate(g, u, 0, 0, c->y_strides, 0, 1, c->out_height, 0, 1, c->out_width, s.where);
    const int64_t block = c->mix == MIX_PRODUCT ? TERM_OUTPUTS : c->outputs;
    for (int64_t o = 0; o < c->outputs; o += ROWS) {
        if (c->mix == MIX_PRODUCT && o % block == 0) {
            const int64_t first = o * c->terms, count = least(block * c->terms, c->maps - first);
            for (int64_t f = 0; f < g->phases; f++)
                mix(j->blocks[1] + first * c->rank, count, c->rank, mixed + f * c->rank * stride,
                    z + map_row(c, f, first) * stride, stride, from, to, panel, 0);
        }
        const int64_t some = least(ROWS, c->outputs - o);
        for (int64_t r = 0; r < some; r++) {
            const int64_t start = j->starts[o + r];
            combine(j->entries + start, j->starts[o + r + 1] - start, s.base, c->bias ? c->bias[o + r] : 0.0f,
                    y + r * stride + g->guard, length);
        }
        unpack(y, stride, some, s.where, c->y, c->half, o, c->y_strides[1]);
    }
}

/* D^T g on the strips, by maps, then by channels; gives where it lies. */
static float *adjoint_unit(const job *j, int64_t length, scratch s)
{
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t stride = g->stride, from = g->guard, to = g->guard + length;
    float *z = s.base + j->at.z, *mixed = s.base + j->at.mixed, *panel = s.base + j->at.panels;
    float *by_x = s.base + j->at.by_x;
    const int64_t block = c->mix == MIX_PRODUCT ? least(c->maps, TERM_OUTPUTS * c->terms) : c->maps;
    for (int64_t first = 0; first < c->maps; first += block) {
        const int64_t count = least(block, c->maps - first);
        for (int64_t f = 0; f < g->phases; f++) {
            float *rows = c->mix == MIX_NONE ? by_x + f * c->channels * stride : z + map_row(c, f, first) * stride;
            for (int64_t r = 0; r < count; r++) {
                const int64_t *start = j->back_starts + f * c->maps + first + r;
                combine(j->back_entries + start[0], start[1] - start[0], s.base, 0.0f, rows + r * stride + g->guard,
                        length);
            }
            if (c->mix == MIX_PRODUCT)
                mix(j->blocks[1] + first * round_up(c->rank, MR), c->rank, count, rows, mixed + f * c->rank * stride,
                    stride, from, to, panel, first > 0);
        }
    }
    for (int64_t f = 0; f < g->phases; f++) {
        float *out = by_x + f * c->channels * stride;
        if (c->mix == MIX_PLAIN)
            mix(j->blocks[0], c->channels, c->maps, z + f * c->maps * stride, out, stride, from, to, panel, 0);
        if (c->mix == MIX_COSINE) cosine_adjoint(j, z + f * c->maps * stride, out, stride, from, to, panel);
        if (c->mix == MIX_PRODUCT)
            mix(j->blocks[0], c->channels, c->rank, mixed + f * c->rank * stride, out, stride, from, to, panel, 0);
    }
    return by_x;
}

static void backward_unit(const job *j, unit u, int64_t slot, scratch s)
{
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t stride = g->stride, length = round_up(u.length, 16);
    const int64_t own = g->bands > 1 ? u.length : length; /* behind a band lie its neighbour's rows, not zeros */
    float *x = s.base + j->at.x, *y = s.base + j->at.y;
    locate(g, u, -g->high, -g->low, c->y_strides, 0, 1, c->out_height, 0, 1, c->out_width, s.where);
    pack(c->y, c->half, c->y_strides[1], c->outputs, s.where, stride, s.base + j->at.g);
    if (c->grad_values || c->grad_alpha)
        for (int64_t f = 0; f < g->phases; f++) {
            locate(g, u, g->low, g->high, c->x_strides, g->first_row[f], c->stride[0], c->height, g->first_col[f], c->stride[1],
                   c->width, s.where);
            pack(c->x, c->half, c->x_strides[1], c->channels, s.where, stride, x + f * c->channels * stride);
        }
    if (c->grad_values) {
        float *sums = j->partial + slot * c->nnz;
        for (int64_t o = 0; o < c->outputs; o++)
            add_dots(s.base, j->offsets + j->nonzeros[o], j->nonzeros[o + 1] - j->nonzeros[o],
                     s.base + j->at.g + o * stride + g->guard, own, sums + j->nonzeros[o]);
    }
    if (c->terms && (c->grad_x || c->grad_alpha)) {
        const float *by_x = adjoint_unit(j, length, s);
        if (c->grad_alpha)
            for (int64_t r = 0; r < g->phases * c->channels; r++)
                j->alphas[slot] += dot(x + r * stride + g->guard, by_x + r * stride + g->guard, own);
    }
    if (!c->grad_x) return;
    for (int64_t f = 0; f < g->phases; f++) {
        locate(g, u, 0, 0, c->grad_x_strides, g->first_row[f], c->stride[0], c->height, g->first_col[f], c->stride[1],
               c->width, s.where);
        for (int64_t k = 0; k < c->channels; k += ROWS) {
            const int64_t some = least(ROWS, c->channels - k);
            for (int64_t r = 0; r < some; r++) {
                const int64_t *start = j->starts + f * c->channels + k + r;
                combine(j->entries + start[0], start[1] - start[0], s.base, 0.0f, y + r * stride + g->guard, length);
            }
            unpack(y, stride, some, s.where, c->grad_x, c->half, k, c->grad_x_strides[1]);
        }
    }
}

/* ---- the call ---------------------------------------------------------------------------------------------- */

static void forward_slot(void *argument, int64_t slot, void *memory)
{
    const job *j = argument;
    const scratch s = {memory, (int64_t *)((float *)memory + round_up(j->at.total, 16))};
    const int64_t end = least((slot + 1) * j->geo.per_slot, j->geo.units);
    for (int64_t i = slot * j->geo.per_slot; i < end; i++) forward_unit(j, find_unit(j, i), s);
}

static void backward_slot(void *argument, int64_t slot, void *memory)
{
    const job *j = argument;
    const scratch s = {memory, (int64_t *)((float *)memory + round_up(j->at.total, 16))};
    const int64_t end = least((slot + 1) * j->geo.per_slot, j->geo.units);
    if (j->partial) memset(j->partial + slot * j->call->nnz, 0, sizeof(float) * (size_t)j->call->nnz);
    j->alphas[slot] = 0;
    for (int64_t i = slot * j->geo.per_slot; i < end; i++) backward_unit(j, find_unit(j, i), slot, s);
}

static int64_t place_rows(job *j, int backward)
{
    const conv_call *c = j->call;
    const int64_t phases = j->geo.phases, stride = j->geo.stride;
    const int64_t rows[] = {phases * c->channels, map_rows(c, phases), c->mix == MIX_PRODUCT ? phases * c->rank : 0,
                            backward ? c->outputs : 0, ROWS, backward ? phases * c->channels : 0};
    int64_t *const at[] = {&j->at.x, &j->at.z, &j->at.mixed, &j->at.g, &j->at.y, &j->at.by_x};
    int64_t all = 0, inner = c->channels;
    for (int i = 0; i < 6; i++) {
        *at[i] = all * stride;
        all += rows[i];
    }
    if (c->mix == MIX_PLAIN) inner = most(inner, c->maps);
    if (c->mix == MIX_PRODUCT) inner = most(inner, most(c->rank, TERM_OUTPUTS * c->terms));
    j->at.panels = all * stride;
    j->at.total = j->at.panels + most(inner * WIDE, c->mix == MIX_COSINE ? 2 * j->plan.length * LANES : 0);
    return all;
}

static int make_lists(job *j, int backward)
{
    const conv_call *c = j->call;
    if (!backward) return list_outputs(j);
    j->alphas = take(sizeof(double) * j->geo.slots);
    if (c->grad_values) j->partial = take(sizeof(float) * (j->geo.slots * c->nnz + 1));
    return !j->alphas || (c->grad_values && (!j->partial || list_nonzeros(j))) || list_channels(j) ||
           (c->terms && list_maps(j));
}

static void add_slots(const job *j)
{
    const conv_call *c = j->call;
    double by_alpha = 0;
    for (int64_t s = 0; s < j->geo.slots; s++) by_alpha += j->alphas[s];
    if (c->grad_alpha) *c->grad_alpha = (float)by_alpha;
    for (int64_t k = 0; k < c->nnz && c->grad_values; k++) {
        double sum = 0;
        for (int64_t s = 0; s < j->geo.slots; s++) sum += j->partial[s * c->nnz + k];
        c->grad_values[k] = (float)sum;
    }
}

/* What Python cannot see at little cost. */
static int check(const conv_call *c)
{
    if (c->groups < 1 || c->channels < 1 || c->channels % c->groups || c->outputs % c->groups ||
        !is_axis(c->height, c->out_height, c->kernel[0], c->stride[0], c->padding[0], c->dilation[0]) ||
        !is_axis(c->width, c->out_width, c->kernel[1], c->stride[1], c->padding[1], c->dilation[1]))
        return BAD_WINDOW;
    const int64_t taps = c->kernel[0] * c->kernel[1], size = c->outputs * (c->channels / c->groups) * taps;
    if (!is_support(c->support, c->nnz, size)) return BAD_SUPPORT;
    if (!c->terms) return DONE;
    if (c->mix == MIX_ROWS) return BAD_TABLE; /* of no use but for the weight */
    const int known = are_terms(c->mix, c->source, c->filter, c->outputs * c->terms, taps, c->cosine, c->maps, c->filters);
    return known && (c->mix != MIX_NONE || c->maps <= c->channels) ? DONE : BAD_TABLE;
}

static int run(const conv_call *c, int backward)
{
    job j = {.call = c};
    int failed = check(c);
    if (failed) return failed;
    if (c->mix == MIX_COSINE) read_dct_plan(&j.plan, c->plan, c->tables, c->cosine);
    failed = find_taps(c, &j.geo);
    if (!failed) {
        divide(c, &j.geo, place_rows(&j, backward));
        place_rows(&j, backward);
        if (j.at.total + 2 * j.geo.stride >= INT32_MAX) failed = TOO_LARGE; /* for the offsets of entries */
        else if (block_mixing(&j, backward) || make_lists(&j, backward)) failed = NO_MEMORY;
    }
    if (!failed) {
        size_t bytes = sizeof(float) * (j.at.total + 16) + (sizeof(int64_t) + sizeof(span)) * j.geo.stride;
        if (bytes < (2u << 20)) bytes = 2u << 20;
        failed = dctps_parallel(j.geo.slots, c->threads, bytes, backward ? backward_slot : forward_slot, &j);
    }
    if (!failed && backward) add_slots(&j);
    void *const taken[] = {j.geo.phase, j.starts, j.entries, j.back_starts, j.back_entries, j.nonzeros, j.offsets, j.partial,
                           j.alphas, j.blocks[0], j.blocks[1]};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) dctps_give(taken[i]);
    return failed;
}

EXPORT int DPS(conv_forward)(const conv_call *call) { return run(call, 0); }
EXPORT int DPS(conv_backward)(const conv_call *call) { return run(call, 1); }
