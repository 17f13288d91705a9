// Cumulative sums and products along one axis.
//
//   y[i] = x[0] + ... + x[i]        (from the end when reversed)
//
// Float32 and the 16-bit floats accumulate in float64, as PyTorch does on the CPU; bool and integers in
// int64. One pass, serial along the axis; parallel over the other axes.
#pragma once

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

enum class ScanOp : int32_t { Sum, Prod };

// x and y are contiguous (outer, n, inner).
struct ScanArgs {
  ScanOp op;
  DType compute;
  bool reverse;
  const void* x;
  DType x_dtype;
  void* y;
  DType y_dtype;
  int64_t outer, n, inner;
};
extern Kernel<ScanArgs> scan_rows;

Tensor cumsum(const Tensor& x, int64_t axis);
Tensor cumprod(const Tensor& x, int64_t axis);

}  // namespace fastnn
