// CUDA devices: are there any and if not why, their memory, their streams, copies.
//
// The driver is first asked when something needs it: importing fastnn touches no GPU. The CUDA runtime
// is linked statically and finds the driver by itself, so one build runs on machines with and without
// one. Every question has an answer in a build without CUDA too.
//
// Each GPU has one stream; kernels and copies of a device run on it in order. So a freed block may be
// handed out again at once: its next user comes after the last one.
#pragma once

#include <cstddef>
#include <string>

#include "core/device.h"
#include "core/memory.h"

namespace fastnn {

bool cuda_is_available();
std::string cuda_reason();         // why it is not; empty when it is
int cuda_device_count();           // 0 when not available
void cuda_synchronize(int index);  // waits for all work on a device; throws DeviceError if some failed

void* cuda_allocate(size_t bytes, Device device);
void cuda_release(void* block, size_t bytes, Device device);
MemoryStats cuda_memory_stats(Device device);
void cuda_reset_peak_memory(Device device);
void cuda_set_cache_limit(Device device, int64_t bytes);
void cuda_empty_cache(Device device);

// Copies between any two devices. When the CPU is one of them, the copy has ended on return.
void cuda_copy(void* dst, Device dst_device, const void* src, Device src_device, size_t bytes);

}  // namespace fastnn
