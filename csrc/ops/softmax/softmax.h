// softmax and log_softmax along one axis.
//
//   softmax      y = exp(x - max x) / sum exp(x - max x)        dx = y (dy - sum dy y)
//   log_softmax  y = x - max x - log sum exp(x - max x)         dx = dy - exp(y) sum dy
//
// Never overflows. A row of nothing but -inf, and a row with NaN or +inf, gives NaN, as in PyTorch.
// Saved for backward: y.
#pragma once

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

// x and y are (outer, n, inner), contiguous in `dtype`, a float; the sum runs over n. They may be the same.
struct SoftmaxArgs {
  const void* x;
  void* y;
  DType dtype;
  bool log;
  int64_t outer, n, inner;
};
extern Kernel<SoftmaxArgs> softmax_forward;

struct SoftmaxBackwardArgs {
  const void* dy;
  const void* y;
  void* dx;
  DType dtype;
  bool log;
  int64_t outer, n, inner;
};
extern Kernel<SoftmaxBackwardArgs> softmax_backward;

Tensor softmax(const Tensor& x, int64_t axis);
Tensor log_softmax(const Tensor& x, int64_t axis);

}  // namespace fastnn
