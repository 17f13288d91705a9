#include "ops/reduce/reduce.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/index/index.h"

namespace fastnn {

Kernel<ReduceArgs> reduce_values{"reduce"};
Kernel<FindFirstArgs> reduce_find_first{"reduce_find_first"};

namespace {

// ------------------------------------------------------------------------------------------ geometry

// Which axes go, and the result's shape with and without them.
struct Reduction {
  bool reduced[kMaxDims] = {};
  Dims kept_shape;    // reduced axes have size 1
  Dims shape;         // of the result
  int64_t count = 1;  // reduced positions
};

Reduction plan(const char* op, const Tensor& x, const Dims& axes, bool keepdim) {
  Reduction r;
  for (int64_t wanted : axes) {
    const int64_t axis = normalize_axis(op, wanted, x.ndim());
    check(!r.reduced[axis], op, ": dim ", axis, " comes twice in ", axes);
    r.reduced[axis] = true;
  }
  for (int i = 0; i < x.ndim(); ++i) {
    r.reduced[i] |= axes.empty();
    if (r.reduced[i]) r.count *= x.shape()[i];
    r.kept_shape.push_back(r.reduced[i] ? 1 : x.shape()[i]);
    if (keepdim || !r.reduced[i]) r.shape.push_back(r.kept_shape[i]);
  }
  return r;
}

struct Axis {
  int64_t size, x_stride, y_stride;
};

// Drops axes of size 1, puts large strides of x outside, merges what is contiguous; returns how many.
int simplify(Axis* axes, int n) {
  int kept = 0;
  for (int i = 0; i < n; ++i)
    if (axes[i].size != 1) axes[kept++] = axes[i];
  std::stable_sort(axes, axes + kept,
                   [](const Axis& a, const Axis& b) { return std::abs(a.x_stride) > std::abs(b.x_stride); });
  int last = 0;
  for (int i = 1; i < kept; ++i) {
    const bool mergeable = axes[last].x_stride == axes[i].x_stride * axes[i].size &&
                           axes[last].y_stride == axes[i].y_stride * axes[i].size;
    if (mergeable)
      axes[i].size *= axes[last].size;
    else
      ++last;
    axes[last] = axes[i];
  }
  return std::min(kept, last + 1);
}

// Rows where the innermost reduced axis is the denser one, unless they are too short, or the columns
// too few, for that to pay.
bool walks_by_rows(const ReduceArgs& args) {
  if (args.n_kept_axes == 0) return true;
  if (args.n_reduced_axes == 0) return false;
  const int64_t length = args.reduced_shape[args.n_reduced_axes - 1];
  const int64_t width = args.kept_shape[args.n_kept_axes - 1];
  const int64_t row_stride = std::abs(args.reduced_x_strides[args.n_reduced_axes - 1]);
  const int64_t column_stride = std::abs(args.kept_x_strides[args.n_kept_axes - 1]);
  return row_stride <= column_stride ? length >= 16 || length >= width : width < 8 && length >= 64;
}

// Cuts the reduced range where there are too few kept positions to share among threads; 0: no cut.
int64_t chunk_length(const ReduceArgs& args) {
  constexpr int64_t kElements = 32768, kColumns = 512, kEnoughUnits = 64;
  const int64_t width = args.by_rows ? 1 : std::min(kColumns, args.kept_shape[args.n_kept_axes - 1]);
  if (args.n_kept / width >= kEnoughUnits) return 0;
  const int64_t chunk = std::max<int64_t>(64, kElements / width);
  return args.n_reduced >= 2 * chunk ? chunk : 0;
}

ReduceArgs walk_of(const Tensor& x, const Reduction& r, const Tensor& y) {
  ReduceArgs args{};
  args.x = x.raw();
  args.x_dtype = x.dtype();
  args.y = y.raw();
  args.y_dtype = y.dtype();
  args.compute = compute_dtype(x.dtype());
  args.n_kept = y.numel();
  args.n_reduced = r.count;
  args.divisor = args.root = args.power = 1;
  Axis kept[kMaxDims], reduced[kMaxDims];
  int n_kept = 0, n_reduced = 0;
  const Dims y_strides = contiguous_strides(r.kept_shape);
  for (int i = 0; i < x.ndim(); ++i) {
    if (r.reduced[i])
      reduced[n_reduced++] = {x.shape()[i], x.strides()[i], 0};
    else
      kept[n_kept++] = {x.shape()[i], x.strides()[i], y_strides[i]};
  }
  args.n_kept_axes = simplify(kept, n_kept);
  args.n_reduced_axes = simplify(reduced, n_reduced);
  for (int i = 0; i < args.n_kept_axes; ++i) {
    args.kept_shape[i] = kept[i].size;
    args.kept_x_strides[i] = kept[i].x_stride;
    args.kept_y_strides[i] = kept[i].y_stride;
  }
  for (int i = 0; i < args.n_reduced_axes; ++i) {
    args.reduced_shape[i] = reduced[i].size;
    args.reduced_x_strides[i] = reduced[i].x_stride;
  }
  args.by_rows = walks_by_rows(args);
  return args;
}

struct Finish {
  double divisor = 1, root = 1, power = 1;
};

// The kernel call: a result of `dtype`, contiguous. `center` is contiguous, of the compute type.
Tensor run(ReduceOp op, const Tensor& x, const Reduction& r, DType dtype, Finish finish = {},
           const Tensor& center = Tensor()) {
  Tensor y = empty(r.shape, dtype, x.device());
  if (y.numel() == 0) return y;
  ReduceArgs args = walk_of(x, r, y);
  args.op = op;
  args.center = center.defined() ? center.raw() : nullptr;
  args.divisor = finish.divisor;
  args.root = finish.root;
  args.power = finish.power;
  args.chunk = chunk_length(args);
  Tensor partials;
  if (args.chunk) {
    const DType wide = args.compute == DType::Int64 ? DType::Int64 : DType::Float64;
    partials = empty({(args.n_reduced + args.chunk - 1) / args.chunk, args.n_kept}, wide, x.device());
    args.partials = partials.raw();
  } else {
    args.chunk = std::max<int64_t>(args.n_reduced, 1);
  }
  reduce_values(x.device(), args);
  return y;
}

// A result (or its gradient) over x's shape again.
Tensor spread(const Tensor& y, const Reduction& r, const Dims& shape) {
  return expand_to(reshape(y, r.kept_shape), shape);
}

void check_floating(const char* op, const Tensor& x) {
  check<TypeError>(x.is_floating(), op, ": expected a floating-point tensor, got ", x.dtype(),
                   "; convert with x.to(float32)");
}

// An extreme of nothing: there is none.
void check_not_empty(const char* op, const Tensor& x, const Reduction& r) {
  check(r.count > 0 || checked_numel(r.shape) == 0, op, ": a tensor of shape ", x.shape(),
        " has no elements to reduce over (size 0), and ", op, " of nothing is not defined");
}

}  // namespace

// -------------------------------------------------------------------------------------- sum and mean

Tensor sum(const Tensor& x, const Dims& axes, bool keepdim) {
  const Reduction r = plan("sum", x, axes, keepdim);
  Tensor y = run(ReduceOp::Sum, x, r, x.is_floating() ? x.dtype() : DType::Int64);
  return record(
      "sum", y, {x}, [r, shape = x.shape()](Backward& b) { b.set(0, spread(b.grad(), r, shape)); },
      Differentiable::Yes);
}

Tensor sum_to(const Tensor& x, const Dims& shape) {
  if (x.shape() == shape) return x;
  const int lead = x.ndim() - shape.size();
  check(lead >= 0 && broadcast_shapes("sum_to", x.shape(), shape) == x.shape(), "sum_to: shape ", shape,
        " does not broadcast to ", x.shape());
  Dims axes;
  for (int i = 0; i < x.ndim(); ++i)
    if (i < lead || (shape[i - lead] == 1 && x.shape()[i] != 1)) axes.push_back(i);
  return reshape(axes.empty() ? x : sum(x, axes, true), shape);
}

Tensor mean(const Tensor& x, const Dims& axes, bool keepdim) {
  check_floating("mean", x);
  const Reduction r = plan("mean", x, axes, keepdim);
  const double count = double(r.count);
  Tensor y = run(ReduceOp::Sum, x, r, x.dtype(), {count});
  return record(
      "mean", y, {x}, [r, count, shape = x.shape()](Backward& b) { b.set(0, spread(div(b.grad(), count), r, shape)); },
      Differentiable::Yes);
}

Tensor prod(const Tensor& x, const Dims& axes, bool keepdim) {
  const Reduction r = plan("prod", x, axes, keepdim);
  Tensor y = run(ReduceOp::Prod, x, r, x.is_floating() ? x.dtype() : DType::Int64);
  if (!needs_grad({x})) return y;
  // dx = dy * (the product of the others): y / x without zeros; with one zero only it has a gradient.
  return record(
      "prod", y, {x},
      [r, axes, sx = Saved(x)](Backward& b) {
        const Tensor x = b.get(sx), zero = eq(x, 0.0);
        check<RuntimeError>(!b.create_graph() || !item(any(zero)).to_bool(),
                            "prod: has no second derivative where an element is 0 (create_graph=True)");
        const Tensor zeros = sum(zero, axes, true);
        const Tensor others = where(zero, 1.0, x);
        const Tensor alone = logical_or(eq(zeros, 0), logical_and(eq(zeros, 1), zero));
        const Tensor slope = where(alone, div(prod(others, axes, true), others), 0.0);
        b.set(0, mul(spread(b.grad(), r, x.shape()), slope));
      },
      Differentiable::Yes);
}

// ------------------------------------------------------------------------------------------ extremes

namespace {

Tensor extreme(const char* name, ReduceOp op, const Tensor& x, const Dims& axes, bool keepdim) {
  const Reduction r = plan(name, x, axes, keepdim);
  check_not_empty(name, x, r);
  Tensor y = run(op, x, r, x.dtype());
  if (!needs_grad({x})) return y;
  return record(
      name, y, {x},
      [r, axes, sx = Saved(x), sy = SavedOutput(y)](Backward& b) {
        const Tensor x = b.get(sx), best = spread(b.get(sy), r, x.shape());
        const Tensor ties = logical_or(eq(x, best), logical_and(isnan(x), isnan(best)));
        const Tensor share = div(reshape(b.grad(), r.kept_shape), to(sum(ties, axes, true), x.dtype()));
        b.set(0, where(ties, share, 0.0));
      },
      Differentiable::Yes);
}

// Along one axis: the values, and the first index of each.
std::pair<Tensor, Tensor> find_extreme(const char* name, ReduceOp op, const Tensor& x, int64_t axis, bool keepdim) {
  const Reduction r = plan(name, x, {axis}, keepdim);
  check_not_empty(name, x, r);
  Tensor y = run(op, x, r, x.dtype());
  Tensor index = empty(r.shape, DType::Int64, x.device());
  if (y.numel()) reduce_find_first(x.device(), {walk_of(x, r, y), index.data<int64_t>()});
  return {y, index};
}

std::pair<Tensor, Tensor> extreme_along(const char* name, ReduceOp op, const Tensor& x, int64_t axis, bool keepdim) {
  axis = normalize_axis(name, axis, x.ndim());
  auto [y, index] = find_extreme(name, op, x, axis, keepdim);
  y = record(
      name, y, {x},
      [axis, shape = x.shape(), kept = plan(name, x, {axis}, true).shape, index = index](Backward& b) {
        const Tensor dy = b.grad();
        const Tensor dx = zeros(shape, dy.dtype(), dy.device());
        if (shape.empty()) return b.set(0, dy);
        b.set(0, scatter_add_(dx, axis, reshape(index, kept), reshape(dy, kept)));
      },
      Differentiable::Yes);
  return {y, index};
}

Tensor arg_extreme(const char* name, ReduceOp op, const Tensor& x, std::optional<int64_t> axis, bool keepdim) {
  if (axis) return find_extreme(name, op, detach(x), *axis, keepdim).second;
  check_not_empty(name, x, plan(name, x, {}, false));
  const Tensor index = find_extreme(name, op, flatten(detach(x), 0, -1), 0, false).second;
  return keepdim ? reshape(index, Dims::filled(x.ndim(), 1)) : index;
}

}  // namespace

Tensor max(const Tensor& x) { return extreme("max", ReduceOp::Max, x, {}, false); }
Tensor min(const Tensor& x) { return extreme("min", ReduceOp::Min, x, {}, false); }
Tensor amax(const Tensor& x, const Dims& axes, bool keepdim) {
  return extreme("amax", ReduceOp::Max, x, axes, keepdim);
}
Tensor amin(const Tensor& x, const Dims& axes, bool keepdim) {
  return extreme("amin", ReduceOp::Min, x, axes, keepdim);
}
std::pair<Tensor, Tensor> max(const Tensor& x, int64_t axis, bool keepdim) {
  return extreme_along("max", ReduceOp::Max, x, axis, keepdim);
}
std::pair<Tensor, Tensor> min(const Tensor& x, int64_t axis, bool keepdim) {
  return extreme_along("min", ReduceOp::Min, x, axis, keepdim);
}
Tensor argmax(const Tensor& x, std::optional<int64_t> axis, bool keepdim) {
  return arg_extreme("argmax", ReduceOp::Max, x, axis, keepdim);
}
Tensor argmin(const Tensor& x, std::optional<int64_t> axis, bool keepdim) {
  return arg_extreme("argmin", ReduceOp::Min, x, axis, keepdim);
}

// --------------------------------------------------------------------------------- variance and norms

namespace {

// Two passes: the mean, then the squared deviations from it.
Tensor deviation(const Tensor& x, const Reduction& r, double degrees, double root) {
  const Tensor center = run(ReduceOp::Sum, x, r, compute_dtype(x.dtype()), {double(r.count)});
  return run(ReduceOp::DeviationSquareSum, x, r, x.dtype(), {degrees, root}, center);
}

}  // namespace

Tensor var(const Tensor& x, const Dims& axes, double correction, bool keepdim) {
  check_floating("var", x);
  const Reduction r = plan("var", x, axes, keepdim);
  const double degrees = std::max(0.0, double(r.count) - correction);
  return record(
      "var", deviation(x, r, degrees, 1), {x},
      [r, axes, degrees, sx = Saved(x)](Backward& b) {
        const Tensor x = b.get(sx);
        b.set(0, mul(spread(mul(b.grad(), 2 / degrees), r, x.shape()), sub(x, mean(x, axes, true))));
      },
      Differentiable::Yes);
}

Tensor stddev(const Tensor& x, const Dims& axes, double correction, bool keepdim) {
  check_floating("std", x);
  const Reduction r = plan("std", x, axes, keepdim);
  const double degrees = std::max(0.0, double(r.count) - correction);
  Tensor y = deviation(x, r, degrees, 2);
  return record(
      "std", y, {x},
      [r, axes, degrees, sx = Saved(x), sy = SavedOutput(y)](Backward& b) {
        const Tensor x = b.get(sx), y = b.get(sy);
        const Tensor slope = where(eq(y, 0.0), 0.0, div(mul(b.grad(), 1 / degrees), y));
        b.set(0, mul(spread(slope, r, x.shape()), sub(x, mean(x, axes, true))));
      },
      Differentiable::Yes);
}

namespace {

// The slope of the p-norm: x |x|^(p-2) / y^(p-1), and 0 where y is 0.
Tensor norm_slope(double p, const Tensor& x, const Tensor& y) {
  if (p == 1) return sign(x);
  if (p == 2) return div(x, where(eq(y, 0.0), 1.0, y));
  const Tensor size = abs(x), scale = where(eq(y, 0.0), 1.0, y);
  // |x / y|^(p-1) stays in range where the two powers apart would not.
  const Tensor slope = mul(sign(x), pow(div(size, scale), p - 1));
  return where(eq(x, 0.0), 0.0, slope);
}

ReduceOp norm_op(double p) {
  if (p == 1) return ReduceOp::AbsSum;
  if (p == 2) return ReduceOp::SquareSum;
  return std::isinf(p) ? (p > 0 ? ReduceOp::AbsMax : ReduceOp::AbsMin) : ReduceOp::PowSum;
}

}  // namespace

Tensor norm(const Tensor& x, double p, const Dims& axes, bool keepdim) {
  check_floating("norm", x);
  check(!std::isnan(p), "norm: expected a number for p, got NaN");
  if (p == 0) return to(sum(ne(x, 0.0), axes, keepdim), x.dtype());
  if (std::isinf(p) && needs_grad({x})) return p > 0 ? amax(abs(x), axes, keepdim) : amin(abs(x), axes, keepdim);
  const Reduction r = plan("norm", x, axes, keepdim);
  if (p < 0 || std::isinf(p)) check_not_empty("norm", x, r);
  Finish finish;
  finish.root = p == 1 || std::isinf(p) ? 1 : p;
  finish.power = p;
  Tensor y = run(norm_op(p), x, r, x.dtype(), finish);
  if (!needs_grad({x})) return y;
  return record(
      "norm", y, {x},
      [r, p, sx = Saved(x), sy = SavedOutput(y)](Backward& b) {
        const Tensor x = b.get(sx), y = reshape(b.get(sy), r.kept_shape);
        b.set(0, mul(reshape(b.grad(), r.kept_shape), norm_slope(p, x, y)));
      },
      Differentiable::Yes);
}

Tensor logsumexp(const Tensor& input, const Dims& axes, bool keepdim) {
  const Tensor x = input.is_floating() ? input : to(input, DType::Float32);
  const Reduction r = plan("logsumexp", x, axes, keepdim);
  if (r.count == 0) return full(r.shape, Scalar(-INFINITY), x.dtype(), x.device());
  Tensor center = run(ReduceOp::Max, x, r, compute_dtype(x.dtype()));
  {
    GradMode off(false);
    center = where(isfinite(center), center, 0.0);  // infinities and NaN go through exp and log as they are
  }
  Tensor y = run(ReduceOp::ExpSum, x, r, x.dtype(), {}, center);
  return record(
      "logsumexp", y, {x},
      [r, sx = Saved(x), sy = SavedOutput(y)](Backward& b) {
        const Tensor x = b.get(sx), y = reshape(b.get(sy), r.kept_shape);
        b.set(0, mul(reshape(b.grad(), r.kept_shape), exp(sub(x, where(isinf(y), 0.0, y)))));
      },
      Differentiable::Yes);
}

// ------------------------------------------------------------------------------------------- logical

namespace {

Tensor logical(const char* name, ReduceOp op, const Tensor& x, const Dims& axes, bool keepdim) {
  const Reduction r = plan(name, x, axes, keepdim);
  const DType dtype = x.dtype() == DType::UInt8 ? DType::UInt8 : DType::Bool;  // as in PyTorch
  if (r.count == 0) return full(r.shape, Scalar(int64_t(op == ReduceOp::All)), dtype, x.device());
  return run(op, x, r, dtype);
}

}  // namespace

Tensor all(const Tensor& x, const Dims& axes, bool keepdim) { return logical("all", ReduceOp::All, x, axes, keepdim); }
Tensor any(const Tensor& x, const Dims& axes, bool keepdim) { return logical("any", ReduceOp::Any, x, axes, keepdim); }

Tensor count_nonzero(const Tensor& x, const Dims& axes) { return sum(ne(x, Scalar(0)), axes, false); }

}  // namespace fastnn
