/* A convolution with W = alpha * D + S, forward and backward, without im2col and without W.

   Images are cut into units (some images, or a band of rows of one) that fit the cache. A unit's channels are
   packed as rows of a strip: pixel (i, j) of its n-th image at position (n * PH + i) * PW + j, with zeros in
   between, so that every tap of the kernel is the same shift of the whole row. A stride splits the image into
   phases, each of which is a strip, and tap t reads one phase at one shift. On strips everything is one loop,

       out[p] = sum_e  coefficient_e * row_e[p + shift_e],

   the nonzeros of S and the filters of D alike. D is the channels' mixing, A or B A or a cosine transform,
   followed by one small filter for each of an output's terms. Backward runs the transposed lists.

   Results depend on shapes alone: units are dealt to a fixed number of slots, whose sums are added in order. */

#include <stdlib.h>

#include "fft.h"
#include "common/runtime.h"

#define ROWS 48 /* outputs, or channels, that are finished together */
#define MR 6    /* rows of a block of the matrix product */
#define NR (LANES == 16 ? 4 : 2) /* vectors of its columns */

enum { MIX_NONE, MIX_PLAIN, MIX_PRODUCT, MIX_COSINE };

typedef struct {
    /* images: (batch, channels, height, width), strides in elements */
    int64_t batch, channels, height, width;
    int64_t outputs, out_height, out_width, groups;
    int64_t kernel[2], stride[2], padding[2], dilation[2];
    int64_t x_strides[4], y_strides[4], dx_strides[4];
    const float *x;
    float *y; /* forward: the result; backward: its gradient, which is read */
    float *dx;      /* or null; of dx_strides; positions that no tap reads are left alone */
    float *d_values; /* or null */
    float *d_alpha; /* or null */
    /* S: sorted flat positions in (outputs, channels / groups, kernel) */
    int64_t nnz;
    const int64_t *support;
    const float *values;
    /* alpha * D: output o is the sum over its terms of filter[o, term] on map source[o, term] */
    const float *alpha;
    int64_t mix, maps, rank, terms;
    const float *first;  /* (maps, channels), or (rank, channels) of a product */
    const float *second; /* (maps, rank) of a product, whose maps are the outputs' terms in order */
    int64_t cosine;      /* length of a cosine transform */
    const float *signs;  /* of the channels, (maps / cosine, channels), one transform for each row; or null */
    const int32_t *plan; /* of it, see fft.h */
    const float *tables;
    const int32_t *source, *filter;
    const float *bank; /* filters: (*, kernel) */
    /* machinery */
    int64_t scratch_floats; /* that one thread's rows should fit */
    int64_t threads;
} conv_call;


typedef struct {
    int32_t offset;
    float coefficient;
} entry;

typedef struct {
    int64_t taps, phases;
    int64_t *phase, *shift;         /* of each tap */
    int64_t *first_row, *first_col; /* of each phase, in the image */
    int64_t low, high;              /* rows above and below that a tap may reach */
    int64_t grid_rows, grid_cols;   /* of a phase */
    int64_t pitch, height;          /* PW, PH */
    int64_t guard, length, stride;  /* of a strip's row: zeros before and after, positions, floats in memory */
    int64_t images, band;           /* of a unit: images, or rows where one image is too large */
    int64_t bands, units, slots, per_slot;
} geometry;

typedef struct {
    int64_t x, z, mixed, g, y, by_x, panels, total; /* first floats of each kind of row in a thread's scratch */
} layout;

typedef struct {
    const conv_call *call;
    geometry geo;
    layout at;
    dct_plan plan;
    float *blocks[2]; /* the mixing matrices */
    int64_t *starts;  /* of the lists of outputs (forward) or of (phase, channel)s (backward) */
    entry *entries;
    int64_t *back_starts; /* of the lists of (phase, map)s */
    entry *back_entries;
    int64_t *nonzeros; /* first of each output's, for their gradient */
    int32_t *offsets;  /* where each one's x lies against its output's g */
    float *partial;  /* (slots, nnz) */
    double *alphas;  /* (slots) */
} job;

typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE V read(const float *p) { return (V) * (const loose *)p; }
INLINE V splat(float f) { return f - (V){0}; }

