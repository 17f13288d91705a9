// Sequences on CUDA: arange, linspace.
//
//   y[i] = args.at(i)      bytes: 8 x n written; one thread an element
#include "core/cuda_index.h"
#include "core/cuda_launch.h"
#include "ops/copy/create.h"

namespace fastnn {
namespace {

template <class T>
__global__ void sequence_kernel(const __grid_constant__ SequenceArgs args) {
  const int64_t i = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i < args.n) static_cast<T*>(args.y)[i] = args.at<T>(i);
}

void fill(const SequenceArgs& args) {
  const auto kernel = args.integral ? sequence_kernel<int64_t> : sequence_kernel<double>;
  launch(kernel, unsigned(blocks_for(args.n)), kBlockThreads, 0, args);
}

}  // namespace

FASTNN_CUDA_KERNEL(sequence_fill, fill)

}  // namespace fastnn
