// Batch normalization on CUDA: norm.h has the formulas, channels_cuda.h what the directions have in common.
//
// bytes, at the least: forward x and y once, and x again for the sums; backward dy, x and dx once, and dy and x again.
// Three or four launches: sums of parts, their totals, what they mean for a channel (here), and the line.
#include "core/cuda_index.h"
#include "ops/norm/channels_cuda.h"
#include "ops/norm/statistics.h"

namespace fastnn {
namespace {

// `sums` are of d = x - centre and of d^2; null in evaluation.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    forward_lines(const __grid_constant__ BatchNormArgs args, const ChannelSums* sums, ChannelLine<T>* lines) {
  const int64_t channel = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (channel >= args.view.channels) return;
  const ChannelSums sum = sums ? sums[channel] : ChannelSums{};
  const auto [mean, var] = channel_statistics<T>(args, channel, sum.centre, sum.value, sum.product);
  const double rstd = 1 / sqrt(var + args.options.eps);
  args.mean[channel] = mean;
  args.rstd[channel] = rstd;
  lines[channel] =
      line_through<T>(mean, rstd * value_or<T>(args.weight, channel, 1), value_or<T>(args.bias, channel, 0), 0);
}

// `sums` are of dy and of dy (x - mean).
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    backward_lines(const __grid_constant__ BatchNormBackwardArgs args, const ChannelSums* sums, ChannelLine<T>* lines) {
  const int64_t channel = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (channel >= args.view.channels) return;
  const double n = double(args.view.outer) * double(args.view.inner);
  const double mean = args.mean[channel], rstd = args.rstd[channel], sum = sums[channel].value;
  const double scale = rstd * value_or<T>(args.weight, channel, 1), dweight = rstd * sums[channel].product;
  static_cast<T*>(args.dbias)[channel] = T(sum);
  static_cast<T*>(args.dweight)[channel] = T(dweight);
  lines[channel] = line_through<T>(mean, -scale * rstd * dweight / n, -scale * sum / n, scale);
}

ChannelTensors tensors_of(const ChannelView& view, const void* x, const void* dy, void* out) {
  if (view.inner == 1) return {view.dtype, true, 1, view.channels, view.outer, x, dy, out};
  return {view.dtype, false, view.outer, view.channels, view.inner, x, dy, out};
}

template <class T>
void forward_of(const BatchNormArgs& args) {
  const int64_t channels = args.view.channels;
  const ChannelTensors tensors = tensors_of(args.view, args.x, nullptr, args.y);
  const CudaScratch sums(size_t(channels) * sizeof(ChannelSums)), lines(size_t(channels) * sizeof(ChannelLine<T>));
  if (args.options.training) cuda_sum_channels(tensors, {}, sums.as<ChannelSums>());
  launch(forward_lines<T>, unsigned(blocks_for(channels)), kBlockThreads, 0, args,
         args.options.training ? sums.as<ChannelSums>() : nullptr, lines.as<ChannelLine<T>>());
  cuda_draw_channels(tensors, lines.as<ChannelLine<T>>(), channels);
}

template <class T>
void backward_of(const BatchNormBackwardArgs& args) {
  const int64_t channels = args.view.channels;
  const ChannelTensors tensors = tensors_of(args.view, args.x, args.dy, args.dx);
  const CudaScratch sums(size_t(channels) * sizeof(ChannelSums)), lines(size_t(channels) * sizeof(ChannelLine<T>));
  cuda_sum_channels(tensors, {args.mean, 1, 1}, sums.as<ChannelSums>());
  launch(backward_lines<T>, unsigned(blocks_for(channels)), kBlockThreads, 0, args, sums.as<ChannelSums>(),
         lines.as<ChannelLine<T>>());
  if (args.dx) cuda_draw_channels(tensors, lines.as<ChannelLine<T>>(), channels);
}

void forward(const BatchNormArgs& args) {
  args.view.dtype == DType::Float64 ? forward_of<double>(args) : forward_of<float>(args);
}

void backward(const BatchNormBackwardArgs& args) {
  args.view.dtype == DType::Float64 ? backward_of<double>(args) : backward_of<float>(args);
}

}  // namespace

FASTNN_CUDA_KERNEL(batch_norm_forward, forward)
FASTNN_CUDA_KERNEL(batch_norm_backward, backward)

}  // namespace fastnn
