#include "ops/conv/conv.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/autograd.h"
#include "core/derived.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<ConvArgs> conv_forward{"conv", Subnormals::Flush};
Kernel<ConvArgs> conv_input_grad{"conv_input_grad", Subnormals::Flush};
Kernel<ConvArgs> conv_weight_grad{"conv_weight_grad", Subnormals::Flush};
Kernel<ConvPacking> conv_packing{"conv_packing"};

namespace {
std::atomic<bool> winograd_enabled{true};
}  // namespace

void set_winograd_enabled(bool enabled) { winograd_enabled = enabled; }
bool is_winograd_enabled() { return winograd_enabled; }

namespace {

// -------------------------------------------------------------------------------------- checks

// Of a transposed convolution the weight's first axis is the input's channels.
void check_tensors(const char* op, int spatial, const Tensor& x, const Tensor& weight, const Tensor& bias,
                   int64_t groups, bool transposed = false) {
  check(x.ndim() == spatial + 1 || x.ndim() == spatial + 2, op, ": expected a ", spatial + 1, "-D (unbatched) or ",
        spatial + 2, "-D input, got shape ", x.shape());
  check(weight.ndim() == spatial + 2, op, ": expected a ", spatial + 2, "-D weight, got shape ", weight.shape());
  check_same_device(op, x, weight);
  check_same_dtype(op, x, weight);
  check<TypeError>(x.is_floating(), op, ": not implemented for ", x.dtype());
  const int64_t channels = x.size(-spatial - 1);
  check(groups >= 1 && (groups == 1 || groups <= channels), op, ": groups must be positive and at most the ", channels,
        " input channels, got ", groups);
  const int64_t expected = transposed ? weight.size(0) : weight.size(1) * groups;
  const int64_t filters = transposed ? weight.size(1) * groups : weight.size(0);
  check(channels == expected, op, ": input has ", channels, " channels, but weight ", weight.shape(),
        " with groups=", groups, " expects ", expected);
  check(weight.size(0) % groups == 0, op, ": weight has ", weight.size(0), transposed ? " input" : " output",
        " channels, which groups=", groups, " does not divide");
  if (!bias.defined()) return;
  check_same_device(op, x, bias);
  check_same_dtype(op, x, bias);
  check(bias.ndim() == 1 && bias.size(0) == filters, op, ": bias of shape ", bias.shape(),
        " does not match the weight's ", filters, " output channels");
}

void check_option(const char* op, const char* name, const Dims& values, int spatial, int64_t least) {
  check(values.size() == spatial, op, ": expected ", spatial, " values of ", name, ", got ", values);
  for (int64_t value : values) check(value >= least, op, ": ", name, " must be at least ", least, ", got ", values);
}

// One spatial dimension; every product and sum is checked for overflow.
ConvAxis make_axis(const char* op, int64_t input, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                   bool same) {
  check(kernel >= 1, op, ": kernel size must be positive, got ", kernel);
  int64_t extent = 0, padded = 0;
  bool overflow = __builtin_mul_overflow(dilation, kernel - 1, &extent);
  if (same) padding = extent / 2;
  overflow |= __builtin_mul_overflow(padding, int64_t(2), &padded);
  overflow |= __builtin_add_overflow(padded, input, &padded);
  check(!overflow, op, ": kernel size ", kernel, " with dilation ", dilation, " and padding ", padding,
        " overflows the index range");
  const int64_t output = same ? input : padded > extent ? (padded - extent - 1) / stride + 1 : padded - extent;
  check(output >= 1, op, ": kernel size ", kernel, " with dilation ", dilation, " does not fit the padded input size ",
        padded, ": output size would be ", output);
  return {input, output, kernel, stride, padding, dilation};
}

// The axis of the convolution that this one transposes: its output is our input.
ConvAxis make_transposed_axis(const char* op, int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                              int64_t dilation, int64_t output_padding) {
  check(kernel >= 1, op, ": kernel size must be positive, got ", kernel);
  check(input >= 1, op, ": expected a positive input size, got ", input);
  check(output_padding < stride || output_padding < dilation, op,
        ": output_padding must be smaller than either stride or dilation, got output_padding ", output_padding,
        ", stride ", stride, " and dilation ", dilation);
  const __int128 size =
      __int128(input - 1) * stride + __int128(dilation) * (kernel - 1) + output_padding + 1 - 2 * __int128(padding);
  check(size <= INT64_MAX, op, ": input size ", input, " with stride ", stride, " and kernel size ", kernel,
        " with dilation ", dilation, " overflows the index range");
  check(size >= 1, op, ": input size ", input, " with stride ", stride, ", kernel size ", kernel, " and padding ",
        padding, " is too small: output size would be ", int64_t(std::max(size, __int128(INT64_MIN))));
  return {int64_t(size), input, kernel, stride, padding, dilation};
}

void check_options(const char* op, int spatial, const ConvOptions& options) {
  check_option(op, "stride", options.stride, spatial, 1);
  check_option(op, "dilation", options.dilation, spatial, 1);
  if (!options.same_padding) return check_option(op, "padding", options.padding, spatial, 0);
  for (int64_t stride : options.stride) check(stride == 1, op, ": padding 'same' needs stride 1, got ", options.stride);
}

ConvAxis axis_of(const char* op, const Tensor& x, const Tensor& weight, const ConvOptions& options, int d) {
  const int from_end = d - options.stride.size();
  return make_axis(op, x.size(from_end), weight.size(from_end), options.stride[d],
                   options.same_padding ? 0 : options.padding[d], options.dilation[d], options.same_padding);
}

// What the kernels need to know of a convolution, and the shapes of its three tensors.
struct Geometry {
  ConvArgs args{};
  Dims x, weight, y;
};

// `given` is the convolution's input, or of a transposed one its output; the other shape is made.
Geometry make_geometry(const Tensor& given, const Tensor& weight, int64_t groups, std::initializer_list<ConvAxis> axes,
                       bool transposed) {
  const int spatial = int(axes.size());
  const bool batched = given.ndim() == spatial + 2;
  Geometry geometry;
  ConvArgs& args = geometry.args;
  args.images = batched ? given.size(0) : 1;
  args.groups = groups;
  args.in_channels = weight.size(1);
  args.out_channels = weight.size(0) / groups;
  args.height = axes.begin()[0];
  args.width = spatial == 2 ? axes.begin()[1] : ConvAxis{1, 1, 1, 1, 0, 1};
  args.dtype = given.dtype();
  args.winograd = is_winograd_enabled();
  args.channels_last =
      batched && spatial == 2 &&
      (given.memory_format() == MemoryFormat::ChannelsLast || weight.memory_format() == MemoryFormat::ChannelsLast);
  Dims made;
  if (batched) made.push_back(args.images);
  made.push_back(transposed ? weight.size(1) * groups : weight.size(0));
  for (const ConvAxis& axis : axes) made.push_back(transposed ? axis.input : axis.output);
  geometry.weight = weight.shape();
  geometry.x = transposed ? made : given.shape();
  geometry.y = transposed ? given.shape() : made;
  return geometry;
}

// ------------------------------------------------------------------- the three linear products

// x, y and their gradients share one layout: channels last when the tensor given or the weight has it, as in PyTorch.
Tensor in_layout(const Geometry& geometry, const Tensor& image) {
  return geometry.args.channels_last ? channels_last(image) : contiguous(image);
}

Tensor empty_image(const Geometry& geometry, const Dims& shape, const Tensor& like) {
  return empty(shape, like.dtype(), like.device(),
               geometry.args.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor dense(const Tensor& x) { return x.defined() ? contiguous(detach(x)) : x; }

Tensor input_grad(const char* op, const Geometry& geometry, const Tensor& dy, const Tensor& weight);
Tensor weight_grad(const char* op, const Geometry& geometry, const Tensor& dy, const Tensor& x);

Dims bias_axes(const Geometry& geometry) {
  Dims axes;
  const int channels = geometry.y.size() - geometry.weight.size() + 1;  // 1, or 0 when there is no batch
  for (int d = 0; d < geometry.y.size(); ++d)
    if (d != channels) axes.push_back(d);
  return axes;
}

// The weights row-major, as the kernels read them. A copy of weights that stay is kept with them.
Tensor row_major(const Tensor& weight) {
  if (weight.is_contiguous() || weight.device().is_cuda()) return dense(weight);
  const DerivedBlock block =
      derived_block(weight, purpose_of('r'), checked_numel(weight.shape()) * int64_t(weight.item_size()));
  if (!block.memory.defined()) return dense(weight);
  const Tensor copy =
      from_storage(block.memory.storage(), weight.shape(), contiguous_strides(weight.shape()), weight.dtype());
  if (!block.ready) {
    copy_into(copy, weight);
    mark_ready(weight, block);
  }
  return copy;
}

// Weights that stay are packed once, and kept with the tensor (core/derived.h).
DerivedBlock packed_weights(const Tensor& weight, const ConvArgs& args) {
  if (!conv_packing.cpu || weight.device().is_cuda()) return {};
  int64_t bytes = 0, form = 0;
  conv_packing(weight.device(), {&args, &bytes, &form});
  if (bytes == 0) return {};
  return derived_block(weight, purpose_of('c', args.groups, form), bytes);
}

// activation(conv(x, w) + bias + residual); no autograd. The bias and the residual may be undefined.
Tensor convolve(const Geometry& geometry, const Tensor& x, const Tensor& weight, const Tensor& bias,
                const Tensor& residual, Activation activation) {
  const Tensor y = empty_image(geometry, geometry.y, x);
  if (y.numel() == 0) return y;
  const Tensor dense_x = in_layout(geometry, detach(x)), dense_weight = row_major(weight), dense_bias = dense(bias);
  const Tensor added = residual.defined() ? in_layout(geometry, detach(residual)) : residual;
  ConvArgs args = geometry.args;
  args.x = dense_x.raw();
  args.weight = dense_weight.raw();
  args.bias = bias.defined() ? dense_bias.raw() : nullptr;
  args.residual = residual.defined() ? added.raw() : nullptr;
  args.activation = activation;
  args.out = y.raw();
  const DerivedBlock packed = packed_weights(weight, args);
  bool packed_ready = packed.ready;
  args.packed = packed.data();
  args.packed_ready = &packed_ready;
  conv_forward(x.device(), args);
  if (packed.to_fill() && packed_ready) mark_ready(weight, packed);
  return y;
}

// y, of x and w. The bias may be undefined.
Tensor forward(const char* op, const Geometry& geometry, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Tensor y = convolve(geometry, x, weight, bias, Tensor(), Activation::None);
  return record(
      op, y, {x, weight, bias},
      [op, geometry, sx = Saved(x), sw = Saved(weight)](Backward& b) {
        const Tensor dy = in_layout(geometry, b.grad()), x = b.get(sx), weight = b.get(sw);
        if (b.needs(0)) b.set(0, input_grad(op, geometry, dy, weight));
        if (b.needs(1)) b.set(1, weight_grad(op, geometry, dy, x));
        if (b.needs(2)) b.set(2, sum(dy, bias_axes(geometry), false));
      },
      Differentiable::Yes);
}

// dx, of dy and w: the transposed convolution.
Tensor input_grad(const char* op, const Geometry& geometry, const Tensor& dy, const Tensor& weight) {
  const bool empty_sum = dy.numel() == 0 || weight.numel() == 0;
  const Tensor dx = empty_sum ? zeros(geometry.x, dy.dtype(), dy.device()) : empty_image(geometry, geometry.x, dy);
  if (!empty_sum && dx.numel() > 0) {
    const Tensor dense_dy = in_layout(geometry, detach(dy)), dense_weight = row_major(weight);
    ConvArgs args = geometry.args;
    args.dy = dense_dy.raw();
    args.weight = dense_weight.raw();
    args.out = dx.raw();
    conv_input_grad(dy.device(), args);
  }
  return record(
      op, dx, {dy, weight},
      [op, geometry, sdy = Saved(dy), sw = Saved(weight)](Backward& b) {
        const Tensor x = in_layout(geometry, b.grad()), dy = b.get(sdy), weight = b.get(sw);
        if (b.needs(0)) b.set(0, forward(op, geometry, x, weight, Tensor()));
        if (b.needs(1)) b.set(1, weight_grad(op, geometry, dy, x));
      },
      Differentiable::Yes);
}

// dw, of dy and x.
Tensor weight_grad(const char* op, const Geometry& geometry, const Tensor& dy, const Tensor& x) {
  const bool empty_sum = dy.numel() == 0 || x.numel() == 0;
  const Tensor dw =
      empty_sum ? zeros(geometry.weight, dy.dtype(), dy.device()) : empty(geometry.weight, dy.dtype(), dy.device());
  if (!empty_sum && dw.numel() > 0) {
    const Tensor dense_dy = in_layout(geometry, detach(dy)), dense_x = in_layout(geometry, detach(x));
    ConvArgs args = geometry.args;
    args.dy = dense_dy.raw();
    args.x = dense_x.raw();
    args.out = dw.raw();
    conv_weight_grad(dy.device(), args);
  }
  return record(
      op, dw, {dy, x},
      [op, geometry, sdy = Saved(dy), sx = Saved(x)](Backward& b) {
        const Tensor weight = b.grad(), dy = b.get(sdy), x = b.get(sx);
        if (b.needs(0)) b.set(0, forward(op, geometry, x, weight, Tensor()));
        if (b.needs(1)) b.set(1, input_grad(op, geometry, dy, weight));
      },
      Differentiable::Yes);
}

// ---------------------------------------------------------------------------------- operations

Tensor conv_transpose(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const ConvOptions& options, const Dims& output_padding, int spatial) {
  check_tensors(op, spatial, x, weight, bias, options.groups, true);
  check_options(op, spatial, options);
  check_option(op, "output_padding", output_padding, spatial, 0);
  const auto axis = [&](int d) {
    return make_transposed_axis(op, x.size(d - spatial), weight.size(d - spatial), options.stride[d],
                                options.padding[d], options.dilation[d], output_padding[d]);
  };
  Geometry geometry = spatial == 1 ? make_geometry(x, weight, options.groups, {axis(0)}, true)
                                   : make_geometry(x, weight, options.groups, {axis(0), axis(1)}, true);
  if (!bias.defined()) return input_grad(op, geometry, x, weight);
  // 16-bit results are rounded once, after the bias.
  const DType compute = geometry.args.dtype = compute_dtype(x.dtype());
  const Tensor y = input_grad(op, geometry, to(x, compute), to(weight, compute));
  const Tensor shift = to(spatial == 1 ? view(bias, {-1, 1}) : view(bias, {-1, 1, 1}), compute);
  return to(add(y, shift), x.dtype());
}

// (N, C, D, H, W) -> (N, OD, C, KD, H, W): for every output slice the input slices under the kernel's depth taps.
Tensor unfold_depth(const Tensor& x, const ConvAxis& depth) {
  const int64_t span = (depth.output - 1) * depth.stride + 1, extent = depth.dilation * (depth.kernel - 1);
  // What the last window needs, or less than nothing.
  const int64_t after = span + extent - depth.input - depth.padding;
  const Tensor padded = pad(x, {0, 0, 0, 0, depth.padding, after}, "constant", 0);
  std::vector<Tensor> taps;
  for (int64_t first = 0; first <= extent; first += depth.dilation)
    taps.push_back(transpose(slice(padded, 2, first, first + span, depth.stride), 1, 2));
  return stack(taps, 3);
}

}  // namespace

Tensor conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options) {
  check_tensors("conv1d", 1, x, weight, bias, options.groups);
  check_options("conv1d", 1, options);
  const ConvAxis length = axis_of("conv1d", x, weight, options, 0);
  return forward("conv1d", make_geometry(x, weight, options.groups, {length}, false), x, weight, bias);
}

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options) {
  check_tensors("conv2d", 2, x, weight, bias, options.groups);
  check_options("conv2d", 2, options);
  const ConvAxis height = axis_of("conv2d", x, weight, options, 0), width = axis_of("conv2d", x, weight, options, 1);
  return forward("conv2d", make_geometry(x, weight, options.groups, {height, width}, false), x, weight, bias);
}

