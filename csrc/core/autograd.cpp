#include "core/autograd.h"

#include <algorithm>
#include <functional>
#include <map>

#include "core/kernel.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

// ------------------------------------------------------------------------- nodes and their lifetime

namespace {

std::atomic<uint64_t> next_sequence{1};
std::atomic<int64_t> next_hook{1};
thread_local bool grad_mode = true;
thread_local bool inference = false;
std::atomic<bool> anomaly{false};

}  // namespace

std::string (*anomaly_tracer)() = nullptr;

Node::Node(const char* name, Differentiable differentiable)
    : sequence(next_sequence.fetch_add(1, std::memory_order_relaxed)),
      differentiable(differentiable == Differentiable::Yes),
      name_(name) {}

NodePtr::NodePtr(Node* node) : node_(node) {
  if (node_) node_->references.fetch_add(1, std::memory_order_relaxed);
}
NodePtr::NodePtr(const NodePtr& other) : NodePtr(other.node_) {}

// A node's destructor drops the nodes below it. Those wait in a list instead of the stack, so that
// a chain of a million nodes is freed by a loop.
void release_node(Node* node) {
  if (node->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  thread_local std::vector<Node*>* pending = nullptr;
  if (pending) {
    pending->push_back(node);
    return;
  }
  std::vector<Node*> list{node};
  pending = &list;
  while (!list.empty()) {
    Node* next = list.back();
    list.pop_back();
    delete next;
  }
  pending = nullptr;
}

void free_autograd_meta(AutogradMeta* meta) { delete meta; }

AutogradMeta& autograd_meta(const Tensor& x) {
  if (!x.impl()->autograd) x.impl()->autograd = new AutogradMeta;
  return *x.impl()->autograd;
}

// ------------------------------------------------------------------------------------- grad mode

bool grad_enabled() { return grad_mode; }
void set_grad_enabled(bool enabled) { grad_mode = enabled; }
bool inference_mode() { return inference; }
void set_inference_mode(bool enabled) { inference = enabled; }
bool anomaly_mode() { return anomaly; }
void set_anomaly_mode(bool enabled) { anomaly = enabled; }

bool needs_grad(TensorRefs inputs) {
  if (!grad_mode || inference) return false;
  for (size_t i = 0; i < inputs.size; ++i)
    if (inputs[i].defined() && tracks_grad(inputs[i])) return true;
  return false;
}

void no_backward(const char* name, TensorRefs inputs) {
  check<RuntimeError>(!needs_grad(inputs), name,
                      ": has no backward, but an input requires grad; call it under no_grad() or on x.detach()");
}

// ------------------------------------------------------------------------------------- recording

bool is_leaf(const Tensor& x) { return !x.impl()->autograd || !x.impl()->autograd->node; }

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

// The view's node, made anew when an in-place operation has replaced its base's since.
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
    check<RuntimeError>(!window.overlaps_itself(),
                        "a view with overlapping windows was used after its base was "
                        "changed in place; make the view again");
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

Edge edge_of(const Tensor& x) {
  Edge edge;
  if (!x.defined() || !tracks_grad(x)) return edge;
  AutogradMeta* meta = x.impl()->autograd;
  if (meta && meta->node) {
    edge.node = meta->node;
    edge.index = meta->index;
  } else {
    edge.leaf = x;
  }
  return edge;
}

}  // namespace

bool tracks_grad(const Tensor& x) {
  if (x.impl()->autograd) refresh_view(x);
  return x.impl()->requires_grad;
}

NodePtr grad_node(const Tensor& x) {
  if (x.impl()->autograd) refresh_view(x);
  return x.impl()->autograd ? x.impl()->autograd->node : NodePtr();
}

void connect(NodePtr node, TensorRefs inputs, const Tensor* outputs, size_t n_outputs) {
  node->inputs.reserve(inputs.size);
  for (size_t i = 0; i < inputs.size; ++i) node->inputs.push_back(edge_of(inputs[i]));
  node->outputs.reserve(n_outputs);
  for (size_t i = 0; i < n_outputs; ++i) {
    const Tensor& y = outputs[i];
    node->outputs.push_back({y.shape(), y.dtype(), y.device(), nullptr});
    if (!y.is_floating()) continue;
    AutogradMeta& meta = autograd_meta(y);
    meta.node = node;
    meta.index = uint32_t(i);
    y.impl()->requires_grad = true;
  }
  if (anomaly && anomaly_tracer) node->trace = std::make_shared<std::string>(anomaly_tracer());
}

