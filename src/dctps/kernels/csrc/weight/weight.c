/* W = alpha * D + S of a convolution, of one group or depthwise, made for one call, and what a gradient of W says of the
 * values and alpha. D's rows are rows of a DCT, taken from a table of cosines, or else come from its filters (conv.c):
 * output o is a sum of outer products of a filter and a row of the mixing. Outputs are independent, and alpha's sum
 * runs over them in order.
 */
#include "call.h"
#include "common/numbers.h"
#include "common/runtime.h"
#include "common/terms.h"

#include <stdatomic.h>

#define BLOCK 8 /* outputs of an item */

typedef struct {
    const weight_call *a;
    double *by_output;
    int32_t *place; /* where an output's entry (channel, tap) lies among its weights; null: they lie in that order */
    atomic_int unsorted;
} job;

/* ---- rows of D --------------------------------------------------------------------------------------------- */

/* scale * cos(pi k (2j + 1) / 2q) for j = 0, 1, ..., a vector at a time: cos(a + b) = cos a cos b - sin a sin b with
   `a` the angle of the vector's first j, `b` what each lane adds. From one vector to the next `a` is turned by the same
   rule, and read again from the table before that has cost a digit. */
typedef struct {
    const float *cosines;
    int64_t quarter, at, leap; /* of the table's period of 4 quarters: the next angle to read, and on to the one after */
    int turns;
    float a_cos, a_sin, step_cos, step_sin;
    V cos, sin;
} wave;

#define TURNS 8 /* vectors to a reading */

INLINE int64_t wrap(int64_t t, int64_t period) { return t >= period ? t - period : t; }
INLINE float cos_at(const wave *w, int64_t t) { return w->cosines[t]; }
INLINE float sin_at(const wave *w, int64_t t) { return w->cosines[wrap(t + 3 * w->quarter, 4 * w->quarter)]; }

static wave start_wave(const float *cosines, int64_t q, int64_t k, float scale)
{
    const int64_t period = 4 * q, step = 2 * LANES * k % period;
    wave w = {.cosines = cosines, .quarter = q, .at = k, .leap = TURNS * step % period};
    w.step_cos = cos_at(&w, step), w.step_sin = sin_at(&w, step);
    float cos[LANES], sin[LANES];
    for (int64_t i = 0, t = 0; i < LANES; i++, t = wrap(t + 2 * k, period)) {
        cos[i] = scale * cos_at(&w, t);
        sin[i] = scale * sin_at(&w, t);
    }
    memcpy(&w.cos, cos, sizeof cos), memcpy(&w.sin, sin, sizeof sin);
    return w;
}

INLINE V next_of_wave(wave *w)
{
    if (w->turns++ % TURNS == 0) {
        w->a_cos = cos_at(w, w->at), w->a_sin = sin_at(w, w->at);
        w->at = wrap(w->at + w->leap, 4 * w->quarter);
    }
    const float cos = w->a_cos, sin = w->a_sin;
    w->a_cos = cos * w->step_cos - sin * w->step_sin;
    w->a_sin = sin * w->step_cos + cos * w->step_sin;
    return cos * w->cos - sin * w->sin;
}

INLINE float row_scale(int64_t k, int64_t q) { return __builtin_sqrtf((k ? 2.0f : 1.0f) / (float)q); }

static void write_wave(wave w, float *row, int64_t n)
{
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) *(anywhere *)(row + j) = next_of_wave(&w);
    const V last = next_of_wave(&w);
    if (j < n) memcpy(row + j, &last, sizeof(float) * (size_t)(n - j));
}

static float wave_dot(wave w, const float *g, int64_t n)
{
    V sum = {0}, rest = {0};
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) sum += *(const anywhere *)(g + j) * next_of_wave(&w);
    if (j < n) memcpy(&rest, g + j, sizeof(float) * (size_t)(n - j));
    return total(sum + rest * next_of_wave(&w));
}

