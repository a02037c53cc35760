/* The DCT-II of a tile and its transpose, in place, by a complex FFT on (real, imaginary) pairs of vectors.
 *
 * An even length q packs the real sequence into L = q / 2 complex elements, an odd one takes L = q with zero
 * imaginary parts. The FFT decimates in time on digit-reversed input (the transpose into the tile puts it there
 * for nothing); its adjoint is the same flow graph backwards, with real and imaginary parts swapped, which turns
 * exp(-i t) into exp(i t).
 *
 * Reference: Makhoul, "A fast cosine transform in one and two dimensions", IEEE Trans. ASSP 28 (1980).
 */
#ifndef DCTPS_FFT_H
#define DCTPS_FFT_H

#include "vec.h"

#define MAX_FACTORS 24
#define MAX_PRIME 61
#define L1_ELEMENTS 128 /* complex elements whose tile stays in L1 over several passes */

typedef struct {
    int64_t q, length;          /* of the transform; of the complex FFT */
    int64_t factors;            /* how many */
    int32_t factor[MAX_FACTORS];
    const float *twiddle[MAX_FACTORS];
    const float *root[MAX_FACTORS]; /* cos, sin of 2 pi u / r, for primes without a routine of their own */
    const float *post;          /* 4 numbers for each k */
    const int32_t *slot;        /* input i -> its vector in the tile */
    const int32_t *place;       /* frequency f -> its vector in the tile */
} dct_plan;

/* The plan of length q out of the tables of plans.py. */
LOCAL void read_dct_plan(dct_plan *p, const int32_t *ints, const float *table, int64_t q)
{
    p->q = q, p->length = ints[0], p->factors = ints[1];
    p->slot = ints + 32, p->place = ints + 32 + q;
    p->post = table;
    table += 4 * (q / 2 + 1);
    int64_t l = 1;
    for (int i = 0; i < p->factors; i++) {
        const int r = p->factor[i] = ints[2 + i];
        p->root[i] = table;
        if (r > 5 && r != 8) table += 2 * r;
        p->twiddle[i] = table;
        table += 2 * (r - 1) * l;
        l *= r;
    }
}

#define RSQRT2 0.70710678118654752440f

INLINE void dft2(V *re, V *im)
{
    V a = re[0] - re[1], b = im[0] - im[1];
    re[0] += re[1], im[0] += im[1], re[1] = a, im[1] = b;
}

INLINE void dft3(V *re, V *im)
{
    const float half_sqrt3 = 0.86602540378443864676f;
    V sr = re[1] + re[2], si = im[1] + im[2], dr = re[1] - re[2], di = im[1] - im[2];
    V mr = re[0] - 0.5f * sr, mi = im[0] - 0.5f * si;
    re[0] += sr, im[0] += si;
    re[1] = mr + half_sqrt3 * di, im[1] = mi - half_sqrt3 * dr;
    re[2] = mr - half_sqrt3 * di, im[2] = mi + half_sqrt3 * dr;
}

INLINE void dft4(V *re, V *im)
{
    V ar = re[0] + re[2], ai = im[0] + im[2], br = re[0] - re[2], bi = im[0] - im[2];
    V cr = re[1] + re[3], ci = im[1] + im[3], dr = re[1] - re[3], di = im[1] - im[3];
    re[0] = ar + cr, im[0] = ai + ci, re[2] = ar - cr, im[2] = ai - ci;
    re[1] = br + di, im[1] = bi - dr, re[3] = br - di, im[3] = bi + dr;
}

