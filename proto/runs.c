/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs and their steps: what is recorded of a result, and how it is told as JSON and as CSV.
 */
#include "internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const names[] = {
#define PROTO_STEP(id, name, type) #name,
#include "step.def"
};

/* ---- recording --------------------------------------------------------------------------------------------------- */

void proto_step_make(proto_step *step, const proto_request *request, const bx_result *result,
                     const proto_timing *timing) {
    const bool objects = !result->job->plan->with_targets;
    const double unknown = NAN;
    *step = (proto_step){.step = request->step, .has_objects = objects};
    double *v = step->values;
    v[PROTO_STEP_TOTAL] = result->loss.total;
    v[PROTO_STEP_LOC] = result->loss.loc;
    v[PROTO_STEP_CONF] = result->loss.conf;
    v[PROTO_STEP_CONF_POSITIVE] = result->loss.conf_positive;
    v[PROTO_STEP_CONF_NEGATIVE] = result->loss.conf_negative;
    v[PROTO_STEP_IMAGES] = result->job->plan->n_images;
    v[PROTO_STEP_OBJECTS] = objects ? (double)result->objects : unknown;
    v[PROTO_STEP_POSITIVES] = (double)result->positives;
    v[PROTO_STEP_NEGATIVES] = (double)result->negatives;
    v[PROTO_STEP_HARD_NEGATIVES] = (double)result->hard_negatives;
    v[PROTO_STEP_FORCED] = objects ? (double)result->forced : unknown;
    v[PROTO_STEP_UNMATCHED_OBJECTS] = objects ? (double)result->unmatched_objects : unknown;
    v[PROTO_STEP_BEST_IOU_MEAN] = objects && result->objects > 0 ? result->best_iou_mean : unknown;
    v[PROTO_STEP_COMPUTE_MS] = timing->compute_ms;
    for (int i = 0; i < PROTO_IOU_BINS; i++)
        step->best_iou[i] = (int32_t)result->best_iou_histogram[i];
}

/* ---- times ------------------------------------------------------------------------------------------------------- */

/* RFC 3339, to the millisecond. */
static void write_time(char out[32], int64_t us) {
    const int64_t within = (us % 1000000 + 1000000) % 1000000;
    const time_t seconds = (time_t)(us / 1000000 - (us % 1000000 < 0));
    struct tm utc;
    if (!gmtime_r(&seconds, &utc) || strftime(out, 32, "%Y-%m-%dT%H:%M:%S", &utc) == 0) {
        strcpy(out, "1970-01-01T00:00:00Z");
        return;
    }
    snprintf(out + strlen(out), 8, ".%03dZ", (int)(within / 1000));
}

