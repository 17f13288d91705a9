// Reductions: sum, mean, extremes, variance, products, norms, cumulative sums, logical all and any.
//
// Axes: an empty list means all. Accumulation is float32 for float32 and the 16-bit floats, float64
// for float64, int64 for integers and bool; long sums are cut into fixed chunks that are combined in
// a fixed order, so results are bit-equal for any thread count.
#pragma once

#include <string>
#include <utility>

#include "core/kernel.h"
#include "core/scalar.h"

namespace fastnn {

Tensor sum(const Tensor& x, const Dims& axes, bool keepdim);
Tensor sum_to(const Tensor& x, const Dims& shape);  // the inverse of broadcasting
Tensor mean(const Tensor& x, const Dims& axes, bool keepdim);
Tensor any(const Tensor& x);

}  // namespace fastnn
