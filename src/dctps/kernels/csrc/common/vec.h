/* Vectors of LANES floats, one lane for each row of a tile, and the two transposes between rows and lanes.
 *
 * LANES (16, 8 or 4) and SUFFIX come from the build, which compiles every source once for each variant.
 */
#ifndef DCTPS_VEC_H
#define DCTPS_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define DPS(name) JOIN(dctps_##name, SUFFIX) /* the exported name in this variant */

#ifndef INLINE /* the sanitizers' build takes minutes over what is inlined, and defines it away */
#define INLINE static inline __attribute__((always_inline))
#endif
#define LOCAL static __attribute__((unused)) /* in a header, for those who want it */
#define EXPORT __attribute__((visibility("default")))

#if LANES == 16 || defined(__aarch64__)
#define REGISTERS 32 /* vectors that the processor holds */
#else
#define REGISTERS 16
#endif

typedef float V __attribute__((vector_size(4 * LANES)));
typedef V in_memory __attribute__((may_alias));

INLINE V load(const float *p) { return *(const in_memory *)p; }
INLINE void store(float *p, V v) { *(in_memory *)p = v; }

INLINE V splat(float f) { return f - (V){0}; }

/* Of any alignment; of some lanes, where the others are read as zeros and not written. */
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
INLINE V load_anywhere(const float *p) { return *(const anywhere *)p; }

#if LANES == 16
typedef __mmask16 some;
INLINE some first_lanes(int64_t n) { return (some)((1u << n) - 1); }
INLINE V load_some(const float *p, some lanes) { return (V)_mm512_maskz_loadu_ps(lanes, p); }
INLINE void store_some(float *p, V v, some lanes) { _mm512_mask_storeu_ps(p, lanes, (__m512)v); }
#else
typedef int64_t some;
INLINE some first_lanes(int64_t n) { return n; }
LOCAL __attribute__((noinline)) V load_few(const float *p, some lanes)
{
    V v = {0};
    for (int64_t i = 0; i < lanes; i++) v[i] = p[i];
    return v;
}
LOCAL __attribute__((noinline)) void store_few(float *p, V v, some lanes)
{
    for (int64_t i = 0; i < lanes; i++) p[i] = v[i];
}
INLINE V load_some(const float *p, some lanes)
{
    if (lanes == LANES) return *(const anywhere *)p;
    return lanes ? load_few(p, lanes) : (V){0};
}
INLINE void store_some(float *p, V v, some lanes)
{
    if (lanes == LANES) *(anywhere *)p = v;
    else if (lanes) store_few(p, v, lanes);
}
#endif

#if LANES == 16

/* LANES columns to as many vectors; lane i holds row i. A row's line is read at once: the lines of rows that
 * are a power of two apart would drive each other out of the cache. */
INLINE void transpose(const float *const *row, ptrdiff_t at, V *out)
{
    __m512 t[4][4];
    for (int a = 0; a < 4; a++)
        for (int quarter = 0; quarter < 4; quarter++) {
            const ptrdiff_t from = at + 4 * quarter;
            __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(row[a] + from));
            v = _mm512_mask_broadcast_f32x4(v, 0x00F0, _mm_loadu_ps(row[a + 4] + from));
            v = _mm512_mask_broadcast_f32x4(v, 0x0F00, _mm_loadu_ps(row[a + 8] + from));
            t[quarter][a] = _mm512_mask_broadcast_f32x4(v, 0xF000, _mm_loadu_ps(row[a + 12] + from));
        }
    for (int quarter = 0; quarter < 4; quarter++, out += 4) {
        const __m512 *c = t[quarter];
        __m512d u0 = _mm512_castps_pd(_mm512_unpacklo_ps(c[0], c[1])), u1 = _mm512_castps_pd(_mm512_unpackhi_ps(c[0], c[1]));
        __m512d u2 = _mm512_castps_pd(_mm512_unpacklo_ps(c[2], c[3])), u3 = _mm512_castps_pd(_mm512_unpackhi_ps(c[2], c[3]));
        out[0] = (V)_mm512_unpacklo_pd(u0, u2), out[1] = (V)_mm512_unpackhi_pd(u0, u2);
        out[2] = (V)_mm512_unpacklo_pd(u1, u3), out[3] = (V)_mm512_unpackhi_pd(u1, u3);
    }
}

