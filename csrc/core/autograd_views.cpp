// Views and in-place operations: how a write through one tensor reaches the history of another.
//
// A view remembers its base. A write into the base, or into any of its views, gives the base a new
// node and counts in `rewrites`; a view that is used after it makes its own node anew, as a strided
// window of the base.
#include <algorithm>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/reduce/reduce.h"

namespace fastnn {
namespace {

// A copy of `values` with the strides given, in memory of its own: windows of the original are then
// windows of the copy, at the same offsets from its first element.
Tensor copy_with_strides(const Tensor& values, const Dims& strides) {
  int64_t below = 0, above = 0;
  for (int axis = 0; axis < values.ndim(); ++axis) {
    const int64_t reach = strides[axis] * (values.shape()[axis] - 1);
    (reach < 0 ? below : above) += reach;
  }
  if (values.numel() == 0) below = above = 0;
  const Tensor memory = empty({above - below + 1}, values.dtype(), values.device());
  const Tensor copy = alias(memory, values.shape(), strides, -below);
  copy_into(copy, values);
  return copy;
}

}  // namespace

void refresh_view(const Tensor& x) {
  AutogradMeta* meta = x.impl()->autograd;
  if (!meta || !meta->base.defined()) return;
  AutogradMeta& base = autograd_meta(meta->base);
  if (base.rewrites == meta->base_rewrites) return;
  const Tensor root = meta->base;
  // x is this strided window of the base: its gradient, placed into zeros; what an expanded axis repeats adds up.
  auto backward = [root_shape = root.shape(), root_strides = root.strides(), shape = x.shape(), strides = x.strides(),
                   offset = x.offset() - root.offset()](Backward& b) {
    const Tensor dy = b.grad();
    const Tensor dx = copy_with_strides(zeros(root_shape, dy.dtype(), dy.device()), root_strides);
    Dims once = shape;
    for (int axis = 0; axis < once.size(); ++axis)
      if (strides[axis] == 0) once[axis] = std::min<int64_t>(once[axis], 1);
    const Tensor window = alias(dx, once, strides, dx.offset() + offset);
    check<RuntimeError>(
        !window.overlaps_itself(),
        "a view with overlapping windows was used after its base was changed in place; make the view again");
    copy_into(window, sum_to(dy, once));
    b.set(0, dx);
  };
  NodePtr node(new LambdaNode<decltype(backward)>("as_strided", Differentiable::No, backward));
  meta->base_rewrites = base.rewrites;
  x.impl()->requires_grad = root.requires_grad();
  if (!root.requires_grad()) {
    meta->node = NodePtr();
    return;
  }
  connect(node, {root}, &x, 1);
}

void remember_base(const Tensor& x, const Tensor& y) {
  AutogradMeta* from = x.impl()->autograd;
  AutogradMeta& meta = autograd_meta(y);
  meta.base = from && from->base.defined() ? from->base : x;
  meta.base_rewrites = autograd_meta(meta.base).rewrites;
}

void check_inplace(const char* name, const Tensor& x, TensorRefs others) {
  check_writable(name, x);
  if (!grad_enabled() || inference_mode()) return;
  AutogradMeta* meta = x.impl()->autograd;
  const Tensor& root = meta && meta->base.defined() ? meta->base : x;
  check<RuntimeError>(!(root.requires_grad() && is_leaf(root)), name,
                      ": a leaf tensor that requires grad, or a view of one, cannot be changed in place while "
                      "gradients are recorded; do it under no_grad()");
  check<RuntimeError>(!needs_grad(others) || x.is_floating(), name, ": a tensor of type ", x.dtype(),
                      " cannot take part in gradients");
}

void bump_version(const Tensor& x) { x.storage()->version.fetch_add(1, std::memory_order_relaxed); }

void connect_inplace(NodePtr node, const Tensor& x, TensorRefs inputs) {
  AutogradMeta* meta = x.impl()->autograd;
  if (!meta || !meta->base.defined()) {
    connect(std::move(node), inputs, &x, 1);
    ++autograd_meta(x).rewrites;
    return;
  }
  // x is a view: its base is what changed. The base's new node passes gradients through, except
  // that the window of x goes through the operation's own backward first.
  Tensor root = meta->base;
  node->inputs.reserve(inputs.size);
  for (size_t i = 0; i < inputs.size; ++i) node->inputs.push_back(i == 0 ? Edge() : edge_of(inputs[i]));
  node->outputs.push_back({x.shape(), x.dtype(), x.device(), nullptr});
  const size_t n_inputs = inputs.size;
  auto backward = [node, n_inputs, root_strides = root.strides(), shape = x.shape(), strides = x.strides(),
                   offset = x.offset() - root.offset()](Backward& b) {
    const Tensor droot = copy_with_strides(b.grad(), root_strides);
    const Tensor window = alias(droot, shape, strides, droot.offset() + offset);
    std::vector<Tensor> grads{clone(window)};
    Backward inner = b.nested(node.get(), grads);
    node->apply(inner);
    if (Tensor dx = inner.result(0); dx.defined())
      copy_into(window, dx);
    else
      fill_into(window, Scalar(0.0));
    b.set(0, droot);
    for (size_t i = 1; i < n_inputs; ++i)
      if (Tensor gradient = inner.result(i); gradient.defined()) b.set(uint32_t(i), gradient);
  };
  NodePtr outer(new LambdaNode<decltype(backward)>(node->name(), Differentiable::No, backward));
  std::vector<TensorRef> outer_inputs{root};
  for (size_t i = 1; i < inputs.size; ++i) outer_inputs.push_back(inputs[i]);
  connect(outer, outer_inputs, &root, 1);
  ++autograd_meta(root).rewrites;
  x.impl()->requires_grad = true;
  refresh_view(x);
}

}  // namespace fastnn
