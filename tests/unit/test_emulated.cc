// SPDX-License-Identifier: Apache-2.0
/*
 * The emulated CUDA device: what it computes, and that each mistake it is there to find is found. A mistake is made in
 * a child process, which must end in the words of its detector; where several do, the sanitizer of the configuration
 * too.
 */
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <set>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

#include "../support/emulated/device.h"
#include "../support/emulated/emulated.h"
#include "../support/suite.h"

extern __shared__ __align__(16) unsigned char bx_shared[];

namespace {

/* What the kernels here are given, at the beginning of bx_cuda_args. */
struct given {
    unsigned *in, *out;
    unsigned n;
};
static_assert(sizeof(given) <= sizeof(bx_cuda_args), "fits");

given take(const bx_cuda_args &args) {
    given g;
    memcpy(&g, &args, sizeof g);
    return g;
}

#define KERNEL(name) __global__ void name(bx_cuda_args args)

/* ---- kernels that are right -------------------------------------------------------------------------------------- */

unsigned warp_sum(unsigned x) {
    for (int step = 16; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

template <bool BARRIER> void sum(const given &g) {
    unsigned *part = reinterpret_cast<unsigned *>(bx_shared);
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x, x = warp_sum(i < g.n ? g.in[i] : 0);
    if (threadIdx.x % 32 == 0) {
        part[threadIdx.x / 32] = x;
    }
    if (BARRIER) {
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        unsigned all = 0;
        for (unsigned w = 0; w < blockDim.x / 32; w++) {
            all += part[w];
        }
        atomicAdd(g.out, all);
    }
}

KERNEL(sum_kernel) {
    sum<true>(take(args));
}

/* Every primitive once, each lane against what it owes; out[0] counts what is wrong. */
KERNEL(primitives_kernel) {
    const given g = take(args);
    const unsigned all = 0xffffffffu, t = threadIdx.x, lane = t % 32;
    bool good = __shfl_sync(all, t, 3) == t - lane + 3 && __shfl_sync(all, t, 1, 8) == t - lane % 8 + 1;
    good &= __shfl_up_sync(all, t, 2) == (lane < 2 ? t : t - 2);
    good &= __shfl_down_sync(all, t, 2, 16) == (lane % 16 > 13 ? t : t + 2);
    good &= __shfl_xor_sync(all, 1.5 * t, 5) == 1.5 * (t - lane + (lane ^ 5));
    good &= __ballot_sync(all, lane % 3 == 0) == 0x49249249u;
    good &= __any_sync(all, lane == 7) && !__any_sync(all, 0) && __all_sync(all, 1) && !__all_sync(all, lane != 9);
    if (lane < 8) {
        good &= __ballot_sync(0xffu, lane & 1) == 0xaau && __shfl_sync(0xffu, -static_cast<float>(lane), 2) == -2.0f;
    }
    good &= __syncthreads_count(t % 4 == 0) == static_cast<int>(blockDim.x / 4);
    good &= __syncthreads_or(t == 5) && __syncthreads_and(t < blockDim.x) && !__syncthreads_and(t != 5);
    good &= __popc(0xf0f0u) == 8 && __ffs(8) == 4 && __ffs(0) == 0 && __clz(1) == 31 && __clz(0) == 32;
    good &= __float_as_int(1.0f) == 0x3f800000 && __int_as_float(0x40000000) == 2.0f && __umulhi(1u << 31, 6) == 3;
    atomicMax(&g.out[1], t);
    atomicMin(&g.out[2], t);
    atomicOr(&g.out[3], 1u << (t & 31));
    atomicCAS(&g.out[4], 0xa5a5a5a5u, 7u);
    atomicAdd(&g.out[0], good ? 0 : 1);
}

/* Threads that have ended do not hold the others up. */
KERNEL(leaving_kernel) {
    const given g = take(args);
    if (threadIdx.x >= 32) {
        return;
    }
    __syncthreads();
    atomicAdd(g.out, 1u);
}

/* Whether shared memory holds the poison at the beginning of every block. */
KERNEL(poison_kernel) {
    const given g = take(args);
    atomicAdd(g.out, bx_shared[threadIdx.x] == EMULATED_POISON ? 0 : 1);
    __syncthreads();
    bx_shared[threadIdx.x] = 1;
}

/* ---- kernels that are wrong -------------------------------------------------------------------------------------- */

KERNEL(no_barrier_kernel) {
    sum<false>(take(args));
}

#ifdef __SANITIZE_THREAD__
/* A sum without atomics. */
KERNEL(lost_update_kernel) {
    const given g = take(args);
    *g.out += g.in[threadIdx.x];
}
#endif

KERNEL(two_barriers_kernel) {
    (void)args;
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

KERNEL(barrier_and_warp_kernel) {
    (void)args;
    if (threadIdx.x == 5) {
        __syncthreads();
    } else {
        __syncwarp();
        __syncthreads();
    }
}

KERNEL(left_warp_kernel) {
    (void)args;
    if (threadIdx.x == 40) {
        return;
    }
    __ballot_sync(0xffffffffu, 1);
}

KERNEL(not_named_kernel) {
    (void)args;
    __ballot_sync(0xffffu, 1);
}

KERNEL(asks_unnamed_kernel) {
    (void)args;
    if (threadIdx.x < 4) {
        __shfl_sync(0xfu, 1, 9);
    }
}

KERNEL(two_words_kernel) {
    (void)args;
    if (threadIdx.x % 2) {
        __any_sync(0xffffffffu, 1);
    } else {
        __all_sync(0xffffffffu, 1);
    }
}

KERNEL(warp_kernel) {
    (void)args;
    __syncwarp();
}

#ifdef __SANITIZE_ADDRESS__
KERNEL(shared_overrun_kernel) {
    (void)args;
    bx_shared[blockDim.x + threadIdx.x] = 0;
}

KERNEL(overrun_kernel) {
    const given g = take(args);
    g.out[g.n + threadIdx.x] = 0;
}
#endif

/* ---- help -------------------------------------------------------------------------------------------------------- */

using kernel = void (*)(bx_cuda_args);

bx_cuda_args give(unsigned *in, unsigned *out, size_t n) {
    bx_cuda_args args;
    given g;
    memset(&args, 0, sizeof args);
    memset(&g, 0, sizeof g); /* its padding too */
    g.in = in;
    g.out = out;
    g.n = static_cast<unsigned>(n);
    memcpy(&args, &g, sizeof g);
    return args;
}

void ok(cudaError_t error) {
    ck_assert_msg(error == cudaSuccess, "%s", cudaGetErrorName(error));
}

/* N numbers on the device, room for 8 results, both in one allocation each; the sum of the numbers. */
struct bench {
    enum { N = 1000 };
    cudaStream_t stream = nullptr;
    unsigned *in = nullptr, *out = nullptr, owed = 0, host[N];

    bench() {
        for (unsigned i = 0; i < N; i++) {
            host[i] = i * i;
            owed += host[i];
        }
        ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        ok(cudaMalloc(reinterpret_cast<void **>(&in), sizeof host));
        ok(cudaMalloc(reinterpret_cast<void **>(&out), 8 * sizeof *out));
        ok(cudaMemcpyAsync(in, host, sizeof host, cudaMemcpyHostToDevice, stream));
        ok(cudaMemsetAsync(out, 0, sizeof *out, stream));
    }
    ~bench() {
        (void)cudaFree(in);
        (void)cudaFree(out);
        (void)cudaStreamDestroy(stream);
    }
    bench(const bench &) = delete;
    bench &operator=(const bench &) = delete;

    cudaError_t launch(kernel k, unsigned blocks, unsigned threads, size_t shared) {
        bx_cuda_args args = give(in, out, N);
        void *arguments[] = {&args};
        return cudaLaunchKernel(k, dim3(blocks), dim3(threads), arguments, shared, stream);
    }
    /* The first result of a launch. */
    unsigned run(kernel k, unsigned blocks, unsigned threads, size_t shared) {
        unsigned result[8];
        ok(launch(k, blocks, threads, shared));
        ok(cudaMemcpyAsync(result, out, sizeof result, cudaMemcpyDeviceToHost, stream));
        ok(cudaStreamSynchronize(stream));
        return result[0];
    }
};

/* What a child that does this says before it ends; *status is the one of waitpid. */
std::string words_of(void (*what)(), int *status) {
    int ends[2];
    std::string words;
    ck_assert_int_eq(pipe(ends), 0);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        what();
        fflush(stderr);
        _exit(0);
    }
    close(ends[1]);
    char some[4096];
    for (ssize_t n; (n = read(ends[0], some, sizeof some)) > 0;) {
        words.append(some, static_cast<size_t>(n));
    }
    close(ends[0]);
    ck_assert_int_eq(waitpid(child, status, 0), child);
    return words;
}

/* The child is ended, and says these words. */
void dies(void (*what)(), const char *words) {
    int status;
    const std::string said = words_of(what, &status);
    ck_assert_msg(!WIFEXITED(status) || WEXITSTATUS(status) != 0, "nothing was found: %s", words);
    ck_assert_msg(said.find(words) != std::string::npos, "\"%s\" is not in: %s", words, said.c_str());
}

/* ---- what is computed -------------------------------------------------------------------------------------------- */

START_TEST(kernels_compute) {
    for (uint64_t seed = 1; seed <= 20; seed++) {
        emulated_seed(seed);
        bench b;
        ck_assert_uint_eq(b.run(sum_kernel, 8, 128, 128), b.owed);
    }
}
END_TEST

START_TEST(primitives_give_what_they_should) {
    bench b;
    ck_assert_uint_eq(b.run(primitives_kernel, 1, 96, 0), 0);
    unsigned result[5];
    ok(cudaMemcpyAsync(result, b.out, sizeof result, cudaMemcpyDeviceToHost, b.stream));
    ck_assert_uint_eq(result[1], 0xa5a5a5a5u); /* above every thread, as the poison was */
    ck_assert_uint_eq(result[2], 0);
    ck_assert_uint_eq(result[3], 0xffffffffu);
    ck_assert_uint_eq(result[4], 7);
}
END_TEST

START_TEST(threads_that_ended_have_arrived) {
    bench b;
    ck_assert_uint_eq(b.run(leaving_kernel, 2, 64, 0), 64);
}
END_TEST

START_TEST(memory_is_poisoned) {
    bench b;
    ck_assert_uint_eq(b.run(poison_kernel, 3, 64, 64), 0);
    unsigned fresh;
    ok(cudaMemcpyAsync(&fresh, b.out + 5, sizeof fresh, cudaMemcpyDeviceToHost, b.stream));
    ck_assert_uint_eq(fresh, 0xa5a5a5a5u);
}
END_TEST

/* ---- mistakes of kernels ----------------------------------------------------------------------------------------- */

void without_a_barrier() {
    std::set<unsigned> results;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        emulated_seed(seed);
        bench b;
        results.insert(b.run(no_barrier_kernel, 4, 256, 128));
    }
    if (results.size() > 1) {
        emulated_die("%zu different sums", results.size());
    }
}

START_TEST(a_missing_barrier_shows) {
    dies(without_a_barrier, "different sums");
#ifdef __SANITIZE_THREAD__
    dies(without_a_barrier, "data race");
#endif
}
END_TEST

#ifdef __SANITIZE_THREAD__
void without_atomics() {
    bench b;
    b.run(lost_update_kernel, 1, 64, 0);
    exit(0); /* where the thread sanitizer changes the status */
}

START_TEST(a_lost_update_is_a_race) {
    dies(without_atomics, "data race");
}
END_TEST
#endif

template <kernel K, unsigned THREADS, unsigned SHARED> void launches() {
    bench b;
    b.run(K, 1, THREADS, SHARED);
}

START_TEST(threads_that_wait_for_each_other_are_found) {
    dies(launches<two_barriers_kernel, 64, 0>, "threads wait for others that never come");
    dies(launches<barrier_and_warp_kernel, 64, 0>, "threads wait for others that never come");
    dies(launches<left_warp_kernel, 64, 0>, "threads wait for others that never come");
    dies(launches<left_warp_kernel, 64, 0>, "test_emulated.cc");
    dies(launches<not_named_kernel, 64, 0>, "which its own mask 0000ffff does not name");
    dies(launches<asks_unnamed_kernel, 64, 0>, "asks lane 9, which the mask 0000000f does not name");
    dies(launches<two_words_kernel, 64, 0>, "meets");
    dies(launches<warp_kernel, 48, 0>, "not whole warps");
}
END_TEST

#ifdef __SANITIZE_ADDRESS__
START_TEST(writing_outside_memory_is_found) {
    dies(launches<shared_overrun_kernel, 64, 64>, "use-after-poison");
    dies(launches<overrun_kernel, 64, 0>, "heap-buffer-overflow");
}
END_TEST
#endif

/* ---- mistakes of launches ---------------------------------------------------------------------------------------- */

template <unsigned X, unsigned Y> void block_of() {
    bench b;
    bx_cuda_args args = give(b.in, b.out, 1);
    void *arguments[] = {&args};
    (void)cudaLaunchKernel(sum_kernel, dim3(1), dim3(X, Y), arguments, 128, b.stream);
}

void host_pointer() {
    bench b;
    bx_cuda_args args = give(b.host, b.out, 1);
    void *arguments[] = {&args};
    (void)cudaLaunchKernel(sum_kernel, dim3(1), dim3(64), arguments, 128, b.stream);
}

START_TEST(launches_that_no_device_takes_are_found) {
    bench b;
    ck_assert_int_eq(b.launch(sum_kernel, 0, 64, 128), cudaErrorInvalidConfiguration);
    ck_assert_int_eq(cudaGetLastError(), cudaErrorInvalidConfiguration);
    dies(block_of<1056, 1>, "at most 1024 threads");
    dies(block_of<32, 2>, "one dimension");
    dies(launches<sum_kernel, 64, (48 << 10) + 1>, "unless cudaFuncSetAttribute says otherwise");
    ck_assert_int_eq(cudaFuncSetAttribute(sum_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (227 << 10) + 1),
                     cudaErrorInvalidValue);
    ok(cudaFuncSetAttribute(sum_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000));
    ck_assert_uint_eq(b.run(sum_kernel, 8, 128, 100000), b.owed);
    dies(host_pointer, "an address of the host");
}
END_TEST

/* ---- streams ----------------------------------------------------------------------------------------------------- */

START_TEST(a_copy_of_pinned_memory_happens_as_late_as_it_may) {
    bench b;
    unsigned there[2] = {1, 2};
    ok(cudaHostRegister(there, sizeof there, cudaHostRegisterDefault));
    ok(cudaMemcpyAsync(b.out, &there[0], sizeof *there, cudaMemcpyHostToDevice, b.stream));
    there[0] = 3; /* too early */
    ok(cudaMemcpyAsync(&there[1], b.out, sizeof *there, cudaMemcpyDeviceToHost, b.stream));
    ck_assert_uint_eq(there[1], 0xa5a5a5a5u); /* read too early */
    ok(cudaStreamSynchronize(b.stream));
    ck_assert_uint_eq(there[1], 3);
    ok(cudaHostUnregister(there));
    there[0] = 4;
    ok(cudaMemcpyAsync(b.out, &there[0], sizeof *there, cudaMemcpyHostToDevice, b.stream)); /* at once */
    there[0] = 5;
    ok(cudaMemcpyAsync(&there[1], b.out, sizeof *there, cudaMemcpyDeviceToHost, b.stream));
    ck_assert_uint_eq(there[1], 4);
}
END_TEST

START_TEST(a_query_says_when_all_is_done) {
    bench b;
    int asked = 0;
    cudaError_t code;
    ok(b.launch(sum_kernel, 8, 128, 128));
    while ((code = cudaStreamQuery(b.stream)) == cudaErrorNotReady) {
        ck_assert_int_lt(asked++, 100);
    }
    ok(code);
    ck_assert_int_gt(asked, 0);
    ok(cudaGetLastError()); /* not ready is no error */
}
END_TEST

void unregisters_too_early() {
    bench b;
    static unsigned there;
    (void)cudaHostRegister(&there, sizeof there, 0);
    (void)cudaMemcpyAsync(&there, b.out, sizeof there, cudaMemcpyDeviceToHost, b.stream);
    (void)cudaHostUnregister(&there);
}

void copies_too_much() {
    bench b;
    unsigned more[9];
    (void)cudaMemcpyAsync(more, b.out, sizeof more, cudaMemcpyDeviceToHost, b.stream);
}

void copies_half_pinned() {
    bench b;
    static unsigned there[2];
    (void)cudaHostRegister(there, sizeof *there, 0);
    (void)cudaMemcpyAsync(there, b.out, sizeof there, cudaMemcpyDeviceToHost, b.stream);
}

void copies_backwards() {
    bench b;
    unsigned there = 0;
    (void)cudaMemcpyAsync(b.out, &there, sizeof there, cudaMemcpyDeviceToHost, b.stream);
}

void fills_the_host() {
    bench b;
    (void)cudaMemsetAsync(b.host, 0, sizeof b.host, b.stream);
}

START_TEST(copies_that_cannot_be_are_found) {
    dies(unregisters_too_early, "is unregistered while a copy");
    dies(copies_too_much, "lie only partly in device memory");
    dies(copies_half_pinned, "lie only partly in pinned memory");
    dies(copies_backwards, "a copy of kind 2");
    dies(fills_the_host, "which are not of the device");
}
END_TEST

START_TEST(what_is_not_given_back_is_counted) {
    emulated_live live = emulated_living();
    ck_assert_int_eq(live.allocations + live.pins + live.streams, 0);
    {
        bench b;
        static char there;
        ok(cudaHostRegister(&there, 1, 0));
        ck_assert_int_eq(cudaHostRegister(&there, 1, 0), cudaErrorHostMemoryAlreadyRegistered);
        live = emulated_living();
        ck_assert_int_eq(live.allocations, 2);
        ck_assert_int_eq(live.pins, 1);
        ck_assert_int_eq(live.streams, 1);
        ck_assert_uint_eq(live.bytes, sizeof b.host + 8 * sizeof(unsigned));
        ok(cudaHostUnregister(&there));
        ck_assert_int_eq(cudaHostUnregister(&there), cudaErrorHostMemoryNotRegistered);
    }
    live = emulated_living();
    ck_assert_int_eq(live.allocations + live.pins + live.streams, 0);
}
END_TEST

/* ---- devices and faults ------------------------------------------------------------------------------------------ */

START_TEST(there_may_be_none) {
    int n = 7;
    emulated_devices(0);
    ck_assert_int_eq(cudaGetDeviceCount(&n), cudaErrorNoDevice);
    ck_assert_int_eq(n, 0);
    emulated_devices(-1);
    ck_assert_int_eq(cudaGetDeviceCount(&n), cudaErrorInsufficientDriver);
    emulated_devices(2);
    ok(cudaGetDeviceCount(&n));
    ck_assert_int_eq(n, 2);
    ck_assert_int_eq(cudaSetDevice(2), cudaErrorInvalidDevice);
}
END_TEST

void other_memory() {
    unsigned *memory;
    emulated_devices(2);
    (void)cudaSetDevice(1);
    (void)cudaMalloc(reinterpret_cast<void **>(&memory), 64);
    (void)cudaSetDevice(0);
    bench b;
    (void)cudaMemsetAsync(memory, 0, 64, b.stream);
}

START_TEST(two_devices_are_told_apart) {
    emulated_devices(2);
    bench b;
    ok(cudaSetDevice(1));
    ck_assert_int_eq(b.launch(sum_kernel, 1, 64, 128), cudaErrorInvalidResourceHandle);
    ok(cudaSetDevice(0));
    dies(other_memory, "memory of device 1 in a stream of device 0");
}
END_TEST

START_TEST(memory_ends) {
    void *first, *second;
    emulated_memory(1000);
    ok(cudaMalloc(&first, 600));
    ck_assert_int_eq(cudaMalloc(&second, 600), cudaErrorMemoryAllocation);
    ok(cudaFree(first));
    ok(cudaMalloc(&second, 600));
    ok(cudaFree(second));
}
END_TEST

START_TEST(a_call_fails_once) {
    int device;
    emulated_fail(2, cudaErrorLaunchOutOfResources, false);
    ok(cudaGetDevice(&device));
    ck_assert_int_eq(cudaGetDevice(&device), cudaErrorLaunchOutOfResources);
    ok(cudaGetDevice(&device));
    ck_assert_int_eq(cudaPeekAtLastError(), cudaErrorLaunchOutOfResources);
    ck_assert_int_eq(cudaGetLastError(), cudaErrorLaunchOutOfResources);
    ok(cudaGetLastError());
    ck_assert_int_eq(emulated_calls(), 3);
}
END_TEST

START_TEST(a_sticky_error_stays) {
    int device;
    bench b;
    static unsigned there;
    ok(cudaHostRegister(&there, sizeof there, 0));
    ok(cudaMemcpyAsync(&there, b.out, sizeof there, cudaMemcpyDeviceToHost, b.stream));
    emulated_fail(1, cudaErrorIllegalAddress, false);
    ck_assert_int_eq(cudaStreamSynchronize(b.stream), cudaErrorIllegalAddress);
    ck_assert_int_eq(cudaGetDevice(&device), cudaErrorIllegalAddress);
    ck_assert_int_eq(cudaGetLastError(), cudaErrorIllegalAddress);
    ck_assert_int_eq(cudaGetLastError(), cudaErrorIllegalAddress);
    ck_assert_int_eq(cudaFree(b.out), cudaErrorIllegalAddress);
    ck_assert_uint_eq(there, 0xa5a5a5a5u); /* lost with the device */
    ck_assert_str_eq(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress");
    emulated_reset();
}
END_TEST

void waits_for_ever() {
    bench b;
    emulated_hang(1);
    (void)b.launch(sum_kernel, 8, 128, 128);
    (void)cudaStreamSynchronize(b.stream);
}

START_TEST(a_hang_is_one) {
    bench b;
    emulated_hang(2);
    ok(b.launch(sum_kernel, 8, 128, 128));
    ok(cudaStreamSynchronize(b.stream));
    ok(b.launch(sum_kernel, 8, 128, 128));
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(cudaStreamQuery(b.stream), cudaErrorNotReady);
    }
    dies(waits_for_ever, "would wait for ever");
    emulated_reset();
}
END_TEST

/* ---- threads ----------------------------------------------------------------------------------------------------- */

void *worker(void *wrong) {
    for (int i = 0; i < 10; i++) {
        bench b;
        *static_cast<int *>(wrong) += b.run(sum_kernel, 8, 128, 128) != b.owed;
    }
    return nullptr;
}

START_TEST(threads_have_streams_of_their_own) {
    pthread_t threads[4];
    int wrong[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], nullptr, worker, &wrong[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], nullptr);
        ck_assert_int_eq(wrong[i], 0);
    }
}
END_TEST

} // namespace

