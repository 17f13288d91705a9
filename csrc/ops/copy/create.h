// New tensors: zeros, ones, full, arange, linspace, eye.
#pragma once

#include "core/scalar.h"

namespace fastnn {

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
