/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between runtime.cc, which keeps memory and streams, and device.cc, which runs kernels.
 */
#ifndef EMULATED_DEVICE_H
#define EMULATED_DEVICE_H

#include <cstddef>
#include <cstdint>

#include "cuda.h"

/* gcc's words for the sanitizers, from clang too. */
#ifdef __has_feature
#if __has_feature(address_sanitizer) && !defined __SANITIZE_ADDRESS__
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer) && !defined __SANITIZE_THREAD__
#define __SANITIZE_THREAD__ 1
#endif
#endif

/* What a block of any device has at most, and what it has without being asked for. */
enum { EMULATED_SHARED_MOST = 227 * 1024, EMULATED_SHARED_PLAIN = 48 * 1024, EMULATED_THREADS_MOST = 1024 };
enum { EMULATED_POISON = 0xa5 };

struct emulated_launch {
    const void *function; /* void (bx_cuda_args) */
    bx_cuda_args args;
    unsigned int grid, block;
    size_t shared; /* bytes */
};

/* Run all blocks, one after another, in the calling thread; one launch at a time in the process. */
void emulated_execute(const emulated_launch &launch);
void emulated_shuffle_with(uint64_t seed);
/* Say what is wrong and end the process. */
void emulated_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
