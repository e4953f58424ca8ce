/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generators: recipes of prior sets, and the built-in sets, which are rows of one table of recipes.
 *
 * A level is a map of cells, and every cell has the same few shapes around its own centre. Shapes and centres are
 * computed in double, in the origin's order of operations, and stored as float32. Checksums of every built-in set are
 * in tests/unit/test_priors.c.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

/* ---- parameters -------------------------------------------------------------------------------------------------- */

#define PARAMETER(name, form, field)                                                                                   \
    {                                                                                                                  \
        name, BX_FORM_##form, offsetof(bx_generator, field), {                                                         \
            NULL, NULL                                                                                                 \
        }                                                                                                              \
    }
#define CHOICE(name, field, no, yes)                                                                                   \
    {                                                                                                                  \
        name, BX_FORM_WORD, offsetof(bx_generator, field), {                                                           \
            no, yes                                                                                                    \
        }                                                                                                              \
    }
#define LEVEL_NAMES PARAMETER("level_names", NAMES, level_names)

static const bx_parameter ssd[] = {
    PARAMETER("image_size", SIZE, image_size),
    PARAMETER("feature_maps", MAPS, feature_maps),
    PARAMETER("steps", SIZES, steps),
    PARAMETER("min_sizes", SIZES, sizes),
    PARAMETER("max_sizes", SIZES, max_sizes),
    PARAMETER("aspect_ratios", RATIOS, level_ratios),
    PARAMETER("clip", FLAG, clip),
    LEVEL_NAMES,
};
static const bx_parameter ssd_scales[] = {
    PARAMETER("feature_maps", MAPS, feature_maps),
    PARAMETER("scales", SIZES, sizes),
    PARAMETER("aspect_ratios", RATIOS, level_ratios),
    CHOICE("extra", extra_last, "second", "last"),
    PARAMETER("clip", FLAG, clip),
    LEVEL_NAMES,
};
static const bx_parameter retinanet[] = {
    PARAMETER("image_size", SIZE, image_size), PARAMETER("strides", STRIDES, strides), PARAMETER("sizes", SIZES, sizes),
    PARAMETER("ratios", NUMBERS, ratios),      PARAMETER("scales", NUMBERS, scales),   LEVEL_NAMES,
};
static const bx_parameter grid[] = {
    PARAMETER("image_size", SIZE, image_size), PARAMETER("strides", STRIDES, strides),
    PARAMETER("scales", SIZES, sizes),         PARAMETER("ratios", NUMBERS, ratios),
    CHOICE("order", by_cell, "ratio", "cell"), LEVEL_NAMES,
};

const char *bx_generator_name(size_t i) {
    static const char *const names[] = {
#define BX_ROW(id, name) name,
        BX_GENERATOR_ROWS(BX_ROW)
#undef BX_ROW
    };
    return i < BX_N_GENERATORS ? names[i] : NULL;
}

