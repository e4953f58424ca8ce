// SPDX-License-Identifier: Apache-2.0
/*
 * The emulated runtime: devices, memory, streams, errors. One lock around every call; kernels run under it, in the
 * thread that queries or synchronises their stream.
 *
 * A stream is a queue, and what is put there happens as late as it may: when the stream is synchronised, some of it at
 * a query, all of it before a copy that involves memory which is not pinned. So host memory that is changed too early
 * is read changed, and the destination of a copy holds garbage until then. Memory of the device is malloc's, each
 * allocation its own, and poisoned. Copies must lie within one allocation of the stream's device.
 */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_runtime_api.h"
#include "device.h"
#include "emulated.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace {

enum { MAX_DEVICES = 8 };

struct operation {
    enum { COPY, FILL, LAUNCH } kind;
    unsigned char *to;
    const unsigned char *from;
    size_t bytes;
    int value;      /* of a fill */
    bool hangs;     /* a kernel that never ends */
    const void *on; /* the pinned range it touches; NULL: none */
    emulated_launch launch;
};

struct range {
    unsigned char *begin;
    size_t bytes;
    int device;
    bool contains(const void *p, size_t n) const {
        const unsigned char *at = static_cast<const unsigned char *>(p);
        return at >= begin && n <= bytes && static_cast<size_t>(at - begin) <= bytes - n;
    }
    bool meets(const void *p, size_t n) const {
        const unsigned char *at = static_cast<const unsigned char *>(p);
        return at < begin + bytes && begin < at + n;
    }
};

using ranges = std::map<const void *, range>;

} // namespace

struct emulated_stream {
    int device;
    std::deque<operation> queue;
};

namespace {

/* What the environment said, then the tests. */
struct settings {
    int devices = 1;
    size_t memory = size_t{4} << 30;
    uint64_t seed = 1;
    long fail_at = 0, hang_at = 0;
    int fail_code = 0;
    bool fail_for_ever = false, trace = false;
};

/* Alive for the process, so that nothing is destroyed under a thread that outlives main(). */
struct world {
    std::mutex lock;
    settings set;
    long calls = 0, launches = 0;
    cudaError_t lost = cudaSuccess;
    const char *failed = nullptr;
    size_t used[MAX_DEVICES] = {};
    ranges allocations, pins;
    std::map<emulated_stream *, int> streams;
    std::map<const void *, int> shared_limits;
    uint64_t polls = 0;
};

thread_local int current_device;
thread_local cudaError_t last_error;

long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtol(text, nullptr, 0) : otherwise;
}

settings settings_of_environment() {
    settings s;
    s.devices = static_cast<int>(number("EMULATED_CUDA_DEVICES", s.devices));
    s.memory = static_cast<size_t>(number("EMULATED_CUDA_MEMORY", static_cast<long>(s.memory)));
    s.seed = static_cast<uint64_t>(number("EMULATED_CUDA_SEED", 1));
    s.hang_at = number("EMULATED_CUDA_HANG", 0);
    s.trace = number("EMULATED_CUDA_TRACE", 0) != 0;
    const char *fail = getenv("EMULATED_CUDA_FAIL");
    if (fail && sscanf(fail, "%ld:%d", &s.fail_at, &s.fail_code) != 2) {
        emulated_die("EMULATED_CUDA_FAIL is \"%s\", not CALL:CODE", fail);
    }
    emulated_shuffle_with(s.seed);
    return s;
}

world &the_world() {
    static world &w = *[] {
        world *made = new world;
        made->set = settings_of_environment();
        return made;
    }();
    return w;
}

/* Nothing works after these. */
bool is_sticky(int code) {
    static const int sticky[] = {
        cudaErrorECCUncorrectable, cudaErrorNvlinkUncorrectable, cudaErrorIllegalAddress,    cudaErrorLaunchTimeout,
        cudaErrorAssert,           cudaErrorIllegalInstruction,  cudaErrorMisalignedAddress, cudaErrorLaunchFailure,
        cudaErrorUnknown};
    for (int one : sticky) {
        if (one == code) {
            return true;
        }
    }
    return false;
}

