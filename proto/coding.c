/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Content codings: gzip (RFC 1952) and deflate, which means the zlib format (RFC 1950). The only file that knows zlib.
 *
 * Bodies are inflated as they arrive, into memory of the caller's, who stops when it is too much.
 */
#include "internal.h"

#include <stdlib.h>
#include <zlib.h>

#define GZIP_BITS (MAX_WBITS + 16)

struct proto_inflater {
    z_stream stream;
    proto_coding coding;
    bool ended; /* a whole stream has been read */
};

static int window_bits(proto_coding coding) {
    return coding == PROTO_GZIP ? GZIP_BITS : MAX_WBITS;
}

const char *proto_coding_name(proto_coding coding) {
    return coding == PROTO_GZIP ? "gzip" : coding == PROTO_DEFLATE ? "deflate" : NULL;
}

/* ---- bodies that arrive ------------------------------------------------------------------------------------------ */

proto_inflater *proto_inflater_new(proto_coding coding) {
    proto_inflater *inflater = calloc(1, sizeof *inflater);
    if (inflater && inflateInit2(&inflater->stream, window_bits(coding)) != Z_OK) {
        free(inflater);
        return NULL;
    }
    if (inflater)
        inflater->coding = coding;
    return inflater;
}

void proto_inflater_free(proto_inflater *inflater) {
    if (inflater)
        inflateEnd(&inflater->stream);
    free(inflater);
}

void proto_inflater_give(proto_inflater *inflater, const void *data, size_t bytes) {
    inflater->stream.next_in = (Bytef *)data; /* which is only read */
    inflater->stream.avail_in = (uInt)bytes;
}

static bx_status refuse(const proto_inflater *inflater, const char *what, bx_error *error) {
    return bx_fail(error, BX_MALFORMED, "content_encoding", "the body is not %s: %s",
                   proto_coding_name(inflater->coding), what);
}

bx_status proto_inflater_take(proto_inflater *inflater, void *out, size_t room, size_t *bytes, bx_error *error) {
    z_stream *z = &inflater->stream;
    z->next_out = out;
    z->avail_out = (uInt)room;
    *bytes = 0;
    while (z->avail_out > 0) {
        if (inflater->ended && z->avail_in == 0)
            break;
        if (inflater->ended && inflater->coding != PROTO_GZIP)
            return refuse(inflater, "something follows its end", error);
        if (inflater->ended && inflateReset(z) != Z_OK) /* gzip has members, one after the other */
            return refuse(inflater, "it cannot be read on", error);
        inflater->ended = false;
        const int result = inflate(z, Z_NO_FLUSH);
        if (result == Z_MEM_ERROR)
            return bx_fail(error, BX_NOMEM, "out_of_memory", "no memory to inflate the body");
        if (result == Z_BUF_ERROR)
            break; /* all that is there has been read */
        if (result != Z_OK && result != Z_STREAM_END)
            return refuse(inflater, z->msg ? z->msg : "it needs a dictionary", error);
        inflater->ended = result == Z_STREAM_END;
    }
    *bytes = room - z->avail_out;
    return BX_OK;
}

bx_status proto_inflater_end(const proto_inflater *inflater, bx_error *error) {
    return inflater->ended ? BX_OK : refuse(inflater, "it ends too early", error);
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

bool proto_deflate(proto_buffer *out, proto_coding coding, const void *data, size_t bytes, size_t room) {
    z_stream z = {.next_in = (Bytef *)data, .avail_in = (uInt)bytes};
    if (bytes > UINT32_MAX || !proto_buffer_reserve(out, room) ||
        deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, window_bits(coding), 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return false;
    z.next_out = (Bytef *)out->data + out->bytes;
    z.avail_out = (uInt)room;
    const bool fits = deflate(&z, Z_FINISH) == Z_STREAM_END;
    if (fits)
        out->bytes += room - z.avail_out;
    deflateEnd(&z);
    return fits;
}
