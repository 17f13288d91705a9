// Convolution on CUDA: which kernel takes a pass, and what goes before and after the products.
//
//   pack_weights      reads and writes every weight once; reads are strided, and found in L2
//   sum_results       (parts * 4 + item size) bytes an element of the result
//   sum_weight_grad   the same of the weights, transposed through tiles in shared memory so that both sides are read
//                     and written in whole lines
//
// Registers below 40, nothing but the tile of 4 KB in shared memory: as many blocks as threads allow.
#include "ops/conv/conv_cuda.h"

#include <algorithm>

#include "core/cuda_index.h"
#include "gemm/gemm_amx.h"
#include "gemm/gemm_cuda.h"
#include "ops/conv/result_cuda.h"

namespace fastnn {
namespace {

using conv_cuda::PackedShape;
using conv_cuda::Pass;

constexpr int kTransposed = 32, kTransposingRows = 8;
constexpr int64_t kLeastStages = 8;  // of a part of the sum

// Strides of a pass's weights, row-major as the convolution's (columns, channels, taps) or its transpose.
struct WeightStrides {
  int64_t group, channel, column;
  int64_t channels, columns;  // those there are
};

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    pack_weights_kernel(const Stored* weight, WeightStrides strides, PackedShape shape, Stored* to) {
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= shape.elements()) return;
  const int64_t inner = shape.along_terms ? shape.taps * shape.channels : shape.columns;
  const Quotient outer = divide(index, inner);
  const Quotient group = divide(outer.quotient, shape.along_terms ? shape.columns : shape.taps * shape.channels);
  const int64_t column = shape.along_terms ? group.rest : outer.rest;
  const Quotient tap = divide(shape.along_terms ? outer.rest : group.rest, shape.channels);
  const bool there = tap.rest < strides.channels && column < strides.columns;
  to[index] =
      there
          ? weight[group.quotient * strides.group + tap.rest * strides.channel + column * strides.column + tap.quotient]
          : to_stored<Stored>(0.0f);
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    sum_results_kernel(const __grid_constant__ ConvProduct p, int64_t elements) {
  using T = Compute<Stored>;
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= elements) return;
  T sum = T(0);
  for (int split = 0; split < p.splits; ++split) sum += static_cast<const T*>(p.partials)[split * elements + index];
  const int64_t channel = divide(divide(index, p.other.channel).quotient, p.groups * p.columns).rest;
  store_result<Stored>(p, Pack<T, 1>{sum}, channel, index);
}

// A block takes 32 pixels of 32 channels, of those with padding.
template <class Bits>
__global__ void __launch_bounds__(kTransposed* kTransposingRows)
    pack_image_kernel(const Bits* from, ImageStrides strides, int64_t width, int64_t pixels, int64_t planes,
                      int64_t channels, int64_t padded, int64_t all, Bits* to) {
  __shared__ Bits tile[kTransposed][kTransposed + 1];
  const int64_t across = (pixels + kTransposed - 1) / kTransposed;
  const int64_t first_pixel = blockIdx.x % across * kTransposed, first_channel = blockIdx.x / across * kTransposed;
  const bool planar = strides.column == 1;
  for (int i = int(threadIdx.y); i < kTransposed; i += kTransposingRows) {
    const int down = planar ? i : int(threadIdx.x), along = planar ? int(threadIdx.x) : i;
    const int64_t pixel = first_pixel + along;
    const Quotient channel = divide(first_channel + down, padded);
    Bits bits = 0;
    if (pixel < pixels && first_channel + down < all && channel.rest < channels) {
      const Quotient image = divide(pixel, planes), line = divide(image.rest, width);
      bits = from[image.quotient * strides.image + line.quotient * strides.row + line.rest * strides.column +
                  (channel.quotient * channels + channel.rest) * strides.channel];
    }
    tile[along][down] = bits;
  }
  block_sync();
  for (int i = int(threadIdx.y); i < kTransposed; i += kTransposingRows)
    if (first_pixel + i < pixels && first_channel + threadIdx.x < all)
      to[(first_pixel + i) * all + first_channel + threadIdx.x] = tile[i][threadIdx.x];
}

// A block takes 32 weights (channel, tap) of 32 columns.
template <class Stored>
__global__ void __launch_bounds__(kTransposed* kTransposingRows)
    sum_weight_grad_kernel(const __grid_constant__ ConvProduct p, int64_t channels, Stored* dw) {
  using T = Compute<Stored>;
  __shared__ T tile[kTransposed][kTransposed + 1];
  const int64_t taps = p.height.kernel * p.width.kernel, terms = taps * p.channels, weights = channels * taps;
  const int64_t across = (weights + kTransposed - 1) / kTransposed, down = (p.columns + kTransposed - 1) / kTransposed;
  const int64_t first_weight = blockIdx.x % across * kTransposed;
  const int64_t first_column = blockIdx.x / across % down * kTransposed, group = blockIdx.x / across / down;
  const int64_t column = first_column + threadIdx.x;
  for (int i = int(threadIdx.y); i < kTransposed; i += kTransposingRows) {
    const int64_t index = first_weight + i;
    T sum = T(0);
    if (index < weights && column < p.columns) {
      const Quotient channel = divide(index, taps);
      const T* part = static_cast<const T*>(p.partials) +
                      (group * terms + channel.rest * p.channels + channel.quotient) * p.columns + column;
      for (int split = 0; split < p.splits; ++split) sum += part[split * p.groups * terms * p.columns];
    }
    tile[i][threadIdx.x] = sum;
  }
  block_sync();
  for (int i = int(threadIdx.y); i < kTransposed; i += kTransposingRows) {
    const int64_t index = first_weight + threadIdx.x;
    if (index < weights && first_column + i < p.columns)
      dw[(group * p.columns + first_column + i) * weights + index] = to_stored<Stored>(tile[threadIdx.x][i]);
  }
}

// ----------------------------------------------------------------------------------------- dispatch

// Coordinates are added in 32 bits.
void check_size(const ConvAxis& axis) {
  const __int128 reach = __int128(axis.stride) * axis.output + __int128(axis.dilation) * axis.kernel + axis.padding;
  check(axis.input < kFarAway && axis.output < kFarAway && reach < kFarAway,
        "conv: on CUDA an axis and its padding must be below ", kFarAway, " elements, got input size ", axis.input,
        ", padding ", axis.padding, ", kernel size ", axis.kernel, " and dilation ", axis.dilation);
}

void run(const ConvArgs& args, Pass pass) {
  check_size(args.height);
  check_size(args.width);
  const bool tensor_cores = item_size(args.dtype) == 2 || (args.dtype == DType::Float32 && float32_parts < 3);
  if (conv_cuda::direct_suits(args, pass, tensor_cores)) return conv_cuda::direct(args, pass);
  tensor_cores ? conv_cuda::mma(args, pass) : conv_cuda::simt(args, pass);
}

void forward(const ConvArgs& args) { run(args, Pass::Forward); }
void input_grad(const ConvArgs& args) { run(args, Pass::InputGrad); }
void weight_grad(const ConvArgs& args) { run(args, Pass::WeightGrad); }

}  // namespace

