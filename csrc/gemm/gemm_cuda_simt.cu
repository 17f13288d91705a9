// Products in the operands' own arithmetic: float32 ("highest") and float64.
//
// A block computes a square tile of C; each of its 256 threads 8 x 8 (4 x 4) of it in registers, in groups of 4 that
// lie apart, so that a warp reads whole lines of shared memory. Stages of 16 of k come by cp.async while earlier ones
// are multiplied; both operands lie across k, whatever their strides: elements that are adjacent along m or n come in
// 16-byte pieces, others one by one.
//
//   arithmetic   2 m n k / 67 TF/s in float32 (H200), 34 TF/s in float64
//   shared       of 128 x 128 in float32, a warp reads 4 lines for 64 multiply-adds of each lane: half of what it can
//   registers    64 sums, 16 operands: up to 128 in 256 threads, 2 blocks of 70 KB a multiprocessor
//
// Predicted: 80 % of the peak where C has 2 tiles for each multiprocessor.
#include "gemm/epilogue_cuda.h"
#include "gemm/gemm_cuda.h"
#include "gemm/simt_cuda.h"

// SASS simt_kernel: LDGSTS
namespace fastnn {
namespace {

constexpr int kThreads = kSimtThreads;
constexpr int kDepth = 16, kStages = 4;
constexpr int64_t kLeastSplit = 8 * kDepth;

// One operand on its way into shared memory: rows of k of kTile elements, kPitch apart.
template <class T, int kTile>
struct Operand {
  static constexpr int kItems = kPackOf16<T>, kPitch = kTile + kItems;
  static constexpr int kBytes = kDepth * kPitch * int(sizeof(T));
  const T* data;         // of this block's tile
  int64_t outer, depth;  // strides along m or n, and along k
  int present;           // how much of the tile lies in the matrix
  bool in_pieces, along_k;

  __device__ Operand(const void* matrix, int64_t outer_stride, int64_t k_stride, int64_t extent, int64_t first)
      : data(static_cast<const T*>(matrix) + first * outer_stride),
        outer(outer_stride),
        depth(k_stride),
        present(int(extent - first < kTile ? extent - first : kTile)),
        in_pieces(outer == 1 && is_aligned(matrix, 16) && depth % kItems == 0 && extent % kItems == 0),
        along_k(depth == 1) {}

  // The stage that begins at k, of which k_left lie in the matrix.
  __device__ void fetch(T* tile, int64_t k, int k_left) const {
    const T* const from = data + k * depth;
    if (in_pieces) {
      constexpr int kPieces = kTile / kItems;
#pragma unroll
      for (int i = int(threadIdx.x); i < kDepth * kPieces; i += kThreads) {
        const int p = i / kPieces, element = i % kPieces * kItems;
        const bool valid = p < k_left && element < present;
        async_copy<16>(tile + p * kPitch + element, valid ? from + p * depth + element : from, valid);
      }
    } else {
#pragma unroll 2
      for (int i = int(threadIdx.x); i < kDepth * kTile; i += kThreads) {
        const int p = along_k ? i % kDepth : i / kTile, element = along_k ? i / kDepth : i % kTile;
        const bool valid = p < k_left && element < present;
        async_copy<sizeof(T)>(tile + p * kPitch + element, valid ? from + p * depth + element * outer : from, valid);
      }
    }
  }
};

template <class T, int kTile>
struct Shape {
  static constexpr int kPitch = kTile + 2 * kPackOf16<T>;  // of the tile of sums
  static constexpr int kStageBytes = 2 * Operand<T, kTile>::kBytes;
  static constexpr int kShared = kStages * kStageBytes > kTile * kPitch * int(sizeof(T))
                                     ? kStages * kStageBytes
                                     : kTile * kPitch * int(sizeof(T));
};

template <class T, int kTile>
__global__ void __launch_bounds__(kThreads, 2)
    simt_kernel(const __grid_constant__ GemmArgs args, const __grid_constant__ GemmGrid grid) {
  using S = Shape<T, kTile>;
  using Tile = Operand<T, kTile>;
  using Simt = SimtTile<T, kTile>;
  FASTNN_DYNAMIC_SHARED(shared);
  const GemmTile tile = grid.at(blockIdx.x);
  const GemmItem item = device_item<T>(args, tile.item);
  const int64_t begin = tile.split * grid.split_k;
  const int64_t end = args.k - begin < grid.split_k ? args.k : begin + grid.split_k;
  const Tile a(item.a, args.a_row, args.a_column, args.m, tile.row * kTile);
  const Tile b(item.b, args.b_column, args.b_row, args.n, tile.column * kTile);
  const auto stage = [&](int64_t step) { return shared + step % kStages * S::kStageBytes; };
  const auto fetch = [&](int64_t step) {
    const int64_t k = begin + step * kDepth;
    if (k < end) {
      const int k_left = int(end - k < kDepth ? end - k : kDepth);
      a.fetch(reinterpret_cast<T*>(stage(step)), k, k_left);
      b.fetch(reinterpret_cast<T*>(stage(step) + Tile::kBytes), k, k_left);
    }
    async_copy_commit();
  };
  const int across = simt_across(), down = simt_down();
  typename Simt::Sums sums = {};
  for (int step = 0; step < kStages - 1; ++step) fetch(step);
  for (int64_t step = 0; begin + step * kDepth < end; ++step) {
    async_copy_wait<kStages - 2>();
    block_sync();
    fetch(step + kStages - 1);
    const T* const tile_a = reinterpret_cast<const T*>(stage(step));
    const T* const tile_b = reinterpret_cast<const T*>(stage(step) + Tile::kBytes);
#pragma unroll
    for (int p = 0; p < kDepth; ++p)
      Simt::multiply(sums, tile_a + p * Tile::kPitch, tile_b + p * Tile::kPitch, down, across);
  }
  async_copy_wait<0>();
  block_sync();
  T* const tile_c = reinterpret_cast<T*>(shared);
  Simt::template store<S::kPitch>(sums, tile_c, false, down, across);
  block_sync();
  store_tile<T, kTile, kTile, S::kPitch, kThreads>(tile_c, args, item, grid, tile);
}

template <class T, int kTile>
void multiply(const GemmArgs& args, int processors) {
  run_tiles(args, {kTile, kTile, kDepth, kLeastSplit}, processors, [&](const GemmGrid& grid) {
    launch(simt_kernel<T, kTile>, unsigned(grid.blocks()), kThreads, Shape<T, kTile>::kShared, args, grid);
  });
}

}  // namespace

namespace gemm_cuda {

void simt(const GemmArgs& args) {
  const int processors = gpu().processors;
  if (args.dtype == DType::Float64) return multiply<double, 64>(args, processors);
  const bool fills = tiles_of(args, 128, 128) >= processors;
  fills ? multiply<float, 128>(args, processors) : multiply<float, 64>(args, processors);
}

}  // namespace gemm_cuda
}  // namespace fastnn