INLINE float total(V v)
{
    float parts[LANES];
    memcpy(parts, &v, sizeof parts);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
static int64_t floor_div(int64_t a, int64_t by) { return a >= 0 ? a / by : -((by - 1 - a) / by); }

static void read_cosine(dct_plan *p, const int32_t *ints, const float *table, int64_t q)
{
    p->q = q, p->length = ints[0], p->factors = ints[1];
    p->slot = ints + 32, p->place = ints + 32 + q;
    p->post = table;
    table += 4 * (q / 2 + 1);
    int64_t l = 1;
    for (int i = 0; i < p->factors; i++) {
        const int r = p->factor[i] = ints[2 + i];
        p->root[i] = table;
        if (r > 5 && r != 8) table += 2 * r;
        p->twiddle[i] = table;
        table += 2 * (r - 1) * l;
        l *= r;
    }
}

/* ---- geometry ---------------------------------------------------------------------------------------------- */

static void *take(int64_t bytes) { return dctps_take((size_t)bytes); }

static void *take_zeros(int64_t bytes)
{
    void *memory = take(bytes);
    if (memory) memset(memory, 0, (size_t)bytes);
    return memory;
}

static int find_taps(const conv_call *c, geometry *geo) {
    const int64_t kh = c->kernel[0], kw = c->kernel[1];
    int64_t low_c = 0, high_c = 0;
    geo->taps = kh * kw;
    int64_t *numbers = take(sizeof(int64_t) * geo->taps * 6);
    if (!numbers) return 1;
    geo->phase = numbers, geo->shift = numbers + geo->taps;
    geo->first_row = numbers + 2 * geo->taps, geo->first_col = numbers + 3 * geo->taps;
    int64_t *up = numbers + 4 * geo->taps, *across = numbers + 5 * geo->taps;
    for (int64_t t = 0; t < geo->taps; t++) {
        const int64_t row = t / kw * c->dilation[0] - c->padding[0];
        const int64_t col = t % kw * c->dilation[1] - c->padding[1];
        up[t] = floor_div(row, c->stride[0]), across[t] = floor_div(col, c->stride[1]);
        const int64_t first_row = row - up[t] * c->stride[0], first_col = col - across[t] * c->stride[1];
        int64_t p = 0;
        while (p < geo->phases && (geo->first_row[p] != first_row || geo->first_col[p] != first_col)) p++;
        if (p == geo->phases) geo->first_row[p] = first_row, geo->first_col[p] = first_col, geo->phases++;
        geo->phase[t] = p;
        geo->low = least(geo->low, up[t]), geo->high = most(geo->high, up[t]);
        low_c = least(low_c, across[t]), high_c = most(high_c, across[t]);
    }
    geo->grid_rows = (c->height + c->stride[0] - 1) / c->stride[0];
    geo->grid_cols = (c->width + c->stride[1] - 1) / c->stride[1];
    geo->pitch = most(geo->grid_cols - low_c, c->out_width + high_c);
    geo->height = most(geo->grid_rows - geo->low, c->out_height + geo->high);
    for (int64_t t = 0; t < geo->taps; t++) geo->shift[t] = up[t] * geo->pitch + across[t];
    const int64_t reach = most(-geo->low, geo->high) * geo->pitch + most(-low_c, high_c);
    geo->guard = round_up(reach, 16);
    return 0;
}

/* Units, for which `rows` rows of a strip fit the cache; slots, enough for many threads and few enough that
   their sums are small. */
static void divide(const conv_call *c, geometry *geo, int64_t rows)
{
    const int64_t all_rows = most(geo->grid_rows, c->out_height);
    const int64_t budget = c->scratch_floats / rows; /* positions for which a unit's rows fit the cache */
    const int64_t image = geo->height * geo->pitch;
    const int64_t wanted = most(2, least(8, c->batch * image / 128)); /* units: some for each thread, none short */
    geo->images = most(1, least((budget - 2 * geo->guard) / image, (c->batch + wanted - 1) / wanted));
    geo->band = all_rows, geo->bands = 1;
    if (image + 2 * geo->guard > budget) {
        geo->band = most(1, least(all_rows, (budget - 2 * geo->guard) / geo->pitch));
        geo->bands = (all_rows + geo->band - 1) / geo->band;
        geo->band = (all_rows + geo->bands - 1) / geo->bands;
        geo->bands = (all_rows + geo->band - 1) / geo->band;
    }
    geo->length = geo->bands > 1 ? geo->band * geo->pitch : geo->images * image;
    geo->units = geo->bands > 1 ? c->batch * geo->bands : (c->batch + geo->images - 1) / geo->images;
    /* The odd number of cache lines keeps rows from falling into the same cache sets. */
    geo->stride = (round_up(geo->length, 16) + 2 * geo->guard) / 16 * 16;
    geo->stride += geo->stride / 16 % 2 ? 0 : 16;
    const int64_t slots = most(8, least(64, (1 << 18) / most(c->nnz, 1)));
    geo->per_slot = most(1, (geo->units + slots - 1) / slots);
    geo->slots = (geo->units + geo->per_slot - 1) / geo->per_slot;
}

typedef struct {
    int64_t image, images, top, rows, length; /* top, rows: of the grid */
} unit;

static unit find_unit(const job *j, int64_t index) {
    const geometry *geo = &j->geo;
    if (geo->bands > 1) {
        const int64_t top = index % geo->bands * geo->band;
        const int64_t all = most(geo->grid_rows, j->call->out_height);
        const int64_t rows = least(geo->band, all - top);
        return (unit){index / geo->bands, 1, top, rows, rows * geo->pitch};
    }
    const int64_t image = index * geo->images, images = least(geo->images, j->call->batch - image);
    return (unit){image, images, 0, geo->band, images * geo->height * geo->pitch};
}

/* Where each position of a unit's row lies in memory, relative to the channel's first element; -1: a zero.
   `above` and `below` widen a band by the rows that taps reach. Grid row i is row i * stride + first. */
static void locate(const geometry *geo, unit u, int64_t above, int64_t below, const int64_t strides[4],
                   int64_t first_row, int64_t step_row, int64_t rows, int64_t first_col, int64_t step_col,
                   int64_t cols, int64_t *where) {
    for (int64_t p = 0; p < geo->stride; p++) where[p] = -1;
    where += geo->guard;
    const int64_t from = u.top + above, to = u.top + u.rows + below;
    for (int64_t n = 0; n < u.images; n++)
        for (int64_t i = most(from, 0); i < to && i * step_row + first_row < rows; i++) {
            int64_t *row = where + (n * geo->height + i - u.top) * geo->pitch;
            const int64_t base = (u.image + n) * strides[0] + (i * step_row + first_row) * strides[2];
            for (int64_t k = 0; k * step_col + first_col < cols; k++)
                row[k] = base + (k * step_col + first_col) * strides[3];
        }
}

/* ---- strips in and out ------------------------------------------------------------------------------------- */

/* Positions that follow each other in memory, too. */
typedef struct {
    int64_t position, from, count;
} span;

static int64_t find_spans(const int64_t *where, int64_t stride, span *spans)
{
    int64_t found = 0;
    for (int64_t p = 0; p < stride; p++) {
        if (where[p] < 0) continue;
        span *last = spans + found - 1;
        if (found && last->position + last->count == p && last->from + last->count == where[p])
            last->count++;
        else
            spans[found++] = (span){p, where[p], 1};
    }
    return found;
}

INLINE void copy(float *to, const float *from, int64_t count)
{
    for (; count >= LANES; count -= LANES, to += LANES, from += LANES) memcpy(to, from, sizeof(V));
    for (; count >= 4; count -= 4, to += 4, from += 4) memcpy(to, from, 4 * sizeof(float));
    for (; count > 0; count--) *to++ = *from++;
}

static void pack(const float *from, int64_t channel_stride, int64_t channels, int64_t *where, int64_t stride, float *rows) {
    if (channel_stride != 1) {
        span *spans = (span *)(where + stride);
        const int64_t count = find_spans(where, stride, spans);
        for (int64_t c = 0; c < channels; c++) {
            const float *channel = from + c * channel_stride;
            float *row = rows + c * stride;
            for (int64_t p = 0; p < stride; p += LANES) store(row + p, splat(0.0f));
            for (int64_t i = 0; i < count; i++) copy(row + spans[i].position, channel + spans[i].from, spans[i].count);
        }
        return;
    }
    static const float absent[LANES];
    float tile[LANES][LANES];
    for (int64_t p = 0; p < stride; p += LANES) {
        int any = 0;
        for (int i = 0; i < LANES; i++) any |= where[p + i] >= 0;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t some = least(LANES, channels - c);
            if (!any) {
                for (int64_t r = 0; r < some; r++) store(rows + (c + r) * stride + p, splat(0.0f));
            } else if (some == LANES) {
                const float *row[LANES];
                float *out[LANES];
                for (int i = 0; i < LANES; i++) row[i] = where[p + i] < 0 ? absent - c : from + where[p + i];
                for (int r = 0; r < LANES; r++) out[r] = rows + (c + r) * stride + p;
                if (p + 3 * LANES <= stride)
                    for (int i = 2 * LANES; i < 3 * LANES; i++) __builtin_prefetch(from + where[p + i] + c, 0, 2);
                transpose_in(row, c, out);
            } else {
                for (int i = 0; i < LANES; i++)
                    for (int64_t r = 0; r < some; r++)
                        tile[r][i] = where[p + i] < 0 ? 0.0f : from[where[p + i] + c + r];
                for (int64_t r = 0; r < some; r++) memcpy(rows + (c + r) * stride + p, tile[r], sizeof tile[r]);
            }
        }
    }
}

