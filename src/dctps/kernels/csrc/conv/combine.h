/* The one loop over strips, out[p] = sum of coefficient * row[p + shift], and the gradients of its coefficients. */
#ifndef DCTPS_CONV_COMBINE_H
#define DCTPS_CONV_COMBINE_H

#include "job.h"

INLINE void combine_block(const entry *e, int64_t n, const float *base, float start, float *out, const int vectors)
{
    V sum[8];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++) sum[i] = splat(start);
    for (int64_t k = 0; k < n; k++) {
        const float *row = base + e[k].offset;
        const V by = splat(e[k].coefficient);
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) sum[i] += by * load_anywhere(row + i * LANES);
    }
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++) store(out + i * LANES, sum[i]);
}

/* out[p] = start + sum of coefficient * base[offset + p] for p < length, rounded up to whole vectors */
static void combine(const entry *e, int64_t n, const float *base, float start, float *out, int64_t length)
{
    int64_t p = 0;
    for (; p + 8 * LANES <= length; p += 8 * LANES) combine_block(e, n, base + p, start, out + p, 8);
    for (; p + 4 * LANES <= length; p += 4 * LANES) combine_block(e, n, base + p, start, out + p, 4);
    for (; p + 2 * LANES <= length; p += 2 * LANES) combine_block(e, n, base + p, start, out + p, 2);
    for (; p < length; p += LANES) combine_block(e, n, base + p, start, out + p, 1);
}

static float dot(const float *a, const float *b, int64_t length)
{
    V sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    int64_t p = 0;
    for (; p + 4 * LANES <= length; p += 4 * LANES)
        for (int i = 0; i < 4; i++) sum[i] += load(a + p + i * LANES) * load_anywhere(b + p + i * LANES);
    for (; p + LANES <= length; p += LANES) sum[0] += load(a + p) * load_anywhere(b + p);
    float rest = 0;
    for (; p < length; p++) rest += a[p] * b[p];
    return halved_total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
}

typedef float quad __attribute__((vector_size(16)));
typedef int places __attribute__((vector_size(16)));
#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

/* sums[i] += the total of v[i] */
INLINE void add_totals(const V v[4], float *sums)
{
    float parts[4][LANES] __attribute__((aligned(64)));
    quad q[4];
    for (int i = 0; i < 4; i++) {
        memcpy(parts[i], v + i, sizeof parts[i]);
        memcpy(q + i, parts[i], sizeof(quad));
        for (int k = 4; k < LANES; k += 4) {
            quad more;
            memcpy(&more, parts[i] + k, sizeof more);
            q[i] += more;
        }
    }
    const quad a = PICK(q[0], q[1], 0, 4, 1, 5) + PICK(q[0], q[1], 2, 6, 3, 7);
    const quad b = PICK(q[2], q[3], 0, 4, 1, 5) + PICK(q[2], q[3], 2, 6, 3, 7);
    const quad all = PICK(a, b, 0, 1, 4, 5) + PICK(a, b, 2, 3, 6, 7);
    for (int i = 0; i < 4; i++) sums[i] += all[i];
}

/* sums[k] += <base + offset[k], g> for the nonzeros of one output, four at a time */
static void add_dots(const float *base, const int32_t *offset, int64_t count, const float *g, int64_t length, float *sums)
{
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) {
        const float *a = base + offset[k], *b = base + offset[k + 1];
        const float *c = base + offset[k + 2], *d = base + offset[k + 3];
        V sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
        int64_t p = 0;
        for (; p + LANES <= length; p += LANES) {
            const V by = load(g + p);
            sum[0] += by * load_anywhere(a + p), sum[1] += by * load_anywhere(b + p);
            sum[2] += by * load_anywhere(c + p), sum[3] += by * load_anywhere(d + p);
        }
        add_totals(sum, sums + k);
        for (; p < length; p++) {
            sums[k] += g[p] * a[p], sums[k + 1] += g[p] * b[p];
            sums[k + 2] += g[p] * c[p], sums[k + 3] += g[p] * d[p];
        }
    }
    for (; k < count; k++) sums[k] += dot(g, base + offset[k], length);
}

#endif
