/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that live in the binary, so that it works alone.
 */
#include "server.h"

__asm__(".section .rodata\n"
        ".global asset_openapi\n"
        ".global asset_openapi_end\n"
        "asset_openapi:\n"
        ".incbin \"proto/openapi.yaml\"\n"
        "asset_openapi_end:\n"
        ".byte 0\n"
        ".previous\n");
