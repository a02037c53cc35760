/* y = alpha D x + S x + b. */
#include "index.h"

#define FORWARD_GROUP 2

/* What the walk over S's rows reads of a group of tiles: x, and D x where there is D. */
typedef struct {
    const float *t, *z;
    ptrdiff_t t_step, z_step;
} inputs;

INLINE void rows_forward(const job *j, const inputs *in, int64_t first, int count, int group,
                         V out[FORWARD_GROUP][LANES])
{
    const float *values = j->a.values, *bias = j->a.bias;
    const float alpha = j->alpha * j->scale;
    for (int i = 0; i < count; i++) {
        const int64_t r = first + i;
        V sum[FORWARD_GROUP];
        const V b = (V){0} + (bias ? bias[r] : 0);
        for (int g = 0; g < group; g++)
            sum[g] = in->z ? b + alpha * load(in->z + g * in->z_step + j->source[r]) : b;
        for (uint32_t k = j->start[r]; k < j->start[r + 1]; k++) {
            const float v = values[k];
            const float *column = in->t + j->column[k];
            for (int g = 0; g < group; g++) sum[g] += v * load(column + g * in->t_step);
        }
        for (int g = 0; g < group; g++) out[g][i] = sum[g];
    }
}

/* Vectors of a tile's x, and of its D x; one more than they need, so that tiles do not fall on the same lines. */
static ptrdiff_t t_vectors(const job *j) { return j->vectors + 1; }
static ptrdiff_t z_vectors(const job *j) { return j->a.transform ? j->vectors * j->a.rounds + 1 : 0; }

/* A tile's x and D x; `absent` is a row of zeros. */
static void tile_forward(const job *j, int64_t tile, float *t, float *z, const float *absent, float *wide)
{
    const float *row[LANES];
    tile_rows(j, row, j->a.x, j->a.x_stride, j->a.n, tile, absent, wide);
    tile_in(j, row, t);
    if (j->a.transform) transform(j, t, z);
}

INLINE void put(const V *out, float *const *row, int64_t r, int count, int rows)
{
    if (count == LANES)
        transpose_out(out, row, r, rows);
    else
        for (int i = 0; i < rows; i++)
            for (int c = 0; c < count; c++) row[i][r + c] = out[c][i];
}

static void forward_group(void *argument, int64_t item, void *scratch)
{
    const job *j = argument;
    const int64_t m = j->a.m, first = item * j->group;
    const int group = (int)(j->tiles - first < j->group ? j->tiles - first : j->group);
    const ptrdiff_t t_step = t_vectors(j) * LANES, z_step = z_vectors(j) * LANES;
    float *t = scratch, *z = t + j->group * t_step, *absent = z + j->group * z_step;
    float *wide = absent + j->a.n;
    const inputs in = {t, j->a.transform ? z : NULL, t_step, z_step};
    float *row[FORWARD_GROUP][LANES];
    int rows[FORWARD_GROUP];
    V out[FORWARD_GROUP][LANES];
    if (j->a.batch % LANES) memset(absent, 0, sizeof(float) * (size_t)j->a.n);
    for (int g = 0; g < group; g++) {
        tile_forward(j, first + g, t + g * t_step, z + g * z_step, absent, wide);
        rows[g] = rows_out(j, row[g], j->a.y, m, first + g, wide + g * wide_floats(j));
    }
    for (int64_t r = 0; r < m; r += LANES) {
        const int count = m - r < LANES ? (int)(m - r) : LANES;
        for (int g = 0; g < group; g++) prefetch_rows(row[g], r + AHEAD, m, rows[g]);
        if (group == 1) rows_forward(j, &in, r, count, 1, out);
        else rows_forward(j, &in, r, count, 2, out);
        for (int g = 0; g < group; g++) put(out[g], row[g], r, count, rows[g]);
    }
    for (int g = 0; g < group; g++) round_rows(j, row[g], j->a.y, m, first + g, rows[g], 0, m);
}

/* ---- few rows: S is read as it is stored, and the threads share out its rows ---- */

typedef struct {
    job j;
    inputs in;
    float *t, *z, *absent, *wide;
} few;

static void few_tile(void *argument, int64_t tile, void *scratch)
{
    const few *f = argument;
    (void)scratch;
    tile_forward(&f->j, tile, f->t + tile * f->in.t_step, f->z + tile * f->in.z_step, f->absent,
                 f->wide + tile * wide_floats(&f->j));
}

