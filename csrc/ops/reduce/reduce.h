// Reductions: sums, products, extremes, variance, norms, logical all and any.
//
//   y[k] = finish(combine over r of f(x[k, r]))     k: kept positions, r: reduced positions
//
// Axes: an empty list means all. Float32 and the 16-bit floats add short runs in float32 and the runs
// in float64; float64 adds in float64, bool and integers in int64. Long reductions are cut into fixed
// chunks that are combined in a fixed order, so results are bit-equal for any thread count. NaN wins in
// max and min. Of nothing, a sum is 0, a product 1, a mean NaN; an extreme raises.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "core/kernel.h"
#include "core/scalar.h"

namespace fastnn {

// f and combine; "Deviation" and "Exp" take each kept position's center first.
enum class ReduceOp : int32_t {
  Sum,
  Prod,
  Max,
  Min,
  AbsSum,
  SquareSum,
  PowSum,  // sum of |x|^power
  AbsMax,
  AbsMin,
  Any,
  All,
  DeviationSquareSum,  // sum of (x - center)^2
  ExpSum,              // sum of exp(x - center); finish adds the center to the logarithm
};

// Kept axes carry strides of x and y, reduced axes those of x; in elements, outermost first, merged
// where possible. `y` holds one value per kept position. finish(s) = (s / divisor)^(1 / root).
struct ReduceArgs {
  ReduceOp op;
  DType compute;  // float32, float64 or int64
  const void* x;
  DType x_dtype;
  void* y;
  DType y_dtype;
  const void* center;  // of the compute type, with y's strides; null for most operations
  int n_kept_axes, n_reduced_axes;
  int64_t kept_shape[kMaxDims], kept_x_strides[kMaxDims], kept_y_strides[kMaxDims];
  int64_t reduced_shape[kMaxDims], reduced_x_strides[kMaxDims];
  int64_t n_kept, n_reduced;
  bool by_rows;    // walk along the last reduced axis; else along the last kept axis
  int64_t chunk;   // reduced positions of one partial result
  void* partials;  // (chunks, n_kept) of float64 or int64; null when there is one chunk
  double power, divisor, root;
};
extern Kernel<ReduceArgs> reduce_values;

// index[k] = the first r with x[k, r] equal to y[k], or NaN like y[k]; y has x's values. One reduced
// axis. `y` and `index` (int64) share their strides.
struct FindFirstArgs {
  ReduceArgs walk;
  int64_t* index;
};
extern Kernel<FindFirstArgs> reduce_find_first;

Tensor sum(const Tensor& x, const Dims& axes = {}, bool keepdim = false);
Tensor sum_to(const Tensor& x, const Dims& shape);  // the inverse of broadcasting
Tensor mean(const Tensor& x, const Dims& axes = {}, bool keepdim = false);
Tensor prod(const Tensor& x, const Dims& axes = {}, bool keepdim = false);

// Over everything or over several axes; ties share the gradient evenly.
Tensor max(const Tensor& x);
Tensor min(const Tensor& x);
Tensor amax(const Tensor& x, const Dims& axes = {}, bool keepdim = false);
Tensor amin(const Tensor& x, const Dims& axes = {}, bool keepdim = false);
// Along one axis: values, and the int64 index of the first; it alone gets the gradient.
std::pair<Tensor, Tensor> max(const Tensor& x, int64_t axis, bool keepdim);
std::pair<Tensor, Tensor> min(const Tensor& x, int64_t axis, bool keepdim);
Tensor argmax(const Tensor& x, std::optional<int64_t> axis = {}, bool keepdim = false);  // no axis: of the flattened x
Tensor argmin(const Tensor& x, std::optional<int64_t> axis = {}, bool keepdim = false);

// The sum of squared deviations over max(n - correction, 0), and its root.
Tensor var(const Tensor& x, const Dims& axes = {}, double correction = 1, bool keepdim = false);
Tensor stddev(const Tensor& x, const Dims& axes = {}, double correction = 1, bool keepdim = false);
// torch.linalg.vector_norm: p = 2, 1, infinity (largest |x|), -infinity (smallest), 0 (count), or any.
Tensor norm(const Tensor& x, double p = 2, const Dims& axes = {}, bool keepdim = false);
Tensor logsumexp(const Tensor& x, const Dims& axes = {}, bool keepdim = false);

Tensor all(const Tensor& x, const Dims& axes = {}, bool keepdim = false);
Tensor any(const Tensor& x, const Dims& axes = {}, bool keepdim = false);
Tensor count_nonzero(const Tensor& x, const Dims& axes = {});

}  // namespace fastnn
