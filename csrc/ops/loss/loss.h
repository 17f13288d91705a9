// Losses: cross-entropy on logits, negative log likelihood, and the elementwise ones.
//
// reduction: "none", "mean" or "sum". The mean of an empty batch is NaN, as in PyTorch. Sums are taken in
// float64 in a fixed order, so that they are bit-equal for any thread count.
#pragma once

#include <string>

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

enum class Reduction : uint8_t { None, Mean, Sum };
Reduction parse_reduction(const char* op, const std::string& text);  // throws ValueError for anything else

// ----------------------------------------------------------------------------- over classes
//
// Row i of the logits x has the class weights T (the target's distribution times the weights):
//   labels         T_c = (1 - s) w_t [c = t] + s w_c / C        t = labels[i]; T = 0 where t = ignore_index
//   probabilities  T_c = w_c ((1 - s) p_c + s / C)
//   loss_i = -sum_c T_c log_softmax(x)_c                        dx_c = (softmax(x)_c sum T - T_c) dloss_i
// with s = label_smoothing. The mean divides by the sum of w_t over labels, by the rows for probabilities.
//
// x, probabilities and dx are (rows, classes), contiguous in `dtype`; the rest is in the compute type.
struct CrossEntropyArgs {
  DType dtype;
  Reduction reduction;
  const void* x;
  const int64_t* labels;      // (rows), or null
  const void* probabilities;  // (rows, classes), or null
  const void* weight;         // (classes), or null
  int64_t rows, classes;
  int64_t ignore_index;
  double label_smoothing;
  void* stats;           // (rows, 2): the row's maximum and log sum exp(x - maximum), saved for backward
  void* losses;          // (rows)
  double* total_weight;  // what the mean divides by, saved for backward
  void* result;          // the reduced loss in `dtype`; null for Reduction::None
  int64_t* bad_row;      // the first row whose label is out of range, or -1. Such a row counts as ignored on a GPU,
                         // whose error comes later (core/found.h); on the CPU nothing else is written
  const void* dy;        // backward: the gradient of `losses` (None) or of `result`, in `dtype`
  void* dx;
};
extern Kernel<CrossEntropyArgs> cross_entropy_forward;
extern Kernel<CrossEntropyArgs> cross_entropy_backward;
// The same for x that holds log probabilities: loss_i = -w_t x_t. Labels only; stats is not used.
extern Kernel<CrossEntropyArgs> nll_loss_forward;
extern Kernel<CrossEntropyArgs> nll_loss_backward;

// input (N, C), (C,) or (N, C, d1, ...). target: integer class labels of the shape without C, or
// floating probabilities of the input's shape. weight (C,) may be undefined.
Tensor cross_entropy(const Tensor& input, const Tensor& target, const Tensor& weight, int64_t ignore_index,
                     const std::string& reduction, double label_smoothing);
Tensor nll_loss(const Tensor& input, const Tensor& target, const Tensor& weight, int64_t ignore_index,
                const std::string& reduction);

// cross_entropy(linear(input, weight, bias), target) for input (..., H), weight (C, H), bias (C,) or undefined, and
// integer labels (...), without the logits: rows go through in chunks of `chunk` (0: about 2^23 logits), of which one
// is in memory. For "mean" and "sum" the forward computes the gradients too, where one is needed, and saves them; for
// "none" the backward computes the logits again. Without double backward.
Tensor linear_cross_entropy(const Tensor& input, const Tensor& weight, const Tensor& target, const Tensor& bias,
                            int64_t ignore_index, const std::string& reduction, double label_smoothing, int64_t chunk);

// ------------------------------------------------------------------------------ elementwise

// X(name, functor): value f(x, t, a) of the input, the target, and a parameter; see element_functors.h.
#define FASTNN_ELEMENT_LOSSES(X) \
  X(mse, MseLoss)                \
  X(l1, L1Loss)                  \
  X(smooth_l1, SmoothL1Loss)     \
  X(huber, HuberLoss)            \
  X(bce, BceLoss) X(bce_with_logits, BceWithLogitsLoss) X(kl_div, KlDivLoss) X(kl_div_log, KlDivLogLoss)

enum class ElementLoss : uint8_t {
#define FASTNN_ENUM(name, Functor) name,
  FASTNN_ELEMENT_LOSSES(FASTNN_ENUM)
#undef FASTNN_ENUM
};

constexpr int64_t kElementLossGrain = 16384;  // elements of a chunk, each with its partial sum

// values[i] = weight[i] f(input[i], target[i], a[i]); result = scale * their sum. All contiguous in `dtype`.
struct ElementLossArgs {
  ElementLoss loss;
  DType dtype;
  int64_t n;
  const void* input;
  const void* target;
  const void* weight;  // null means 1
  const void* a;       // null means the number a_number
  double a_number;
  double scale;          // 1 / divisor of the reduction
  void* values;          // Reduction::None, else null
  void* result;          // the reduced loss, else null
  double* partial_sums;  // ceil(n / kElementLossGrain) numbers of workspace
  const void* dy;        // backward: one number per element (values), or one (result)
  bool dy_per_element;
  void* d_input;  // backward; null when not wanted
  void* d_target;
};
extern Kernel<ElementLossArgs> element_loss_forward;
extern Kernel<ElementLossArgs> element_loss_backward;

// Shapes must be equal: (N, 1) against (N,) raises. Weights broadcast to the input.
Tensor mse_loss(const Tensor& input, const Tensor& target, const std::string& reduction);
Tensor l1_loss(const Tensor& input, const Tensor& target, const std::string& reduction);
Tensor smooth_l1_loss(const Tensor& input, const Tensor& target, const std::string& reduction, double beta);
Tensor huber_loss(const Tensor& input, const Tensor& target, const std::string& reduction, double delta);
Tensor binary_cross_entropy(const Tensor& input, const Tensor& target, const Tensor& weight,
                            const std::string& reduction);
Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target, const Tensor& weight,
                                        const std::string& reduction, const Tensor& pos_weight);
// reduction may also be "batchmean".
Tensor kl_div(const Tensor& input, const Tensor& target, const std::string& reduction, bool log_target);

}  // namespace fastnn
