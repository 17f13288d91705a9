// Coefficients that depend on the count of steps t = 1, 2, ...: worked out in double, once a step, by whoever counts.
// The host does, or the GPU where the counts lie: then a captured graph counts on (optim.h).
//
//   rule            given by the caller           made of it, as rules.h takes them
//   adam, amsgrad   beta1, beta2, lr, eps         beta1, beta2, lr / (1 - beta1^t), sqrt(1 - beta2^t), eps
//   nadam           beta1, beta2, a, b, eps       beta1, beta2, a, b, sqrt(1 - beta2^t), eps
//   radam           beta1, beta2, lr, eps         beta1, beta2, step size, is the variance tractable?, eps
//   adamax          beta1, beta2, lr, eps         beta1, beta2, lr / (1 - beta1^t), eps
//   adagrad         lr, lr_decay, eps             lr / (1 + (t - 1) lr_decay), eps
//   others          as they are
#pragma once

#include "ops/optim/optim.h"
#include "simd/math.h"

namespace fastnn {
namespace {

// Liu et al. 2020, algorithm 2: the average that v is grows to a length of 2 / (1 - beta2) - 1; above 5 the variance of
// its step is tractable, and rectified.
FASTNN_HD inline void count_radam(double beta2, double t, double& step_size, double& tractable) {
  const double correction2 = 1 - pow_(beta2, t), longest = 2 / (1 - beta2) - 1;
  const double length = longest - 2 * t * pow_(beta2, t) / correction2;
  tractable = length > 5;
  if (!(length > 5)) return;
  const double rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length);
  step_size *= sqrt_(rectified * correction2);
}

FASTNN_HD inline Coefficients counted(UpdateRule rule, const Coefficients& given, double t) {
  const double* c = given.at;
  switch (rule) {
    case UpdateRule::adam:
    case UpdateRule::amsgrad: return {{c[0], c[1], c[2] / (1 - pow_(c[0], t)), sqrt_(1 - pow_(c[1], t)), c[3]}};
    case UpdateRule::nadam: return {{c[0], c[1], c[2], c[3], sqrt_(1 - pow_(c[1], t)), c[4]}};
    case UpdateRule::radam: {
      Coefficients made{{c[0], c[1], c[2] / (1 - pow_(c[0], t)), 0, c[3]}};
      count_radam(c[1], t, made.at[2], made.at[3]);
      return made;
    }
    case UpdateRule::adamax: return {{c[0], c[1], c[2] / (1 - pow_(c[0], t)), c[3]}};
    case UpdateRule::adagrad: return {{c[0] / (1 + (t - 1) * c[1]), c[2]}};
    default: return given;
  }
}

}  // namespace
}  // namespace fastnn