void remember_base(const Tensor& x, const Tensor& y) {
  AutogradMeta* from = x.impl()->autograd;
  AutogradMeta& meta = autograd_meta(y);
  meta.base = from && from->base.defined() ? from->base : x;
  meta.base_rewrites = autograd_meta(meta.base).rewrites;
}

void check_inplace(const char* name, const Tensor& x, TensorRefs others) {
  check_writable(name, x);
  if (!grad_mode || inference) return;
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

// ---------------------------------------------------------------------------- gradients of leaves

Tensor grad_of(const Tensor& x) {
  AutogradMeta* meta = x.impl()->autograd;
  if (!meta) return Tensor();
  return meta->retained ? *meta->retained : meta->grad;
}

void set_grad(const Tensor& x, const Tensor& grad) {
  if (grad.defined()) {
    check(grad.shape() == x.shape(), "grad: expected a gradient of shape ", x.shape(), ", got ", grad.shape());
    check<TypeError>(grad.dtype() == x.dtype(), "grad: expected a gradient of type ", x.dtype(), ", got ",
                     grad.dtype());
    check_same_device("grad", x, grad);
    autograd_meta(x);
  }
  AutogradMeta* meta = x.impl()->autograd;
  if (!meta) return;
  (meta->retained ? *meta->retained : meta->grad) = grad;
}

void set_requires_grad(const Tensor& x, bool requires_grad) {
  check<RuntimeError>(is_leaf(x), "requires_grad: can only be changed on leaf tensors; use x.detach()");
  check<RuntimeError>(!requires_grad || x.is_floating(),
                      "requires_grad: only floating-point tensors can require gradients, got ", x.dtype());
  x.impl()->requires_grad = requires_grad;
}

void retain_grad(const Tensor& x) {
  check<RuntimeError>(x.requires_grad(), "retain_grad: the tensor does not require grad");
  NodePtr node = grad_node(x);
  if (!node) return;
  AutogradMeta& meta = autograd_meta(x);
  if (meta.retained) return;
  meta.retained = std::make_shared<Tensor>();
  node->outputs[meta.index].retained = meta.retained;
}

int64_t add_hook(const Tensor& x, std::shared_ptr<GradHook> function) {
  check<RuntimeError>(x.requires_grad(), "register_hook: the tensor does not require grad");
  const int64_t id = next_hook.fetch_add(1);
  if (NodePtr node = grad_node(x))
    node->hooks.push_back({id, autograd_meta(x).index, std::move(function)});
  else
    autograd_meta(x).hooks.push_back({id, 0, std::move(function)});
  return id;
}

void remove_hook(const Tensor& x, int64_t id) {
  auto erase = [id](std::vector<Hook>& hooks) {
    hooks.erase(std::remove_if(hooks.begin(), hooks.end(), [id](const Hook& h) { return h.id == id; }), hooks.end());
  };
  if (NodePtr node = grad_node(x)) erase(node->hooks);
  if (x.impl()->autograd) erase(x.impl()->autograd->hooks);
}

// ----------------------------------------------------------------------------- saved and Backward

SavedOutput::SavedOutput(const Tensor& y, uint32_t index) : tensor_(detach(y)), version_(y.version()), index_(index) {}

Backward::Backward(Node* node, std::vector<Tensor>& grads, bool create_graph)
    : node_(node), grads_(grads), results_(node->inputs.size()), create_graph_(create_graph) {}

Tensor Backward::grad(uint32_t output) {
  if (!grads_[output].defined()) {
    const Node::Output& meta = node_->outputs[output];
    grads_[output] = zeros(meta.shape, meta.dtype, meta.device);
  }
  return grads_[output];
}

bool Backward::needs(uint32_t input) const { return node_->inputs[input].defined() || (nested_ && input == 0); }

void Backward::set(uint32_t input, Tensor gradient) { results_[input] = std::move(gradient); }

Backward Backward::nested(Node* node, std::vector<Tensor>& grads) const {
  Backward inner(node, grads, create_graph_);
  inner.nested_ = true;
  return inner;
}

namespace {

void check_version(const char* name, const Tensor& x, uint32_t version) {
  check<RuntimeError>(x.version() == version, name, ": a tensor of shape ", x.shape(),
                      " that its backward needs was changed in place after the forward (version ", x.version(),
                      ", expected ", version, "); change a clone instead");
}

}  // namespace

Tensor Backward::get(const Saved& saved) const {
  if (saved.tensor_.defined()) check_version(node_->name(), saved.tensor_, saved.version_);
  return saved.tensor_;
}

Tensor Backward::get(const SavedOutput& saved) const {
  check_version(node_->name(), saved.tensor_, saved.version_);
  if (!create_graph_) return saved.tensor_;
  Tensor y = detach(saved.tensor_);  // the result as it was: an output of this node
  AutogradMeta& meta = autograd_meta(y);
  meta.node = NodePtr(node_);
  meta.index = saved.index_;
  y.impl()->requires_grad = true;
  return y;
}

// ---------------------------------------------------------------------------------------- engine

namespace {

Tensor run_hooks(const std::vector<Hook>& hooks, uint32_t output, Tensor grad) {
  for (const Hook& hook : hooks) {
    if (hook.output != output) continue;
    Tensor replaced = (*hook.function)(grad);
    if (replaced.defined()) {
      check<RuntimeError>(replaced.shape() == grad.shape(), "a gradient hook returned shape ", replaced.shape(),
                          " for a gradient of shape ", grad.shape());
      grad = replaced;
    }
  }
  return grad;
}

bool has_nan(const Tensor& x) {
  GradMode off(false);
  return item(any(isnan(x))).to_bool();
}

}  // namespace

class Engine {
 public:
  Engine(BackwardOptions options, const std::vector<Tensor>* wanted) : options_(options) {
    if (!wanted) return;
    captured_.resize(wanted->size());
    for (size_t i = 0; i < wanted->size(); ++i) {
      const Edge edge = edge_of((*wanted)[i]);
      const void* key = edge.node ? static_cast<const void*>(edge.node.get()) : edge.leaf.impl();
      wanted_.push_back({key, edge.index, i});
    }
    capturing_ = true;
  }

  void start(const Tensor& output, Tensor grad) { deliver(edge_of(output), std::move(grad)); }

  void run() {
    GradMode mode(options_.create_graph);
    while (!ready_.empty()) {
      Pending pending = std::move(ready_.begin()->second);
      ready_.erase(ready_.begin());
      step(pending);
    }
    flush_leaves();
  }

  std::vector<Tensor>& captured() { return captured_; }

 private:
  struct Pending {
    NodePtr node;
    std::vector<Tensor> grads;
    std::vector<bool> owned;  // this engine made the buffer: accumulate in place
  };
  struct Wanted {
    const void* key;
    uint32_t index;
    size_t position;
  };
  struct Leaf {
    Tensor tensor, grad;
    bool owned = false;
  };

  void step(Pending& pending) {
    Node& node = *pending.node.get();
    check<RuntimeError>(!node.released, node.name(),
                        ": backward through this operation ran before and freed what it had saved; "
                        "pass retain_graph=True to the first backward to go through it again");
    for (uint32_t i = 0; i < pending.grads.size(); ++i) {
      Tensor& grad = pending.grads[i];
      if (!grad.defined()) continue;
      grad = run_hooks(node.hooks, i, grad);
      if (node.outputs[i].retained) *node.outputs[i].retained = grad;
      if (capturing_) capture(&node, i, grad);
    }
    check<RuntimeError>(!options_.create_graph || node.differentiable, node.name(),
                        ": its backward is a kernel of its own and cannot be differentiated again "
                        "(create_graph=True)");
    Backward backward(&node, pending.grads, options_.create_graph);
    node.apply(backward);
    if (anomaly_mode()) find_nan(node, backward);
    if (!options_.retain_graph) {
      node.release_saved();
      node.released = true;
    }
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      Tensor gradient = backward.result(i);
      if (!gradient.defined() || !node.inputs[i].defined()) continue;
      deliver(node.inputs[i], std::move(gradient));
    }
  }

  void deliver(const Edge& edge, Tensor grad) {
    if (edge.node) {
      Pending& pending = ready_[edge.node->sequence];
      if (!pending.node) {
        pending.node = edge.node;
        pending.grads.resize(edge.node->outputs.size());
        pending.owned.resize(edge.node->outputs.size());
      }
      bool owned = pending.owned[edge.index];
      accumulate(pending.grads[edge.index], owned, std::move(grad));
      pending.owned[edge.index] = owned;
    } else if (edge.leaf.defined()) {
      Leaf& leaf = leaves_[edge.leaf.impl()];
      leaf.tensor = edge.leaf;
      accumulate(leaf.grad, leaf.owned, std::move(grad));
    }
  }

  // The first gradient is kept as it comes, and may be shared with others; from the second on the
  // sum is this engine's own buffer and grows in place.
  void accumulate(Tensor& sum, bool& owned, Tensor grad) {
    if (!sum.defined()) {
      sum = std::move(grad);
      owned = false;
    } else if (owned && !options_.create_graph) {
      add_(sum, grad);
    } else {
      sum = add(sum, grad);
      owned = true;
    }
  }

  // Leaves get their sum once, at the end: hooks see the whole gradient, and it is added to .grad.
  void flush_leaves() {
    for (auto& [impl, leaf] : leaves_) {
      AutogradMeta& meta = autograd_meta(leaf.tensor);
      Tensor grad = run_hooks(meta.hooks, 0, leaf.grad);
      if (capturing_) {
        capture(impl, 0, grad);
        continue;
      }
      if (!meta.grad.defined()) {
        // Nobody else may hold the buffer that becomes .grad: optimizers write to it.
        const bool shared = grad.storage()->references.load() > 1 || grad.impl()->references.load() > 2;
        if (options_.create_graph)
          meta.grad = grad;
        else
          meta.grad = shared || !lies_like(grad, leaf.tensor) ? copy_like(grad, leaf.tensor) : detach(grad);
      } else if (options_.create_graph) {
        meta.grad = add(meta.grad, grad);
      } else {
        add_(meta.grad, grad);
      }
    }
  }

  // Optimizers walk a leaf and its gradient side by side: the gradient has the leaf's strides.
  static bool lies_like(const Tensor& grad, const Tensor& leaf) {
    return (grad.is_contiguous() && leaf.is_contiguous()) || (grad.is_dense() && grad.strides() == leaf.strides());
  }

  static Tensor copy_like(const Tensor& grad, const Tensor& leaf) {
    const Tensor copy = empty_like(leaf, grad.dtype());
    copy_into(copy, grad);
    return copy;
  }

  void capture(const void* key, uint32_t index, const Tensor& grad) {
    for (const Wanted& wanted : wanted_)
      if (wanted.key == key && wanted.index == index) captured_[wanted.position] = grad;
  }

  void find_nan(Node& node, Backward& backward) {
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      Tensor gradient = backward.result(i);
      if (!gradient.defined() || !has_nan(gradient)) continue;
      fail<RuntimeError>(node.name(), ": its backward returned NaN in the gradient of input ", i,
                         node.trace ? "; the operation was called at:\n" + *node.trace : std::string());
    }
  }

  const BackwardOptions options_;
  std::map<uint64_t, Pending, std::greater<uint64_t>> ready_;
  std::map<TensorImpl*, Leaf> leaves_;
  bool capturing_ = false;
  std::vector<Wanted> wanted_;
  std::vector<Tensor> captured_;
};

