#include "ops/copy/create.h"

#include <cmath>

#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"

namespace fastnn {

Tensor full(const Dims& shape, Scalar value, DType dtype, Device device) {
  Tensor x = empty(shape, dtype, device);
  fill_into(x, value);
  return x;
}
Tensor zeros(const Dims& shape, DType dtype, Device device) { return full(shape, Scalar(0), dtype, device); }
Tensor ones(const Dims& shape, DType dtype, Device device) { return full(shape, Scalar(1), dtype, device); }
Tensor full_like(const Tensor& x, Scalar value) {
  Tensor y = empty_like(x);
  fill_into(y, value);
  return y;
}
Tensor zeros_like(const Tensor& x) { return full_like(x, Scalar(0)); }
Tensor ones_like(const Tensor& x) { return full_like(x, Scalar(1)); }
Tensor scalar_tensor(Scalar value, DType dtype, Device device) { return full({}, value, dtype, device); }

namespace {

// Written on the CPU element by element: sequences are short next to what follows them.
template <class Value>
Tensor sequence(int64_t n, DType dtype, Device device, Value value_at) {
  const bool integral = !is_floating(dtype);
  Tensor x = empty({n}, integral ? DType::Int64 : DType::Float64, Device());
  parallel_for(n, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (integral)
        x.data<int64_t>()[i] = int64_t(value_at(i));
      else
        x.data<double>()[i] = double(value_at(i));
    }
  });
  return to(to(x, dtype), device);
}

}  // namespace

Tensor arange(Scalar start, Scalar end, Scalar step, DType dtype, Device device) {
  const bool integral =
      start.kind != Scalar::Kind::Float && end.kind != Scalar::Kind::Float && step.kind != Scalar::Kind::Float;
  const double first = start.to_double(), stride = step.to_double();
  check(stride != 0 && std::isfinite(stride), "arange: expected a finite step other than 0, got ", stride);
  const double span = (end.to_double() - first) / stride;
  check(std::isfinite(span), "arange: expected finite bounds, got ", first, " and ", end.to_double());
  check(span >= 0, "arange: the step ", stride, " leads away from ", first, " to ", end.to_double());
  check<MemoryError>(span < 9e18, "arange: ", span, " elements are too many");
  const int64_t n = int64_t(std::ceil(span));
  if (integral)
    return sequence(n, dtype, device, [s = start.to_int(), d = step.to_int()](int64_t i) { return s + i * d; });
  return sequence(n, dtype, device, [first, stride](int64_t i) { return first + double(i) * stride; });
}

Tensor linspace(double start, double end, int64_t steps, DType dtype, Device device) {
  check(steps >= 0, "linspace: expected steps >= 0, got ", steps);
  const double step = steps > 1 ? (end - start) / double(steps - 1) : 0;
  // From both ends, so that the last element is `end` exactly.
  return sequence(steps, dtype, device, [=](int64_t i) {
    return i < steps / 2 || steps == 1 ? start + double(i) * step : end - double(steps - 1 - i) * step;
  });
}

Tensor eye(int64_t rows, int64_t columns, DType dtype, Device device) {
  Tensor x = zeros({rows, columns}, dtype, device);
  fill_into(diagonal(x, 0, 0, 1), Scalar(1));
  return x;
}

}  // namespace fastnn