cudaError_t remember(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady) {
        last_error = error;
    }
    return error;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Of much memory only the ends. */
void poison(unsigned char *memory, size_t bytes) {
    const size_t most = size_t{32} << 20;
    memset(memory, EMULATED_POISON, bytes < most ? bytes : most);
    if (bytes > most) {
        const size_t rest = bytes - most < most ? bytes - most : most;
        memset(memory + bytes - rest, EMULATED_POISON, rest);
    }
}

/* The one that holds these bytes, or NULL; one that holds only some of them ends the process. */
const range *find(const ranges &in, const void *memory, size_t bytes, const char *what) {
    for (const auto &entry : in) {
        if (entry.second.contains(memory, bytes)) {
            return &entry.second;
        }
        if (entry.second.meets(memory, bytes)) {
            emulated_die("%zu bytes at %p lie only partly in %s of %zu bytes at %p", bytes, memory, what,
                         entry.second.bytes, static_cast<const void *>(entry.second.begin));
        }
    }
    return nullptr;
}

const range *find_device(world &w, const void *memory, size_t bytes) {
    return find(w.allocations, memory, bytes, "device memory");
}

const range *find_pinned(world &w, const void *memory, size_t bytes) {
    return find(w.pins, memory, bytes, "pinned memory");
}

bool is_mapped(uint64_t address) {
    unsigned char there;
    const uint64_t page = address & ~UINT64_C(4095);
    return !mincore(reinterpret_cast<void *>(page), 1, &there);
}

/* Numbers among the arguments that are addresses here and none on a device. Two small numbers side by side are not
 * taken for one: nothing is as low as that, but for the address sanitizer's own memory. */
