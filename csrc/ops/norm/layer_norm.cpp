#include <limits>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/norm/norm.h"
#include "ops/norm/parameters.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<LayerNormArgs> layer_norm_forward{"layer_norm"};
Kernel<LayerNormBackwardArgs> layer_norm_backward{"layer_norm_backward"};

namespace {

// What the forward and the backward share besides the tensors.
struct Recipe {
  const char* op;
  bool centred;
  double eps;
  Dims normalized_shape;
  DType weight_dtype, bias_dtype;
};

// ------------------------------------------------------------------------------------------- checks

void check_parameter(const char* op, const char* name, const Tensor& x, const Dims& normalized_shape,
                     const Tensor& values) {
  if (!values.defined()) return;
  check_parameter_type(op, name, x, values);
  check(values.shape() == normalized_shape, op, ": ", name, " of shape ", values.shape(),
        " does not match the normalized shape ", normalized_shape);
}

void check_arguments(const Recipe& recipe, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = recipe.op;
  const Dims& shape = recipe.normalized_shape;
  check<TypeError>(x.is_floating(), op, ": expected a floating tensor, got ", x.dtype());
  check(!shape.empty(), op, ": expected a normalized shape of at least one axis, got ()");
  const int first = x.ndim() - shape.size();
  check(first >= 0 && Dims(x.shape().data() + first, shape.size()) == shape, op, ": expected an input of shape (..., ",
        "normalized shape) with normalized shape ", shape, ", got ", x.shape());
  check_parameter(op, "weight", x, shape, weight);
  check_parameter(op, "bias", x, shape, bias);
  check(recipe.eps >= 0, op, ": eps must not be negative, got ", recipe.eps);
}

// Of the type that x is computed in, as in PyTorch: 16-bit floats have that of float32.
double machine_epsilon(DType dtype) {
  return dtype == DType::Float64 ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
}

Recipe layer_recipe(const char* op, const Tensor& x, const Dims& shape, const Tensor& weight, const Tensor& bias,
                    double eps) {
  return {op, true, eps, shape, gradient_dtype(weight, x), gradient_dtype(bias, x)};
}

Recipe rms_recipe(const char* op, const Tensor& x, const Dims& shape, const Tensor& weight, std::optional<double> eps) {
  return {op, false, eps ? *eps : machine_epsilon(x.dtype()), shape, gradient_dtype(weight, x), x.dtype()};
}

// ------------------------------------------------------------------------------------------ gradients

struct Gradients {
  Tensor dx, dweight, dbias;
};
struct Wanted {
  bool dx, dweight, dbias;
};

int64_t row_length(const Recipe& recipe) { return checked_numel(recipe.normalized_shape); }

Gradients grad_kernel(const Recipe& recipe, const Wanted& wanted, const Tensor& input, const Tensor& weight,
                      const Tensor& stats, const Tensor& grad, const Tensor& dsum) {
  const Tensor x = contiguous(detach(input)), dy = contiguous(detach(grad)), scale = in_compute_type(weight, x.dtype());
  const Tensor added = dsum.defined() ? contiguous(detach(dsum)) : dsum;
  const auto parameter = [&](bool needed) {
    return needed ? empty(recipe.normalized_shape, compute_dtype(x.dtype()), x.device()) : Tensor();
  };
  Gradients found{wanted.dx ? empty(x.shape(), x.dtype(), x.device()) : Tensor(), parameter(wanted.dweight),
                  parameter(wanted.dbias)};
  layer_norm_backward(x.device(), {x.dtype(), recipe.centred, stats.size(0), row_length(recipe), dy.raw(), x.raw(),
                                   raw_or_null(added), raw_or_null(found.dx), raw_or_null(scale), stats.data<double>(),
                                   raw_or_null(found.dweight), raw_or_null(found.dbias)});
  if (wanted.dweight) found.dweight = to(found.dweight, recipe.weight_dtype);
  if (wanted.dbias) found.dbias = to(found.dbias, recipe.bias_dtype);
  return found;
}

// The same in differentiable operations: mean and rstd are functions of x again.
Gradients grad_ops(const Recipe& recipe, const Wanted& wanted, const Tensor& input, const Tensor& weight,
                   const Tensor& stats, const Tensor& grad, const Tensor& dsum) {
  const DType compute = compute_dtype(input.dtype());
  const Dims rows{stats.size(0), row_length(recipe)};
  const Tensor given = reshape(to(input, compute), rows), dy = reshape(to(grad, compute), rows);
  const Tensor x = recipe.centred ? sub(given, mean(given, {1}, true)) : given;
  const Tensor rstd = rsqrt(add(mean(mul(x, x), {1}, true), recipe.eps)), z = mul(x, rstd);
  const Tensor g = weight.defined() ? mul(dy, reshape(to(weight, compute), {rows[1]})) : dy;
  Gradients found;
  if (wanted.dx) {
    const Tensor along = sub(g, mul(z, mean(mul(g, z), {1}, true)));
    const Tensor dx = mul(rstd, recipe.centred ? sub(along, mean(g, {1}, true)) : along);
    found.dx = to(reshape(dx, input.shape()), input.dtype());
    if (dsum.defined()) found.dx = add(found.dx, dsum);
  }
  if (wanted.dweight) found.dweight = to(reshape(sum(mul(dy, z), {0}), recipe.normalized_shape), recipe.weight_dtype);
  if (wanted.dbias) found.dbias = to(reshape(sum(dy, {0}), recipe.normalized_shape), recipe.bias_dtype);
  return found;
}

// ------------------------------------------------------------------------------------------- forward

// Normalizes `x`, or x + residual, which is then left in `sum`. All are row-major.
Tensor run(const Recipe& recipe, const Tensor& x, const Tensor& residual, const Tensor& sum, const Tensor& weight,
           const Tensor& bias, const Tensor& stats) {
  const Tensor y = empty(x.shape(), x.dtype(), x.device());
  const Tensor scale = in_compute_type(weight, x.dtype()), shift = in_compute_type(bias, x.dtype());
  const int64_t n = row_length(recipe);
  layer_norm_forward(x.device(),
                     {x.dtype(), recipe.centred, stats.size(0), n, recipe.eps, x.raw(), raw_or_null(residual),
                      raw_or_null(sum), y.raw(), raw_or_null(scale), raw_or_null(shift), stats.data<double>()});
  return y;
}

Tensor empty_stats(const Recipe& recipe, const Tensor& x) {
  const int64_t n = row_length(recipe);
  return empty({n ? x.numel() / n : 0, 2}, DType::Float64, x.device());
}

Tensor normalize(const Recipe& recipe, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_arguments(recipe, x, weight, bias);
  const Tensor stats = empty_stats(recipe, x);
  return record(
      recipe.op, run(recipe, contiguous(detach(x)), Tensor(), Tensor(), weight, bias, stats), {x, weight, bias},
      [recipe, sx = Saved(x), sw = Saved(weight), ss = Saved(stats)](Backward& b) {
        const Gradients found = (b.create_graph() ? grad_ops : grad_kernel)(
            recipe, {b.needs(0), b.needs(1), b.needs(2)}, b.get(sx), b.get(sw), b.get(ss), b.grad(), Tensor());
        if (b.needs(0)) b.set(0, found.dx);
        if (b.needs(1)) b.set(1, found.dweight);
        if (b.needs(2)) b.set(2, found.dbias);
      },
      Differentiable::Yes);
}

std::vector<Tensor> add_normalize(const Recipe& recipe, const Tensor& x, const Tensor& residual, const Tensor& weight,
                                  const Tensor& bias) {
  check_arguments(recipe, x, weight, bias);
  check_same_device(recipe.op, x, residual);
  check_same_dtype(recipe.op, x, residual);
  check(x.shape() == residual.shape(), recipe.op, ": input of shape ", x.shape(), " and residual of shape ",
        residual.shape(), " differ");
  const Tensor stats = empty_stats(recipe, x), total = empty(x.shape(), x.dtype(), x.device());
  const Tensor y = run(recipe, contiguous(detach(x)), contiguous(detach(residual)), total, weight, bias, stats);
  return record(
      recipe.op, std::vector<Tensor>{total, y}, {x, residual, weight, bias},
      [recipe, st = SavedOutput(total, 0), sw = Saved(weight), ss = Saved(stats)](Backward& b) {
        const bool wants_dx = b.needs(0) || b.needs(1);
        const Gradients found = (b.create_graph() ? grad_ops : grad_kernel)(recipe, {wants_dx, b.needs(2), b.needs(3)},
                                                                            b.get(st), b.get(sw), b.get(ss), b.grad(1),
                                                                            b.has_grad(0) ? b.grad(0) : Tensor());
        if (b.needs(0)) b.set(0, found.dx);
        if (b.needs(1)) b.set(1, found.dx);
        if (b.needs(2)) b.set(2, found.dweight);
        if (b.needs(3)) b.set(3, found.dbias);
      },
      Differentiable::Yes);
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Dims& normalized_shape, const Tensor& weight, const Tensor& bias, double eps) {
  return normalize(layer_recipe("layer_norm", x, normalized_shape, weight, bias, eps), x, weight, bias);
}

Tensor rms_norm(const Tensor& x, const Dims& normalized_shape, const Tensor& weight, std::optional<double> eps) {
  return normalize(rms_recipe("rms_norm", x, normalized_shape, weight, eps), x, weight, Tensor());
}

std::vector<Tensor> add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                                   double eps) {
  return add_normalize(layer_recipe("add_layer_norm", x, weight.shape(), weight, bias, eps), x, residual, weight, bias);
}

std::vector<Tensor> add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                 std::optional<double> eps) {
  return add_normalize(rms_recipe("add_rms_norm", x, weight.shape(), weight, eps), x, residual, weight, Tensor());
}

}  // namespace fastnn
