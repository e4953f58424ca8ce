/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generator objects, {"generator": "retinanet", "image_size": [512, 512], ...}: reading and writing. Both walk the
 * parameters that bx_generator_parameter lists, so what is written reads back as the same recipe. Parameters that are
 * left out are those of the kind's first built-in set. What values are possible is bx_generator_check's to say.
 */
#include "internal.h"

#include <stdio.h>
#include <string.h>

/* ---- places and refusals ----------------------------------------------------------------------------------------- */

/* A value below a parameter: `priors.name`, with as many indices as are not negative. */
struct place {
    const char *name;
    int i, j;
};

static struct place below(struct place at, int i) {
    return at.i < 0 ? (struct place){at.name, i, -1} : (struct place){at.name, at.i, i};
}

static bx_status at_place(bx_error *error, struct place at) {
    if (at.i < 0)
        return bx_at(error, "priors.%s", at.name);
    if (at.j < 0)
        return bx_at(error, "priors.%s[%d]", at.name, at.i);
    return bx_at(error, "priors.%s[%d][%d]", at.name, at.i, at.j);
}

static bx_status mismatch(bx_error *error, struct place at, const char *expected, const proto_node *got) {
    bx_fail(error, BX_INVALID, "type_mismatch", "expected %s, got %s", expected, proto_json_kind_name(got));
    return at_place(error, at);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static bx_status read_whole(int32_t *out, const proto_node *node, struct place at, bx_error *error) {
    if (proto_json_kind(node) != PROTO_INTEGER)
        return mismatch(error, at, "an integer", node);
    int64_t value = proto_json_int(node);
    *out = value < INT32_MIN ? INT32_MIN : value > INT32_MAX ? INT32_MAX : (int32_t)value; /* still refused */
    return BX_OK;
}

/* An integer for both, or [first, second]. */
static bx_status read_pair(int32_t out[2], const proto_node *node, struct place at, bx_error *error) {
    if (proto_json_kind(node) == PROTO_INTEGER) {
        bx_status status = read_whole(&out[0], node, at, error);
        out[1] = out[0];
        return status;
    }
    if (proto_json_kind(node) != PROTO_ARRAY)
        return mismatch(error, at, "an integer or two", node);
    if (proto_json_size(node) != 2) {
        bx_fail(error, BX_SHAPE, "shape", "expected an integer or two, got %zu values", proto_json_size(node));
        return at_place(error, at);
    }
    bx_status status = BX_OK;
    for (int i = 0; !status && i < 2; i++)
        status = read_whole(&out[i], proto_json_at(node, (size_t)i), below(at, i), error);
    return status;
}

static bx_status read_real(double *out, const proto_node *node, struct place at, bx_error *error) {
    if (proto_json_kind(node) != PROTO_INTEGER && proto_json_kind(node) != PROTO_REAL)
        return mismatch(error, at, "a number", node);
    *out = proto_json_number(node);
    return BX_OK;
}

/* A list of at most `most` values; *n is how many. */
static bx_status read_length(int32_t *n, const proto_node *node, int most, struct place at, bx_error *error) {
    if (proto_json_kind(node) != PROTO_ARRAY)
        return mismatch(error, at, "an array", node);
    if (proto_json_size(node) > (size_t)most) {
        bx_fail(error, BX_INVALID, "priors_range", "%s has %zu entries; at most %d are possible", at.name,
                proto_json_size(node), most);
        return at_place(error, at);
    }
    *n = (int32_t)proto_json_size(node);
    return BX_OK;
}

static bx_status read_numbers(bx_numbers *out, const proto_node *node, struct place at, bx_error *error) {
    bx_status status = read_length(&out->n, node, BX_MAX_RATIOS, at, error);
    for (int i = 0; !status && i < out->n; i++)
        status = read_real(&out->at[i], proto_json_at(node, (size_t)i), below(at, i), error);
    return status;
}

static bx_status read_name(char out[16], const proto_node *node, struct place at, bx_error *error) {
    if (proto_json_kind(node) != PROTO_STRING)
        return mismatch(error, at, "a string", node);
    if (strlen(proto_json_string(node)) > 15) {
        bx_fail(error, BX_INVALID, "priors_range",
                "a level's name is at most 15 characters of printable ASCII, not \"%.64s\"", proto_json_string(node));
        return at_place(error, at);
    }
    snprintf(out, 16, "%s", proto_json_string(node));
    return BX_OK;
}

static bx_status read_word(bool *out, const proto_node *node, const bx_parameter *parameter, bx_error *error) {
    struct place at = {parameter->name, -1, -1};
    if (proto_json_kind(node) != PROTO_STRING)
        return mismatch(error, at, "a string", node);
    for (int i = 0; i < 2; i++)
        if (strcmp(proto_json_string(node), parameter->words[i]) == 0) {
            *out = i == 1;
            return BX_OK;
        }
    bx_fail(error, BX_INVALID, "priors_range", "%s is \"%.64s\"; it must be \"%s\" or \"%s\"", parameter->name,
            proto_json_string(node), parameter->words[0], parameter->words[1]);
    return at_place(error, at);
}

/* ---- the object -------------------------------------------------------------------------------------------------- */

static bool is_per_level(const bx_parameter *parameter) {
    switch (parameter->form) {
    case BX_FORM_MAPS:
    case BX_FORM_STRIDES:
    case BX_FORM_SIZES:
    case BX_FORM_RATIOS:
    case BX_FORM_NAMES:
        return true;
    case BX_FORM_SIZE:
    case BX_FORM_NUMBERS:
    case BX_FORM_FLAG:
    case BX_FORM_WORD:
        break;
    }
    return false;
}

static bx_status read_parameter(bx_generator *out, const bx_parameter *parameter, const proto_node *node,
                                bx_error *error) {
    void *held = (char *)out + parameter->offset;
    struct place at = {parameter->name, -1, -1};
    bx_status status = BX_OK;
    for (int i = 0; !status && is_per_level(parameter) && i < out->n_levels; i++) {
        const proto_node *entry = proto_json_at(node, (size_t)i);
        at.i = i;
        if (parameter->form == BX_FORM_MAPS)
            status = read_pair((int32_t *)held + 2 * i, entry, at, error);
        else if (parameter->form == BX_FORM_STRIDES)
            status = read_whole((int32_t *)held + i, entry, at, error);
        else if (parameter->form == BX_FORM_SIZES)
            status = read_real((double *)held + i, entry, at, error);
        else if (parameter->form == BX_FORM_RATIOS)
            status = read_numbers((bx_numbers *)held + i, entry, at, error);
        else
            status = read_name((char *)held + 16 * i, entry, at, error);
    }
    if (parameter->form == BX_FORM_SIZE)
        status = read_pair(held, node, at, error);
    else if (parameter->form == BX_FORM_NUMBERS)
        status = read_numbers(held, node, at, error);
    else if (parameter->form == BX_FORM_WORD)
        status = read_word(held, node, parameter, error);
    else if (parameter->form == BX_FORM_FLAG && proto_json_kind(node) != PROTO_BOOLEAN)
        status = mismatch(error, at, "true or false", node);
    else if (parameter->form == BX_FORM_FLAG)
        *(bool *)held = proto_json_bool(node);
    return status;
}

/* Lists with an entry per level: the kind's first one decides how many levels there are, given or not, and the others
 * must agree, given or not. */
static bx_status read_levels(bx_generator *out, const proto_node *object, bx_error *error) {
    const bx_parameter *parameter, *first = NULL;
    const int32_t usual = out->n_levels;
    for (size_t i = 0; (parameter = bx_generator_parameter(out->kind, i)); i++) {
        const proto_node *node = proto_json_get(object, parameter->name);
        const struct place at = {parameter->name, -1, -1};
        int32_t n = usual;
        if (!is_per_level(parameter) || (!node && parameter->form == BX_FORM_NAMES))
            continue;
        bx_status status = node ? read_length(&n, node, BX_MAX_LEVELS, at, error) : BX_OK;
        if (status)
            return status;
        if (!first) {
            first = parameter;
            out->n_levels = n;
        } else if (n != out->n_levels) {
            bool first_given = proto_json_get(object, first->name) != NULL;
            bx_fail(error, BX_INVALID, "priors_conflict", "%s has %d entries%s, but %s has %d%s", parameter->name,
                    (int)n, node ? "" : " by default", first->name, (int)out->n_levels,
                    first_given ? "" : " by default");
            return at_place(error, node ? at : (struct place){first->name, -1, -1});
        }
    }
    return BX_OK;
}

static const char *member_at(bx_generator_kind kind, size_t i) {
    const bx_parameter *parameter = i == 0 ? NULL : bx_generator_parameter(kind, i - 1);
    return i == 0 ? "generator" : parameter ? parameter->name : NULL;
}

/* proto_names of each kind. */
static const char *ssd_at(size_t i) {
    return member_at(BX_GENERATOR_SSD, i);
}
static const char *ssd_scales_at(size_t i) {
    return member_at(BX_GENERATOR_SSD_SCALES, i);
}
static const char *retinanet_at(size_t i) {
    return member_at(BX_GENERATOR_RETINANET, i);
}
static const char *grid_at(size_t i) {
    return member_at(BX_GENERATOR_GRID, i);
}
static const proto_names members[BX_N_GENERATORS] = {
    [BX_GENERATOR_SSD] = ssd_at,
    [BX_GENERATOR_SSD_SCALES] = ssd_scales_at,
    [BX_GENERATOR_RETINANET] = retinanet_at,
    [BX_GENERATOR_GRID] = grid_at,
};

static bx_status read_kind(bx_generator_kind *kind, const proto_node *object, bx_error *error) {
    const proto_node *node = proto_json_get(object, "generator");
    const struct place at = {"generator", -1, -1};
    if (!node) {
        bx_fail(error, BX_INVALID, "missing_member",
                "\"generator\" is missing; it is one of ssd, ssd-scales, retinanet "
                "and grid");
        return at_place(error, at);
    }
    if (proto_json_kind(node) == PROTO_OBJECT) {
        bx_fail(error, BX_INVALID, "type_mismatch",
                "expected the name of a generator, got an object; a prior set's description holds its generator there");
        return at_place(error, at);
    }
    if (proto_json_kind(node) != PROTO_STRING)
        return mismatch(error, at, "a string", node);
    for (size_t i = 0; i < BX_N_GENERATORS; i++)
        if (strcmp(bx_generator_name(i), proto_json_string(node)) == 0) {
            *kind = (bx_generator_kind)i;
            return BX_OK;
        }
    proto_refuse(error, "unknown_generator", "generator", proto_json_string(node), bx_generator_name);
    return at_place(error, at);
}

bx_status proto_generator_read(bx_generator *out, const proto_node *object, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    bx_generator_kind kind = BX_GENERATOR_SSD;
    if (proto_json_kind(object) != PROTO_OBJECT) {
        bx_fail(error, BX_INVALID, "type_mismatch", "expected an object, got %s", proto_json_kind_name(object));
        return bx_at(error, "priors");
    }
    bx_status status = read_kind(&kind, object, error);
    if (status)
        return status;
    while (proto_json_next(object, &iterator, &name, &value)) {
        size_t i = 0;
        while (members[kind](i) && strcmp(members[kind](i), name) != 0)
            i++;
        if (!members[kind](i)) {
            proto_refuse(error, "unknown_member", "generator member", name, members[kind]);
            return proto_at_member(error, "priors", name);
        }
    }
    bx_generator generator = *bx_generator_default(kind);
    const bx_parameter *parameter;
    status = read_levels(&generator, object, error);
    for (size_t i = 0; !status && (parameter = bx_generator_parameter(kind, i)); i++)
        if ((value = proto_json_get(object, parameter->name)))
            status = read_parameter(&generator, parameter, value, error);
    if (!status)
        *out = generator;
    return status;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static void write_pair(proto_writer *w, const char *key, const int32_t pair[2]) {
    proto_write_open(w, key, '[');
    proto_write_int(w, NULL, pair[0]);
    proto_write_int(w, NULL, pair[1]);
    proto_write_close(w, ']');
}

static void write_numbers(proto_writer *w, const char *key, const bx_numbers *numbers) {
    proto_write_open(w, key, '[');
    for (int i = 0; i < numbers->n; i++)
        proto_write_real(w, NULL, numbers->at[i]);
    proto_write_close(w, ']');
}

static void write_level(proto_writer *w, const bx_parameter *parameter, const void *held, int level) {
    const int32_t *sides = held;
    if (parameter->form == BX_FORM_MAPS && sides[2 * level] != sides[2 * level + 1])
        write_pair(w, NULL, sides + 2 * level);
    else if (parameter->form == BX_FORM_MAPS)
        proto_write_int(w, NULL, sides[2 * level]);
    else if (parameter->form == BX_FORM_STRIDES)
        proto_write_int(w, NULL, sides[level]);
    else if (parameter->form == BX_FORM_SIZES)
        proto_write_real(w, NULL, ((const double *)held)[level]);
    else if (parameter->form == BX_FORM_RATIOS)
        write_numbers(w, NULL, (const bx_numbers *)held + level);
    else
        proto_write_string(w, NULL, (const char *)held + 16 * level);
}

/* Whether some level has a name of its own. */
static bool has_names(const bx_generator *generator) {
    bool named = false;
    for (int i = 0; i < generator->n_levels; i++)
        named |= generator->level_names[i][0] != '\0';
    return named;
}

void proto_generator_write(proto_writer *w, const char *key, const bx_generator *generator) {
    const bx_parameter *parameter;
    proto_write_open(w, key, '{');
    proto_write_string(w, "generator", bx_generator_name(generator->kind));
    for (size_t i = 0; (parameter = bx_generator_parameter(generator->kind, i)); i++) {
        const void *held = (const char *)generator + parameter->offset;
        if (parameter->form == BX_FORM_NAMES && !has_names(generator))
            continue;
        if (is_per_level(parameter)) {
            proto_write_open(w, parameter->name, '[');
            for (int level = 0; level < generator->n_levels; level++)
                write_level(w, parameter, held, level);
            proto_write_close(w, ']');
        } else if (parameter->form == BX_FORM_SIZE) {
            write_pair(w, parameter->name, held);
        } else if (parameter->form == BX_FORM_NUMBERS) {
            write_numbers(w, parameter->name, held);
        } else if (parameter->form == BX_FORM_FLAG) {
            proto_write_bool(w, parameter->name, *(const bool *)held);
        } else {
            proto_write_string(w, parameter->name, parameter->words[*(const bool *)held]);
        }
    }
    proto_write_close(w, '}');
}