namespace conv_cuda {

ConvProduct product_of(const ConvArgs& args, Pass pass) {
  const ConvAxis &height = args.height, &width = args.width;
  const ImageStrides x = image_strides(args.groups * args.in_channels, height.input, width.input, args.channels_last);
  const ImageStrides y =
      image_strides(args.groups * args.out_channels, height.output, width.output, args.channels_last);
  const bool transposed = pass == Pass::InputGrad;
  ConvProduct p{};
  p.images = args.images;
  p.groups = args.groups;
  p.channels = transposed ? args.out_channels : args.in_channels;
  p.columns = p.column_pitch = transposed ? args.in_channels : args.out_channels;
  p.height = height;
  p.width = width;
  p.transposed = transposed;
  p.source_height = transposed ? height.output : height.input;
  p.source_width = transposed ? width.output : width.input;
  p.source = transposed ? y : x;
  p.other = transposed ? x : y;
  p.source_group = p.channels * p.source.channel;
  p.other_group = p.columns * p.other.channel;
  p.gathered = transposed ? args.dy : args.x;
  p.beside = pass == Pass::WeightGrad ? args.dy : nullptr;
  p.row_phases = transposed ? phases_of(height) : 1;
  p.column_phases = transposed ? phases_of(width) : 1;
  p.result = args.out;
  if (pass != Pass::Forward) return p;
  p.bias = args.bias;
  p.residual = args.residual;
  p.activation = args.activation;
  return p;
}

void cut(ConvProduct& p, bool weight_grad, int tile_rows, int tile_columns, int64_t unit) {
  const GatherAxis rows = p.transposed ? input_grad_axis(p.height, 0) : forward_axis(p.height);
  const GatherAxis columns = p.transposed ? input_grad_axis(p.width, 0) : forward_axis(p.width);
  // Phase 0 has no fewer positions than others; none has more taps than this.
  const int64_t pixels = p.images * rows.count * columns.count;
  const int64_t taps = tiles_along(p.height.kernel, rows.tap_step) * tiles_along(p.width.kernel, columns.tap_step);
  const int64_t terms = taps * p.channels;
  p.row_tiles = tiles_along(weight_grad ? terms : pixels, tile_rows);
  p.column_tiles = tiles_along(p.columns, tile_columns);
  p.splits = 1;
  const int64_t depth = weight_grad ? pixels : terms, blocks = product_blocks(p);
  const GemmSplit split = split_k_of(blocks, depth, unit, kLeastStages * unit, gemm_cuda::gpu().processors);
  p.splits = split.splits;
  p.split_depth = split.split_k;
}

void cut_pixels(ConvProduct& p, int64_t blocks, int64_t least) {
  const int64_t pixels = p.images * p.height.output * p.width.output;
  const int64_t wanted = std::max<int64_t>(1, std::min(8 * gemm_cuda::gpu().processors / blocks, pixels / least));
  p.split_depth = (pixels + wanted - 1) / wanted;
  p.splits = int((pixels + p.split_depth - 1) / p.split_depth);
}

void pack_weights(const ConvArgs& args, Pass pass, const PackedShape& shape, void* to) {
  const int64_t taps = shape.taps, filter = args.in_channels * taps;
  const WeightStrides strides =
      pass == Pass::InputGrad
          ? WeightStrides{args.out_channels * filter, filter, taps, args.out_channels, args.in_channels}
          : WeightStrides{args.out_channels * filter, taps, filter, args.in_channels, args.out_channels};
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    launch(pack_weights_kernel<Stored>, unsigned(blocks_for(shape.elements())), kBlockThreads, 0,
           static_cast<const Stored*>(args.weight), strides, shape, static_cast<Stored*>(to));
  });
}

