// Convolution on the tensor cores of Ampere and later, all three passes: bfloat16, float16, and float32 rounded to
// TF32; sums in float32. gather_cuda.h has the product.
//
// A block of 8 (4) warps computes 128 x 128 (128 x 64), a warp 64 x 32 in registers. Stages of 128 bytes of the sum
// come by cp.async while earlier ones are multiplied: 16-byte chunks of adjacent channels, gathered from where each
// pixel and tap meet, with zeros from outside the image, so patches are never written out. Images have their channels
// last and those of a group in whole chunks; others are copied so once, and results go to either layout. The places of
// a tile's rows lie in shared memory, those of a stage are made one stage ahead by a few threads.
//
//   forward, input gradient   both operands lie along the sum: (pixel, term), (channel, term)
//   weight gradient           both across it: (pixel, term), (pixel, channel); ldmatrix transposes. The pixels are cut
//                             into parts, whose sums are added up in their order
//
//   arithmetic   2 pixels channels columns taps / 312 TF/s (A100, 16-bit), 156 TF/s (TF32); on Hopper mma.sync reaches
//                some 60 % of wgmma
//   bytes        a copied image is read and written once; each tile of columns gathers the image again, from L2
//   shared       of 128 x 128, a warp reads 6 KB for 64 x 32 x 64 products: as in gemm_cuda_mma.cu
//   registers    64 sums, two sets of 24 operands; 105 KB for 3 stages: 1 block a multiprocessor on A100, 2 on Hopper
//
// Predicted: 65 % of the peak of an A100 where there are tiles for every multiprocessor, channels last.
#include <optional>
#include <type_traits>

#include "core/cuda_launch.h"
#include "gemm/fragments_cuda.h"
#include "ops/conv/conv_cuda.h"
#include "ops/conv/result_cuda.h"

