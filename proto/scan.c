/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One pass over a JSON text before the parser sees it: numbers at the places that have arrays of them go straight to
 * the document's stores, and the parser is given a short array instead of each, [index, what is no number...].
 *
 * What is JSON remains the parser's to say. Outside those arrays it reads the text itself. Within them only brackets,
 * commas and whole numbers are taken out; strings and objects reach the parser, and at whatever else stands there the
 * pass stops and hands over the rest of the text, where an array has either ended or has a comma behind it, so that the
 * parser fails at the same byte. A document costs constant stack: nesting is bounded here.
 */
#include "internal.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* An object or an array outside the arrays of numbers. */
struct level {
    const char *begin; /* its bracket */
    uint32_t open;     /* bit i: places[i] lies within */
    bool array;
    const proto_place *flat; /* an object that may be {"shape", "data"} at this place */
    bool typed;              /* dtype_beside has looked; this is what it found */
    bx_dtype dtype;
};

struct scan {
    proto_scan *out;
    proto_document *document;
    const proto_place *places;
    const char *at, *end;
    const char *from; /* of what the parser has not been given yet */
    int base;         /* steps above the root */
    int n_levels;
    struct level levels[PROTO_JSON_DEPTH];
    uint32_t here;              /* bit i: the next value is at places[i] or on the way to it */
    const proto_place *data_of; /* the next value is the flat form of this place */
    const char *key, *key_end;  /* the last string */
};

/* An array of numbers that is being read. */
struct array {
    proto_numbers *numbers;
    proto_store *store;
    int depth;                     /* of open arrays; at numbers->axes we are among numbers */
    size_t length[PROTO_MAX_AXES]; /* elements so far of those that are open, begun ones included */
};

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

/* The end of the string that begins at `at`, quotes included, or of the text. *plain: the parser can have nothing
 * against it. */
static const char *skip_string(const char *at, const char *end, bool *plain) {
    *plain = true;
    for (at++; at < end && *at != '"'; at++) {
        *plain &= *at >= ' ' && *at <= '~' && *at != '\\';
        at += *at == '\\' && at + 1 < end;
    }
    *plain &= at < end;
    return at < end ? at + 1 : end;
}

/* The value of a hexadecimal digit, 16 when it is none. */
static unsigned hex_of(char c) {
    unsigned lower = (unsigned char)c | 0x20u;
    return c >= '0' && c <= '9' ? (unsigned)(c - '0') : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : 16;
}

/* Whether a key, as it is written, is `name`, which has only plain characters. */
bool proto_key_is(const char *key, const char *end, const char *name) {
    for (; *name; name++) {
        const unsigned code = (unsigned char)*name;
        if (key < end && *key == *name)
            key++;
        else if (end - key >= 6 && memcmp(key, "\\u00", 4) == 0 && hex_of(key[4]) == code >> 4 &&
                 hex_of(key[5]) == (code & 15))
            key += 6;
        else
            return false;
    }
    return key == end;
}

static void note_not_a_number(struct scan *s, const char *at) {
    if (!s->out->not_a_number && (proto_begins(at, s->end, "NaN") || proto_begins(at, s->end, "Infinity")))
        s->out->not_a_number = at;
}

/* ---- what the parser reads --------------------------------------------------------------------------------------- */

static bool give(struct scan *s, const char *before, const char *begin, const char *end) {
    proto_scan *out = s->out;
    proto_piece *pieces = proto_json_grow(out->pieces, out->n, &out->capacity, sizeof *pieces, false);
    if (!pieces)
        return false;
    out->pieces = pieces;
    proto_piece *piece = &pieces[out->n++];
    *piece = (proto_piece){.begin = begin, .end = end};
    snprintf(piece->before, sizeof piece->before, "%s", before);
    return true;
}

