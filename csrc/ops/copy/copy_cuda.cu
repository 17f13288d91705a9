// Strided copies on CUDA.
//
//   dst[i] = src[i]      bytes: 2 x numel x item size; no arithmetic
//
// Rows that are contiguous on both sides go in items of 16 bytes. Where another axis is the dense one of src, tiles of
// 32 x 32 are turned in shared memory, so that reads and writes both fall into whole sectors of 32 bytes. Else one
// thread takes an element, walked in the order of dst.
#include <algorithm>

#include "core/cuda_device.h"
#include "core/cuda_index.h"
#include "core/cuda_launch.h"
#include "ops/copy/copy.h"

namespace fastnn {
namespace {

constexpr int kTile = 32;
constexpr int kTileRows = 8;  // of threads

template <class T>
__global__ void copy_kernel(const __grid_constant__ CopyArgs args, const __grid_constant__ StridedWalk walk) {
  const int64_t position = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (position >= args.numel) return;
  const int64_t* const strides[2] = {args.dst_strides, args.src_strides};
  const Offsets<2> offsets = walk.offsets(position, strides);
  static_cast<T*>(args.dst)[offsets.of[0]] = static_cast<const T*>(args.src)[offsets.of[1]];
}

// How tiles lie: `across` and `down` the last two axes of each plane, and the planes along the axes before.
struct Tiles {
  Divisor across, down;
  StridedWalk planes;
};

// dst is dense along the last axis, src along the one before it.
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    transpose_kernel(const __grid_constant__ CopyArgs args, const __grid_constant__ Tiles tiles) {
  __shared__ T tile[kTile][kTile + 1];
  const int64_t n_rows = args.shape[args.ndim - 2], n_columns = args.shape[args.ndim - 1];
  const Division block = tiles.across.divide(blockIdx.x), plane = tiles.down.divide(block.quotient);
  const int64_t column = block.rest * kTile, row = plane.rest * kTile;
  const int64_t* const strides[2] = {args.dst_strides, args.src_strides};
  const Offsets<2> offsets = tiles.planes.offsets(plane.quotient, strides);
  const T* src = static_cast<const T*>(args.src) + offsets.of[1];
  T* dst = static_cast<T*>(args.dst) + offsets.of[0];
  const int64_t src_stride = args.src_strides[args.ndim - 1], dst_stride = args.dst_strides[args.ndim - 2];
  for (int i = threadIdx.y; i < kTile; i += kTileRows)
    if (column + i < n_columns && row + threadIdx.x < n_rows)
      tile[i][threadIdx.x] = src[(column + i) * src_stride + row + threadIdx.x];
  block_sync();
  for (int i = threadIdx.y; i < kTile; i += kTileRows)
    if (row + i < n_rows && column + threadIdx.x < n_columns)
      dst[(row + i) * dst_stride + column + threadIdx.x] = tile[threadIdx.x][i];
}

// The copy in items of 16 bytes, where rows allow it; else as it is.
CopyArgs widened(CopyArgs args) {
  const int last = args.ndim - 1;
  const int64_t pack = 16 / args.item_size;
  bool fits = args.dst_strides[last] == 1 && args.src_strides[last] == 1 && args.shape[last] % pack == 0 &&
              is_aligned(args.dst, 16) && is_aligned(args.src, 16);
  for (int axis = 0; axis < last; ++axis)
    fits &= args.dst_strides[axis] % pack == 0 && args.src_strides[axis] % pack == 0;
  if (!fits) return args;
  args.item_size = 16;
  args.numel /= pack;
  args.shape[last] /= pack;
  for (int axis = 0; axis < last; ++axis) {
    args.dst_strides[axis] /= pack;
    args.src_strides[axis] /= pack;
  }
  return args;
}

// Puts the axis along which src is dense before the last one; false when there is none, or too short a one.
bool turns(CopyArgs& args) {
  constexpr int64_t kShortest = 8;
  const int last = args.ndim - 1;
  if (last < 1 || args.dst_strides[last] != 1 || args.src_strides[last] == 1 || args.shape[last] < kShortest)
    return false;
  for (int axis = 0; axis < last; ++axis) {
    if (args.src_strides[axis] != 1 || args.shape[axis] < kShortest) continue;
    for (int64_t* of : {args.shape, args.dst_strides, args.src_strides})
      std::rotate(of + axis, of + axis + 1, of + last);
    return true;
  }
  return false;
}

// The walk over the first axes.
StridedWalk walk_of(const CopyArgs& args, int ndim) {
  const int64_t* const strides[] = {args.dst_strides, args.src_strides};
  return {ndim, args.shape, strides};
}

template <class T>
void copy_items(const CopyArgs& args) {
  launch(copy_kernel<T>, unsigned(blocks_for(args.numel)), kBlockThreads, 0, args, walk_of(args, args.ndim));
}

template <class T>
void copy_or_transpose(CopyArgs args) {
  if (!turns(args)) return copy_items<T>(args);
  const int64_t n_rows = args.shape[args.ndim - 2], n_columns = args.shape[args.ndim - 1];
  const int64_t across = (n_columns + kTile - 1) / kTile, down = (n_rows + kTile - 1) / kTile;
  launch(transpose_kernel<T>, unsigned(across * down * (args.numel / (n_rows * n_columns))), dim3(kTile, kTileRows), 0,
         args, Tiles{Divisor(across), Divisor(down), walk_of(args, args.ndim - 2)});
}

void copy(const CopyArgs& args) {
  const CopyArgs wide = widened(args);
  switch (wide.item_size) {
    case 1: return copy_or_transpose<uint8_t>(wide);
    case 2: return copy_or_transpose<uint16_t>(wide);
    case 4: return copy_or_transpose<uint32_t>(wide);
    case 8: return copy_or_transpose<uint64_t>(wide);
    default: return copy_items<uint4>(wide);
  }
}

}  // namespace

FASTNN_CUDA_KERNEL(copy_strided, copy)

}  // namespace fastnn
