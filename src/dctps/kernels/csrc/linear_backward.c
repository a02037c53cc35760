/* The derivatives of y = alpha D x + S x + b: D^T g, and one walk over S's nonzeros for S^T g and <g[r], x[c]>. */
#include "linear.h"

#define CELL_BYTES (16 << 10) /* of x, and of z, in a cell: together in L1 */
#define STRIPES 8            /* of rows, each sorted into cells by one thread */
#define FEW_TILES 2          /* that are walked over together, with no index */
#define RUN 5                /* nonzeros in a column from which on it is worth a cell of its own */

typedef struct {
    int64_t group;      /* tiles here */
    float *g, *x, *z;   /* tiles of the group: g (m vectors), x and D^T g (in slots) */
    ptrdiff_t g_step, x_step, z_step;
    float *absent;      /* a row of zeros */
    float *values;      /* this part's sums for the values in the order of the cells, to be added to */
} hot;

/* Sort the nonzeros of one stripe of rows into its cells, stably. */
static void sort_stripe(void *argument, int64_t stripe, void *scratch)
{
    const job *j = argument;
    const float *values = AT(const float, j->a.values);
    const int64_t first = stripe * j->stripe, end = first + j->stripe < j->a.m ? first + j->stripe : j->a.m;
    uint32_t *cell = j->cell + stripe * j->blocks, *next = scratch;
    const int shift = j->block_shift;
    memset(next, 0, sizeof(uint32_t) * (size_t)j->blocks);
    for (uint32_t k = j->start[first]; k < j->start[end]; k++) next[j->column[k] >> shift]++;
    for (int64_t b = 0, at = j->start[first]; b < j->blocks; b++) {
        cell[b] = (uint32_t)at;
        at += next[b];
        next[b] = cell[b];
    }
    for (int64_t r = first; r < end; r++)
        for (uint32_t k = j->start[r]; k < j->start[r + 1]; k++) {
            const uint32_t c = j->column[k], p = next[c >> shift]++;
            j->entry[p] = (entry){(uint16_t)(r - first), (uint16_t)((c & ((1u << shift) - 1)) / LANES), k, values[k]};
        }
}

/* The nonzeros by cells, of which g's, x's and z's vectors fit into the caches together. */
static int make_cells(job *j)
{
    const int64_t nnz = j->a.nnz;
    int block = CELL_BYTES / (int)sizeof(float) / LANES / (int)j->group;
    j->block_shift = __builtin_ctz(LANES);
    j->stripes = nnz < INDEX_CHUNK ? 1 : STRIPES;
    j->by_column = nnz > RUN * j->vectors;
    if (j->by_column) {
        while (j->stripes > 2 && nnz < 2 * RUN * j->stripes * j->vectors) j->stripes /= 2;
    } else {
        while (block > 1) block /= 2, j->block_shift++;
    }
    while ((j->stripe = (j->a.m + j->stripes - 1) / j->stripes) > 1 << 16) j->stripes *= 2;
    j->stripes = (j->a.m + j->stripe - 1) / j->stripe;
    j->blocks = ((j->vectors * LANES - 1) >> j->block_shift) + 1;
    j->cell = dctps_take(sizeof(uint32_t) * (size_t)(j->stripes * j->blocks + 1) + sizeof(entry) * (size_t)nnz);
    if (!j->cell) return NO_MEMORY;
    j->entry = (entry *)(j->cell + j->stripes * j->blocks + 1);
    j->cell[j->stripes * j->blocks] = (uint32_t)nnz;
    return dctps_parallel(j->stripes, j->a.threads, sizeof(uint32_t) * (size_t)j->blocks, sort_stripe, j);
}

INLINE void add_sums(const V *waiting, float *to)
{
    V old, sums = lane_sums(waiting);
    memcpy(&old, to, sizeof old);
    old += sums;
    memcpy(to, &old, sizeof old);
}

