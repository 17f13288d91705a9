// Convolution in the images' own arithmetic, float32 ("highest") and float64, all three passes: gather_cuda.h's
// product.
//
// A block computes a square tile; each of its 256 threads 8 x 8 (4 x 4) of it in registers, in groups of 4 that lie
// apart, so that a warp reads whole lines of shared memory. Stages of 16 steps of the sum come by cp.async while
// earlier ones are multiplied. The gathered operand comes element by element, with zeros from outside the image;
// threads run along whichever of rows and steps is adjacent in memory. The places of the tile's rows are made once,
// those of a stage by 16 threads one stage ahead: no index is decomposed in the loop otherwise. Packed weights come in
// 16-byte pieces.
//
//   arithmetic   2 pixels channels columns taps / 67 TF/s in float32 (H200), 34 TF/s in float64
//   bytes        every tile of columns reads the gathered image again, from L2
//   shared       of 128 x 128 in float32, a warp reads 4 lines for 64 multiply-adds of each lane: half of what it can
//   registers    64 sums, 16 operands: 150 in 256 threads, 1 block of 75 KB a multiprocessor
//
// Predicted: 70 % of the peak where there are 2 tiles for each multiprocessor.
#include "core/cuda_launch.h"
#include "gemm/simt_cuda.h"
#include "ops/conv/conv_cuda.h"
#include "ops/conv/result_cuda.h"

