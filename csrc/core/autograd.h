// Autograd: a tape of nodes, one per recorded operation, walked backwards by an iterative engine.
//
// An operation computes y, then hands `record` a lambda that is its backward:
//
//   Tensor y = empty_like(x);
//   sigmoid_forward(x.device(), {...});
//   return record("sigmoid", y, {x}, [sy = SavedOutput(y)](Backward& b) {
//     Tensor dx = empty_like(b.grad());
//     sigmoid_backward(dx.device(), {b.get(sy), b.grad(), dx ...});
//     b.set(0, dx);
//   });
//
// `record` does nothing but return y when grad mode is off or no input requires a gradient.
// Rules: save tensors only as Saved (inputs) or SavedOutput (results), never as plain Tensors: they
// carry the version, so that a change in place is found, and a result saved plainly would be a
// reference cycle. Skip work for inputs with !b.needs(i). A lambda written in differentiable
// operations says so (Differentiable::Yes); then create_graph=True works through it, else it raises.
// Every node has a sequence number larger than those of its inputs, so the engine only needs a map
// ordered by it: no counting pass, no recursion. Freeing a graph is iterative too.
//
// autograd.cpp is the tape, autograd_views.cpp what views and writes in place do to it, and
// autograd_engine.cpp the walk backwards. They are the one part of core that calls operations:
// gradients are added and copied by the kernels that add and copy everything else.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace fastnn {

class Node;
void release_node(Node* node);

class NodePtr {
 public:
  NodePtr() = default;
  explicit NodePtr(Node* node);
  NodePtr(const NodePtr& other);
  NodePtr(NodePtr&& other) noexcept : node_(other.node_) { other.node_ = nullptr; }
  NodePtr& operator=(NodePtr other) noexcept {
    std::swap(node_, other.node_);
    return *this;
  }
  ~NodePtr() {
    if (node_) release_node(node_);
  }
  Node* get() const { return node_; }
  Node* operator->() const { return node_; }
  explicit operator bool() const { return node_ != nullptr; }

 private:
  Node* node_ = nullptr;
};

// Where a gradient goes: output `index` of `node`, or, when node is null, the leaf's grad.
struct Edge {
  NodePtr node;
  Tensor leaf;
  uint32_t index = 0;
  bool defined() const { return node || leaf.defined(); }
};

// A function called with a gradient, returning its replacement or an undefined tensor.
class GradHook {
 public:
  virtual ~GradHook() = default;
  virtual Tensor operator()(const Tensor& grad) = 0;
};
struct Hook {
  int64_t id;
  uint32_t output;  // which output of the node; 0 on leaves
  std::shared_ptr<GradHook> function;
};

// What a tensor carries once autograd has touched it.
struct AutogradMeta {
  NodePtr node;                      // the operation that made this tensor; null on leaves
  uint32_t index = 0;                // which of the node's outputs
  Tensor grad;                       // of leaves
  std::shared_ptr<Tensor> retained;  // of results, after retain_grad(): the node fills it
  std::vector<Hook> hooks;           // of leaves; results keep theirs on the node
  Tensor base;                       // a differentiable view's base
  uint32_t base_rewrites = 0;        // the base's `rewrites` when this view's node was made
  uint32_t rewrites = 0;             // how often an in-place operation replaced the node
};

// A saved input: the tensor with its history, and its version at the time.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& x) : tensor_(x), version_(x.defined() ? x.version() : 0) {}

 private:
  friend class Backward;
  Tensor tensor_;
  uint32_t version_ = 0;
};

// A saved result: an alias without history, so that the graph does not hold itself.
class SavedOutput {
 public:
  SavedOutput() = default;
  explicit SavedOutput(const Tensor& y, uint32_t index = 0);

 private:
  friend class Backward;
  Tensor tensor_;
  uint32_t version_ = 0;
  uint32_t index_ = 0;
};

// What a backward lambda sees: the gradients of the outputs, the saved tensors, the wanted inputs.
class Backward {
 public:
  // The gradient of an output. Undefined gradients of a multi-output node come as zeros.
  Tensor grad(uint32_t output = 0);
  bool has_grad(uint32_t output) const { return grads_[output].defined(); }
  bool needs(uint32_t input) const;           // does this input want a gradient?
  void set(uint32_t input, Tensor gradient);  // its gradient, in the input's shape and dtype
  bool create_graph() const { return create_graph_; }

  // The saved tensor; throws RuntimeError naming the operation when it was changed in place.
  Tensor get(const Saved& saved) const;
  Tensor get(const SavedOutput& saved) const;

  // For the engine: what the lambda set, and the same pass on a node that stands inside another.
  Backward(Node* node, std::vector<Tensor>& grads, bool create_graph);
  Tensor result(size_t input) const { return results_[input]; }
  Backward nested(Node* node, std::vector<Tensor>& grads) const;

 private:
  Node* node_;
  std::vector<Tensor>& grads_;
  std::vector<Tensor> results_;
  bool create_graph_;
  bool nested_ = false;  // input 0 has no edge of its own, and still wants its gradient
};

enum class Differentiable : bool { No, Yes };

class Node {
 public:
  explicit Node(const char* name, Differentiable differentiable = Differentiable::No);
  virtual ~Node() = default;
  virtual void apply(Backward& backward) = 0;
  virtual void release_saved() = 0;  // drop what was saved; the node keeps its edges
  virtual const char* name() const { return name_; }

  struct Output {
    Dims shape;
    DType dtype;
    Device device;
    std::shared_ptr<Tensor> retained;
  };

