// Convolutions of few channels a group on CUDA, depthwise ones above all: every result sums its taps in registers, with
// no tile in shared memory. All three passes.
//
// A thread makes 4 results (of packs of 8 elements, 2) that follow each other along the sliding axis: in planes of
// channels down a column, so that the lanes of a warp lie along a row; with channels last along a row, so that lanes
// are channels, each a pack of 16 bytes where the convolution is depthwise. Where taps and stride are known to the
// compiler, the elements under all windows are read once for each line of taps: 18 reads for 36 products at 3 x 3. The
// input gradient is a convolution with its taps reversed, and for strides beyond 1 leaves out the taps that do not meet
// a position.
//
// The weight gradient: a block sums a weight over a part of the pixels, 3 x 3 taps at a time in registers, its threads
// in a fixed order; parts are added up in their order.
//
//   bytes        the images once, from L1 beyond that; weights stay in L1
//   arithmetic   9 products of 3 x 3 taps to 8 bytes in float32: bound by memory (4.8 TB/s) on an H200
//   registers    up to 160 with packs of 8 elements, else some 60; shared memory only for the weight gradient's 36
//   bytes
//                a thread: full occupancy but for packs
//
// Predicted: 70 % of memory bandwidth for 3 x 3, stride 1; the weight gradient 40 %.
#include "core/cuda_index.h"
#include "core/cuda_launch.h"
#include "ops/conv/conv_cuda.h"
#include "ops/conv/result_cuda.h"

namespace fastnn {
namespace {

using conv_cuda::Pass;

// Results of a thread, along the sliding axis.
template <int kWidth>
constexpr int kResults = kWidth > 4 ? 2 : 4;

// One axis of a direct pass. Position i of the result with tap j reads position i * stride + j * dilation - padding, or
// transposed (i + padding - j * dilation) / stride where that is whole.
struct DirectAxis {
  int64_t results, source, kernel, stride, padding, dilation;
  int64_t source_stride, result_stride, tap_stride;  // elements between neighbours
};

struct Direct {
  ConvProduct p;
  DirectAxis slide, line;
  const void* weight;  // its first tap, of the first channel and column
  int64_t weight_group, weight_channel, weight_column;
  int64_t bands;  // of results that a thread makes
  bool channels_last, transposed;
};

// Where tap `tap` reads for position i, or -1.
__device__ inline int64_t source_position(const DirectAxis& axis, bool transposed, int64_t i, int64_t tap) {
  int64_t at = i * axis.stride + tap * axis.dilation - axis.padding;
  if (transposed) {
    const int64_t scaled = i + axis.padding - tap * axis.dilation;
    if (scaled < 0) return -1;
    const Quotient found = divide(scaled, axis.stride);
    at = found.rest == 0 ? found.quotient : -1;
  }
  return at < axis.source ? at : -1;
}

// What a thread makes.
struct Target {
  int64_t image, channel, line, first;
};

template <int kWidth>
__device__ inline Target target_of(const Direct& d, int64_t index) {
  const int64_t channels = d.p.groups * d.p.columns / kWidth;
  if (d.channels_last) {
    const Quotient a = divide(index, channels), b = divide(a.quotient, d.bands), c = divide(b.quotient, d.line.results);
    return {c.quotient, a.rest * kWidth, c.rest, b.rest * kResults<kWidth>};
  }
  const Quotient a = divide(index, d.line.results), b = divide(a.quotient, d.bands), c = divide(b.quotient, channels);
  return {c.quotient, c.rest * kWidth, a.rest, b.rest * kResults<kWidth>};
}

// kTaps x kTaps without dilation and of kStride, or any (0).
template <class Stored, int kWidth, int kTaps, int kStride>
__global__ void __launch_bounds__(kBlockThreads) direct_conv_kernel(const __grid_constant__ Direct d) {
  using T = Compute<Stored>;
  using Values = Pack<T, kWidth>;
  const ConvProduct& p = d.p;
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= p.images * (p.groups * p.columns / kWidth) * d.bands * d.line.results) return;
  const Target to = target_of<kWidth>(d, index);
  const Quotient group = divide(to.channel, p.columns);
  const Stored* source = static_cast<const Stored*>(p.gathered) + to.image * p.source.image +
                         group.quotient * p.channels * p.source.channel;
  const Stored* weight =
      static_cast<const Stored*>(d.weight) + group.quotient * d.weight_group + group.rest * d.weight_column;
  const auto add = [](Values& sums, const Values& x, const Values& w) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums.at[i] += x.at[i] * w.at[i];
  };
  Values sums[kResults<kWidth>] = {};
  for (int64_t channel = 0; channel < p.channels; ++channel, source += p.source.channel, weight += d.weight_channel) {
#pragma unroll
    for (int line_tap = 0; line_tap < (kTaps ? kTaps : int(d.line.kernel)); ++line_tap) {
      const int64_t line = source_position(d.line, d.transposed, to.line, line_tap);
      if (line < 0) continue;
      const Stored* const from = source + line * d.line.source_stride;
      const Stored* const taps = weight + line_tap * d.line.tap_stride;
      if constexpr (kTaps != 0) {
        constexpr int kSpan = (kResults<kWidth> - 1) * kStride + kTaps;
        Values under[kSpan], w[kTaps];
        const int64_t begin = to.first * kStride - d.slide.padding;
#pragma unroll
        for (int i = 0; i < kSpan; ++i)
          under[i] = uint64_t(begin + i) < uint64_t(d.slide.source)
                         ? load_values<kWidth>(from + (begin + i) * d.slide.source_stride)
                         : Values{};
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) w[tap] = load_values<kWidth>(taps + tap * d.slide.tap_stride);
#pragma unroll
        for (int result = 0; result < kResults<kWidth>; ++result)
#pragma unroll
          for (int tap = 0; tap < kTaps; ++tap) add(sums[result], under[result * kStride + tap], w[tap]);
      } else {
        for (int64_t tap = 0; tap < d.slide.kernel; ++tap) {
          const Values w = load_values<kWidth>(taps + tap * d.slide.tap_stride);
#pragma unroll
          for (int result = 0; result < kResults<kWidth>; ++result) {
            const int64_t at = source_position(d.slide, d.transposed, to.first + result, tap);
            if (at >= 0) add(sums[result], load_values<kWidth>(from + at * d.slide.source_stride), w);
          }
        }
      }
    }
  }
  const int64_t offset = to.image * p.other.image + to.channel * p.other.channel + to.line * d.line.result_stride;