static void unpack(const float *rows, int64_t stride, int64_t channels, int64_t *where, float *to,
                   int64_t channel_stride) {
    if (channel_stride != 1) {
        span *spans = (span *)(where + stride);
        const int64_t count = find_spans(where, stride, spans);
        for (int64_t c = 0; c < channels; c++) {
            float *channel = to + c * channel_stride;
            const float *row = rows + c * stride;
            for (int64_t i = 0; i < count; i++) copy(channel + spans[i].from, row + spans[i].position, spans[i].count);
        }
        return;
    }
    float unwanted[LANES];
    for (int64_t p = 0; p < stride; p += LANES) {
        int any = 0;
        for (int i = 0; i < LANES; i++) any |= where[p + i] >= 0;
        if (!any) continue;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t some = least(LANES, channels - c);
            if (some == LANES) {
                V v[LANES];
                float *out[LANES];
                for (int r = 0; r < LANES; r++) v[r] = load(rows + (c + r) * stride + p);
                for (int i = 0; i < LANES; i++) out[i] = where[p + i] < 0 ? unwanted - c : to + where[p + i];
                if (p + 4 * LANES <= stride)
                    for (int i = 3 * LANES; i < 4 * LANES; i++) __builtin_prefetch(to + where[p + i] + c, 1, 2);
                transpose_out(v, out, c, LANES);
            } else {
                for (int i = 0; i < LANES; i++)
                    if (where[p + i] >= 0)
                        for (int64_t r = 0; r < some; r++) to[where[p + i] + c + r] = rows[(c + r) * stride + p + i];
            }
        }
    }
}

/* ---- the one loop ------------------------------------------------------------------------------------------ */

static inline __attribute__((always_inline)) void combine_block(const entry *e, int64_t n, const float *base, float *out,
                                                                const int vectors) {
    V sum[8];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++) sum[i] = splat(0.0f);
    for (int64_t k = 0; k < n; k++) {
        const float *row = base + e[k].offset;
        const V by = splat(e[k].coefficient);
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) sum[i] += by * read(row + i * LANES);
    }
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++) store(out + i * LANES, sum[i]);
}

/* out[p] = sum of coefficient * base[offset + p] for p < length, rounded up to whole vectors */
static void combine(const entry *e, int64_t n, const float *base, float *out, int64_t length) {
    int64_t p = 0;
    for (; p + 8 * LANES <= length; p += 8 * LANES) combine_block(e, n, base + p, out + p, 8);
    for (; p + 4 * LANES <= length; p += 4 * LANES) combine_block(e, n, base + p, out + p, 4);
    for (; p + 2 * LANES <= length; p += 2 * LANES) combine_block(e, n, base + p, out + p, 2);
    for (; p < length; p += LANES) combine_block(e, n, base + p, out + p, 1);
}

