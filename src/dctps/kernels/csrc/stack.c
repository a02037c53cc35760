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
#include <math.h>

#include "vec.h"
#include "common/runtime.h"

#define CHUNK 64                 /* images */
#define G 4                      /* vectors of a register block, and */
#define M (LANES == 16 ? 6 : 3)  /* its rows: as many as registers hold, with the vectors that they are made from */
#define K 4                      /* columns of a block of dW */
#define STEP (G * LANES)         /* images of a block */
#define SPARSE 3                 /* S runs over its nonzeros where they are fewer than one in so many */

typedef int32_t I __attribute__((vector_size(4 * LANES)));

enum { WEIGHTED, RELU, POOL };

typedef struct {
    int64_t kind, channels, rows, columns;       /* of what goes in */
    int64_t outputs, out_rows, out_columns;      /* of what comes out */
    int64_t window_rows, window_columns;         /* of the kernel, or of the pool, whose windows do not overlap */
    const int32_t *taps;                         /* of a weighted layer: where input k of an output's is, in pixels */
} operation;

/* A nonzero, as its channel sees it. */
typedef struct {
    int32_t nonzero, output, row, column;
} reader;

typedef struct {
    int64_t nnz;
    const int64_t *support;
    const int32_t *start, *place;  /* S by rows: where each begins, and where each nonzero reads, in pixels */
    const int32_t *column;         /* S by channels: where each begins, and its nonzeros */
    const reader *readers;
    const float *values, *alpha, *bias, *offset; /* alpha and D, or null */
    float *d_values, *d_alpha, *d_bias;          /* each may be null */
    int64_t shared; /* which of the products D x of the first layer, or -1 */
} layer;

typedef struct {
    int64_t networks, operations, images, chunks, threads, backward, classes;
    const operation *ops;
    const layer *layers; /* (networks, operations) */
    const float *x;      /* (chunks, channels, pixels, CHUNK) */
    const int64_t *labels;
    int64_t shared; /* products D x of the first layer */
    const float *const *offsets;
    float *products; /* (shared, chunks, outputs, pixels, CHUNK) */
    double *loss;    /* (networks,) summed over the images */
    int64_t *correct;
} arguments;

/* One network's scratch. */
typedef struct {
    float *act[64], *weight[64], *d_weight[64];
    double d_alpha[64];
    float *g, *g_other;
    V *sums;
    int32_t *at_g, *at_w;
    float *by;
} space;

INLINE int64_t pixels_in(const operation *op) { return op->rows * op->columns; }
INLINE int64_t pixels_out(const operation *op) { return op->out_rows * op->out_columns; }
INLINE int64_t taps_of(const operation *op) { return op->window_rows * op->window_columns; }
INLINE int64_t inputs_of(const operation *op) { return op->channels * taps_of(op); }
INLINE int64_t weights_of(const operation *op) { return op->outputs * inputs_of(op); }
INLINE int64_t numbers_out(const operation *op) { return op->outputs * pixels_out(op) * CHUNK; }
INLINE int is_sparse(const operation *op, const layer *l) { return l->nnz * SPARSE < weights_of(op); }
INLINE int is_full(const operation *op, const layer *l) { return l->nnz == weights_of(op) && !l->offset; }

INLINE V positive(V v) { return (V)(~(I)(v < 0) & (I)v); } /* keeps what is no number */
INLINE V where_positive(V y, V v) { return (V)((I)(y > 0) & (I)v); }
INLINE float total(V v)
{
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += v[l];
    return sum;
}

/* acc[i] += sum over t of weight[at_w[t] + i * row] * x[at_x[t]], for `count` rows of weights. */
INLINE void multiply(const float *weight, const int32_t *at_w, int64_t row, const float *x, const int32_t *at_x,
                     int64_t terms, V acc[M][G], const int count)
{
    for (int64_t t = 0; t < terms; t++) {
        const float *from = x + (int64_t)at_x[t] * CHUNK, *w = weight + (at_w ? at_w[t] : t);
        V in[G];
        for (int j = 0; j < G; j++) in[j] = load(from + j * LANES);
        for (int i = 0; i < count; i++) {
            const float by = w[i * row];
            for (int j = 0; j < G; j++) acc[i][j] += by * in[j];
        }
    }
}

