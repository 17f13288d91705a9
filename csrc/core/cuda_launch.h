// What a CUDA kernel file needs to launch: the current stream and checked calls. Only *.cu files and
// core/cuda.cpp include this.
#pragma once

#include <cuda_runtime_api.h>

namespace fastnn {

// Throws DeviceError with `what` and CUDA's own words unless the call succeeded.
void check_cuda(cudaError_t error, const char* what);

// The stream of the current device; Kernel has made the tensors' device current.
cudaStream_t cuda_stream();

// Right after a launch: a bad configuration or a missing architecture is known at once; a fault of
// the kernel itself appears at the next call that waits.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

}  // namespace fastnn
