#include "ops/optim/optim.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/optim/counted.h"
#include "ops/optim/rules.h"

namespace fastnn {

Kernel<UpdateArgs> optim_update{"optimizer_step"};
Kernel<GradNormArgs> optim_grad_norm{"grad_norm"};
Kernel<ClipArgs> optim_clip{"clip_grad_norm_"};

namespace {

bool same_layout(const Tensor& a, const Tensor& b) {
  return a.strides() == b.strides() || (a.is_contiguous() && b.is_contiguous());
}

void check_tensor(const char* op, size_t i, const Tensor& x) {
  check<TypeError>(x.is_floating(), op, ": tensor ", i, " has type ", x.dtype(), "; expected a floating-point tensor");
}

// The tensors of one call, cut into chunks. A chunk is one run of memory in all its tensors, so a
// tensor with gaps, or laid out unlike its parameter, is worked on as a copy; `finish` brings what
// was written back.
class ChunkTable {
 public:
  enum class Access { Read, Write };

  ChunkTable(const char* op, const std::vector<Tensor>& params, Access access) : op_(op) {
    for (size_t i = 0; i < params.size(); ++i) {
      check_tensor(op_, i, params[i]);
      check_same_device(op_, params[0], params[i]);
      if (access == Access::Write) check_writable(op_, params[i]);
      params_.push_back(params[i].is_dense() ? params[i] : copy_of(params[i], empty_like(params[i]), access));
      written_.push_back(params[i]);
    }
  }

  // One tensor of a kind for each parameter, or none.
  std::vector<Tensor> add(const std::vector<Tensor>& tensors, const char* what, Access access) {
    check(tensors.size() == params_.size(), op_, ": expected ", params_.size(), " ", what, ", one a parameter, got ",
          tensors.size());
    std::vector<Tensor> rows;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const Tensor &x = tensors[i], &param = params_[i];
      check(x.shape() == param.shape(), op_, ": ", what, "[", i, "] has shape ", x.shape(), ", but its parameter has ",
            param.shape());
      check<TypeError>(x.dtype() == param.dtype(), op_, ": ", what, "[", i, "] has type ", x.dtype(),
                       ", but its parameter has ", param.dtype());
      check_same_device(op_, param, x);
      if (access == Access::Write) {
        check_writable(op_, x);
        written_.push_back(x);
      }
      rows.push_back(same_layout(x, param) ? x : copy_of(x, empty_like(param), access));
    }
    return rows;
  }

  // The counts of steps, one for each parameter. They are written to.
  void add_counts(const std::vector<Tensor>& counts) {
    check(counts.size() == params_.size(), op_, ": expected ", params_.size(),
          " counts of steps, one a parameter, got ", counts.size());
    for (size_t i = 0; i < counts.size(); ++i) {
      const Tensor& count = counts[i];
      check(count.ndim() == 0 && count.dtype() == DType::Float32, op_, ": step[", i, "] has shape ", count.shape(),
            " and type ", count.dtype(), "; expected one float32 number");
      check<DeviceError>(count.device().is_cuda(), op_, ": step[", i, "] is on ", count.device(),
                         "; counts that are tensors are kept on a GPU");
      check_same_device(op_, params_[i], count);
      check_writable(op_, count);
      written_.push_back(count);
    }
    counts_ = counts;
  }

