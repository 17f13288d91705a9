// Group normalization on CUDA: norm.h has the formulas, channels_cuda.h what it shares with batch normalization.
//
// bytes, at the least: forward x and y once, and x again for the sums; backward dy, x and dx once, and dy and x again.
// Forward a row-major group is one row and has sums of its own; else the sums are of a sample's channels, of which a
// warp makes a group's. Backward dw and db are the sums of the samples' channels in their order.
#include "core/cuda_index.h"
#include "ops/norm/channels_cuda.h"
#include "ops/norm/statistics.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------------------- forward

// Mean and variance of a group from sums of all of it, or of its channels, which have n / channels elements each.
struct Moments {
  double mean, var;
};

__device__ inline Moments moments_of(const ChannelSums* sums, int64_t count, double n) {
  const double each = n / double(count);
  double mean = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < count; i += kWarp) mean += (sums[i].centre + sums[i].value / each) / double(count);
  mean = warp_reduce<Sum>(mean);
  for (int64_t i = threadIdx.x; i < count; i += kWarp) {
    const double shift = sums[i].value / each, off = (sums[i].centre - mean) + shift;
    squares += sums[i].product - shift * sums[i].value + each * off * off;
  }
  squares = warp_reduce<Sum>(squares);
  return {mean, squares < 0 ? 0 : squares / n};
}

// A warp a group. `by_group`: sums are of groups, not of channels.
template <class T>
__global__ void __launch_bounds__(kWarp* kRowsOfWarps)
    forward_lines(const __grid_constant__ GroupNormArgs args, bool by_group, const ChannelSums* sums,
                  ChannelLine<T>* lines) {
  const GroupView& view = args.view;
  const int64_t index = team_row();
  if (index >= view.samples * view.groups) return;
  const int64_t count = by_group ? 1 : view.channels, first = index % view.groups * view.channels;
  const Moments group = moments_of(sums + index * count, count, double(view.channels) * double(view.inner));
  const double rstd = 1 / sqrt(group.var + args.eps);
  if (threadIdx.x == 0) args.stats[2 * index] = group.mean, args.stats[2 * index + 1] = rstd;
  for (int64_t c = threadIdx.x; c < view.channels; c += kWarp)
    lines[index * view.channels + c] = line_through<T>(group.mean, rstd * value_or<T>(args.weight, first + c, 1),
                                                       value_or<T>(args.bias, first + c, 0), 0);
}

// ------------------------------------------------------------------------------------------ backward

