// The tape: nodes and their lifetime, grad mode, recording, what a leaf holds, what a backward reads.
#include "core/autograd.h"

#include <algorithm>

#include "ops/copy/create.h"
#include "ops/copy/view.h"

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

}  // namespace fastnn