/* At what cannot be: the parser must fail right here. */
static bool stop(struct scan *s, bool after_value) {
    note_not_a_number(s, s->at + (s->at < s->end && *s->at == '-'));
    s->out->stopped = true;
    s->from = s->end;
    return give(s, after_value ? " " : ", ", s->at, s->end);
}

/* One level more, of `depth`: whether that is too many. */
static bool is_too_deep(struct scan *s, int depth) {
    if (depth < PROTO_JSON_DEPTH)
        return false;
    s->out->too_deep = s->at;
    return true;
}

/* ---- places ------------------------------------------------------------------------------------------------------ */

/* Those of `open` whose next step is the member, or any element when there is no key. */
static uint32_t step(const struct scan *s, uint32_t open, int depth, const char *key, const char *key_end) {
    uint32_t here = 0;
    for (int i = 0; depth < PROTO_MAX_STEPS && open >> i; i++) {
        const char *name = s->places[i].steps[depth];
        if (open >> i & 1 && name && (key ? *name && proto_key_is(key, key_end, name) : !*name))
            here |= 1u << i;
    }
    return here;
}

/* The place where the next value is, or NULL. */
static const proto_place *place_here(const struct scan *s) {
    const int depth = s->base + s->n_levels;
    for (int i = 0; depth <= PROTO_MAX_STEPS && s->here >> i; i++)
        if (s->here >> i & 1 && (depth == PROTO_MAX_STEPS || !s->places[i].steps[depth]))
            return &s->places[i];
    return NULL;
}

/* ---- arrays of numbers ------------------------------------------------------------------------------------------- */

static void find_fault(struct array *a, proto_fault_kind kind, int axes, int64_t length, int64_t wanted) {
    proto_fault *fault = &a->numbers->fault;
    if (fault->kind != PROTO_FAULT_NONE)
        return;
    *fault = (proto_fault){.kind = kind, .axes = axes, .length = length, .wanted = wanted};
    for (int i = 0; i < axes; i++)
        fault->at[i] = a->length[i] - 1;
}

/* At the element that has just begun. */
static void find_misplaced(struct array *a) {
    const int axes = a->depth;
    find_fault(a, PROTO_FAULT_MISPLACED, axes, 0, axes < a->numbers->axes ? a->numbers->shape[axes] : -1);
}

/* One element more of the innermost array, unless that is deeper than it may be. */
static void count_element(struct array *a) {
    if (a->depth > 0 && a->depth <= a->numbers->axes)
        a->length[a->depth - 1]++;
}

/* Whether numbers are stored at the moment. */
static bool among_numbers(const struct array *a) {
    return a->depth == a->numbers->axes && a->numbers->fault.kind == PROTO_FAULT_NONE;
}

/* Append a number; *fits: it is one of the type. */
static inline bool put(struct array *a, const proto_number *number, bool *fits) {
    const bool integer = number->kind == PROTO_NUMBER_INTEGER;
    const bx_dtype dtype = a->numbers->dtype;
    proto_store *store = a->store;
    *fits = true;
    if (store->n == store->capacity) {
        void *data = proto_json_grow(store->data, store->n, &store->capacity, bx_dtype_bytes(dtype), true);
        if (!data)
            return false;
        store->data = data;
    }
    if (dtype == BX_F32)
        ((float *)store->data)[store->n] = (float)number->value;
    else if (dtype == BX_F64)
        ((double *)store->data)[store->n] = number->value;
    else if (dtype == BX_I64 && integer)
        ((int64_t *)store->data)[store->n] = number->integer;
    else if (dtype == BX_I32 && integer && number->integer == (int32_t)number->integer)
        ((int32_t *)store->data)[store->n] = (int32_t)number->integer;
    else if (dtype == BX_BOOL && integer && number->integer >> 1 == 0)
        ((uint8_t *)store->data)[store->n] = (uint8_t)number->integer;
    else
        *fits = false;
    store->n += *fits;
    return true;
}

/* A number that has no place here, [at, end): if it is the culprit, the parser reads one of its kind that is in
 * range; or itself, to say that it is not, where integers are wanted. */
