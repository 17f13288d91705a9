#include "ops/reduce/sort.h"

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/index/index.h"

namespace fastnn {

Kernel<SortArgs> sort_rows{"sort"};

namespace {

// The first `count` along the last axis.
std::pair<Tensor, Tensor> sort_last(const Tensor& x, bool descending, int64_t count) {
  const Tensor from = contiguous(x);
  Dims shape = x.shape();
  if (x.ndim()) shape[x.ndim() - 1] = count;
  Tensor values = empty(shape, x.dtype(), x.device()), indices = empty(shape, DType::Int64, x.device());
  if (values.numel() == 0) return {values, indices};
  const int64_t n = x.ndim() ? x.shape().back() : 1;
  const Tensor keys = empty({2, x.numel()}, DType::Int64, x.device()), spare = empty_like(indices);
  sort_rows(x.device(), {from.raw(), x.dtype(), descending, x.numel() / n, n, count, values.raw(),
                         indices.data<int64_t>(), keys.data<uint64_t>(), spare.data<int64_t>()});
  return {values, indices};
}

// The first `count` of the sorted values along an axis; each gradient goes back to where it came from.
std::pair<Tensor, Tensor> sorted(const char* name, const Tensor& x, int64_t axis, bool descending, int64_t count) {
  auto [values, indices] = sort_last(x.ndim() ? transpose(detach(x), axis, -1) : detach(x), descending, count);
  if (x.ndim()) {
    values = contiguous(transpose(values, axis, -1));
    indices = contiguous(transpose(indices, axis, -1));
  }
  values = record(
      name, values, {x},
      [axis, shape = x.shape(), indices = indices](Backward& b) {
        const Tensor dy = b.grad();
        b.set(0, scatter_add_(zeros(shape, dy.dtype(), dy.device()), axis, indices, dy));
      },
      Differentiable::Yes);
  return {values, indices};
}

}  // namespace

std::pair<Tensor, Tensor> sort(const Tensor& x, int64_t axis, bool descending) {
  axis = normalize_axis("sort", axis, x.ndim());
  return sorted("sort", x, axis, descending, x.ndim() ? x.shape()[axis] : 1);
}

Tensor argsort(const Tensor& x, int64_t axis, bool descending) { return sort(detach(x), axis, descending).second; }

std::pair<Tensor, Tensor> topk(const Tensor& x, int64_t k, int64_t axis, bool largest) {
  axis = normalize_axis("topk", axis, x.ndim());
  const int64_t size = x.ndim() ? x.shape()[axis] : 1;
  check(k >= 0 && k <= size, "topk: expected k from 0 to ", size, ", the size of dim ", axis, " of shape ", x.shape(),
        ", got ", k);
  return sorted("topk", x, axis, largest, k);
}

}  // namespace fastnn