INLINE void transpose_out(const V *in, float *const *row, ptrdiff_t at, int rows)
{
    __m512 t[4][4];
    for (int quarter = 0; quarter < 4; quarter++) {
        __m512 c0 = (__m512)in[4 * quarter], c1 = (__m512)in[4 * quarter + 1];
        __m512 c2 = (__m512)in[4 * quarter + 2], c3 = (__m512)in[4 * quarter + 3];
        __m512d u0 = _mm512_castps_pd(_mm512_unpacklo_ps(c0, c1)), u1 = _mm512_castps_pd(_mm512_unpackhi_ps(c0, c1));
        __m512d u2 = _mm512_castps_pd(_mm512_unpacklo_ps(c2, c3)), u3 = _mm512_castps_pd(_mm512_unpackhi_ps(c2, c3));
        t[quarter][0] = _mm512_castpd_ps(_mm512_unpacklo_pd(u0, u2));
        t[quarter][1] = _mm512_castpd_ps(_mm512_unpackhi_pd(u0, u2));
        t[quarter][2] = _mm512_castpd_ps(_mm512_unpacklo_pd(u1, u3));
        t[quarter][3] = _mm512_castpd_ps(_mm512_unpackhi_pd(u1, u3));
    }
    for (int a = 0; a < 4; a++) { /* t[quarter][a]: rows a, a + 4, a + 8, a + 12 */
        __m512 p = _mm512_shuffle_f32x4(t[0][a], t[1][a], 0x44), q = _mm512_shuffle_f32x4(t[2][a], t[3][a], 0x44);
        __m512 r = _mm512_shuffle_f32x4(t[0][a], t[1][a], 0xEE), s = _mm512_shuffle_f32x4(t[2][a], t[3][a], 0xEE);
        if (a < rows) _mm512_storeu_ps(row[a] + at, _mm512_shuffle_f32x4(p, q, 0x88));
        if (a + 4 < rows) _mm512_storeu_ps(row[a + 4] + at, _mm512_shuffle_f32x4(p, q, 0xDD));
        if (a + 8 < rows) _mm512_storeu_ps(row[a + 8] + at, _mm512_shuffle_f32x4(r, s, 0x88));
        if (a + 12 < rows) _mm512_storeu_ps(row[a + 12] + at, _mm512_shuffle_f32x4(r, s, 0xDD));
    }
}

/* Lane i of the result is the sum of v[i]'s lanes. */
INLINE V lane_sums(const V *v)
{
    const __m512i swap_quarters = _mm512_setr_epi64(2, 3, 8, 9, 6, 7, 12, 13);
    const __m512i swap_lanes = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    __m512 w[8], u[4], t[2];
    for (int i = 0; i < 8; i++) {
        __m512 a = (__m512)v[i], b = (__m512)v[i + 8];
        w[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xFF00, a, b), _mm512_shuffle_f32x4(a, b, 0x4E));
    }
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(w[i]), b = _mm512_castps_pd(w[i + 4]);
        u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_mask_blend_pd(0xCC, a, b)),
                             _mm512_castpd_ps(_mm512_permutex2var_pd(a, swap_quarters, b)));
    }
    for (int i = 0; i < 2; i++) {
        __m512d a = _mm512_castps_pd(u[i]), b = _mm512_castps_pd(u[i + 2]);
        t[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_mask_blend_pd(0xAA, a, b)),
                             _mm512_castpd_ps(_mm512_shuffle_pd(a, b, 0x55)));
    }
    return (V)_mm512_add_ps(_mm512_mask_blend_ps(0xAAAA, t[0], t[1]), _mm512_permutex2var_ps(t[0], swap_lanes, t[1]));
}

#elif LANES == 8

INLINE V lane_sums(const V *v)
{
    __m256 u[4], t[2];
    for (int i = 0; i < 4; i++) {
        __m256 a = (__m256)v[i], b = (__m256)v[i + 4];
        u[i] = _mm256_add_ps(_mm256_blend_ps(a, b, 0xF0), _mm256_permute2f128_ps(a, b, 0x21));
    }
    for (int i = 0; i < 2; i++) {
        __m256d a = _mm256_castps_pd(u[i]), b = _mm256_castps_pd(u[i + 2]);
        t[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_blend_pd(a, b, 0xA)), _mm256_castpd_ps(_mm256_shuffle_pd(a, b, 0x5)));
    }
    __m256 even = _mm256_shuffle_ps(t[0], t[1], 0x88), odd = _mm256_shuffle_ps(t[0], t[1], 0xDD);
    __m256 sums = _mm256_add_ps(even, odd); /* of 0, 2, 1, 3 in each half */
    return (V)_mm256_permute_ps(sums, 0xD8);
}

INLINE void transpose(const float *const *row, ptrdiff_t at, V *out)
{
    for (int half = 0; half < 2; half++, at += 4, out += 4) {
        __m256 t[4];
        for (int a = 0; a < 4; a++)
            t[a] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row[a] + at)), _mm_loadu_ps(row[a + 4] + at), 1);
        __m256d u0 = _mm256_castps_pd(_mm256_unpacklo_ps(t[0], t[1])), u1 = _mm256_castps_pd(_mm256_unpackhi_ps(t[0], t[1]));
        __m256d u2 = _mm256_castps_pd(_mm256_unpacklo_ps(t[2], t[3])), u3 = _mm256_castps_pd(_mm256_unpackhi_ps(t[2], t[3]));
        out[0] = (V)_mm256_unpacklo_pd(u0, u2), out[1] = (V)_mm256_unpackhi_pd(u0, u2);
        out[2] = (V)_mm256_unpacklo_pd(u1, u3), out[3] = (V)_mm256_unpackhi_pd(u1, u3);
    }
}