/* As `nonzeros`, for cells of one column, whose vectors stay in registers. */
INLINE void nonzeros_by_column(const job *j, const hot *h, int group, int need_x, int need_values)
{
    V waiting[LANES];
    uint32_t p = 0;
    for (int64_t stripe = 0; stripe < j->stripes; stripe++) {
        const float *rows = h->g + stripe * j->stripe * LANES;
        const uint32_t *end = j->cell + stripe * j->blocks + 1;
        for (int64_t c = 0; c < j->blocks; c++) {
            V x[MAX_GROUP], z[MAX_GROUP];
            if (p == end[c]) continue;
            for (int i = 0; i < group; i++) {
                if (need_values) x[i] = load(h->x + i * h->x_step + c * LANES);
                if (need_x) z[i] = load(h->z + i * h->z_step + c * LANES);
            }
            for (; p < end[c]; p++) {
                const float *row = rows + j->entry[p].row * LANES, v = j->entry[p].value;
                V sum = {0};
                for (int i = 0; i < group; i++) {
                    const V g = load(row + i * h->g_step);
                    if (need_x) z[i] += v * g;
                    if (need_values) sum += g * x[i];
                }
                if (need_values) waiting[p % LANES] = sum;
                if (need_values && p % LANES == LANES - 1) add_sums(waiting, h->values + (p + 1 - LANES));
            }
            for (int i = 0; need_x && i < group; i++) store(h->z + i * h->z_step + c * LANES, z[i]);
        }
    }
    if (need_values && p % LANES) {
        for (int i = (int)(p % LANES); i < LANES; i++) waiting[i] = (V){0};
        add_sums(waiting, h->values + p / LANES * LANES);
    }
}

/* dz[c] += v g[r] and dv += <g[r], x[c]> over the nonzeros; the latter's lanes are summed LANES at a time. */
INLINE void nonzeros(const job *j, const hot *h, int group, int need_x, int need_values)
{
    V waiting[LANES];
    uint32_t p = 0;
    for (int64_t cell = 0; cell < j->stripes * j->blocks; cell++) {
        const uint32_t end = j->cell[cell + 1];
        const float *rows = h->g + cell / j->blocks * j->stripe * LANES;
        const ptrdiff_t block = (cell % j->blocks) << j->block_shift;
        for (; p < end; p++) {
            const float *row = rows + j->entry[p].row * LANES;
            const ptrdiff_t c = block + j->entry[p].column * LANES;
            V g[MAX_GROUP];
            for (int i = 0; i < group; i++) g[i] = load(row + i * h->g_step);
            if (need_x) {
                const float v = j->entry[p].value;
                for (int i = 0; i < group; i++) {
                    float *to = h->z + i * h->z_step + c;
                    store(to, load(to) + v * g[i]);
                }
            }
            if (need_values) {
                V sum = g[0] * load(h->x + c);
                for (int i = 1; i < group; i++) sum += g[i] * load(h->x + i * h->x_step + c);
                waiting[p % LANES] = sum;
                if (p % LANES == LANES - 1) add_sums(waiting, h->values + (p + 1 - LANES));
            }
        }
    }
    if (need_values && p % LANES) {
        for (int i = (int)(p % LANES); i < LANES; i++) waiting[i] = (V){0};
        add_sums(waiting, h->values + p / LANES * LANES);
    }
}

INLINE void nonzeros_of(const job *j, const hot *h, int need_x, int need_values)
{
    const int by_column = j->by_column ? 4 : 0;
    switch (by_column + h->group) {
    case 1: nonzeros(j, h, 1, need_x, need_values); break;
    case 2: nonzeros(j, h, 2, need_x, need_values); break;
    case 3: nonzeros(j, h, 3, need_x, need_values); break;
    case 4: nonzeros(j, h, 4, need_x, need_values); break;
    case 5: nonzeros_by_column(j, h, 1, need_x, need_values); break;
    case 6: nonzeros_by_column(j, h, 2, need_x, need_values); break;
    case 7: nonzeros_by_column(j, h, 3, need_x, need_values); break;
    default: nonzeros_by_column(j, h, 4, need_x, need_values);
    }
}

/* g's columns to the tile, and to their frequencies in z; bias sums on the way. */
static void gradient_in(const job *j, const float *const *row, float *t, float *z, float *bias)
{
    const int64_t m = j->a.m;
    for (int64_t r = 0; r < m; r += LANES) {
        const int count = m - r < LANES ? (int)(m - r) : LANES;
        V v[LANES];
        if (count == LANES)
            transpose(row, r, v);
        else
            for (int i = 0; i < LANES; i++) v[i] = i < count ? column_of(row, r + i) : (V){0};
        for (int i = 0; t && i < count; i++) store(t + (r + i) * LANES, v[i]);
        for (int i = 0; z && i < count; i++) store(z + j->source[r + i], v[i]);
        if (!bias) continue;
        const V sums = lane_sums(v);
        for (int i = 0; i < count; i++) bias[r + i] += sums[i];
    }
}