static float dot(const float *a, const float *b, int64_t length)
{
    V sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    int64_t p = 0;
    for (; p + 4 * LANES <= length; p += 4 * LANES)
        for (int i = 0; i < 4; i++) sum[i] += load(a + p + i * LANES) * read(b + p + i * LANES);
    for (; p + LANES <= length; p += LANES) sum[0] += load(a + p) * read(b + p);
    float rest = 0;
    for (; p < length; p++) rest += a[p] * b[p];
    return total((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
}

typedef float quad __attribute__((vector_size(16)));

/* sums[i] += the total of v[i] */
INLINE void add_totals(const V v[4], float *sums)
{
    float parts[4][LANES] __attribute__((aligned(64)));
    quad q[4];
    for (int i = 0; i < 4; i++) {
        memcpy(parts[i], v + i, sizeof parts[i]);
        memcpy(q + i, parts[i], sizeof(quad));
        for (int k = 4; k < LANES; k += 4) {
            quad more;
            memcpy(&more, parts[i] + k, sizeof more);
            q[i] += more;
        }
    }
    typedef int places __attribute__((vector_size(16)));
    const quad a = __builtin_shuffle(q[0], q[1], (places){0, 4, 1, 5}) + __builtin_shuffle(q[0], q[1], (places){2, 6, 3, 7});
    const quad b = __builtin_shuffle(q[2], q[3], (places){0, 4, 1, 5}) + __builtin_shuffle(q[2], q[3], (places){2, 6, 3, 7});
    const quad all = __builtin_shuffle(a, b, (places){0, 1, 4, 5}) + __builtin_shuffle(a, b, (places){2, 3, 6, 7});
    for (int i = 0; i < 4; i++) sums[i] += all[i];
}

/* sums[k] += <base + offset[k], g> for the nonzeros of one output, four at a time */
static void add_dots(const float *base, const int32_t *offset, int64_t count, const float *g, int64_t length, float *sums)
{
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) {
        const float *a = base + offset[k], *b = base + offset[k + 1];
        const float *c = base + offset[k + 2], *d = base + offset[k + 3];
        V sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
        int64_t p = 0;
        for (; p + LANES <= length; p += LANES) {
            const V by = load(g + p);
            sum[0] += by * read(a + p), sum[1] += by * read(b + p);
            sum[2] += by * read(c + p), sum[3] += by * read(d + p);
        }
        add_totals(sum, sums + k);
        for (; p < length; p++) {
            sums[k] += g[p] * a[p], sums[k + 1] += g[p] * b[p];
            sums[k + 2] += g[p] * c[p], sums[k + 3] += g[p] * d[p];
        }
    }
    for (; k < count; k++) sums[k] += dot(g, base + offset[k], length);
}

/* ---- the channels' mixing: matrix products on columns of strips --------------------------------------------- */

#define WIDE (NR * LANES) /* columns of a panel */

/* A panel is `inner` rows of `width` columns, contiguous, so that the product reads one stream. */
static void pack_panel(const float *rows, int64_t stride, int64_t inner, int64_t width, float *panel) {
    for (int64_t k = 0; k < inner; k++)
        for (int64_t p = 0; p < width; p += LANES) store(panel + k * width + p, load(rows + k * stride + p));
}

static inline __attribute__((always_inline)) void multiply_block(const float *a, int64_t inner, const float *panel,
                                                                 float *out, int64_t out_stride, int64_t rows,
                                                                 int accumulate, const int nr) {
    V sum[MR][NR];
#pragma GCC unroll 6
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int i = 0; i < nr; i++) sum[r][i] = splat(0.0f);
    for (int64_t k = 0; k < inner; k++) {
        V b[NR];
#pragma GCC unroll 4
        for (int i = 0; i < nr; i++) b[i] = load(panel + (k * nr + i) * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < MR; r++) {
            const V by = splat(a[k * MR + r]);
#pragma GCC unroll 4
            for (int i = 0; i < nr; i++) sum[r][i] += by * b[i];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; r++)
        if (r < rows) {
#pragma GCC unroll 4
            for (int i = 0; i < nr; i++) {
                float *to = out + r * out_stride + i * LANES;
                store(to, accumulate ? load(to) + sum[r][i] : sum[r][i]);
            }
        }
}

/* out (rows x width) = a (rows x inner, in blocks of MR) times a panel */
static void multiply(const float *a, int64_t rows, int64_t inner, const float *panel, int64_t width, float *out,
                     int64_t out_stride, int accumulate) {
    for (int64_t r = 0; r < rows; r += MR, a += MR * inner) {
        float *to = out + r * out_stride;
        const int64_t some = least(MR, rows - r);
        switch (width / LANES) {
        case 1: multiply_block(a, inner, panel, to, out_stride, some, accumulate, 1); break;
        case 2: multiply_block(a, inner, panel, to, out_stride, some, accumulate, 2); break;
#if NR == 4
        case 3: multiply_block(a, inner, panel, to, out_stride, some, accumulate, 3); break;
        case 4: multiply_block(a, inner, panel, to, out_stride, some, accumulate, 4); break;
#endif
        }
    }
}

/* rows of `a` in blocks of MR, padded with zeros: (rows / MR, inner, MR); a[r, k] at a[r * by_row + k * by_col] */
static void block_rows(const float *a, int64_t rows, int64_t inner, int64_t by_row, int64_t by_col, float *out) {
    for (int64_t r = 0; r < rows; r += MR)
        for (int64_t k = 0; k < inner; k++)
            for (int64_t i = 0; i < MR; i++) *out++ = r + i < rows ? a[(r + i) * by_row + k * by_col] : 0.0f;
}

/* ---- lists ------------------------------------------------------------------------------------------------- */

#define TERM_OUTPUTS 48 /* outputs whose maps are made together in a product; times two terms, blocks of MR */

static int64_t map_rows(const conv_call *c, int64_t phases) {
    if (c->mix == MIX_NONE) return 0;
    return phases * (c->mix == MIX_PRODUCT ? least(c->maps, TERM_OUTPUTS * c->terms) : c->maps);
}

/* The row of map z in phase f, from at.z; a product holds one block of outputs' maps at a time. */
static int64_t map_row(const conv_call *c, int64_t f, int64_t z) {
    if (c->mix != MIX_PRODUCT) return f * c->maps + z;
    const int64_t block = least(c->maps, TERM_OUTPUTS * c->terms);
    return f * block + z % block;
}

typedef struct {
    int64_t output, channel, tap;
} place;

static inline place find_place(const conv_call *c, int64_t position) {
    const uint32_t taps = (uint32_t)(c->kernel[0] * c->kernel[1]);
    const uint32_t inner = (uint32_t)(c->channels / c->groups);
    const uint64_t pair = (uint64_t)position / taps;
    const int64_t output = (int64_t)(pair / inner);
    const int64_t group = c->groups == 1 ? 0 : output / (c->outputs / c->groups);
    return (place){output, group * inner + (int64_t)(pair % inner), position % taps};
}

/* Each output's list: D's filters on maps, scaled by alpha, then S's nonzeros on x. */
static int list_outputs(job *j) {
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t per_output = c->terms * g->taps, stride = g->stride;
    j->starts = take(sizeof(int64_t) * (c->outputs + 1));
    j->entries = take(sizeof(entry) * (c->outputs * per_output + c->nnz + 1));
    if (!j->starts || !j->entries) return 1;
    entry *e = j->entries;
    int64_t k = 0;
    place at = c->nnz ? find_place(c, c->support[0]) : (place){-1, 0, 0};
    for (int64_t o = 0; o < c->outputs; o++) {
        j->starts[o] = e - j->entries;
        for (int64_t i = o * c->terms; i < (o + 1) * c->terms; i++)
            for (int64_t t = 0; t < g->taps; t++) {
                const int64_t row = c->mix == MIX_NONE ? g->phase[t] * c->channels + c->source[i]
                                                       : map_row(c, g->phase[t], c->source[i]);
                const int64_t from = c->mix == MIX_NONE ? j->at.x : j->at.z;
                const float by = *c->alpha * c->bank[c->filter[i] * g->taps + t];
                *e++ = (entry){(int32_t)(from + row * stride + g->guard + g->shift[t]), by};
            }
        while (k < c->nnz && at.output == o) {
            const int64_t row = g->phase[at.tap] * c->channels + at.channel;
            *e++ = (entry){(int32_t)(j->at.x + row * stride + g->guard + g->shift[at.tap]), c->values[k]};
            if (++k < c->nnz) at = find_place(c, c->support[k]);
        }
    }
    j->starts[c->outputs] = e - j->entries;
    return 0;
}

/* Starts of each bucket from counts, which lie one place further on; filling moves each start to its end. */
static void add_up(int64_t *starts, int64_t buckets) {
    for (int64_t b = 0; b < buckets; b++) starts[b + 1] += starts[b];
}

/* D transposed: each (phase, map)'s list of filters, turned around, on g. */
static int list_maps(job *j) {
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t buckets = g->phases * c->maps;
    j->back_starts = take_zeros(sizeof(int64_t) * (buckets + 2));
    j->back_entries = take(sizeof(entry) * (c->outputs * c->terms * g->taps + 1));
    if (!j->back_starts || !j->back_entries) return 1;
    int64_t *starts = j->back_starts + 1;
    for (int64_t i = 0; i < c->outputs * c->terms; i++)
        for (int64_t t = 0; t < g->taps; t++) starts[g->phase[t] * c->maps + c->source[i] + 1]++;
    add_up(starts, buckets);
    for (int64_t i = 0; i < c->outputs * c->terms; i++)
        for (int64_t t = 0; t < g->taps; t++) {
            const int64_t from = j->at.g + i / c->terms * g->stride + g->guard - g->shift[t];
            const float by = c->bank[c->filter[i] * g->taps + t];
            j->back_entries[starts[g->phase[t] * c->maps + c->source[i]]++] = (entry){(int32_t)from, by};
        }
    return 0;
}

/* Each (phase, channel)'s list: alpha times its row of D^T g, then S^T on g. */
static int list_channels(job *j) {
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t buckets = g->phases * c->channels, has_d = c->terms > 0;
    int64_t *held = take_zeros(sizeof(int64_t) * (buckets + 2));
    j->starts = held;
    j->entries = take(sizeof(entry) * (buckets + c->nnz + 1));
    if (!held || !j->entries) return 1;
    int64_t *starts = held + 1;
    for (int64_t k = 0; k < c->nnz; k++) {
        const place at = find_place(c, c->support[k]);
        starts[g->phase[at.tap] * c->channels + at.channel + 1]++;
    }
    for (int64_t b = 0; b < buckets; b++) starts[b + 1] += has_d;
    add_up(starts, buckets);
    if (has_d)
        for (int64_t b = 0; b < buckets; b++)
            j->entries[starts[b]++] = (entry){(int32_t)(j->at.by_x + b * g->stride + g->guard), *c->alpha};
    for (int64_t k = 0; k < c->nnz; k++) {
        const place at = find_place(c, c->support[k]);
        const int64_t from = j->at.g + at.output * g->stride + g->guard - g->shift[at.tap];
        j->entries[starts[g->phase[at.tap] * c->channels + at.channel]++] = (entry){(int32_t)from, c->values[k]};
    }
    return 0;
}

/* S by outputs, for the gradient of its values: where each nonzero's x lies against its output's g. */
static int list_nonzeros(job *j)
{
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    int64_t *starts = j->nonzeros = take(sizeof(int64_t) * (c->outputs + 1));
    j->offsets = take(sizeof(int32_t) * (c->nnz + 1));
    if (!starts || !j->offsets) return 1;
    int64_t o = 0;
    starts[0] = 0;
    for (int64_t k = 0; k < c->nnz; k++) {
        const place at = find_place(c, c->support[k]);
        while (o < at.output) starts[++o] = k;
        const int64_t row = g->phase[at.tap] * c->channels + at.channel;
        j->offsets[k] = (int32_t)(j->at.x + row * g->stride + g->guard + g->shift[at.tap]);
    }
    while (o < c->outputs) starts[++o] = c->nnz;
    return 0;
}

/* ---- a unit ------------------------------------------------------------------------------------------------ */

typedef struct {
    float *base;
    int64_t *where;
} scratch;

/* Zeros before and behind a row, which shifted reads may meet. */
static void clear_guards(const geometry *g, float *rows, int64_t count, int64_t length) {
    for (int64_t r = 0; r < count; r++, rows += g->stride) {
        memset(rows, 0, sizeof(float) * g->guard);
        memset(rows + g->guard + length, 0, sizeof(float) * g->guard);
    }
}

/* The columns that a mixing covers: a band's neighbours too, as taps reach them; images end in zeros. */
static void columns(const geometry *g, int64_t length, int64_t *from, int64_t *to) {
    *from = g->bands > 1 ? 0 : g->guard;
    *to = g->bands > 1 ? g->guard + length + g->guard : g->guard + length;
}

/* out rows = a times rows, over columns from..to */
static void mix(const float *a, int64_t rows, int64_t inner, const float *in, float *out, int64_t stride,
                int64_t from, int64_t to, float *panel, int accumulate) {
    for (int64_t p = from; p < to; p += WIDE) {
        const int64_t width = least(WIDE, to - p);
        pack_panel(in + p, stride, inner, width, panel);
        multiply(a, rows, inner, panel, width, out + p, stride, accumulate);
    }
}

/* The cosine transforms of the columns from..to: channels under each row of signs, then zeros, to maps. */
static void cosine(const job *j, const float *in, float *out, int64_t stride, int64_t from, int64_t to, float *tile)
{
    const conv_call *c = j->call;
    const dct_plan *plan = &j->plan;
    for (int64_t p = from; p < to; p += LANES)
        for (int64_t first = 0; first < c->maps; first += plan->q) {
            const float *signs = c->signs ? c->signs + first / plan->q * c->channels : 0;
            if (plan->q & 1) memset(tile, 0, sizeof(float) * 2 * plan->length * LANES);
            for (int64_t k = 0; k < c->channels; k++) {
                const V v = load(in + k * stride + p);
                store(tile + plan->slot[k] * LANES, signs ? signs[k] * v : v);
            }
            for (int64_t k = c->channels; k < plan->q; k++) store(tile + plan->slot[k] * LANES, splat(0.0f));
            fft(plan, tile, tile), spectrum(plan, tile);
            for (int64_t k = 0; k < plan->q; k++)
                store(out + (first + k) * stride + p, load(tile + plan->place[k] * LANES));
        }
}

static void cosine_adjoint(const job *j, const float *in, float *out, int64_t stride, int64_t from, int64_t to,
                           float *tile)
{
    const conv_call *c = j->call;
    const dct_plan *plan = &j->plan;
    for (int64_t p = from; p < to; p += LANES)
        for (int64_t first = 0; first < c->maps; first += plan->q) {
            const float *signs = c->signs ? c->signs + first / plan->q * c->channels : 0;
            for (int64_t k = 0; k < plan->q; k++)
                store(tile + plan->place[k] * LANES, load(in + (first + k) * stride + p));
            spectrum_adjoint(plan, tile), fft_adjoint(plan, tile);
            for (int64_t k = 0; k < c->channels; k++) {
                const V v = load(tile + plan->slot[k] * LANES);
                float *to_row = out + k * stride + p;
                store(to_row, first ? load(to_row) + signs[k] * v : signs ? signs[k] * v : v);
            }
        }
}

static void forward_unit(const job *j, unit u, scratch s) {
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t stride = g->stride, length = round_up(u.length, 16);
    float *x = s.base + j->at.x, *z = s.base + j->at.z, *y = s.base + j->at.y;
    float *mixed = s.base + j->at.mixed, *panel = s.base + j->at.panels;
    int64_t from, to;
    columns(g, length, &from, &to);
    for (int64_t f = 0; f < g->phases; f++) {
        locate(g, u, g->low, g->high, c->x_strides, g->first_row[f], c->stride[0], c->height, g->first_col[f],
               c->stride[1], c->width, s.where);
        float *rows = x + f * c->channels * stride;
        pack(c->x, c->x_strides[1], c->channels, s.where, stride, rows);
        if (c->mix == MIX_PLAIN)
            mix(j->blocks[0], c->maps, c->channels, rows, z + f * c->maps * stride, stride, from, to, panel, 0);
        if (c->mix == MIX_COSINE) cosine(j, rows, z + f * c->maps * stride, stride, from, to, panel);
        if (c->mix == MIX_PRODUCT)
            mix(j->blocks[0], c->rank, c->channels, rows, mixed + f * c->rank * stride, stride, from, to, panel, 0);
    }
    if (g->bands == 1) clear_guards(g, z, map_rows(c, g->phases), length);
    locate(g, u, 0, 0, c->y_strides, 0, 1, c->out_height, 0, 1, c->out_width, s.where);
    const int64_t block = c->mix == MIX_PRODUCT ? TERM_OUTPUTS : c->outputs;
    for (int64_t o = 0; o < c->outputs; o += ROWS) {
        if (c->mix == MIX_PRODUCT && o % block == 0) {
            const int64_t first = o * c->terms, count = least(block * c->terms, c->maps - first);
            for (int64_t f = 0; f < g->phases; f++)
                mix(j->blocks[1] + first * c->rank, count, c->rank, mixed + f * c->rank * stride,
                    z + map_row(c, f, first) * stride, stride, from, to, panel, 0);
        }
        const int64_t some = least(ROWS, c->outputs - o);
        for (int64_t r = 0; r < some; r++) {
            const int64_t start = j->starts[o + r];
            combine(j->entries + start, j->starts[o + r + 1] - start, s.base, y + r * stride + g->guard, length);
        }
        unpack(y, stride, some, s.where, c->y + o * c->y_strides[1], c->y_strides[1]);
    }
}

/* D^T g on the strips, by maps, then by channels; gives where it lies. */
static float *adjoint_unit(const job *j, int64_t length, scratch s) {
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t stride = g->stride, from = g->guard, to = g->guard + length;
    float *z = s.base + j->at.z, *mixed = s.base + j->at.mixed, *panel = s.base + j->at.panels;
    float *by_x = s.base + j->at.by_x;
    const int64_t block = c->mix == MIX_PRODUCT ? least(c->maps, TERM_OUTPUTS * c->terms) : c->maps;
    for (int64_t first = 0; first < c->maps; first += block) {
        const int64_t count = least(block, c->maps - first);
        for (int64_t f = 0; f < g->phases; f++) {
            float *rows = c->mix == MIX_NONE ? by_x + f * c->channels * stride : z + map_row(c, f, first) * stride;
            for (int64_t r = 0; r < count; r++) {
                const int64_t *start = j->back_starts + f * c->maps + first + r;
                combine(j->back_entries + start[0], start[1] - start[0], s.base, rows + r * stride + g->guard, length);
            }
            if (c->mix == MIX_PRODUCT)
                mix(j->blocks[1] + first * round_up(c->rank, MR), c->rank, count, rows, mixed + f * c->rank * stride,
                    stride, from, to, panel, first > 0);
        }
    }
    for (int64_t f = 0; f < g->phases; f++) {
        float *out = by_x + f * c->channels * stride;
        if (c->mix == MIX_PLAIN)
            mix(j->blocks[0], c->channels, c->maps, z + f * c->maps * stride, out, stride, from, to, panel, 0);
        if (c->mix == MIX_COSINE) cosine_adjoint(j, z + f * c->maps * stride, out, stride, from, to, panel);
        if (c->mix == MIX_PRODUCT)
            mix(j->blocks[0], c->channels, c->rank, mixed + f * c->rank * stride, out, stride, from, to, panel, 0);
    }
    return by_x;
}

static void backward_unit(const job *j, unit u, int64_t slot, scratch s) {
    const conv_call *c = j->call;
    const geometry *g = &j->geo;
    const int64_t stride = g->stride, length = round_up(u.length, 16);
    const int64_t own = g->bands > 1 ? u.length : length; /* behind a band lie its neighbour's rows, not zeros */
    float *x = s.base + j->at.x, *y = s.base + j->at.y;
    locate(g, u, -g->high, -g->low, c->y_strides, 0, 1, c->out_height, 0, 1, c->out_width, s.where);
    pack(c->y, c->y_strides[1], c->outputs, s.where, stride, s.base + j->at.g);
    if (c->d_values || c->d_alpha)
        for (int64_t f = 0; f < g->phases; f++) {
            locate(g, u, g->low, g->high, c->x_strides, g->first_row[f], c->stride[0], c->height, g->first_col[f], c->stride[1],
                   c->width, s.where);
            pack(c->x, c->x_strides[1], c->channels, s.where, stride, x + f * c->channels * stride);
        }
    if (c->d_values) {
        float *sums = j->partial + slot * c->nnz;
        for (int64_t o = 0; o < c->outputs; o++)
            add_dots(s.base, j->offsets + j->nonzeros[o], j->nonzeros[o + 1] - j->nonzeros[o],
                     s.base + j->at.g + o * stride + g->guard, own, sums + j->nonzeros[o]);
    }
    if (c->terms && (c->dx || c->d_alpha)) {
        const float *by_x = adjoint_unit(j, length, s);
        if (c->d_alpha)
            for (int64_t r = 0; r < g->phases * c->channels; r++)
                j->alphas[slot] += dot(x + r * stride + g->guard, by_x + r * stride + g->guard, own);
    }
    if (!c->dx) return;
    for (int64_t f = 0; f < g->phases; f++) {
        locate(g, u, 0, 0, c->dx_strides, g->first_row[f], c->stride[0], c->height, g->first_col[f], c->stride[1],
               c->width, s.where);
        for (int64_t k = 0; k < c->channels; k += ROWS) {
            const int64_t some = least(ROWS, c->channels - k);
            for (int64_t r = 0; r < some; r++) {
                const int64_t *start = j->starts + f * c->channels + k + r;
                combine(j->entries + start[0], start[1] - start[0], s.base, y + r * stride + g->guard, length);
            }
            unpack(y, stride, some, s.where, c->dx + k * c->dx_strides[1], c->dx_strides[1]);
        }
    }
}

/* ---- the call ---------------------------------------------------------------------------------------------- */

static void forward_slot(void *argument, int64_t slot, void *memory)
{
    const job *j = argument;
    const scratch s = {memory, (int64_t *)((float *)memory + round_up(j->at.total, 16))};
    const int64_t end = least((slot + 1) * j->geo.per_slot, j->geo.units);
    for (int64_t i = slot * j->geo.per_slot; i < end; i++) forward_unit(j, find_unit(j, i), s);
}

static void backward_slot(void *argument, int64_t slot, void *memory)
{
    const job *j = argument;
    const scratch s = {memory, (int64_t *)((float *)memory + round_up(j->at.total, 16))};
    const int64_t end = least((slot + 1) * j->geo.per_slot, j->geo.units);
    if (j->partial) memset(j->partial + slot * j->call->nnz, 0, sizeof(float) * (size_t)j->call->nnz);
    j->alphas[slot] = 0;
    for (int64_t i = slot * j->geo.per_slot; i < end; i++) backward_unit(j, find_unit(j, i), slot, s);
}

/* The mixing matrices, in the blocks that the product reads. */
static int block_mixing(job *j, int backward)
{
    const conv_call *c = j->call;
    const int64_t inner = c->mix == MIX_PRODUCT ? c->rank : c->maps;
    if (c->mix != MIX_PLAIN && c->mix != MIX_PRODUCT) return 0;
    const int64_t padded = round_up(backward ? c->channels : inner, MR);
    float *first = j->blocks[0] = take(sizeof(float) * padded * (backward ? inner : c->channels));
    if (!first) return 1;
    if (backward)
        block_rows(c->first, c->channels, inner, 1, c->channels, first);
    else
        block_rows(c->first, inner, c->channels, c->channels, 1, first);
    if (c->mix != MIX_PRODUCT) return 0;
    const int64_t floats = backward ? c->maps * round_up(c->rank, MR) : round_up(c->maps, MR) * c->rank;
    float *second = j->blocks[1] = take(sizeof(float) * floats);
    if (!second) return 1;
    if (!backward) {
        block_rows(c->second, c->maps, c->rank, c->rank, 1, second);
        return 0;
    }
    const int64_t block = least(c->maps, TERM_OUTPUTS * c->terms);
    for (int64_t z = 0; z < c->maps; z += block)
        block_rows(c->second + z * c->rank, c->rank, least(block, c->maps - z), 1, c->rank,
                   second + z * round_up(c->rank, MR));
    return 0;
}

static int64_t place_rows(job *j, int backward)
{
    const conv_call *c = j->call;
    const int64_t phases = j->geo.phases, stride = j->geo.stride;
    const int64_t rows[] = {phases * c->channels, map_rows(c, phases), c->mix == MIX_PRODUCT ? phases * c->rank : 0,
                            backward ? c->outputs : 0, ROWS, backward ? phases * c->channels : 0};
    int64_t *const at[] = {&j->at.x, &j->at.z, &j->at.mixed, &j->at.g, &j->at.y, &j->at.by_x};
    int64_t all = 0, inner = c->channels;
    for (int i = 0; i < 6; i++) {
        *at[i] = all * stride;
        all += rows[i];
    }
    if (c->mix == MIX_PLAIN) inner = most(inner, c->maps);
    if (c->mix == MIX_PRODUCT) inner = most(inner, most(c->rank, TERM_OUTPUTS * c->terms));
    j->at.panels = all * stride;
    j->at.total = j->at.panels + most(inner * WIDE, c->mix == MIX_COSINE ? 2 * j->plan.length * LANES : 0);
    return all;
}

static int make_lists(job *j, int backward)
{
    const conv_call *c = j->call;
    if (!backward) return list_outputs(j);
    j->alphas = take(sizeof(double) * j->geo.slots);
    if (c->d_values) j->partial = take(sizeof(float) * (j->geo.slots * c->nnz + 1));
    return !j->alphas || (c->d_values && (!j->partial || list_nonzeros(j))) || list_channels(j) ||
           (c->terms && list_maps(j));
}

static void add_slots(const job *j)
{
    const conv_call *c = j->call;
    double by_alpha = 0;
    for (int64_t s = 0; s < j->geo.slots; s++) by_alpha += j->alphas[s];
    if (c->d_alpha) *c->d_alpha = (float)by_alpha;
    for (int64_t k = 0; k < c->nnz && c->d_values; k++) {
        double sum = 0;
        for (int64_t s = 0; s < j->geo.slots; s++) sum += j->partial[s * c->nnz + k];
        c->d_values[k] = (float)sum;
    }
}

static int run(const conv_call *c, int backward)
{
    job j = {.call = c};
    if (c->mix == MIX_COSINE) read_cosine(&j.plan, c->plan, c->tables, c->cosine);
    int failed = find_taps(c, &j.geo);
    if (!failed) {
        divide(c, &j.geo, place_rows(&j, backward));
        place_rows(&j, backward);
        failed = block_mixing(&j, backward) || make_lists(&j, backward);
    }
    if (!failed) {
        size_t bytes = sizeof(float) * (j.at.total + 16) + (sizeof(int64_t) + sizeof(span)) * j.geo.stride;
        if (bytes < (2u << 20)) bytes = 2u << 20;
        failed = dctps_parallel(j.geo.slots, c->threads, bytes, backward ? backward_slot : forward_slot, &j);
    }
    if (!failed && backward) add_slots(&j);
    void *const taken[] = {j.geo.phase, j.starts, j.entries, j.back_starts, j.back_entries, j.nonzeros, j.offsets, j.partial,
                           j.alphas, j.blocks[0], j.blocks[1]};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) dctps_give(taken[i]);
    return failed;
}

EXPORT int DPS(conv_forward)(const conv_call *call) { return run(call, 0); }
EXPORT int DPS(conv_backward)(const conv_call *call) { return run(call, 1); }
