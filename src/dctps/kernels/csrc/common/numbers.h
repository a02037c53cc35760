/* Arithmetic of sizes. */
#ifndef DCTPS_NUMBERS_H
#define DCTPS_NUMBERS_H

#include "vec.h"

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }
INLINE int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
INLINE int64_t floor_div(int64_t a, int64_t by) { return a >= 0 ? a / by : -((by - 1 - a) / by); }

#endif