void check_arguments(world &w, const emulated_launch &launch) {
    const uint64_t lowest = UINT64_C(0x100080000000);
    for (size_t at = 0; at + 8 <= sizeof launch.args; at += 8) {
        uint64_t word;
        memcpy(&word, reinterpret_cast<const char *>(&launch.args) + at, 8);
        const void *pointer = reinterpret_cast<const void *>(word);
        if (word >> 47 || word < lowest || static_cast<uint32_t>(word) < 1u << 24 || find_device(w, pointer, 0) ||
            find_pinned(w, pointer, 0)) {
            continue;
        }
        if (is_mapped(word)) {
            emulated_die("a kernel is given %p at byte %zu of its arguments, an address of the host", pointer, at);
        }
    }
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */

void carry_out(const operation &one) {
    switch (one.kind) {
    case operation::COPY:
        memmove(one.to, one.from, one.bytes);
        break;
    case operation::FILL:
        memset(one.to, one.value, one.bytes);
        break;
    case operation::LAUNCH:
        emulated_execute(one.launch);
        break;
    }
}

/* At most so many operations; whether all are done. */
bool advance(emulated_stream *stream, size_t most) {
    for (; most > 0 && !stream->queue.empty() && !stream->queue.front().hangs; most--) {
        carry_out(stream->queue.front());
        stream->queue.pop_front();
    }
    return stream->queue.empty();
}

void finish(emulated_stream *stream, const char *who) {
    if (!advance(stream, SIZE_MAX)) {
        emulated_die("%s would wait for ever: a kernel of its stream hangs", who);
    }
}

void finish_device(world &w, int device, const char *who) {
    for (const auto &entry : w.streams) {
        if (entry.second == device) {
            finish(entry.first, who);
        }
    }
}

bool is_stream(world &w, emulated_stream *stream, const char *who) {
    if (!stream) {
        emulated_die("%s: the default stream waits for all others: use one of your own", who);
    }
    return w.streams.count(stream) > 0;
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

/* Holds the lock; `error` is what the call gives without doing anything, cudaSuccess: go on. */
struct call {
    world &w;
    std::unique_lock<std::mutex> hold;
    cudaError_t error = cudaSuccess;

    explicit call(const char *name) : w(the_world()), hold(w.lock) {
        settings &s = w.set;
        w.calls++;
        if (s.trace) {
            fprintf(stderr, "emulated CUDA: call %ld: %s on %d\n", w.calls, name, current_device);
        }
        if (s.devices <= 0) {
            error = s.devices < 0 ? cudaErrorInsufficientDriver : cudaErrorNoDevice;
        } else if (w.lost != cudaSuccess) {
            error = w.lost;
        } else if (s.fail_at > 0 && (w.calls == s.fail_at || (s.fail_for_ever && w.calls > s.fail_at))) {
            error = static_cast<cudaError_t>(s.fail_code);
            w.failed = w.failed ? w.failed : name;
            if (is_sticky(s.fail_code)) {
                lose(error);
            }
        }
        remember(error);
    }

    /* What was on its way is lost with the device. */
    void lose(cudaError_t why) {
        w.lost = why;
        for (const auto &entry : w.streams) {
            entry.first->queue.clear();
        }
    }
};

} // namespace

#define ENTER()                                                                                                        \
    call entered(__func__);                                                                                            \
    world &w = entered.w;                                                                                              \
    (void)w;                                                                                                           \
    if (entered.error != cudaSuccess) {                                                                                \
        return entered.error;                                                                                          \
    }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    ENTER();
    *count = w.set.devices;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device) {
    ENTER();
    if (device < 0 || device >= w.set.devices) {
        return remember(cudaErrorInvalidDevice);
    }
    *prop = cudaDeviceProp{};
    snprintf(prop->name, sizeof prop->name, "Emulated GPU");
    prop->totalGlobalMem = w.set.memory;
    prop->sharedMemPerBlock = EMULATED_SHARED_PLAIN;
    prop->sharedMemPerBlockOptin = EMULATED_SHARED_MOST;
    prop->sharedMemPerMultiprocessor = EMULATED_SHARED_MOST + 1024;
    prop->warpSize = 32;
    prop->maxThreadsPerBlock = EMULATED_THREADS_MOST;
    prop->maxThreadsPerMultiProcessor = 2048;
    prop->maxGridSize[0] = 2147483647;
    prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
    prop->major = 9;
    prop->minor = 0;
    prop->multiProcessorCount = 4;
    prop->unifiedAddressing = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    ENTER();
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    ENTER();
    if (device < 0 || device >= w.set.devices) {
        return remember(cudaErrorInvalidDevice);
    }
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = the_world().set.devices < 0 ? 0 : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    ENTER();
    *total = w.set.memory;
    *available = w.set.memory - w.used[current_device];
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    ENTER();
    void *made = nullptr;
    if (bytes == 0) {
        *memory = nullptr;
        return cudaSuccess;
    }
    if (bytes > w.set.memory - w.used[current_device] || posix_memalign(&made, 256, bytes)) {
        return remember(cudaErrorMemoryAllocation);
    }
    unsigned char *begin = static_cast<unsigned char *>(made);
    poison(begin, bytes);
    w.allocations[made] = range{begin, bytes, current_device};
    w.used[current_device] += bytes;
    *memory = made;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
    ENTER();
    if (!memory) {
        return cudaSuccess;
    }
    auto found = w.allocations.find(memory);
    if (found == w.allocations.end()) {
        return remember(cudaErrorInvalidValue);
    }
    finish_device(w, found->second.device, __func__);
    w.used[found->second.device] -= found->second.bytes;
    w.allocations.erase(found);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned int flags) {
    ENTER();
    (void)flags;
    if (!memory || bytes == 0) {
        return remember(cudaErrorInvalidValue);
    }
    for (const auto &entry : w.pins) {
        if (entry.second.meets(memory, bytes)) {
            return remember(cudaErrorHostMemoryAlreadyRegistered);
        }
    }
    w.pins[memory] = range{static_cast<unsigned char *>(memory), bytes, 0};
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory) {
    ENTER();
    auto found = w.pins.find(memory);
    if (found == w.pins.end()) {
        return remember(cudaErrorHostMemoryNotRegistered);
    }
    for (const auto &entry : w.streams) {
        for (const operation &one : entry.first->queue) {
            if (one.on == memory) {
                emulated_die("%p is unregistered while a copy of %zu bytes is on its way", memory, one.bytes);
            }
        }
    }
#ifdef __SANITIZE_ADDRESS__
    if (__asan_region_is_poisoned(memory, found->second.bytes)) {
        emulated_die("%p was freed before it was unregistered", memory);
    }
#endif
    w.pins.erase(found);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    ENTER();
    if (flags != cudaStreamDefault && flags != cudaStreamNonBlocking) {
        return remember(cudaErrorInvalidValue);
    }
    emulated_stream *made = new emulated_stream{current_device, {}};
    w.streams[made] = current_device;
    *stream = made;
    return cudaSuccess;
}

