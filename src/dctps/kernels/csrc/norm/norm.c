/* Batch normalisation, an addition and an activation in one pass, and their derivatives:

       y = clamp((x - mean) / std * weight + bias + residual)

   in three calls: the statistics, of the batch or those that run; y, from x and the statistics; the derivatives. Images lie
   channels last (rows.h) or in planes (planes.h). How sums are divided depends on shapes alone. */
#include "planes.h"
#include "rows.h"

#include <math.h>

static job job_of(const norm_call *a)
{
    job j = {.a = a, .lower = splat((float)a->lower), .upper = splat((float)a->upper), .rows = a->images * a->pixels};
    j.bounded = a->lower == a->lower || a->upper == a->upper;
    const int64_t slots = a->channels_last ? least(SLOTS, parts(j.rows, SLOT)) : a->channels < FEW ? least(SLOTS, a->images) : 1;
    j.per_slot = parts(a->channels_last ? j.rows : a->images, slots);
    if (a->channels_last) j.per_slot = round_up(j.per_slot, CHUNK);
    j.slots = parts(a->channels_last ? j.rows : a->images, j.per_slot);
    j.groups = parts(a->channels, a->channels_last ? GROUP : 1);
    return j;
}

static int64_t blocks(const job *j)
{
    const norm_call *a = j->a;
    return a->channels_last ? parts(j->rows, block_of_rows(a)) : parts(a->images * a->channels, block_of_planes(a));
}

/* The same items backwards within each thread's share: the second pass over images begins with those that the first has
 * left in the caches. */
typedef struct {
    job *j;
    work_fn work;
    int64_t items, threads;
} reversed;

static void run_reversed(void *argument, int64_t item, void *scratch)
{
    const reversed *r = argument;
    const int64_t share = ((item + 1) * r->threads - 1) / r->items;
    const int64_t first = r->items * share / r->threads, past = r->items * (share + 1) / r->threads;
    r->work(r->j, first + past - 1 - item, scratch);
}

static int second_pass(job *j, work_fn rows, work_fn planes)
{
    reversed r = {j, j->a->channels_last ? rows : planes, blocks(j), 0};
    r.threads = least(j->a->threads, r.items);
    return dctps_parallel(r.items, r.threads, 0, run_reversed, &r);
}

/* Of the batch, each variance as the sum of squares about the mean, in first and second of slot 0. */
static int describe(job *j)
{
    const norm_call *a = j->a;
    const int failed = dctps_parallel(j->slots * j->groups, a->threads, 0, a->channels_last ? describe_rows : describe_planes, j);
    const double whole = (double)(j->per_slot * (a->channels_last ? 1 : a->pixels));
    for (int64_t slot = 1; slot < j->slots; slot++) {
        const double before = whole * (double)slot, count = least(whole, (double)j->rows - before);
        const double *mean = j->first + slot * a->channels, *square = j->second + slot * a->channels;
        for (int64_t c = 0; c < a->channels; c++) merge(j->first + c, j->second + c, before, mean[c], square[c], count);
    }
    return failed;
}

/* The table; where the batch's statistics are taken the running ones, if there are any, move on as torch's do. */
EXPORT int DPS(norm_statistics)(const norm_call *a)
{
    job j = job_of(a);
    float *mean = a->table, *inverse = mean + a->channels, *scale = inverse + a->channels, *bias = scale + a->channels;
    double *memory = NULL;
    if (a->training) {
        const size_t sums = (size_t)(j.slots * a->channels);
        if (!(memory = dctps_take(2 * sums * sizeof(double)))) return NO_MEMORY;
        j.first = memory, j.second = memory + sums;
        if (describe(&j)) {
            dctps_give(memory);
            return NO_MEMORY;
        }
    }
    const double count = (double)j.rows;
    for (int64_t c = 0; c < a->channels; c++) {
        const double about = memory ? j.first[c] : a->running_mean[c];
        const double variance = memory ? j.second[c] / count : a->running_var[c];
        if (memory && a->running_mean)
            a->running_mean[c] = (float)(a->momentum * about + (1 - a->momentum) * a->running_mean[c]);
        if (memory && a->running_var)
            a->running_var[c] = (float)(a->momentum * j.second[c] / (count - 1) + (1 - a->momentum) * a->running_var[c]);
        mean[c] = (float)about, inverse[c] = (float)(1 / sqrt(variance + a->epsilon));
        scale[c] = a->weight ? inverse[c] * a->weight[c] : inverse[c];
        bias[c] = a->bias ? a->bias[c] : 0;
    }
    dctps_give(memory);
    return DONE;
}

EXPORT int DPS(norm_forward)(const norm_call *a)
{
    job j = job_of(a);
    return second_pass(&j, apply_rows, apply_planes);
}

/* The sums over all slots give the gradients of weight and bias, and what the statistics of a batch pass back. */
static void finish(job *j)
{
    const norm_call *a = j->a;
    const double count = (double)j->rows;
    for (int64_t c = 0; c < a->channels; c++) {
        const double inverse = a->table[a->channels + c], scale = a->table[2 * a->channels + c];
        double sum = 0, product = 0;
        for (int64_t slot = 0; slot < j->slots; slot++)
            sum += j->first[slot * a->channels + c], product += j->second[slot * a->channels + c];
        if (a->grad_bias) a->grad_bias[c] = (float)sum;
        if (a->grad_weight) a->grad_weight[c] = (float)(product * inverse);
        j->slope[c] = a->training ? (float)(scale * inverse * inverse * product / count) : 0;
        j->drift[c] = a->training ? (float)(scale * sum / count) : 0;
    }
}

EXPORT int DPS(norm_backward)(const norm_call *a)
{
    job j = job_of(a);
    const size_t channels = (size_t)a->channels, sums = (size_t)j.slots * channels;
    double *memory = dctps_take(2 * sums * sizeof(double) + 2 * channels * sizeof(float));
    if (!memory) return NO_MEMORY;
    j.first = memory, j.second = memory + sums;
    j.slope = (float *)(memory + 2 * sums), j.drift = j.slope + channels;
    memset(j.slope, 0, 2 * channels * sizeof(float));
    int failed = DONE;
    if (a->training || a->grad_weight || a->grad_bias || a->grad_residual) {
        failed = dctps_parallel(j.slots * j.groups, a->threads, 0, a->channels_last ? sum_rows : sum_planes, &j);
        if (!failed) finish(&j);
    }
    if (!failed && a->grad_x) failed = second_pass(&j, back_rows, back_planes);
    dctps_give(memory);
    return failed;
}
