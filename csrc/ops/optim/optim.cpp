#include "ops/optim/optim.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"

namespace fastnn {

Kernel<SgdArgs> optim_sgd{"sgd_step"};
Kernel<AdamArgs> optim_adam{"adam_step"};
Kernel<GradNormArgs> optim_grad_norm{"grad_norm"};
Kernel<ScaleArgs> optim_scale{"scale_"};

namespace {

// Every element is met once by walking memory: contiguous in some order of the axes.
bool is_dense(const Tensor& x) { return x.is_contiguous() || empty_like(x).strides() == x.strides(); }

bool same_layout(const Tensor& a, const Tensor& b) {
  return a.strides() == b.strides() || (a.is_contiguous() && b.is_contiguous());
}

void check_tensor(const char* op, size_t i, const Tensor& x) {
  check<TypeError>(x.is_floating(), op, ": tensor ", i, " has type ", x.dtype(),
                   "; expected a floating-point tensor");
}

// What is written: dense, so that it can be walked as one row, and writable.
void check_updated(const char* op, size_t i, const Tensor& x) {
  check_tensor(op, i, x);
  check_writable(op, x);
  check(is_dense(x), op, ": tensor ", i, " of shape ", x.shape(), " and strides ", x.strides(),
        " has gaps in memory; optimize a contiguous tensor");
}

// The chunks of all tensors, and the copies that stand in for gradients of another layout.
class ChunkTable {
 public:
  ChunkTable(const char* op, const std::vector<Tensor>& params) : op_(op), params_(params) {}

  void check_params() const {
    for (size_t i = 0; i < params_.size(); ++i) {
      check_updated(op_, i, params_[i]);
      check_same_device(op_, params_[0], params_[i]);
    }
  }

  void add_gradients(const std::vector<Tensor>& grads) {
    check_count(grads, "gradients");
    for (size_t i = 0; i < grads.size(); ++i) {
      check_tensor(op_, i, grads[i]);
      check_like(i, grads[i], "gradient");
      if (same_layout(grads[i], params_[i])) {
        grads_.push_back(grads[i]);
      } else {
        grads_.push_back(empty_like(params_[i]));
        copy_into(grads_.back(), grads[i]);
      }
    }
  }

  void check_states(const std::vector<Tensor>& states, const char* what) const {
    check_count(states, what);
    for (size_t i = 0; i < states.size(); ++i) {
      check_like(i, states[i], what);
      check_writable(op_, states[i]);
      check(same_layout(states[i], params_[i]), op_, ": ", what, " ", i, " has strides ", states[i].strides(),
            ", but its parameter has ", params_[i].strides(), "; make it with empty_like or zeros_like");
    }
  }

  // states: up to three lists, empty where unused. Pointers stay valid while this table lives.
  OptimTable build(const std::vector<const std::vector<Tensor>*>& states) {
    int64_t total = 0;
    for (size_t i = 0; i < params_.size(); ++i) {
      total += params_[i].numel();
      for (int64_t begin = 0; begin < params_[i].numel(); begin += kOptimChunk) {
        const int64_t offset = begin * int64_t(params_[i].item_size());
        auto at = [&](const Tensor& x) { return static_cast<char*>(x.raw()) + offset; };
        OptimChunk chunk{};
        chunk.param = at(params_[i]);
        chunk.grad = grads_.empty() ? nullptr : at(grads_[i]);
        for (size_t k = 0; k < states.size(); ++k)
          if (!states[k]->empty()) chunk.state[k] = at((*states[k])[i]);
        chunk.n = std::min(kOptimChunk, params_[i].numel() - begin);
        chunk.dtype = params_[i].dtype();
        chunks_.push_back(chunk);
      }
    }
    // Pieces of about one full chunk, though many tensors are small.
    const int64_t n_chunks = int64_t(chunks_.size());
    const int64_t grain = total ? std::max<int64_t>(1, n_chunks * kOptimChunk / total) : 1;
    return {chunks_.data(), n_chunks, grain};
  }

  Device device() const { return params_.empty() ? Device{} : params_[0].device(); }

  void bump_versions(const std::vector<const std::vector<Tensor>*>& lists) const {
    for (const Tensor& x : params_) bump_version(x);
    for (const std::vector<Tensor>* list : lists)
      for (const Tensor& x : *list) bump_version(x);
  }

 private:
  void check_count(const std::vector<Tensor>& tensors, const char* what) const {
    check(tensors.size() == params_.size(), op_, ": expected one of the ", what, " for each of ", params_.size(),
          " parameters, got ", tensors.size());
  }

  void check_like(size_t i, const Tensor& x, const char* what) const {
    check(x.shape() == params_[i].shape(), op_, ": ", what, " ", i, " has shape ", x.shape(),
          ", but its parameter has ", params_[i].shape());
    check<TypeError>(x.dtype() == params_[i].dtype(), op_, ": ", what, " ", i, " has type ", x.dtype(),
                     ", but its parameter has ", params_[i].dtype());
    check_same_device(op_, params_[i], x);
  }