/* y = W x + b, and its positive part if asked */
INLINE void dense_rows(const operation *op, const float *w, const float *bias, const float *x, float *y, int64_t o,
                       int64_t p, int relu, const int count)
{
    const int64_t n = inputs_of(op), pixels = pixels_out(op);
    const int64_t from = p / op->out_columns * op->columns + p % op->out_columns;
    for (int s = 0; s < CHUNK; s += STEP) {
        V acc[M][G];
        for (int i = 0; i < count; i++)
            for (int j = 0; j < G; j++) acc[i][j] = (V){0} + (bias ? bias[o + i] : 0.0f);
        multiply(w + o * n, NULL, n, x + from * CHUNK + s, op->taps, n, acc, count);
        for (int i = 0; i < count; i++)
            for (int j = 0; j < G; j++)
                store(y + ((o + i) * pixels + p) * CHUNK + s + j * LANES, relu ? positive(acc[i][j]) : acc[i][j]);
    }
}

static void dense_forward(const operation *op, const float *w, const float *bias, const float *x, float *y, int relu)
{
    for (int64_t p = 0; p < pixels_out(op); p++) {
        int64_t o = 0;
        for (; o + M <= op->outputs; o += M) dense_rows(op, w, bias, x, y, o, p, relu, M);
        for (; o + 2 <= op->outputs; o += 2) dense_rows(op, w, bias, x, y, o, p, relu, 2);
        for (; o < op->outputs; o++) dense_rows(op, w, bias, x, y, o, p, relu, 1);
    }
}

/* dx = scale W^T g; gives <W^T g, x> */
INLINE double dense_columns(const operation *op, const float *w, float scale, const float *g, const float *x, float *dx,
                            const space *sp, int64_t terms, int64_t c, int64_t q, const int count)
{
    const int64_t taps = taps_of(op), pixels = pixels_in(op);
    V dot[G] = {0};
    for (int s = 0; s < CHUNK; s += STEP) {
        V acc[M][G] = {0};
        multiply(w + c * taps, sp->at_w, taps, g + s, sp->at_g, terms, acc, count);
        for (int i = 0; i < count; i++)
            for (int j = 0; j < G; j++) {
                const int64_t at = ((c + i) * pixels + q) * CHUNK + s + j * LANES;
                if (x) dot[j] += acc[i][j] * load(x + at);
                store(dx + at, scale * acc[i][j]);
            }
    }
    double sum = 0;
    for (int j = 0; x && j < G; j++) sum += total(dot[j]);
    return sum;
}

static double dense_backward(const operation *op, const float *w, float scale, const float *g, const float *x, float *dx,
                             const space *sp)
{
    const int64_t n = inputs_of(op), pixels = pixels_out(op);
    double dot = 0;
    for (int64_t row = 0, q = 0; row < op->rows; row++) {
        const int64_t i0 = row < op->out_rows ? 0 : row - op->out_rows + 1;
        const int64_t i1 = row < op->window_rows ? row + 1 : op->window_rows;
        for (int64_t column = 0; column < op->columns; column++, q++) {
            const int64_t j0 = column < op->out_columns ? 0 : column - op->out_columns + 1;
            const int64_t j1 = column < op->window_columns ? column + 1 : op->window_columns;
            int64_t terms = 0, c = 0;
            for (int64_t o = 0; o < op->outputs; o++)
                for (int64_t i = i0; i < i1; i++)
                    for (int64_t j = j0; j < j1; j++, terms++) {
                        sp->at_g[terms] = (int32_t)(o * pixels + (row - i) * op->out_columns + column - j);
                        sp->at_w[terms] = (int32_t)(o * n + i * op->window_columns + j);
                    }
            for (; c + M <= op->channels; c += M) dot += dense_columns(op, w, scale, g, x, dx, sp, terms, c, q, M);
            for (; c + 2 <= op->channels; c += 2) dot += dense_columns(op, w, scale, g, x, dx, sp, terms, c, q, 2);
            for (; c < op->channels; c++) dot += dense_columns(op, w, scale, g, x, dx, sp, terms, c, q, 1);
        }
    }
    return dot;
}

