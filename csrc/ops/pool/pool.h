// Pooling over windows of the last one, two or three axes: maximum, minimum, average; fixed or adaptive windows.
//
// Input (N, C, D, H, W), (N, C, H, W) or (N, C, L), or the same without N. The 1-D forms are the 2-D ones of
// height 1, the 3-D forms a 2-D pooling of every slice followed by one along the depth.
// Output size along an axis of n, as in PyTorch:
//   (n + 2 padding - dilation (kernel - 1) - 1) / stride + 1, rounded down, or up with ceil_mode: then a last
//   window that would start beyond the input and its left padding is dropped.
// Adaptive window i of `out`: [floor(i n / out), ceil((i + 1) n / out)).
// Maximum: padding never wins; NaN does; of equal values the first one gets the gradient, of NaNs the last.
// Minimum is exactly -max_pool(-x). Indices are int64, flat in the pooled axes (H * W); a dilated window that
// finds nothing but padding gives -inf, index -1 and no gradient.
// Average: the divisor is the window's size clipped to the padded input (count_include_pad), to the input
// (otherwise), or divisor_override.
//
// A channels_last input (N, C, H, W) is taken as it lies, and gives a channels_last output and gradient.
#pragma once

#include <utility>

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

// Each list holds one number for every pooled axis, or one number per axis; an empty stride means the
// kernel size, an empty padding 0, an empty dilation 1.
struct PoolOptions {
  Dims kernel, stride, padding, dilation;
  bool ceil_mode = false;
  bool count_include_pad = true;  // average only
  int64_t divisor_override = 0;   // average only; 0 means none
};

// The windows along one axis. Adaptive windows have stride 0, and at most `kernel` positions.
struct PoolAxis {
  int64_t in, out, kernel, stride, padding, dilation;
};

// x is (planes, height.in, width.in, channels), y is (planes, height.out, width.out, channels), both
// contiguous in `dtype`, a float. Kernels without "channels_last" in their name take channels = 1.
// Backward kernels read dy at y and write every element of dx at x.
//
// A tap is a position's number in its window, row * width.kernel + column, counted with the padding. It is
// what the backward needs to know of a maximum, in one byte for windows of up to 255 positions; -1 (255)
// stands for a window without a maximum.
struct PoolArgs {
  void* x;
  void* y;
  void* taps;        // of the maxima, in the layout of y; null when not wanted
  int64_t* indices;  // of the maxima in their planes, row * width.in + column; null when not wanted
  DType dtype;
  DType tap_dtype;  // uint8 or int32
  int64_t planes, channels;
  PoolAxis height, width;
  bool count_include_pad;
  int64_t divisor_override;
};
extern Kernel<PoolArgs> max_pool_forward;
extern Kernel<PoolArgs> max_pool_backward;
extern Kernel<PoolArgs> avg_pool_forward;
extern Kernel<PoolArgs> avg_pool_backward;
extern Kernel<PoolArgs> max_pool_channels_last_forward;
extern Kernel<PoolArgs> max_pool_channels_last_backward;
extern Kernel<PoolArgs> avg_pool_channels_last_forward;
extern Kernel<PoolArgs> avg_pool_channels_last_backward;
extern Kernel<PoolArgs> max_pool_gather;  // y = x at the taps, in any layout: the backward's backward

using Pool = Tensor(const Tensor& x, const PoolOptions& options);
using PoolWithIndices = std::pair<Tensor, Tensor>(const Tensor& x, const PoolOptions& options);
Pool max_pool1d, max_pool2d, max_pool3d;
PoolWithIndices max_pool1d_with_indices, max_pool2d_with_indices, max_pool3d_with_indices;
Pool min_pool1d, min_pool2d;
Pool avg_pool1d, avg_pool2d, avg_pool3d;

using AdaptivePool = Tensor(const Tensor& x, const Dims& output_size);
using AdaptivePoolWithIndices = std::pair<Tensor, Tensor>(const Tensor& x, const Dims& output_size);
AdaptivePool adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d;
AdaptivePool adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d;
AdaptivePoolWithIndices adaptive_max_pool1d_with_indices, adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d_with_indices;

}  // namespace fastnn
