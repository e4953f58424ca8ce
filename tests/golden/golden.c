/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every case directory under tests/golden: the request is decoded, computed on every kernel level, and on a GPU where
 * there is one, and answered; the answer is held against expect.json (an independent float64 program) and torch.json
 * (eager PyTorch). README.md says what the files are and what tolerances hold.
 *
 *   golden [directory [case...]]      run from the repository root
 */
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../support/job.h"
#include "proto.h"

enum { MAX_CASES = 1024, MAX_OPTIONS = 16, PATH_BYTES = 512 };
#define JSON_MEMORY   ((size_t)256 << 20)
#define DEVICE_MEMORY ((size_t)128 << 20)

static char wrong[400]; /* why the running case fails: the first reason; empty while it is fine */

static bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static bool fail(const char *format, ...) {
    if (!wrong[0]) {
        va_list args;
        va_start(args, format);
        vsnprintf(wrong, sizeof wrong, format, args);
        va_end(args);
    }
    return false;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

typedef struct file {
    char *data; /* NULL: there is none; ends in a NUL that `bytes` does not count */
    size_t bytes;
} file;

/* directory/name; a path that does not fit ends the program. */
static void join(char out[PATH_BYTES], const char *directory, const char *name) {
    int n = snprintf(out, PATH_BYTES, "%s/%s", directory, name);
    if (n < 0 || n >= PATH_BYTES) {
        fprintf(stderr, "golden: %s/%s is too long a path\n", directory, name);
        exit(2);
    }
}

static file read_path(const char *path) {
    file f = {NULL, 0};
    FILE *stream = fopen(path, "rb");
    if (stream) {
        size_t capacity = 1 << 16, n;
        f.data = malloc(capacity);
        while (f.data && (n = fread(f.data + f.bytes, 1, capacity - f.bytes - 1, stream)) > 0) {
            f.bytes += n;
            if (f.bytes + 1 == capacity) {
                f.data = realloc(f.data, capacity *= 2);
            }
        }
        if (!f.data) {
            fprintf(stderr, "golden: no memory for %s\n", path);
            exit(2);
        }
        f.data[f.bytes] = '\0';
        fclose(stream);
    }
    return f;
}

static file read_file(const char *directory, const char *name) {
    char path[PATH_BYTES];
    join(path, directory, name);
    return read_path(path);
}

/* The request of a case, which may be another case's. */
static file read_request(const char *directory, proto_encoding *encoding) {
    char path[PATH_BYTES];
    file link = read_file(directory, "request.link");
    if (link.data) {
        link.data[strcspn(link.data, "\r\n")] = '\0';
        join(path, directory, link.data);
        free(link.data);
    } else {
        join(path, directory, "request.safetensors");
    }
    file request = read_path(path);
    if (!request.data) {
        join(path, directory, "request.json");
        request = read_path(path);
    }
    const char *end = strrchr(path, '.');
    *encoding = end && !strcmp(end, ".json") ? PROTO_JSON : PROTO_SAFETENSORS;
    return request;
}

static json_t *read_json(const char *directory, const char *name) {
    file f = read_file(directory, name);
    json_error_t error;
    json_t *tree = f.data ? json_loadb(f.data, f.bytes, 0, &error) : NULL;
    if (f.data && !tree) {
        fail("%s: line %d: %s", name, error.line, error.text);
    }
    free(f.data);
    return tree;
}

/* ---- comparing an answer with what is owed ----------------------------------------------------------------------- */

/* Member names that an answer may have beyond expect.json. */
static bool is_ignored(const char *path, const char *name) {
    return !*path && (!strcmp(name, "timing_ms") || !strcmp(name, "request_id"));
}

static bool compare(const char *path, const json_t *owed, const json_t *got);

static bool compare_objects(const char *path, const json_t *owed, const json_t *got) {
    const char *name;
    json_t *value;
    char below[PATH_BYTES];
    json_object_foreach((json_t *)owed, name, value) {
        snprintf(below, sizeof below, "%s/%s", path, name);
        const json_t *other = json_object_get(got, name);
        if (!other) {
            return fail("%s is missing", below);
        }
        if (!compare(below, value, other)) {
            return false;
        }
    }
    json_object_foreach((json_t *)got, name, value) {
        if (!json_object_get(owed, name) && !is_ignored(path, name)) {
            return fail("%s/%s is there and was not asked for", path, name);
        }
    }
    return true;
}

/* Numbers of one prior's row of gradients. */
static bool is_gradient_row(const char *path, const json_t *array) {
    bool inside = !strncmp(path, "/gradients/", 11) || !strncmp(path, "/dense_gradients/", 17);
    return inside && strncmp(path, "/gradients/index", 16) != 0 && json_is_number(json_array_get(array, 0));
}

static bool close_rows(const char *path, const double *owed, const double *got, size_t n, double least) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        largest = fmax(largest, fmax(fabs(owed[i]), fabs(got[i])));
    }
    for (size_t i = 0; i < n; i++) {
        if (!(fabs(owed[i] - got[i]) <= 1e-5 * largest + least)) {
            return fail("%s/%zu is %.9g, %.9g is owed", path, i, got[i], owed[i]);
        }
    }
    return true;
}