/* dW += g x^T: a block of `count` rows and K columns, over a row of pixels */
INLINE void outer_block(const operation *op, const float *g, const float *x, float *dw, int64_t o, int64_t k,
                        int64_t row, const int count, const int width)
{
    const int64_t n = inputs_of(op), pixels = pixels_out(op);
    V acc[M][K] = {0}, flat[M * K + LANES] = {0};
    const float *from[K];
    for (int b = 0; b < width; b++) from[b] = x + (op->taps[k + b] + row * op->columns) * CHUNK;
    const float *by = g + (o * pixels + row * op->out_columns) * CHUNK;
    for (int64_t at = 0; at < op->out_columns * CHUNK; at += LANES) {
        V in[K];
        for (int b = 0; b < width; b++) in[b] = load(from[b] + at);
        for (int i = 0; i < count; i++) {
            const V gi = load(by + i * pixels * CHUNK + at);
            for (int b = 0; b < width; b++) acc[i][b] += gi * in[b];
        }
    }
    for (int i = 0; i < count; i++)
        for (int b = 0; b < width; b++) flat[i * width + b] = acc[i][b];
    for (int first = 0; first < count * width; first += LANES) {
        const V sums = lane_sums(flat + first);
        for (int i = first; i < first + LANES && i < count * width; i++)
            dw[(o + i / width) * n + k + i % width] += sums[i - first];
    }
}

static void dense_outer(const operation *op, const float *g, const float *x, float *dw)
{
    const int64_t n = inputs_of(op);
    for (int64_t row = 0; row < op->out_rows; row++) {
        int64_t o = 0;
        for (; o + M <= op->outputs; o += M) {
            int64_t k = 0;
            for (; k + K <= n; k += K) outer_block(op, g, x, dw, o, k, row, M, K);
            for (; k < n; k++) outer_block(op, g, x, dw, o, k, row, M, 1);
        }
        for (; o < op->outputs; o++) {
            int64_t k = 0;
            for (; k + K <= n; k += K) outer_block(op, g, x, dw, o, k, row, 1, K);
            for (; k < n; k++) outer_block(op, g, x, dw, o, k, row, 1, 1);
        }
    }
}

/* y = alpha * product + S x + b, the product D x if there is one */
static void sparse_forward(const operation *op, const layer *l, const float *product, const float *x, float *y, int relu)
{
    const int64_t pixels = pixels_out(op);
    const float alpha = product ? *l->alpha : 0;
    for (int64_t o = 0; o < op->outputs; o++)
        for (int64_t p = 0; p < pixels; p++) {
            const float *from = x + (p / op->out_columns * op->columns + p % op->out_columns) * CHUNK;
            const int64_t to = (o * pixels + p) * CHUNK;
            for (int s = 0; s < CHUNK; s += STEP) {
                V acc[G];
                for (int j = 0; j < G; j++) {
                    acc[j] = (V){0} + (l->bias ? l->bias[o] : 0.0f);
                    if (product) acc[j] += alpha * load(product + to + s + j * LANES);
                }
                for (int64_t k = l->start[o]; k < l->start[o + 1]; k++) {
                    const float *in = from + (int64_t)l->place[k] * CHUNK + s, by = l->values[k];
                    for (int j = 0; j < G; j++) acc[j] += by * load(in + j * LANES);
                }
                for (int j = 0; j < G; j++) store(y + to + s + j * LANES, relu ? positive(acc[j]) : acc[j]);
            }
        }
}

/* dx += S^T g, or = where there is nothing yet: at each pixel the nonzeros of its channel that read it. */
static void sparse_backward(const operation *op, const layer *l, const float *g, float *dx, const space *sp, int add)
{
    const int64_t pixels = pixels_out(op), wide = op->out_columns;
    for (int64_t c = 0; c < op->channels; c++)
        for (int64_t row = 0; row < op->rows; row++) {
            int64_t terms = 0; /* nonzeros that read this row */
            for (int64_t k = l->column[c]; k < l->column[c + 1]; k++) {
                const reader *by = l->readers + k;
                const int64_t i = row - by->row;
                if (i < 0 || i >= op->out_rows) continue;
                sp->at_g[terms] = (int32_t)(by->output * pixels + i * wide - by->column);
                sp->at_w[terms] = by->column;
                sp->by[terms++] = l->values[by->nonzero];
            }
            for (int64_t column = 0; column < op->columns; column++, dx += CHUNK) {
                const int all = column >= op->window_columns - 1 && column < wide;
                for (int s = 0; s < CHUNK; s += STEP) {
                    const float *from = g + column * CHUNK + s;
                    V acc[G] = {0};
                    for (int j = 0; add && j < G; j++) acc[j] = load(dx + s + j * LANES);
                    for (int64_t t = 0; t < terms; t++) {
                        if (!all && (uint64_t)(column - sp->at_w[t]) >= (uint64_t)wide) continue;
                        const float *in = from + (int64_t)sp->at_g[t] * CHUNK, by = sp->by[t];
                        for (int j = 0; j < G; j++) acc[j] += by * load(in + j * LANES);
                    }
                    for (int j = 0; j < G; j++) store(dx + s + j * LANES, acc[j]);
                }
            }
        }
}

