// Pooling over windows of the last one or two axes: maximum, minimum, average; fixed or adaptive windows.
//
// Input (N, C, H, W) or (C, H, W); the 1-D forms take (N, C, L) or (C, L) and are the 2-D ones of height 1.
// Output size along an axis of n, as in PyTorch:
//   (n + 2 padding - dilation (kernel - 1) - 1) / stride + 1, rounded down, or up with ceil_mode: then a last
//   window that would start beyond the input and its left padding is dropped.
// Adaptive window i of `out`: [floor(i n / out), ceil((i + 1) n / out)).
// Maximum: padding never wins; NaN does; of equal values the first one gets the gradient. Minimum is
// exactly -max_pool(-x). Indices are int64, flat in the input's plane (H * W); a dilated window that finds
// nothing but padding gives -inf, index -1 and no gradient.
// Average: the divisor is the window's size clipped to the padded input (count_include_pad), to the input
// (otherwise), or divisor_override.
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

// The windows along one axis. `stride` is 0 for adaptive windows.
struct PoolAxis {
  int64_t in, out, kernel, stride, padding, dilation;
};

// x is (planes, height.in, width.in), y is (planes, height.out, width.out), both contiguous in `dtype`, a
// float. Backward kernels read dy at y and write every element of dx at x.
struct PoolArgs {
  void* x;
  void* y;
  void* indices;  // of the maxima, in the layout of y; null when not wanted
  DType dtype;
  DType index_dtype;  // int32 or int64
  int64_t planes;
  PoolAxis height, width;
  bool count_include_pad;
  int64_t divisor_override;
};
extern Kernel<PoolArgs> max_pool_forward;
extern Kernel<PoolArgs> max_pool_backward;
extern Kernel<PoolArgs> max_pool_gather;  // y = x at the indices: the backward's backward
extern Kernel<PoolArgs> avg_pool_forward;
extern Kernel<PoolArgs> avg_pool_backward;

Tensor max_pool1d(const Tensor& x, const PoolOptions& options);
Tensor max_pool2d(const Tensor& x, const PoolOptions& options);
std::pair<Tensor, Tensor> max_pool1d_with_indices(const Tensor& x, const PoolOptions& options);
std::pair<Tensor, Tensor> max_pool2d_with_indices(const Tensor& x, const PoolOptions& options);
Tensor min_pool1d(const Tensor& x, const PoolOptions& options);
Tensor min_pool2d(const Tensor& x, const PoolOptions& options);
Tensor avg_pool1d(const Tensor& x, const PoolOptions& options);
Tensor avg_pool2d(const Tensor& x, const PoolOptions& options);

Tensor adaptive_avg_pool1d(const Tensor& x, const Dims& output_size);
Tensor adaptive_avg_pool2d(const Tensor& x, const Dims& output_size);
Tensor adaptive_max_pool1d(const Tensor& x, const Dims& output_size);
Tensor adaptive_max_pool2d(const Tensor& x, const Dims& output_size);
std::pair<Tensor, Tensor> adaptive_max_pool1d_with_indices(const Tensor& x, const Dims& output_size);
std::pair<Tensor, Tensor> adaptive_max_pool2d_with_indices(const Tensor& x, const Dims& output_size);

}  // namespace fastnn
