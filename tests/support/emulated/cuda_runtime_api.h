/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of the CUDA runtime's interface that lib/cuda*.c and lib/cuda_*.cu use, declared anew so that both are
 * compiled, and run by runtime.cc and device.cc, on machines without the toolkit. Names, numbers and the order of
 * arguments are the runtime's; structs hold only what is asked for.
 */
#ifndef EMULATED_CUDA_RUNTIME_API_H
#define EMULATED_CUDA_RUNTIME_API_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CUDART_VERSION 13000
#define CUDART_CB

#define EMULATED_ERRORS(X)                                                                                             \
    X(0, cudaSuccess, "no error")                                                                                      \
    X(1, cudaErrorInvalidValue, "invalid argument")                                                                    \
    X(2, cudaErrorMemoryAllocation, "out of memory")                                                                   \
    X(3, cudaErrorInitializationError, "initialization error")                                                         \
    X(9, cudaErrorInvalidConfiguration, "invalid configuration argument")                                              \
    X(17, cudaErrorInvalidDevicePointer, "invalid device pointer")                                                     \
    X(21, cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")                                        \
    X(35, cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")                 \
    X(46, cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable")                            \
    X(98, cudaErrorInvalidDeviceFunction, "invalid device function")                                                   \
    X(100, cudaErrorNoDevice, "no CUDA-capable device is detected")                                                    \
    X(101, cudaErrorInvalidDevice, "invalid device ordinal")                                                           \
    X(209, cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device")                \
    X(214, cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                                           \
    X(220, cudaErrorNvlinkUncorrectable, "uncorrectable NVLink error detected during the execution")                   \
    X(400, cudaErrorInvalidResourceHandle, "invalid resource handle")                                                  \
    X(600, cudaErrorNotReady, "device not ready")                                                                      \
    X(700, cudaErrorIllegalAddress, "an illegal memory access was encountered")                                        \
    X(701, cudaErrorLaunchOutOfResources, "too many resources requested for launch")                                   \
    X(702, cudaErrorLaunchTimeout, "the launch timed out and was terminated")                                          \
    X(710, cudaErrorAssert, "device-side assert triggered")                                                            \
    X(712, cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped")        \
    X(713, cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region")              \
    X(715, cudaErrorIllegalInstruction, "an illegal instruction was encountered")                                      \
    X(716, cudaErrorMisalignedAddress, "misaligned address")                                                           \
    X(719, cudaErrorLaunchFailure, "unspecified launch failure")                                                       \
    X(999, cudaErrorUnknown, "unknown error")

typedef enum cudaError {
#define EMULATED_ROW(number, name, text) name = number,
    EMULATED_ERRORS(EMULATED_ROW)
#undef EMULATED_ROW
} cudaError_t;

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

#define cudaStreamDefault        0x00
#define cudaStreamNonBlocking    0x01
#define cudaHostRegisterDefault  0x00
#define cudaHostRegisterPortable 0x01
#define cudaHostRegisterMapped   0x02

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    size_t sharedMemPerBlock;
    int warpSize;
    int maxThreadsPerBlock;
    int maxGridSize[3];
    int major, minor;
    int multiProcessorCount;
    int unifiedAddressing;
    int l2CacheSize;
    int maxThreadsPerMultiProcessor;
    size_t sharedMemPerMultiprocessor;
    size_t sharedMemPerBlockOptin;
};

typedef struct emulated_stream *cudaStream_t;

struct dim3 {
    unsigned int x, y, z;
#ifdef __cplusplus
    constexpr dim3(unsigned int nx = 1, unsigned int ny = 1, unsigned int nz = 1) : x(nx), y(ny), z(nz) {}
#endif
};
#ifndef __cplusplus
typedef struct dim3 dim3;
#endif

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaMalloc(void **memory, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned int flags);
cudaError_t cudaHostUnregister(void *memory);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaLaunchKernel(const void *function, struct dim3 grid, struct dim3 block, void **args, size_t shared,
                             cudaStream_t stream);
cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);

#ifdef __cplusplus
}
template <typename T>
static inline cudaError_t cudaLaunchKernel(T *function, dim3 grid, dim3 block, void **args, size_t shared,
                                           cudaStream_t stream) {
    return cudaLaunchKernel(reinterpret_cast<const void *>(function), grid, block, args, shared, stream);
}
template <typename T>
static inline cudaError_t cudaFuncSetAttribute(T *function, cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(function), attribute, value);
}
#endif
#endif