static bool compare_gradient_rows(const char *path, const json_t *owed, const json_t *got) {
    static double a[BX_MAX_COLUMNS], b[BX_MAX_COLUMNS];
    size_t n = json_array_size(owed);
    for (size_t i = 0; i < n && i < BX_MAX_COLUMNS; i++) {
        a[i] = json_number_value(json_array_get(owed, i));
        b[i] = json_number_value(json_array_get(got, i));
    }
    return close_rows(path, a, b, n, 1e-12);
}

static bool compare_arrays(const char *path, const json_t *owed, const json_t *got) {
    char below[PATH_BYTES];
    if (json_array_size(owed) != json_array_size(got)) {
        return fail("%s has %zu elements, %zu are owed", path, json_array_size(got), json_array_size(owed));
    }
    if (is_gradient_row(path, owed)) {
        return compare_gradient_rows(path, owed, got);
    }
    for (size_t i = 0; i < json_array_size(owed); i++) {
        snprintf(below, sizeof below, "%s/%zu", path, i);
        if (!compare(below, json_array_get(owed, i), json_array_get(got, i))) {
            return false;
        }
    }
    return true;
}

static bool compare(const char *path, const json_t *owed, const json_t *got) {
    if (json_is_integer(owed) && json_is_integer(got)) {
        json_int_t a = json_integer_value(owed), b = json_integer_value(got);
        return a == b ? true : fail("%s is %lld, %lld is owed", path, (long long)b, (long long)a);
    }
    if (json_is_number(owed) && json_is_number(got)) { /* at least one is written as a real */
        double a = json_number_value(owed), b = json_number_value(got);
        bool close = fabs(a - b) <= 1e-6 * fmax(fabs(a), fabs(b)) + 1e-30;
        return close ? true : fail("%s is %.17g, %.17g is owed", path, b, a);
    }
    if (json_typeof(owed) != json_typeof(got)) {
        return fail("%s is of another kind", path);
    }
    if (json_is_object(owed)) {
        return compare_objects(path, owed, got);
    }
    if (json_is_array(owed)) {
        return compare_arrays(path, owed, got);
    }
    if (json_is_string(owed) && strcmp(json_string_value(owed), json_string_value(got)) != 0) {
        return fail("%s is \"%s\", \"%s\" is owed", path, json_string_value(got), json_string_value(owed));
    }
    return true;
}

/* ---- PyTorch ----------------------------------------------------------------------------------------------------- */

/* torch against the service: 1e-6 relative, and what a float32 softmax cannot tell from zero in each summed row;
 * rows: how much all of them count. */
