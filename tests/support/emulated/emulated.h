/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a test tells the emulated device beyond the runtime's interface, and asks of it. Of the environment, read once:
 *   EMULATED_CUDA_DEVICES=N       how many there are (1); 0: none; -1: no driver
 *   EMULATED_CUDA_MEMORY=BYTES    of each (4 GiB)
 *   EMULATED_CUDA_SEED=N          in which order threads and blocks take their turns (1)
 *   EMULATED_CUDA_FAIL=K:CODE     the K-th call of the runtime fails; 700 and its like are for ever
 *   EMULATED_CUDA_HANG=K          from the K-th kernel on, streams come to no end
 *   EMULATED_CUDA_TRACE=1         prints every call
 * A mistake that a device would answer with garbage or a hang ends the process: "emulated CUDA: ..." and abort().
 */
#ifndef EMULATED_H
#define EMULATED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* As at the start of the process, with the settings of the environment: everything is freed, no call has been made.
 * Only while no other thread is in the runtime. */
void emulated_reset(void);
/* Make the threads of a block now, and not when they are first needed: a child has those of its parent. */
void emulated_warm(void);
void emulated_devices(int n);
void emulated_memory(size_t bytes);
void emulated_seed(uint64_t seed);
/* The call-th call from now, 1 being the next, fails with `code`; with for_ever all later ones do too. 0: none. */
void emulated_fail(long call, int code, bool for_ever);
/* The call that was the first to fail so, such as "cudaMalloc"; NULL: none was. */
const char *emulated_failed(void);
/* From the launch-th kernel from now on, streams come to no end; 0: they do. */
void emulated_hang(long launch);
/* Calls and kernels since the process began, or emulated_reset. */
long emulated_calls(void);
long emulated_launches(void);

/* What has not been given back. */
typedef struct emulated_live {
    long allocations, pins, streams;
    size_t bytes; /* of the allocations */
} emulated_live;
emulated_live emulated_living(void);
/* Bytes allocated on one device. */
size_t emulated_used(int device);

#ifdef __cplusplus
}
#endif
#endif
