#include "ops/elementwise/geometry.h"

#include <algorithm>
#include <utility>

namespace fastnn {
namespace {

StridedOperand operand_of(const Operand& x, const Dims& shape) {
  StridedOperand operand{};
  if (!x.is_tensor()) {
    operand.real = x.scalar.to_double();
    operand.integer = x.scalar.to_int();
    return operand;
  }
  const Tensor& t = *x.tensor;
  operand.data = t.raw();
  operand.dtype = t.dtype();
  const int lead = shape.size() - t.ndim();
  for (int axis = 0; axis < t.ndim(); ++axis)
    operand.strides[lead + axis] = t.shape()[axis] == 1 ? 0 : t.strides()[axis];
  return operand;
}

template <class Visit>
void for_each_operand(ElementwiseArgs& args, Visit visit) {
  visit(args.out);
  for (int k = 0; k < args.n_inputs; ++k) visit(args.in[k]);
}

// Outer axes first: the output is written in memory order.
void sort_axes(ElementwiseArgs& args) {
  for (int i = 1; i < args.ndim; ++i) {
    for (int j = i; j > 0 && std::abs(args.out.strides[j - 1]) < std::abs(args.out.strides[j]); --j) {
      std::swap(args.shape[j - 1], args.shape[j]);
      for_each_operand(args, [j](StridedOperand& x) { std::swap(x.strides[j - 1], x.strides[j]); });
    }
  }
}

void drop_ones(ElementwiseArgs& args) {
  int kept = 0;
  for (int axis = 0; axis < args.ndim; ++axis) {
    if (args.shape[axis] == 1) continue;
    args.shape[kept] = args.shape[axis];
    for_each_operand(args, [kept, axis](StridedOperand& x) { x.strides[kept] = x.strides[axis]; });
    ++kept;
  }
  args.ndim = kept;
}

void merge_axes(ElementwiseArgs& args) {
  int last = 0;
  for (int axis = 1; axis < args.ndim; ++axis) {
    bool mergeable = true;
    for_each_operand(args, [&](StridedOperand& x) {
      mergeable &= !x.data || x.strides[last] == x.strides[axis] * args.shape[axis];
    });
    if (mergeable) {
      args.shape[last] *= args.shape[axis];
    } else {
      args.shape[++last] = args.shape[axis];
    }
    for_each_operand(args, [last, axis](StridedOperand& x) { x.strides[last] = x.strides[axis]; });
  }
  args.ndim = std::min(args.ndim, last + 1);
}

// The lowest and one past the highest byte that a tensor touches.
std::pair<const char*, const char*> extent(const Tensor& x) {
  int64_t low = 0, high = 1;
  for (int axis = 0; axis < x.ndim(); ++axis) {
    const int64_t reach = x.strides()[axis] * (x.shape()[axis] - 1);
    (reach < 0 ? low : high) += reach;
  }
  const char* base = static_cast<const char*>(x.raw());
  const int64_t bytes = int64_t(x.item_size());
  return {base + low * bytes, base + high * bytes};
}

}  // namespace

ElementwiseArgs elementwise_args(int32_t op, DType compute, const Tensor& out, std::initializer_list<Operand> inputs) {
  ElementwiseArgs args{};
  args.op = op;
  args.compute = compute;
  args.ndim = out.ndim();
  args.numel = out.numel();
  std::copy(out.shape().begin(), out.shape().end(), args.shape);
  args.out = operand_of(out, out.shape());
  for (const Operand& x : inputs) args.in[args.n_inputs++] = operand_of(x, out.shape());
  if (args.numel == 0) return args;
  drop_ones(args);
  sort_axes(args);
  merge_axes(args);
  return args;
}

bool overlaps(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  if (a.raw() == b.raw() && a.shape() == b.shape() && a.strides() == b.strides() && a.dtype() == b.dtype())
    return false;
  const auto [a_low, a_high] = extent(a);
  const auto [b_low, b_high] = extent(b);
  return a_low < b_high && b_low < a_high;
}

}  // namespace fastnn