INLINE void dft5(V *re, V *im)
{
    const float c1 = 0.30901699437494742410f, c2 = -0.80901699437494742410f;
    const float s1 = 0.95105651629515357212f, s2 = 0.58778525229247312917f;
    V ar = re[1] + re[4], ai = im[1] + im[4], br = re[1] - re[4], bi = im[1] - im[4];
    V cr = re[2] + re[3], ci = im[2] + im[3], dr = re[2] - re[3], di = im[2] - im[3];
    V pr = re[0] + c1 * ar + c2 * cr, pi = im[0] + c1 * ai + c2 * ci;
    V qr = re[0] + c2 * ar + c1 * cr, qi = im[0] + c2 * ai + c1 * ci;
    V ur = s1 * br + s2 * dr, ui = s1 * bi + s2 * di;
    V vr = s2 * br - s1 * dr, vi = s2 * bi - s1 * di;
    re[0] += ar + cr, im[0] += ai + ci;
    re[1] = pr + ui, im[1] = pi - ur, re[4] = pr - ui, im[4] = pi + ur;
    re[2] = qr + vi, im[2] = qi - vr, re[3] = qr - vi, im[3] = qi + vr;
}

INLINE void dft8(V *re, V *im)
{
    V er[4] = {re[0] + re[4], re[1] + re[5], re[2] + re[6], re[3] + re[7]};
    V ei[4] = {im[0] + im[4], im[1] + im[5], im[2] + im[6], im[3] + im[7]};
    V d0r = re[0] - re[4], d0i = im[0] - im[4], d1r = re[1] - re[5], d1i = im[1] - im[5];
    V d2r = re[2] - re[6], d2i = im[2] - im[6], d3r = re[3] - re[7], d3i = im[3] - im[7];
    dft4(er, ei);
    V ar = d0r + d2i, ai = d0i - d2r, br = d0r - d2i, bi = d0i + d2r;
    V pr = d1r + d1i, pi = d1i - d1r; /* sqrt(2) w8 d1 */
    V sr = d3i - d3r, si = d3r + d3i; /* sqrt(2) w8^3 d3 = (sr, -si) */
    V ur = pr + sr, ui = pi - si, vr = pr - sr, vi = pi + si;
    re[0] = er[0], im[0] = ei[0], re[2] = er[1], im[2] = ei[1];
    re[4] = er[2], im[4] = ei[2], re[6] = er[3], im[6] = ei[3];
    re[1] = ar + RSQRT2 * ur, im[1] = ai + RSQRT2 * ui;
    re[5] = ar - RSQRT2 * ur, im[5] = ai - RSQRT2 * ui;
    re[3] = br + RSQRT2 * vi, im[3] = bi - RSQRT2 * vr;
    re[7] = br - RSQRT2 * vi, im[7] = bi + RSQRT2 * vr;
}

/* Any small prime, in r^2 operations. */
INLINE void dft_any(V *re, V *im, int r, const float *root)
{
    V outr[MAX_PRIME], outi[MAX_PRIME];
    for (int u = 0; u < r; u++) {
        V sr = re[0], si = im[0];
        for (int t = 1; t < r; t++) {
            const float *w = root + 2 * ((u * t) % r);
            sr += w[0] * re[t] + w[1] * im[t];
            si += w[0] * im[t] - w[1] * re[t];
        }
        outr[u] = sr, outi[u] = si;
    }
    for (int u = 0; u < r; u++) re[u] = outr[u], im[u] = outi[u];
}

INLINE void dft(int r, V *re, V *im, const float *root)
{
    switch (r) {
    case 2: dft2(re, im); break;
    case 3: dft3(re, im); break;
    case 4: dft4(re, im); break;
    case 5: dft5(re, im); break;
    case 8: dft8(re, im); break;
    default: dft_any(re, im, r, root);
    }
}

INLINE void twist(V *re, V *im, const float *w)
{
    V a = *re * w[0] - *im * w[1];
    *im = *re * w[1] + *im * w[0];
    *re = a;
}

/* Combine, in each of `blocks` blocks, r sub-transforms of length l into one of length r l.
 * Backwards (swap = 1): take one of length r l apart, as the adjoint does. */
