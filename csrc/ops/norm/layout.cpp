#include "ops/norm/layout.h"

#include "ops/copy/copy.h"
#include "ops/copy/view.h"

namespace fastnn {

namespace {

Dims channels_last_order(int ndim) {
  Dims order{0};
  for (int axis = 2; axis < ndim; ++axis) order.push_back(axis);
  order.push_back(1);
  return order;
}

}  // namespace

bool has_channels_last(const Tensor& x) {
  const Dims order = channels_last_order(x.ndim());
  int64_t step = 1;
  for (int i = x.ndim() - 1; i >= 0; --i) {
    const int64_t axis = order[i];
    if (x.shape()[axis] != 1 && x.strides()[axis] != step) return false;
    step *= x.shape()[axis];
  }
  return true;
}

Tensor dense(const Tensor& x) {
  const Tensor plain = detach(x);
  return has_channels_last(x) ? plain : contiguous(plain);
}

Tensor dense_like(const Tensor& x, const Tensor& model) {
  const Tensor plain = detach(x);
  if (model.is_contiguous()) return contiguous(plain);
  if (has_channels_last(x)) return plain;
  const Dims order = channels_last_order(x.ndim());
  Dims inverse = order;
  for (int i = 0; i < x.ndim(); ++i) inverse[order[i]] = i;
  return permute(contiguous(permute(plain, order)), inverse);
}

}  // namespace fastnn
