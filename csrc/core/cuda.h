// CUDA devices: are there any and if not why, what they are, their memory, copies.
//
// The driver is first asked when something needs it: importing fastnn touches no GPU. The CUDA runtime
// is linked statically and finds the driver by itself, so one build runs on machines with and without
// one. Every question has an answer in a build without CUDA too (cuda_none.cpp).
#pragma once

#include <cstddef>
#include <string>

#include "core/device.h"
#include "core/memory.h"

namespace fastnn {

bool cuda_is_available();
std::string cuda_reason();   // why it is not; empty when it is
int cuda_device_count();     // 0 when not available
bool cuda_is_initialized();  // has a device been used?
void cuda_init();            // uses the current one
int cuda_current_device();   // of the calling thread: what "cuda" without an index means
void cuda_set_device(int index);
void cuda_synchronize(Device device);  // waits for all work on a device; throws DeviceError if some failed

struct CudaProperties {
  std::string name;
  int major, minor;  // compute capability
  int64_t total_memory, l2_cache_size, shared_memory_per_multiprocessor, shared_memory_per_block;
  int multi_processor_count, max_threads_per_multi_processor, warp_size;
};
CudaProperties cuda_properties(Device device);

// ---- memory: of the calling thread's current stream, from the caching allocator (core/stream_allocator.h)
void* cuda_allocate(size_t bytes, Device device);
void cuda_release(void* block, Device device);
void cuda_record_stream(const Storage& storage, void* stream);  // work of `stream` uses it too, until it is freed
MemoryStats cuda_memory_stats(Device device);
void cuda_reset_peak_memory(Device device);
void cuda_set_cache_limit(Device device, int64_t bytes);
void cuda_set_memory_fraction(Device device, double fraction);  // of all there is, for this process
void cuda_empty_cache(Device device);
struct CudaMemory {
  int64_t free, total;  // bytes, for all processes
};
CudaMemory cuda_memory(Device device);

// Memory of the CPU that a GPU can copy from and to while the CPU goes on.
Storage* allocate_pinned(size_t bytes);

// The device that an address lies on, as another library gave it.
Device cuda_device_of(const void* address);

// Copies between any two devices, behind what their current streams have been asked. When the CPU is one of
// them, the copy has ended on return, unless it is `non_blocking` and the CPU's memory is pinned.
void cuda_copy(void* dst, const Storage& to, const void* src, const Storage& from, size_t bytes, bool non_blocking);

}  // namespace fastnn
