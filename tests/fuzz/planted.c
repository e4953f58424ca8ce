/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bug that is not ours, planted when the target `scan` is linked: a number with a negative exponent is read one byte
 * too far, which number.c promises never to do. `make fuzz-planted` demands that it is found.
 */
#include "../../proto/internal.h"

const char *__real_proto_number_read(const char *text, const char *end, proto_number *number);
const char *__wrap_proto_number_read(const char *text, const char *end, proto_number *number);

const char *__wrap_proto_number_read(const char *text, const char *end, proto_number *number) {
    const char *at = __real_proto_number_read(text, end, number);
    const char *minus = at ? memchr(text + 1, '-', (size_t)(at - text)) : NULL;
    return minus && *(const volatile char *)at == '\0' ? at : at;
}
