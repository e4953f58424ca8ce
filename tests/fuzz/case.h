/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A batch made of an input's bytes, and the bodies that say it: JSON in two forms, safetensors in any order and dtype,
 * inferences in two forms. Its numbers are short binary fractions, the same in every dtype and in decimals.
 */
#ifndef CASE_H
#define CASE_H

#include <stdarg.h>
#include <stddef.h>

#include "fuzz.h"

enum { MOST_IMAGES = 3, MOST_OBJECTS = 12, MOST_COLUMNS = 8, MOST_SMALL = 40 };
enum { LARGE = BX_BLOCK + 33, LARGE_IMAGES = 2, LARGE_COLUMNS = 2, MOST_ROWS = LARGE_IMAGES * LARGE };
enum { LONG = 1500 }; /* bytes of an input that may make a large one, so that few do */

/* Shapes as in boxloss.h. */
typedef struct scene {
    int N, P, C, G;
    bool large; /* images of two blocks, whose numbers are made from a few bytes */
    bool plain; /* the criterion is a preset, as it is */
    bool with_ignore;
    char criterion[512]; /* a name if plain, else an object */
    char include[96];
    int counts[MOST_IMAGES], labels[MOST_OBJECTS], ignore[MOST_OBJECTS];
    float boxes[MOST_OBJECTS][4];
    float priors[LARGE][4], loc[MOST_ROWS][4], conf[MOST_ROWS * LARGE_COLUMNS]; /* written as far as they count */
} scene;

/* ---- from bytes -------------------------------------------------------------------------------------------------- */

/* A byte, or of a large scene one that is made. */
static inline uint32_t scene_byte(const scene *s, bytes *b, uint32_t *state) {
    return s->large ? next_number(state) >> 24 : take(b);
}

static inline void scene_criterion(scene *s, bytes *b, int preset) {
    static const char *const names[] = {"ssd-multibox", "ssd-multibox-l1", "retinanet-focal", "ssd-keras"};
    static const char *const knobs[] = {
        "\"matcher\":{\"force\":\"first\"}",
        "\"matcher\":{\"force\":\"greedy\"}",
        "\"matcher\":{\"force\":\"none\"}",
        "\"matcher\":{\"positive_iou\":0.6,\"negative_iou\":0.3}",
        "\"matcher\":{\"iou\":\"sizes\"}",
        "\"matcher\":{\"ignore_iof\":0.5}",
        "\"localization\":{\"kind\":\"l1\"}",
        "\"localization\":{\"kind\":\"huber\",\"delta\":0.5}",
        "\"localization\":{\"kind\":\"jump_l1\"}",
        "\"localization\":{\"kind\":\"giou\"}",
        "\"localization\":{\"kind\":\"diou\"}",
        "\"localization\":{\"kind\":\"ciou\"}",
        "\"normalizer\":{\"kind\":\"image_positives\"}",
        "\"normalizer\":{\"kind\":\"value\",\"value\":2.5}",
        "\"mining\":{\"kind\":\"hard_negative\",\"scope\":\"batch\"}",
        "\"mining\":{\"kind\":\"hard_negative\",\"ratio\":1.5,\"min_negatives\":3}",
        "\"mining\":{\"kind\":\"none\"}",
        "\"classification\":{\"label_smoothing\":0.25}",
        "\"classification\":{\"kind\":\"sigmoid_focal\",\"gamma\":1.5}",
        "\"classification\":{\"kind\":\"softmax_ce\",\"background\":\"last\"}",
        "\"weights\":{\"loc\":2,\"conf\":0.5}",
    };
    const int n = (int)(sizeof knobs / sizeof *knobs), a = take_below(b, n), c = take_below(b, n);
    if (s->plain) {
        snprintf(s->criterion, sizeof s->criterion, "%s", names[preset]);
        return;
    }
    const bool two = strncmp(knobs[a], knobs[c], 5) != 0; /* of different members */
    snprintf(s->criterion, sizeof s->criterion, "{\"base\":\"%s\",%s%s%s}", names[preset], knobs[a], two ? "," : "",
             two ? knobs[c] : "");
}

