// Optimizer steps: one call updates all tensors of a parameter group, in place, outside autograd.
//
//   p = shrink p                        decoupled weight decay: shrink = 1 - lr weight_decay
//   g = +-grad + weight_decay p         - to maximize
//   p = rule(p, g, states)              rules.h has the formulas
//
// Bytes: every tensor once in, parameters and states once out. All tensors are cut into chunks of
// kOptimChunk elements and one parallel region walks the table of chunks.
//
// Steps are counted by the host, one number for all parameters of a call; or on the GPU, one for each: then nothing
// of a step is fixed on the host, and a captured graph counts on from replay to replay.
#pragma once

#include <string>
#include <variant>
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
  float* step;     // its parameter's count, on the GPU; null: the host counts
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

struct Coefficients {
  double at[kMaxCoefficients];
};

struct UpdateArgs {
  OptimTable table;
  UpdateRule rule;
  double sign, shrink, weight_decay;
  Coefficients coefficients;  // as rules.h takes them; where the chunks have counts, as given (counted.h)
};
extern Kernel<UpdateArgs> optim_update;

// norm = (sum of |grad|^p)^(1/p), or the largest |grad| for p = infinity. partials: one number a chunk, for the kernel.
struct GradNormArgs {
  OptimTable table;
  double p;
  double *partials, *norm;
};
extern Kernel<GradNormArgs> optim_grad_norm;

// x *= max_norm / (norm + 1e-6), unless that is 1 or more.
struct ClipArgs {
  OptimTable table;  // of `param`
  double max_norm;
  const double* norm;
};
extern Kernel<ClipArgs> optim_clip;

struct UpdateOptions {
  double weight_decay = 0, shrink = 1;
  bool maximize = false;
};
// The count of the step to be taken, by the host; or the counts on the GPU, float32 and one a parameter, to each of
// which the step adds one.
using StepCount = std::variant<int64_t, std::vector<Tensor>>;
// One step by the rule of this name. states: one list of tensors for each state of the rule, each with one
// tensor a parameter; coefficients: as counted.h lists them.
void optimizer_step(const std::string& rule, const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                    const std::vector<std::vector<Tensor>>& states, const std::vector<double>& coefficients,
                    const UpdateOptions& options = {}, const StepCount& step = int64_t(1));

// The p-norm of all gradients as one vector; a 0-d tensor of their type (float32 when there are none).
Tensor grad_norm(const std::vector<Tensor>& grads, double p = 2);
// Scales the gradients so that their norm is at most max_norm; returns the norm before. On a GPU the host does not
// wait, unless it is to raise RuntimeError for a norm that is not finite.
Tensor clip_grad_norm_(const std::vector<Tensor>& grads, double max_norm, double p = 2,
                       bool error_if_nonfinite = false);

}  // namespace fastnn
