/* W = alpha * D + S of a convolution, of one group or depthwise, made for one call, and what a gradient of W says of the
 * values and alpha. D is taken from its filters (conv.c): output o is a sum of outer products of a filter and a
 * row of the mixing. Outputs are independent, and alpha's sum runs over them in order.
 */
#include "vec.h"
#include "common/runtime.h"

#define BLOCK 8 /* outputs of an item */

enum { MIX_NONE, MIX_PLAIN, MIX_PRODUCT, MIX_COSINE };

typedef struct {
    int64_t outputs, channels, taps, channels_last, threads;
    int64_t mix, rank, terms, cosine;
    const float *first, *second, *signs; /* as in conv.c */
    const float *cosines;                /* cos(pi t / 2q), t < 4q, of a cosine transform of length q */
    const int32_t *source, *filter;
    const float *bank, *alpha;
    int64_t nnz;
    const int64_t *support;
    const float *values;
    float *weight; /* (outputs, channels, taps), or (outputs, taps, channels) where channels are last */
    float *d_values, *d_alpha; /* backward, where `weight` is the gradient: each may be null */
} arguments;

typedef struct {
    const arguments *a;
    double *by_output;
} job;

typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* The row of the mixing that map z is; gives it, in `row` where it has to be made. */
static const float *mixing_row(const arguments *a, int64_t z, float *row)
{
    const int64_t n = a->channels, q = a->cosine;
    if (a->mix == MIX_PLAIN) return a->first + z * n;
    if (a->mix == MIX_PRODUCT) {
        const float *by = a->second + z * a->rank;
        int64_t c = 0;
        for (; c + 8 * LANES <= n; c += 8 * LANES) {
            V sum[8] = {0};
            for (int64_t r = 0; r < a->rank; r++)
                for (int i = 0; i < 8; i++) sum[i] += by[r] * *(const loose *)(a->first + r * n + c + i * LANES);
            memcpy(row + c, sum, sizeof sum);
        }
        for (; c < n; c++) {
            row[c] = 0;
            for (int64_t r = 0; r < a->rank; r++) row[c] += by[r] * a->first[r * n + c];
        }
        return row;
    }
    if (a->mix == MIX_NONE) {
        row[0] = 1;
        return row;
    }
    const int64_t u = z % q;
    const float scale = __builtin_sqrtf((u ? 2.0f : 1.0f) / (float)q), *sign = a->signs ? a->signs + z / q * n : 0;
    for (int64_t c = 0, t = u; c < n; c++) {
        row[c] = scale * a->cosines[t] * (sign ? sign[c] : 1.0f);
        t += 2 * u;
        t -= t >= 4 * q ? 4 * q : 0;
    }
    return row;
}

static int64_t first_at_least(const int64_t *support, int64_t nnz, int64_t position)
{
    int64_t low = 0, high = nnz;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (support[middle] < position) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* entry / by as a product, exact for entry * by < 2^32 */
INLINE uint64_t reciprocal(int64_t by) { return (((uint64_t)1 << 32) + (uint64_t)by - 1) / (uint64_t)by; }
INLINE int64_t divide_by(int64_t entry, uint64_t inverse) { return (int64_t)((uint64_t)entry * inverse >> 32); }

/* Where an output's entry (channel, tap), counted taps fastest, lies among its weights. */
INLINE int64_t entry_at(const arguments *a, int64_t entry)
{
    if (!a->channels_last) return entry;
    const int64_t channel = divide_by(entry, reciprocal(a->taps));
    return (entry - channel * a->taps) * a->channels + channel;
}

INLINE void swap_axes(const float *from, int64_t rows, int64_t columns, float *to)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[c * rows + r] = from[r * columns + c];
}

static void make_block(void *argument, int64_t item, void *scratch)
{
    const arguments *a = ((const job *)argument)->a;
    const int64_t n = a->channels * a->taps, end = item * BLOCK + BLOCK;
    float *row = scratch, *taps_first = row + a->channels;
    int64_t k = first_at_least(a->support, a->nnz, item * BLOCK * n);
    for (int64_t o = item * BLOCK; o < end && o < a->outputs; o++) {
        float *weight = a->weight + o * n, *made = a->channels_last ? weight : taps_first;
        if (!a->terms) memset(weight, 0, sizeof(float) * (size_t)n);
        for (int64_t i = o * a->terms; i < (o + 1) * a->terms; i++) {
            const float *channel = mixing_row(a, a->source[i], row), *filter = a->bank + a->filter[i] * a->taps;
            for (int64_t t = 0; t < a->taps; t++) {
                const float by = *a->alpha * filter[t];
                float *out = made + t * a->channels;
                if (i > o * a->terms)
                    for (int64_t c = 0; c < a->channels; c++) out[c] += by * channel[c];
                else
                    for (int64_t c = 0; c < a->channels; c++) out[c] = by * channel[c];
            }
        }
        if (a->terms && !a->channels_last) swap_axes(taps_first, a->taps, a->channels, weight);
        for (; k < a->nnz && a->support[k] < (o + 1) * n; k++) weight[entry_at(a, a->support[k] - o * n)] += a->values[k];
    }
}

static void read_block(void *argument, int64_t item, void *scratch)
{
    const job *j = argument;
    const arguments *a = j->a;
    const int64_t n = a->channels * a->taps, end = item * BLOCK + BLOCK;
    float *row = scratch, *taps_first = row + a->channels;
    int64_t k = a->d_values ? first_at_least(a->support, a->nnz, item * BLOCK * n) : a->nnz;
    for (int64_t o = item * BLOCK; o < end && o < a->outputs; o++) {
        const float *weight = a->weight + o * n, *g = weight;
        for (; k < a->nnz && a->support[k] < (o + 1) * n; k++)
            a->d_values[k] = weight[entry_at(a, a->support[k] - o * n)];
        if (!a->d_alpha) continue;
        if (!a->channels_last) {
            swap_axes(weight, a->channels, a->taps, taps_first);
            g = taps_first;
        }
        double sum = 0;
        for (int64_t i = o * a->terms; i < (o + 1) * a->terms; i++) {
            const float *channel = mixing_row(a, a->source[i], row), *filter = a->bank + a->filter[i] * a->taps;
            for (int64_t t = 0; t < a->taps; t++, g += a->channels) {
                V part = {0};
                float rest = 0;
                int64_t c = 0;
                for (; c + LANES <= a->channels; c += LANES)
                    part += (V) * (const loose *)(g + c) * (V) * (const loose *)(channel + c);
                for (; c < a->channels; c++) rest += g[c] * channel[c];
                for (int l = 0; l < LANES; l++) rest += part[l];
                sum += (double)rest * filter[t];
            }
            g -= n;
        }
        j->by_output[o] = sum;
    }
}

static int run(const arguments *a, work_fn work)
{
    job j = {.a = a};
    const size_t bytes = sizeof(float) * (size_t)(a->channels * (a->taps + 1));
    if (a->d_alpha && !(j.by_output = dctps_take(sizeof(double) * (size_t)a->outputs))) return -1;
    const int failed = dctps_parallel((a->outputs + BLOCK - 1) / BLOCK, a->threads, bytes, work, &j);
    double sum = 0;
    for (int64_t o = 0; !failed && a->d_alpha && o < a->outputs; o++) sum += j.by_output[o];
    if (a->d_alpha) *a->d_alpha = (float)sum;
    dctps_give(j.by_output);
    return failed;
}

EXPORT int DPS(weight_forward)(const arguments *a) { return run(a, make_block); }
EXPORT int DPS(weight_backward)(const arguments *a) { return run(a, read_block); }
