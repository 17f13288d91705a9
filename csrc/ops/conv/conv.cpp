#include "ops/conv/conv.h"

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<ConvArgs> conv_forward{"conv", Subnormals::Flush};
Kernel<ConvArgs> conv_input_grad{"conv_input_grad", Subnormals::Flush};
Kernel<ConvArgs> conv_weight_grad{"conv_weight_grad", Subnormals::Flush};

namespace {

// -------------------------------------------------------------------------------------- checks

void check_tensors(const char* op, int spatial, const Tensor& x, const Tensor& weight, const Tensor& bias,
                   int64_t groups) {
  check(x.ndim() == spatial + 1 || x.ndim() == spatial + 2, op, ": expected a ", spatial + 1, "-D (unbatched) or ",
        spatial + 2, "-D input, got shape ", x.shape());
  check(weight.ndim() == spatial + 2, op, ": expected a ", spatial + 2, "-D weight, got shape ", weight.shape());
  check_same_device(op, x, weight);
  check_same_dtype(op, x, weight);
  check<TypeError>(x.is_floating(), op, ": not implemented for ", x.dtype());
  const int64_t channels = x.size(-spatial - 1), filters = weight.size(0);
  check(groups >= 1 && (groups == 1 || groups <= channels), op, ": groups must be positive and at most the ", channels,
        " input channels, got ", groups);
  check(channels % groups == 0 && channels / groups == weight.size(1), op, ": input has ", channels,
        " channels, but weight ", weight.shape(), " with groups=", groups, " expects ", weight.size(1) * groups);
  check(filters % groups == 0, op, ": weight has ", filters, " output channels, which groups=", groups,
        " does not divide");
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

struct Geometry {
  ConvArgs args;
  Dims output_shape;
};

Geometry make_geometry(const char* op, int spatial, const Tensor& x, const Tensor& weight, const ConvOptions& options) {
  check_option(op, "stride", options.stride, spatial, 1);
  check_option(op, "dilation", options.dilation, spatial, 1);
  if (options.same_padding) {
    for (int64_t stride : options.stride)
      check(stride == 1, op, ": padding 'same' needs stride 1, got ", options.stride);
  } else {
    check_option(op, "padding", options.padding, spatial, 0);
  }
  const auto axis = [&](int d) {
    return make_axis(op, x.size(d - spatial), weight.size(d - spatial), options.stride[d],
                     options.same_padding ? 0 : options.padding[d], options.dilation[d], options.same_padding);
  };
  const bool batched = x.ndim() == spatial + 2;
  Geometry geometry{};
  ConvArgs& args = geometry.args;
  args.images = batched ? x.size(0) : 1;
  args.groups = options.groups;
  args.in_channels = weight.size(1);
  args.out_channels = weight.size(0) / options.groups;
  args.height = axis(0);
  args.width = spatial == 2 ? axis(1) : ConvAxis{1, 1, 1, 1, 0, 1};
  args.dtype = x.dtype();
  if (batched) geometry.output_shape.push_back(args.images);
  geometry.output_shape.push_back(weight.size(0));
  geometry.output_shape.push_back(args.height.output);
  if (spatial == 2) geometry.output_shape.push_back(args.width.output);
  return geometry;
}

// ---------------------------------------------------------------------------- forward, backward

Tensor dense(const Tensor& x) { return !x.defined() || x.is_contiguous() ? x : contiguous(detach(x)); }

Tensor input_grad(ConvArgs args, const Tensor& dy, const Tensor& weight, const Dims& shape) {
  if (dy.numel() == 0 || weight.numel() == 0) return zeros(shape, dy.dtype(), dy.device());
  const Tensor dx = empty(shape, dy.dtype(), dy.device()), dense_weight = dense(weight);
  if (dx.numel() == 0) return dx;
  args.dy = dy.raw();
  args.weight = dense_weight.raw();
  args.out = dx.raw();
  conv_input_grad(dy.device(), args);
  return dx;
}

Tensor weight_grad(ConvArgs args, const Tensor& dy, const Tensor& x, const Dims& shape) {
  if (dy.numel() == 0 || x.numel() == 0) return zeros(shape, dy.dtype(), dy.device());
  const Tensor dw = empty(shape, dy.dtype(), dy.device()), dense_x = dense(x);
  if (dw.numel() == 0) return dw;
  args.dy = dy.raw();
  args.x = dense_x.raw();
  args.out = dw.raw();
  conv_weight_grad(dy.device(), args);
  return dw;
}

Dims bias_axes(const Tensor& dy, int spatial) {
  Dims axes;
  for (int d = 0; d < dy.ndim(); ++d)
    if (d != dy.ndim() - spatial - 1) axes.push_back(d);
  return axes;
}

Tensor conv(const char* op, int spatial, const Tensor& x, const Tensor& weight, const Tensor& bias,
            const ConvOptions& options) {
  check_tensors(op, spatial, x, weight, bias, options.groups);
  const Geometry geometry = make_geometry(op, spatial, x, weight, options);
  const Tensor y = empty(geometry.output_shape, x.dtype(), x.device());
  if (y.numel() > 0) {
    const Tensor dense_x = dense(x), dense_weight = dense(weight), dense_bias = dense(bias);
    ConvArgs args = geometry.args;
    args.x = dense_x.raw();
    args.weight = dense_weight.raw();
    args.bias = bias.defined() ? dense_bias.raw() : nullptr;
    args.out = y.raw();
    conv_forward(x.device(), args);
  }
  return record(op, y, {x, weight, bias},
                [args = geometry.args, spatial, sx = Saved(x), sw = Saved(weight)](Backward& b) {
                  const Tensor dy = dense(b.grad()), x = b.get(sx), weight = b.get(sw);
                  if (b.needs(0)) b.set(0, input_grad(args, dy, weight, x.shape()));
                  if (b.needs(1)) b.set(1, weight_grad(args, dy, x, weight.shape()));
                  if (b.needs(2)) b.set(2, sum(dy, bias_axes(dy, spatial), false));
                });
}

}  // namespace

Tensor conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options) {
  return conv("conv1d", 1, x, weight, bias, options);
}

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvOptions& options) {
  return conv("conv2d", 2, x, weight, bias, options);
}

}  // namespace fastnn
