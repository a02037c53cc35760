/* What is done to vectors of numbers, whether their lanes are channels (rows.h) or pixels (planes.h).
 *
 *     y  = clamp((x - mean) scale + bias + residual)
 *     g' = g where lower < y < upper, else 0
 *     dx = scale g' - (x - mean) slope - drift
 *
 * Slope and drift are what mean and variance pass back; a bound that is nan is no bound. A step takes a few vectors that
 * are `stride` apart, and reads all of them before it writes any: a load waits for a store that merely might be to its
 * place, and the pages of x and y often lie alike.
 */
#ifndef DCTPS_NORM_STEPS_H
#define DCTPS_NORM_STEPS_H

#include "call.h"
#include "common/numbers.h"
#include "common/runtime.h"
#include "common/vec.h"

#define TOGETHER 4 /* vectors of a step, at most */
#define CHUNK 32   /* vectors whose sums are floats; chunks are added up in double */
#define BLOCK 8192 /* numbers of an item, about, where items depend on nothing but their place */
#define SLOTS 32   /* parts of the images that are summed up apart, at most */
#define UNROLL _Pragma("GCC unroll 4")

typedef int32_t I __attribute__((vector_size(4 * LANES)));

/* Of a channel or, in the lanes, of several. */
typedef struct {
    V mean, scale, bias, slope, drift;
} factors;

typedef struct {
    const norm_call *a;
    V lower, upper;
    int bounded;
    int64_t rows, slots, per_slot; /* rows: pixels of all images; a slot has so many of them, or so many images */
    int64_t groups;                /* of channels */
    double *first, *second; /* (slots, channels): means and sums of squares about them; in backward sums of g' and g' x */
    float *slope, *drift;   /* (channels) */
} job;

/* Where vectors lie, and which of their lanes are there if not all. */
typedef struct {
    int64_t at, stride;
    some lanes;
} place;

INLINE V read(const float *p, const place *w, const int i, const int edge)
{
    return edge ? load_some(p + w->at + i * w->stride, w->lanes) : load_anywhere(p + w->at + i * w->stride);
}

INLINE void write(float *p, V v, const place *w, const int i, const int edge)
{
    if (edge) store_some(p + w->at + i * w->stride, v, w->lanes);
    else *(anywhere *)(p + w->at + i * w->stride) = v;
}

/* Zeros in the lanes that are not there. */
INLINE V keep(V v, some lanes)
{
#if LANES == 16
    return (V)_mm512_maskz_mov_ps(lanes, (__m512)v);
#else
    for (int64_t i = lanes; i < LANES; i++) v[i] = 0;
    return v;
#endif
}

/* nan stays nan, as in torch. */
INLINE V clamp(const job *j, V y)
{
#if LANES == 16 /* of two numbers, one of them nan, these give the second */
    return (V)_mm512_min_ps((__m512)j->upper, _mm512_max_ps((__m512)j->lower, (__m512)y));
#elif LANES == 8
    return (V)_mm256_min_ps((__m256)j->upper, _mm256_max_ps((__m256)j->lower, (__m256)y));
#else
    const I low = y < j->lower, high = y > j->upper;
    y = (V)(((I)y & ~low) | ((I)j->lower & low));
    return (V)(((I)y & ~high) | ((I)j->upper & high));
#endif
}

INLINE V within(const job *j, V y, V g)
{
#if LANES == 16
    const __mmask16 low = _mm512_cmp_ps_mask((__m512)y, (__m512)j->lower, _CMP_LE_OQ);
    const __mmask16 high = _mm512_cmp_ps_mask((__m512)y, (__m512)j->upper, _CMP_GE_OQ);
    return (V)_mm512_maskz_mov_ps((__mmask16)~(low | high), (__m512)g);
#else
    return (V)((I)g & ~((y <= j->lower) | (y >= j->upper)));
#endif
}

INLINE V normalised(const factors *f, V x) { return (x - f->mean) * f->scale + f->bias; }

INLINE void add_up(const float *x, const place *w, const int count, const int edge, V *sum)
{
    V part = {0};
    UNROLL for (int i = 0; i < count; i++) part += read(x, w, i, edge);
    *sum += part;
}

/* Of the distances from `mean`: their sum, which rounding leaves, and that of their squares. */
INLINE void add_squares(const float *x, V mean, const place *w, const int count, const int edge, V *sum, V *squares)
{
    V part = {0}, square = {0};
    UNROLL for (int i = 0; i < count; i++) {
        V apart = read(x, w, i, edge) - mean;
        if (edge) apart = keep(apart, w->lanes);
        part += apart, square += apart * apart;
    }
    *sum += part, *squares += square;
}

INLINE void apply(const job *j, const factors *f, const place *w, const int count, const int edge)
{
    const norm_call *a = j->a;
    V y[TOGETHER];
    UNROLL for (int i = 0; i < count; i++) {
        y[i] = normalised(f, read(a->x, w, i, edge));
        if (a->residual) y[i] += read(a->residual, w, i, edge);
        y[i] = clamp(j, y[i]);
    }
    UNROLL for (int i = 0; i < count; i++) write(a->y, y[i], w, i, edge);
}

/* g', by y where it is at hand and else by x. */
INLINE V masked(const job *j, const factors *f, V x, const place *w, const int i, const int edge)
{
    const V g = read(j->a->g, w, i, edge);
    if (!j->bounded) return g;
    return within(j, j->a->y ? read(j->a->y, w, i, edge) : normalised(f, x), g);
}

/* Sums of g' and g' (x - mean); the residual's gradient on the way. */
INLINE void add_gradients(const job *j, const factors *f, const place *w, const int count, const int edge, V *sum, V *product)
{
    V g[TOGETHER], part = {0}, parts = {0};
    UNROLL for (int i = 0; i < count; i++) {
        const V x = read(j->a->x, w, i, edge);
        g[i] = masked(j, f, x, w, i, edge);
        part += g[i], parts += g[i] * (x - f->mean);
    }
    *sum += part, *product += parts;
    if (j->a->grad_residual)
        UNROLL for (int i = 0; i < count; i++) write(j->a->grad_residual, g[i], w, i, edge);
}

INLINE void back(const job *j, const factors *f, const place *w, const int count, const int edge)
{
    const norm_call *a = j->a;
    V d[TOGETHER];
    UNROLL for (int i = 0; i < count; i++) {
        const V x = read(a->x, w, i, edge);
        const V g = a->grad_residual ? read(a->grad_residual, w, i, edge) : masked(j, f, x, w, i, edge);
        d[i] = f->scale * g - (x - f->mean) * f->slope - f->drift;
    }
    UNROLL for (int i = 0; i < count; i++) write(a->grad_x, d[i], w, i, edge);
}

/* What the second pass does: y, or the gradient of x. */
INLINE void second_step(const job *j, const factors *f, const place *w, const int count, const int edge, const int backward)
{
    if (backward) back(j, f, w, count, edge);
    else apply(j, f, w, count, edge);
}

/* Two sets of numbers as one, each by its mean and the sum of the squares about it (Chan, Golub and LeVeque, 1983). */
INLINE void merge(double *mean, double *squares, double before, double mean_2, double squares_2, double count)
{
    const double apart = mean_2 - *mean, share = count / (before + count);
    *mean += apart * share;
    *squares += squares_2 + apart * apart * before * share;
}

#endif
