/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Criterion objects: a base criterion and what differs from it, stage by stage. A stage whose kind changes starts from
 * that kind's defaults; otherwise the members given replace those of the base.
 *
 * Types are checked here, and that every member given is one its kind uses; ranges and combinations are
 * bx_criterion_check's to know.
 */
#include "internal.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A criterion that is being read. */
struct reading {
    bx_criterion made;
    float *alphas, *class_weights; /* malloc'd; lists of `made` that were given */
};

struct member;

/* Reads a value into `made`. Failures are located by the caller, but for what lies within the value. */
typedef bx_status read_value(struct reading *reading, const struct member *member, const proto_node *node,
                             bx_error *error);

struct member {
    const char *name;
    read_value *read;
    size_t offset;                          /* in bx_criterion */
    proto_names choices;                    /* of members that are a choice */
    bool (*used)(const bx_criterion *made); /* NULL: by every kind */
};

enum { MAX_MEMBERS = 8 };

struct stage {
    const char *name;
    proto_names members_at;
    struct member members[MAX_MEMBERS];                 /* up to one without a name */
    void (*restart)(bx_criterion *made, unsigned kind); /* NULL: the stage has no kinds; else `kind` comes first */
};

/* ---- menus ------------------------------------------------------------------------------------------------------- */

#define MENU_ROWS(X)                                                                                                   \
    X(FORCE, force)                                                                                                    \
    X(IOU, iou)                                                                                                        \
    X(CLASSIFICATION, classification)                                                                                  \
    X(BACKGROUND, background)                                                                                          \
    X(MINING, mining)                                                                                                  \
    X(SCOPE, scope)                                                                                                    \
    X(LOCALIZATION, localization)                                                                                      \
    X(REDUCTION, reduction)                                                                                            \
    X(NORMALIZER, normalizer)

#define ROW(id, word)                                                                                                  \
    static const char *word##_choice_at(size_t i) {                                                                    \
        return bx_menu_name(BX_MENU_##id, i);                                                                          \
    }
MENU_ROWS(ROW)
#undef ROW

/* ---- values ------------------------------------------------------------------------------------------------------ */

static void *place(struct reading *reading, const struct member *member) {
    return (char *)&reading->made + member->offset;
}

static bool is_number(const proto_node *node) {
    return proto_json_kind(node) == PROTO_INTEGER || proto_json_kind(node) == PROTO_REAL;
}

/* -0 is 0: it would not survive being told, since JSON's integers have no sign then. */
static double double_of(const proto_node *node) {
    return proto_json_number(node) + 0.0;
}

static float float_of(const proto_node *node) {
    return (float)proto_json_number(node) + 0.0F;
}

static bx_status read_double(struct reading *reading, const struct member *member, const proto_node *node,
                             bx_error *error) {
    if (!is_number(node))
        return proto_mismatch(error, "a number", node);
    *(double *)place(reading, member) = double_of(node);
    return BX_OK;
}

static bx_status read_float(struct reading *reading, const struct member *member, const proto_node *node,
                            bx_error *error) {
    if (!is_number(node))
        return proto_mismatch(error, "a number", node);
    *(float *)place(reading, member) = float_of(node);
    return BX_OK;
}

/* Null is kept as -1, so that no number may be negative. */
static bx_status read_optional(struct reading *reading, const struct member *member, const proto_node *node,
                               bx_error *error) {
    if (proto_json_kind(node) != PROTO_NULL && !is_number(node))
        return proto_mismatch(error, "a number or null", node);
    if (is_number(node) && proto_json_number(node) < 0)
        return bx_fail(error, BX_INVALID, "criterion_range", "%s is %g; it must not be negative", member->name,
                       proto_json_number(node));
    *(float *)place(reading, member) = is_number(node) ? float_of(node) : -1;
    return BX_OK;
}

static bx_status read_whole(struct reading *reading, const struct member *member, const proto_node *node,
                            bx_error *error) {
    if (proto_json_kind(node) != PROTO_INTEGER)
        return proto_mismatch(error, "an integer", node);
    *(int64_t *)place(reading, member) = proto_json_int(node);
    return BX_OK;
}