void pack_image(const ConvArgs& args, const void* image, bool is_y, int64_t padded, void* to) {
  const int64_t channels = is_y ? args.out_channels : args.in_channels, all = args.groups * padded;
  const int64_t height = is_y ? args.height.output : args.height.input,
                width = is_y ? args.width.output : args.width.input;
  const ImageStrides strides = image_strides(args.groups * channels, height, width, args.channels_last);
  const int64_t pixels = args.images * height * width;
  const auto launch_of = [&](auto kernel, auto bits) {
    using Bits = decltype(bits);
    launch(kernel, unsigned(tiles_along(pixels, kTransposed) * tiles_along(all, kTransposed)),
           dim3(kTransposed, kTransposingRows), 0, static_cast<const Bits*>(image), strides, width, pixels,
           height * width, channels, padded, all, static_cast<Bits*>(to));
  };
  item_size(args.dtype) == 2 ? launch_of(pack_image_kernel<uint16_t>, uint16_t())
                             : launch_of(pack_image_kernel<uint32_t>, uint32_t());
}

void sum_results(const ConvArgs& args, const ConvProduct& product, int64_t elements) {
  with_float_type(args.dtype, [&](auto tag) {
    launch(sum_results_kernel<typename decltype(tag)::type>, unsigned(blocks_for(elements)), kBlockThreads, 0, product,
           elements);
  });
}

void sum_weight_grad(const ConvArgs& args, const ConvProduct& product) {
  const int64_t weights = args.in_channels * args.height.kernel * args.width.kernel;
  const int64_t blocks = tiles_along(weights, kTransposed) * tiles_along(product.columns, kTransposed) * args.groups;
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    launch(sum_weight_grad_kernel<Stored>, unsigned(blocks), dim3(kTransposed, kTransposingRows), 0, product,
           args.in_channels, static_cast<Stored*>(args.out));
  });
}

}  // namespace conv_cuda

FASTNN_CUDA_KERNEL(conv_forward, forward)
FASTNN_CUDA_KERNEL(conv_input_grad, input_grad)
FASTNN_CUDA_KERNEL(conv_weight_grad, weight_grad)

}  // namespace fastnn
