/* bfloat16 in memory, float32 in arithmetic. */
#ifndef DCTPS_HALF_H
#define DCTPS_HALF_H

#include "vec.h"

typedef uint32_t bits __attribute__((may_alias));

INLINE void widen(float *to, const uint16_t *from, int64_t count)
{
    for (int64_t i = 0; i < count; i++) ((bits *)to)[i] = (bits)from[i] << 16;
}

/* To the nearest, ties to even. */
INLINE void narrow(uint16_t *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const bits b = ((const bits *)from)[i], nearest = (b + 0x7FFF + (b >> 16 & 1)) >> 16;
        to[i] = (uint16_t)((b & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : nearest);
    }
}

INLINE void copy(float *to, const float *from, int64_t count)
{
    for (; count >= LANES; count -= LANES, to += LANES, from += LANES) memcpy(to, from, sizeof(V));
    for (; count >= 4; count -= 4, to += 4, from += 4) memcpy(to, from, 4 * sizeof(float));
    for (; count > 0; count--) *to++ = *from++;
}

/* Copies out of and into memory of either kind; `at` counts numbers. */
INLINE void read_numbers(float *to, const void *from, int64_t half, int64_t at, int64_t count)
{
    if (half) widen(to, (const uint16_t *)from + at, count);
    else copy(to, (const float *)from + at, count);
}

INLINE void write_numbers(void *to, int64_t half, int64_t at, const float *from, int64_t count)
{
    if (half) narrow((uint16_t *)to + at, from, count);
    else copy((float *)to + at, from, count);
}

INLINE const void *number_at(const void *from, int64_t half, int64_t at)
{
    return (const char *)from + at * (half ? 2 : 4);
}

#endif