static bx_status find_choice(unsigned *choice, const struct member *member, const proto_node *node, bx_error *error) {
    if (proto_json_kind(node) != PROTO_STRING)
        return proto_mismatch(error, "a string", node);
    const char *word = proto_json_string(node);
    unsigned i = 0;
    while (member->choices(i) && strcmp(member->choices(i), word) != 0)
        i++;
    if (!member->choices(i))
        return proto_refuse(error, "criterion_range", member->name, word, member->choices);
    *choice = i;
    return BX_OK;
}

/* The menus' enumerations are all of this size. */
static unsigned get_choice(struct reading *reading, const struct member *member) {
    unsigned choice;
    _Static_assert(sizeof choice == sizeof(bx_force) && sizeof choice == sizeof(bx_normalizer_kind), "");
    memcpy(&choice, place(reading, member), sizeof choice);
    return choice;
}

static bx_status read_choice(struct reading *reading, const struct member *member, const proto_node *node,
                             bx_error *error) {
    unsigned choice;
    bx_status status = find_choice(&choice, member, node, error);
    if (!status)
        memcpy(place(reading, member), &choice, sizeof choice);
    return status;
}

static bx_status read_four(struct reading *reading, const struct member *member, const proto_node *node,
                           bx_error *error) {
    if (proto_json_kind(node) != PROTO_ARRAY)
        return proto_mismatch(error, "an array of 4 numbers", node);
    if (proto_json_size(node) != 4)
        return bx_fail(error, BX_INVALID, "criterion_range", "%s has %zu numbers; it must have 4", member->name,
                       proto_json_size(node));
    size_t read = proto_json_doubles(node, place(reading, member));
    if (read == 4)
        return BX_OK;
    proto_mismatch(error, "a number", proto_json_at(node, read));
    return bx_at(error, "criterion.coder.%s[%zu]", member->name, read);
}

/* A list of some numbers; the one read before stays on failure. */
static bx_status read_list(float **list, int32_t *n, const struct member *member, const proto_node *node,
                           bx_error *error) {
    const size_t size = proto_json_size(node);
    if (size < 1 || size > BX_MAX_COLUMNS)
        return bx_fail(error, BX_INVALID, "criterion_range", "%s has %zu numbers; a list of 1 to %d is possible",
                       member->name, size, BX_MAX_COLUMNS);
    float *made = malloc(size * sizeof *made);
    if (!made)
        return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the criterion");
    const size_t read = proto_json_floats(node, made);
    if (read < size) {
        free(made);
        proto_mismatch(error, "a number", proto_json_at(node, read));
        return bx_at(error, "criterion.classification.%s[%zu]", member->name, read);
    }
    for (size_t i = 0; i < size; i++)
        made[i] += 0.0F; /* as float_of */
    *list = made;
    *n = (int32_t)size;
    return BX_OK;
}

/* One number for all classes, or a list with one of each. */
static bx_status read_alpha(struct reading *reading, const struct member *member, const proto_node *node,
                            bx_error *error) {
    bx_classification *stage = &reading->made.classification;
    stage->alphas = NULL;
    stage->n_alphas = 0;
    if (proto_json_kind(node) != PROTO_ARRAY)
        return is_number(node) ? read_double(reading, member, node, error)
                               : proto_mismatch(error, "a number or an array of numbers", node);
    bx_status status = read_list(&reading->alphas, &stage->n_alphas, member, node, error);
    stage->alphas = reading->alphas;
    return status;
}

static bx_status read_class_weights(struct reading *reading, const struct member *member, const proto_node *node,
                                    bx_error *error) {
    bx_classification *stage = &reading->made.classification;
    stage->class_weights = NULL;
    stage->n_class_weights = 0;
    if (proto_json_kind(node) == PROTO_NULL)
        return BX_OK;
    if (proto_json_kind(node) != PROTO_ARRAY)
        return proto_mismatch(error, "an array of numbers or null", node);
    bx_status status = read_list(&reading->class_weights, &stage->n_class_weights, member, node, error);
    stage->class_weights = reading->class_weights;
    return status;
}

