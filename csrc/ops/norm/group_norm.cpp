#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/norm/layout.h"
#include "ops/norm/norm.h"
#include "ops/norm/parameters.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<GroupNormArgs> group_norm_forward{"group_norm"};
Kernel<GroupNormBackwardArgs> group_norm_backward{"group_norm_backward"};
Kernel<GroupNormArgs> group_norm_channels_last_forward{"group_norm"};
Kernel<GroupNormBackwardArgs> group_norm_channels_last_backward{"group_norm_backward"};

namespace {

struct Recipe {
  const char* op;
  int64_t groups;
  double eps;
  DType weight_dtype, bias_dtype;
};

// ------------------------------------------------------------------------------------------- checks

void check_channels(const char* op, const char* name, const Tensor& x, const Tensor& values) {
  if (!values.defined()) return;
  check_parameter_type(op, name, x, values);
  check(values.shape() == Dims{x.size(1)}, op, ": ", name, " of shape ", values.shape(), " does not match the ",
        x.size(1), " channels of an input of shape ", x.shape());
}

void check_arguments(const Recipe& recipe, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = recipe.op;
  check<TypeError>(x.is_floating(), op, ": expected a floating tensor, got ", x.dtype());
  check(x.ndim() >= 2, op, ": expected an input of shape (N, C, ...), got ", x.shape());
  check(recipe.groups > 0 && x.size(1) % recipe.groups == 0, op, ": the ", x.size(1), " channels of an input of shape ",
        x.shape(), " do not divide into ", recipe.groups, " groups");
  check_channels(op, "weight", x, weight);
  check_channels(op, "bias", x, bias);
  check(recipe.eps >= 0, op, ": eps must not be negative, got ", recipe.eps);
}

GroupView group_view(const Tensor& x, int64_t groups) {
  const int64_t planes = x.size(0) * x.size(1);
  return {x.size(0), groups, x.size(1) / groups, planes ? x.numel() / planes : 0, x.dtype()};
}

// ------------------------------------------------------------------------------------------ gradients

void grad_kernel(Backward& b, const Recipe& recipe, const Tensor& input, const Tensor& weight, const Tensor& stats) {
  const Tensor x = dense(input), dy = dense_like(b.grad(), x);
  const Tensor scale = in_compute_type(weight, x.dtype());
  const auto parameter = [&](uint32_t i) {
    return b.needs(i) ? empty({x.size(1)}, compute_dtype(x.dtype()), x.device()) : Tensor();
  };
  const Tensor dx = b.needs(0) ? empty_like(x) : Tensor();
  const Tensor dweight = parameter(1), dbias = parameter(2);
  const auto& kernel = x.is_contiguous() ? group_norm_backward : group_norm_channels_last_backward;
  kernel(x.device(), {group_view(x, recipe.groups), dy.raw(), x.raw(), raw_or_null(dx), raw_or_null(scale),
                      stats.data<double>(), raw_or_null(dweight), raw_or_null(dbias)});
  if (b.needs(0)) b.set(0, dx);
  if (b.needs(1)) b.set(1, to(dweight, recipe.weight_dtype));
  if (b.needs(2)) b.set(2, to(dbias, recipe.bias_dtype));
}

// The same in differentiable operations: mean and rstd are functions of x again.
void grad_ops(Backward& b, const Recipe& recipe, const Tensor& input, const Tensor& weight, const Tensor& stats) {
  const DType compute = compute_dtype(input.dtype());
  const int64_t channels = input.size(1), rows = stats.size(0);
  const GroupView view = group_view(input, recipe.groups);
  const Dims grouped{rows, view.channels * view.inner}, planes{view.samples, channels, view.inner};
  const Tensor given = reshape(to(input, compute), grouped), dy = reshape(to(b.grad(), compute), planes);
  const Tensor x = sub(given, mean(given, {1}, true));
  const Tensor rstd = rsqrt(add(mean(mul(x, x), {1}, true), recipe.eps)), z = mul(x, rstd);
  if (b.needs(0)) {
    const Tensor scaled = weight.defined() ? mul(dy, reshape(to(weight, compute), {channels, 1})) : dy;
    const Tensor g = reshape(scaled, grouped);
    const Tensor along = sub(sub(g, mean(g, {1}, true)), mul(z, mean(mul(g, z), {1}, true)));
    b.set(0, to(reshape(mul(rstd, along), input.shape()), input.dtype()));
  }
  if (b.needs(1)) b.set(1, to(sum(mul(dy, reshape(z, planes)), {0, 2}), recipe.weight_dtype));
  if (b.needs(2)) b.set(2, to(sum(dy, {0, 2}), recipe.bias_dtype));
}

// ------------------------------------------------------------------------------------------- forward

// The normalized x, in its layout; `stats` (N groups, 2) takes mean and rstd.
Tensor normalize(const Recipe& recipe, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& stats) {
  const Tensor values = dense(x), y = empty_like(values);
  const Tensor scale = in_compute_type(weight, x.dtype()), shift = in_compute_type(bias, x.dtype());
  const auto& kernel = values.is_contiguous() ? group_norm_forward : group_norm_channels_last_forward;
  if (x.numel() > 0)
    kernel(x.device(), {group_view(x, recipe.groups), recipe.eps, values.raw(), y.raw(), raw_or_null(scale),
                        raw_or_null(shift), stats.data<double>()});
  return record(
      recipe.op, y, {x, weight, bias},
      [recipe, sx = Saved(x), sw = Saved(weight), ss = Saved(stats)](Backward& b) {
        (b.create_graph() ? grad_ops : grad_kernel)(b, recipe, b.get(sx), b.get(sw), b.get(ss));
      },
      Differentiable::Yes);
}

Recipe recipe_of(const char* op, const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                 double eps) {
  return {op, groups, eps, gradient_dtype(weight, x), gradient_dtype(bias, x)};
}

Tensor empty_stats(const Tensor& x, int64_t groups) {
  return empty({x.size(0) * groups, 2}, DType::Float64, x.device());
}

// running = (1 - momentum) running + momentum batch, with the batch's values (C) in float64.
void update(const Tensor& running, const Tensor& batch, double momentum) {
  copy_into(running,
            to(add(mul(to(detach(running), DType::Float64), 1 - momentum), mul(batch, momentum)), running.dtype()));
  bump_version(running);
}

}  // namespace

Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias, double eps) {
  const Recipe recipe = recipe_of("group_norm", x, groups, weight, bias, eps);
  check_arguments(recipe, x, weight, bias);
  return normalize(recipe, x, weight, bias, empty_stats(x, groups));
}

