/* Sylvester's Hadamard transform of a tile, radix 8. */
#ifndef DCTPS_HADAMARD_H
#define DCTPS_HADAMARD_H

#include "common/vec.h"

INLINE void butterflies(const float *src, float *dst, int64_t q, int64_t l, int r)
{
    V v[8];
    for (int64_t b = 0; b < q; b += r * l)
        for (int64_t j = b; j < b + l; j++) {
            for (int t = 0; t < r; t++) v[t] = load(src + (j + t * l) * LANES);
            for (int h = 1; h < r; h *= 2)
                for (int t = 0; t < r; t++)
                    if (!(t & h)) {
                        V a = v[t], c = v[t + h];
                        v[t] = a + c, v[t + h] = a - c;
                    }
            for (int t = 0; t < r; t++) store(dst + (j + t * l) * LANES, v[t]);
        }
}

/* dst = H src, q vectors, unnormalised; in place where they are the same. */
LOCAL void hadamard(const float *src, float *dst, int64_t q)
{
    int64_t l = 1;
    for (; q / l >= 8; l *= 8, src = dst) butterflies(src, dst, q, l, 8);
    if (q / l == 4) butterflies(src, dst, q, l, 4);
    else if (q / l == 2) butterflies(src, dst, q, l, 2);
    else if (src != dst) memcpy(dst, src, sizeof(float) * LANES);
}

#endif
