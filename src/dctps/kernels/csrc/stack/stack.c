/* Many small networks on one batch: losses, and gradients of all that trains, one network after the other.
 *
 * Images are the innermost axis, in chunks of CHUNK: an activation is (chunk, channel, pixel, CHUNK), so that a weight is
 * one multiply-add of whole vectors at a pixel, every tap of a convolution a shift of whole rows, and flattening nothing at
 * all. A chunk passes through a whole network and back before the next one, as its activations fit the L2 and L3 caches.
 *
 * A weighted layer has W = alpha D + S. Where S has few nonzeros its products run over these; where it has many, W is made
 * once for the call, as it is for D, whose products are those of a dense weight. The first layer's D x, which networks
 * share, is computed once for all of them.
 */
#include "dense.h"
#include "pool.h"
#include "sparse.h"

#include <stdatomic.h>

static const float *product_of(const stack_call *a, const layer *l, int64_t chunk)
{
    return l->shared < 0 ? NULL : a->products + (l->shared * a->chunks + chunk) * numbers_out(a->ops);
}

static void forward(const stack_call *a, const layer *layers, const space *sp, const float *x, int64_t chunk)
{
    for (int64_t i = 0; i < a->operations; i++) {
        const operation *op = a->ops + i;
        const layer *l = layers + i;
        const int relu = i + 1 < a->operations && op[1].kind == RELU;
        if (op->kind == WEIGHTED && is_sparse(op, l) && (!l->offset || l->shared >= 0))
            sparse_forward(op, l, product_of(a, l, chunk), x, sp->act[i], relu);
        else if (op->kind == WEIGHTED)
            dense_forward(op, sp->weight[i], l->bias, x, sp->act[i], relu);
        else if (op->kind == POOL)
            pool_forward(op, x, sp->act[i]);
        x = sp->act[i];
    }
}

static void backward(const stack_call *a, const layer *layers, space *sp, const float *images, int64_t chunk)
{
    float *g = sp->g, *dx = sp->g_other;
    for (int64_t i = a->operations - 1; i >= 0; i--) {
        const operation *op = a->ops + i;
        const layer *l = layers + i;
        const float *x = i ? sp->act[i - 1] : images;
        if (op->kind == RELU) {
            if (i + 1 < a->operations && op[1].kind == POOL) continue; /* it was done with the pool */
            for (int64_t at = 0; at < numbers_out(op); at += LANES)
                store(g + at, where_positive(load(sp->act[i] + at), load(g + at)));
            continue;
        }
        if (op->kind == POOL) {
            pool_backward(op, g, i && op[-1].kind == RELU ? x : NULL, dx);
        } else {
            const float *product = is_sparse(op, l) ? product_of(a, l, chunk) : NULL;
            sp->grad_alpha[i] += sums_of(op, l, product, g);
            if (is_sparse(op, l)) {
                if (l->grad_values) sparse_outer(op, l, g, x, sp->sums);
                if (!i) break;
                if (l->offset) sp->grad_alpha[i] += dense_backward(op, l->offset, *l->alpha, g, x, dx, sp);
                if (l->nnz || !l->offset) sparse_backward(op, l, g, dx, sp, l->offset != NULL);
            } else {
                dense_outer(op, g, x, sp->grad_weight[i]);
                if (!i) break;
                dense_backward(op, sp->weight[i], 1, g, NULL, dx, sp);
            }
        }
        float *other = g;
        g = dx;
        dx = other;
    }
}

/* W and places for its gradient; zeros where gradients are summed up. A support that is no longer what the tables were
 * made of is read no further. */
static int begin(const stack_call *a, const layer *layers, space *sp, float *at)
{
    int64_t widest = 0, terms = 0, inputs = 0;
    for (int64_t i = 0; i < a->operations; i++) {
        const operation *op = a->ops + i;
        const layer *l = layers + i;
        const int64_t in = op->channels * pixels_in(op) * CHUNK, out = numbers_out(op), size = weights_of(op);
        widest = in > widest ? in : widest;
        widest = out > widest ? out : widest;
        sp->grad_alpha[i] = 0;
        if (op->kind == RELU && i) {
            sp->act[i] = sp->act[i - 1];
            continue;
        }
        sp->act[i] = at;
        at += out;
        if (op->kind != WEIGHTED) continue;
        if (l->support && memcmp(l->support, l->laid_out, sizeof(int64_t) * (size_t)l->nnz)) return CHANGED;
        terms = op->outputs * taps_of(op) > terms ? op->outputs * taps_of(op) : terms;
        inputs = inputs_of(op) > inputs ? inputs_of(op) : inputs;
        if (a->backward && l->grad_values) memset(l->grad_values, 0, sizeof(float) * (size_t)l->nnz);
        if (a->backward && l->grad_bias) memset(l->grad_bias, 0, sizeof(float) * (size_t)op->outputs);
        const int64_t rounded = (size + 15) / 16 * 16;
        sp->weight[i] = at;
        sp->grad_weight[i] = at + rounded;
        at += 2 * rounded;
        if (is_full(op, l)) {
            sp->weight[i] = (float *)l->values;
            if (l->grad_values) sp->grad_weight[i] = l->grad_values;
            continue;
        }
        if (!is_sparse(op, l) && a->backward) memset(sp->grad_weight[i], 0, sizeof(float) * (size_t)size);
        if (is_sparse(op, l) && (!l->offset || l->shared >= 0)) continue;
        float *w = sp->weight[i];
        for (int64_t k = 0; k < size; k++) w[k] = l->offset ? *l->alpha * l->offset[k] : 0;
        for (int64_t k = 0; k < l->nnz; k++) w[l->laid_out[k]] += l->values[k];
    }
    sp->g = at;
    sp->g_other = at + widest;
    sp->sums = (V *)(at + 2 * widest);
    sp->at_g = (int32_t *)(sp->sums + inputs + LANES);
    sp->at_w = sp->at_g + terms;
    sp->by = (float *)(sp->at_w + terms);
    return DONE;
}

