/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Element types and conversions. Elements may lie at any address, so they are read by memcpy.
 */
#include <string.h>

#include "internal.h"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
#define BX_ROW(id, name, bytes) {name, bytes},
    BX_DTYPE_ROWS(BX_ROW)
#undef BX_ROW
};

size_t bx_dtype_bytes(bx_dtype dtype) {
    return dtypes[dtype].bytes;
}

const char *bx_dtype_name(bx_dtype dtype) {
    return dtypes[dtype].name;
}

bool bx_dtype_from_name(const char *name, bx_dtype *dtype) {
    for (size_t i = 0; i < BX_N_DTYPES; i++) {
        if (*name == *dtypes[i].name && !strcmp(name, dtypes[i].name)) {
            *dtype = (bx_dtype)i;
            return true;
        }
    }
    return false;
}

bool bx_dtype_is_float(bx_dtype dtype) {
    return dtype <= BX_F64;
}

void bx_tensor_to_f32(float *out, bx_tensor tensor, size_t first, size_t n) {
    const char *data = tensor.data;
    bx_kernels_ref.load(out, data + first * bx_dtype_bytes(tensor.dtype), tensor.dtype, n);
}

int64_t bx_tensor_int(bx_tensor tensor, size_t i) {
    const char *at = (const char *)tensor.data + i * bx_dtype_bytes(tensor.dtype);
    switch (tensor.dtype) {
    case BX_I64: {
        int64_t x;
        memcpy(&x, at, sizeof x);
        return x;
    }
    case BX_I32: {
        int32_t x;
        memcpy(&x, at, sizeof x);
        return x;
    }
    case BX_I16: {
        int16_t x;
        memcpy(&x, at, sizeof x);
        return x;
    }
    case BX_I8:
        return *(const int8_t *)at;
    default:
        return *(const uint8_t *)at;
    }
}
