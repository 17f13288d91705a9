#include "core/cuda_launch.h"

#include "core/check.h"
#include "core/cuda.h"

namespace fastnn {

#ifndef FASTNN_CUDA_EMULATED
namespace {

constexpr size_t kDefaultShared = 48 << 10;  // what a kernel may have without asking

// A launch that CUDA refused, in words: which kernel, and what it was to run with.
[[noreturn]] void refuse(const void* kernel, const LaunchShape& shape, cudaError_t error) {
  cudaGetLastError();  // told here: it must not appear at the next call
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = "kernel";
  auto triple = [](dim3 d) { return str("(", d.x, ", ", d.y, ", ", d.z, ")"); };
  check_cuda(error, str("launch of ", name, " with grid ", triple(shape.grid), ", block ", triple(shape.block), ", ",
                        shape.shared_bytes, " bytes of shared memory, clusters of ", shape.cluster)
                        .c_str());
  fail<DeviceError>("launch of ", name, " failed");
}

}  // namespace

void detail::launch_kernel(const void* kernel, const LaunchShape& shape, void** args) {
  if (shape.shared_bytes > kDefaultShared) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared_bytes));
    if (error != cudaSuccess) refuse(kernel, shape, error);
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = cuda_stream();
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster, 1, 1};
  }
  if (shape.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  const cudaError_t error = cudaLaunchKernelExC(&config, kernel, args);
  if (error != cudaSuccess) refuse(kernel, shape, error);
}
#endif

namespace {
Device current_device() {
  int index = 0;
  check_cuda(cudaGetDevice(&index), "cudaGetDevice");
  return {DeviceType::CUDA, int8_t(index)};
}
}  // namespace

CudaScratch::CudaScratch(size_t bytes)
    : device_(current_device()), data_(bytes ? cuda_allocate(bytes, device_) : nullptr) {}

CudaScratch::~CudaScratch() {
  if (data_) cuda_release(data_, device_);
}

}  // namespace fastnn