/* As `begin` takes it, for every network alike. */
static size_t scratch_bytes(const stack_call *a)
{
    int64_t widest = 0, terms = 0, inputs = 0, all = 0;
    for (int64_t i = 0; i < a->operations; i++) {
        const operation *op = a->ops + i;
        const int64_t in = op->channels * pixels_in(op) * CHUNK, out = numbers_out(op);
        widest = in > widest ? in : widest;
        widest = out > widest ? out : widest;
        all += out;
        if (op->kind != WEIGHTED) continue;
        terms = op->outputs * taps_of(op) > terms ? op->outputs * taps_of(op) : terms;
        inputs = inputs_of(op) > inputs ? inputs_of(op) : inputs;
        all += 2 * ((weights_of(op) + 15) / 16 * 16);
    }
    return sizeof(space) + 64 + sizeof(V) * (size_t)(inputs + LANES) + sizeof(float) * (size_t)(all + 2 * widest + 3 * terms);
}

/* What the gradients of W, summed over the chunks, say of values and alpha. */
static void finish(const stack_call *a, const layer *layers, const space *sp)
{
    for (int64_t i = 0; i < a->operations; i++) {
        const operation *op = a->ops + i;
        const layer *l = layers + i;
        if (op->kind != WEIGHTED) continue;
        double by_alpha = sp->grad_alpha[i];
        if (!is_sparse(op, l) && !is_full(op, l)) {
            const float *dw = sp->grad_weight[i];
            for (int64_t k = 0; l->grad_values && k < l->nnz; k++) l->grad_values[k] = dw[l->laid_out[k]];
            for (int64_t k = 0; l->grad_alpha && k < weights_of(op); k++) by_alpha += (double)dw[k] * l->offset[k];
        }
        if (l->grad_alpha) *l->grad_alpha = (float)by_alpha;
    }
}

typedef struct {
    const stack_call *a;
    atomic_int failed;
} job;

static void one_network(void *argument, int64_t r, void *scratch)
{
    job *j = argument;
    const stack_call *a = j->a;
    const layer *layers = a->layers + r * a->operations;
    space *sp = scratch;
    double loss = 0;
    int64_t correct = 0;
    int failed = begin(a, layers, sp, (float *)(((uintptr_t)(sp + 1) + 63) / 64 * 64));
    for (int64_t chunk = 0; !failed && chunk < a->chunks; chunk++) {
        const float *x = a->x + chunk * a->ops->channels * pixels_in(a->ops) * CHUNK;
        forward(a, layers, sp, x, chunk);
        head(a, sp->act[a->operations - 1], sp->g, chunk, &loss, &correct);
        if (a->backward) backward(a, layers, sp, x, chunk);
    }
    if (failed) atomic_store(&j->failed, failed);
    else if (a->backward) finish(a, layers, sp);
    a->loss[r] = loss;
    a->correct[r] = correct;
}

static void one_product(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    const stack_call *a = ((const job *)argument)->a;
    const int64_t which = item / a->chunks, chunk = item % a->chunks;
    const float *x = a->x + chunk * a->ops->channels * pixels_in(a->ops) * CHUNK;
    dense_forward(a->ops, a->offsets[which], NULL, x, a->products + item * numbers_out(a->ops), 0);
}

EXPORT int DPS(stack)(const stack_call *a)
{
    job j = {.a = a};
    for (int64_t i = 0; i < a->images; i++)
        if (a->labels[i] < 0 || a->labels[i] >= a->classes) return BAD_LABEL;
    int failed = dctps_parallel(a->shared * a->chunks, a->threads, 0, one_product, &j);
    if (!failed) failed = dctps_parallel(a->networks, a->threads, scratch_bytes(a), one_network, &j);
    return failed ? failed : atomic_load(&j.failed);
}
