/* Runs kernels' entries in a process of its own, where they may be another machine's code under an emulator, or watched.
 *
 * `driver libdctps.so` reads calls from its input: an entry's name and blocks of memory, the first of them the call's
 * struct. Each block comes with its address on the other side, and a word of a block that holds addresses, if it lies in
 * some block there, is changed into the address here. What the entry returns goes to the output, then the other blocks.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST 128 /* threads */
#define LINE 64  /* bytes; a block begins as far behind a multiple as on the other side */

typedef struct {
    uint64_t address, bytes, holds_addresses;
} block;

typedef struct {
    void (*work)(void *);
    void *arg;
    int number;
} part;

static _Thread_local int own_number;
static int thread_number(void) { return own_number; }

static void *run(void *argument)
{
    const part *p = argument;
    own_number = p->number;
    p->work(p->arg);
    return NULL;
}

/* As OpenMP's GOMP_parallel. */
static void parallel(void (*work)(void *), void *arg, unsigned count, unsigned flags)
{
    pthread_t threads[MOST];
    part parts[MOST];
    (void)flags;
    for (unsigned i = 0; i < count; i++) {
        parts[i] = (part){work, arg, (int)i};
        if (i && pthread_create(threads + i, NULL, run, parts + i)) abort();
    }
    run(parts);
    for (unsigned i = 1; i < count; i++) pthread_join(threads[i], NULL);
}

static void take(void *to, size_t bytes)
{
    if (fread(to, 1, bytes, stdin) != bytes) exit(0); /* no further calls */
}

static void put(const void *from, size_t bytes)
{
    if (fwrite(from, 1, bytes, stdout) != bytes) exit(1);
}

static char *place(const block *b)
{
    void *memory;
    if (posix_memalign(&memory, LINE, b->bytes + b->address % LINE)) abort();
    return (char *)memory + b->address % LINE;
}

/* The address here of what is at one there. */
static uint64_t moved(uint64_t address, const block *blocks, char *const *here, uint64_t count)
{
    for (uint64_t i = 1; i < count; i++) /* the struct has none */
        if (address - blocks[i].address < blocks[i].bytes) return (uint64_t)(uintptr_t)here[i] + address - blocks[i].address;
    return address;
}

static void run_call(void *library)
{
    char name[64];
    uint64_t count;
    take(name, sizeof name);
    take(&count, sizeof count);
    block *blocks = malloc(count * sizeof *blocks);
    char **here = malloc(count * sizeof *here);
    take(blocks, count * sizeof *blocks);
    for (uint64_t i = 0; i < count; i++) take(here[i] = place(blocks + i), blocks[i].bytes);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t *words = (uint64_t *)here[i];
        for (uint64_t w = 0; blocks[i].holds_addresses && w < blocks[i].bytes / 8; w++)
            words[w] = moved(words[w], blocks, here, count);
    }
    int (*entry)(const void *) = (int (*)(const void *))dlsym(library, name);
    const int64_t failure = entry ? entry(here[0]) : -1;
    put(&failure, sizeof failure);
    for (uint64_t i = 0; i < count; i++) {
        if (!blocks[i].holds_addresses) put(here[i], blocks[i].bytes);
        free(here[i] - blocks[i].address % LINE);
    }
    fflush(stdout);
    free(here);
    free(blocks);
}

int main(int count, char **arguments)
{
    void *library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : NULL;
    if (!library) {
        fprintf(stderr, "%s\n", count == 2 ? dlerror() : "driver LIBRARY");
        return 2;
    }
    void (*set_pool)(void *, void *) = (void (*)(void *, void *))dlsym(library, "dctps_set_pool");
    set_pool((void *)parallel, (void *)thread_number);
    for (;;) run_call(library);
}