static bool close_to_torch(const json_t *torch, const char *name, double got, double rows) {
    const json_t *value = json_object_get(torch, name);
    double owed = json_number_value(value);
    if (!json_is_number(value)) {
        return fail("torch.json: no %s", name);
    }
    double tolerance = 1e-6 * fabs(owed) + 1e-7 * rows;
    return fabs(got - owed) <= tolerance ? true : fail("torch: %s is %.9g, torch has %.9g", name, got, owed);
}

static bool losses_as_torch(const json_t *torch, const bx_result *r) {
    const bx_criterion *criterion = r->job->plan->criterion;
    double loc = 0, conf = 0;
    for (int32_t i = 0; i < r->job->plan->n_images; i++) {
        const bx_image_row *image = &r->job->images[i];
        const bx_sums *norm = &r->job->normalizers[i];
        int32_t counted = criterion->mining.kind == BX_MINING_NONE ? image->negatives : image->hard_negatives;
        loc += criterion->weights.loc * image->positives / norm->loc;
        conf += criterion->weights.conf * (image->positives / norm->conf_positive + counted / norm->conf_negative);
    }
    return close_to_torch(torch, "loss_loc", r->loss.loc, loc) &&
           close_to_torch(torch, "loss_conf", r->loss.conf, conf);
}

static bool count_as_torch(const json_t *torch, const char *name, int32_t image, int32_t got) {
    const json_t *value = json_array_get(json_object_get(torch, name), (size_t)image);
    if (!json_is_integer(value)) {
        return fail("torch.json: no %s of image %d", name, image);
    }
    return json_integer_value(value) == got ? true
                                            : fail("torch: %s of image %d is %d, torch has %lld", name, image, got,
                                                   (long long)json_integer_value(value));
}

/* [prior, class] of each positive, ascending. */
static bool classes_as_torch(const json_t *list, const bx_result *r, int32_t image) {
    size_t found = 0;
    for (int32_t p = 0; p < r->job->plan->n_priors; p++) {
        int32_t class = bx_result_prior_class(r, image, p);
        if (class < 0) {
            continue;
        }
        const json_t *pair = json_array_get(list, found++);
        if (json_integer_value(json_array_get(pair, 0)) != p || json_integer_value(json_array_get(pair, 1)) != class) {
            return fail("torch: positive %zu of image %d is another than prior %d of class %d", found - 1, image, p,
                        class);
        }
    }
    return found == json_array_size(list) ? true : fail("torch: image %d has %zu positives", image, found);
}

/* One row of the service's gradients against row `at` of torch's, which lists what is not zero; NULL: zeros. */
static bool row_as_torch(const json_t *rows, const size_t *at, const float *got, size_t width, const char *name) {
    static double a[BX_MAX_COLUMNS], b[BX_MAX_COLUMNS];
    const json_t *owed = at ? json_array_get(json_object_get(rows, name), *at) : NULL;
    char path[64];
    snprintf(path, sizeof path, "torch: gradients/%s/%zu", name, at ? *at : 0);
    if (at && json_array_size(owed) != width) {
        return fail("%s has %zu numbers", path, json_array_size(owed));
    }
    for (size_t i = 0; i < width; i++) {
        a[i] = json_number_value(json_array_get(owed, i));
        b[i] = (double)got[i];
    }
    return close_rows(path, a, b, width, 1e-9);
}

static bool gradients_as_torch(const json_t *rows, const bx_job *job) {
    const bx_plan *plan = job->plan;
    const json_t *index = json_object_get(rows, "index");
    const size_t c = (size_t)plan->n_columns;
    size_t found = 0;
    for (int64_t row = 0; row < bx_job_gradient_rows(job); row++) {
        bool sparse = plan->gradients == BX_GRADIENTS_SPARSE;
        int64_t image = sparse ? job->grad_index[2 * row] : row / plan->n_priors;
        int64_t prior = sparse ? job->grad_index[2 * row + 1] : row % plan->n_priors;
        const json_t *next = json_array_get(index, found);
        bool listed = next && json_integer_value(json_array_get(next, 0)) == image &&
                      json_integer_value(json_array_get(next, 1)) == prior;
        if (!row_as_torch(rows, listed ? &found : NULL, job->grad_loc + 4 * row, 4, "loc") ||
            !row_as_torch(rows, listed ? &found : NULL, job->grad_conf + c * (size_t)row, c, "conf")) {
            return false;
        }
        found += listed;
    }
    return found == json_array_size(index) ? true : fail("torch: row %zu of gradients/index is not listed", found);
}