Tensor instance_norm(const Tensor& x, const Tensor& running_mean, const Tensor& running_var, const Tensor& weight,
                     const Tensor& bias, double momentum, double eps) {
  constexpr auto op = "instance_norm";
  check(x.ndim() >= 3, op, ": expected an input of shape (N, C, ...), got ", x.shape());
  const int64_t channels = x.size(1), planes = x.size(0) * channels, n = planes ? x.numel() / planes : 0;
  const Recipe recipe = recipe_of(op, x, channels ? channels : 1, weight, bias, eps);
  check_arguments(recipe, x, weight, bias);
  check_channels(op, "running_mean", x, running_mean);
  check_channels(op, "running_var", x, running_var);
  check(running_mean.defined() == running_var.defined(), op,
        ": expected both or neither of running_mean and running_var");
  check(n != 1, op, ": expected more than 1 value per channel of an instance, got an input of shape ", x.shape());
  no_backward("instance_norm: the running statistics", {running_mean, running_var});
  if (running_mean.defined()) check_writable(op, running_mean), check_writable(op, running_var);
  const Tensor stats = empty_stats(x, channels);
  const Tensor y = normalize(recipe, x, weight, bias, stats);
  if (!running_mean.defined() || x.numel() == 0) return y;
  const Tensor by_sample = reshape(stats, {x.size(0), channels, 2}), rstd = select(by_sample, 2, 1);
  const Tensor var = sub(reciprocal(mul(rstd, rstd)), eps);
  update(running_mean, mean(select(by_sample, 2, 0), {0}), momentum);
  update(running_var, mul(mean(var, {0}), double(n) / double(n - 1)), momentum);
  return y;
}

}  // namespace fastnn
