/* D by its terms: each is one map, filtered by one small filter. */
#ifndef DCTPS_TERMS_H
#define DCTPS_TERMS_H

#include "support.h"

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

/* Whether `count` terms name maps and filters that there are; a product's maps are the terms in order. */
LOCAL int are_terms(int64_t mix, const int32_t *source, const int32_t *filter, int64_t count, int64_t taps,
                    int64_t cosine, int64_t maps, int64_t filters)
{
    if (mix == MIX_PRODUCT && source) return 0;
    if (!source) return !filter && count == maps && count <= filters;
    if (filter) return is_below(source, count, maps) && is_below(filter, count, filters);
    const int64_t rounds = cosine ? maps / cosine : 1;
    return is_below(source, count, maps * taps) && rounds * taps <= filters;
}

#endif