// SASS simt_conv_kernel: LDGSTS
namespace fastnn {
namespace {

using conv_cuda::PackedShape;
using conv_cuda::Pass;

constexpr int kThreads = kSimtThreads;
constexpr int kDepth = 16, kStages = 4;

template <class T, int kTile>
struct Shape {
  static constexpr int kItems = kPackOf16<T>;
  static constexpr int kPitch = kTile + kItems;
  static constexpr int kOperandBytes = kDepth * kPitch * int(sizeof(T)), kStageBytes = 2 * kOperandBytes;
  static constexpr int kSumBytes = kTile * kPitch * int(sizeof(T));
  static constexpr int kTileBytes = kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;
  static constexpr int kShared = kTileBytes + (kTile + kStages * kDepth) * int(sizeof(Place)) + int(sizeof(ConvTile));
};

// visit(step, element) for a thread's share of kDepth steps of kTile elements.
template <int kTile, class Visit>
__device__ inline void for_share(bool along_steps, const Visit& visit) {
  if (along_steps) {
#pragma unroll 2
    for (int i = int(threadIdx.x); i < kDepth * kTile; i += kThreads) visit(i % kDepth, i / kDepth);
  } else {
#pragma unroll 2
    for (int i = int(threadIdx.x); i < kDepth * kTile; i += kThreads) visit(i / kTile, i % kTile);
  }
}

template <class T, int kTile>
__device__ inline void fetch_gathered(const ConvProduct& p, const T* image, bool along_steps, const Place* rows,
                                      const Place* steps, T* tile) {
  for_share<kTile>(along_steps, [&](int step, int row) {
    const Place &a = rows[row], &b = steps[step];
    const bool inside = is_inside(p, a, b);
    async_copy<sizeof(T)>(tile + step * Shape<T, kTile>::kPitch + row, inside ? image + a.offset + b.offset : image,
                          inside);
  });
}

// Rows of packed weights.
template <class T, int kTile>
__device__ inline void fetch_weights(const T* weights, int64_t pitch, int64_t present, int64_t left, const Place* steps,
                                     T* tile) {
  constexpr int kItems = Shape<T, kTile>::kItems, kPieces = kTile / kItems;
#pragma unroll
  for (int i = int(threadIdx.x); i < kDepth * kPieces; i += kThreads) {
    const int step = i / kPieces, column = i % kPieces * kItems;
    const bool valid = step < left && column < present;
    async_copy<16>(tile + step * Shape<T, kTile>::kPitch + column,
                   valid ? weights + steps[step].beside * pitch + column : weights, valid);
  }
}

// Pixels of dy.
template <class T, int kTile>
__device__ inline void fetch_pixels(const T* image, int64_t stride, int64_t present, int64_t left, const Place* steps,
                                    T* tile) {
  for_share<kTile>(stride != 1, [&](int step, int column) {
    const bool valid = step < left && column < present;
    async_copy<sizeof(T)>(tile + step * Shape<T, kTile>::kPitch + column,
                          valid ? image + steps[step].beside + column * stride : image, valid);
  });
}

template <class T, int kTile, bool kWeightGrad>
__global__ void __launch_bounds__(kThreads, kTile == 128 ? 1 : 2)
    simt_conv_kernel(const __grid_constant__ ConvProduct p) {
  using S = Shape<T, kTile>;
  using Simt = SimtTile<T, kTile>;
  FASTNN_DYNAMIC_SHARED(shared);
  Place* const rows = reinterpret_cast<Place*>(shared + S::kTileBytes);
  Place* const ring = rows + kTile;
  ConvTile& tile = *reinterpret_cast<ConvTile*>(ring + kStages * kDepth);
  if (threadIdx.x == 0) tile = tile_at<kWeightGrad>(p, blockIdx.x, kTile, kTile);
  block_sync();
  if (tile.row >= tile.m) return;
  const int stages = int(tile.end > tile.begin ? (tile.end - tile.begin + kDepth - 1) / kDepth : 0);
  const auto step_place = [&](int64_t step) {
    return kWeightGrad ? pixel_place(p, tile, step, tile.end) : tap_place(p, tile, step, tile.end);
  };
  for (int i = int(threadIdx.x); i < kTile; i += kThreads)
    rows[i] = kWeightGrad ? tap_place(p, tile, tile.row + i, tile.m) : pixel_place(p, tile, tile.row + i, tile.m);
  if (threadIdx.x < kStages * kDepth) ring[threadIdx.x] = step_place(tile.begin + threadIdx.x);
  block_sync();

  const T* const image = static_cast<const T*>(p.gathered) + tile.group * p.source_group;
  const int64_t present = p.columns - tile.column;
  const bool along_steps = kWeightGrad == (p.source.column == 1);
  const int64_t terms = p.height.kernel * p.width.kernel * p.channels;
  const T* const beside =
      static_cast<const T*>(p.beside) + (kWeightGrad ? tile.group * p.other_group + tile.column * p.other.channel
                                                     : tile.group * terms * p.column_pitch + tile.column);
  const auto fetch = [&](int stage) {
    if (stage < stages) {
      T* const to = reinterpret_cast<T*>(shared + stage % kStages * S::kStageBytes);
      T* const to_beside = to + S::kOperandBytes / sizeof(T);
      const Place* const steps = ring + stage % kStages * kDepth;
      const int64_t left = tile.end - tile.begin - int64_t(stage) * kDepth;
      fetch_gathered<T, kTile>(p, image, along_steps, rows, steps, to);
      if constexpr (kWeightGrad)
        fetch_pixels<T, kTile>(beside, p.other.channel, present, left, steps, to_beside);
      else
        fetch_weights<T, kTile>(beside, p.column_pitch, present, left, steps, to_beside);
    }
    async_copy_commit();
  };
  const int across = simt_across(), down = simt_down();
  typename Simt::Sums sums = {};
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  for (int stage = 0; stage < stages; ++stage) {
    async_copy_wait<kStages - 2>();
    block_sync();
    fetch(stage + kStages - 1);
    if (threadIdx.x < kDepth)  // of the stage that the next turn fetches
      ring[stage % kStages * kDepth + threadIdx.x] =
          step_place(tile.begin + int64_t(stage + kStages) * kDepth + threadIdx.x);
    const T* const tile_rows = reinterpret_cast<const T*>(shared + stage % kStages * S::kStageBytes);
    const T* const tile_columns = tile_rows + S::kOperandBytes / sizeof(T);
#pragma unroll
    for (int step = 0; step < kDepth; ++step)
      Simt::multiply(sums, tile_rows + step * S::kPitch, tile_columns + step * S::kPitch, down, across);
  }
  async_copy_wait<0>();
  block_sync();
  T* const lines = reinterpret_cast<T*>(shared);
  Simt::template store<S::kPitch>(sums, lines, lines_are_columns<kWeightGrad>(p), down, across);
  block_sync();
  store_product<T, kTile, kTile, S::kPitch, kThreads, kWeightGrad>(p, tile, rows, lines);
}

// ----------------------------------------------------------------------------------------- launchers

template <class T, int kTile, bool kWeightGrad>
void multiply(const ConvProduct& product) {
  launch(simt_conv_kernel<T, kTile, kWeightGrad>, unsigned(product_blocks(product)), kThreads, Shape<T, kTile>::kShared,
         product);
}

template <class T, int kTile>
void run(const ConvArgs& args, Pass pass, ConvProduct p) {
  conv_cuda::cut(p, pass == Pass::WeightGrad, kTile, kTile, kDepth);
  if (pass == Pass::WeightGrad) {
    const int64_t weights = p.groups * p.columns * p.channels * p.height.kernel * p.width.kernel;
    const CudaScratch partials(size_t(p.splits * weights) * sizeof(T));
    p.partials = partials.as<T>();
    multiply<T, kTile, true>(p);
    return conv_cuda::sum_weight_grad(args, p);
  }
  constexpr int64_t kItems = kPackOf16<T>;
  p.column_pitch = (p.columns + kItems - 1) / kItems * kItems;
  const PackedShape packed{p.groups, p.height.kernel * p.width.kernel, p.channels, p.column_pitch, false};
  const CudaScratch weights(size_t(packed.elements()) * sizeof(T));
  conv_cuda::pack_weights(args, pass, packed, weights.as<T>());
  p.beside = weights.as<T>();
  if (p.splits == 1) return multiply<T, kTile, false>(p);
  const int64_t elements = p.images * p.other.image;
  const CudaScratch partials(size_t(p.splits * elements) * sizeof(T));
  p.partials = partials.as<T>();
  multiply<T, kTile, false>(p);
  conv_cuda::sum_results(args, p, elements);
}

}  // namespace

namespace conv_cuda {

void simt(const ConvArgs& args, Pass pass) {
  const ConvProduct product = product_of(args, pass);
  if (args.dtype == DType::Float64) return run<double, 64>(args, pass, product);
  ConvProduct wide = product;
  cut(wide, pass == Pass::WeightGrad, 128, 128, kDepth);
  const bool fills = wide.splits == 1 && product.columns > 64;
  fills ? run<float, 128>(args, pass, product) : run<float, 64>(args, pass, product);
}

}  // namespace conv_cuda
}  // namespace fastnn
