#include "ops/reduce/scan.h"

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/elementwise/elementwise.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<ScanArgs> scan_rows{"scan"};

namespace {

Tensor run(const char* name, ScanOp op, const Tensor& x, int64_t axis, bool reverse) {
  axis = normalize_axis(name, axis, x.ndim());
  const Tensor from = contiguous(x);
  Tensor y = empty(x.shape(), x.is_floating() ? x.dtype() : DType::Int64, x.device());
  if (y.numel() == 0) return y;
  ScanArgs args{
      op, x.is_floating() ? DType::Float64 : DType::Int64, reverse, from.raw(), x.dtype(), y.raw(), y.dtype(), 1, 1, 1};
  for (int i = 0; i < x.ndim(); ++i) (i < axis ? args.outer : i == axis ? args.n : args.inner) *= x.shape()[i];
  scan_rows(x.device(), args);
  return y;
}

// From the front, or from the end; each is the other's gradient.
Tensor running_sum(const Tensor& x, int64_t axis, bool reverse) {
  return record(
      "cumsum", run("cumsum", ScanOp::Sum, detach(x), axis, reverse), {x},
      [axis, reverse](Backward& b) { b.set(0, running_sum(b.grad(), axis, !reverse)); }, Differentiable::Yes);
}

}  // namespace

Tensor cumsum(const Tensor& x, int64_t axis) { return running_sum(x, axis, false); }

// dx[i] = sum over j >= i of dy[j] y[j] / x[i]. Behind a zero every product is 0; at the first zero itself
// the product without it counts, up to the next zero.
Tensor cumprod(const Tensor& x, int64_t axis) {
  Tensor y = run("cumprod", ScanOp::Prod, detach(x), axis, false);
  if (!needs_grad({x})) return y;
  return record(
      "cumprod", y, {x},
      [axis, sx = Saved(x)](Backward& b) {
        const Tensor x = b.get(sx), dy = b.grad(), zero = eq(x, 0.0);
        const Tensor zeros = cumsum(zero, axis), before = eq(zeros, 0);
        check<RuntimeError>(!b.create_graph() || !item(any(zero)).to_bool(),
                            "cumprod: has no second derivative where an element is 0 (create_graph=True)");
        const Tensor others = where(zero, 1.0, x);
        const Tensor whole = mul(dy, cumprod(x, axis));
        Tensor dx = where(before, div(running_sum(whole, axis, true), others), 0.0);
        if (!b.create_graph()) {
          const Tensor first = logical_and(zero, eq(zeros, 1));
          const Tensor without = mul(dy, cumprod(where(first, 1.0, x), axis));
          dx = where(first, running_sum(without, axis, true), dx);
        }
        b.set(0, dx);
      },
      Differentiable::Yes);
}

}  // namespace fastnn
