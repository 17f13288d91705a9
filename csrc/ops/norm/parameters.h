// Weights, biases and statistics beside an input: their types, and how the kernels get them.
#pragma once

#include "core/tensor.h"

namespace fastnn {

// TypeError unless `values`, where defined, has x's dtype or the type that x's is computed in; DeviceError.
void check_parameter_type(const char* op, const char* name, const Tensor& x, const Tensor& values);
// Contiguous, without history, in the type that `dtype` is computed in; undefined stays undefined.
Tensor in_compute_type(const Tensor& values, DType dtype);
void* raw_or_null(const Tensor& values);
// The dtype of the gradient of a parameter that may be missing.
DType gradient_dtype(const Tensor& parameter, const Tensor& x);

}  // namespace fastnn