const bx_parameter *bx_generator_parameter(bx_generator_kind kind, size_t i) {
    static const struct {
        const bx_parameter *rows;
        size_t n;
    } kinds[BX_N_GENERATORS] = {
        [BX_GENERATOR_SSD] = {ssd, sizeof ssd / sizeof *ssd},
        [BX_GENERATOR_SSD_SCALES] = {ssd_scales, sizeof ssd_scales / sizeof *ssd_scales},
        [BX_GENERATOR_RETINANET] = {retinanet, sizeof retinanet / sizeof *retinanet},
        [BX_GENERATOR_GRID] = {grid, sizeof grid / sizeof *grid},
    };
    return i < kinds[kind].n ? &kinds[kind].rows[i] : NULL;
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */

#define MAX_VALUE 65536 /* of what need not be whole */

/* A value of a parameter: its indices are -1 where it has none. */
typedef struct place {
    const char *name;
    int32_t i, j;
} place;

static bx_status refuse(bx_error *error, place at, const char *text) {
    char index[2][16] = {"", ""};
    const int32_t indices[2] = {at.i, at.j};
    for (int k = 0; k < 2; k++) {
        if (indices[k] >= 0) {
            snprintf(index[k], sizeof index[k], "[%d]", (int)indices[k]);
        }
    }
    bx_fail(error, BX_INVALID, "priors_range", "%s%s%s %s", at.name, index[0], index[1], text);
    bx_at(error, "priors.%s%s%s", at.name, index[0], index[1]);
    return BX_INVALID;
}

static bx_status check_side(int32_t value, place at, bx_error *error) {
    char text[64];
    if (value >= 1 && value <= BX_MAX_SIDE) {
        return BX_OK;
    }
    snprintf(text, sizeof text, "is %d; between 1 and %d are possible", (int)value, BX_MAX_SIDE);
    return refuse(error, at, text);
}

static bx_status check_value(double value, place at, bx_error *error) {
    char text[64];
    if (value > 0 && value <= MAX_VALUE) {
        return BX_OK;
    }
    snprintf(text, sizeof text, "is %g; it must be above 0 and at most %d", value, MAX_VALUE);
    return refuse(error, at, text);
}

/* A list of `least` to BX_MAX_RATIOS values; at.i is the level, or -1. */
static bx_status check_numbers(const bx_numbers *numbers, int32_t least, place at, bx_error *error) {
    char text[64];
    if (numbers->n < least || numbers->n > BX_MAX_RATIOS) {
        snprintf(text, sizeof text, "has %d values; %d to %d are possible", (int)numbers->n, (int)least, BX_MAX_RATIOS);
        return refuse(error, at, text);
    }
    bx_status status = BX_OK;
    for (int32_t i = 0; !status && i < numbers->n; i++) {
        status = check_value(numbers->at[i], at.i < 0 ? (place){at.name, i, -1} : (place){at.name, at.i, i}, error);
    }
    return status;
}

static bx_status check_name(const char name[16], place at, bx_error *error) {
    bool fine = memchr(name, '\0', 16) != NULL;
    for (const char *c = name; fine && *c; c++) {
        fine = *c > ' ' && *c < 127;
    }
    return fine ? BX_OK : refuse(error, at, "is not a name of at most 15 characters of printable ASCII");
}

/* Parameter by parameter, as bx_form says how each is held. */
static bx_status check_parameter(const bx_generator *g, const bx_parameter *parameter, bx_error *error) {
    const void *held = (const char *)g + parameter->offset;
    const int32_t *sides = held, n_sides = parameter->form == BX_FORM_SIZE ? 2 : g->n_levels;
    const int32_t least = g->kind != BX_GENERATOR_SSD; /* there the squares are made without a ratio */
    bx_status status = BX_OK;
    switch (parameter->form) {
    case BX_FORM_SIZE:
    case BX_FORM_STRIDES:
        for (int32_t i = 0; !status && i < n_sides; i++) {
            status = check_side(sides[i], (place){parameter->name, i, -1}, error);
        }
        break;
    case BX_FORM_MAPS:
        for (int32_t i = 0; !status && i < 2 * g->n_levels; i++) {
            status = check_side(sides[i], (place){parameter->name, i / 2, i % 2}, error);
        }
        break;
    case BX_FORM_SIZES:
        for (int32_t i = 0; !status && i < g->n_levels; i++) {
            status = check_value(((const double *)held)[i], (place){parameter->name, i, -1}, error);
        }
        break;
    case BX_FORM_RATIOS:
        for (int32_t i = 0; !status && i < g->n_levels; i++) {
            status = check_numbers((const bx_numbers *)held + i, least, (place){parameter->name, i, -1}, error);
        }
        break;
    case BX_FORM_NUMBERS:
        status = check_numbers(held, 1, (place){parameter->name, -1, -1}, error);
        break;
    case BX_FORM_NAMES:
        for (int32_t i = 0; !status && i < g->n_levels; i++) {
            status = check_name((const char *)held + 16 * i, (place){parameter->name, i, -1}, error);
        }
        break;
    case BX_FORM_FLAG:
    case BX_FORM_WORD:
        break;
    }
    return status;
}

/* ---- boxes ------------------------------------------------------------------------------------------------------- */

#define MAX_SHAPES (BX_MAX_RATIOS * BX_MAX_RATIOS)

/* Columns and rows of a level. */
static void level_map(const bx_generator *g, int32_t level, int32_t map[2]) {
    for (int axis = 0; axis < 2; axis++) {
        bool pixels = g->kind == BX_GENERATOR_RETINANET || g->kind == BX_GENERATOR_GRID;
        int32_t stride = g->strides[level];
        map[axis] = pixels ? (g->image_size[axis] + stride - 1) / stride : g->feature_maps[level][axis];
    }
}

/* The centre of the cells of column (axis 0) or row (axis 1) i. */
static double centre(const bx_generator *g, int32_t level, int axis, int32_t i) {
    switch (g->kind) {
    case BX_GENERATOR_SSD:
        return (i + 0.5) / (g->image_size[axis] / g->steps[level]);
    case BX_GENERATOR_SSD_SCALES:
        return (i + 0.5) / g->feature_maps[level][axis];
    case BX_GENERATOR_RETINANET:
        return (i + 0.5) * g->strides[level];
    default:
        return g->strides[level] / 2 + (double)g->strides[level] * i;
    }
}

/* The (w, h) of a cell. Each of these returns how many it wrote to `out`, or how many there are when it is NULL. */
typedef int32_t shapes(const bx_generator *g, int32_t level, double (*out)[2]);

static int32_t put(double (*out)[2], int32_t n, double w, double h) {
    if (out) {
        out[n][0] = w;
        out[n][1] = h;
    }
    return n + 1;
}

static int32_t ssd_shapes(const bx_generator *g, int32_t level, double (*out)[2]) {
    const bx_numbers *ratios = &g->level_ratios[level];
    const double width = g->image_size[0], height = g->image_size[1];
    const double w = g->sizes[level] / width, h = g->sizes[level] / height;
    int32_t n = put(out, 0, w, h);
    n = put(out, n, sqrt(w * (g->max_sizes[level] / width)), sqrt(h * (g->max_sizes[level] / height)));
    for (int32_t i = 0; i < ratios->n; i++) {
        double root = sqrt(ratios->at[i]);
        n = put(out, n, w * root, h / root);
        n = put(out, n, w / root, h * root);
    }
    return n;
}

static int32_t ssd_scales_shapes(const bx_generator *g, int32_t level, double (*out)[2]) {
    const bx_numbers *ratios = &g->level_ratios[level];
    const double s = g->sizes[level];
    const double extra = level + 1 < g->n_levels ? sqrt(s * g->sizes[level + 1]) : 1.0;
    int32_t n = 0;
    for (int32_t i = 0; i < ratios->n; i++) {
        double root = sqrt(ratios->at[i]);
        n = put(out, n, s * root, s / root);
        if (i == (g->extra_last ? ratios->n - 1 : 0)) {
            n = put(out, n, extra, extra);
        }
    }
    return n;
}

static int32_t retinanet_shapes(const bx_generator *g, int32_t level, double (*out)[2]) {
    const double area = g->sizes[level] * g->sizes[level];
    int32_t n = 0;
    for (int32_t i = 0; i < g->ratios.n; i++) {
        double h = sqrt(area / g->ratios.at[i]), w = area / h;
        for (int32_t k = 0; k < g->scales.n; k++) {
            n = put(out, n, g->scales.at[k] * w, g->scales.at[k] * h);
        }
    }
    return n;
}

/* Rounded to even where half-way, as Python's round(). */
static int32_t grid_shapes(const bx_generator *g, int32_t level, double (*out)[2]) {
    int32_t n = 0;
    for (int32_t i = 0; i < g->ratios.n; i++) {
        double root = sqrt(g->ratios.at[i]);
        n = put(out, n, rint(g->sizes[level] * root), rint(g->sizes[level] / root));
    }
    return n;
}

static shapes *const cell_shapes[BX_N_GENERATORS] = {
    [BX_GENERATOR_SSD] = ssd_shapes,
    [BX_GENERATOR_SSD_SCALES] = ssd_scales_shapes,
    [BX_GENERATOR_RETINANET] = retinanet_shapes,
    [BX_GENERATOR_GRID] = grid_shapes,
};

bx_status bx_generator_check(const bx_generator *generator, int32_t *n, bx_error *error) {
    const bx_generator *g = generator;
    const bx_parameter *parameter;
    bx_status status = BX_OK;
    char text[64];
    if ((unsigned)g->kind >= BX_N_GENERATORS) {
        return refuse(error, (place){"generator", -1, -1}, "is of no kind there is");
    }
    if (g->n_levels < 1 || g->n_levels > BX_MAX_LEVELS) {
        bool maps = g->kind == BX_GENERATOR_SSD || g->kind == BX_GENERATOR_SSD_SCALES;
        snprintf(text, sizeof text, "has %d levels; 1 to %d are possible", (int)g->n_levels, BX_MAX_LEVELS);
        return refuse(error, (place){maps ? "feature_maps" : "strides", -1, -1}, text);
    }
    for (size_t i = 0; !status && (parameter = bx_generator_parameter(g->kind, i)); i++) {
        status = check_parameter(g, parameter, error);
    }
    if (status) {
        return status;
    }
    int64_t count = 0; /* at most 16 levels of 2^28 cells with 2^8 shapes */
    for (int32_t level = 0; level < g->n_levels; level++) {
        int32_t map[2];
        level_map(g, level, map);
        count += (int64_t)map[0] * map[1] * cell_shapes[g->kind](g, level, NULL);
    }
    if (count > BX_MAX_PRIORS) {
        bx_fail(error, BX_SHAPE, "shape", "the generator would make %lld priors; at most %d are possible",
                (long long)count, BX_MAX_PRIORS);
        bx_at(error, "priors");
        return BX_SHAPE;
    }
    *n = (int32_t)count;
    return BX_OK;
}

static void name_level(const bx_generator *g, int32_t level, const int32_t map[2], char name[16]) {
    const int32_t stride = g->strides[level];
    if (g->level_names[level][0]) {
        memcpy(name, g->level_names[level], 16);
    } else if (g->kind == BX_GENERATOR_SSD || g->kind == BX_GENERATOR_SSD_SCALES) {
        snprintf(name, 16, "%dx%d", (int)map[0], (int)map[1]);
    } else if (g->kind == BX_GENERATOR_RETINANET && (stride & (stride - 1)) == 0) {
        snprintf(name, 16, "p%d", __builtin_ctz((unsigned)stride));
    } else {
        snprintf(name, 16, "s%d", (int)stride);
    }
}

static float stored(const bx_generator *g, double x) {
    float f = (float)x;
    bool clip = g->clip && (g->kind == BX_GENERATOR_SSD || g->kind == BX_GENERATOR_SSD_SCALES);
    return clip && f < 0 ? 0 : clip && f > 1 ? 1 : f;
}

void bx_generator_fill(const bx_generator *generator, float *boxes, bx_level *levels) {
    const bx_generator *g = generator;
    const bool by_shape = g->kind == BX_GENERATOR_GRID && !g->by_cell;
    int32_t first = 0;
    for (int32_t level = 0; level < g->n_levels; level++) {
        double shape[MAX_SHAPES][2];
        int32_t map[2];
        level_map(g, level, map);
        const int32_t n_shapes = cell_shapes[g->kind](g, level, shape), n_cells = map[0] * map[1];
        for (int32_t cell = 0; cell < n_cells; cell++) {
            const float cx = stored(g, centre(g, level, 0, cell % map[0]));
            const float cy = stored(g, centre(g, level, 1, cell / map[0]));
            for (int32_t i = 0; i < n_shapes; i++) {
                int32_t at = first + (by_shape ? i * n_cells + cell : cell * n_shapes + i);
                float *box = boxes + 4 * (size_t)at;
                box[0] = cx;
                box[1] = cy;
                box[2] = stored(g, shape[i][0]);
                box[3] = stored(g, shape[i][1]);
            }
        }
        levels[level].first = first;
        levels[level].count = n_cells * n_shapes;
        name_level(g, level, map, levels[level].name);
        first += levels[level].count;
    }
}

/* ---- built-in sets ----------------------------------------------------------------------------------------------- */

typedef struct builtin {
    const char *name, *text;
    bool any_size; /* the name's WxH is an example: it names image_size */
    bx_generator generator;
} builtin;

/* clang-format off */
#define SSD300_MAPS    {{38, 38}, {19, 19}, {10, 10}, {5, 5}, {3, 3}, {1, 1}}
#define SSD300_STEPS   {8, 16, 32, 64, 100, 300}
#define SSD300_RATIOS  {{1, {2}}, {2, {2, 3}}, {2, {2, 3}}, {2, {2, 3}}, {1, {2}}, {1, {2}}}
#define FEW            {3, {1, 2, .5}}
#define MANY           {5, {1, 2, 3, .5, .333}}

static const builtin builtins[] = {
    {"ssd300", "SSD300 with the VOC sizes of ssd.pytorch and pytorch_advanced", false,
     {.kind = BX_GENERATOR_SSD, .n_levels = 6, .image_size = {300, 300}, .feature_maps = SSD300_MAPS,
      .steps = SSD300_STEPS, .sizes = {30, 60, 111, 162, 213, 264}, .max_sizes = {60, 111, 162, 213, 264, 315},
      .level_ratios = SSD300_RATIOS, .clip = true}},
    {"ssd300-coco", "SSD300 with the COCO sizes of ssd.pytorch", false,
     {.kind = BX_GENERATOR_SSD, .n_levels = 6, .image_size = {300, 300}, .feature_maps = SSD300_MAPS,
      .steps = SSD300_STEPS, .sizes = {21, 45, 99, 153, 207, 261}, .max_sizes = {45, 99, 153, 207, 261, 315},
      .level_ratios = SSD300_RATIOS, .clip = true}},
    {"ssd300-unit", "SSD300 of the PyTorch detection tutorial by sgrvinod: centres by map, its own scales", false,
     {.kind = BX_GENERATOR_SSD_SCALES, .n_levels = 6, .feature_maps = SSD300_MAPS,
      .sizes = {.1, .2, .375, .55, .725, .9}, .level_ratios = {FEW, MANY, MANY, MANY, FEW, FEW}, .clip = true}},
    {"ssd300-efficientnet", "EfficientNet-b0 at 300x300, six maps, in the PyTorch detection tutorial's form", false,
     {.kind = BX_GENERATOR_SSD_SCALES, .n_levels = 6,
      .feature_maps = {{18, 18}, {9, 9}, {9, 9}, {5, 5}, {3, 3}, {1, 1}}, .sizes = {.2, .2, .375, .55, .725, .9},
      .level_ratios = {MANY, MANY, MANY, MANY, FEW, FEW}, .extra_last = true, .clip = true,
      .level_names = {"mid", "end", "a", "b", "c", "d"}}},
    {"retinanet-640x640", "RetinaNet anchors of the keras-io example, for images of any WxH", true,
     {.kind = BX_GENERATOR_RETINANET, .n_levels = 5, .image_size = {640, 640}, .strides = {8, 16, 32, 64, 128},
      .sizes = {32, 64, 128, 256, 512}, .ratios = {3, {.5, 1, 2}},
      .scales = {3, {1, 1.2599210498948732, 1.5874010519681994}}}}, /* 2^(0/3) 2^(1/3) 2^(2/3) */
    {"grid-128x128", "One scale per stride of the Keras SSD tutorial, for images of any WxH", true,
     {.kind = BX_GENERATOR_GRID, .n_levels = 3, .image_size = {128, 128}, .strides = {4, 8, 16},
      .sizes = {10, 25, 40}, .ratios = {3, {.4, .8, 1.2}}}},
};
/* clang-format on */
enum { N_BUILTINS = sizeof builtins / sizeof *builtins };

const char *bx_priors_name(size_t i) {
    return i < N_BUILTINS ? builtins[i].name : NULL;
}

const bx_generator *bx_generator_default(bx_generator_kind kind) {
    size_t i = 0;
    while (builtins[i].generator.kind != kind) {
        i++;
    }
    return &builtins[i].generator;
}

/* Read digits without a leading zero; what is far too large stays so. Returns what follows, NULL without a number. */
static const char *read_side(const char *at, int32_t *side) {
    const char *start = at;
    for (*side = 0; *at >= '0' && *at <= '9'; at++) {
        *side = *side > BX_MAX_SIDE ? *side : *side * 10 + (*at - '0');
    }
    return at == start || (*start == '0' && at > start + 1) ? NULL : at;
}

/* The row `name` stands for, and the image size it speaks of; NULL when there is none. */
static const builtin *find_builtin(const char *name, int32_t image_size[2]) {
    for (size_t i = 0; i < N_BUILTINS; i++) {
        const builtin *row = &builtins[i];
        memcpy(image_size, row->generator.image_size, sizeof row->generator.image_size);
        if (!strcmp(name, row->name)) {
            return row;
        }
        size_t prefix = strcspn(row->name, "-") + 1;
        if (row->any_size && !strncmp(name, row->name, prefix)) {
            const char *at = read_side(name + prefix, &image_size[0]);
            at = at && *at == 'x' ? read_side(at + 1, &image_size[1]) : NULL;
            if (at && *at == '\0') {
                return row;
            }
        }
    }
    return NULL;
}

bool bx_priors_is_builtin(const char *name) {
    int32_t image_size[2];
    return find_builtin(name, image_size) != NULL;
}

/* The row of a built-in name, and the generator with the image size that the name says. */
static bx_status choose_builtin(const builtin **found, bx_generator *generator, const char *name, bx_error *error) {
    int32_t image_size[2];
    const builtin *row = find_builtin(name, image_size);
    if (!row) {
        const char *near = bx_nearest(name, bx_priors_name);
        bx_fail(error, BX_INVALID, "unknown_priors", "there is no prior set \"%.64s\"%s%s%s", name,
                near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
        bx_at(error, "priors");
        return BX_INVALID;
    }
    for (int axis = 0; axis < 2; axis++) {
        if (row->any_size && (image_size[axis] < 1 || image_size[axis] > BX_MAX_SIDE)) {
            bx_fail(error, BX_INVALID, "priors_range", "\"%.64s\": the image's %s must be between 1 and %d", name,
                    axis ? "height" : "width", BX_MAX_SIDE);
            bx_at(error, "priors");
            return BX_INVALID;
        }
    }
    *found = row;
    *generator = row->generator;
    memcpy(generator->image_size, image_size, sizeof generator->image_size);
    return BX_OK;
}

bx_status bx_generator_builtin(bx_generator *generator, const char *name, bx_error *error) {
    const builtin *row;
    return choose_builtin(&row, generator, name, error);
}

bx_status bx_priors_builtin(bx_priors **priors, const char *name, bx_error *error) {
    const builtin *row;
    bx_generator generator;
    bx_priors *p = NULL;
    bx_status status = choose_builtin(&row, &generator, name, error);
    if (!status) {
        status = bx_priors_generate(&p, &generator, error);
    }
    if (status) {
        return status;
    }
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(p->text, sizeof p->text, "%s", row->text);
    *priors = p;
    return BX_OK;
}
