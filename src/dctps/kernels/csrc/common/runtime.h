/* What all kernels share, compiled once: the thread pool, scratch memory, and the choice of a variant.
 *
 * Memory is 64-byte aligned. A kernel runs `parallel(items, work, arg)`: `work(arg, i, scratch)` for each i,
 * in any order and on any thread, so a result may depend on i alone, never on who ran it.
 */
#ifndef DCTPS_RUNTIME_H
#define DCTPS_RUNTIME_H

#include <stddef.h>

#include "call.h"

typedef void (*work_fn)(void *arg, int64_t item, void *scratch);

/* Run the items on up to `threads` threads, each with `bytes` of scratch of its own. Returns DONE, or NO_MEMORY. */
int dctps_parallel(int64_t items, int64_t threads, size_t bytes, work_fn work, void *arg);

/* Scratch that is kept for the next call; NULL without memory. */
void *dctps_take(size_t bytes);
void dctps_give(void *memory);

#endif