/* z = alpha z on the inputs; returns <z, x> of z as it was, summed in float64. */
static double scale_and_dot(const job *j, float *z, const float *x, int need_x)
{
    const float alpha = j->alpha * j->scale;
    const V zero = {0};
    double total = 0;
    for (int64_t start = 0; start < j->vectors; start += 64) {
        const int64_t end = start + 64 < j->vectors ? start + 64 : j->vectors;
        V sum = zero;
        for (int64_t i = start; i < end; i++) {
            V v = load(z + i * LANES);
            if (x) sum += v * load(x + i * LANES);
            if (need_x) store(z + i * LANES, alpha * v);
        }
        if (x)
            for (int i = 0; i < LANES; i++) total += sum[i];
    }
    return total * j->scale;
}

static void tile_out(const job *j, const float *z, float *const *row, int rows)
{
    const int64_t n = j->a.n;
    for (int64_t c = 0; c < n; c += LANES) {
        const int count = n - c < LANES ? (int)(n - c) : LANES;
        V v[LANES];
        prefetch_rows(row, c + AHEAD, n, rows);
        for (int i = 0; i < count; i++) v[i] = load(z + tile_slot(j, c + i) * LANES);
        if (count == LANES)
            transpose_out(v, row, c, rows);
        else
            for (int i = 0; i < rows; i++)
                for (int l = 0; l < count; l++) row[i][c + l] = v[l][i];
    }
}

static int needs_x(const job *j) { return j->a.dx != 0; }
static int needs_values(const job *j) { return j->a.dvalues && j->a.nnz; }
static int is_transformed(const job *j) { return j->a.transform && (j->a.dx || j->a.dalpha); }

/* Floats of the scratch of a group: its tiles and a row of zeros. */
static size_t hot_floats(const job *j)
{
    const arguments *a = &j->a;
    const int64_t tile = (a->m + 1) + (j->vectors + 1) + (j->vectors * a->rounds + 1);
    return (size_t)(j->group * tile * LANES + (a->n > a->m ? a->n : a->m));
}

static hot hot_of(const job *j, float *scratch)
{
    const arguments *a = &j->a;
    hot h = {.g_step = (a->m + 1) * LANES, .x_step = (j->vectors + 1) * LANES, .z_step = (j->vectors * a->rounds + 1) * LANES};
    h.g = scratch, h.x = h.g + j->group * h.g_step, h.z = h.x + j->group * h.x_step;
    h.absent = h.z + j->group * h.z_step;
    if (a->batch % LANES) memset(h.absent, 0, sizeof(float) * (size_t)(a->n > a->m ? a->n : a->m));
    return h;
}

/* The tiles of g, x and z = alpha D^T g from `tile` on; adds to the sums for bias, returns that for alpha. */
static double group_in(const job *j, const hot *h, int64_t tile, float *bias)
{
    const arguments *a = &j->a;
    const int transformed = is_transformed(j), hot_g = a->nnz && (needs_x(j) || needs_values(j));
    double by_alpha = 0;
    for (int64_t i = 0; i < h->group; i++) {
        const float *in[LANES];
        float *x = h->x + i * h->x_step, *z = h->z + i * h->z_step;
        if (needs_values(j) || a->dalpha) {
            tile_rows(in, AT(const float, a->x), a->x_stride, a->batch, tile + i, h->absent);
            tile_in(j, in, x);
        }
        if (!transformed && needs_x(j)) memset(z, 0, sizeof(float) * (size_t)(j->vectors * LANES));
        if (transformed && a->m < j->vectors * a->rounds)
            memset(z, 0, sizeof(float) * (size_t)(j->vectors * a->rounds * LANES));
        tile_rows(in, AT(const float, a->g), a->g_stride, a->batch, tile + i, h->absent);
        gradient_in(j, in, hot_g ? h->g + i * h->g_step : NULL, transformed ? z : NULL, bias);
        if (!transformed) continue;
        transform_adjoint(j, z);
        by_alpha += scale_and_dot(j, z, a->dalpha ? x : NULL, needs_x(j));
    }
    return by_alpha;
}

static void group_out(const job *j, const hot *h, int64_t tile)
{
    for (int64_t i = 0; needs_x(j) && i < h->group; i++) {
        float *row[LANES];
        const int64_t from = (tile + i) * LANES, left = j->a.batch - from;
        for (int l = 0; l < LANES && l < left; l++) row[l] = AT(float, j->a.dx) + (from + l) * j->a.n;
        tile_out(j, h->z + i * h->z_step, row, left < LANES ? (int)left : LANES);
    }
}

