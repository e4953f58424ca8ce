/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that live in the binary, so that it works alone.
 */
#include "server.h"

/* .quad: a pointer's size, as in size_t, on the 64-bit machines this runs on */
__asm__(".section .rodata\n"
        ".global asset_openapi\n"
        ".global asset_openapi_bytes\n"
        "asset_openapi:\n"
        ".incbin \"proto/openapi.yaml\"\n"
        "end_of_openapi:\n"
        ".balign 8\n"
        "asset_openapi_bytes:\n"
        ".quad end_of_openapi - asset_openapi\n"
        ".previous\n");

_Static_assert(sizeof asset_openapi_bytes == 8, "asset_openapi_bytes is a .quad");
