#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define MAX_THREADS 128
#define HELD 64 /* blocks kept for the next call: one for each thread, and a few for each call in flight */
#define WASTE 4 /* times what is asked for that a held block may be */
#define SMALL ((size_t)1 << 16) /* bytes below which the system's allocator does as well */

#if defined(__has_feature)
#define HAS_FEATURE(name) __has_feature(name) /* how clang says it */
#else
#define HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer) || HAS_FEATURE(memory_sanitizer)
enum { KEEP = 0 }; /* exact blocks, each of its own, so that every overrun is seen */
#else
enum { KEEP = 1 };
#endif

typedef struct {
    size_t bytes;
    const void *user; /* the thread that had it last, in whose caches it may be */
    char pad[64 - sizeof(size_t) - sizeof(void *)];
} header;

static _Thread_local char self; /* its address names the thread */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static header *held[HELD];
static atomic_size_t live; /* bytes in use and held */

/* torch's own OpenMP runtime, given at load: a second one would spin against it. */
typedef void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*gomp_thread)(void);
static gomp_parallel pool;
static gomp_thread pool_thread;
EXPORT void dctps_set_pool(void *parallel, void *thread)
{
    pool = (gomp_parallel)parallel;
    pool_thread = (gomp_thread)thread;
}

/* A fork copies one thread and every lock as it stands. Held over the fork, this one is free in the child, and the blocks
 * that it guards are whole. The OpenMP runtime has no such care: its threads are gone in the child, and a region that
 * asks for them never ends. So a child works on one thread, with the same results. */
static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }
static void in_child(void)
{
    after_fork();
    pool = NULL;
}
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(before_fork, after_fork, in_child); }

static void drop(header *h)
{
    atomic_fetch_sub(&live, h->bytes);
    free(h);
}

static int is_better(const header *a, const header *b)
{
    const int mine = a->user == &self, theirs = b->user == &self;
    return mine != theirs ? mine : a->bytes < b->bytes;
}

/* Of the held blocks that fit and are no great waste one that this thread had, else the smallest; else a new one, in
   the place of the largest that was too small, so that what is held at last is what one call needs at once. */
void *dctps_take(size_t bytes)
{
    header *found = NULL;
    int fit = -1, small = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; KEEP && bytes > SMALL && i < HELD; i++) {
        if (!held[i] || held[i]->bytes > WASTE * bytes) continue;
        if (held[i]->bytes < bytes) {
            if (small < 0 || held[i]->bytes > held[small]->bytes) small = i;
        } else if (fit < 0 || is_better(held[i], held[fit])) fit = i;
    }
    const int at = fit >= 0 ? fit : small;
    if (at >= 0) {
        found = held[at];
        held[at] = NULL;
    }
    pthread_mutex_unlock(&lock);
    if (fit >= 0) return found + 1;
    if (found) drop(found);
    if (KEEP && bytes > SMALL) bytes = (bytes + sizeof(header) + 65535) / 65536 * 65536 - sizeof(header);
    size_t whole = bytes + sizeof(header), alignment = bytes > SMALL ? 4096 : 64;
#if defined(__linux__)
    if (whole >= (size_t)1 << 21) alignment = (size_t)1 << 21;
#endif
    if (posix_memalign((void **)&found, alignment, whole)) return NULL;
#if defined(__linux__)
    if (alignment > 4096) madvise(found, whole, MADV_HUGEPAGE);
#endif
    found->bytes = bytes;
    atomic_fetch_add(&live, bytes);
    return found + 1;
}

/* Keep the block, in the place of the smallest one if all places are taken. */
void dctps_give(void *memory)
{
    if (!memory) return;
    header *h = (header *)memory - 1;
    h->user = &self;
    int at = 0;
    if (!KEEP || h->bytes <= SMALL) {
        drop(h);
        return;
    }
    pthread_mutex_lock(&lock);
    for (int i = 0; i < HELD && held[at]; i++)
        if (!held[i] || held[i]->bytes < held[at]->bytes) at = i;
    if (held[at] && held[at]->bytes >= h->bytes) {
        pthread_mutex_unlock(&lock);
        drop(h);
        return;
    }
    header *old = held[at];
    held[at] = h;
    pthread_mutex_unlock(&lock);
    if (old) drop(old);
}

/* Bytes of scratch in use and held. */
EXPORT int64_t dctps_scratch_bytes(void) { return (int64_t)atomic_load(&live); }

/* Free what is held. */
EXPORT void dctps_release(void)
{
    for (int i = 0; i < HELD; i++) {
        pthread_mutex_lock(&lock);
        header *h = held[i];
        held[i] = NULL;
        pthread_mutex_unlock(&lock);
        if (h) drop(h);
    }
}

typedef struct {
    atomic_llong next;
    long long end;
    char pad[64 - sizeof(atomic_llong) - sizeof(long long)]; /* a line for each thread */
} share;

typedef struct {
    share *share; /* one for each thread */
    int64_t threads;
    atomic_int failed;
    size_t bytes;
    work_fn work;
    void *arg;
} region;

/* A thread's own items, which it had in the last call of this size as well, then those that others left. */
static void run(void *argument)
{
    region *r = argument;
    void *scratch = NULL;
    const int64_t own = r->threads > 1 ? pool_thread() : 0;
    for (int64_t i = 0; i < r->threads; i++) {
        share *s = r->share + (own + i) % r->threads;
        for (;;) {
            int64_t item = atomic_fetch_add(&s->next, 1);
            if (item >= s->end) break;
            if (!scratch && r->bytes && !(scratch = dctps_take(r->bytes))) {
                atomic_store(&r->failed, 1);
                return;
            }
            r->work(r->arg, item, scratch);
        }
    }
    dctps_give(scratch);
}

int dctps_parallel(int64_t items, int64_t threads, size_t bytes, work_fn work, void *arg)
{
    share shares[MAX_THREADS];
    region r = {.share = shares, .bytes = bytes, .work = work, .arg = arg};
    if (threads > items) threads = items;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    r.threads = threads > 1 && pool && pool_thread ? threads : 1;
    for (int64_t i = 0; i < r.threads; i++) {
        atomic_init(&shares[i].next, items * i / r.threads);
        shares[i].end = items * (i + 1) / r.threads;
    }
    if (r.threads > 1)
        pool(run, &r, (unsigned)threads, 0);
    else
        run(&r);
    return atomic_load(&r.failed) ? NO_MEMORY : DONE;
}

/* The hash of the sources, so that a library left over from other ones is not taken for this one. */
EXPORT const char *dctps_made_from(void) { return MADE_FROM; }

/* The best variant for this processor: 2 AVX-512, 1 AVX2 with FMA, 0 whatever the compiler's default is. */
EXPORT int dctps_best_variant(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}
