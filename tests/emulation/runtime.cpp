// The CUDA runtime of the emulation: everything that a stream is given runs at once, so streams and events are always
// done. A stream that captures keeps what it is given; launching the graph runs it.
#include "runtime.h"

#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/cuda_launch.h"
#include "device_memory.h"
#include "machine.h"
#include "model.h"

using namespace fastnn::emulation;

using Work = std::function<cudaError_t()>;
using Works = std::vector<Work>;

struct CUstream_st {
  std::unique_ptr<Works> capture;  // set while capturing
};
struct CUevent_st {
  double milliseconds = 0;
};
struct CUgraph_st {
  Works works;
};
struct CUgraphExec_st {
  Works works;
};

namespace fastnn {
namespace emulation {

const Model& model() {
  static const Model chosen = [] {
    auto number = [](const char* name, int otherwise) {
      const char* text = getenv(name);
      return text ? atoi(text) : otherwise;
    };
    return Model{unsigned(number("FASTNN_EMULATED_PROCESSORS", 4)), number("FASTNN_EMULATED_CAPABILITY", 90),
                 number("FASTNN_EMULATED_LATE_ERRORS", 0) == 1};
  }();
  return chosen;
}

namespace {

// One launch or copy at a time, whatever thread of the host asks.
std::recursive_mutex& mutex() {
  static auto& only = *new std::recursive_mutex;
  return only;
}

cudaError_t last_error = cudaSuccess;
std::string last_words;  // what went wrong, beyond the error's name
std::map<const char*, size_t> pinned;

cudaError_t fail_with(cudaError_t error, std::string words = "") {
  last_error = error;
  last_words = std::move(words);
  return error;
}

// A kernel's fault: an error of its launch, or of the next wait.
std::string late_words;

cudaError_t fault_of_kernel(std::string words) {
  if (!model().late_errors) return fail_with(cudaErrorLaunchFailure, std::move(words));
  if (late_words.empty()) late_words = std::move(words);
  return cudaSuccess;
}

cudaError_t waited() {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  return late_words.empty() ? cudaSuccess : fail_with(cudaErrorLaunchFailure, std::exchange(late_words, {}));
}

cudaError_t enqueue(cudaStream_t stream, Work work) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  if (stream && stream->capture) {
    stream->capture->push_back(std::move(work));
    return cudaSuccess;
  }
  return work();
}

cudaError_t while_capturing(cudaStream_t stream, const char* call) {
  if (!stream || !stream->capture) return cudaSuccess;
  return fail_with(cudaErrorStreamCaptureUnsupported, call);
}

bool is_pinned(const void* pointer) {
  auto byte = static_cast<const char*>(pointer);
  auto after = pinned.upper_bound(byte);
  if (after == pinned.begin()) return false;
  --after;
  return byte < after->first + after->second;
}

// Kernels get no pointers to the host's memory: each aligned word of their arguments that is the address of something
// mapped must be the device's, or pinned.
const void* host_pointer_in(const void* argument, size_t bytes) {
  auto words = static_cast<const char*>(argument);
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    uintptr_t word;
    memcpy(&word, words + at, sizeof word);
    if (word < (uintptr_t(1) << 32) || word >= (uintptr_t(1) << 47)) continue;
    auto pointer = reinterpret_cast<const void*>(word);
    unsigned char resident;
    if (is_device_address(pointer) || is_pinned(pointer)) continue;
    if (mincore(reinterpret_cast<void*>(word & ~uintptr_t(4095)), 1, &resident) == 0) return pointer;
  }
  return nullptr;
}

std::string wrong_shape(const Shape& shape) {
  const dim3 g = shape.grid, b = shape.block;
  const size_t threads = size_t(b.x) * b.y * b.z;
  auto triple = [](dim3 d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
  };
  if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) return "a grid of " + triple(g);
  if (threads == 0 || threads > kBlockThreadsLimit || b.z > 64) return "a block of " + triple(b) + " threads";
  if (shape.shared_bytes > kBlockShared)
    return std::to_string(shape.shared_bytes) + " bytes of dynamic shared memory; a block has " +
           std::to_string(kBlockShared);
  if (shape.cluster == 0 || shape.cluster > 8 || g.x % shape.cluster)
    return "clusters of " + std::to_string(shape.cluster) + " in a grid of " + triple(g);
  return "";
}

}  // namespace

cudaError_t launch_grid(cudaStream_t stream, const void*, const Shape& shape, std::initializer_list<Argument> arguments,
                        std::function<void()> thread_body) {
  const std::string wrong = wrong_shape(shape);
  if (!wrong.empty()) return fail_with(cudaErrorInvalidConfiguration, wrong);
  for (const Argument& argument : arguments)
    if (const void* pointer = host_pointer_in(argument.data, argument.bytes)) {
      char words[100];
      snprintf(words, sizeof words, "an argument of the kernel holds the address %p of the host's memory", pointer);
      return fail_with(cudaErrorIllegalAddress, words);
    }
  return enqueue(stream, [shape, thread_body = std::move(thread_body)] {
    MemoryScope open;
    const std::string wrong = run_grid("launch", shape, thread_body);
    return wrong.empty() ? cudaSuccess : fault_of_kernel(wrong);
  });
}

cudaStream_t current_stream() { return cuda_stream(); }
void check_launch(cudaError_t error) { check_cuda(error, "launch"); }

}  // namespace emulation
}  // namespace fastnn

// ------------------------------------------------------------------------------ errors

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define FASTNN_CASE(name, number, text) \
  case name: return #name;
    FASTNN_EMULATED_ERRORS(FASTNN_CASE)
