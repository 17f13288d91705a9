// What a CUDA kernel file needs to launch: the current stream, checked launches, scratch memory of the device. Only
// *.cu files and core/cuda*.cpp include this.
//
//   launch(kernel, grid, block, shared_bytes, args...)    in place of <<<>>>
//   CudaScratch scratch(bytes);                           scratch.as<float>()
//
// With FASTNN_CUDA_EMULATED the same calls reach the emulation of tests/emulation, which runs kernels on the CPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#ifdef FASTNN_CUDA_EMULATED
#include "emulation/runtime.h"
#endif

#include "core/device.h"

namespace fastnn {

// Throws DeviceError with `what` and CUDA's own words unless the call succeeded.
void check_cuda(cudaError_t error, const char* what);

// The stream of the current device; Kernel has made the tensors' device current.
cudaStream_t cuda_stream();

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;   // dynamic shared memory of a block: up to 227 KB on Hopper, 163 KB on Ampere
  unsigned cluster = 1;      // blocks in a row of x that share their memory (compute capability 9.0)
  bool cooperative = false;  // all blocks run at the same time, or the launch fails
};

namespace detail {
template <class T>
struct Exactly {
  using type = T;
};
#ifndef FASTNN_CUDA_EMULATED
void launch_kernel(const void* kernel, const LaunchShape& shape, void** args);
#endif
}  // namespace detail

// Launches on the current stream; a grid of no blocks is no work. Throws DeviceError at once for a shape or an
// architecture that the kernel cannot run with; a fault of the kernel itself appears at the next call that waits.
template <class... Params>
void launch(void (*kernel)(Params...), const LaunchShape& shape,
            const typename detail::Exactly<Params>::type&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
#ifdef FASTNN_CUDA_EMULATED
  emulation::launch(kernel, {shape.grid, shape.block, shape.shared_bytes, shape.cluster, shape.cooperative}, args...);
#else
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))..., nullptr};
  detail::launch_kernel(reinterpret_cast<const void*>(kernel), shape, pointers);
#endif
}

template <class... Params>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            const typename detail::Exactly<Params>::type&... args) {
  launch(kernel, LaunchShape{grid, block, shared_bytes}, args...);
}

// Device memory for the time of one operation. It goes back to the caching allocator at the end of the scope: whoever
// gets it next comes after the kernels launched so far, on the same stream.
class CudaScratch {
 public:
  explicit CudaScratch(size_t bytes);
  ~CudaScratch();
  CudaScratch(const CudaScratch&) = delete;
  CudaScratch& operator=(const CudaScratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device device_;
  void* data_;
};

}  // namespace fastnn
