#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/norm/layout.h"
#include "ops/norm/norm.h"
#include "ops/norm/parameters.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<BatchNormArgs> batch_norm_forward{"batch_norm"};
Kernel<BatchNormBackwardArgs> batch_norm_backward{"batch_norm_backward"};

namespace {

// ------------------------------------------------------------------------------------------- checks

void check_channels(const char* name, const Tensor& x, const Tensor& values) {
  if (!values.defined()) return;
  check_parameter_type("batch_norm", name, x, values);
  check(values.ndim() == 1 && values.size(0) == x.size(1), "batch_norm: ", name, " of shape ", values.shape(),
        " does not match the ", x.size(1), " channels of an input of shape ", x.shape());
}

void check_arguments(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                     const Tensor& running_var, const BatchNormOptions& options) {
  check<TypeError>(x.is_floating(), "batch_norm: expected a floating tensor, got ", x.dtype());
  check(x.ndim() >= 2, "batch_norm: expected an input of shape (N, C, ...), got ", x.shape());
  check_channels("weight", x, weight);
  check_channels("bias", x, bias);
  check_channels("running_mean", x, running_mean);
  check_channels("running_var", x, running_var);
  check(options.eps >= 0, "batch_norm: eps must not be negative, got ", options.eps);
  check(running_mean.defined() == running_var.defined(),
        "batch_norm: expected both or neither of running_mean and running_var");
  check(options.training || running_mean.defined(),
        "batch_norm: evaluation (training=False) needs running_mean and running_var");
  check(!options.training || x.numel() == 0 || x.numel() > x.size(1),
        "batch_norm: expected more than 1 value per channel when training, got input size ", x.shape());
  if (!options.training || !running_mean.defined()) return;
  check_writable("batch_norm", running_mean);
  check_writable("batch_norm", running_var);
}

// ------------------------------------------------------------------------------------------- layout

ChannelView channel_view(const Tensor& x) {
  const int64_t channels = x.size(1), values = channels ? x.numel() / channels : 0;
  if (!x.is_contiguous()) return {values, channels, 1, x.dtype()};
  return {x.size(0), channels, x.size(0) ? values / x.size(0) : 0, x.dtype()};
}

// ---------------------------------------------------------------------------------- forward, backward

// The running statistics in the compute type, and back after a kernel has changed them.
struct Running {
  const Tensor &given_mean, &given_var;
  Tensor mean, var;

  Running(const Tensor& running_mean, const Tensor& running_var, DType dtype)
      : given_mean(running_mean),
        given_var(running_var),
        mean(in_compute_type(running_mean, dtype)),
        var(in_compute_type(running_var, dtype)) {}