static bool compare_torch(const json_t *torch, const bx_result *r) {
    const bx_job *job = r->job;
    const int32_t n = job->plan->n_images;
    const json_t *classes = json_object_get(torch, "classes"), *gradients = json_object_get(torch, "gradients");
    if (json_array_size(classes) != (size_t)n) {
        return fail("torch.json: %zu images", json_array_size(classes));
    }
    for (int32_t i = 0; i < n; i++) {
        if (!classes_as_torch(json_array_get(classes, (size_t)i), r, i) ||
            !count_as_torch(torch, "positives", i, job->images[i].positives) ||
            !count_as_torch(torch, "hard_negatives", i, job->images[i].hard_negatives)) {
            return false;
        }
    }
    return losses_as_torch(torch, r) && (!gradients || gradients_as_torch(gradients, job));
}

/* ---- the safetensors answer against the JSON one ----------------------------------------------------------------- */

/* A tensor of the file as it lies there; counts how many are asked for. */
typedef struct container {
    json_t *header;
    const char *data;
    size_t data_bytes, asked;
} container;

static const void *tensor_data(container *c, const char *name, const char *dtype, size_t n, size_t width) {
    const json_t *entry = json_object_get(c->header, name), *offsets = json_object_get(entry, "data_offsets");
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    size_t end = (size_t)json_integer_value(json_array_get(offsets, 1));
    size_t elements = 1;
    const json_t *shape = json_object_get(entry, "shape");
    for (size_t i = 0; i < json_array_size(shape); i++) {
        elements *= (size_t)json_integer_value(json_array_get(shape, i));
    }
    if (!type || strcmp(type, dtype) != 0 || elements != n || end - begin != n * width || end > c->data_bytes) {
        fail("tensor %s is not %s with %zu elements", name, dtype, n);
        return NULL;
    }
    c->asked++;
    return c->data + begin;
}

/* Numbers of a nested array, depth first, against a tensor: to the bit. */
static bool same_numbers(const char *name, const json_t *value, const char **at, bool is_float) {
    if (json_is_array(value)) {
        bool same = true;
        for (size_t i = 0; i < json_array_size(value) && same; i++) {
            same = same_numbers(name, json_array_get(value, i), at, is_float);
        }
        return same;
    }
    float f = (float)json_number_value(value);
    int32_t i = (int32_t)json_integer_value(value);
    const void *owed = is_float ? (const void *)&f : (const void *)&i;
    bool same = !memcmp(*at, owed, 4);
    if (!same && is_float && f == 0) { /* JSON has no sign of zero when a whole number is written */
        float other;
        memcpy(&other, *at, 4);
        same = other == 0;
    }
    *at += 4;
    return same ? true : fail("tensor %s differs from the JSON answer", name);
}

static bool same_scalar(container *c, const char *name, const json_t *value) {
    const void *data = tensor_data(c, name, "F64", 1, sizeof(double));
    double x = json_number_value(value);
    return data && (!memcmp(data, &x, sizeof x) || fail("tensor %s differs from the JSON answer", name));
}

static bool same_map(container *c, const char *name, const json_t *value, size_t n, bool is_float) {
    const char *data = tensor_data(c, name, is_float ? "F32" : "I32", n, 4);
    return data && same_numbers(name, value, &data, is_float);
}

