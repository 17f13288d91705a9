// The engine: walks the tape backwards, from the latest operation to the leaves.
#include <functional>
#include <map>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/reduce/reduce.h"

namespace fastnn {
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