// SASS mma_conv_kernel: HMMA LDGSTS
namespace fastnn {
namespace {

using conv_cuda::PackedShape;
using conv_cuda::Pass;

constexpr int kRows = 128, kStages = 3;

template <class T, int kColumns, bool kWeightGrad>
struct Shape {
  using Tile = WarpTile<T, kRows, kColumns, !kWeightGrad, !kWeightGrad>;
  static constexpr int kItems = 16 / int(sizeof(T));           // of a chunk
  static constexpr int kDepth = 128 / int(sizeof(T));          // of a stage
  static constexpr int kRowPlaces = kRows;                     // each pixel, or each term (chunks use one)
  static constexpr int kStepItems = kWeightGrad ? 1 : kItems;  // steps that have a place together
  static constexpr int kStepPlaces = kDepth / kStepItems;
  static constexpr int kPitch = (kColumns > kRows ? kColumns : kRows) + 4;  // of lines of sums
  static constexpr int kTileBytes = kStages * Tile::kStageBytes;
  static constexpr int kShared =
      kTileBytes + (kRowPlaces + kStages * kStepPlaces) * int(sizeof(Place)) + int(sizeof(ConvTile));
  static_assert(kRows * kPitch * int(sizeof(float)) <= kTileBytes, "the sums are stored where the stages were");
};

// visit(row, chunk) for a thread's chunks of an operand.
template <class Tile, int kThreads, class Visit>
__device__ inline void for_chunks(const Visit& visit) {
#pragma unroll
  for (int i = 0; i < Tile::kRows * Tile::kChunks; i += kThreads)
    visit((i + int(threadIdx.x)) / Tile::kChunks, int(threadIdx.x) % Tile::kChunks);
}

template <class T, int kColumns, bool kWeightGrad>
__global__ void __launch_bounds__(Shape<T, kColumns, kWeightGrad>::Tile::kThreads, 1)
    mma_conv_kernel(const __grid_constant__ ConvProduct p) {
  using S = Shape<T, kColumns, kWeightGrad>;
  using Tile = typename S::Tile;
  constexpr int kItems = S::kItems, kThreads = Tile::kThreads;
  FASTNN_DYNAMIC_SHARED(shared);
  Place* const rows = reinterpret_cast<Place*>(shared + S::kTileBytes);
  Place* const ring = rows + S::kRowPlaces;
  ConvTile& tile = *reinterpret_cast<ConvTile*>(ring + kStages * S::kStepPlaces);
  if (threadIdx.x == 0) tile = tile_at<kWeightGrad>(p, blockIdx.x, kRows, kColumns);
  block_sync();
  if (tile.row >= tile.m) return;
  const int stages = int(tile.end > tile.begin ? (tile.end - tile.begin + S::kDepth - 1) / S::kDepth : 0);
  const auto step_place = [&](int64_t place) {
    const int64_t step = tile.begin + place * S::kStepItems;
    return kWeightGrad ? pixel_place(p, tile, step, tile.end) : tap_place(p, tile, step, tile.end);
  };
  for (int i = int(threadIdx.x); i < kRows; i += kThreads)
    rows[i] = kWeightGrad ? tap_place(p, tile, tile.row + i, tile.m) : pixel_place(p, tile, tile.row + i, tile.m);
  for (int i = int(threadIdx.x); i < kStages * S::kStepPlaces; i += kThreads) ring[i] = step_place(i);
  block_sync();

  const T* const image = static_cast<const T*>(p.gathered) + tile.group * p.source_group;
  const int64_t present = p.columns - tile.column, terms = p.height.kernel * p.width.kernel * p.channels;
  const T* const beside =
      static_cast<const T*>(p.beside) +
      (kWeightGrad ? tile.group * p.other_group + tile.column : (tile.group * p.columns + tile.column) * terms);
  const auto fetch = [&](int stage) {
    if (stage < stages) {
      unsigned char* const to = shared + stage % kStages * Tile::kStageBytes;
      const Place* const steps = ring + stage % kStages * S::kStepPlaces;
      for_chunks<typename Tile::TileA, kThreads>([&](int row, int chunk) {
        const Place &a = rows[kWeightGrad ? chunk * kItems : row], &b = steps[kWeightGrad ? row : chunk];
        const bool inside = is_inside(p, a, b);
        async_copy<16>(to + Tile::TileA::offset(row, chunk), inside ? image + a.offset + b.offset : image, inside);
      });
      for_chunks<typename Tile::TileB, kThreads>([&](int row, int chunk) {
        const Place& b = steps[kWeightGrad ? row : chunk];
        const bool valid = b.row != -kFarAway && (kWeightGrad ? chunk * kItems : row) < present;
        const int64_t offset = b.beside + (kWeightGrad ? chunk * kItems : row * terms);
        async_copy<16>(to + Tile::TileA::kBytes + Tile::TileB::offset(row, chunk), valid ? beside + offset : beside,
                       valid);
      });
    }
    async_copy_commit();
  };
  Tile product;
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  for (int stage = 0; stage < stages; ++stage) {
    async_copy_wait<kStages - 2>();
    block_sync();
    fetch(stage + kStages - 1);
    if (threadIdx.x < S::kStepPlaces)  // of the stage that the next turn fetches
      ring[stage % kStages * S::kStepPlaces + threadIdx.x] =
          step_place(int64_t(stage + kStages) * S::kStepPlaces + threadIdx.x);
    product.multiply(shared + stage % kStages * Tile::kStageBytes);
  }
  async_copy_wait<0>();
  block_sync();
  float* const lines = reinterpret_cast<float*>(shared);
  const bool transposed = lines_are_columns<kWeightGrad>(p);
  product.for_pairs([&](int row, int column, const Pack<float, 2>& pair) {
    if (transposed) {
      lines[column * S::kPitch + row] = pair.at[0];
      lines[(column + 1) * S::kPitch + row] = pair.at[1];
    } else {
      store_pack(lines + row * S::kPitch + column, pair);
    }
  });
  block_sync();
  store_product<T, kRows, kColumns, S::kPitch, kThreads, kWeightGrad>(p, tile, rows, lines);
}

// ----------------------------------------------------------------------------------------- launchers

template <class T, bool kWeightGrad>
void multiply(const ConvProduct& p) {
  const auto launch_of = [&](auto columns) {
    using S = Shape<T, columns, kWeightGrad>;
    launch(mma_conv_kernel<T, columns, kWeightGrad>, unsigned(product_blocks(p)), S::Tile::kThreads, S::kShared, p);
  };
  p.columns > 64 ? launch_of(std::integral_constant<int, 128>()) : launch_of(std::integral_constant<int, 64>());
}

// An image as the kernel gathers it: in place where that is so, else a copy.
template <class T>
class Chunked {
 public:
  Chunked(const ConvArgs& args, const void* image, bool is_y)
      : channels(padded(is_y ? args.out_channels : args.in_channels)) {
    const int64_t height = is_y ? args.height.output : args.height.input;
    const int64_t width = is_y ? args.width.output : args.width.input;
    strides = image_strides(args.groups * channels, height, width, true);
    const bool in_place = args.channels_last && channels == (is_y ? args.out_channels : args.in_channels);
    data = image;
    if (in_place && is_aligned(image, 16)) return;
    copy_.emplace(size_t(args.images * strides.image) * sizeof(T));
    conv_cuda::pack_image(args, image, is_y, channels, copy_->template as<void>());
    data = copy_->template as<void>();
  }