  std::atomic<int32_t> references{0};
  const uint64_t sequence;
  const bool differentiable;
  bool released = false;
  std::vector<Edge> inputs;
  std::vector<Output> outputs;
  std::vector<Hook> hooks;
  std::shared_ptr<std::string> trace;  // where the operation was called, under detect_anomaly

 private:
  const char* name_;
};

template <class F>
class LambdaNode final : public Node {
 public:
  LambdaNode(const char* name, Differentiable differentiable, F backward)
      : Node(name, differentiable), backward_(std::move(backward)) {}
  void apply(Backward& b) override { (*backward_)(b); }
  void release_saved() override { backward_.reset(); }

 private:
  std::optional<F> backward_;
};

// A list of inputs without reference counting: {x, weight, bias}. Undefined tensors are allowed.
struct TensorRef {
  TensorRef(const Tensor& t) : tensor(&t) {}
  const Tensor* tensor;
};
struct TensorRefs {
  TensorRefs(std::initializer_list<TensorRef> list) : data(list.begin()), size(list.size()) {}
  TensorRefs(const std::vector<TensorRef>& list) : data(list.data()), size(list.size()) {}
  const Tensor& operator[](size_t i) const { return *data[i].tensor; }
  const TensorRef* data;
  size_t size;
};

// Grad mode, per thread.
bool grad_enabled();
void set_grad_enabled(bool enabled);
bool inference_mode();
void set_inference_mode(bool enabled);
class GradMode {
 public:
  explicit GradMode(bool enabled) : before_(grad_enabled()) { set_grad_enabled(enabled); }
  ~GradMode() { set_grad_enabled(before_); }
  GradMode(const GradMode&) = delete;
  GradMode& operator=(const GradMode&) = delete;

 private:
  bool before_;
};

// Will an operation on these inputs be recorded?
bool needs_grad(TensorRefs inputs);

// Connects the node to its inputs and outputs. record's non-template half.
void connect(NodePtr node, TensorRefs inputs, const Tensor* outputs, size_t n_outputs);

template <class F>
Tensor record(const char* name, Tensor y, TensorRefs inputs, F backward,
              Differentiable differentiable = Differentiable::No) {
  if (needs_grad(inputs)) connect(NodePtr(new LambdaNode<F>(name, differentiable, std::move(backward))), inputs, &y, 1);
  return y;
}

template <class F>
std::vector<Tensor> record(const char* name, std::vector<Tensor> ys, TensorRefs inputs, F backward,
                           Differentiable differentiable = Differentiable::No) {
  if (needs_grad(inputs))
    connect(NodePtr(new LambdaNode<F>(name, differentiable, std::move(backward))), inputs, ys.data(), ys.size());
  return ys;
}

// For an operation that has no backward: throws RuntimeError when an input requires a gradient.
void no_backward(const char* name, TensorRefs inputs);

// Views: like record, and y remembers its base, so that in-place operations on y reach x's history,
// and those on x reach y's. That holds for tensors without history too: a write may give them one.
void remember_base(const Tensor& x, const Tensor& y);
template <class F>
Tensor record_view(const char* name, Tensor y, const Tensor& x, F backward) {
  record(name, y, {x}, std::move(backward), Differentiable::Yes);
  if (x.is_floating()) remember_base(x, y);
  return y;
}

// In-place operations. Before the kernel: check_inplace (writable; not a leaf that requires grad).
// After it: record_inplace counts the version and, when recording, makes `x` the node's output;
// inputs[0] must be x itself as it was before.
void check_inplace(const char* name, const Tensor& x, TensorRefs others);
void bump_version(const Tensor& x);
void connect_inplace(NodePtr node, const Tensor& x, TensorRefs inputs);
template <class F>
Tensor record_inplace(const char* name, const Tensor& x, TensorRefs inputs, F backward,
                      Differentiable differentiable = Differentiable::No) {
  bump_version(x);
  if (needs_grad(inputs))
    connect_inplace(NodePtr(new LambdaNode<F>(name, differentiable, std::move(backward))), x, inputs);
  return x;
}

AutogradMeta& autograd_meta(const Tensor& x);  // makes it when absent
Edge edge_of(const Tensor& x);                 // where its gradient goes; undefined when it tracks none
void refresh_view(const Tensor& x);            // a view's node, made anew when its base's was replaced since
bool tracks_grad(const Tensor& x);             // requires_grad, brought up to date when x is a view
bool is_leaf(const Tensor& x);
NodePtr grad_node(const Tensor& x);  // refreshed when x is a view whose base changed in place
Tensor grad_of(const Tensor& x);
void set_grad(const Tensor& x, const Tensor& grad);
void set_requires_grad(const Tensor& x, bool requires_grad);
void retain_grad(const Tensor& x);
int64_t add_hook(const Tensor& x, std::shared_ptr<GradHook> function);
void remove_hook(const Tensor& x, int64_t id);

struct BackwardOptions {
  bool retain_graph = false;
  bool create_graph = false;
};
// Accumulates into the .grad of the leaves. grads[i] may be undefined when outputs[i] is a scalar.
void backward(const std::vector<Tensor>& outputs, const std::vector<Tensor>& grads, BackwardOptions options);
// Returns the gradients of `inputs` alone and leaves every .grad as it was. An input that was not
// reached gives an undefined tensor when allow_unused, else throws RuntimeError.
std::vector<Tensor> gradients(const std::vector<Tensor>& outputs, const std::vector<Tensor>& grads,
                              const std::vector<Tensor>& inputs, BackwardOptions options, bool allow_unused);

// detect_anomaly: gradients are searched for NaN after each node. The tracer gives the Python stack.
void set_anomaly_mode(bool enabled);
bool anomaly_mode();
extern std::string (*anomaly_tracer)();

}  // namespace fastnn