/* The row of the mixing that map z is; gives it, in `row` where it has to be made. */
static const float *mixing_row(const weight_call *a, int64_t z, float *row)
{
    const int64_t n = a->channels, q = a->cosine;
    if (a->mix == MIX_PLAIN) return a->first + z * n;
    if (a->mix == MIX_PRODUCT) {
        memset(row, 0, sizeof(float) * (size_t)n);
        for (int64_t r = 0; r < a->rank; r++)
            for (int64_t c = 0; c < n; c++) row[c] += a->second[z * a->rank + r] * a->first[r * n + c];
        return row;
    }
    if (a->mix == MIX_NONE) {
        row[0] = 1;
        return row;
    }
    write_wave(start_wave(a->cosines, q, z % q, row_scale(z % q, q)), row, n);
    for (int64_t c = 0; a->signs && c < n; c++) row[c] *= a->signs[z / q * n + c];
    return row;
}

/* ---- outputs ----------------------------------------------------------------------------------------------- */

INLINE void swap_axes(const float *from, int64_t rows, int64_t columns, float *to)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[c * rows + r] = from[r * columns + c];
}

/* alpha * D's output o as (taps, channels). */
static void make_output(const weight_call *a, int64_t o, float *made, float *row)
{
    if (a->mix == MIX_ROWS) {
        write_wave(start_wave(a->cosines, a->cosine, o, *a->alpha * row_scale(o, a->cosine)), made, a->channels * a->taps);
        return;
    }
    for (int64_t i = o * a->terms; i < (o + 1) * a->terms; i++) {
        const term d = find_term(a->source, a->filter, a->taps, a->cosine, i);
        const float *channel = mixing_row(a, d.map, row), *filter = a->bank + d.filter * a->taps;
        for (int64_t t = 0; t < a->taps; t++) {
            const float by = *a->alpha * filter[t];
            float *out = made + t * a->channels;
            if (i > o * a->terms)
                for (int64_t c = 0; c < a->channels; c++) out[c] += by * channel[c];
            else
                for (int64_t c = 0; c < a->channels; c++) out[c] = by * channel[c];
        }
    }
}

static void make_block(void *argument, int64_t item, void *scratch)
{
    job *j = argument;
    const weight_call *a = j->a;
    const int64_t n = a->channels * a->taps, end = item * BLOCK + BLOCK, size = a->outputs * n;
    float *row = scratch, *taps_first = row + a->channels;
    int64_t k = seam(a->support, a->nnz, item * BLOCK * n, size);
    for (int64_t o = item * BLOCK; o < end && o < a->outputs; o++) {
        float *weight = a->weight + o * n;
        if (a->terms) make_output(a, o, a->channels_last ? weight : taps_first, row);
        else memset(weight, 0, sizeof(float) * (size_t)n);
        if (a->terms && !a->channels_last) swap_axes(taps_first, a->taps, a->channels, weight);
        const int64_t *support = a->support, first = o * n, past = first + n;
        int64_t next = first;
        if (j->place)
            for (; k < a->nnz && support[k] < past && support[k] >= next; next = support[k++] + 1)
                weight[j->place[support[k] - first]] += a->values[k];
        else
            for (; k < a->nnz && support[k] < past && support[k] >= next; next = support[k++] + 1)
                weight[support[k] - first] += a->values[k];
    }
    if (k != seam(a->support, a->nnz, end * n, size)) atomic_store(&j->unsorted, 1);
}

/* <gradient, D's output o>, the gradient as (taps, channels) */
static double read_output(const weight_call *a, int64_t o, const float *g, float *row)
{
    if (a->mix == MIX_ROWS)
        return wave_dot(start_wave(a->cosines, a->cosine, o, row_scale(o, a->cosine)), g, a->channels * a->taps);
    double sum = 0;
    for (int64_t i = o * a->terms; i < (o + 1) * a->terms; i++) {
        const term d = find_term(a->source, a->filter, a->taps, a->cosine, i);
        const float *channel = mixing_row(a, d.map, row), *filter = a->bank + d.filter * a->taps;
        for (int64_t t = 0; t < a->taps; t++) {
            const float *from = g + t * a->channels;
            V part = {0};
            float rest = 0;
            int64_t c = 0;
            for (; c + LANES <= a->channels; c += LANES)
                part += *(const anywhere *)(from + c) * *(const anywhere *)(channel + c);
            for (; c < a->channels; c++) rest += from[c] * channel[c];
            sum += (double)(rest + total(part)) * filter[t];
        }
    }
    return sum;
}