#pragma unroll
  for (int result = 0; result < kResults<kWidth>; ++result)
    if (to.first + result < d.slide.results)
      store_result<Stored>(p, sums[result], to.channel, offset + (to.first + result) * d.slide.result_stride);
}

// ------------------------------------------------------------------------------ weight gradient

// A block of kChannels output channels (neighbours with channels last, else 1) and kBlockThreads / kChannels threads
// over the pixels of a part; kTaps x kTaps taps from (first_row, first_column) on.
template <class Stored, int kChannels, int kTaps>
__global__ void __launch_bounds__(kBlockThreads) direct_weight_grad_kernel(const __grid_constant__ ConvProduct p) {
  using T = Compute<Stored>;
  constexpr int kPixels = kBlockThreads / kChannels;
  __shared__ T partial[kPixels][kChannels];
  const int64_t filters = p.groups * p.columns, blocks = (filters + kChannels - 1) / kChannels;
  const int64_t tap_columns = p.width.kernel / kTaps, windows = p.height.kernel / kTaps * tap_columns;
  Quotient rest = divide(blockIdx.x, blocks);
  const int64_t filter = rest.rest * kChannels + threadIdx.x % kChannels;
  rest = divide(rest.quotient, p.channels);
  const int64_t channel = rest.rest;
  rest = divide(rest.quotient, windows);
  const int64_t split = rest.quotient;
  const int64_t first_row = rest.rest / tap_columns * kTaps, first_column = rest.rest % tap_columns * kTaps;
  const bool present = filter < filters;
  const Stored* const image = static_cast<const Stored*>(p.gathered) +
                              ((present ? filter / p.columns : 0) * p.channels + channel) * p.source.channel;
  const Stored* const dy = static_cast<const Stored*>(p.beside) + (present ? filter : 0) * p.other.channel;
  const int64_t pixels = p.images * p.height.output * p.width.output, begin = split * p.split_depth;
  const int64_t end = !present ? 0 : pixels - begin < p.split_depth ? pixels : begin + p.split_depth;
  T sums[kTaps][kTaps] = {};
  for (int64_t pixel = begin + threadIdx.x / kChannels; pixel < end; pixel += kPixels) {
    const Quotient line = divide(pixel, p.width.output), at = divide(line.quotient, p.height.output);
    const T gradient =
        to_compute<T>(dy[at.quotient * p.other.image + at.rest * p.other.row + line.rest * p.other.column]);
    const int64_t row = at.rest * p.height.stride + first_row * p.height.dilation - p.height.padding;
    const int64_t column = line.rest * p.width.stride + first_column * p.width.dilation - p.width.padding;
    const Stored* const from = image + at.quotient * p.source.image;
#pragma unroll
    for (int r = 0; r < kTaps; ++r) {
      const int64_t y = row + r * p.height.dilation;
      if (y < 0 || y >= p.source_height) continue;
#pragma unroll
      for (int s = 0; s < kTaps; ++s) {
        const int64_t x = column + s * p.width.dilation;
        if (x >= 0 && x < p.source_width)
          sums[r][s] += gradient * to_compute<T>(from[y * p.source.row + x * p.source.column]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kTaps; ++r)
#pragma unroll
    for (int s = 0; s < kTaps; ++s) {
      T sum = sums[r][s];
      if constexpr (kChannels == 1) {
        sum = block_reduce<Sum>(sum, &partial[0][0]);
      } else {
        partial[threadIdx.x / kChannels][threadIdx.x % kChannels] = sum;
        block_sync();
        if (threadIdx.x < kChannels)
          for (int i = 1; i < kPixels; ++i) sum += partial[i][threadIdx.x];
        block_sync();
      }
      if (threadIdx.x < kChannels && present) {
        const int64_t tap = (first_row + r) * p.width.kernel + first_column + s;
        const int64_t taps = p.height.kernel * p.width.kernel;
        static_cast<T*>(p.partials)[((split * filters + filter) * p.channels + channel) * taps + tap] = sum;
      }
    }
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    sum_direct_kernel(const __grid_constant__ ConvProduct p, int64_t weights) {
  using T = Compute<Stored>;
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= weights) return;
  T sum = T(0);
  for (int split = 0; split < p.splits; ++split) sum += static_cast<const T*>(p.partials)[split * weights + index];
  static_cast<Stored*>(p.result)[index] = to_stored<Stored>(sum);
}

// ----------------------------------------------------------------------------------------- launchers

DirectAxis direct_axis(const ConvAxis& axis, bool transposed, int64_t source_stride, int64_t result_stride,
                       int64_t tap_stride) {
  if (transposed)
    return {axis.input,    axis.output,   axis.kernel,   axis.stride, axis.padding,
            axis.dilation, source_stride, result_stride, tap_stride};
  return {axis.output,   axis.input,    axis.kernel,   axis.stride, axis.padding,
          axis.dilation, source_stride, result_stride, tap_stride};
}

// The convolution with reversed taps that the input gradient of one of stride 1 is.
void reverse(DirectAxis& axis, int64_t& first_tap) {
  first_tap += (axis.kernel - 1) * axis.tap_stride;
  axis.tap_stride = -axis.tap_stride;
  axis.padding = (axis.kernel - 1) * axis.dilation - axis.padding;
}

template <class Stored, int kWidth>
void launch_direct(Direct d) {
  d.bands = (d.slide.results + kResults<kWidth> - 1) / kResults<kWidth>;
  const auto known = [&](int64_t stride) {
    const auto suits = [&](const DirectAxis& axis) {
      return axis.kernel == 3 && axis.dilation == 1 && axis.stride == stride;
    };
    return sizeof(Stored) < 8 && !d.transposed && suits(d.slide) && suits(d.line);
  };
  const int64_t threads = d.p.images * (d.p.groups * d.p.columns / kWidth) * d.bands * d.line.results;
  const auto launch_of = [&](auto kernel) { launch(kernel, unsigned(blocks_for(threads)), kBlockThreads, 0, d); };
  if constexpr (sizeof(Stored) < 8) {
    if (known(1)) return launch_of(direct_conv_kernel<Stored, kWidth, 3, 1>);
    if (known(2)) return launch_of(direct_conv_kernel<Stored, kWidth, 3, 2>);
  }
  launch_of(direct_conv_kernel<Stored, kWidth, 0, 0>);
}

template <class Stored>
void convolve(const ConvArgs& args, Pass pass) {
  const bool transposed = pass == Pass::InputGrad;
  const int64_t taps = args.height.kernel * args.width.kernel, filter = args.in_channels * taps;
  Direct d{};
  ConvProduct& p = d.p = conv_cuda::product_of(args, pass);
  p.splits = 1;
  d.channels_last = args.channels_last;
  d.weight_group = args.out_channels * filter;
  d.weight_channel = transposed ? filter : taps;
  d.weight_column = transposed ? taps : filter;
  // Packs of depthwise channels need the weights of neighbours side by side.
  constexpr int kItems = kPackOf16<Stored>;
  const bool packs = args.channels_last && args.in_channels == 1 && args.out_channels == 1 &&
                     args.groups % kItems == 0 && is_aligned(p.gathered, 16) && is_aligned(p.result, 16) &&
                     is_aligned(p.bias, 16) && is_aligned(p.residual, 16);
  const int64_t tap_stride = packs ? args.groups : 1;
  if (packs) d.weight_group = 1;
  DirectAxis rows = direct_axis(args.height, transposed, p.source.row, p.other.row, args.width.kernel * tap_stride);
  DirectAxis columns = direct_axis(args.width, transposed, p.source.column, p.other.column, tap_stride);
  int64_t first_tap = 0;
  d.transposed = transposed && (rows.stride > 1 || columns.stride > 1);
  if (transposed && !d.transposed) {
    reverse(rows, first_tap);
    reverse(columns, first_tap);
  }
  d.slide = args.channels_last ? columns : rows;
  d.line = args.channels_last ? rows : columns;
  if (!packs) {
    d.weight = static_cast<const Stored*>(args.weight) + first_tap;
    return launch_direct<Stored, 1>(d);
  }
  ConvArgs as_columns = args;
  as_columns.groups = 1;
  as_columns.out_channels = args.groups;
  const CudaScratch weights(size_t(args.groups * taps) * sizeof(Stored));
  conv_cuda::pack_weights(as_columns, Pass::Forward, {1, taps, 1, args.groups, false}, weights.as<void>());
  d.weight = weights.as<Stored>() + first_tap;
  launch_direct<Stored, kItems>(d);
}

template <class Stored>
void weight_grad(const ConvArgs& args) {
  ConvProduct p = conv_cuda::product_of(args, Pass::WeightGrad);
  const bool window = args.height.kernel == 3 && args.width.kernel == 3;
  const int64_t taps = args.height.kernel * args.width.kernel, filters = args.groups * args.out_channels;
  const int64_t channels = args.channels_last ? kWarp : 1, windows = window ? 1 : taps;
  const int64_t blocks = (filters + channels - 1) / channels * args.in_channels * windows;
  conv_cuda::cut_pixels(p, blocks, 8 * kBlockThreads / channels);
  const int64_t weights = filters * args.in_channels * taps;
  const CudaScratch partials(size_t(p.splits * weights) * sizeof(Compute<Stored>));
  p.partials = partials.as<void>();
  const auto launch_of = [&](auto kernel) { launch(kernel, unsigned(blocks * p.splits), kBlockThreads, 0, p); };
  if (args.channels_last)
    window ? launch_of(direct_weight_grad_kernel<Stored, kWarp, 3>)
           : launch_of(direct_weight_grad_kernel<Stored, kWarp, 1>);
  else
    window ? launch_of(direct_weight_grad_kernel<Stored, 1, 3>) : launch_of(direct_weight_grad_kernel<Stored, 1, 1>);
  launch(sum_direct_kernel<Stored>, unsigned(blocks_for(weights)), kBlockThreads, 0, p, weights);
}

}  // namespace

namespace conv_cuda {

bool direct_suits(const ConvArgs& args, Pass pass, bool tensor_cores) {
  if (args.in_channels == 1 && args.out_channels <= 8) return true;
  const int64_t most = tensor_cores || pass == Pass::WeightGrad ? 2 : 8;
  return args.in_channels <= most && args.out_channels <= most;
}

void direct(const ConvArgs& args, Pass pass) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    pass == Pass::WeightGrad ? weight_grad<Stored>(args) : convolve<Stored>(args, pass);
  });
}

}  // namespace conv_cuda
}  // namespace fastnn