/* As `rows_forward`; k is the first nonzero of the rows, and then of those after them. */
INLINE int few_rows_forward(const job *j, const inputs *in, int64_t first, int count, int group, int64_t *k,
                            V out[FORWARD_GROUP][LANES])
{
    const linear_call *a = &j->a;
    const float *values = a->values, *bias = a->bias;
    const int64_t *support = a->support;
    const float alpha = j->alpha * j->scale;
    const int32_t *slot = a->transform == DCT ? j->plan.slot : NULL;
    for (int i = 0; i < count; i++) {
        const int64_t r = first + i, begin = r * a->n, end = begin + a->n;
        const V b = (V){0} + (bias ? bias[r] : 0);
        V sum[FORWARD_GROUP];
        int64_t next = begin; /* position at least */
        for (int g = 0; g < group; g++)
            sum[g] = in->z ? b + alpha * load(in->z + g * in->z_step + source_of(j, r)) : b;
        for (; *k < a->nnz && support[*k] < end; ++*k) {
            if (support[*k] < next) return 0;
            next = support[*k] + 1;
            const int64_t c = support[*k] - begin;
            const float *column = in->t + (slot ? slot[c] : c) * LANES, v = values[*k];
            for (int g = 0; g < group; g++) sum[g] += v * load(column + g * in->t_step);
        }
        for (int g = 0; g < group; g++) out[g][i] = sum[g];
    }
    return 1;
}

static void few_rows(void *argument, int64_t item, void *scratch)
{
    few *f = argument;
    job *j = &f->j;
    const int64_t items = index_items(j), blocks = (j->a.m + LANES - 1) / LANES, *support = j->a.support;
    const int64_t first = blocks * item / items * LANES, next = blocks * (item + 1) / items * LANES;
    const int64_t last = next < j->a.m ? next : j->a.m;
    int64_t k = seam(support, j->a.nnz, first * j->a.n, j->a.m * j->a.n);
    int sorted = 1;
    float *row[FORWARD_GROUP][LANES];
    int rows[FORWARD_GROUP];
    V out[FORWARD_GROUP][LANES];
    (void)scratch;
    for (int g = 0; g < j->tiles; g++) rows[g] = rows_out(j, row[g], j->a.y, j->a.m, g, f->wide + g * wide_floats(j));
    for (int64_t r = first; r < last && sorted; r += LANES) {
        const int count = last - r < LANES ? (int)(last - r) : LANES;
        sorted = j->tiles == 1 ? few_rows_forward(j, &f->in, r, count, 1, &k, out)
                               : few_rows_forward(j, &f->in, r, count, 2, &k, out);
        for (int g = 0; g < j->tiles; g++) put(out[g], row[g], r, count, rows[g]);
    }
    for (int g = 0; g < j->tiles; g++) round_rows(j, row[g], j->a.y, j->a.m, g, rows[g], first, last);
    if (!sorted || k != seam(support, j->a.nnz, last * j->a.n, j->a.m * j->a.n))
        atomic_store(&j->unsorted, 1);
}

static int forward_few(const job *j)
{
    few f = {.j = *j, .in = {.t_step = t_vectors(j) * LANES, .z_step = z_vectors(j) * LANES}};
    const int64_t floats = j->tiles * (f.in.t_step + f.in.z_step);
    float *memory = dctps_take(sizeof(float) * (size_t)(floats + j->a.n + j->tiles * wide_floats(j)));
    if (!memory) return NO_MEMORY;
    f.t = memory, f.z = memory + j->tiles * f.in.t_step, f.absent = memory + floats;
    f.wide = f.absent + j->a.n;
    f.in.t = f.t, f.in.z = j->a.transform ? f.z : NULL;
    memset(f.absent, 0, sizeof(float) * (size_t)j->a.n);
    int failed = dctps_parallel(j->tiles, j->a.threads, 0, few_tile, &f);
    if (!failed) failed = dctps_parallel(index_items(j), j->a.threads, 0, few_rows, &f);
    dctps_give(memory);
    return atomic_load(&f.j.unsorted) ? BAD_SUPPORT : failed;
}

EXPORT int DPS(linear_forward)(const linear_call *a)
{
    job j = {.a = *a};
    read_plan(&j);
    int failed = check(&j);
    if (failed) return failed;
    divide(&j, FORWARD_GROUP);
    if (j.tiles <= FORWARD_GROUP) return forward_few(&j);
    const size_t vectors = (size_t)(j.group * (t_vectors(&j) + z_vectors(&j)));
    const size_t bytes = sizeof(float) * (vectors * LANES + (size_t)(a->n + j.group * wide_floats(&j)));
    failed = make_index(&j);
    if (!failed) failed = dctps_parallel(j.groups, a->threads, bytes, forward_group, &j);
    dctps_give(j.start);
    return failed;
}