#undef FASTNN_CASE
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  static thread_local std::string text;
  switch (error) {
#define FASTNN_CASE(name, number, words) \
  case name: text = words; break;
    FASTNN_EMULATED_ERRORS(FASTNN_CASE)
#undef FASTNN_CASE
  }
  if (!last_words.empty()) text += ": " + std::exchange(last_words, {});
  return text.c_str();
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

// ------------------------------------------------------------------------------ devices

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : fail_with(cudaErrorInvalidDevice); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return fail_with(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = int(kBlockThreadsLimit); break;
    case cudaDevAttrWarpSize: *value = kWarpThreads; break;
    case cudaDevAttrClockRate: *value = 1000000; break;
    case cudaDevAttrMultiProcessorCount: *value = int(model().processors); break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = int(kProcessorThreads); break;
    case cudaDevAttrComputeCapabilityMajor: *value = model().capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = model().capability % 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = int(kProcessorShared); break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(kBlockShared); break;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return fail_with(cudaErrorInvalidDevice);
  *properties = {};
  strcpy(properties->name, "emulated");
  properties->totalGlobalMem = kDeviceBytes;
  properties->sharedMemPerBlock = kDefaultShared;
  properties->sharedMemPerBlockOptin = kBlockShared;
  properties->sharedMemPerMultiprocessor = kProcessorShared;
  properties->regsPerBlock = 65536;
  properties->warpSize = kWarpThreads;
  properties->maxThreadsPerBlock = int(kBlockThreadsLimit);
  properties->maxThreadsPerMultiProcessor = int(kProcessorThreads);
  properties->major = model().capability / 10;
  properties->minor = model().capability % 10;
  properties->multiProcessorCount = int(model().processors);
  properties->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return waited(); }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return fail_with(cudaErrorInvalidDevice); }

// ------------------------------------------------------------------------------ memory

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  *free_bytes = free_memory_bytes();
  *total_bytes = kDeviceBytes;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** block, size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  catch_faults();
  *block = allocate_memory(bytes);
  return *block ? cudaSuccess : fail_with(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* block) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  return !block || free_memory(block) ? cudaSuccess : fail_with(cudaErrorInvalidValue, "no such device memory");
}
cudaError_t cudaMallocAsync(void** block, size_t bytes, cudaStream_t) { return cudaMalloc(block, bytes); }
cudaError_t cudaFreeAsync(void* block, cudaStream_t) { return cudaFree(block); }
cudaError_t cudaHostAlloc(void** block, size_t bytes, unsigned) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  *block = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!*block) return fail_with(cudaErrorMemoryAllocation);
  pinned[static_cast<char*>(*block)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** block, size_t bytes) { return cudaHostAlloc(block, bytes, cudaHostAllocDefault); }
cudaError_t cudaFreeHost(void* block) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  if (!block) return cudaSuccess;
  if (!pinned.erase(static_cast<char*>(block))) return fail_with(cudaErrorInvalidValue, "no such pinned memory");
  free(block);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  auto address = const_cast<void*>(pointer);
  *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, address};
  if (is_allocated(pointer, 1)) *attributes = {cudaMemoryTypeDevice, 0, address, nullptr};
  if (is_pinned(pointer)) *attributes = {cudaMemoryTypeHost, 0, address, address};
  return cudaSuccess;
}

static cudaError_t check_side(const void* pointer, size_t bytes, bool may_be_device, bool may_be_host) {
  if (is_device_address(pointer)) {
    if (!may_be_device) return fail_with(cudaErrorInvalidValue, "device memory where the host's was named");
    if (!is_allocated(pointer, bytes)) return fail_with(cudaErrorInvalidValue, describe_address(pointer));
  } else if (!may_be_host) {
    return fail_with(cudaErrorInvalidValue, "the host's memory where the device's was named");
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  std::lock_guard<std::recursive_mutex> lock(mutex());
  const bool any = kind == cudaMemcpyDefault;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (cudaError_t error = check_side(dst, bytes, any || to_device, any || !to_device)) return error;
  if (cudaError_t error = check_side(src, bytes, any || from_device, any || !from_device)) return error;
  return enqueue(stream, [=] {
    MemoryScope open;
    memmove(dst, src, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(dst, src, bytes, kind, nullptr);
}
cudaError_t cudaMemcpyPeerAsync(void* dst, int, const void* src, int, size_t bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  std::lock_guard<std::recursive_mutex> lock(mutex());
  if (cudaError_t error = check_side(dst, bytes, true, false)) return error;
  return enqueue(stream, [=] {
    MemoryScope open;
    memset(dst, value, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemset(void* dst, int value, size_t bytes) { return cudaMemsetAsync(dst, value, bytes, nullptr); }

// ------------------------------------------------------------------------------ streams and events

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return cudaStreamCreate(stream); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamGetDevice(cudaStream_t, int* device) { return cudaGetDevice(device); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const cudaError_t error = while_capturing(stream, "cudaStreamSynchronize");
  return error == cudaSuccess ? waited() : error;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return while_capturing(stream, "cudaStreamQuery"); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return enqueue(stream, [=] {
    function(data);
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  event->milliseconds = std::chrono::duration<double, std::milli>(now).count();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waited(); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = float(end->milliseconds - start->milliseconds);
  return cudaSuccess;
}

// ------------------------------------------------------------------------------ graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || stream->capture) return fail_with(cudaErrorStreamCaptureUnsupported);
  stream->capture = std::make_unique<Works>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!stream || !stream->capture) return fail_with(cudaErrorInvalidValue, "the stream does not capture");
  *graph = new CUgraph_st{std::move(*stream->capture)};
  stream->capture.reset();
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream && stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(*mode, current);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->works};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return enqueue(stream, [exec] {
    for (const Work& work : exec->works)
      if (cudaError_t error = work()) return error;
    return cudaSuccess;
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = graph->works.size();
  return cudaSuccess;
}

}  // extern "C"