INLINE void pass(const float *src, float *dst, int64_t l, int r, int64_t blocks, const float *tw,
                 const float *root, int swap)
{
    const ptrdiff_t step = 2 * LANES, ro = swap ? LANES : 0, io = swap ? 0 : LANES;
    V re[MAX_PRIME], im[MAX_PRIME];
    for (int64_t b = 0; b < blocks; b++) {
        const float *s = src + b * l * r * step;
        float *d = dst + b * l * r * step;
        const float *w = tw;
        for (int64_t j = 0; j < l; j++, s += step, d += step, w += 2 * (r - 1)) {
            for (int t = 0; t < r; t++) re[t] = load(s + t * l * step + ro), im[t] = load(s + t * l * step + io);
            if (!swap && l > 1)
                for (int t = 1; t < r; t++) twist(re + t, im + t, w + 2 * (t - 1));
            dft(r, re, im, root);
            if (swap && l > 1)
                for (int t = 1; t < r; t++) twist(re + t, im + t, w + 2 * (t - 1));
            for (int t = 0; t < r; t++) store(d + t * l * step + ro, re[t]), store(d + t * l * step + io, im[t]);
        }
    }
}

#define PASSES(name, swap)                                                                                    \
    LOCAL void name(const float *src, float *dst, int64_t l, int r, int64_t blocks, const float *tw,         \
                     const float *root)                                                                       \
    {                                                                                                         \
        switch (r) {                                                                                          \
        case 2: pass(src, dst, l, 2, blocks, tw, root, swap); break;                                          \
        case 3: pass(src, dst, l, 3, blocks, tw, root, swap); break;                                          \
        case 4: pass(src, dst, l, 4, blocks, tw, root, swap); break;                                          \
        case 5: pass(src, dst, l, 5, blocks, tw, root, swap); break;                                          \
        case 8: pass(src, dst, l, 8, blocks, tw, root, swap); break;                                          \
        default: pass(src, dst, l, r, blocks, tw, root, swap);                                                \
        }                                                                                                     \
    }
PASSES(pass_forward, 0)
PASSES(pass_adjoint, 1)

/* How many first passes stay within blocks that fit L1, and the length of such a block. */
LOCAL int leading_passes(const dct_plan *plan, int64_t *block)
{
    int count = 0;
    for (*block = 1; count < plan->factors && *block * plan->factor[count] <= L1_ELEMENTS; count++)
        *block *= plan->factor[count];
    if (count == 0 && plan->factors) *block = plan->factor[count++];
    return count;
}

LOCAL void fft(const dct_plan *plan, const float *src, float *dst)
{
    const ptrdiff_t step = 2 * LANES;
    int64_t block, l;
    int leading = leading_passes(plan, &block), i;
    if (!plan->factors && src != dst) memcpy(dst, src, sizeof(float) * step);
    for (int64_t start = 0; leading && start < plan->length; start += block)
        for (i = 0, l = 1; i < leading; l *= plan->factor[i++])
            pass_forward((i ? dst : src) + start * step, dst + start * step, l, plan->factor[i],
                         block / (l * plan->factor[i]), plan->twiddle[i], plan->root[i]);
    for (i = leading, l = block; i < plan->factors; l *= plan->factor[i++])
        pass_forward(dst, dst, l, plan->factor[i], plan->length / (l * plan->factor[i]), plan->twiddle[i],
                     plan->root[i]);
}

LOCAL void fft_adjoint(const dct_plan *plan, float *z)
{
    const ptrdiff_t step = 2 * LANES;
    int64_t block, l = plan->length;
    int leading = leading_passes(plan, &block), i;
    for (i = (int)plan->factors - 1; i >= leading; i--) {
        l /= plan->factor[i];
        pass_adjoint(z, z, l, plan->factor[i], plan->length / (l * plan->factor[i]), plan->twiddle[i], plan->root[i]);
    }
    for (int64_t start = 0; leading && start < plan->length; start += block)
        for (i = leading - 1, l = block; i >= 0; i--) {
            l /= plan->factor[i];
            pass_adjoint(z + start * step, z + start * step, l, plan->factor[i], block / (l * plan->factor[i]),
                         plan->twiddle[i], plan->root[i]);
        }
}

/* From the FFT's Z to the DCT's y: with E and O the transforms of the even and odd terms, T = tau E + sigma O
 * gives y_k and y_{q-k}, and its partner y_{L-k} and y_{L+k}. In place; `place` says where each lies. */