/* What maps and targets travel as. */
static bool same_assignment(container *c, const json_t *map, const json_t *targets, size_t rows) {
    const json_t *objects = json_object_get(map, "objects");
    if (!same_map(c, "target_classes", json_object_get(map ? map : targets, "classes"), rows, false) ||
        (targets && !same_map(c, "target_loc", json_object_get(targets, "loc"), rows * 4, true))) {
        return false;
    }
    if (objects && !json_is_null(objects)) {
        return same_map(c, "target_objects", objects, rows, false);
    }
    return map || !json_object_get(c->header, "target_objects") ||
           tensor_data(c, "target_objects", "I32", rows, 4) != NULL;
}

static bool same_gradients(container *c, const json_t *json, const bx_job *job) {
    const json_t *sparse = json_object_get(json, "gradients"), *dense = json_object_get(json, "dense_gradients");
    const json_t *given = sparse ? sparse : dense;
    const size_t rows = (size_t)bx_job_gradient_rows(job);
    return !given ||
           ((!sparse || same_map(c, "grad_index", json_object_get(given, "index"), rows * 2, false)) &&
            same_map(c, "grad_loc", json_object_get(given, "loc"), rows * 4, true) &&
            same_map(c, "grad_conf", json_object_get(given, "conf"), rows * (size_t)job->plan->n_columns, true));
}

static bool same_tensors(container *c, const json_t *json, const bx_result *r) {
    const json_t *loss = json_object_get(json, "loss");
    const json_t *map = json_object_get(json, "assignment_map"), *targets = json_object_get(json, "targets");
    const size_t n = (size_t)r->job->plan->n_images, rows = n * (size_t)r->job->plan->n_priors;
    bool same = same_scalar(c, "loss", json_object_get(loss, "total")) &&
                same_scalar(c, "loc_loss", json_object_get(loss, "loc")) &&
                same_scalar(c, "conf_loss", json_object_get(loss, "conf"));
    const char *positives = same ? tensor_data(c, "positives", "I32", n, 4) : NULL;
    for (size_t i = 0; positives && i < n; i++) {
        if (memcmp(positives + 4 * i, &r->job->images[i].positives, 4)) {
            return fail("tensor positives differs at image %zu", i);
        }
    }
    same = same && positives && ((!map && !targets) || same_assignment(c, map, targets, rows)) &&
           same_gradients(c, json, r->job);
    size_t listed = json_object_size(c->header) - (json_object_get(c->header, "__metadata__") != NULL);
    return same && (listed == c->asked || fail("the tensor answer has %zu tensors, not %zu", listed, c->asked));
}

/* The metadata string `result` is the JSON answer without its maps. */
static bool same_metadata(const container *c, const json_t *json) {
    const char *text = json_string_value(json_object_get(json_object_get(c->header, "__metadata__"), "result"));
    json_t *inner = text ? json_loads(text, 0, NULL) : NULL, *outer = json_copy((json_t *)json);
    static const char *const arrays[] = {"assignment_map", "targets", "gradients", "dense_gradients"};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        json_object_del(outer, arrays[i]);
    }
    bool same = inner && json_equal(inner, outer);
    json_decref(inner);
    json_decref(outer);
    return same ? true : fail("the metadata string result differs from the JSON answer");
}

static bool compare_container(const proto_buffer *answer, const json_t *json, const bx_result *r) {
    uint64_t length = 0;
    if (answer->bytes >= 8) {
        memcpy(&length, answer->data, 8);
    }
    if (length == 0 || length > answer->bytes - 8) {
        return fail("the tensor answer has a header of %llu bytes", (unsigned long long)length);
    }
    container c = {.header = json_loadb(answer->data + 8, length, 0, NULL),
                   .data = answer->data + 8 + length,
                   .data_bytes = answer->bytes - 8 - length};
    bool same = c.header ? same_metadata(&c, json) && same_tensors(&c, json, r)
                         : fail("the tensor answer's header is not JSON");
    json_decref(c.header);
    return same;
}

/* ---- one case ---------------------------------------------------------------------------------------------------- */