static bool misplace_number(struct scan *s, struct array *a, const proto_number *number, const char *at,
                            const char *end) {
    const bool integers = a->numbers->dtype != BX_F32 && a->numbers->dtype != BX_F64;
    char text[24] = ", 0.5";
    if (a->numbers->fault.kind != PROTO_FAULT_NONE)
        return true;
    find_misplaced(a);
    if (integers && (number->kind == PROTO_NUMBER_LONG || isinf(number->value)))
        return give(s, ", ", at, end);
    if (number->kind == PROTO_NUMBER_INTEGER)
        snprintf(text, sizeof text, ", %lld", (long long)number->integer);
    else if (number->kind == PROTO_NUMBER_LONG)
        snprintf(text, sizeof text, ", %lld", number->value < 0 ? LLONG_MIN : LLONG_MAX);
    return give(s, text, s->at, s->at);
}

/* Read numbers from the first digit or sign on, as far as they are separated as writers do. Leaves s->at behind the
 * last one, or where it was when there is none. False when there is no memory. */
static bool read_numbers(struct scan *s, struct array *a) {
    const char *at = s->at;
    proto_number number;
    bool fits = true, stores = among_numbers(a);
    do {
        const char *next = proto_number_read(at, s->end, &number);
        if (!next)
            return true; /* behind a comma, the caller sees the same bytes again */
        count_element(a);
        if (stores && !put(a, &number, &fits))
            return false;
        if ((!stores || !fits) && !misplace_number(s, a, &number, at, next))
            return false;
        s->at = at = next;
        stores &= fits;
        if (at == s->end || *at != ',')
            return true;
        at++;
        at += at < s->end && *at == ' ';
    } while (at < s->end && (*at == '-' || (*at >= '0' && *at <= '9')));
    return true;
}

static const char *skip_word(const char *at, const char *end) {
    static const char *const words[] = {"null", "true", "false"};
    for (size_t i = 0; i < 3; i++)
        if (proto_begins(at, end, words[i]))
            return at + strlen(words[i]);
    return at;
}

/* The end of an object, or of the part that may be one; NULL when it is too deep. */
static const char *skip_object(struct scan *s, int depth) {
    const char *end = s->end;
    bool plain;
    int open = 0;
    while (s->at < end && *s->at != '\0') {
        const char c = *s->at;
        if (c == '"') {
            s->at = skip_string(s->at, end, &plain);
            continue;
        }
        if (c == '{' || c == '[') {
            if (is_too_deep(s, depth + open))
                return NULL;
            open++;
        }
        if (c == 'N' || c == 'I')
            note_not_a_number(s, s->at);
        s->at++;
        if ((c == '}' || c == ']') && --open == 0)
            break;
    }
    return s->at;
}

/* What is neither a number nor an array. Leaves s->at where it was when it is no value. */
static bool read_other(struct scan *s, struct array *a) {
    const char *begin = s->at;
    const bool boolean = a->numbers->dtype == BX_BOOL && (*begin == 't' || *begin == 'f') && among_numbers(a);
    bool plain = true;
    if (*begin == '"')
        s->at = skip_string(begin, s->end, &plain);
    else if (*begin == '{')
        plain = !skip_object(s, s->n_levels + a->depth);
    else
        s->at = skip_word(begin, s->end);
    if (s->at == begin || s->out->too_deep)
        return true;
    count_element(a);
    if (boolean) {
        const proto_number number = {.kind = PROTO_NUMBER_INTEGER, .integer = *begin == 't'};
        return put(a, &number, &plain);
    }
    /* Once there is a culprit, the parser need only judge what may be wrong. */
    const bool culprit = a->numbers->fault.kind == PROTO_FAULT_NONE && a->depth <= a->numbers->axes;
    if (culprit)
        find_misplaced(a);
    return (plain && !culprit) || give(s, ", ", begin, s->at);
}

