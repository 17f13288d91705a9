#include "ops/softmax/softmax.h"

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/elementwise/elementwise.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<SoftmaxArgs> softmax_forward{"softmax"};
Kernel<SoftmaxBackwardArgs> softmax_backward{"softmax_backward"};

namespace {

// The shape around the axis, as (outer, n, inner); a 0-d tensor is one row of one.
struct Rows {
  int64_t outer = 1, n = 1, inner = 1;
};

Rows rows_of(const Tensor& x, int64_t axis) {
  Rows rows;
  for (int64_t i = 0; i < x.ndim(); ++i) (i < axis ? rows.outer : i == axis ? rows.n : rows.inner) *= x.shape()[i];
  return rows;
}

Tensor grad_kernel(bool log, int64_t axis, const Tensor& y, const Tensor& grad) {
  const Tensor dy = contiguous(grad);
  Tensor dx = empty(y.shape(), y.dtype(), y.device());
  const Rows rows = rows_of(y, axis);
  softmax_backward(y.device(), {dy.raw(), y.raw(), dx.raw(), y.dtype(), log, rows.outer, rows.n, rows.inner});
  return dx;
}

Tensor grad_ops(bool log, int64_t axis, const Tensor& y, const Tensor& dy) {
  const Dims axes = y.ndim() ? Dims{axis} : Dims{};
  if (log) return sub(dy, mul(exp(y), sum(dy, axes, true)));
  return mul(y, sub(dy, sum(mul(dy, y), axes, true)));
}

Tensor softmax_of(const char* op, const Tensor& x, int64_t wanted_axis, bool log) {
  check<TypeError>(x.is_floating(), op, ": expected a floating tensor, got ", x.dtype());
  const int64_t axis = normalize_axis(op, wanted_axis, x.ndim() ? x.ndim() : 1);
  Tensor y = empty(x.shape(), x.dtype(), x.device());
  const Tensor from = contiguous(x);
  const Rows rows = rows_of(x, axis);
  softmax_forward(x.device(), {from.raw(), y.raw(), x.dtype(), log, rows.outer, rows.n, rows.inner});
  return record(
      op, y, {x},
      [log, axis, sy = SavedOutput(y)](Backward& b) {
        const Tensor saved = b.get(sy);
        b.set(0, b.create_graph() ? grad_ops(log, axis, saved, b.grad()) : grad_kernel(log, axis, saved, b.grad()));
      },
      Differentiable::Yes);
}

}  // namespace

Tensor softmax(const Tensor& x, int64_t axis) { return softmax_of("softmax", x, axis, false); }

Tensor log_softmax(const Tensor& x, int64_t axis) { return softmax_of("log_softmax", x, axis, true); }

}  // namespace fastnn