static void backward_part(void *argument, int64_t part, void *scratch)
{
    const job *j = argument;
    const arguments *a = &j->a;
    const int64_t first = j->groups * part / j->parts, last = j->groups * (part + 1) / j->parts;
    hot h = hot_of(j, scratch);
    float *bias = a->dbias ? j->part_bias + part * a->m : NULL;
    double by_alpha = 0;
    if (bias) memset(bias, 0, sizeof(float) * (size_t)a->m);
    if (needs_values(j)) {
        h.values = j->part_values + part * j->padded;
        memset(h.values, 0, sizeof(float) * (size_t)j->padded);
    }
    for (int64_t at = first; at < last; at++) {
        const int64_t tile = at * j->group;
        h.group = j->tiles - tile < j->group ? j->tiles - tile : j->group;
        by_alpha += group_in(j, &h, tile, bias);
        if (needs_x(j) && needs_values(j)) nonzeros_of(j, &h, 1, 1);
        else if (needs_values(j)) nonzeros_of(j, &h, 0, 1);
        else if (needs_x(j) && a->nnz) nonzeros_of(j, &h, 1, 0);
        group_out(j, &h, tile);
    }
    if (a->dalpha) j->part_alpha[part] = by_alpha;
}

/* Sums over the parts, in their order. */
static void add_parts(void *argument, int64_t item, void *scratch)
{
    const job *j = argument;
    const int64_t items = index_items(j), nnz = j->a.dvalues ? j->a.nnz : 0, m = j->a.dbias ? j->a.m : 0;
    (void)scratch;
    for (int64_t k = nnz * item / items; k < nnz * (item + 1) / items; k++) {
        float sum = j->part_values[k];
        for (int64_t p = 1; p < j->parts; p++) sum += j->part_values[p * j->padded + k];
        AT(float, j->a.dvalues)[j->entry[k].from] = sum;
    }
    for (int64_t r = m * item / items; r < m * (item + 1) / items; r++) {
        float sum = j->part_bias[r];
        for (int64_t p = 1; p < j->parts; p++) sum += j->part_bias[p * m + r];
        AT(float, j->a.dbias)[r] = sum;
    }
}

/* Parts of the batch, each with sums of its own: many, but not so many that the sums outweigh the rows. */
static void divide_sums(job *j)
{
    const arguments *a = &j->a;
    j->parts = j->groups;
    if (a->dvalues && a->nnz) {
        int64_t most = a->batch * (a->m + a->n) / a->nnz;
        most = most < 4 ? 4 : most;
        if (j->parts > most) j->parts = most;
    }
    if (j->parts > 64 && (a->dvalues || a->dbias)) j->parts = 64;
}

/* ---- few rows: one walk over S as it is stored ---- */

/* As `nonzeros`; a value's gradient is whole when it is left. Returns whether the support is sorted. */
INLINE int few_nonzeros(const job *j, const hot *h, int group, int need_x, int need_values)
{
    const arguments *a = &j->a;
    const float *values = AT(const float, a->values);
    const int64_t *support = AT(const int64_t, a->support);
    const int32_t *slot = a->transform == DCT ? j->plan.slot : NULL;
    float *by_values = AT(float, a->dvalues);
    V waiting[LANES], g[FEW_TILES];
    int64_t k = 0;
    for (int64_t r = 0; r < a->m && k < a->nnz; r++) {
        const int64_t begin = r * a->n, end = begin + a->n;
        for (int i = 0; i < group; i++) g[i] = load(h->g + i * h->g_step + r * LANES);
        for (; k < a->nnz && support[k] < end; k++) {
            const int64_t column = support[k] - begin;
            if (column < 0) return 0;
            const ptrdiff_t c = (slot ? slot[column] : column) * LANES;
            if (need_x)
                for (int i = 0; i < group; i++) {
                    float *to = h->z + i * h->z_step + c;
                    store(to, load(to) + values[k] * g[i]);
                }
            if (!need_values) continue;
            V sum = g[0] * load(h->x + c);
            for (int i = 1; i < group; i++) sum += g[i] * load(h->x + i * h->x_step + c);
            waiting[k % LANES] = sum;
            if (k % LANES < LANES - 1) continue;
            const V sums = lane_sums(waiting);
            memcpy(by_values + k + 1 - LANES, &sums, sizeof sums);
        }
    }
    if (need_values && k % LANES) {
        for (int i = (int)(k % LANES); i < LANES; i++) waiting[i] = (V){0};
        const V sums = lane_sums(waiting);
        for (int i = 0; i < k % LANES; i++) by_values[k / LANES * LANES + i] = sums[i];
    }
    return k == a->nnz;
}