static bool open_array(struct scan *s, struct array *a) {
    if (is_too_deep(s, s->n_levels + a->depth))
        return true;
    count_element(a);
    if (a->depth == a->numbers->axes && a->numbers->fault.kind == PROTO_FAULT_NONE) {
        find_misplaced(a);
        if (!give(s, ", []", s->at, s->at))
            return false;
    }
    if (a->depth < a->numbers->axes)
        a->length[a->depth] = 0;
    a->depth++;
    s->at++;
    return true;
}

static void close_array(struct scan *s, struct array *a) {
    const int axis = --a->depth;
    if (axis < a->numbers->axes) {
        int64_t *length = &a->numbers->shape[axis];
        const int64_t n = (int64_t)a->length[axis];
        if (axis == 0 || *length < 0)
            *length = n;
        else if (*length != n)
            find_fault(a, PROTO_FAULT_RAGGED, axis, n, *length);
    }
    s->at++;
}

/* From the bracket that opens an array at a place to behind the one that closes it. */
static bool read_elements(struct scan *s, struct array *a) {
    bool after_value = false, fresh = false;
    if (!open_array(s, a))
        return false;
    for (fresh = true; a->depth > 0 && !s->out->too_deep;) {
        const char *begin = s->at = proto_skip_space(s->at, s->end);
        const char c = begin < s->end ? *begin : '\0';
        bool fine = true;
        if (c == ']' && (after_value || fresh)) {
            close_array(s, a);
            after_value = true;
        } else if (after_value) {
            s->at += c == ',';
            after_value = s->at == begin;
        } else if (c == '[') {
            fine = open_array(s, a);
        } else if (c == '-' || (c >= '0' && c <= '9')) {
            fine = read_numbers(s, a);
            after_value = s->at > begin;
        } else if (c != '\0') {
            fine = read_other(s, a);
            after_value = s->at > begin;
        }
        fresh = c == '[' && !after_value;
        if (!fine)
            return false;
        if (s->at == begin && !s->out->too_deep)
            return stop(s, after_value);
    }
    return true;
}

/* The brackets that follow one another here, as many as the place allows. */
static int count_axes(const struct scan *s, const proto_place *place) {
    int axes = 0;
    for (const char *at = s->at; at < s->end && *at == '[' && axes < place->axes; axes++)
        at = proto_skip_space(at + 1, s->end);
    return axes > place->fewest_axes ? axes : place->fewest_axes;
}

/* The member of the object that begins here which tells the dtype. Mostly it stands before the numbers; if not, it is
 * looked for behind them. */
static bx_dtype find_dtype(const struct scan *s, const char *object) {
    const char *key = object, *key_end = object;
    bool is_value = false, plain;
    int depth = 0;
    for (const char *at = object + 1; at < s->end && depth >= 0;) {
        const char c = *at;
        if (c != '"') {
            depth += (c == '{' || c == '[') - (c == '}' || c == ']');
            if (depth == 0 && (c == ':' || c == ','))
                is_value = c == ':';
            at++;
            continue;
        }
        const char *begin = at + 1;
        at = skip_string(at, s->end, &plain);
        const char *end = at > begin ? at - 1 : begin;
        if (depth == 0 && is_value && proto_key_is(key, key_end, "datatype"))
            return proto_datatype_stored(begin, end);
        if (depth == 0 && !is_value) {
            key = begin;
            key_end = end;
        }
    }
    return proto_datatype_stored(NULL, NULL);
}

/* What the numbers of the object that is open become; looked for once, however many arrays it has. */
static bx_dtype dtype_beside(struct scan *s) {
    struct level *level = &s->levels[s->n_levels - 1];
    if (!level->typed)
        level->dtype = find_dtype(s, level->begin);
    level->typed = true;
    return level->dtype;
}