/* ---- stages ------------------------------------------------------------------------------------------------------ */

static void restart_classification(bx_criterion *made, unsigned kind) {
    made->classification = bx_classification_default((bx_classification_kind)kind);
}

static void restart_mining(bx_criterion *made, unsigned kind) {
    made->mining = bx_mining_default((bx_mining_kind)kind);
}

static void restart_localization(bx_criterion *made, unsigned kind) {
    made->localization = bx_localization_default((bx_localization_kind)kind);
}

static void restart_normalizer(bx_criterion *made, unsigned kind) {
    made->normalizer = bx_normalizer_default((bx_normalizer_kind)kind);
}

static bool is_focal(const bx_criterion *made) {
    return bx_classification_is_focal(made->classification.kind);
}

static bool is_mined(const bx_criterion *made) {
    return made->mining.kind != BX_MINING_NONE;
}

static bool has_beta(const bx_criterion *made) {
    return bx_localization_has_beta(made->localization.kind);
}

static bool has_delta(const bx_criterion *made) {
    return bx_localization_has_delta(made->localization.kind);
}

static bool is_value(const bx_criterion *made) {
    return made->normalizer.kind == BX_NORMALIZER_VALUE;
}

enum { MATCHER, CODER, CLASSIFICATION, MINING, LOCALIZATION, NORMALIZER, WEIGHTS, N_STAGES };

static const char *member_at(int stage, size_t i);

#define STAGE(id, word)                                                                                                \
    static const char *word##_member_at(size_t i) {                                                                    \
        return member_at(id, i);                                                                                       \
    }
STAGE(MATCHER, matcher)
STAGE(CODER, coder)
STAGE(CLASSIFICATION, classification)
STAGE(MINING, mining)
STAGE(LOCALIZATION, localization)
STAGE(NORMALIZER, normalizer)
STAGE(WEIGHTS, weights)
#undef STAGE

/* The last: whether the stage's kind uses it, NULL for always. */
#define MEMBER(word, reader, at, when)                                                                                 \
    { .name = word, .read = reader, .offset = offsetof(bx_criterion, at), .used = when }
#define CHOICE(word, at, menu, when)                                                                                   \
    {                                                                                                                  \
        .name = word, .read = read_choice, .offset = offsetof(bx_criterion, at), .choices = menu##_choice_at,          \
        .used = when                                                                                                   \
    }

static const struct stage stages[N_STAGES] = {
    [MATCHER] = {.name = "matcher",
                 .members_at = matcher_member_at,
                 .members = {MEMBER("positive_iou", read_float, matcher.positive_iou, NULL),
                             MEMBER("negative_iou", read_optional, matcher.negative_iou, NULL),
                             CHOICE("force", matcher.force, force, NULL), CHOICE("iou", matcher.iou, iou, NULL),
                             MEMBER("ignore_iof", read_optional, matcher.ignore_iof, NULL)}},
    [CODER] = {.name = "coder",
               .members_at = coder_member_at,
               .members = {MEMBER("variances", read_four, coder.variances, NULL)}},
    [CLASSIFICATION] = {.name = "classification",
                        .members_at = classification_member_at,
                        .members = {CHOICE("kind", classification.kind, classification, NULL),
                                    CHOICE("background", classification.background, background, NULL),
                                    MEMBER("alpha", read_alpha, classification.alpha, is_focal),
                                    MEMBER("gamma", read_double, classification.gamma, is_focal),
                                    MEMBER("class_weights", read_class_weights, classification.class_weights, NULL),
                                    MEMBER("label_smoothing", read_double, classification.label_smoothing, NULL)},
                        .restart = restart_classification},
    [MINING] = {.name = "mining",
                .members_at = mining_member_at,
                .members = {CHOICE("kind", mining.kind, mining, NULL),
                            MEMBER("ratio", read_double, mining.ratio, is_mined),
                            CHOICE("scope", mining.scope, scope, is_mined),
                            MEMBER("min_negatives", read_whole, mining.min_negatives, is_mined)},
                .restart = restart_mining},
    [LOCALIZATION] = {.name = "localization",
                      .members_at = localization_member_at,
                      .members = {CHOICE("kind", localization.kind, localization, NULL),
                                  MEMBER("beta", read_double, localization.beta, has_beta),
                                  MEMBER("delta", read_double, localization.delta, has_delta),
                                  CHOICE("reduction", localization.reduction, reduction, NULL)},
                      .restart = restart_localization},
    [NORMALIZER] = {.name = "normalizer",
                    .members_at = normalizer_member_at,
                    .members = {CHOICE("kind", normalizer.kind, normalizer, NULL),
                                MEMBER("value", read_double, normalizer.value, is_value)},
                    .restart = restart_normalizer},
    [WEIGHTS] = {.name = "weights",
                 .members_at = weights_member_at,
                 .members = {MEMBER("loc", read_double, weights.loc, NULL),
                             MEMBER("conf", read_double, weights.conf, NULL)}},
};

