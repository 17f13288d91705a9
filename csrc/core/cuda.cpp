#include "core/cuda.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "core/check.h"
#include "core/cuda_context.h"
#include "core/cuda_graph.h"
#include "core/found.h"
#include "core/parallel.h"

namespace fastnn {
namespace {

constexpr int kLowestCapability = 80;  // 10 x major + minor: the base kernels are built for 8.0

std::string capability_text(int capability) { return str(capability / 10, ".", capability % 10); }

// What the driver said when it was first asked.
struct Probe {
  std::string reason;             // empty: at least one device can be used
  std::vector<int> capabilities;  // of each device
};

std::string no_devices_reason(cudaError_t error) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);  // 0 without a driver
  cudaRuntimeGetVersion(&runtime);
  auto version = [](int v) { return str(v / 1000, ".", v % 1000 / 10); };
  if (driver == 0) return "no CUDA driver is installed";
  if (error == cudaErrorInsufficientDriver)
    return str("the CUDA driver supports CUDA ", version(driver), ", this build needs ", version(runtime));
  if (error == cudaErrorNoDevice) return "the CUDA driver found no GPU";
  return cudaGetErrorString(error);
}

std::atomic<bool> forked{false};
std::atomic<bool> initialized{false};
thread_local int current_device = 0;

Probe ask_driver() {
  Probe probe;
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  count = count < kMaxCudaDevices ? count : kMaxCudaDevices;
  for (int i = 0; i < count && error == cudaSuccess; ++i) {
    int major = 0, minor = 0;
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i);
    probe.capabilities.push_back(10 * major + minor);
  }
  cudaGetLastError();  // the error is told by the reason: it must not appear at the next call
  if (error != cudaSuccess || count == 0) {
    probe.capabilities.clear();
    probe.reason = no_devices_reason(error == cudaSuccess ? cudaErrorNoDevice : error);
    return probe;
  }
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  int best = 0;
  for (int capability : probe.capabilities) best = capability > best ? capability : best;
  if (best < kLowestCapability)
    probe.reason = str("the GPU has compute capability ", capability_text(best), ", fastnn needs ",
                       capability_text(kLowestCapability), " or later");
  return probe;
}

const Probe& probe() {
  static const Probe answer = ask_driver();
  return answer;
}

// Throws DeviceError unless the device is there and can be used.
void check_device(Device device) {
  check<DeviceError>(!forked, device, ": CUDA was in use when this process was forked; start it with 'spawn'");
  check<DeviceError>(cuda_is_available(), device, ": ", probe().reason);
  check<DeviceError>(device.index >= 0 && size_t(device.index) < probe().capabilities.size(), device,
                     ": this machine has ", probe().capabilities.size(), " CUDA device(s)");
  const int capability = probe().capabilities[size_t(device.index)];
  check<DeviceError>(capability >= kLowestCapability, device, ": has compute capability ", capability_text(capability),
                     ", fastnn needs ", capability_text(kLowestCapability), " or later");
}

CudaContext* open_context(Device device) {
  auto* opened = new CudaContext;
  CudaDeviceScope scope(device);
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamDefault), "cudaStreamCreate");
  opened->default_stream = {device, stream};
  opened->allocator = make_cuda_allocator(device);
  initialized = true;
  return opened;
}

int runtime_device() {
  int index = 0;
  check_cuda(cudaGetDevice(&index), "cudaGetDevice");
  return index;
}

}  // namespace

// ----------------------------------------------------------------------------------------- errors

void check_cuda(cudaError_t error, const char* what) {
  if (__builtin_expect(error == cudaSuccess, 1)) return;
  // A fault of a kernel is found by whatever waits next, and stays.
  constexpr int kFirstFault = 714;  // a stack error of the hardware; the others follow
  const bool fault = error == cudaErrorIllegalAddress || (error >= kFirstFault && error <= cudaErrorLaunchFailure);
  fail<DeviceError>(what, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")",
                    fault ? "; a kernel before this call may have failed: FASTNN_CUDA_SYNC=1 makes the error name its "
                            "operation, and the GPU can be used again only by a new process"
                          : "");
}

bool cuda_waits_for_kernels() {
  static const bool waits = [] {
    const char* value = std::getenv("FASTNN_CUDA_SYNC");
    return value && *value && std::strcmp(value, "0") != 0;
  }();
  return waits;
}

void cuda_kernel_done(const char* kernel) {
  if (!cuda_waits_for_kernels() || cuda_is_capturing()) return;
  const cudaError_t error = cudaStreamSynchronize(cuda_stream());
  check<DeviceError>(error == cudaSuccess, kernel, ": the CUDA kernel failed: ", cudaGetErrorString(error), " (",
                     cudaGetErrorName(error), ")");
}

// ---------------------------------------------------------------------------------------- devices

bool cuda_is_available() { return probe().reason.empty(); }
std::string cuda_reason() { return probe().reason; }
int cuda_device_count() { return cuda_is_available() ? int(probe().capabilities.size()) : 0; }
bool cuda_is_initialized() { return initialized && !forked; }
bool cuda_forked() { return forked; }
int cuda_current_device() { return current_device; }

void cuda_init() { cuda_context({DeviceType::CUDA, int8_t(current_device)}); }

void cuda_set_device(int index) {
  check<DeviceError>(index >= 0 && index < kMaxCudaDevices, "cuda:", index, ": there is no such device");
  check_device({DeviceType::CUDA, int8_t(index)});
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  current_device = index;
}

CudaContext& cuda_context(Device device) {
  static std::mutex mutex;
  static std::atomic<CudaContext*> contexts[kMaxCudaDevices] = {};
  check_device(device);
  auto& slot = contexts[device.index];
  if (CudaContext* opened = slot.load(std::memory_order_acquire)) return *opened;
  std::lock_guard<std::mutex> lock(mutex);
  if (!slot) slot = open_context(device);
  return *slot;
}

CudaDeviceScope::CudaDeviceScope(Device device) : before_(runtime_device()), current_(device.index) {
  if (current_ != before_) check_cuda(cudaSetDevice(current_), "cudaSetDevice");
}

CudaDeviceScope::~CudaDeviceScope() {
  if (current_ != before_) cudaSetDevice(before_);
}

void cuda_synchronize(Device device) {
  cuda_context(device);
  check_not_capturing("synchronize");
  CudaDeviceScope scope(device);
  void* lock = host_hooks.release ? host_hooks.release() : nullptr;
  const cudaError_t error = cudaDeviceSynchronize();
  if (lock) host_hooks.retake(lock);
  check_cuda(error, "synchronize");
  cuda_throw_found();
}

CudaProperties cuda_properties(Device device) {
  check_device(device);
  cudaDeviceProp found{};
  check_cuda(cudaGetDeviceProperties(&found, device.index), "cudaGetDeviceProperties");
  CudaProperties answer{};
  answer.name = found.name;
  answer.major = found.major;
  answer.minor = found.minor;
  answer.total_memory = int64_t(found.totalGlobalMem);
  answer.l2_cache_size = found.l2CacheSize;
  answer.shared_memory_per_multiprocessor = int64_t(found.sharedMemPerMultiprocessor);
  answer.shared_memory_per_block = int64_t(found.sharedMemPerBlockOptin);
  answer.multi_processor_count = found.multiProcessorCount;
  answer.max_threads_per_multi_processor = found.maxThreadsPerMultiProcessor;
  answer.warp_size = found.warpSize;
  return answer;
}

}  // namespace fastnn