namespace {

void start_all(Engine& engine, const std::vector<Tensor>& outputs, const std::vector<Tensor>& grads) {
  check(outputs.size() == grads.size(), "backward: expected one gradient per output, got ", grads.size(), " for ",
        outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& y = outputs[i];
    check<RuntimeError>(y.requires_grad(), "backward: the tensor of shape ", y.shape(), " and type ", y.dtype(),
                        " does not require grad and was not made from one that does");
    Tensor grad = grads[i];
    if (!grad.defined()) {
      check<RuntimeError>(y.numel() == 1, "backward: ", grad_node(y) ? grad_node(y)->name() : "the leaf",
                          " gave a tensor of shape ", y.shape(),
                          "; without a gradient argument only a scalar can start a backward pass");
      grad = ones(y.shape(), y.dtype(), y.device());
    }
    check<RuntimeError>(grad.shape() == y.shape(), "backward: expected a gradient of shape ", y.shape(), ", got ",
                        grad.shape());
    if (grad.dtype() != y.dtype()) grad = to(grad, y.dtype());
    engine.start(y, grad);
  }
}

}  // namespace

void backward(const std::vector<Tensor>& outputs, const std::vector<Tensor>& grads, BackwardOptions options) {
  Engine engine(options, nullptr);
  start_all(engine, outputs, grads);
  engine.run();
}

std::vector<Tensor> gradients(const std::vector<Tensor>& outputs, const std::vector<Tensor>& grads,
                              const std::vector<Tensor>& inputs, BackwardOptions options, bool allow_unused) {
  for (size_t i = 0; i < inputs.size(); ++i)
    check<RuntimeError>(inputs[i].requires_grad(), "grad: input ", i, " does not require grad");
  Engine engine(options, &inputs);
  start_all(engine, outputs, grads);
  engine.run();
  for (size_t i = 0; i < inputs.size(); ++i)
    check<RuntimeError>(allow_unused || engine.captured()[i].defined(), "grad: input ", i, " of shape ",
                        inputs[i].shape(), " was not used to compute the outputs; pass allow_unused=True to get None");
  return engine.captured();
}

}  // namespace fastnn