  // grads and up to three lists of states, or none. Valid while the tensors and this live.
  OptimTable build(const std::vector<Tensor>& grads, const std::vector<std::vector<Tensor>>& states = {}) {
    int64_t total = 0;
    for (size_t i = 0; i < params_.size(); ++i) {
      total += params_[i].numel();
      for (int64_t begin = 0; begin < params_[i].numel(); begin += kOptimChunk) {
        const int64_t offset = begin * int64_t(params_[i].item_size());
        auto at = [&](const Tensor& x) { return static_cast<char*>(x.raw()) + offset; };
        OptimChunk chunk{};
        chunk.param = at(params_[i]);
        chunk.grad = grads.empty() ? nullptr : at(grads[i]);
        for (size_t k = 0; k < states.size(); ++k) chunk.state[k] = at(states[k][i]);
        chunk.step = counts_.empty() ? nullptr : counts_[i].data<float>();
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

  void finish() const {
    for (const auto& [x, copy] : copies_) copy_into(x, copy);
    for (const Tensor& x : written_) bump_version(x);
  }

  Device device() const { return params_.empty() ? Device{} : params_[0].device(); }
  const std::vector<Tensor>& params() const { return params_; }

 private:
  Tensor copy_of(const Tensor& x, const Tensor& copy, Access access) {
    copy_into(copy, x);
    if (access == Access::Write) copies_.emplace_back(x, copy);
    return copy;
  }

  const char* op_;
  std::vector<Tensor> params_;  // dense
  std::vector<Tensor> written_, counts_;
  std::vector<std::pair<Tensor, Tensor>> copies_;
  std::vector<OptimChunk> chunks_;
};

using Access = ChunkTable::Access;

struct RuleInfo {
  const char* name;
  UpdateRule rule;
  size_t states, coefficients;
};
constexpr RuleInfo kRules[] = {
#define FASTNN_INFO(name, functor) {#name, UpdateRule::name, functor<double>::kStates, functor<double>::kCoefficients},
    FASTNN_UPDATE_RULES(FASTNN_INFO)
#undef FASTNN_INFO
};

const RuleInfo& rule_named(const std::string& name) {
  for (const RuleInfo& info : kRules)
    if (name == info.name) return info;
  fail("optimizer_step: there is no rule '", name, "'");
}

}  // namespace

void optimizer_step(const std::string& rule, const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                    const std::vector<std::vector<Tensor>>& states, const std::vector<double>& coefficients,
                    const UpdateOptions& options, const StepCount& step) {
  GradMode off(false);
  const RuleInfo& info = rule_named(rule);
  check(states.size() == info.states, "optimizer_step: '", rule, "' has ", info.states, " states a parameter, got ",
        states.size());
  check(coefficients.size() == info.coefficients, "optimizer_step: '", rule, "' has ", info.coefficients,
        " coefficients, got ", coefficients.size());
  ChunkTable table("optimizer_step", params, Access::Write);
  const std::vector<Tensor> gradients = table.add(grads, "grads", Access::Read);
  std::vector<std::vector<Tensor>> rows;
  for (const std::vector<Tensor>& state : states) rows.push_back(table.add(state, "states", Access::Write));
  UpdateArgs args{};
  args.rule = info.rule;
  args.sign = options.maximize ? -1 : 1;
  args.shrink = options.shrink;
  args.weight_decay = options.weight_decay;
  std::copy(coefficients.begin(), coefficients.end(), args.coefficients.at);
  if (const auto* counts = std::get_if<std::vector<Tensor>>(&step)) {
    table.add_counts(*counts);
  } else {
    const int64_t count = std::get<int64_t>(step);
    check(count >= 1, "optimizer_step: steps count from 1, got ", count);
    args.coefficients = counted(info.rule, args.coefficients, double(count));
  }
  args.table = table.build(gradients, rows);
  optim_update(table.device(), args);
  table.finish();
}

namespace {

// A float64 number on the gradients' device.
Tensor norm_of(const char* op, const std::vector<Tensor>& grads, double p) {
  check(p > 0, op, ": expected p > 0, got ", p);
  ChunkTable table(op, grads, Access::Read);
  const OptimTable chunks = table.build(table.params());
  const Tensor partials = empty({chunks.n_chunks}, DType::Float64, table.device());
  const Tensor norm = empty({}, DType::Float64, table.device());
  optim_grad_norm(table.device(), {chunks, p, partials.data<double>(), norm.data<double>()});
  return norm;
}

Tensor rounded(const Tensor& norm, const std::vector<Tensor>& grads) {
  DType dtype = grads.empty() ? DType::Float32 : grads[0].dtype();
  for (const Tensor& x : grads) dtype = promote(dtype, x.dtype());
  return to(norm, dtype);
}

}  // namespace

Tensor grad_norm(const std::vector<Tensor>& grads, double p) {
  GradMode off(false);
  return rounded(norm_of("grad_norm", grads, p), grads);
}

Tensor clip_grad_norm_(const std::vector<Tensor>& grads, double max_norm, double p, bool error_if_nonfinite) {
  GradMode off(false);
  const Tensor norm = norm_of("clip_grad_norm_", grads, p);
  if (error_if_nonfinite) {
    const double value = item(norm).to_double();
    check<RuntimeError>(std::isfinite(value), "clip_grad_norm_: the norm of the gradients is ", value,
                        ", so they cannot be clipped");
  }
  ChunkTable table("clip_grad_norm_", grads, Access::Write);
  optim_clip(table.device(), {table.build({}), max_norm, norm.data<double>()});
  table.finish();
  return rounded(norm, grads);
}

}  // namespace fastnn
