// Strided copies on CUDA.
//
//   dst[i] = src[i]      bytes: 2 x numel x item size; no arithmetic
//
// One thread an element, walked in the order of dst, so that writes fall into whole cache lines.
#include "core/cuda_index.h"
#include "core/cuda_launch.h"
#include "ops/copy/copy.h"

namespace fastnn {
namespace {

template <class T>
__global__ void copy_kernel(const __grid_constant__ CopyArgs args) {
  const int64_t position = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (position >= args.numel) return;
  const int64_t* const strides[2] = {args.dst_strides, args.src_strides};
  const Offsets<2> offsets = strided_offsets(position, args.ndim, args.shape, strides);
  static_cast<T*>(args.dst)[offsets.of[0]] = static_cast<const T*>(args.src)[offsets.of[1]];
}

template <class T>
void copy_items(const CopyArgs& args) {
  launch(copy_kernel<T>, unsigned(blocks_for(args.numel)), kBlockThreads, 0, args);
}

void copy(const CopyArgs& args) {
  switch (args.item_size) {
    case 1: return copy_items<uint8_t>(args);
    case 2: return copy_items<uint16_t>(args);
    case 4: return copy_items<uint32_t>(args);
    default: return copy_items<uint64_t>(args);
  }
}

}  // namespace

FASTNN_CUDA_KERNEL(copy_strided, copy)

}  // namespace fastnn
