// Convolution (cross-correlation) of 1-D signals, 2-D images and 3-D volumes, and its transpose.
//
//   y[n, g*OC + o, r, c] = bias[g*OC + o] +
//       sum over i, kh, kw of w[g*OC + o, i, kh, kw] * x[n, g*IC + i, r*stride + kh*dilation - pad, ...]
//
// x (N, C, H, W) or unbatched (C, H, W); w (O, C / groups, KH, KW); bias (O,) or undefined; y (N, O, OH, OW)
// with OH = (H + 2*pad - dilation*(KH - 1) - 1) / stride + 1. "same" padding (stride 1): OH = H, and of an
// odd total the larger half comes after. 1-D drops H; 3-D puts D before H, and its taps along D become channels of
// a 2-D convolution. Floating dtypes; saved: x and w.
//
// The transposed convolution is the input gradient of that: x has y's place above, and the result x's. With x
// (N, C, H, W), w (C, O / groups, KH, KW), bias (O,) the result is (N, O, OH, OW) with
// OH = (H - 1)*stride - 2*pad + dilation*(KH - 1) + output_padding + 1: of the sizes that a convolution takes to H,
// output_padding chooses one.
//
// A convolution, its input gradient and its weight gradient are each linear in two of (x, w, y), and each is made
// of the other two when differentiated: there are derivatives of every order.
#pragma once

#include "core/kernel.h"
#include "core/tensor.h"
#include "gemm/gemm.h"

namespace fastnn {

struct ConvOptions {
  Dims stride, padding, dilation;  // one number per spatial dimension
  int64_t groups = 1;
  bool same_padding = false;  // then `padding` is not read
};

Tensor conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options);
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options);
// activation(conv2d(x, weight, bias) + residual) in one pass, without a backward: RuntimeError where a gradient
// would be recorded. The residual has the result's shape, or is undefined.
Tensor fused_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options,
                    const Tensor& residual, Activation activation);
Tensor conv3d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options);
// `options` are those of the convolution that this is the transpose of; never same_padding.
Tensor conv_transpose1d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options,
                        const Dims& output_padding);
Tensor conv_transpose2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options,
                        const Dims& output_padding);

// One spatial dimension. Padding after the input is what the output size needs.
struct ConvAxis {
  int64_t input, output, kernel;
  int64_t stride, padding, dilation;
};

// Minimal filtering for float32 convolutions of 3 x 3 taps, stride and dilation 1, on CPU levels without matrix tiles:
// a quarter of the multiplications at up to 4 times the direct convolution's error. On to begin with.
void set_winograd_enabled(bool enabled);
bool is_winograd_enabled();

// Weights are row-major; x, y, dy and dx are too (N, C, H, W), or all of them have their channels last in memory
// (N, H, W, C). A 1-D signal is an image of width 1.
struct ConvArgs {
  int64_t images, groups;
  int64_t in_channels, out_channels;  // of one group
  ConvAxis height, width;
  DType dtype;
  bool channels_last;
  const void* x;                   // read by forward and weight_grad
  const void* weight;              // read by forward and input_grad
  const void* bias;                // read by forward; may be null
  const void* dy;                  // read by input_grad and weight_grad
  const void* residual = nullptr;  // forward adds it to y; of y's layout, may be null
  Activation activation = Activation::None;
  bool winograd = false;         // 3 x 3 float32 products by minimal filtering, where it is faster
  void* packed = nullptr;        // forward keeps the packed weights here: conv_packing says how much, or is null
  bool* packed_ready = nullptr;  // are they there? Set by forward once those of all groups are
  void* out;                     // y, dx or dw
};
extern Kernel<ConvArgs> conv_forward;
extern Kernel<ConvArgs> conv_input_grad;
extern Kernel<ConvArgs> conv_weight_grad;

// How many bytes forward would pack these weights into; 0 when it does not. At the CPU levels that pack. Forms of
// different numbers are packed differently.
struct ConvPacking {
  const ConvArgs* conv;
  int64_t* bytes;
  int64_t* form;
};
extern Kernel<ConvPacking> conv_packing;

}  // namespace fastnn