/* sum[k] += g x for `count` nonzeros of a row of S, over a row of pixels. */
INLINE void outer_rows(const float *g, const float *x, const int32_t *place, int64_t wide, V *sum, const int count)
{
    V acc[2][G] = {0};
    for (int64_t at = 0; at < wide; at += STEP)
        for (int j = 0; j < G; j++) {
            const V by = load(g + at + j * LANES);
            for (int k = 0; k < count; k++) acc[k][j] += by * load(x + (int64_t)place[k] * CHUNK + at + j * LANES);
        }
    for (int k = 0; k < count; k++)
        for (int j = 0; j < G; j++) sum[k] += acc[k][j];
}

/* d_values += (g x^T) at the support */
static void sparse_outer(const operation *op, const layer *l, const float *g, const float *x, V *sums)
{
    const int64_t pixels = pixels_out(op), wide = op->out_columns * CHUNK;
    for (int64_t o = 0; o < op->outputs; o++) {
        const int64_t first = l->start[o], count = l->start[o + 1] - first;
        memset(sums, 0, sizeof(V) * (size_t)(count + LANES));
        for (int64_t row = 0; row < op->out_rows; row++) {
            const float *by = g + o * pixels * CHUNK + row * wide, *from = x + row * op->columns * CHUNK;
            int64_t k = 0;
            for (; k + 2 <= count; k += 2) outer_rows(by, from, l->place + first + k, wide, sums + k, 2);
            for (; k < count; k++) outer_rows(by, from, l->place + first + k, wide, sums + k, 1);
        }
        for (int64_t k = 0; k < count; k += LANES) {
            const V found = lane_sums(sums + k);
            for (int64_t i = 0; i < LANES && k + i < count; i++) l->d_values[first + k + i] += found[i];
        }
    }
}

/* What g says of the biases, and of alpha by the shared product D x: <g, D x>. */
static double sums_of(const operation *op, const layer *l, const float *product, const float *g)
{
    const int64_t numbers = pixels_out(op) * CHUNK;
    double by_alpha = 0;
    if (!l->d_bias && !product) return 0;
    for (int64_t o = 0; o < op->outputs; o++) {
        V sum[G] = {0}, dot[G] = {0};
        for (int64_t at = 0; at < numbers; at += STEP)
            for (int j = 0; j < G; j++) {
                const V gj = load(g + o * numbers + at + j * LANES);
                sum[j] += gj;
                if (product) dot[j] += gj * load(product + o * numbers + at + j * LANES);
            }
        double by_bias = 0;
        for (int j = 0; j < G; j++) {
            by_bias += total(sum[j]);
            if (product) by_alpha += total(dot[j]);
        }
        if (l->d_bias) l->d_bias[o] += (float)by_bias;
    }
    return by_alpha;
}

static void pool_forward(const operation *op, const float *x, float *y)
{
    const float scale = 1.0f / (float)taps_of(op);
    for (int64_t c = 0; c < op->channels; c++)
        for (int64_t row = 0; row < op->out_rows; row++)
            for (int64_t column = 0; column < op->out_columns; column++, y += CHUNK) {
                const int64_t first = row * op->window_rows * op->columns + column * op->window_columns;
                const float *from = x + (c * pixels_in(op) + first) * CHUNK;
                for (int s = 0; s < CHUNK; s += LANES) {
                    V sum = {0};
                    for (int64_t i = 0; i < op->window_rows; i++)
                        for (int64_t j = 0; j < op->window_columns; j++)
                            sum += load(from + (i * op->columns + j) * CHUNK + s);
                    store(y + s, scale * sum);
                }
            }
}

