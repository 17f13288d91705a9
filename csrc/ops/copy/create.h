// New tensors: zeros, ones, full, arange, linspace, eye.
#pragma once

#include "core/kernel.h"
#include "core/scalar.h"
#include "simd/half.h"

namespace fastnn {

// y[i] = start + i stride when the numbers are whole; else, from both ends, so that the last is exact:
// first + i step for i < half, last - (n - 1 - i) step behind. y holds int64 or float64, `n` of them.
struct SequenceArgs {
  void* y;
  bool integral;  // y is int64
  int64_t n;
  bool whole;
  int64_t start, stride;
  double first, step, last;
  int64_t half;

  template <class T>
  FASTNN_HD T at(int64_t i) const {
    if (whole) return T(start + i * stride);
    return T(i < half ? first + double(i) * step : last - double(n - 1 - i) * step);
  }
};
extern Kernel<SequenceArgs> sequence_fill;  // on GPUs: create.cpp writes the CPU's itself

Tensor full(const Dims& shape, Scalar value, DType dtype, Device device);
Tensor zeros(const Dims& shape, DType dtype, Device device);
Tensor ones(const Dims& shape, DType dtype, Device device);
Tensor full_like(const Tensor& x, Scalar value);
Tensor zeros_like(const Tensor& x);
Tensor ones_like(const Tensor& x);
Tensor arange(Scalar start, Scalar end, Scalar step, DType dtype, Device device);
Tensor linspace(double start, double end, int64_t steps, DType dtype, Device device);
Tensor eye(int64_t rows, int64_t columns, DType dtype, Device device);
Tensor scalar_tensor(Scalar value, DType dtype, Device device);

}  // namespace fastnn