INLINE void transpose_out(const V *in, float *const *row, ptrdiff_t at, int rows)
{
    __m256 t[2][4];
    for (int half = 0; half < 2; half++) {
        __m256 c0 = (__m256)in[4 * half], c1 = (__m256)in[4 * half + 1];
        __m256 c2 = (__m256)in[4 * half + 2], c3 = (__m256)in[4 * half + 3];
        __m256d u0 = _mm256_castps_pd(_mm256_unpacklo_ps(c0, c1)), u1 = _mm256_castps_pd(_mm256_unpackhi_ps(c0, c1));
        __m256d u2 = _mm256_castps_pd(_mm256_unpacklo_ps(c2, c3)), u3 = _mm256_castps_pd(_mm256_unpackhi_ps(c2, c3));
        t[half][0] = _mm256_castpd_ps(_mm256_unpacklo_pd(u0, u2));
        t[half][1] = _mm256_castpd_ps(_mm256_unpackhi_pd(u0, u2));
        t[half][2] = _mm256_castpd_ps(_mm256_unpacklo_pd(u1, u3));
        t[half][3] = _mm256_castpd_ps(_mm256_unpackhi_pd(u1, u3));
    }
    for (int a = 0; a < 4; a++) {
        if (a < rows) _mm256_storeu_ps(row[a] + at, _mm256_permute2f128_ps(t[0][a], t[1][a], 0x20));
        if (a + 4 < rows) _mm256_storeu_ps(row[a + 4] + at, _mm256_permute2f128_ps(t[0][a], t[1][a], 0x31));
    }
}

#elif defined(__aarch64__)

INLINE V lane_sums(const V *v)
{
    const float32x4_t a = vpaddq_f32((float32x4_t)v[0], (float32x4_t)v[1]);
    return (V)vpaddq_f32(a, vpaddq_f32((float32x4_t)v[2], (float32x4_t)v[3]));
}

INLINE void turn(const float32x4_t *c, float32x4_t *out)
{
    const float64x2_t u0 = vreinterpretq_f64_f32(vzip1q_f32(c[0], c[1])), u1 = vreinterpretq_f64_f32(vzip2q_f32(c[0], c[1]));
    const float64x2_t u2 = vreinterpretq_f64_f32(vzip1q_f32(c[2], c[3])), u3 = vreinterpretq_f64_f32(vzip2q_f32(c[2], c[3]));
    out[0] = vreinterpretq_f32_f64(vzip1q_f64(u0, u2)), out[1] = vreinterpretq_f32_f64(vzip2q_f64(u0, u2));
    out[2] = vreinterpretq_f32_f64(vzip1q_f64(u1, u3)), out[3] = vreinterpretq_f32_f64(vzip2q_f64(u1, u3));
}

INLINE void transpose(const float *const *row, ptrdiff_t at, V *out)
{
    float32x4_t t[4];
    for (int a = 0; a < 4; a++) t[a] = vld1q_f32(row[a] + at);
    turn(t, t);
    for (int a = 0; a < 4; a++) out[a] = (V)t[a];
}

INLINE void transpose_out(const V *in, float *const *row, ptrdiff_t at, int rows)
{
    float32x4_t t[4] = {(float32x4_t)in[0], (float32x4_t)in[1], (float32x4_t)in[2], (float32x4_t)in[3]};
    turn(t, t);
    for (int a = 0; a < 4; a++)
        if (a < rows) vst1q_f32(row[a] + at, t[a]);
}

#else

INLINE V lane_sums(const V *v)
{
    V sums;
    for (int i = 0; i < LANES; i++) {
        sums[i] = v[i][0];
        for (int l = 1; l < LANES; l++) sums[i] += v[i][l];
    }
    return sums;
}

INLINE void transpose(const float *const *row, ptrdiff_t at, V *out)
{
    for (int j = 0; j < LANES; j++) {
        V v = {0};
        for (int i = 0; i < LANES; i++) v[i] = row[i][at + j];
        out[j] = v;
    }
}

INLINE void transpose_out(const V *in, float *const *row, ptrdiff_t at, int rows)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < LANES; j++) row[i][at + j] = in[j][i];
}

#endif

/* The same into memory. */
INLINE void transpose_in(const float *const *row, ptrdiff_t at, float *const *out)
{
    V v[LANES];
    transpose(row, at, v);
    for (int i = 0; i < LANES; i++) store(out[i], v[i]);
}

/* The sum of the lanes: in order, and by halves. The two round differently, and each kernel keeps to its own, so that
 * its results stay what they are. */
INLINE float total(V v)
{
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

INLINE float halved_total(V v)
{
    float halves[LANES];
    memcpy(halves, &v, sizeof halves);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) halves[i] += halves[i + width];
    return halves[0];
}

#endif