static bool encode(proto_buffer *out, proto_encoding accept, const proto_request *request, const bx_result *r) {
    const proto_timing timing = {1.5, 0.25, 2};
    bx_error error = {0};
    if (proto_answer_encode(out, accept, request, r, &timing, "golden", (size_t)1 << 30, &error) != BX_OK) {
        return fail("answer: %s: %s", error.code, error.text);
    }
    size_t bound = proto_answer_bytes(request, r->job->plan, bx_job_gradient_rows(r->job), accept);
    return out->bytes <= bound ? true : fail("the answer has %zu bytes, more than the bound %zu", out->bytes, bound);
}

/* The answers of one finished job against everything that is owed. */
static bool judge(const char *directory, const bx_result *r, const proto_buffer *json, const proto_buffer *tensors) {
    json_error_t error;
    json_t *got = json_loadb(json->data, json->bytes, JSON_REJECT_DUPLICATES, &error);
    json_t *owed = read_json(directory, "expect.json"), *torch = read_json(directory, "torch.json");
    bool good = got || fail("the answer is not JSON: %s", error.text);
    good = good && (owed || fail("expect.json cannot be read"));
    good = good && compare("", owed, got);
    good = good && (!torch || compare_torch(torch, r));
    good = good && compare_container(tensors, got, r);
    json_decref(got);
    json_decref(owed);
    json_decref(torch);
    return good && !wrong[0];
}

/* Compute on one level and encode both answers. */
static bool answer(computation *c, const char *level, const proto_request *request, proto_buffer answers[2]) {
    bx_error error = {0};
    if (compute(c, level, request->criterion, request->priors, &request->batch, request->gradients, &error) != BX_OK) {
        return fail("%s: %s at %s: %s", level, error.code, error.path, error.text);
    }
    return encode(&answers[0], PROTO_JSON, request, &c->result) &&
           encode(&answers[1], PROTO_SAFETENSORS, request, &c->result);
}

static bool run_levels(const char *directory, const proto_request *request) {
    proto_buffer first[2] = {{0}, {0}};
    bool good = true;
    const char *level;
    for (size_t l = 0; good && (level = bx_level_name(l)); l++) {
        computation c = {0};
        proto_buffer answers[2] = {{0}, {0}};
        good = answer(&c, level, request, answers);
        for (int k = 0; k < 2 && good && l > 0; k++) {
            bool same = answers[k].bytes == first[k].bytes && !memcmp(answers[k].data, first[k].data, first[k].bytes);
            good = same ? true : fail("level %s answers other bytes than ref", level);
        }
        if (good && l == 0) {
            good = judge(directory, &c.result, &answers[0], &answers[1]);
        }
        for (int k = 0; k < 2; k++) { /* the first level's are kept */
            proto_buffer_free(l == 0 ? &first[k] : &answers[k]);
            first[k] = l == 0 ? answers[k] : first[k];
        }
        computation_free(&c);
    }
    proto_buffer_free(&first[0]);
    proto_buffer_free(&first[1]);
    return good;
}

/* On the device: other bits than the levels', within the same tolerances. */
static bool run_device(bx_context *device, const char *directory, proto_request *request) {
    computation c = {0};
    proto_buffer answers[2] = {{0}, {0}};
    bx_error error = {0};
    request->batch.explained = true;
    bool good = compute_on(&c, device, request->criterion, request->priors, &request->batch, request->gradients,
                           &error) == BX_OK ||
                fail("%s at %s: %s", error.code, error.path, error.text);
    good = good && encode(&answers[0], PROTO_JSON, request, &c.result) &&
           encode(&answers[1], PROTO_SAFETENSORS, request, &c.result) &&
           judge(directory, &c.result, &answers[0], &answers[1]);
    proto_buffer_free(&answers[0]);
    proto_buffer_free(&answers[1]);
    computation_free(&c);
    return good;
}

