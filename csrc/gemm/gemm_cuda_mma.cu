// Products on the tensor cores of Ampere and later: bfloat16, float16, and float32 rounded to TF32; sums in float32.
//
// A block of 8 (4) warps computes 128 x 128 (64 x 64) of C, a warp 64 x 32 (32 x 32) in registers. Stages of 128 bytes
// of k come by cp.async while earlier ones are multiplied. Each operand lies in shared memory as in device memory,
// along k or across it (OperandTile), and ldmatrix reads either, so no layout is copied; operands that cannot be read
// in aligned 16-byte chunks come element by element.
//
//   arithmetic   2 m n k / 312 TF/s (A100, 16-bit), 156 TF/s (TF32); on Hopper mma.sync reaches some 60 % of wgmma
//   shared       of 128 x 128, a warp reads 6 KB for 64 x 32 x 16 x 4 products: 16 lines to 512 clocks of tensor core
//   registers    64 sums, two sets of 24 operands: up to 255 in 256 threads, so one block a multiprocessor; 96 KB for
//                3 stages (64 x 64: 48 KB, four blocks)
//
// Predicted: 75 % of the peak of an A100 where C has tiles for every multiprocessor.
#include "gemm/fragments_cuda.h"

#include "gemm/epilogue_cuda.h"
#include "gemm/gemm_amx.h"
#include "gemm/gemm_cuda.h"

// SASS mma_kernel: HMMA LDGSTS
namespace fastnn {
namespace {

constexpr int kStages = 3;

// One operand on its way into shared memory. A thread takes one column of chunks, at rows kApart apart.
template <class T, int kOuter, bool kAlongK, int kThreads>
struct Source {
  using Tile = OperandTile<sizeof(T), kOuter, kAlongK>;
  static constexpr int kItems = Tile::kItems, kApart = kThreads / Tile::kChunks;
  const T* from;              // of this thread's first chunk
  int64_t apart, next, step;  // strides: to its next chunk, to the next stage, between the elements of a chunk
  int outer_left;             // how much of m or n lies in the matrix, from this thread's first element on
  bool whole;                 // chunks are aligned, and wholly in the matrix or beyond it

  static __device__ int first_row() { return int(threadIdx.x) / Tile::kChunks; }
  static __device__ int chunk() { return int(threadIdx.x) % Tile::kChunks; }

  __device__ Source(const void* matrix, int64_t outer, int64_t depth, int64_t extent, int64_t first, int64_t k,
                    int64_t k_end) {
    const int64_t row_step = kAlongK ? outer : depth;
    step = kAlongK ? depth : outer;
    from = static_cast<const T*>(matrix) + first * outer + k * depth + first_row() * row_step + chunk() * kItems * step;
    apart = kApart * row_step;
    next = Tile::kDepth * depth;
    outer_left = int(extent - first < kOuter ? extent - first : kOuter) - (kAlongK ? first_row() : chunk() * kItems);
    whole = step == 1 && is_aligned(matrix, 16) && row_step % kItems == 0 && (kAlongK ? k_end : extent) % kItems == 0;
  }