/* The work of a stream goes on after it is destroyed. */
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    ENTER();
    if (!is_stream(w, stream, __func__)) {
        return remember(cudaErrorInvalidResourceHandle);
    }
    advance(stream, SIZE_MAX);
    w.streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    ENTER();
    if (!is_stream(w, stream, __func__)) {
        return remember(cudaErrorInvalidResourceHandle);
    }
    return advance(stream, w.polls++ % 3) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    ENTER();
    if (!is_stream(w, stream, __func__)) {
        return remember(cudaErrorInvalidResourceHandle);
    }
    finish(stream, __func__);
    return cudaSuccess;
}

/* Whether a range is on the stream's device; one on another ends the process. */
static bool is_on_device(world &w, const void *memory, size_t bytes, const emulated_stream *stream) {
    const range *found = find_device(w, memory, bytes);
    if (found && found->device != stream->device) {
        emulated_die("memory of device %d in a stream of device %d", found->device, stream->device);
    }
    return found != nullptr;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    ENTER();
    if (!is_stream(w, stream, __func__)) {
        return remember(cudaErrorInvalidResourceHandle);
    }
    if (bytes == 0) {
        return cudaSuccess;
    }
    const bool to_device = is_on_device(w, to, bytes, stream), from_device = is_on_device(w, from, bytes, stream);
    const bool says_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool says_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && (to_device != says_to || from_device != says_from)) {
        emulated_die("a copy of kind %d of %zu bytes from %p (%s) to %p (%s)", kind, bytes, from,
                     from_device ? "device" : "host", to, to_device ? "device" : "host");
    }
    const range *pinned_to = to_device ? nullptr : find_pinned(w, to, bytes);
    const range *pinned_from = from_device ? nullptr : find_pinned(w, from, bytes);
    const bool waits = (!to_device && !pinned_to) || (!from_device && !pinned_from);
    const range *on = pinned_to ? pinned_to : pinned_from;
    operation copy{};
    copy.kind = operation::COPY;
    copy.to = static_cast<unsigned char *>(to);
    copy.from = static_cast<const unsigned char *>(from);
    copy.bytes = bytes;
    copy.on = on ? on->begin : nullptr;
    if (waits) {
        finish(stream, __func__);
        carry_out(copy);
    } else {
        if (!to_device) {
            memset(to, EMULATED_POISON, bytes); /* until it has come to pass */
        }
        stream->queue.push_back(copy);
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    ENTER();
    if (!is_stream(w, stream, __func__)) {
        return remember(cudaErrorInvalidResourceHandle);
    }
    if (bytes > 0 && !is_on_device(w, to, bytes, stream)) {
        emulated_die("%zu bytes at %p are filled, which are not of the device", bytes, to);
    }
    operation fill{};
    fill.kind = operation::FILL;
    fill.to = static_cast<unsigned char *>(to);
    fill.value = value;
    fill.bytes = bytes;
    stream->queue.push_back(fill);
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
    ENTER();
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > EMULATED_SHARED_MOST) {
        return remember(cudaErrorInvalidValue);
    }
    w.shared_limits[function] = value;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **args, size_t shared,
                             cudaStream_t stream) {
    ENTER();
    if (!is_stream(w, stream, __func__) || stream->device != current_device) {
        return remember(cudaErrorInvalidResourceHandle);
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0 ||
        grid.x > 2147483647u) {
        return remember(cudaErrorInvalidConfiguration);
    }
    if (grid.y != 1 || grid.z != 1 || block.y != 1 || block.z != 1 || block.x > EMULATED_THREADS_MOST) {
        emulated_die("a grid of (%u,%u,%u) blocks of (%u,%u,%u) threads: one dimension, and at most %d threads", grid.x,
                     grid.y, grid.z, block.x, block.y, block.z, EMULATED_THREADS_MOST);
    }
    const auto found = w.shared_limits.find(function);
    const int limit = found == w.shared_limits.end() ? int{EMULATED_SHARED_PLAIN} : found->second;
    if (shared > static_cast<size_t>(limit)) {
        emulated_die("a kernel with %zu bytes of shared memory, and %d are allowed%s", shared, limit,
                     found == w.shared_limits.end() ? " unless cudaFuncSetAttribute says otherwise" : "");
    }
    operation run{};
    run.kind = operation::LAUNCH;
    run.launch.function = function;
    memcpy(&run.launch.args, args[0], sizeof run.launch.args);
    run.launch.grid = grid.x;
    run.launch.block = block.x;
    run.launch.shared = shared;
    check_arguments(w, run.launch);
    w.launches++;
    run.hangs = w.set.hang_at > 0 && w.launches >= w.set.hang_at;
    stream->queue.push_back(run);
    return cudaSuccess;
}