  void written() const {
    if (!given_mean.defined()) return;
    if (mean.raw() != given_mean.raw()) copy_into(given_mean, mean);
    if (var.raw() != given_var.raw()) copy_into(given_var, var);
    bump_version(given_mean);
    bump_version(given_var);
  }
};

// What the backward needs besides the saved tensors.
struct Recipe {
  BatchNormOptions options;
  DType weight_dtype, bias_dtype;
};

// One value for each channel, in a shape that broadcasts against x.
Tensor along_channels(const Tensor& values, const Tensor& x) {
  Dims shape = Dims::filled(x.ndim(), 1);
  shape[1] = x.size(1);
  return reshape(values, shape);
}

void grad_kernel(Backward& b, const Recipe& recipe, const Tensor& x, const Tensor& weight, const Tensor& stats) {
  const Tensor values = dense(x), dy = dense_like(b.grad(), values), scale = in_compute_type(weight, x.dtype());
  const Tensor mean = select(stats, 0, 0), rstd = select(stats, 0, 1);
  const Tensor dweight = empty(rstd.shape(), compute_dtype(x.dtype()), x.device()), dbias = empty_like(dweight);
  Tensor dx;
  if (b.needs(0))
    dx = recipe.options.training ? empty_like(values)
                                 : mul(dy, to(along_channels(scale.defined() ? mul(rstd, scale) : rstd, x), x.dtype()));
  if (recipe.options.training || b.needs(1) || b.needs(2))
    batch_norm_backward(
        x.device(), {channel_view(values), dy.raw(), values.raw(), recipe.options.training ? raw_or_null(dx) : nullptr,
                     raw_or_null(scale), mean.data<double>(), rstd.data<double>(), dweight.raw(), dbias.raw()});
  if (b.needs(0)) b.set(0, dx);
  if (b.needs(1)) b.set(1, to(dweight, recipe.weight_dtype));
  if (b.needs(2)) b.set(2, to(dbias, recipe.bias_dtype));
}

// The same in differentiable operations: mean and rstd are functions of x again.
void grad_ops(Backward& b, const Recipe& recipe, const Tensor& input, const Tensor& weight, const Tensor& stats) {
  const DType compute = compute_dtype(input.dtype());
  const Tensor x = to(input, compute), dy = to(b.grad(), compute);
  const bool training = recipe.options.training;
  Dims axes;
  for (int axis = 0; axis < x.ndim(); ++axis)
    if (axis != 1) axes.push_back(axis);
  const Tensor mean = training ? fastnn::mean(x, axes, true) : along_channels(to(select(stats, 0, 0), compute), x);
  const Tensor rstd = training ? rsqrt(add(var(x, axes, 0, true), recipe.options.eps))
                               : along_channels(to(select(stats, 0, 1), compute), x);
  const Tensor normalized = mul(sub(x, mean), rstd);
  const Tensor dbias = sum(dy, axes, true), dweight = sum(mul(dy, normalized), axes, true);
  if (b.needs(0)) {
    const double n = double(x.numel()) / double(x.size(1));
    const Tensor dnormalized = training ? sub(dy, div(add(dbias, mul(normalized, dweight)), n)) : dy;
    const Tensor scale = weight.defined() ? mul(rstd, along_channels(to(weight, compute), x)) : rstd;
    b.set(0, to(mul(dnormalized, scale), input.dtype()));
  }
  if (b.needs(1)) b.set(1, to(reshape(dweight, {x.size(1)}), recipe.weight_dtype));
  if (b.needs(2)) b.set(2, to(reshape(dbias, {x.size(1)}), recipe.bias_dtype));
}

// Without elements there is nothing to take statistics of: gradients are zeros.
void grad_empty(Backward& b, const Recipe& recipe, const Tensor& x) {
  if (b.needs(0)) b.set(0, zeros(x.shape(), x.dtype(), x.device()));
  if (b.needs(1)) b.set(1, zeros({x.size(1)}, recipe.weight_dtype, x.device()));
  if (b.needs(2)) b.set(2, zeros({x.size(1)}, recipe.bias_dtype, x.device()));
}

}  // namespace

Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                  const Tensor& running_var, const BatchNormOptions& options) {
  check_arguments(x, weight, bias, running_mean, running_var, options);
  no_backward("batch_norm: the running statistics", {running_mean, running_var});
  const Tensor values = dense(x), y = empty_like(values);
  const Tensor stats = empty({2, x.size(1)}, DType::Float64, x.device());
  if (x.numel() > 0) {
    const Tensor mean = select(stats, 0, 0), rstd = select(stats, 0, 1);
    const Tensor scale = in_compute_type(weight, x.dtype()), shift = in_compute_type(bias, x.dtype());
    const Running running(running_mean, running_var, x.dtype());
    batch_norm_forward(x.device(), {channel_view(values), values.raw(), y.raw(), raw_or_null(scale), raw_or_null(shift),
                                    raw_or_null(running.mean), raw_or_null(running.var), mean.data<double>(),
                                    rstd.data<double>(), options});
    if (options.training) running.written();
  }
  const Recipe recipe{options, gradient_dtype(weight, x), gradient_dtype(bias, x)};
  return record(
      "batch_norm", y, {x, weight, bias},
      [recipe, sx = Saved(x), sw = Saved(weight), stats = Saved(stats)](Backward& b) {
        const Tensor x = b.get(sx);
        if (x.numel() == 0) return grad_empty(b, recipe, x);
        (b.create_graph() ? grad_ops : grad_kernel)(b, recipe, x, b.get(sw), b.get(stats));
      },
      Differentiable::Yes);
}

}  // namespace fastnn