/* The gradient before the pool; where `x`, what went in, is a positive part, that part's too. */
static void pool_backward(const operation *op, const float *g, const float *x, float *dx)
{
    const float scale = 1.0f / (float)taps_of(op);
    if (op->out_rows * op->window_rows < op->rows || op->out_columns * op->window_columns < op->columns)
        memset(dx, 0, sizeof(float) * (size_t)(op->channels * pixels_in(op) * CHUNK));
    for (int64_t c = 0; c < op->channels; c++)
        for (int64_t row = 0; row < op->out_rows; row++)
            for (int64_t column = 0; column < op->out_columns; column++, g += CHUNK) {
                const int64_t first = row * op->window_rows * op->columns + column * op->window_columns;
                for (int64_t i = 0; i < op->window_rows; i++)
                    for (int64_t j = 0; j < op->window_columns; j++) {
                        const int64_t at = (c * pixels_in(op) + first + i * op->columns + j) * CHUNK;
                        for (int s = 0; s < CHUNK; s += LANES) {
                            const V v = scale * load(g + s);
                            store(dx + at + s, x ? where_positive(load(x + at + s), v) : v);
                        }
                    }
            }
}

/* Cross-entropy of logits (classes, CHUNK), and its gradient's share of a mean over all images. */
static void head(const arguments *a, const float *logits, float *g, int64_t chunk, double *loss, int64_t *correct)
{
    const int64_t first = chunk * CHUNK, here = a->images - first < CHUNK ? a->images - first : CHUNK;
    memset(g, 0, sizeof(float) * (size_t)(a->classes * CHUNK));
    for (int64_t b = 0; b < here; b++) {
        const int64_t label = a->labels[first + b];
        int64_t best = 0;
        for (int64_t k = 1; k < a->classes; k++)
            if (logits[k * CHUNK + b] > logits[best * CHUNK + b]) best = k;
        const float most = logits[best * CHUNK + b];
        float sum = 0;
        for (int64_t k = 0; k < a->classes; k++) sum += g[k * CHUNK + b] = expf(logits[k * CHUNK + b] - most);
        *loss += (double)(logf(sum) + most - logits[label * CHUNK + b]);
        *correct += best == label;
        const float scale = 1 / (sum * (float)a->images);
        for (int64_t k = 0; k < a->classes; k++) g[k * CHUNK + b] *= scale;
        g[label * CHUNK + b] -= 1 / (float)a->images;
    }
}

static const float *product_of(const arguments *a, const layer *l, int64_t chunk)
{
    return l->shared < 0 ? NULL : a->products + (l->shared * a->chunks + chunk) * numbers_out(a->ops);
}

static void forward(const arguments *a, const layer *layers, const space *sp, const float *x, int64_t chunk)
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

static void backward(const arguments *a, const layer *layers, space *sp, const float *images, int64_t chunk)
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
            sp->d_alpha[i] += sums_of(op, l, product, g);
            if (is_sparse(op, l)) {
                if (l->d_values) sparse_outer(op, l, g, x, sp->sums);
                if (!i) break;
                if (l->offset) sp->d_alpha[i] += dense_backward(op, l->offset, *l->alpha, g, x, dx, sp);
                if (l->nnz || !l->offset) sparse_backward(op, l, g, dx, sp, l->offset != NULL);
            } else {
                dense_outer(op, g, x, sp->d_weight[i]);
                if (!i) break;
                dense_backward(op, sp->weight[i], 1, g, NULL, dx, sp);
            }
        }
        float *other = g;
        g = dx;
        dx = other;
    }
}

