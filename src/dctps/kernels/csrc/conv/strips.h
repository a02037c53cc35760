/* Strips in and out, and the one loop over them. */
#ifndef DCTPS_CONV_STRIPS_H
#define DCTPS_CONV_STRIPS_H

#include "job.h"

/* Positions that follow each other in memory, too. */
typedef struct {
    int64_t position, from, count;
} span;

static int64_t find_spans(const int64_t *where, int64_t stride, span *spans)
{
    int64_t found = 0;
    for (int64_t p = 0; p < stride; p++) {
        if (where[p] < 0) continue;
        span *last = spans + found - 1;
        if (found && last->position + last->count == p && last->from + last->count == where[p])
            last->count++;
        else
            spans[found++] = (span){p, where[p], 1};
    }
    return found;
}

static void pack(const void *from, int64_t half, int64_t channel_stride, int64_t channels, int64_t *where, int64_t stride,
                 float *rows)
{
    if (channel_stride != 1) {
        span *spans = (span *)(where + stride);
        const int64_t count = find_spans(where, stride, spans);
        for (int64_t c = 0; c < channels; c++) {
            float *row = rows + c * stride;
            for (int64_t p = 0; p < stride; p += LANES) store(row + p, splat(0.0f));
            for (int64_t i = 0; i < count; i++) {
                const int64_t at = c * channel_stride + spans[i].from;
                read_numbers(row + spans[i].position, from, half, at, spans[i].count);
            }
        }
        return;
    }
    static const float absent[LANES];
    float tile[LANES][LANES], wide[LANES][LANES];
    for (int64_t p = 0; p < stride; p += LANES) {
        int any = 0;
        for (int i = 0; i < LANES; i++) any |= where[p + i] >= 0;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t some = least(LANES, channels - c);
            if (!any) {
                for (int64_t r = 0; r < some; r++) store(rows + (c + r) * stride + p, splat(0.0f));
            } else if (some == LANES) {
                const float *row[LANES];
                float *out[LANES];
                for (int i = 0; i < LANES; i++) {
                    const int64_t at = where[p + i] + c;
                    row[i] = where[p + i] < 0 ? absent : half ? wide[i] : (const float *)from + at;
                    if (half && where[p + i] >= 0) widen(wide[i], (const uint16_t *)from + at, LANES);
                }
                for (int r = 0; r < LANES; r++) out[r] = rows + (c + r) * stride + p;
                if (p + 3 * LANES <= stride)
                    for (int i = 2 * LANES; i < 3 * LANES; i++)
                        __builtin_prefetch(number_at(from, half, where[p + i] + c), 0, 2);
                transpose_in(row, 0, out);
            } else {
                for (int i = 0; i < LANES; i++) {
                    float pixel[LANES] = {0};
                    if (where[p + i] >= 0) read_numbers(pixel, from, half, where[p + i] + c, some);
                    for (int64_t r = 0; r < some; r++) tile[r][i] = pixel[r];
                }
                for (int64_t r = 0; r < some; r++) memcpy(rows + (c + r) * stride + p, tile[r], sizeof tile[r]);
            }
        }
    }
}

static void unpack(const float *rows, int64_t stride, int64_t channels, int64_t *where, void *to, int64_t half,
                   int64_t first, int64_t channel_stride)
{
    if (channel_stride != 1) {
        span *spans = (span *)(where + stride);
        const int64_t count = find_spans(where, stride, spans);
        for (int64_t c = 0; c < channels; c++) {
            const float *row = rows + c * stride;
            for (int64_t i = 0; i < count; i++) {
                const int64_t at = (first + c) * channel_stride + spans[i].from;
                write_numbers(to, half, at, row + spans[i].position, spans[i].count);
            }
        }
        return;
    }
    float unwanted[LANES], wide[LANES][LANES];
    for (int64_t p = 0; p < stride; p += LANES) {
        int any = 0;
        for (int i = 0; i < LANES; i++) any |= where[p + i] >= 0;
        if (!any) continue;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t some = least(LANES, channels - c);
            if (some == LANES) {
                V v[LANES];
                float *out[LANES];
                for (int r = 0; r < LANES; r++) v[r] = load(rows + (c + r) * stride + p);
                for (int i = 0; i < LANES; i++)
                    out[i] = where[p + i] < 0 ? unwanted : half ? wide[i] : (float *)to + where[p + i] + first + c;
                if (p + 4 * LANES <= stride)
                    for (int i = 3 * LANES; i < 4 * LANES; i++)
                        __builtin_prefetch(number_at(to, half, where[p + i] + first + c), 1, 2);
                transpose_out(v, out, 0, LANES);
                for (int i = 0; half && i < LANES; i++)
                    if (where[p + i] >= 0) narrow((uint16_t *)to + where[p + i] + first + c, wide[i], LANES);
            } else {
                for (int i = 0; i < LANES; i++)
                    if (where[p + i] >= 0) {
                        float pixel[LANES];
                        for (int64_t r = 0; r < some; r++) pixel[r] = rows[(c + r) * stride + p + i];
                        write_numbers(to, half, where[p + i] + first + c, pixel, some);
                    }
            }
        }
    }
}

/* Zeros before and behind a row, which shifted reads may meet. */
static void clear_guards(const geometry *g, float *rows, int64_t count, int64_t length)
{
    for (int64_t r = 0; r < count; r++, rows += g->stride) {
        memset(rows, 0, sizeof(float) * g->guard);
        memset(rows + g->guard + length, 0, sizeof(float) * g->guard);
    }
}

#endif
