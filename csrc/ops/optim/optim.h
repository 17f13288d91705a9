// Optimizer steps: one call updates all tensors of a parameter group, in place, outside autograd.
//
//   p = shrink p                        decoupled weight decay: shrink = 1 - lr weight_decay
//   g = +-grad + weight_decay p         - to maximize
//   p = rule(p, g, states)              rules.h has the formulas
//
// Bytes: every tensor once in, parameters and states once out. All tensors are cut into chunks of
// kOptimChunk elements and one parallel region walks the table of chunks.
#pragma once

#include <string>
#include <vector>

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

constexpr int64_t kOptimChunk = 16384;

// A piece of one parameter and what belongs to it: contiguous, n elements of one dtype.
struct OptimChunk {
  void* param;
  const void* grad;
  void* state[3];  // null where unused
  int64_t n;
  DType dtype;
};

struct OptimTable {
  const OptimChunk* chunks;
  int64_t n_chunks;
  int64_t grain;  // chunks of one parallel piece
};

// RULE(name, functor of rules.h): the rules by the names under which Python asks for them.
#define FASTNN_UPDATE_RULES(RULE)                   \
  RULE(descent, Descent)                            \
  RULE(average, Average)                            \
  RULE(momentum, HeavyBall)                         \
  RULE(nesterov, Nesterov)                          \
  RULE(adam, Adam)                                  \
  RULE(amsgrad, AmsGrad)                            \
  RULE(nadam, NAdam)                                \
  RULE(radam, RAdam)                                \
  RULE(radam_start, RAdamStart)                     \
  RULE(adamax, Adamax)                              \
  RULE(rmsprop, PlainRmsProp)                       \
  RULE(rmsprop_momentum, MomentumRmsProp)           \
  RULE(rmsprop_centered, PlainCentered)             \
  RULE(rmsprop_centered_momentum, MomentumCentered) \
  RULE(adagrad, Adagrad)                            \
  RULE(adadelta, Adadelta)                          \
  RULE(lion, Lion)

enum class UpdateRule {
#define FASTNN_NAME(name, functor) name,
  FASTNN_UPDATE_RULES(FASTNN_NAME)
#undef FASTNN_NAME
};

constexpr int kMaxCoefficients = 6;

struct UpdateArgs {
  OptimTable table;
  UpdateRule rule;
  double sign, shrink, weight_decay;
  double coefficients[kMaxCoefficients];
};
extern Kernel<UpdateArgs> optim_update;

// partials[chunk] = sum of |grad|^p, or the largest |grad| for p = infinity (float64).
struct GradNormArgs {
  OptimTable table;
  double p;
  double* partials;
};
extern Kernel<GradNormArgs> optim_grad_norm;

struct ScaleArgs {
  OptimTable table;  // of `param`
  double factor;
};
extern Kernel<ScaleArgs> optim_scale;

struct UpdateOptions {
  double weight_decay = 0, shrink = 1;
  bool maximize = false;
};
// One step by the rule of this name. states: one list of tensors for each state of the rule, each with one
// tensor a parameter; coefficients: as rules.h lists them.
void optimizer_step(const std::string& rule, const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                    const std::vector<std::vector<Tensor>>& states, const std::vector<double>& coefficients,
                    const UpdateOptions& options = {});

// The p-norm of all gradients as one vector; a 0-d tensor of their type (float32 when there are none).
Tensor grad_norm(const std::vector<Tensor>& grads, double p = 2);
void scale_(const std::vector<Tensor>& tensors, double factor);
// Scales the gradients so that their norm is at most max_norm; returns the norm before.
Tensor clip_grad_norm_(const std::vector<Tensor>& grads, double max_norm, double p = 2,
                       bool error_if_nonfinite = false);

}  // namespace fastnn
