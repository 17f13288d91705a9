#include "ops/copy/create.h"

#include <cmath>

#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"

namespace fastnn {

Kernel<SequenceArgs> sequence_fill{"arange"};

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

// Sequences are short next to what follows them: on the CPU a plain loop writes them.
Tensor sequence(SequenceArgs args, DType dtype, Device device) {
  args.integral = !is_floating(dtype);
  const Tensor x = empty({args.n}, args.integral ? DType::Int64 : DType::Float64, device);
  args.y = x.raw();
  if (device.is_cuda()) {
    if (args.n > 0) sequence_fill(device, args);
    return to(x, dtype);
  }
  parallel_for(args.n, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (args.integral)
        x.data<int64_t>()[i] = args.at<int64_t>(i);
      else
        x.data<double>()[i] = args.at<double>(i);
    }
  });
  return to(x, dtype);
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
  SequenceArgs args{};
  args.n = args.half = n;
  args.whole = integral;
  if (integral) {
    args.start = start.to_int();
    args.stride = step.to_int();
  }
  args.first = first;
  args.step = stride;
  return sequence(args, dtype, device);
}

Tensor linspace(double start, double end, int64_t steps, DType dtype, Device device) {
  check(steps >= 0, "linspace: expected steps >= 0, got ", steps);
  SequenceArgs args{};
  args.n = steps;
  args.first = start;
  args.last = end;
  args.step = steps > 1 ? (end - start) / double(steps - 1) : 0;
  args.half = steps == 1 ? 1 : steps / 2;
  return sequence(args, dtype, device);
}

Tensor eye(int64_t rows, int64_t columns, DType dtype, Device device) {
  Tensor x = zeros({rows, columns}, dtype, device);
  fill_into(diagonal(x, 0, 0, 1), Scalar(1));
  return x;
}

}  // namespace fastnn