// A warp a group; sums are of dy and of dy (x - mean).
template <class T>
__global__ void __launch_bounds__(kWarp* kRowsOfWarps)
    backward_lines(const __grid_constant__ GroupNormBackwardArgs args, const ChannelSums* sums, ChannelLine<T>* lines) {
  const GroupView& view = args.view;
  const int64_t index = team_row();
  if (index >= view.samples * view.groups) return;
  const int64_t first = index % view.groups * view.channels;
  const double n = double(view.channels) * double(view.inner);
  const double mean = args.stats[2 * index], rstd = args.stats[2 * index + 1];
  sums += index * view.channels;
  double g_mean = 0, gz_mean = 0;
  for (int64_t c = threadIdx.x; c < view.channels; c += kWarp) {
    const double weight = value_or<T>(args.weight, first + c, 1);
    g_mean += weight * sums[c].value / n;
    gz_mean += weight * rstd * sums[c].product / n;
  }
  g_mean = warp_reduce<Sum>(g_mean);
  gz_mean = warp_reduce<Sum>(gz_mean);
  for (int64_t c = threadIdx.x; c < view.channels; c += kWarp)
    lines[index * view.channels + c] =
        line_through<T>(mean, -rstd * rstd * gz_mean, -rstd * g_mean, rstd * value_or<T>(args.weight, first + c, 1));
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    parameter_gradients(const __grid_constant__ GroupNormBackwardArgs args, const ChannelSums* sums) {
  const int64_t channels = args.view.groups * args.view.channels;
  const int64_t channel = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x, group = channel / args.view.channels;
  if (channel >= channels) return;
  double dweight = 0, dbias = 0;
  for (int64_t sample = 0; sample < args.view.samples; ++sample) {
    dweight += args.stats[2 * (sample * args.view.groups + group) + 1] * sums[sample * channels + channel].product;
    dbias += sums[sample * channels + channel].value;
  }
  if (args.dweight) static_cast<T*>(args.dweight)[channel] = T(dweight);
  if (args.dbias) static_cast<T*>(args.dbias)[channel] = T(dbias);
}

// ----------------------------------------------------------------------------------------- launchers

template <bool kChannelsLast>
ChannelTensors tensors_of(const GroupView& view, const void* x, const void* dy, void* out) {
  const int64_t channels = view.groups * view.channels;
  if (kChannelsLast) return {view.dtype, true, view.samples, channels, view.inner, x, dy, out};
  return {view.dtype, false, 1, view.samples * channels, view.inner, x, dy, out};
}

template <class T, bool kChannelsLast>
void forward_of(const GroupNormArgs& args) {
  const GroupView& view = args.view;
  const int64_t groups = view.samples * view.groups, channels = groups * view.channels;
  const ChannelTensors tensors = tensors_of<kChannelsLast>(view, args.x, nullptr, args.y);
  ChannelTensors summed = tensors;
  if (!kChannelsLast) summed.channels = groups, summed.inner = view.channels * view.inner;
  const CudaScratch sums(size_t(channels) * sizeof(ChannelSums)), lines(size_t(channels) * sizeof(ChannelLine<T>));
  cuda_sum_channels(summed, {}, sums.as<ChannelSums>());
  launch(forward_lines<T>, row_shape<kWarp>(groups), args, !kChannelsLast, sums.as<ChannelSums>(),
         lines.as<ChannelLine<T>>());
  cuda_draw_channels(tensors, lines.as<ChannelLine<T>>(), channels);
}

template <class T, bool kChannelsLast>
void backward_of(const GroupNormBackwardArgs& args) {
  const GroupView& view = args.view;
  const int64_t groups = view.samples * view.groups, channels = groups * view.channels;
  const ChannelTensors tensors = tensors_of<kChannelsLast>(view, args.x, args.dy, args.dx);
  const CudaScratch sums(size_t(channels) * sizeof(ChannelSums)), lines(size_t(channels) * sizeof(ChannelLine<T>));
  const bool is_empty = channels == 0 || view.inner == 0;
  if (!is_empty) cuda_sum_channels(tensors, {args.stats, 2, view.channels}, sums.as<ChannelSums>());
  if (args.dx && !is_empty) {
    launch(backward_lines<T>, row_shape<kWarp>(groups), args, sums.as<ChannelSums>(), lines.as<ChannelLine<T>>());
    cuda_draw_channels(tensors, lines.as<ChannelLine<T>>(), channels);
  }
  if (!args.dweight && !args.dbias) return;
  GroupNormBackwardArgs of_samples = args;
  if (is_empty) of_samples.view.samples = 0;  // gradients are zeros
  launch(parameter_gradients<T>, unsigned(blocks_for(view.groups * view.channels)), kBlockThreads, 0, of_samples,
         sums.as<ChannelSums>());
}

template <bool kChannelsLast>
void forward(const GroupNormArgs& args) {
  args.view.dtype == DType::Float64 ? forward_of<double, kChannelsLast>(args) : forward_of<float, kChannelsLast>(args);
}

template <bool kChannelsLast>
void backward(const GroupNormBackwardArgs& args) {
  args.view.dtype == DType::Float64 ? backward_of<double, kChannelsLast>(args)
                                    : backward_of<float, kChannelsLast>(args);
}

}  // namespace

FASTNN_CUDA_KERNEL(group_norm_forward, forward<false>)
FASTNN_CUDA_KERNEL(group_norm_channels_last_forward, forward<true>)
FASTNN_CUDA_KERNEL(group_norm_backward, backward<false>)
FASTNN_CUDA_KERNEL(group_norm_channels_last_backward, backward<true>)

}  // namespace fastnn
