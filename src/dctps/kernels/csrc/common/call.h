/* How a call's arguments cross from Python: one struct of 64-bit fields for each kernel, which its list of fields defines.
 *
 * The library exports the names of all lists (layouts.c), and Python compares them with its own when it loads the
 * library (boundary.py): a layout that the two disagree about is an error there.
 *
 * A list is a macro over `field(type, name)` or, for an array, `field(type, name, [n])`. Pointers are null for what is
 * absent.
 */
#ifndef DCTPS_CALL_H
#define DCTPS_CALL_H

#include <stdint.h>

_Static_assert(sizeof(void *) == 8, "no kernels for this machine: an address is a field of 64 bits");

#define FIELD(type, name, ...) type name __VA_ARGS__;
#define NAME(type, name, ...) #name #__VA_ARGS__ " "
#define ENUMERATOR(name) name,
#define WORD(name) #name " "

#define STRUCT(fields) \
    struct { \
        fields(FIELD) \
    }

/* What a kernel returns. */
#define FAILURES(name) \
    name(DONE) name(NO_MEMORY) name(BAD_SUPPORT) name(BAD_TABLE) name(TOO_LARGE) name(BAD_LABEL) name(CHANGED) \
    name(BAD_WINDOW)
enum { FAILURES(ENUMERATOR) };

/* How D mixes a pixel's channels (filters.py); MIX_ROWS: only for making the weight, whose rows are a DCT's. */
#define MIXES(name) name(MIX_NONE) name(MIX_PLAIN) name(MIX_PRODUCT) name(MIX_COSINE) name(MIX_ROWS)
enum { MIXES(ENUMERATOR) };

#endif