static bool run_case(bx_context *device, const char *directory) {
    proto_encoding encoding;
    proto_option options[MAX_OPTIONS] = {{"device", "cpu"}};
    size_t n_options = 1;
    wrong[0] = '\0';
    json_t *given = read_json(directory, "options.json");
    const char *name;
    json_t *value;
    json_object_foreach(given, name, value) {
        if (n_options < MAX_OPTIONS && strcmp(name, "device") != 0) {
            options[n_options++] = (proto_option){name, json_string_value(value)};
        }
    }
    file body = read_request(directory, &encoding);
    proto_request request;
    bx_error error = {0};
    const proto_limits limits = {.json_memory = JSON_MEMORY};
    bool good = false;
    if (!body.data) {
        fail("there is no request");
    } else if (proto_request_decode(&request, PROTO_LOSS, encoding, body.data, body.bytes, options, n_options,
                                    &proto_catalog_builtin, &limits, &error) != BX_OK) {
        fail("decode: %s at \"%s\": %s", error.code, error.path, error.text);
    } else {
        good = device ? run_device(device, directory, &request) : run_levels(directory, &request);
        proto_request_free(&request);
    }
    free(body.data);
    json_decref(given);
    return good && !wrong[0];
}

/* ---- all cases --------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names of the directories that hold an expect.json, sorted; each is malloc's. */
static size_t list_cases(const char *root, char *names[MAX_CASES]) {
    DIR *directory = opendir(root);
    size_t n = 0;
    for (struct dirent *entry; directory && n < MAX_CASES && (entry = readdir(directory));) {
        char path[PATH_BYTES], expect_path[PATH_BYTES];
        join(path, root, entry->d_name);
        join(expect_path, path, "expect.json");
        FILE *expect = entry->d_name[0] == '.' ? NULL : fopen(expect_path, "rb");
        if (expect) {
            fclose(expect);
            names[n++] = strdup(entry->d_name);
        }
    }
    if (directory) {
        closedir(directory);
    }
    qsort(names, n, sizeof *names, by_name);
    return n;
}

static bool chosen(const char *name, int argc, char **argv) {
    bool all = argc <= 2;
    for (int i = 2; i < argc; i++) {
        all |= !strcmp(argv[i], name);
    }
    return all;
}

/* One pass over the chosen cases: on every level, or on the device. */
static void run_cases(bx_context *device, char **chosen_names, size_t n, const char *root, int *passed, int *failed) {
    for (size_t i = 0; i < n; i++) {
        char directory[PATH_BYTES];
        join(directory, root, chosen_names[i]);
        bool good = run_case(device, directory);
        *passed += good;
        *failed += !good;
        if (!good) {
            printf("%s%s: %s\n", device ? "cuda: " : "", chosen_names[i], wrong);
        }
    }
}

/* The first GPU, or NULL; why not to *error. */
static bx_context *open_device(bx_error *error) {
    bx_context *context = NULL;
    bx_device device;
    if (bx_devices(&device, 1, error) > 0 && (bx_context_open(&context, device.name, NULL, error) != BX_OK ||
                                              bx_context_reserve(context, DEVICE_MEMORY, error) != BX_OK)) {
        fprintf(stderr, "golden: %s: %s\n", device.name, error->text);
        exit(2);
    }
    return context;
}

int main(int argc, char **argv) {
    const char *root = argc > 1 ? argv[1] : "tests/golden";
    static char *names[MAX_CASES];
    size_t n = 0, all = list_cases(root, names);
    int passed = 0, failed = 0;
    bx_error error = {0};
    bx_context *device = open_device(&error);
    for (size_t i = 0; i < all; i++) {
        if (chosen(names[i], argc, argv)) {
            char *name = names[i];
            names[i] = names[n];
            names[n++] = name;
        }
    }
    /* no proto_init(): its allocation budget would bound this program's own trees as well */
    run_cases(NULL, names, n, root, &passed, &failed);
    if (device) {
        run_cases(device, names, n, root, &passed, &failed);
    } else {
        printf("cuda: skipped (%s)\n", error.text);
    }
    bx_context_close(device);
    for (size_t i = 0; i < all; i++) {
        free(names[i]);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed || !passed ? EXIT_FAILURE : EXIT_SUCCESS;
}