static inline void scene_objects(scene *s, bytes *b) {
    for (int i = 0; i < s->N; i++) {
        s->counts[i] = take_below(b, 5);
        for (int j = 0; j < s->counts[i]; j++, s->G++) {
            float *box = s->boxes[s->G];
            box[0] = (float)take_below(b, 33) / 64;
            box[1] = (float)take_below(b, 33) / 64;
            box[2] = box[0] + (float)(1 + take_below(b, 32)) / 64;
            box[3] = box[1] + (float)(1 + take_below(b, 32)) / 64;
            s->labels[s->G] = take_below(b, s->C); /* perhaps one too many */
            s->ignore[s->G] = s->with_ignore && take_below(b, 4) == 0;
        }
    }
}

/* Up to MOST_SMALL, mostly few. */
static inline int scene_priors(bytes *b) {
    const int x = take_below(b, 64);
    return 1 + x * x * MOST_SMALL / (64 * 64);
}

/* `large`: it may be. */
static inline void scene_make(scene *s, bytes *b, bool large) {
    static const char *const includes[] = {"",        "images,classes", "levels,objects",  "assignment",
                                           "targets", "gradients",      "dense_gradients", "images,gradients,objects"};
    const uint32_t how = take(b);
    const int preset = take_below(b, 4);
    memset(s, 0, offsetof(scene, priors));
    s->large = large && how % 16 == 15 && preset == 0 && b->end - b->at >= LONG;
    s->plain = how >> 4 & 1;
    s->with_ignore = how >> 5 & 1;
    strcpy(s->include, includes[how >> 6 | (take(b) & 4)]);
    scene_criterion(s, b, preset);
    s->N = 1 + take_below(b, MOST_IMAGES);
    s->P = scene_priors(b);
    s->C = 2 + take_below(b, MOST_COLUMNS - 1);
    if (s->large) {
        s->N = LARGE_IMAGES;
        s->P = LARGE;
        s->C = LARGE_COLUMNS;
    }
    scene_objects(s, b);
    uint32_t state = 1 + take(b);
    for (int i = 0; i < s->P; i++) {
        float *prior = s->priors[i];
        prior[0] = (float)(scene_byte(s, b, &state) % 65) / 64;
        prior[1] = (float)(scene_byte(s, b, &state) % 65) / 64;
        prior[2] = (float)(1 + scene_byte(s, b, &state) % 32) / 64;
        prior[3] = (float)(1 + scene_byte(s, b, &state) % 32) / 64;
    }
    for (int i = 0; i < s->N * s->P * 4; i++) {
        s->loc[i / 4][i % 4] = ((float)scene_byte(s, b, &state) - 128) / 64;
    }
    for (int i = 0; i < s->N * s->P * s->C; i++) {
        const float byte = (float)scene_byte(s, b, &state);
        s->conf[i] = preset == 3 ? byte / 256 : (byte - 128) / 16; /* probabilities, or logits */
    }
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

static inline void say(proto_buffer *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline void say(proto_buffer *out, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    const int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    CHECK(n >= 0 && (size_t)n < sizeof text, "text");
    proto_buffer_add(out, text, (size_t)n);
}

/* Numbers (n0,n1,n2), nested; n0 or n1 0: without that axis. */
static inline void say_nested(proto_buffer *out, const float *values, int n0, int n1, int n2) {
    const int outer = n0 ? n0 : 1, rows = n1 ? n1 : 1;
    say(out, "%s", n0 ? "[" : "");
    for (int i = 0; i < outer; i++) {
        say(out, "%s%s", i ? "," : "", n1 ? "[" : "");
        for (int j = 0; j < rows; j++) {
            say(out, "%s[", j ? "," : "");
            for (int k = 0; k < n2; k++) {
                say(out, "%s%.9g", k ? "," : "", (double)values[(i * rows + j) * n2 + k]);
            }
            say(out, "]");
        }
        say(out, "%s", n1 ? "]" : "");
    }
    say(out, "%s", n0 ? "]" : "");
}

static inline void say_dense(proto_buffer *out, bool flat, const float *values, int n0, int n1, int n2) {
    if (!flat) {
        say_nested(out, values, n0, n1, n2);
        return;
    }
    say(out, "{\"shape\":[%d,%d,%d],\"data\":", n0, n1, n2);
    say_nested(out, values, 0, 0, n0 * n1 * n2);
    say(out, "}");
}

static inline void say_integers(proto_buffer *out, const int *values, int n) {
    say(out, "[");
    for (int i = 0; i < n; i++) {
        say(out, "%s%d", i ? "," : "", values[i]);
    }
    say(out, "]");
}

static inline void scene_json(const scene *s, bool flat, proto_buffer *out) {
    int g = 0;
    say(out, "{\"criterion\":%s%s%s,\"include\":\"%s\",\"priors\":", s->plain ? "\"" : "", s->criterion,
        s->plain ? "\"" : "", s->include);
    say_nested(out, s->priors[0], 0, s->P, 4);
    say(out, ",\"predictions\":{\"loc\":");
    say_dense(out, flat, s->loc[0], s->N, s->P, 4);
    say(out, ",\"conf\":");
    say_dense(out, flat, s->conf, s->N, s->P, s->C);
    say(out, "},\"annotations\":[");
    for (int i = 0; i < s->N; g += s->counts[i++]) {
        say(out, "%s{\"boxes\":[", i ? "," : "");
        for (int j = 0; j < s->counts[i]; j++) {
            say(out, "%s", j ? "," : "");
            say_nested(out, s->boxes[g + j], 0, 0, 4);
        }
        say(out, "],\"labels\":");
        say_integers(out, s->labels + g, s->counts[i]);
        if (s->with_ignore) {
            say(out, ",\"ignore\":");
            say_integers(out, s->ignore + g, s->counts[i]);
        }
        say(out, "}");
    }
    say(out, "]}");
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* One that a binary body has. */
typedef struct piece {
    const char *name;
    const float *reals; /* or */
    const int *integers;
    bx_dtype dtype;
    int rank, shape[3];
} piece;

enum { MOST_PIECES = 7 };

static inline size_t piece_count(const piece *p) {
    size_t n = 1;
    for (int i = 0; i < p->rank; i++) {
        n *= (size_t)p->shape[i];
    }
    return n;
}

/* Of a float32 that is zero, or normal and exact in 16 bits. */
static inline uint16_t half_of(uint32_t bits) {
    const uint32_t sign = bits >> 16 & 0x8000, exponent = (bits >> 23 & 255) - 127 + 15;
    return (uint16_t)(bits << 1 ? sign | exponent << 10 | (bits >> 13 & 0x3ff) : sign);
}

static inline void piece_write(const piece *p, proto_buffer *out) {
    const size_t n = piece_count(p), bytes = bx_dtype_bytes(p->dtype);
    char some[1024];
    for (size_t i = 0, filled = 0; i < n; i++) {
        const float real = p->reals ? p->reals[i] : 0;
        const int64_t integer = p->integers ? p->integers[i] : 0; /* little-endian: its beginning is the shorter one */
        const double wide = (double)real;
        uint32_t bits;
        memcpy(&bits, &real, 4);
        const uint16_t top = (uint16_t)(bits >> 16);
        const uint16_t half = half_of(bits);
        const void *from = p->integers           ? (const void *)&integer
                           : p->dtype == BX_F64  ? (const void *)&wide
                           : p->dtype == BX_BF16 ? (const void *)&top
                           : p->dtype == BX_F16  ? (const void *)&half
                                                 : (const void *)&real;
        memcpy(some + filled, from, bytes);
        filled += bytes;
        if (filled == sizeof some || i + 1 == n) {
            proto_buffer_add(out, some, filled);
            filled = 0;
        }
    }
}

/* The tensors in an order, and in dtypes, that the input chooses. */
static inline int scene_pieces(const scene *s, bytes *b, bool vary, piece pieces[MOST_PIECES]) {
    static const bx_dtype real[] = {BX_F32, BX_F16, BX_BF16, BX_F64}, whole[] = {BX_I64, BX_I32, BX_I16, BX_I8, BX_U8};
    const piece all[] = {
        {"counts", NULL, s->counts, vary && take_below(b, 2) ? BX_I32 : BX_I64, 1, {s->N}},
        {"labels", NULL, s->labels, vary ? whole[take_below(b, 5)] : BX_I64, 1, {s->G}},
        {"boxes", s->boxes[0], NULL, vary ? real[take_below(b, 4)] : BX_F32, 2, {s->G, 4}},
        {"priors", s->priors[0], NULL, vary && take_below(b, 2) ? BX_F64 : BX_F32, 2, {s->P, 4}},
        {"conf", s->conf, NULL, vary ? real[take_below(b, 4)] : BX_F32, 3, {s->N, s->P, s->C}},
        {"loc", s->loc[0], NULL, vary ? real[take_below(b, 4)] : BX_F32, 3, {s->N, s->P, 4}},
        {"ignore", NULL, s->ignore, BX_BOOL, 1, {s->G}},
    };
    const int n = s->with_ignore ? MOST_PIECES : MOST_PIECES - 1;
    memcpy(pieces, all, sizeof all);
    for (int i = n - 1; vary && i > 0; i--) {
        const int j = take_below(b, i + 1);
        const piece other = pieces[i];
        pieces[i] = pieces[j];
        pieces[j] = other;
    }
    return n;
}

static inline void scene_tensors(const scene *s, bytes *b, bool vary, proto_buffer *out) {
    static const char *const names[BX_N_DTYPES] = {
        [BX_F32] = "F32", [BX_F16] = "F16", [BX_BF16] = "BF16", [BX_F64] = "F64", [BX_I64] = "I64",
        [BX_I32] = "I32", [BX_I16] = "I16", [BX_I8] = "I8",     [BX_U8] = "U8",   [BX_BOOL] = "BOOL"};
    piece pieces[MOST_PIECES];
    const int n = scene_pieces(s, b, vary, pieces);
    proto_buffer header = {0};
    size_t at = 0;
    say(&header, "{\"__metadata__\":{\"include\":\"%s\",\"criterion\":\"", s->include);
    for (const char *c = s->criterion; *c; c++) {
        say(&header, *c == '"' ? "\\%c" : "%c", *c);
    }
    say(&header, "\"}");
    for (int i = 0; i < n; i++) {
        const size_t bytes = piece_count(&pieces[i]) * bx_dtype_bytes(pieces[i].dtype);
        say(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":", pieces[i].name, names[pieces[i].dtype]);
        say_integers(&header, pieces[i].shape, pieces[i].rank);
        say(&header, ",\"data_offsets\":[%zu,%zu]}", at, at + bytes);
        at += bytes;
    }
    say(&header, "}");
    proto_buffer_add(out, &(uint64_t){header.bytes}, 8);
    proto_buffer_add(out, header.data, header.bytes);
    for (int i = 0; i < n; i++) {
        piece_write(&pieces[i], out);
    }
    proto_buffer_free(&header);
}

/* Of a plain scene; returns where the JSON ends. */
static inline int64_t scene_infer(const scene *s, bytes *b, bool binary, proto_buffer *out) {
    piece pieces[MOST_PIECES];
    const int n = scene_pieces(s, b, binary, pieces);
    say(out, "{\"parameters\":{\"include\":\"%s\"},\"inputs\":[", s->include);
    for (int i = 0; i < n; i++) {
        const piece *p = &pieces[i];
        const size_t count = piece_count(p);
        say(out, "%s{\"name\":\"%s\",\"datatype\":\"%s\",\"shape\":", i ? "," : "", p->name,
            proto_datatype_name(p->dtype));
        say_integers(out, p->shape, p->rank);
        if (binary) {
            say(out, ",\"parameters\":{\"binary_data_size\":%zu}}", count * bx_dtype_bytes(p->dtype));
            continue;
        }
        say(out, ",\"data\":");
        if (p->dtype == BX_BOOL) {
            say(out, "[");
            for (size_t j = 0; j < count; j++) {
                say(out, "%s%s", j ? "," : "", p->integers[j] ? "true" : "false");
            }
            say(out, "]");
        } else if (p->integers) {
            say_integers(out, p->integers, (int)count);
        } else {
            say_nested(out, p->reals, 0, 0, (int)count);
        }
        say(out, "}");
    }
    say(out, "]}");
    const int64_t end = (int64_t)out->bytes;
    for (int i = 0; binary && i < n; i++) {
        piece_write(&pieces[i], out);
    }
    return end;
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

/* Cut the times out of an answer's text, which ends in a NUL then. */
static inline void without_timing(proto_buffer *text) {
    proto_buffer_add(text, "", 1);
    CHECK(!text->failed, "no memory");
    char *at = strstr(text->data, "\"timing_ms\":{"), *end = at ? strchr(at, '}') : NULL;
    if (end) {
        memmove(at, end, strlen(end) + 1);
    }
}

#endif
