/* The layouts of all calls, for Python to compare with its own: a line for each, its name first. */
#include "conv/call.h"
#include "depthwise/call.h"
#include "linear/call.h"
#include "norm/call.h"
#include "stack/call.h"
#include "weight/call.h"

#define LINE(name, list, what) #name " " list(what) "\n" /* the list is expanded, its own name is not */
#define NUMBER_(n) #n
#define NUMBER(n) NUMBER_(n)

#define CHECK(list) _Static_assert(sizeof(STRUCT(list)) % 8 == 0 && sizeof(void *) == 8, "all fields have 64 bits")
CHECK(LINEAR_CALL);
CHECK(CONV_CALL);
CHECK(DEPTHWISE_CALL);
CHECK(WEIGHT_CALL);
CHECK(NORM_CALL);
CHECK(STACK_CALL);
CHECK(STACK_OPERATION);
CHECK(STACK_LAYER);

__attribute__((visibility("default"))) const char *dctps_layouts(void)
{
    return LINE(Failure, FAILURES, WORD)
        LINE(Mix, MIXES, WORD)
        LINE(Transform, TRANSFORMS, WORD)
        LINE(Kind, STACK_KINDS, WORD)
        LINE(LINEAR, LINEAR_CALL, NAME)
        LINE(CONV, CONV_CALL, NAME)
        LINE(DEPTHWISE, DEPTHWISE_CALL, NAME)
        LINE(WEIGHT, WEIGHT_CALL, NAME)
        LINE(NORM, NORM_CALL, NAME)
        LINE(STACK, STACK_CALL, NAME)
        LINE(STACK_OPERATION, STACK_OPERATION, NAME)
        LINE(STACK_LAYER, STACK_LAYER, NAME)
        "CHUNK " NUMBER(CHUNK) "\n"
        "MOST_OPERATIONS " NUMBER(MOST_OPERATIONS) "\n";
}
