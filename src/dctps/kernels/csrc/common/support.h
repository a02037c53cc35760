/* S's support: ascending flat positions in an m x n weight, none twice. Callers may hand over anything. */
#ifndef DCTPS_SUPPORT_H
#define DCTPS_SUPPORT_H

#include "call.h"
#include "vec.h"

/* The index of the first position that is not less than `position`; some index where they do not ascend. */
LOCAL int64_t first_at_least(const int64_t *support, int64_t nnz, int64_t position)
{
    int64_t low = 0, high = nnz;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (support[middle] < position) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Where the positions of a stretch of rows, which begin at `position`, begin. A walk from one seam that takes ascending
 * positions within its rows alone, and ends at the next seam, has met a support's positions and no others: what a
 * search ends at is not less than what it looked for, so that no walk that stopped short ends there. */
LOCAL int64_t seam(const int64_t *support, int64_t nnz, int64_t position, int64_t size)
{
    return position <= 0 ? 0 : position >= size ? nnz : first_at_least(support, nnz, position);
}

/* Whether the positions ascend within 0..size-1. Without an early end, so that the loop runs on vectors. */
LOCAL int is_support(const int64_t *support, int64_t nnz, int64_t size)
{
    int bad = nnz && (support[0] < 0 || support[nnz - 1] >= size);
    for (int64_t k = 1; k < nnz; k++) bad |= support[k] <= support[k - 1];
    return !bad;
}

/* Whether all numbers of a table, which may be absent, are in 0..size-1. */
LOCAL int is_below(const int32_t *table, int64_t count, int64_t size)
{
    int bad = 0;
    for (int64_t i = 0; table && i < count; i++) bad |= table[i] < 0 || table[i] >= size;
    return !bad;
}

#endif
