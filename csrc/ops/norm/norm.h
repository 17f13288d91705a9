// Batch normalization (Ioffe and Szegedy 2015): every channel to mean 0 and variance 1, then scaled and shifted.
//
//   y = (x - mean) rstd w + b       rstd = 1 / sqrt(var + eps)
//   dw = rstd sum dy (x - mean)     db = sum dy
//   training     dx = w rstd (dy - db / n - (x - mean) rstd dw / n)
//   evaluation   dx = w rstd dy
//
// x (N, C, ...), row-major or with the channels last, floating; y has its layout. w, b and the running statistics
// (C,) have x's dtype, or float32 beside a 16-bit x; w and b may be missing (1 and 0). In training, mean and var
// are the batch's over its n = N ... values, n > 1, and running = (1 - momentum) running + momentum batch, with the
// variance over n - 1. In evaluation they are the running ones. Saved: x, w, mean, rstd.
#pragma once

#include <optional>
#include <vector>

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

struct BatchNormOptions {
  bool training;
  double momentum, eps;
};

// The running statistics may be undefined in training.
Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                  const Tensor& running_var, const BatchNormOptions& options);

// A dense tensor as (outer, channels, inner): row-major is (N, C, H W), channels last is (N H W, C, 1).
struct ChannelView {
  int64_t outer, channels, inner;
  DType dtype;
};

// Per-channel arrays are in the compute type of view.dtype, but mean and rstd: the rounding of a mean that is large
// beside the deviation would come back n-fold in dw.
struct BatchNormArgs {
  ChannelView view;
  const void* x;
  void* y;
  const void* weight;  // may be null
  const void* bias;    // may be null
  void* running_mean;  // updated in training, where they may be null; read in evaluation
  void* running_var;
  double* mean;  // written
  double* rstd;  // written
  BatchNormOptions options;
};
extern Kernel<BatchNormArgs> batch_norm_forward;

// The sums dweight and dbias, and with them dx as in training.
struct BatchNormBackwardArgs {
  ChannelView view;
  const void* dy;
  const void* x;
  void* dx;            // may be null: the sums alone
  const void* weight;  // may be null
  const double* mean;
  const double* rstd;
  void* dweight;
  void* dbias;
};
extern Kernel<BatchNormBackwardArgs> batch_norm_backward;

// Layer normalization (Ba et al. 2016) and RMS normalization (Zhang and Sennrich 2019): every row to mean 0 and
// variance 1, or to mean square 1.
//
//   layer   y = (x - mean) rstd w + b     rstd = 1 / sqrt(var + eps)
//   RMS     y = x rstd w                  rstd = 1 / sqrt(mean(x^2) + eps)       the layer's formulas with mean = 0
//   dx = rstd (g - mean(g) - z mean(g z))   g = dy w, z = (x - mean) rstd; RMS: without mean(g)
//   dw = sum over rows of dy z            db = sum over rows of dy
//
// x (..., normalized_shape); w and b of normalized_shape may be undefined and have x's dtype, or float32 beside a
// 16-bit x. Saved: x, w, mean, rstd.
Tensor layer_norm(const Tensor& x, const Dims& normalized_shape, const Tensor& weight, const Tensor& bias, double eps);
// Without eps: the machine epsilon of the type that x is computed in.
Tensor rms_norm(const Tensor& x, const Dims& normalized_shape, const Tensor& weight, std::optional<double> eps);

// The same of s = x + residual, both of one shape and dtype, over w's shape: (s, normalized s). The normalization reads
// s as it is stored.
std::vector<Tensor> add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                                   double eps);
std::vector<Tensor> add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                 std::optional<double> eps);

// Tensors are (rows, n), contiguous in `dtype`; weight, bias and their gradients (n) in its compute type.
struct LayerNormArgs {
  DType dtype;
  bool centred;  // layer; else RMS
  int64_t rows, n;
  double eps;
  const void* x;
  const void* residual;  // null: `sum` is x
  void* sum;             // written where there is a residual
  void* y;
  const void* weight;  // may be null
  const void* bias;    // may be null
  double* stats;       // (rows, 2): mean and rstd, written
};
extern Kernel<LayerNormArgs> layer_norm_forward;

struct LayerNormBackwardArgs {
  DType dtype;
  bool centred;
  int64_t rows, n;
  const void* dy;
  const void* x;
  const void* dsum;  // added to dx; may be null
  void* dx;          // may be null
  const void* weight;
  const double* stats;
  void* dweight;  // may be null, as may dbias
  void* dbias;
};
extern Kernel<LayerNormBackwardArgs> layer_norm_backward;

// Group normalization (Wu and He 2018): the channels of x (N, C, ...) in `groups` equal groups, each group of each
// sample to mean 0 and variance 1, then every channel scaled and shifted by w and b (C): the formulas of layer
// normalization with rows of a group. y has x's layout, row-major or with the channels last. Saved: x, w, mean, rstd.
Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias, double eps);

// Instance normalization (Ulyanov et al. 2016): a group for every channel. Running statistics, which may be undefined,
// are updated as in batch_norm with the mean over the samples of their means and variances.
Tensor instance_norm(const Tensor& x, const Tensor& running_mean, const Tensor& running_var, const Tensor& weight,
                     const Tensor& bias, double momentum, double eps);

// A row-major tensor as (samples, groups, channels of a group, inner); with its channels last as (samples, inner,
// groups, channels of a group).
struct GroupView {
  int64_t samples, groups, channels, inner;
  DType dtype;
};

// weight, bias and their gradients (C) are in the compute type of view.dtype; any may be null, as may dx.
struct GroupNormArgs {
  GroupView view;
  double eps;
  const void* x;
  void* y;
  const void* weight;
  const void* bias;
  double* stats;  // (samples groups, 2): mean and rstd, written
};
extern Kernel<GroupNormArgs> group_norm_forward, group_norm_channels_last_forward;

struct GroupNormBackwardArgs {
  GroupView view;
  const void* dy;
  const void* x;
  void* dx;
  const void* weight;
  const double* stats;
  void* dweight;
  void* dbias;
};
extern Kernel<GroupNormBackwardArgs> group_norm_backward, group_norm_channels_last_backward;  // these not empty

}  // namespace fastnn
