#include "core/cuda.h"

#include <pthread.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "core/caching_allocator.h"
#include "core/check.h"
#include "core/cuda_launch.h"
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

// A driver does not survive a fork: in the child every use raises, and releases do nothing.
std::atomic<bool> forked{false};

Probe ask_driver() {
  Probe probe;
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
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

class CudaAllocator : public CachingAllocator {
 public:
  CudaAllocator(Device device, int64_t capacity) : CachingAllocator(str(device), capacity), device_(device) {}

 protected:
  void* system_allocate(size_t bytes) override {
    CudaDeviceScope scope(device_);
    void* block = nullptr;
    const cudaError_t error = cudaMalloc(&block, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // answered by the caller: it must not appear at the next call
      return nullptr;
    }
    check_cuda(error, "cudaMalloc");
    return block;
  }
  // Runs in destructors: a fault is left for the next call that can throw.
  void system_free(void* block) override { cudaFree(block); }

 private:
  Device device_;
};

struct CudaDevice {
  cudaStream_t stream = nullptr;
  std::unique_ptr<CudaAllocator> allocator;
};

CudaDevice* open_device(Device device) {
  auto* opened = new CudaDevice;
  CudaDeviceScope scope(device);
  // A stream of default flags: it may be captured, and it keeps order with the legacy default stream
  // that other libraries use.
  check_cuda(cudaStreamCreate(&opened->stream), "cudaStreamCreate");
  size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  opened->allocator = std::make_unique<CudaAllocator>(device, int64_t(total_bytes));
  return opened;
}

// Opened at first use, never closed: tensors may outlive static destructors at interpreter exit.
CudaDevice& cuda_device(Device device) {
  static std::mutex mutex;
  static auto& devices = *new std::vector<std::atomic<CudaDevice*>>(probe().capabilities.size());
  check<DeviceError>(!forked, device, ": CUDA was in use when this process was forked; start it with 'spawn'");
  check<DeviceError>(cuda_is_available(), device, ": ", probe().reason);
  check<DeviceError>(size_t(device.index) < devices.size(), device, ": this machine has ", devices.size(),
                     " CUDA device(s)");
  const int capability = probe().capabilities[size_t(device.index)];
  check<DeviceError>(capability >= kLowestCapability, device, ": has compute capability ", capability_text(capability),
                     ", fastnn needs ", capability_text(kLowestCapability), " or later");
  auto& slot = devices[size_t(device.index)];
  if (CudaDevice* opened = slot.load(std::memory_order_acquire)) return *opened;
  std::lock_guard<std::mutex> lock(mutex);
  if (!slot) slot = open_device(device);
  return *slot;
}

int current_index() {
  int index = 0;
  check_cuda(cudaGetDevice(&index), "cudaGetDevice");
  return index;
}

// Other Python threads run on meanwhile.
void wait(cudaStream_t stream) {
  void* lock = host_hooks.release ? host_hooks.release() : nullptr;
  const cudaError_t error = cudaStreamSynchronize(stream);
  if (lock) host_hooks.retake(lock);
  check_cuda(error, "synchronize");
}

}  // namespace

void check_cuda(cudaError_t error, const char* what) {
  check<DeviceError>(error == cudaSuccess, what, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
}

bool cuda_is_available() { return probe().reason.empty(); }
std::string cuda_reason() { return probe().reason; }
int cuda_device_count() { return cuda_is_available() ? int(probe().capabilities.size()) : 0; }

void cuda_synchronize(int index) {
  check<DeviceError>(index >= 0 && index <= INT8_MAX, "cuda:", index, ": there is no such device");
  wait(cuda_device({DeviceType::CUDA, int8_t(index)}).stream);
}

cudaStream_t cuda_stream() { return cuda_device({DeviceType::CUDA, int8_t(current_index())}).stream; }

CudaDeviceScope::CudaDeviceScope(Device device) : before_(current_index()), current_(device.index) {
  if (current_ != before_) check_cuda(cudaSetDevice(current_), "cudaSetDevice");
}

CudaDeviceScope::~CudaDeviceScope() {
  if (current_ != before_) cudaSetDevice(before_);
}

void* cuda_allocate(size_t bytes, Device device) { return cuda_device(device).allocator->allocate(bytes); }

void cuda_release(void* block, size_t bytes, Device device) {
  if (!forked) cuda_device(device).allocator->release(block, bytes);
}

MemoryStats cuda_memory_stats(Device device) { return cuda_device(device).allocator->stats(); }
void cuda_reset_peak_memory(Device device) { cuda_device(device).allocator->reset_peak(); }
void cuda_set_cache_limit(Device device, int64_t bytes) { cuda_device(device).allocator->set_limit(bytes); }
void cuda_empty_cache(Device device) { cuda_device(device).allocator->empty_cache(); }

void cuda_copy(void* dst, Device dst_device, const void* src, Device src_device, size_t bytes) {
  const Device runner = dst_device.is_cuda() ? dst_device : src_device;
  const bool one_device = dst_device == src_device;
  if (!one_device && src_device.is_cuda()) wait(cuda_device(src_device).stream);
  const cudaStream_t stream = cuda_device(runner).stream;
  CudaDeviceScope scope(runner);
  check_cuda(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream), "copy");
  if (!one_device) wait(stream);
}

}  // namespace fastnn