/* W and places for its gradient; zeros where gradients are summed up. */
static void begin(const arguments *a, const layer *layers, space *sp, float *at)
{
    int64_t widest = 0, terms = 0, inputs = 0;
    for (int64_t i = 0; i < a->operations; i++) {
        const operation *op = a->ops + i;
        const layer *l = layers + i;
        const int64_t in = op->channels * pixels_in(op) * CHUNK, out = numbers_out(op), size = weights_of(op);
        widest = in > widest ? in : widest;
        widest = out > widest ? out : widest;
        sp->d_alpha[i] = 0;
        if (op->kind == RELU && i) {
            sp->act[i] = sp->act[i - 1];
            continue;
        }
        sp->act[i] = at;
        at += out;
        if (op->kind != WEIGHTED) continue;
        terms = op->outputs * taps_of(op) > terms ? op->outputs * taps_of(op) : terms;
        inputs = inputs_of(op) > inputs ? inputs_of(op) : inputs;
        if (a->backward && l->d_values) memset(l->d_values, 0, sizeof(float) * (size_t)l->nnz);
        if (a->backward && l->d_bias) memset(l->d_bias, 0, sizeof(float) * (size_t)op->outputs);
        const int64_t rounded = (size + 15) / 16 * 16;
        sp->weight[i] = at;
        sp->d_weight[i] = at + rounded;
        at += 2 * rounded;
        if (is_full(op, l)) {
            sp->weight[i] = (float *)l->values;
            if (l->d_values) sp->d_weight[i] = l->d_values;
            continue;
        }
        if (!is_sparse(op, l) && a->backward) memset(sp->d_weight[i], 0, sizeof(float) * (size_t)size);
        if (is_sparse(op, l) && (!l->offset || l->shared >= 0)) continue;
        float *w = sp->weight[i];
        for (int64_t k = 0; k < size; k++) w[k] = l->offset ? *l->alpha * l->offset[k] : 0;
        for (int64_t k = 0; k < l->nnz; k++) w[l->support[k]] += l->values[k];
    }
    sp->g = at;
    sp->g_other = at + widest;
    sp->sums = (V *)(at + 2 * widest);
    sp->at_g = (int32_t *)(sp->sums + inputs + LANES);
    sp->at_w = sp->at_g + terms;
    sp->by = (float *)(sp->at_w + terms);
}

/* As `begin` takes it, for every network alike. */
static size_t scratch_bytes(const arguments *a)
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
static void finish(const arguments *a, const layer *layers, const space *sp)
{
    for (int64_t i = 0; i < a->operations; i++) {
        const operation *op = a->ops + i;
        const layer *l = layers + i;
        if (op->kind != WEIGHTED) continue;
        double by_alpha = sp->d_alpha[i];
        if (!is_sparse(op, l) && !is_full(op, l)) {
            const float *dw = sp->d_weight[i];
            for (int64_t k = 0; l->d_values && k < l->nnz; k++) l->d_values[k] = dw[l->support[k]];
            for (int64_t k = 0; l->d_alpha && k < weights_of(op); k++) by_alpha += (double)dw[k] * l->offset[k];
        }
        if (l->d_alpha) *l->d_alpha = (float)by_alpha;
    }
}

static void one_network(void *argument, int64_t r, void *scratch)
{
    const arguments *a = argument;
    const layer *layers = a->layers + r * a->operations;
    space *sp = scratch;
    double loss = 0;
    int64_t correct = 0;
    begin(a, layers, sp, (float *)(((uintptr_t)(sp + 1) + 63) / 64 * 64));
    for (int64_t chunk = 0; chunk < a->chunks; chunk++) {
        const float *x = a->x + chunk * a->ops->channels * pixels_in(a->ops) * CHUNK;
        forward(a, layers, sp, x, chunk);
        head(a, sp->act[a->operations - 1], sp->g, chunk, &loss, &correct);
        if (a->backward) backward(a, layers, sp, x, chunk);
    }
    if (a->backward) finish(a, layers, sp);
    a->loss[r] = loss;
    a->correct[r] = correct;
}

static void one_product(void *argument, int64_t item, void *scratch)
{
    (void)scratch;
    const arguments *a = argument;
    const int64_t which = item / a->chunks, chunk = item % a->chunks;
    const float *x = a->x + chunk * a->ops->channels * pixels_in(a->ops) * CHUNK;
    dense_forward(a->ops, a->offsets[which], NULL, x, a->products + item * numbers_out(a->ops), 0);
}

EXPORT int DPS(stack)(const arguments *a)
{
    if (dctps_parallel(a->shared * a->chunks, a->threads, 0, one_product, (void *)a)) return -1;
    return dctps_parallel(a->networks, a->threads, scratch_bytes(a), one_network, (void *)a);
}
