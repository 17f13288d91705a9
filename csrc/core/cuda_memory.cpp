// Memory of GPUs and pinned memory of the CPU, and copies.
#include "core/check.h"
#include "core/cuda.h"
#include "core/cuda_context.h"
#include "core/cuda_graph.h"

namespace fastnn {
namespace {

// Calls that a capture on this thread would refuse, though they touch nothing that it records.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

void* allocated_or_null(cudaError_t error, void* block, const char* what) {
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // answered by the caller: it must not appear at the next call
    return nullptr;
  }
  check_cuda(error, what);
  return block;
}

class MarkingAllocator : public StreamAllocator {
 protected:
  using StreamAllocator::StreamAllocator;

  // These run in destructors: a fault is left for the next call that can throw.
  void* mark(void* stream) override {
    int index = 0;
    if (cudaStreamGetDevice(static_cast<cudaStream_t>(stream), &index) != cudaSuccess) return nullptr;
    CudaDeviceScope scope({DeviceType::CUDA, int8_t(index)});
    cudaEvent_t event = nullptr;
    if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) return nullptr;
    if (cudaEventRecord(event, static_cast<cudaStream_t>(stream)) == cudaSuccess) return event;
    cudaEventDestroy(event);
    return nullptr;
  }
  bool passed(void* mark) override {
    const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(mark));
    if (error == cudaErrorNotReady) cudaGetLastError();  // an answer, not an error
    return error != cudaErrorNotReady;
  }
  void wait(void* mark) override { cudaEventSynchronize(static_cast<cudaEvent_t>(mark)); }
  void forget(void* mark) override { cudaEventDestroy(static_cast<cudaEvent_t>(mark)); }
};

class CudaAllocator : public MarkingAllocator {
 public:
  CudaAllocator(Device device, int64_t capacity) : MarkingAllocator(str(device), capacity), device_(device) {}

 protected:
  void* system_allocate(size_t bytes) override {
    CudaDeviceScope scope(device_);
    RelaxedCapture relaxed;
    void* block = nullptr;
    const cudaError_t error = cudaMalloc(&block, bytes);
    return allocated_or_null(error, block, "cudaMalloc");
  }
  void system_free(void* block) override {
    RelaxedCapture relaxed;
    cudaFree(block);
  }

 private:
  const Device device_;
};

class PinnedAllocator : public MarkingAllocator {
 public:
  PinnedAllocator() : MarkingAllocator("pinned memory", INT64_MAX) {}

 protected:
  void* system_allocate(size_t bytes) override {
    RelaxedCapture relaxed;
    void* block = nullptr;
    const cudaError_t error = cudaHostAlloc(&block, bytes, cudaHostAllocPortable);
    return allocated_or_null(error, block, "pin_memory");
  }
  void system_free(void* block) override {
    RelaxedCapture relaxed;
    cudaFreeHost(block);
  }
};

void release_pinned(void* block) {
  if (!cuda_forked()) pinned_allocator().release(block);
}

// Work of two GPUs is ordered by events; the CPU waits for the end, unless its memory is pinned and it need not.
void copy_between(void* dst, CudaStream to, const void* src, CudaStream from, size_t bytes) {
  cuda_wait_stream(to, from);
  {
    CudaDeviceScope scope(to.device);
    check_cuda(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, handle_of(to)), "copy");
  }
  cuda_wait_stream(from, to);
}

}  // namespace

std::unique_ptr<StreamAllocator> make_cuda_allocator(Device device) {
  CudaDeviceScope scope(device);
  size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  return std::make_unique<CudaAllocator>(device, int64_t(total_bytes));
}

// Never destroyed: as a device's.
StreamAllocator& pinned_allocator() {
  static auto& allocator = *new PinnedAllocator;
  return allocator;
}

void* cuda_allocate(size_t bytes, Device device) {
  return cuda_context(device).allocator->allocate(bytes, cuda_current_stream(device).handle, captured_pool(device));
}

void cuda_release(void* block, Device device) {
  if (!cuda_forked()) cuda_context(device).allocator->release(block);
}

void cuda_record_stream(const Storage& storage, void* stream) {
  if (storage.device.is_cuda()) return cuda_context(storage.device).allocator->record_stream(storage.data, stream);
  check(storage.pinned, "record_stream: expected a tensor on a GPU or in pinned memory, got one on ", storage.device);
  pinned_allocator().record_stream(storage.data, stream);
}

MemoryStats cuda_memory_stats(Device device) { return cuda_context(device).allocator->stats(); }
void cuda_reset_peak_memory(Device device) { cuda_context(device).allocator->reset_peak(); }
void cuda_set_cache_limit(Device device, int64_t bytes) { cuda_context(device).allocator->set_cache_limit(bytes); }

void cuda_set_memory_fraction(Device device, double fraction) {
  check(fraction > 0 && fraction <= 1, "set_per_process_memory_fraction: expected 0 < fraction <= 1, got ", fraction);
  cuda_context(device).allocator->set_memory_limit(int64_t(fraction * double(cuda_memory(device).total)));
}

void cuda_empty_cache(Device device) {
  check_not_capturing("empty_cache");
  cuda_context(device).allocator->empty_cache();
  pinned_allocator().empty_cache();
}

CudaMemory cuda_memory(Device device) {
  cuda_context(device);
  CudaDeviceScope scope(device);
  size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "mem_get_info");
  return {int64_t(free_bytes), int64_t(total_bytes)};
}

Storage* allocate_pinned(size_t bytes) {
  cuda_init();
  void* block = pinned_allocator().allocate(bytes, nullptr);
  Storage* storage = wrap_storage(block, bytes, Device(), false, release_pinned, block);
  storage->pinned = true;
  return storage;
}

Device cuda_device_of(const void* address) {
  cuda_init();
  cudaPointerAttributes found{};
  const cudaError_t error = cudaPointerGetAttributes(&found, address);
  cudaGetLastError();
  check<BufferError>(
      error == cudaSuccess && (found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged),
      "the address ", address, " is not in the memory of a GPU");
  return {DeviceType::CUDA, int8_t(found.device)};
}

void cuda_copy(void* dst, const Storage& to, const void* src, const Storage& from, size_t bytes, bool non_blocking) {
  if (to.device.is_cuda() && from.device.is_cuda())
    return copy_between(dst, cuda_current_stream(to.device), src, cuda_current_stream(from.device), bytes);
  check_not_capturing("copy between the CPU and a GPU");
  const bool up = to.device.is_cuda();
  const Storage& host = up ? from : to;
  const CudaStream stream = cuda_current_stream(up ? to.device : from.device);
  {
    CudaDeviceScope scope(stream.device);
    check_cuda(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, handle_of(stream)), "copy");
  }
  if (non_blocking && host.pinned)
    pinned_allocator().record_stream(host.data, stream.handle);
  else
    cuda_synchronize(stream);
}

}  // namespace fastnn
