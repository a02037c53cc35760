/* D's terms: each is one map, filtered by one small filter. */
#ifndef DCTPS_TERMS_H
#define DCTPS_TERMS_H

#include "vec.h"

typedef struct {
    int64_t map, filter;
} term;

/* Term i, counted over the outputs: as listed; without filters, a position among (map, tap), each round of `cosine`
   maps with filters of its own; without either, map i and filter i. */
INLINE term find_term(const int32_t *source, const int32_t *filter, int64_t taps, int64_t cosine, int64_t i)
{
    if (!source) return (term){i, i};
    if (filter) return (term){source[i], filter[i]};
    const uint32_t position = (uint32_t)source[i], map = position / (uint32_t)taps;
    const uint32_t round = cosine ? map / (uint32_t)cosine : 0;
    return (term){map, position - (map - round) * (uint32_t)taps};
}

#endif