Tensor fused_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options,
                    const Tensor& residual, Activation activation) {
  check_tensors("fused_conv2d", 2, x, weight, bias, options.groups);
  check_options("fused_conv2d", 2, options);
  check<RuntimeError>(
      !needs_grad({x, weight, bias, residual}),
      "fused_conv2d: an operand requires grad, and the fused form has no backward; call it under no_grad");
  const ConvAxis height = axis_of("fused_conv2d", x, weight, options, 0),
                 width = axis_of("fused_conv2d", x, weight, options, 1);
  const Geometry geometry = make_geometry(x, weight, options.groups, {height, width}, false);
  if (residual.defined()) {
    check_same_device("fused_conv2d", x, residual);
    check_same_dtype("fused_conv2d", x, residual);
    check(residual.shape() == geometry.y, "fused_conv2d: residual of shape ", residual.shape(),
          " does not match the result's ", geometry.y);
  }
  return convolve(geometry, x, weight, bias, residual, activation);
}

Tensor conv3d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options) {
  check_tensors("conv3d", 3, x, weight, bias, options.groups);
  check_options("conv3d", 3, options);
  const auto axis = [&](int d) { return axis_of("conv3d", x, weight, options, d); };
  const ConvAxis depth = axis(0), height = axis(1), width = axis(2);
  const Tensor volumes = x.ndim() == 5 ? x : unsqueeze(x, 0);
  const int64_t n = volumes.size(0), channels = x.size(-4), filters = weight.size(0);
  const Tensor images =
      reshape(unfold_depth(volumes, depth), {n * depth.output, channels * depth.kernel, height.input, width.input});
  const Tensor flat = reshape(weight, {filters, channels / options.groups * depth.kernel, height.kernel, width.kernel});
  const Geometry geometry = make_geometry(images, flat, options.groups, {height, width}, false);
  const Tensor y =
      view(forward("conv3d", geometry, images, flat, bias), {n, depth.output, filters, height.output, width.output});
  const Tensor result = contiguous(permute(y, {0, 2, 1, 3, 4}));
  return x.ndim() == 5 ? result : select(result, 0, 0);
}

Tensor conv_transpose1d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options,
                        const Dims& output_padding) {
  return conv_transpose("conv_transpose1d", x, weight, bias, options, output_padding, 1);
}

Tensor conv_transpose2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options,
                        const Dims& output_padding) {
  return conv_transpose("conv_transpose2d", x, weight, bias, options, output_padding, 2);
}

}  // namespace fastnn