  const char* op_;
  const std::vector<Tensor>& params_;
  std::vector<Tensor> grads_;
  std::vector<OptimChunk> chunks_;
};

}  // namespace

void sgd_step(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
              const std::vector<Tensor>& momentum_buffers, const SgdOptions& options) {
  GradMode off(false);
  const bool has_momentum = options.momentum != 0;
  check(!options.nesterov || (options.momentum > 0 && options.dampening == 0),
        "sgd_step: nesterov needs a momentum > 0 and no dampening, got ", options.momentum, " and ",
        options.dampening);
  ChunkTable table("sgd_step", params);
  table.check_params();
  table.add_gradients(grads);
  if (has_momentum) table.check_states(momentum_buffers, "momentum buffers");
  const std::vector<Tensor> none;
  const std::vector<Tensor>& buffers = has_momentum ? momentum_buffers : none;
  optim_sgd(table.device(), {table.build({&buffers}), options.lr, options.momentum, options.dampening,
                             options.weight_decay, options.nesterov, options.maximize, options.first_step});
  table.bump_versions({&buffers});
}

void adam_step(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
               const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
               const std::vector<Tensor>& max_exp_avg_sqs, const AdamOptions& options) {
  GradMode off(false);
  check(options.step >= 1, "adam_step: expected a step of at least 1, got ", options.step);
  ChunkTable table("adam_step", params);
  table.check_params();
  table.add_gradients(grads);
  table.check_states(exp_avgs, "exp_avgs");
  table.check_states(exp_avg_sqs, "exp_avg_sqs");
  if (!max_exp_avg_sqs.empty()) table.check_states(max_exp_avg_sqs, "max_exp_avg_sqs");
  AdamArgs args{};
  args.table = table.build({&exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs});
  args.lr = options.lr;
  args.beta1 = options.beta1;
  args.beta2 = options.beta2;
  args.eps = options.eps;
  args.weight_decay = options.weight_decay;
  args.step_size = options.lr / (1 - std::pow(options.beta1, double(options.step)));
  args.bias_correction2_sqrt = std::sqrt(1 - std::pow(options.beta2, double(options.step)));
  args.decoupled = options.decoupled;
  args.maximize = options.maximize;
  optim_adam(table.device(), args);
  table.bump_versions({&exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs});
}

namespace {

// The norm, not yet rounded to the gradients' type.
struct Norm {
  double value;
  DType dtype;
  Device device;
  Tensor tensor() const { return scalar_tensor(Scalar(value), dtype, device); }
};

Norm norm_of(const char* op, const std::vector<Tensor>& grads, double p) {
  check(p > 0, op, ": expected p > 0, got ", p);
  GradMode off(false);
  std::vector<Tensor> dense;
  DType dtype = grads.empty() ? DType::Float32 : grads[0].dtype();
  for (size_t i = 0; i < grads.size(); ++i) {
    check_tensor(op, i, grads[i]);
    check_same_device(op, grads[0], grads[i]);
    dtype = promote(dtype, grads[i].dtype());
    dense.push_back(is_dense(grads[i]) ? grads[i] : contiguous(grads[i]));
  }
  ChunkTable table(op, dense);
  table.add_gradients(dense);
  const OptimTable chunks = table.build({});
  std::vector<double> partials(size_t(chunks.n_chunks), 0.0);
  optim_grad_norm(table.device(), {chunks, p, partials.data()});
  double total = 0;
  for (double partial : partials) {
    if (p != INFINITY) total += partial;
    else if (partial > total || partial != partial) total = partial;
  }
  if (p != INFINITY) total = p == 2 ? std::sqrt(total) : std::pow(total, 1 / p);
  return {total, dtype, table.device()};
}

}  // namespace

Tensor grad_norm(const std::vector<Tensor>& grads, double p) { return norm_of("grad_norm", grads, p).tensor(); }

void scale_(const std::vector<Tensor>& tensors, double factor) {
  GradMode off(false);
  ChunkTable table("scale_", tensors);
  table.check_params();
  optim_scale(table.device(), {table.build({}), factor});
  table.bump_versions({});
}

Tensor clip_grad_norm_(const std::vector<Tensor>& grads, double max_norm, double p, bool error_if_nonfinite) {
  const Norm norm = norm_of("clip_grad_norm_", grads, p);
  check<RuntimeError>(!error_if_nonfinite || std::isfinite(norm.value),
                      "clip_grad_norm_: the norm of the gradients is ", norm.value, ", so they cannot be clipped");
  const double factor = max_norm / (norm.value + 1e-6);
  if (!(factor >= 1)) scale_(grads, factor);
  return norm.tensor();
}

}  // namespace fastnn