/* The array at `place` that begins here. */
static bool read_array(struct scan *s, const proto_place *place) {
    proto_document *document = s->document;
    const bool flat = s->data_of != NULL;
    char index[24];
    snprintf(index, sizeof index, "%zu", document->n_arrays);
    proto_numbers *arrays =
        proto_json_grow(document->arrays, document->n_arrays, &document->capacity, sizeof *arrays, false);
    if (!arrays)
        return false;
    document->arrays = arrays;
    if (!give(s, "", s->from, s->at + 1) || !give(s, index, s->at + 1, s->at + 1))
        return false;
    proto_numbers *numbers = &arrays[document->n_arrays++];
    const bx_dtype dtype = place->dtype == BX_N_DTYPES ? dtype_beside(s) : place->dtype;
    struct array a = {.numbers = numbers, .store = &document->stores[dtype]};
    *numbers = (proto_numbers){.place = place,
                               .dtype = dtype,
                               .flat = flat,
                               .axes = flat ? 1 : count_axes(s, place),
                               .shape = {-1, -1, -1},
                               .first = a.store->n};
    if (place->last && !flat)
        numbers->shape[numbers->axes - 1] = place->last;
    if (!read_elements(s, &a))
        return false;
    if (!s->out->stopped && !s->out->too_deep)
        s->from = s->at - 1; /* the parser sees the array's own bracket */
    return true;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static bool open_level(struct scan *s) {
    const bool array = *s->at == '[';
    if (is_too_deep(s, s->n_levels))
        return true;
    const proto_place *place = s->data_of ? s->data_of : place_here(s);
    if (array && place)
        return read_array(s, place);
    const uint32_t open = s->data_of ? 0 : s->here;
    s->here = array ? step(s, open, s->base + s->n_levels, NULL, NULL) : 0;
    s->levels[s->n_levels++] =
        (struct level){.begin = s->at, .open = open, .array = array, .flat = s->data_of ? NULL : place};
    s->data_of = NULL;
    s->at++;
    return true;
}

/* What the value after a comma or a colon is. */
static void begin_value(struct scan *s) {
    const struct level *level = s->n_levels > 0 ? &s->levels[s->n_levels - 1] : NULL;
    const bool member = *s->at == ':';
    s->here = 0;
    s->data_of = NULL;
    if (level && level->array != member && level->open)
        s->here = step(s, level->open, s->base + s->n_levels - 1, member ? s->key : NULL, s->key_end);
    if (level && member && level->flat && proto_key_is(s->key, s->key_end, "data"))
        s->data_of = level->flat;
    s->at++;
}

static bool scan(struct scan *s) {
    bool plain;
    while (s->at < s->end && !s->out->too_deep && !s->out->stopped) {
        switch (*s->at) {
        case '"':
            s->key = s->at + 1;
            s->at = skip_string(s->at, s->end, &plain);
            s->key_end = s->at > s->key ? s->at - 1 : s->key;
            break;
        case '[':
        case '{':
            if (!open_level(s))
                return false;
            break;
        case ']':
        case '}':
            s->n_levels -= s->n_levels > 0;
            s->at++;
            break;
        case ',':
        case ':':
            begin_value(s);
            break;
        case 'N':
        case 'I':
            note_not_a_number(s, s->at++);
            break;
        case '\0': /* the parser overlooks one behind a number */
            return give(s, "", s->from, s->at) && stop(s, true);
        default:
            s->at++;
        }
    }
    return s->out->too_deep || s->from == s->end || give(s, "", s->from, s->end);
}

bool proto_scan_text(proto_scan *out, proto_document *document, const char *text, size_t bytes, const char *member,
                     const proto_place *places) {
    struct scan s = {.out = out, .document = document, .places = places, .from = text, .at = text, .end = text + bytes};
    for (int i = 0; places && places[i].steps[0]; i++)
        s.here |= 1u << i;
    if (member) {
        s.here = step(&s, s.here, 0, member, member + strlen(member));
        s.base = 1;
    }
    return scan(&s);
}
