// Optimizer steps: one call updates all tensors of a parameter group, in place, outside autograd.
//
// SGD    g = grad (-grad to maximize) + weight_decay p
//        m = momentum m + (1 - dampening) g       (the first step: m = g)
//        p -= lr (nesterov ? g + momentum m : m)  (no momentum: p -= lr g)
// Adam   g = grad (-grad to maximize); decoupled: p *= 1 - lr weight_decay, else g += weight_decay p
//        m = m + (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g g
//        p -= lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
//        amsgrad: the largest v so far instead of v
//
// Bytes: every tensor once in, parameters and states once out. All tensors are cut into chunks of
// kOptimChunk elements and one parallel region walks the table of chunks.
#pragma once

#include <vector>

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

constexpr int64_t kOptimChunk = 16384;

// A piece of one parameter and what belongs to it: contiguous, n elements of one dtype.
struct OptimChunk {
  void* param;
  const void* grad;
  void* state[3];  // SGD: momentum; Adam: exp_avg, exp_avg_sq, max_exp_avg_sq; null where unused
  int64_t n;
  DType dtype;
};

struct OptimTable {
  const OptimChunk* chunks;
  int64_t n_chunks;
  int64_t grain;  // chunks of one parallel piece
};

struct SgdArgs {
  OptimTable table;
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first_step;
};
extern Kernel<SgdArgs> optim_sgd;

struct AdamArgs {
  OptimTable table;
  double lr, beta1, beta2, eps, weight_decay;
  double step_size;              // lr / (1 - beta1^step)
  double bias_correction2_sqrt;  // sqrt(1 - beta2^step)
  bool decoupled, maximize;
};
extern Kernel<AdamArgs> optim_adam;

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

struct SgdOptions {
  double lr;
  double momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false, maximize = false;
  bool first_step = false;  // the momentum buffers hold nothing yet
};
// momentum_buffers: empty when momentum is 0.
void sgd_step(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
              const std::vector<Tensor>& momentum_buffers, const SgdOptions& options);

struct AdamOptions {
  int64_t step;  // of this update, from 1
  double lr, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  bool decoupled = false;  // AdamW
  bool maximize = false;
};
// max_exp_avg_sqs: empty unless amsgrad.
void adam_step(const std::vector<Tensor>& params, const std::vector<Tensor>& grads, const std::vector<Tensor>& exp_avgs,
               const std::vector<Tensor>& exp_avg_sqs, const std::vector<Tensor>& max_exp_avg_sqs,
               const AdamOptions& options);

// The p-norm of all gradients as one vector; a 0-d tensor of their type (float32 when there are none).
Tensor grad_norm(const std::vector<Tensor>& grads, double p = 2);
void scale_(const std::vector<Tensor>& tensors, double factor);
// Scales the gradients so that their norm is at most max_norm; returns the norm before.
Tensor clip_grad_norm_(const std::vector<Tensor>& grads, double max_norm, double p = 2,
                       bool error_if_nonfinite = false);

}  // namespace fastnn
