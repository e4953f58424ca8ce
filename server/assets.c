/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that live in the binary, so that it works alone: the dashboard and the OpenAPI document. Read-only.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server.h"

/* The file's bytes are those from asset_<name> up to end_of_<name>. */
#define EMBED(name, file)                                                                                              \
    extern const char asset_##name[], end_of_##name[];                                                                 \
    __asm__(".section .rodata\n"                                                                                       \
            "asset_" #name ":\n"                                                                                       \
            ".incbin \"" file "\"\n"                                                                                   \
            "end_of_" #name ":\n"                                                                                      \
            ".previous\n")

EMBED(openapi, "proto/openapi.yaml");
EMBED(index, "server/web/index.html");
EMBED(style, "server/web/style.css");
EMBED(app, "server/web/app.js");
EMBED(charts, "server/web/charts.js");
EMBED(feed, "server/web/feed.js");
EMBED(dygraph, DYGRAPHS "/dygraph.min.js");
EMBED(dygraph_style, DYGRAPHS "/dygraph.min.css");

#define SCRIPT "text/javascript; charset=utf-8"
#define STYLE  "text/css; charset=utf-8"

static const struct {
    const char *path, *type, *data, *end;
} assets[] = {
    {"/openapi.yaml", "application/yaml", asset_openapi, end_of_openapi},
    {"/", PROTO_TYPE_HTML, asset_index, end_of_index},
    {"/web/style.css", STYLE, asset_style, end_of_style},
    {"/web/app.js", SCRIPT, asset_app, end_of_app},
    {"/web/charts.js", SCRIPT, asset_charts, end_of_charts},
    {"/web/feed.js", SCRIPT, asset_feed, end_of_feed},
    {"/web/dygraph.min.js", SCRIPT, asset_dygraph, end_of_dygraph},
    {"/web/dygraph.min.css", STYLE, asset_dygraph_style, end_of_dygraph_style},
};
#define N_ASSETS (sizeof assets / sizeof *assets)

static char etags[N_ASSETS][24];

/* FNV-1a of each file: other bytes, another tag. */
static void make_etags(void) {
    for (size_t i = 0; i < N_ASSETS; i++) {
        uint64_t hash = 14695981039346656037u;
        for (const char *c = assets[i].data; c < assets[i].end; c++) {
            hash = (hash ^ (unsigned char)*c) * 1099511628211u;
        }
        snprintf(etags[i], sizeof *etags, "\"%016llx\"", (unsigned long long)hash);
    }
}

answer get_asset(const route_call *call) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char path[ROUTE_NAME + 8];
    pthread_once(&once, make_etags);
    snprintf(path, sizeof path, "%s%s", call->name ? "/web/" : call->route->path, call->name ? call->name : "");
    for (size_t i = 0; i < N_ASSETS; i++) {
        if (strcmp(assets[i].path, path)) {
            continue;
        }
        answer a = {.status = 304};
        copy_text(a.etag, sizeof a.etag, etags[i]);
        if (etag_matches(call->if_none_match, a.etag)) {
            return a;
        }
        a.status = 200;
        a.type = assets[i].type;
        const size_t bytes = (size_t)(assets[i].end - assets[i].data);
        a.body.data = malloc(bytes);
        a.body.failed = !a.body.data;
        if (a.body.data) {
            memcpy(a.body.data, assets[i].data, bytes);
            a.body.bytes = a.body.capacity = bytes;
        }
        return a;
    }
    return answer_problem(404, "not_found", "The dashboard has no such file.", "", call->request_id);
}
