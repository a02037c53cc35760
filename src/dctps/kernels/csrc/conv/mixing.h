/* The channels' mixing: matrix products and cosine transforms on columns of strips. */
#ifndef DCTPS_CONV_MIXING_H
#define DCTPS_CONV_MIXING_H

#include "job.h"

#define TERM_OUTPUTS 48 /* outputs whose maps are made together in a product; times two terms, blocks of MR */
#define MR 6    /* rows of a block of the matrix product */
#define NR (REGISTERS == 32 ? 4 : 2) /* vectors of its columns */
#define WIDE (NR * LANES) /* columns of a panel */

/* A panel is `inner` rows of `width` columns, contiguous, so that the product reads one stream. */
static void pack_panel(const float *rows, int64_t stride, int64_t inner, int64_t width, float *panel)
{
    for (int64_t k = 0; k < inner; k++)
        for (int64_t p = 0; p < width; p += LANES) store(panel + k * width + p, load(rows + k * stride + p));
}

INLINE void multiply_block(const float *a, int64_t inner, const float *panel, float *out, int64_t out_stride,
                           int64_t rows, int accumulate, const int nr)
{
    V sum[MR][NR];
#pragma GCC unroll 6
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int i = 0; i < nr; i++) sum[r][i] = splat(0.0f);
    for (int64_t k = 0; k < inner; k++) {
        V b[NR];
#pragma GCC unroll 4
        for (int i = 0; i < nr; i++) b[i] = load(panel + (k * nr + i) * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < MR; r++) {
            const V by = splat(a[k * MR + r]);
#pragma GCC unroll 4
            for (int i = 0; i < nr; i++) sum[r][i] += by * b[i];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; r++)
        if (r < rows) {
#pragma GCC unroll 4
            for (int i = 0; i < nr; i++) {
                float *to = out + r * out_stride + i * LANES;
                store(to, accumulate ? load(to) + sum[r][i] : sum[r][i]);
            }
        }
}

/* out (rows x width) = a (rows x inner, in blocks of MR) times a panel */
static void multiply(const float *a, int64_t rows, int64_t inner, const float *panel, int64_t width, float *out,
                     int64_t out_stride, int accumulate)
{
    for (int64_t r = 0; r < rows; r += MR, a += MR * inner) {
        float *to = out + r * out_stride;
        const int64_t some = least(MR, rows - r);
        switch (width / LANES) {
        case 1: multiply_block(a, inner, panel, to, out_stride, some, accumulate, 1); break;
        case 2: multiply_block(a, inner, panel, to, out_stride, some, accumulate, 2); break;
#if NR == 4
        case 3: multiply_block(a, inner, panel, to, out_stride, some, accumulate, 3); break;
        case 4: multiply_block(a, inner, panel, to, out_stride, some, accumulate, 4); break;
#endif
        }
    }
}

/* rows of `a` in blocks of MR, padded with zeros: (rows / MR, inner, MR); a[r, k] at a[r * by_row + k * by_col] */
static void block_rows(const float *a, int64_t rows, int64_t inner, int64_t by_row, int64_t by_col, float *out)
{
    for (int64_t r = 0; r < rows; r += MR)
        for (int64_t k = 0; k < inner; k++)
            for (int64_t i = 0; i < MR; i++) *out++ = r + i < rows ? a[(r + i) * by_row + k * by_col] : 0.0f;
}

/* out rows = a times rows, over columns from..to */
static void mix(const float *a, int64_t rows, int64_t inner, const float *in, float *out, int64_t stride,
                int64_t from, int64_t to, float *panel, int accumulate)
{
    for (int64_t p = from; p < to; p += WIDE) {
        const int64_t width = least(WIDE, to - p);
        pack_panel(in + p, stride, inner, width, panel);
        multiply(a, rows, inner, panel, width, out + p, stride, accumulate);
    }
}