int main() {
    Suite *suite = suite_create("emulated");
    TCase *tests = tcase_create("all");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, kernels_compute);
    tcase_add_test(tests, primitives_give_what_they_should);
    tcase_add_test(tests, threads_that_ended_have_arrived);
    tcase_add_test(tests, memory_is_poisoned);
    tcase_add_test(tests, a_missing_barrier_shows);
#ifdef __SANITIZE_THREAD__
    tcase_add_test(tests, a_lost_update_is_a_race);
#endif
    tcase_add_test(tests, threads_that_wait_for_each_other_are_found);
#ifdef __SANITIZE_ADDRESS__
    tcase_add_test(tests, writing_outside_memory_is_found);
#endif
    tcase_add_test(tests, launches_that_no_device_takes_are_found);
    tcase_add_test(tests, a_copy_of_pinned_memory_happens_as_late_as_it_may);
    tcase_add_test(tests, a_query_says_when_all_is_done);
    tcase_add_test(tests, copies_that_cannot_be_are_found);
    tcase_add_test(tests, what_is_not_given_back_is_counted);
    tcase_add_test(tests, there_may_be_none);
    tcase_add_test(tests, two_devices_are_told_apart);
    tcase_add_test(tests, memory_ends);
    tcase_add_test(tests, a_call_fails_once);
    tcase_add_test(tests, a_sticky_error_stays);
    tcase_add_test(tests, a_hang_is_one);
    tcase_add_test(tests, threads_have_streams_of_their_own);
    suite_add_tcase(suite, tests);
    emulated_warm();
    return suite_run(suite);
}