  // The next stage, of which k_left of k lie in the matrix.
  __device__ void fetch(unsigned char* tile, int k_left) {
    const int rows = kAlongK ? outer_left : k_left - first_row();
    const int items = kAlongK ? k_left - chunk() * kItems : outer_left;
    const T* at = from;
#pragma unroll
    for (int i = 0; i < Tile::kRows; i += kApart, at += apart) {
      unsigned char* const to = tile + Tile::offset(first_row() + i, chunk());
      const int present = i < rows ? items : 0;
      if (whole || present <= 0) {
        async_copy<16>(to, present > 0 ? at : from, present > 0);
      } else {
        Pack<T, kItems> elements{};
#pragma unroll
        for (int e = 0; e < kItems; ++e)
          if (e < present) elements.at[e] = at[e * step];
        store_pack(reinterpret_cast<T*>(to), elements);
      }
    }
    from += next;
  }
};

template <class T, int kTile, bool kAAlongK, bool kBAlongK>
struct Shape {
  using Tile = WarpTile<T, kTile, kTile, kAAlongK, kBAlongK>;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kPitch = kTile + 8;  // of the tile of sums: pairs of 8 rows lie in different banks
  static constexpr int kShared = kStages * Tile::kStageBytes;
  static_assert(kTile * kPitch * int(sizeof(float)) <= kShared, "the sums are stored where the stages were");
};

template <class T, int kTile, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(Shape<T, kTile, kAAlongK, kBAlongK>::kThreads, 1)
    mma_kernel(const __grid_constant__ GemmArgs args, const __grid_constant__ GemmGrid grid) {
  using S = Shape<T, kTile, kAAlongK, kBAlongK>;
  using Tile = typename S::Tile;
  using SourceA = Source<T, kTile, kAAlongK, S::kThreads>;
  using SourceB = Source<T, kTile, kBAlongK, S::kThreads>;
  FASTNN_DYNAMIC_SHARED(shared);
  const GemmTile tile = grid.at(blockIdx.x);
  const GemmItem item = device_item<T>(args, tile.item);
  const int64_t begin = tile.split * grid.split_k;
  const int64_t end = args.k - begin < grid.split_k ? args.k : begin + grid.split_k;
  constexpr int kDepth = SourceA::Tile::kDepth;
  const int stages = int((end - begin + kDepth - 1) / kDepth);
  SourceA a(item.a, args.a_row, args.a_column, args.m, tile.row * kTile, begin, end);
  SourceB b(item.b, args.b_column, args.b_row, args.n, tile.column * kTile, begin, end);
  const auto fetch = [&](int stage) {
    if (stage < stages) {
      unsigned char* const to = shared + stage % kStages * Tile::kStageBytes;
      const int64_t left = end - begin - int64_t(stage) * kDepth;
      const int k_left = int(left < kDepth ? left : kDepth);
      a.fetch(to, k_left);
      b.fetch(to + Tile::TileA::kBytes, k_left);
    }
    async_copy_commit();
  };
  Tile product;
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  for (int stage = 0; stage < stages; ++stage) {
    async_copy_wait<kStages - 2>();
    block_sync();
    fetch(stage + kStages - 1);
    product.multiply(shared + stage % kStages * Tile::kStageBytes);
  }
  async_copy_wait<0>();
  block_sync();
  float* const tile_c = reinterpret_cast<float*>(shared);
  product.for_pairs(
      [&](int row, int column, const Pack<float, 2>& pair) { store_pack(tile_c + row * S::kPitch + column, pair); });
  block_sync();
  store_tile<T, kTile, kTile, S::kPitch, S::kThreads>(tile_c, args, item, grid, tile);
}

// ----------------------------------------------------------------------------------------- launchers

template <class T, int kTile, bool kAAlongK, bool kBAlongK>
void multiply_layout(const GemmArgs& args, int processors) {
  using S = Shape<T, kTile, kAAlongK, kBAlongK>;
  constexpr int kDepth = OperandTile<sizeof(T), kTile, true>::kDepth;
  run_tiles(args, {kTile, kTile, kDepth, 4 * kDepth}, processors, [&](const GemmGrid& grid) {
    launch(mma_kernel<T, kTile, kAAlongK, kBAlongK>, unsigned(grid.blocks()), S::kThreads, S::kShared, args, grid);
  });
}

template <class T, int kTile>
void multiply_tiles(const GemmArgs& args, int processors) {
  // Operands that are adjacent along neither are read element by element, as if along k.
  const bool a_along_k = args.a_column == 1 || args.a_row != 1, b_along_k = args.b_row == 1 || args.b_column != 1;
  if (a_along_k && b_along_k) return multiply_layout<T, kTile, true, true>(args, processors);
  if (a_along_k) return multiply_layout<T, kTile, true, false>(args, processors);
  if (b_along_k) return multiply_layout<T, kTile, false, true>(args, processors);
  multiply_layout<T, kTile, false, false>(args, processors);
}

template <class T>
void multiply(const GemmArgs& args) {
  const int processors = gemm_cuda::gpu().processors;
  const bool fills = tiles_of(args, 128, 128) >= processors;
  fills ? multiply_tiles<T, 128>(args, processors) : multiply_tiles<T, 64>(args, processors);
}

}  // namespace

namespace gemm_cuda {

void mma(const GemmArgs& args) {
  if (args.dtype == DType::Float32) return multiply<float>(args);
  args.dtype == DType::BFloat16 ? multiply<bfloat16>(args) : multiply<float16>(args);
}

}  // namespace gemm_cuda
}  // namespace fastnn