/* These two are not counted and never fail by themselves. */
cudaError_t cudaGetLastError() {
    const cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() {
    world &w = the_world();
    std::lock_guard<std::mutex> hold(w.lock);
    return w.lost != cudaSuccess ? w.lost : last_error;
}

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define EMULATED_ROW(number, name, text)                                                                               \
    case name:                                                                                                         \
        return #name;
        EMULATED_ERRORS(EMULATED_ROW)
#undef EMULATED_ROW
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define EMULATED_ROW(number, name, text)                                                                               \
    case name:                                                                                                         \
        return text;
        EMULATED_ERRORS(EMULATED_ROW)
#undef EMULATED_ROW
    }
    return "unrecognized error code";
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

void emulated_reset() {
    world &w = the_world();
    std::lock_guard<std::mutex> hold(w.lock);
    for (const auto &entry : w.streams) {
        delete entry.first;
    }
    for (const auto &entry : w.allocations) {
        free(entry.second.begin);
    }
    w.streams.clear();
    w.allocations.clear();
    w.pins.clear();
    w.shared_limits.clear();
    memset(w.used, 0, sizeof w.used);
    w.calls = w.launches = 0;
    w.lost = cudaSuccess;
    w.failed = nullptr;
    w.set = settings_of_environment();
    current_device = 0;
    last_error = cudaSuccess;
}

void emulated_devices(int n) {
    the_world().set.devices = n < MAX_DEVICES ? n : int{MAX_DEVICES};
}

void emulated_memory(size_t bytes) {
    the_world().set.memory = bytes;
}

void emulated_seed(uint64_t seed) {
    the_world().set.seed = seed;
    emulated_shuffle_with(seed);
}

void emulated_fail(long call_, int code, bool for_ever) {
    world &w = the_world();
    std::lock_guard<std::mutex> hold(w.lock);
    w.set.fail_at = call_ > 0 ? w.calls + call_ : 0;
    w.set.fail_code = code;
    w.set.fail_for_ever = for_ever;
}

const char *emulated_failed() {
    return the_world().failed;
}

void emulated_hang(long launch) {
    world &w = the_world();
    std::lock_guard<std::mutex> hold(w.lock);
    w.set.hang_at = launch > 0 ? w.launches + launch : 0;
}

long emulated_calls() {
    return the_world().calls;
}

long emulated_launches() {
    return the_world().launches;
}

size_t emulated_used(int device) {
    return the_world().used[device];
}

emulated_live emulated_living() {
    world &w = the_world();
    std::lock_guard<std::mutex> hold(w.lock);
    emulated_live live{};
    live.allocations = static_cast<long>(w.allocations.size());
    live.pins = static_cast<long>(w.pins.size());
    live.streams = static_cast<long>(w.streams.size());
    for (const auto &entry : w.allocations) {
        live.bytes += entry.second.bytes;
    }
    return live;
}