static void add_time(proto_writer *w, const char *key, int64_t us) {
    char text[32];
    write_time(text, us);
    proto_write_string(w, key, text);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static void write_run(proto_writer *w, const proto_run *run) {
    proto_write_string(w, "name", run->name);
    proto_write_int(w, "steps", run->steps);
    proto_write_int(w, "first_step", run->first_step);
    proto_write_int(w, "last_step", run->last_step);
    add_time(w, "first_time", run->first_us);
    add_time(w, "last_time", run->last_us);
    proto_write_real(w, "last_loss", run->last_loss);
}

void proto_run_row(proto_writer *w, const proto_run *run) {
    proto_write_open(w, NULL, '{');
    write_run(w, run);
    proto_write_close(w, '}');
}

static void write_step(proto_writer *w, const proto_step *step) {
    proto_write_int(w, "step", step->step);
    add_time(w, "time", step->time_us);
    for (int i = 0; i < PROTO_N_STEP; i++)
        proto_write_real(w, names[i], step->values[i]);
}

void proto_step_row(proto_writer *w, const proto_step *step) {
    proto_write_open(w, NULL, '{');
    write_step(w, step);
    proto_write_close(w, '}');
}

void proto_run_describe(proto_buffer *out, const proto_run *run, const proto_step *latest) {
    proto_writer writer = {.out = out}, *w = &writer;
    proto_write_open(w, NULL, '{');
    write_run(w, run);
    proto_write_open(w, "latest", '{');
    write_step(w, latest);
    if (latest->has_objects) {
        proto_write_open(w, "best_iou_histogram", '[');
        proto_write_ints(w, latest->best_iou, PROTO_IOU_BINS);
        proto_write_close(w, ']');
    } else {
        proto_write_null(w, "best_iou_histogram");
    }
    proto_write_close(w, '}');
    proto_write_close(w, '}');
    proto_write_end(w);
}

/* ---- CSV --------------------------------------------------------------------------------------------------------- */

void proto_steps_csv_head(proto_buffer *out) {
    proto_buffer_add(out, "step,time", 9);
    for (int i = 0; i < PROTO_N_STEP; i++) {
        proto_buffer_add(out, ",", 1);
        proto_buffer_add(out, names[i], strlen(names[i]));
    }
    proto_buffer_add(out, "\r\n", 2);
}

/* An empty field: not known. */
void proto_step_csv(proto_buffer *out, const proto_step *step) {
    char field[PROTO_NUMBER_ROOM + 32];
    size_t n = proto_number_write_int(field, step->step);
    field[n++] = ',';
    write_time(field + n, step->time_us);
    proto_buffer_add(out, field, n + strlen(field + n));
    for (int i = 0; i < PROTO_N_STEP; i++) {
        field[0] = ',';
        n = isfinite(step->values[i]) ? proto_number_write_double(field + 1, step->values[i]) : 0;
        proto_buffer_add(out, field, 1 + n);
    }
    proto_buffer_add(out, "\r\n", 2);
}

/* ---- queries ----------------------------------------------------------------------------------------------------- */

bx_status proto_query_check(const proto_option *query, size_t n_query, const char *const *known, bx_error *error) {
    for (size_t i = 0; i < n_query; i++) {
        size_t k = 0;
        while (known[k] && strcmp(known[k], query[i].name) != 0)
            k++;
        if (!known[k]) {
            char list[160] = "";
            size_t n = 0;
            for (k = 0; known[k] && n < sizeof list; k++)
                n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", k ? ", " : "; there are ", known[k]);
            bx_fail(error, BX_INVALID, "unknown_member", "there is no option \"%.64s\"%s", query[i].name, list);
            return proto_at_member(error, "", query[i].name);
        }
        for (size_t j = 0; j < i; j++)
            if (strcmp(query[j].name, query[i].name) == 0) {
                bx_fail(error, BX_INVALID, "duplicate_option", "the query gives %s twice", query[i].name);
                return bx_at(error, "%s", query[i].name);
            }
    }
    return BX_OK;
}

bool proto_integer(const char *text, int64_t least, int64_t most, int64_t *value) {
    const char *first = text + (least < 0 && *text == '-');
    const size_t digits = strspn(first, "0123456789");
    const int64_t given = digits >= 1 && digits <= 18 && !first[digits] ? strtoll(text, NULL, 10) : least - 1;
    if (given < least || given > most)
        return false;
    *value = given;
    return true;
}

bx_status proto_query_integer(const proto_option *query, size_t n_query, const char *name, int64_t least, int64_t most,
                              int64_t *value, bx_error *error) {
    int64_t read = *value;
    for (size_t i = 0; i < n_query; i++) {
        if (strcmp(query[i].name, name) != 0)
            continue;
        if (!proto_integer(query[i].value, least, most, &read)) {
            bx_fail(error, BX_INVALID, "invalid_option", "%s is an integer from %lld to %lld, not \"%.64s\"", name,
                    (long long)least, (long long)most, query[i].value);
            return bx_at(error, "%s", name);
        }
    }
    *value = read;
    return BX_OK;
}
