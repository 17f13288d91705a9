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
//   registers    up to 95 with packs: 2 blocks of 256 threads a multiprocessor; else up to 64: 4 blocks. Shared memory
//                only for the weight gradient: a sum of each thread
//
// Predicted: 70 % of memory bandwidth for 3 x 3, stride 1; the weight gradient 40 %.
#include <algorithm>
#include <climits>

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
  int results, source, kernel, stride, padding, dilation;
  int64_t source_stride, result_stride, tap_stride;  // elements between neighbours
};

struct Direct {
  ConvProduct p;
  DirectAxis slide, line;
  const void* weight;  // its first tap, of the first channel and column
  int64_t weight_group, weight_channel, weight_column;
  int bands;         // of results that a thread makes
  unsigned threads;  // with something to do
  bool channels_last, transposed;
};

// Where tap `tap` reads for position i, or -1.
__device__ inline int source_position(const DirectAxis& axis, bool transposed, int i, int tap) {
  int at = i * axis.stride + tap * axis.dilation - axis.padding;
  if (transposed) {
    const int scaled = i + axis.padding - tap * axis.dilation;
    at = scaled >= 0 && scaled % axis.stride == 0 ? scaled / axis.stride : -1;
  }
  return at < axis.source ? at : -1;
}

// What a thread makes: `first` along the sliding axis.
struct Target {
  int image, channel, line, first;
};

template <int kWidth>
__device__ inline Target target_of(const Direct& d, unsigned index) {
  const auto take = [&](int64_t count) {
    const unsigned taken = index % unsigned(count);
    index /= unsigned(count);
    return int(taken);
  };
  Target to;
  if (d.channels_last) {
    to.channel = take(d.p.groups * d.p.columns / kWidth) * kWidth;
    to.first = take(d.bands) * kResults<kWidth>;
    to.line = take(d.line.results);
  } else {
    to.line = take(d.line.results);
    to.first = take(d.bands) * kResults<kWidth>;
    to.channel = take(d.p.groups * d.p.columns / kWidth) * kWidth;
  }
  to.image = int(index);
  return to;
}

