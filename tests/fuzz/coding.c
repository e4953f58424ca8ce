/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coded bodies: whatever pieces they come in, they are what zlib makes of them at once; and what is coded here reads
 * back. The first byte chooses the coding, the second the size of the pieces.
 */
#include <zlib.h>

#include "fuzz.h"

#define MOST ((size_t)1 << 20) /* decoded bytes that are looked at */

/* How many bytes come out, up to MOST; -1: refused. */
static long inflate_in_pieces(proto_coding coding, const char *data, size_t n, size_t piece, char *out) {
    proto_inflater *inflater = proto_inflater_new(coding);
    size_t made = 0, got = 0;
    bx_error error = {0};
    bx_status status = BX_OK;
    char room[1000];
    CHECK(inflater, "no memory");
    for (size_t at = 0; status == BX_OK && at < n && made < MOST; at += piece) {
        char *part = exact(data + at, n - at < piece ? n - at : piece);
        proto_inflater_give(inflater, part, n - at < piece ? n - at : piece);
        do {
            status = proto_inflater_take(inflater, room, sizeof room, &got, &error);
            CHECK(status != BX_OK || got <= sizeof room, "%zu bytes", got);
            if (status == BX_OK && made + got <= MOST) {
                memcpy(out + made, room, got);
            }
            made += status == BX_OK ? got : 0;
        } while (status == BX_OK && got == sizeof room && made < MOST);
        free(part);
    }
    if (status == BX_OK && made < MOST) {
        status = proto_inflater_end(inflater, &error);
    }
    proto_inflater_free(inflater);
    if (status != BX_OK) {
        check_refusal(status, &error, NULL, PROTO_INFER);
    }
    return status == BX_OK ? (long)made : -1;
}

/* One stream that zlib takes, whole and with nothing behind it. */
static long inflate_by_zlib(proto_coding coding, char *data, size_t n, char *out) {
    z_stream z = {0};
    CHECK(inflateInit2(&z, coding == PROTO_GZIP ? 31 : 15) == Z_OK, "no memory");
    z.next_in = (Bytef *)data;
    z.avail_in = (uInt)n;
    z.next_out = (Bytef *)out;
    z.avail_out = MOST;
    const int end = inflate(&z, Z_FINISH);
    const long made = end == Z_STREAM_END && z.avail_in == 0 ? (long)z.total_out : -1;
    inflateEnd(&z);
    return made;
}

static void check_round(proto_coding coding, const char *data, size_t n, size_t piece, char *out) {
    proto_buffer coded = {0};
    if (proto_deflate(&coded, coding, data, n, 2 * n + 100)) {
        const long made = inflate_in_pieces(coding, coded.data, coded.bytes, piece, out);
        CHECK(made == (long)n && !memcmp(out, data, n), "%ld bytes of %zu come back", made, n);
    }
    proto_buffer_free(&coded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char out[MOST], owed[MOST];
    bytes b = {data, data + size};
    const proto_coding coding = take(&b) & 1 ? PROTO_GZIP : PROTO_DEFLATE;
    const size_t piece = 1 + take(&b), n = (size_t)(b.end - b.at);
    char *body = exact(b.at, n);
    const long made = inflate_in_pieces(coding, body, n, piece, out), wanted = inflate_by_zlib(coding, body, n, owed);
    CHECK(wanted < 0 || (made == wanted && !memcmp(out, owed, (size_t)wanted)), "%ld bytes, not %ld", made, wanted);
    check_round(coding, body, n, piece, out);
    free(body);
    return 0;
}