static const char *member_at(int stage, size_t i) {
    return i < MAX_MEMBERS ? stages[stage].members[i].name : NULL;
}

/* The kind decides what the other members mean, so it comes first. */
static bx_status read_kind(struct reading *reading, const struct stage *stage, const proto_node *object,
                           bx_error *error) {
    const proto_node *node = proto_json_get(object, "kind");
    const struct member *kind = &stage->members[0];
    unsigned choice;
    if (!stage->restart || !node)
        return BX_OK;
    bx_status status = find_choice(&choice, kind, node, error);
    if (status)
        return bx_at(error, "criterion.%s.kind", stage->name);
    if (choice != get_choice(reading, kind))
        stage->restart(&reading->made, choice);
    return BX_OK;
}

static bx_status read_member(struct reading *reading, const struct stage *stage, const struct member *member,
                             const proto_node *node, bx_error *error) {
    bx_status status = BX_OK;
    if (member->used && !member->used(&reading->made)) {
        const struct member *kind = &stage->members[0];
        status = bx_fail(error, BX_INVALID, "criterion_conflict",
                         "%s.%s is given, but %s.kind is \"%s\", which does not use it", stage->name, member->name,
                         stage->name, kind->choices(get_choice(reading, kind)));
    } else {
        status = member->read(reading, member, node, error);
    }
    return status ? bx_at(error, "criterion.%s.%s", stage->name, member->name) : BX_OK;
}

static bx_status read_stage(struct reading *reading, const struct stage *stage, const proto_node *object,
                            bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    char path[32];
    snprintf(path, sizeof path, "criterion.%s", stage->name);
    if (proto_json_kind(object) != PROTO_OBJECT) {
        proto_mismatch(error, "an object", object);
        return bx_at(error, "%s", path);
    }
    bx_status status = read_kind(reading, stage, object, error);
    while (!status && proto_json_next(object, &iterator, &name, &value)) {
        size_t i = 0;
        while (stage->members_at(i) && strcmp(stage->members_at(i), name) != 0)
            i++;
        if (!stage->members_at(i)) {
            proto_refuse(error, "unknown_member", "member", name, stage->members_at);
            return proto_at_member(error, path, name);
        }
        status = read_member(reading, stage, &stage->members[i], value, error);
    }
    return status;
}

/* ---- the object -------------------------------------------------------------------------------------------------- */

/* Members of the object itself; the stages follow. */
enum { BASE, NAME, TEXT, PRIORS, N_PLAIN };
static const char *const plain[N_PLAIN] = {[BASE] = "base", [NAME] = "name", [TEXT] = "text", [PRIORS] = "priors"};

static const char *object_member_at(size_t i) {
    return i < N_PLAIN ? plain[i] : i < N_PLAIN + N_STAGES ? stages[i - N_PLAIN].name : NULL;
}

bool proto_is_stage(const char *name) {
    for (int i = 0; i < N_STAGES; i++)
        if (strcmp(stages[i].name, name) == 0)
            return true;
    return false;
}

static bx_status read_base(bx_criterion **base, const proto_node *object, const proto_catalog *catalog,
                           bx_error *error) {
    const proto_node *node = proto_json_get(object, "base");
    bx_status status = BX_OK;
    if (node && proto_json_kind(node) != PROTO_STRING)
        status = proto_mismatch(error, "a string", node);
    else
        status = catalog->criterion(catalog->context, node ? proto_json_string(node) : "ssd-multibox", base, error);
    return status ? bx_at(error, "criterion.base") : BX_OK;
}