/* The cosine transforms of the columns from..to: channels under each row of signs, then zeros, to maps. */
static void cosine(const job *j, const float *in, float *out, int64_t stride, int64_t from, int64_t to, float *tile)
{
    const conv_call *c = j->call;
    const dct_plan *plan = &j->plan;
    for (int64_t p = from; p < to; p += LANES)
        for (int64_t first = 0; first < c->maps; first += plan->q) {
            const float *signs = c->signs ? c->signs + first / plan->q * c->channels : 0;
            if (plan->q & 1) memset(tile, 0, sizeof(float) * 2 * plan->length * LANES);
            for (int64_t k = 0; k < c->channels; k++) {
                const V v = load(in + k * stride + p);
                store(tile + plan->slot[k] * LANES, signs ? signs[k] * v : v);
            }
            for (int64_t k = c->channels; k < plan->q; k++) store(tile + plan->slot[k] * LANES, splat(0.0f));
            fft(plan, tile, tile), spectrum(plan, tile);
            for (int64_t k = 0; k < plan->q; k++)
                store(out + (first + k) * stride + p, load(tile + plan->place[k] * LANES));
        }
}

static void cosine_adjoint(const job *j, const float *in, float *out, int64_t stride, int64_t from, int64_t to,
                           float *tile)
{
    const conv_call *c = j->call;
    const dct_plan *plan = &j->plan;
    for (int64_t p = from; p < to; p += LANES)
        for (int64_t first = 0; first < c->maps; first += plan->q) {
            const float *signs = c->signs ? c->signs + first / plan->q * c->channels : 0;
            for (int64_t k = 0; k < plan->q; k++)
                store(tile + plan->place[k] * LANES, load(in + (first + k) * stride + p));
            spectrum_adjoint(plan, tile), fft_adjoint(plan, tile);
            for (int64_t k = 0; k < c->channels; k++) {
                const V v = load(tile + plan->slot[k] * LANES);
                float *to_row = out + k * stride + p;
                store(to_row, first ? load(to_row) + signs[k] * v : signs ? signs[k] * v : v);
            }
        }
}

/* The mixing matrices, in the blocks that the product reads. */
static int block_mixing(job *j, int backward)
{
    const conv_call *c = j->call;
    const int64_t inner = c->mix == MIX_PRODUCT ? c->rank : c->maps;
    if (c->mix != MIX_PLAIN && c->mix != MIX_PRODUCT) return 0;
    const int64_t padded = round_up(backward ? c->channels : inner, MR);
    float *first = j->blocks[0] = take(sizeof(float) * padded * (backward ? inner : c->channels));
    if (!first) return 1;
    if (backward)
        block_rows(c->first, c->channels, inner, 1, c->channels, first);
    else
        block_rows(c->first, inner, c->channels, c->channels, 1, first);
    if (c->mix != MIX_PRODUCT) return 0;
    const int64_t floats = backward ? c->maps * round_up(c->rank, MR) : round_up(c->maps, MR) * c->rank;
    float *second = j->blocks[1] = take(sizeof(float) * floats);
    if (!second) return 1;
    if (!backward) {
        block_rows(c->second, c->maps, c->rank, c->rank, 1, second);
        return 0;
    }
    const int64_t block = least(c->maps, TERM_OUTPUTS * c->terms);
    for (int64_t z = 0; z < c->maps; z += block)
        block_rows(c->second + z * c->rank, c->rank, least(block, c->maps - z), 1, c->rank,
                   second + z * round_up(c->rank, MR));
    return 0;
}

static int64_t map_rows(const conv_call *c, int64_t phases)
{
    if (c->mix == MIX_NONE) return 0;
    return phases * (c->mix == MIX_PRODUCT ? least(c->maps, TERM_OUTPUTS * c->terms) : c->maps);
}

/* The row of map z in phase f, from at.z; a product holds one block of outputs' maps at a time. */
static int64_t map_row(const conv_call *c, int64_t f, int64_t z)
{
    if (c->mix != MIX_PRODUCT) return f * c->maps + z;
    const int64_t block = least(c->maps, TERM_OUTPUTS * c->terms);
    return f * block + z % block;
}

#endif
