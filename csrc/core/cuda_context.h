// What core/cuda*.cpp share: the state of each GPU that has been used, and waiting.
#pragma once

#include <memory>

#include "core/cuda_launch.h"
#include "core/cuda_stream.h"
#include "core/stream_allocator.h"

namespace fastnn {

constexpr int kMaxCudaDevices = 64;

struct CudaContext {
  CudaStream default_stream;
  std::unique_ptr<StreamAllocator> allocator;
};

// Opened at first use, never closed: tensors may outlive static destructors at interpreter exit. Throws
// DeviceError when there is no such device, or CUDA was in use when this process was forked.
CudaContext& cuda_context(Device device);
bool cuda_forked();  // a driver does not survive a fork: releases in the child do nothing

bool cuda_waits_for_kernels();  // FASTNN_CUDA_SYNC=1

std::unique_ptr<StreamAllocator> make_cuda_allocator(Device device);
StreamAllocator& pinned_allocator();

inline cudaStream_t handle_of(const CudaStream& stream) { return static_cast<cudaStream_t>(stream.handle); }

}  // namespace fastnn