LOCAL void spectrum(const dct_plan *plan, float *z)
{
    const int64_t L = plan->length;
    const float *p = plan->post;
    if (plan->q & 1) {
        store(z, p[0] * load(z));
        for (int64_t k = 1; 2 * k < plan->q; k++) {
            V re = load(z + 2 * k * LANES), im = load(z + (2 * k + 1) * LANES);
            twist(&re, &im, p + 4 * k);
            store(z + 2 * k * LANES, re), store(z + (2 * k + 1) * LANES, -im);
        }
        return;
    }
    V a = load(z), b = load(z + LANES);
    store(z, p[0] * (a + b)), store(z + LANES, p[0] * (a - b));
    for (int64_t k = 1; 2 * k < L; k++) {
        const float *w = p + 4 * k;
        float *lo = z + 2 * k * LANES, *hi = z + 2 * (L - k) * LANES;
        V a = load(lo), b = load(lo + LANES), c = load(hi), d = load(hi + LANES);
        V er = a + c, ei = b - d, or = b + d, oi = c - a;
        V pr = er * w[0] - ei * w[1], pi = er * w[1] + ei * w[0];
        V tr = pr + or * w[2] - oi * w[3], ti = pi + or * w[3] + oi * w[2];
        V ur = 2.0f * pr - tr, ui = 2.0f * pi - ti;
        store(lo, tr), store(lo + LANES, -ti);
        store(hi, RSQRT2 * (ur - ui)), store(hi + LANES, RSQRT2 * (ur + ui));
    }
    if (L % 2 == 0) {
        const float *w = p + 2 * L;
        V a = load(z + L * LANES), b = load(z + (L + 1) * LANES);
        store(z + L * LANES, a * w[0] + b * w[1]), store(z + (L + 1) * LANES, b * w[0] - a * w[1]);
    }
}

/* The transpose of `spectrum`. */
LOCAL void spectrum_adjoint(const dct_plan *plan, float *z)
{
    const int64_t L = plan->length;
    const float *p = plan->post;
    const V zero = {0};
    if (plan->q & 1) {
        store(z, p[0] * load(z)), store(z + LANES, zero);
        for (int64_t k = 1; 2 * k < plan->q; k++) {
            const float *w = p + 4 * k;
            V re = load(z + 2 * k * LANES), im = -load(z + (2 * k + 1) * LANES);
            store(z + 2 * k * LANES, re * w[0] + im * w[1]), store(z + (2 * k + 1) * LANES, im * w[0] - re * w[1]);
        }
        for (int64_t k = L + 1; k < 2 * L; k++) store(z + k * LANES, zero);
        return;
    }
    V a = load(z), b = load(z + LANES);
    store(z, p[0] * (a + b)), store(z + LANES, p[0] * (a - b));
    for (int64_t k = 1; 2 * k < L; k++) {
        const float *w = p + 4 * k;
        float *lo = z + 2 * k * LANES, *hi = z + 2 * (L - k) * LANES;
        V tr = load(lo), ti = -load(lo + LANES), ur = load(hi), ui = load(hi + LANES);
        V vr = RSQRT2 * (ur + ui), vi = RSQRT2 * (ui - ur);
        V pr = tr + vr, pi = ti + vi, qr = tr - vr, qi = ti - vi;
        V er = pr * w[0] + pi * w[1], ei = pi * w[0] - pr * w[1];
        V or = qr * w[2] + qi * w[3], oi = qi * w[2] - qr * w[3];
        store(lo, er - oi), store(lo + LANES, ei + or);
        store(hi, er + oi), store(hi + LANES, or - ei);
    }
    if (L % 2 == 0) {
        const float *w = p + 2 * L;
        V tr = load(z + L * LANES), ti = -load(z + (L + 1) * LANES);
        store(z + L * LANES, tr * w[0] + ti * w[1]), store(z + (L + 1) * LANES, tr * w[1] - ti * w[0]);
    }
}

#endif