// kTaps x kTaps without dilation and of kStride, or any (0).
template <class Stored, int kWidth, int kTaps, int kStride>
__global__ void __launch_bounds__(kBlockThreads, kWidth > 1 ? 2 : 4)
    direct_conv_kernel(const __grid_constant__ Direct d) {
  using T = Compute<Stored>;
  using Values = Pack<T, kWidth>;
  const ConvProduct& p = d.p;
  const unsigned index = blockIdx.x * kBlockThreads + threadIdx.x;
  if (index >= d.threads) return;
  const Target to = target_of<kWidth>(d, index);
  const int group = to.channel / int(p.columns), column = to.channel % int(p.columns);
  const Stored* source =
      static_cast<const Stored*>(p.gathered) + to.image * p.source.image + group * p.channels * p.source.channel;
  const Stored* weight = static_cast<const Stored*>(d.weight) + group * d.weight_group + column * d.weight_column;
  const auto add = [](Values& sums, const Values& x, const Values& w) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums.at[i] += x.at[i] * w.at[i];
  };
  Values sums[kResults<kWidth>] = {};
  for (int64_t channel = 0; channel < p.channels; ++channel, source += p.source.channel, weight += d.weight_channel) {
#pragma unroll
    for (int line_tap = 0; line_tap < (kTaps ? kTaps : d.line.kernel); ++line_tap) {
      const int line = source_position(d.line, d.transposed, to.line, line_tap);
      if (line < 0) continue;
      const Stored* const from = source + line * d.line.source_stride;
      const Stored* const taps = weight + line_tap * d.line.tap_stride;
      if constexpr (kTaps != 0) {
        constexpr int kSpan = (kResults<kWidth> - 1) * kStride + kTaps;
        Values under[kSpan], w[kTaps];
        const int begin = to.first * kStride - d.slide.padding;
#pragma unroll
        for (int i = 0; i < kSpan; ++i)
          under[i] = unsigned(begin + i) < unsigned(d.slide.source)
                         ? load_values<kWidth>(from + (begin + i) * d.slide.source_stride)
                         : Values{};
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) w[tap] = load_values<kWidth>(taps + tap * d.slide.tap_stride);
#pragma unroll
        for (int result = 0; result < kResults<kWidth>; ++result)
#pragma unroll
          for (int tap = 0; tap < kTaps; ++tap) add(sums[result], under[result * kStride + tap], w[tap]);
      } else {
        for (int tap = 0; tap < d.slide.kernel; ++tap) {
          const Values w = load_values<kWidth>(taps + tap * d.slide.tap_stride);
#pragma unroll
          for (int result = 0; result < kResults<kWidth>; ++result) {
            const int at = source_position(d.slide, d.transposed, to.first + result, tap);
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
  const int filters = int(p.groups * p.columns), channels = int(p.channels);
  const int tap_columns = int(p.width.kernel) / kTaps, windows = int(p.height.kernel) / kTaps * tap_columns;
  int index = int(blockIdx.x);
  const auto take = [&](int count) {
    const int taken = index % count;
    index /= count;
    return taken;
  };
  const int filter = take((filters + kChannels - 1) / kChannels) * kChannels + int(threadIdx.x) % kChannels;
  const int channel = take(channels), window = take(windows), split = index;
  const int first_row = window / tap_columns * kTaps, first_column = window % tap_columns * kTaps;
  const bool present = filter < filters;
  const int group = present ? filter / int(p.columns) : 0;
  const Stored* const image =
      static_cast<const Stored*>(p.gathered) + (int64_t(group) * channels + channel) * p.source.channel;
  const Stored* const dy = static_cast<const Stored*>(p.beside) + (present ? filter : 0) * p.other.channel;
  const int width = int(p.width.output), height = int(p.height.output), pixels = int(p.images) * height * width;
  const int begin = split * int(p.split_depth), part = min(pixels - begin, int(p.split_depth));
  T sums[kTaps][kTaps] = {};
  for (int i = int(threadIdx.x) / kChannels; present && i < part; i += kPixels) {
    const int line = (begin + i) / width, n = line / height, y = line % height, x = (begin + i) % width;
    const T gradient = to_compute<T>(dy[n * p.other.image + y * p.other.row + x * p.other.column]);
    const int row = y * int(p.height.stride) + first_row * int(p.height.dilation) - int(p.height.padding);
    const int column = x * int(p.width.stride) + first_column * int(p.width.dilation) - int(p.width.padding);
    const Stored* const from = image + n * p.source.image;
#pragma unroll
    for (int r = 0; r < kTaps; ++r) {
      const int source_row = row + r * int(p.height.dilation);
      if (source_row < 0 || source_row >= p.source_height) continue;
#pragma unroll
      for (int s = 0; s < kTaps; ++s) {
        const int source_column = column + s * int(p.width.dilation);
        if (source_column >= 0 && source_column < p.source_width)
          sums[r][s] += gradient * to_compute<T>(from[source_row * p.source.row + source_column * p.source.column]);
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
        const int64_t taps = p.height.kernel * p.width.kernel,
                      tap = (first_row + r) * p.width.kernel + first_column + s;
        static_cast<T*>(p.partials)[((int64_t(split) * filters + filter) * channels + channel) * taps + tap] = sum;
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
  return {int(transposed ? axis.input : axis.output),
          int(transposed ? axis.output : axis.input),
          int(axis.kernel),
          int(axis.stride),
          int(axis.padding),
          int(axis.dilation),
          source_stride,
          result_stride,
          tap_stride};
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
  d.threads = unsigned(d.p.images * (d.p.groups * d.p.columns / kWidth) * d.bands * d.line.results);
  const auto launch_of = [&](auto kernel) { launch(kernel, unsigned(blocks_for(d.threads)), kBlockThreads, 0, d); };
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
  // Its kernels count in 32 bits.
  const int64_t pixels = std::max(args.height.input * args.width.input, args.height.output * args.width.output);
  const int64_t channels = args.groups * std::max(args.in_channels, args.out_channels);
  if (__int128(args.images) * channels * pixels > INT_MAX) return false;
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