typedef struct {
    const job *j;
    hot h;
    float *bias; /* for each tile (m) */
    double by_alpha[FEW_TILES];
} few;

static hot one_tile(const few *f, int64_t tile)
{
    hot h = f->h;
    h.group = 1;
    h.g += tile * h.g_step, h.x += tile * h.x_step, h.z += tile * h.z_step;
    return h;
}

static void few_in(void *argument, int64_t tile, void *scratch)
{
    few *f = argument;
    const hot h = one_tile(f, tile);
    float *bias = f->j->a.dbias ? f->bias + tile * f->j->a.m : NULL;
    (void)scratch;
    if (bias) memset(bias, 0, sizeof(float) * (size_t)f->j->a.m);
    f->by_alpha[tile] = group_in(f->j, &h, tile, bias);
}

static void few_out(void *argument, int64_t tile, void *scratch)
{
    const few *f = argument;
    const hot h = one_tile(f, tile);
    (void)scratch;
    group_out(f->j, &h, tile);
}

static int backward_few(job *j)
{
    const arguments *a = &j->a;
    const int64_t tiles = j->group = j->tiles;
    float *memory = dctps_take(sizeof(float) * (hot_floats(j) + (size_t)((tiles + 1) * a->m)));
    if (!memory) return NO_MEMORY;
    few f = {.j = j, .h = hot_of(j, memory), .bias = memory + hot_floats(j)};
    f.h.group = tiles;
    j->source = (uint32_t *)(f.bias + tiles * a->m);
    for (int64_t r = 0; a->transform && r < a->m; r++) j->source[r] = (uint32_t)source_of(j, r);
    int failed = dctps_parallel(tiles, a->threads, 0, few_in, &f), sorted = 1;
    switch (4 * (tiles > 1) + 2 * needs_x(j) + needs_values(j)) {
    case 1: sorted = few_nonzeros(j, &f.h, 1, 0, 1); break;
    case 2: sorted = few_nonzeros(j, &f.h, 1, 1, 0); break;
    case 3: sorted = few_nonzeros(j, &f.h, 1, 1, 1); break;
    case 5: sorted = few_nonzeros(j, &f.h, 2, 0, 1); break;
    case 6: sorted = few_nonzeros(j, &f.h, 2, 1, 0); break;
    case 7: sorted = few_nonzeros(j, &f.h, 2, 1, 1); break;
    }
    if (!failed) failed = dctps_parallel(tiles, a->threads, 0, few_out, &f);
    for (int64_t r = 0; a->dbias && r < a->m; r++)
        AT(float, a->dbias)[r] = tiles > 1 ? f.bias[r] + f.bias[a->m + r] : f.bias[r];
    if (a->dalpha) *AT(float, a->dalpha) = (float)(tiles > 1 ? f.by_alpha[0] + f.by_alpha[1] : f.by_alpha[0]);
    dctps_give(memory);
    return sorted ? failed : UNSORTED;
}

EXPORT int DPS(linear_backward)(const arguments *a)
{
    job j = {.a = *a};
    read_plan(&j);
    divide(&j, MAX_GROUP);
    if (j.tiles <= FEW_TILES) return backward_few(&j);
    divide_sums(&j);
    j.padded = (a->nnz + LANES - 1) / LANES * LANES;
    const int64_t sums = (a->dvalues ? j.padded : 0) + (a->dbias ? a->m : 0);
    double *sums_memory = dctps_take(sizeof(double) * (size_t)j.parts + sizeof(float) * (size_t)(sums * j.parts));
    int failed = sums_memory ? make_index(&j) : NO_MEMORY;
    if (!failed) failed = make_cells(&j);
    if (!failed) {
        j.part_alpha = sums_memory;
        j.part_values = (float *)(sums_memory + j.parts);
        j.part_bias = j.part_values + (a->dvalues ? j.padded * j.parts : 0);
        failed = dctps_parallel(j.parts, a->threads, sizeof(float) * hot_floats(&j), backward_part, &j);
    }
    if (!failed && sums) failed = dctps_parallel(index_items(&j), a->threads, 0, add_parts, &j);
    if (!failed && a->dalpha) {
        double by_alpha = 0;
        for (int64_t p = 0; p < j.parts; p++) by_alpha += j.part_alpha[p];
        *AT(float, a->dalpha) = (float)by_alpha;
    }
    dctps_give(j.start);
    dctps_give(j.cell);
    dctps_give(sums_memory);
    return failed;
}