  int64_t channels;  // of a group
  ImageStrides strides;
  const void* data;

 private:
  static int64_t padded(int64_t channels) {
    constexpr int64_t kItems = 16 / int64_t(sizeof(T));
    return (channels + kItems - 1) / kItems * kItems;
  }
  std::optional<CudaScratch> copy_;
};

template <class T>
void run(const ConvArgs& args, Pass pass) {
  ConvProduct p = conv_cuda::product_of(args, pass);
  const Chunked<T> source(args, p.gathered, pass == Pass::InputGrad);
  p.gathered = source.data;
  p.source = source.strides;
  p.channels = p.source_group = source.channels;
  conv_cuda::cut(p, pass == Pass::WeightGrad, kRows, p.columns > 64 ? 128 : 64, 128 / int64_t(sizeof(T)));
  const int64_t terms = p.height.kernel * p.width.kernel * p.channels;
  if (pass == Pass::WeightGrad) {
    const Chunked<T> dy(args, p.beside, true);
    p.beside = dy.data;
    p.other = dy.strides;
    p.other_group = dy.channels;
    const CudaScratch partials(size_t(p.splits * p.groups * p.columns * terms) * sizeof(float));
    p.partials = partials.as<float>();
    multiply<T, true>(p);
    return conv_cuda::sum_weight_grad(args, p);
  }
  const PackedShape packed{p.groups, p.height.kernel * p.width.kernel, p.channels, p.columns, true};
  const CudaScratch weights(size_t(packed.elements()) * sizeof(T));
  conv_cuda::pack_weights(args, pass, packed, weights.as<void>());
  p.beside = weights.as<void>();
  if (p.splits == 1) return multiply<T, false>(p);
  const int64_t elements = p.images * p.other.image;
  const CudaScratch partials(size_t(p.splits * elements) * sizeof(float));
  p.partials = partials.as<float>();
  multiply<T, false>(p);
  conv_cuda::sum_results(args, p, elements);
}

}  // namespace

namespace conv_cuda {

void mma(const ConvArgs& args, Pass pass) {
  if (args.dtype == DType::Float32) return run<float>(args, pass);
  args.dtype == DType::BFloat16 ? run<bfloat16>(args, pass) : run<float16>(args, pass);
}

}  // namespace conv_cuda
}  // namespace fastnn
