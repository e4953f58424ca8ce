/* SPDX-License-Identifier: Apache-2.0 */
/* The options of a query string, as text name=value&name=value, with small bodies of both tasks behind them. */
#include "fuzz.h"

#define MOST 64

static const char body[] =
    "{\"predictions\":{\"loc\":[[[0,0,0,0],[0.5,0,0,0],[0,0,0,0],[0,0,0,0]]],\"conf\":[[[1,0,0],"
    "[0,1,0],[0,0,1],[0,0,0]]]},\"annotations\":[{\"boxes\":[[0.1,0.1,0.5,0.5]],\"labels\":[1]}]}",
                  objects[] = "{\"annotations\":[{\"boxes\":[[0.1,0.1,0.5,0.5]],\"labels\":[1]}]}";

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    proto_init();
    return 0;
}

static void check_integers(const proto_option *query, size_t n) {
    static const char *const known[] = {"after", "limit", "points", "format", NULL};
    int64_t value = -7;
    bx_error error = {0};
    bx_status status = proto_query_check(query, n, known, &error);
    if (status != BX_OK) {
        check_refusal(status, &error, NULL, PROTO_JSON);
    }
    error = (bx_error){0};
    status = proto_query_integer(query, n, "limit", 1, 1000, &value, &error);
    CHECK(status != BX_OK || value == -7 || (value >= 1 && value <= 1000), "limit %lld", (long long)value);
    if (status != BX_OK) {
        CHECK(value == -7, "a failure changed the value");
        check_refusal(status, &error, NULL, PROTO_JSON);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    proto_option query[MOST];
    size_t n = 0, left;
    char *text = exact_text(data, size);
    for (char *rest = text, *part; (part = strsep(&rest, "&")) && n < MOST;) {
        char *value = strchr(part, '=');
        if (value) {
            *value++ = '\0';
        }
        query[n++] = (proto_option){part, value ? value : ""};
    }
    check_integers(query, n);
    for (int task = PROTO_LOSS; task <= PROTO_MATCH; task++) {
        proto_request r;
        const decoding how = {.task = (proto_task)task,
                              .encoding = PROTO_JSON,
                              .query = query,
                              .n_query = n,
                              .limits = fuzz_limits(&left)};
        const char *with = task == PROTO_LOSS ? body : objects;
        if (decodes(&r, &how, with, strlen(with))) {
            look_at(&r);
            CHECK(strlen(r.device) < sizeof r.device && strlen(r.run) <= PROTO_RUN_LENGTH, "texts");
            CHECK(!r.run[0] || (r.step >= 0 && r.step <= PROTO_MOST_STEP), "step %lld", (long long)r.step);
            proto_request_free(&r);
        }
    }
    free(text);
    return 0;
}
