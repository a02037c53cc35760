/* The lists of rows, shifts and coefficients that the one loop runs over. */
#ifndef DCTPS_CONV_LISTS_H
#define DCTPS_CONV_LISTS_H

#include "mixing.h"

typedef struct {
    int64_t output, channel, tap;
} place;

INLINE term term_of(const conv_call *c, int64_t i)
{
    return find_term(c->source, c->filter, c->kernel[0] * c->kernel[1], c->cosine, i);
}

INLINE place find_place(const conv_call *c, int64_t position)
{
    const uint32_t taps = (uint32_t)(c->kernel[0] * c->kernel[1]);
    const uint32_t inner = (uint32_t)(c->channels / c->groups);
    const uint64_t pair = (uint64_t)position / taps;
    const int64_t output = (int64_t)(pair / inner);
    const int64_t group = c->groups == 1 ? 0 : output / (c->outputs / c->groups);
    return (place){output, group * inner + (int64_t)(pair % inner), position % taps};
}

/* Each output's list: D's filters on maps, scaled by alpha, then S's nonzeros on x. */
static int list_outputs(job *j)
{
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t per_output = c->terms * g->taps, stride = g->stride;
    j->starts = take(sizeof(int64_t) * (c->outputs + 1));
    j->entries = take(sizeof(entry) * (c->outputs * per_output + c->nnz + 1));
    if (!j->starts || !j->entries) return 1;
    entry *e = j->entries;
    int64_t k = 0;
    place at = c->nnz ? find_place(c, c->support[0]) : (place){-1, 0, 0};
    for (int64_t o = 0; o < c->outputs; o++) {
        j->starts[o] = e - j->entries;
        for (int64_t i = o * c->terms; i < (o + 1) * c->terms; i++) {
            const term d = term_of(c, i);
            for (int64_t t = 0; t < g->taps; t++) {
                const int64_t row = c->mix == MIX_NONE ? g->phase[t] * c->channels + d.map : map_row(c, g->phase[t], d.map);
                const int64_t from = c->mix == MIX_NONE ? j->at.x : j->at.z;
                const float by = *c->alpha * c->bank[d.filter * g->taps + t];
                *e++ = (entry){(int32_t)(from + row * stride + g->guard + g->shift[t]), by};
            }
        }
        while (k < c->nnz && at.output == o) {
            const int64_t row = g->phase[at.tap] * c->channels + at.channel;
            *e++ = (entry){(int32_t)(j->at.x + row * stride + g->guard + g->shift[at.tap]), c->values[k]};
            if (++k < c->nnz) at = find_place(c, c->support[k]);
        }
    }
    j->starts[c->outputs] = e - j->entries;
    return 0;
}

/* Starts of each bucket from counts, which lie one place further on; filling moves each start to its end. */
static void add_up(int64_t *starts, int64_t buckets)
{
    for (int64_t b = 0; b < buckets; b++) starts[b + 1] += starts[b];
}

/* D transposed: each (phase, map)'s list of filters, turned around, on g. */
static int list_maps(job *j)
{
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t buckets = g->phases * c->maps;
    j->back_starts = take_zeros(sizeof(int64_t) * (buckets + 2));
    j->back_entries = take(sizeof(entry) * (c->outputs * c->terms * g->taps + 1));
    if (!j->back_starts || !j->back_entries) return 1;
    int64_t *starts = j->back_starts + 1;
    for (int64_t i = 0; i < c->outputs * c->terms; i++) {
        const int64_t map = term_of(c, i).map;
        for (int64_t t = 0; t < g->taps; t++) starts[g->phase[t] * c->maps + map + 1]++;
    }
    add_up(starts, buckets);
    for (int64_t i = 0; i < c->outputs * c->terms; i++) {
        const term d = term_of(c, i);
        for (int64_t t = 0; t < g->taps; t++) {
            const int64_t from = j->at.g + i / c->terms * g->stride + g->guard - g->shift[t];
            const float by = c->bank[d.filter * g->taps + t];
            j->back_entries[starts[g->phase[t] * c->maps + d.map]++] = (entry){(int32_t)from, by};
        }
    }
    return 0;
}

/* Each (phase, channel)'s list: alpha times its row of D^T g, then S^T on g. */
static int list_channels(job *j)
{
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t buckets = g->phases * c->channels, has_d = c->terms > 0;
    int64_t *held = take_zeros(sizeof(int64_t) * (buckets + 2));
    j->starts = held;
    j->entries = take(sizeof(entry) * (buckets + c->nnz + 1));
    if (!held || !j->entries) return 1;
    int64_t *starts = held + 1;
    for (int64_t k = 0; k < c->nnz; k++) {
        const place at = find_place(c, c->support[k]);
        starts[g->phase[at.tap] * c->channels + at.channel + 1]++;
    }
    for (int64_t b = 0; b < buckets; b++) starts[b + 1] += has_d;
    add_up(starts, buckets);
    if (has_d)
        for (int64_t b = 0; b < buckets; b++)
            j->entries[starts[b]++] = (entry){(int32_t)(j->at.by_x + b * g->stride + g->guard), *c->alpha};
    for (int64_t k = 0; k < c->nnz; k++) {
        const place at = find_place(c, c->support[k]);
        const int64_t from = j->at.g + at.output * g->stride + g->guard - g->shift[at.tap];
        j->entries[starts[g->phase[at.tap] * c->channels + at.channel]++] = (entry){(int32_t)from, c->values[k]};
    }
    return 0;
}

/* S by outputs, for the gradient of its values: where each nonzero's x lies against its output's g. */
static int list_nonzeros(job *j)
{
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    int64_t *starts = j->nonzeros = take(sizeof(int64_t) * (c->outputs + 1));
    j->offsets = take(sizeof(int32_t) * (c->nnz + 1));
    if (!starts || !j->offsets) return 1;
    int64_t o = 0;
    starts[0] = 0;
    for (int64_t k = 0; k < c->nnz; k++) {
        const place at = find_place(c, c->support[k]);
        while (o < at.output) starts[++o] = k;
        const int64_t row = g->phase[at.tap] * c->channels + at.channel;
        j->offsets[k] = (int32_t)(j->at.x + row * g->stride + g->guard + g->shift[at.tap]);
    }
    while (o < c->outputs) starts[++o] = c->nnz;
    return 0;
}

#endif