static void read_block(void *argument, int64_t item, void *scratch)
{
    job *j = argument;
    const weight_call *a = j->a;
    const int64_t n = a->channels * a->taps, end = item * BLOCK + BLOCK, size = a->outputs * n;
    float *row = scratch, *taps_first = row + a->channels;
    int64_t k = a->grad_values ? seam(a->support, a->nnz, item * BLOCK * n, size) : a->nnz;
    for (int64_t o = item * BLOCK; o < end && o < a->outputs; o++) {
        const float *weight = a->weight + o * n;
        const int64_t *support = a->support, first = o * n, past = first + n;
        int64_t next = first;
        if (j->place)
            for (; k < a->nnz && support[k] < past && support[k] >= next; next = support[k++] + 1)
                a->grad_values[k] = weight[j->place[support[k] - first]];
        else
            for (; k < a->nnz && support[k] < past && support[k] >= next; next = support[k++] + 1)
                a->grad_values[k] = weight[support[k] - first];
        if (!a->grad_alpha) continue;
        if (!a->channels_last) swap_axes(weight, a->channels, a->taps, taps_first);
        j->by_output[o] = read_output(a, o, a->channels_last ? weight : taps_first, row);
    }
    if (a->grad_values && k != seam(a->support, a->nnz, end * n, size)) atomic_store(&j->unsorted, 1);
}

/* What Python cannot see at little cost; the support is checked where it is read. */
static int check(const weight_call *a)
{
    const int64_t count = a->outputs * a->terms;
    if (a->mix == MIX_ROWS) return a->outputs <= a->cosine ? DONE : BAD_TABLE;
    if (a->terms && a->mix == MIX_NONE && a->channels > 1) return BAD_TABLE; /* depthwise ones alone have no mixing */
    return !a->terms || are_terms(a->mix, a->source, a->filter, count, a->taps, a->cosine, a->maps, a->filters) ? DONE
                                                                                                            : BAD_TABLE;
}

static int run(const weight_call *a, work_fn work)
{
    job j = {.a = a};
    const int64_t n = a->channels * a->taps;
    if (check(a)) return check(a);
    int failed = a->grad_alpha && !(j.by_output = dctps_take(sizeof(double) * (size_t)a->outputs));
    if (!failed && a->channels_last && a->channels > 1 && a->taps > 1 && a->nnz) {
        failed = !(j.place = dctps_take(sizeof(int32_t) * (size_t)n));
        for (int64_t entry = 0, c = 0; !failed && c < a->channels; c++)
            for (int64_t t = 0; t < a->taps; t++) j.place[entry++] = (int32_t)(t * a->channels + c);
    }
    const size_t bytes = sizeof(float) * (size_t)(a->channels + n);
    failed = failed || dctps_parallel(parts(a->outputs, BLOCK), a->threads, bytes, work, &j);
    double sum = 0;
    for (int64_t o = 0; !failed && a->grad_alpha && o < a->outputs; o++) sum += j.by_output[o];
    if (a->grad_alpha) *a->grad_alpha = (float)sum;
    dctps_give(j.by_output), dctps_give(j.place);
    return failed ? NO_MEMORY : atomic_load(&j.unsorted) ? BAD_SUPPORT : DONE;
}

EXPORT int DPS(weight_forward)(const weight_call *a) { return run(a, make_block); }
EXPORT int DPS(weight_backward)(const weight_call *a) { return run(a, read_block); }