static bx_status read_plain(struct reading *reading, int member, const proto_node *node, bx_error *error) {
    bx_criterion *made = &reading->made;
    if (member == PRIORS && proto_json_kind(node) == PROTO_NULL) {
        made->priors[0] = '\0';
        return BX_OK;
    }
    if (proto_json_kind(node) != PROTO_STRING)
        return proto_mismatch(error, member == PRIORS ? "a string or null" : "a string", node);
    const char *string = proto_json_string(node);
    if (member == TEXT && strlen(string) >= sizeof made->text)
        return bx_fail(error, BX_INVALID, "criterion_range", "text has %zu bytes; at most %zu are possible",
                       strlen(string), sizeof made->text - 1);
    if (member == TEXT)
        snprintf(made->text, sizeof made->text, "%s", string);
    if (member == PRIORS && string[0] && proto_name_check(string, error))
        return error->status;
    if (member == PRIORS)
        snprintf(made->priors, sizeof made->priors, "%s", string);
    return BX_OK; /* the name is told by the caller, the base is taken already */
}

static bool changes_stages(const proto_node *object) {
    bool changes = false;
    for (int i = 0; i < N_STAGES; i++)
        changes |= proto_json_get(object, stages[i].name) != NULL;
    return changes;
}

static bx_status read_object(struct reading *reading, const proto_node *object, bx_error *error) {
    void *iterator = NULL;
    const char *name;
    const proto_node *value;
    bx_status status = BX_OK;
    while (!status && proto_json_next(object, &iterator, &name, &value)) {
        size_t i = 0;
        while (object_member_at(i) && strcmp(object_member_at(i), name) != 0)
            i++;
        if (i < N_PLAIN) {
            status = read_plain(reading, (int)i, value, error);
            if (status)
                bx_at(error, "criterion.%s", name);
        } else if (i < N_PLAIN + N_STAGES) {
            status = read_stage(reading, &stages[i - N_PLAIN], value, error);
        } else {
            proto_refuse(error, "unknown_member", "member", name, object_member_at);
            status = proto_at_member(error, "criterion", name);
        }
    }
    return status ? status : bx_criterion_check(&reading->made, error);
}

bx_status proto_criterion_object(bx_criterion **criterion, const char *name, const proto_node *object,
                                 const proto_catalog *catalog, bx_error *error) {
    bx_criterion *base, *copy;
    struct reading reading = {0};
    if (proto_json_kind(object) != PROTO_OBJECT) {
        proto_mismatch(error, "a name or an object", object);
        return bx_at(error, "criterion");
    }
    bx_status status = read_base(&base, object, catalog, error);
    if (status)
        return status;
    reading.made = *base;
    snprintf(reading.made.name, sizeof reading.made.name, "%s", name);
    if (changes_stages(object)) /* the base's own words do not describe it any more */
        snprintf(reading.made.text, sizeof reading.made.text, "based on %s", base->name);
    status = read_object(&reading, object, error);
    if (!status) {
        copy = bx_criterion_copy(&reading.made);
        if (copy)
            *criterion = copy;
        else
            status = bx_fail(error, BX_NOMEM, "out_of_memory", "no memory for the criterion");
    }
    free(reading.alphas);
    free(reading.class_weights);
    bx_criterion_free(base);
    return status;
}

bx_status proto_criterion_read(bx_criterion **criterion, const char *name, const void *body, size_t bytes,
                               const proto_catalog *catalog, const proto_limits *limits, bx_error *error) {
    bx_error unwanted = {0};
    error = error ? error : &unwanted;
    proto_document document;
    bx_status status = proto_name_check(name, error);
    if (!status)
        status = proto_document_read(&document, body, bytes, NULL, NULL, limits, error);
    if (status)
        return status;
    status = proto_criterion_object(criterion, name, document.root, catalog, error);
    proto_document_fini(&document);
    return status;
}
