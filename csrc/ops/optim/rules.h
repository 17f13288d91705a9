// The update rules of the optimizers, one element at a time: they take the parameter p, its gradient g
// and its states (updated in place), and return the new parameter.
//
// Weight decay and the sign of the gradient come before every rule (see optim.h). What depends on the count of steps
// alone, such as Adam's bias corrections, is worked out by counted.h and arrives as a coefficient, in the order of the
// members. kCoefficients: how many the caller gives for them.
#pragma once

#include "ops/optim/optim.h"
#include "simd/math.h"

namespace fastnn {
namespace {

// Plain descent.
template <class T>
struct Descent {
  static constexpr int kStates = 0, kCoefficients = 1;
  T lr;
  FASTNN_HD explicit Descent(const double* c) : lr(T(c[0])) {}
  FASTNN_HD T operator()(T p, T g) const { return p - lr * g; }
};

// p moves a share of the way to g: what averaged models and soft targets do.
template <class T>
struct Average {
  static constexpr int kStates = 0, kCoefficients = 1;
  T share;
  FASTNN_HD explicit Average(const double* c) : share(T(c[0])) {}
  FASTNN_HD T operator()(T p, T g) const { return p + share * (g - p); }
};

// Polyak 1964; with `LooksAhead` the step looks ahead: Sutskever et al. 2013.
template <class T, bool LooksAhead>
struct Momentum {
  static constexpr int kStates = 1, kCoefficients = 4;
  T lr, momentum, kept, fresh;  // kept, fresh: the shares of the buffer and of g; 0 and 1 in the first step
  FASTNN_HD explicit Momentum(const double* c) : lr(T(c[0])), momentum(T(c[1])), kept(T(c[2])), fresh(T(c[3])) {}
  FASTNN_HD T operator()(T p, T g, T& buffer) const {
    buffer = kept * buffer + fresh * g;
    return p - lr * (LooksAhead ? g + momentum * buffer : buffer);
  }
};

// The moments that the Adam family shares.
template <class T>
struct Moments {
  T fresh1, beta2, fresh2;
  FASTNN_HD explicit Moments(const double* c) : fresh1(T(1 - c[0])), beta2(T(c[1])), fresh2(T(1 - c[1])) {}
  FASTNN_HD void operator()(T g, T& m, T& v) const {
    m += fresh1 * (g - m);
    v = beta2 * v + fresh2 * g * g;
  }
};

// Kingma and Ba 2015. step_size: lr / (1 - beta1^t); correction: sqrt(1 - beta2^t).
template <class T>
struct Adam {
  static constexpr int kStates = 2, kCoefficients = 4;
  Moments<T> moments;
  T step_size, correction, eps;
  FASTNN_HD explicit Adam(const double* c) : moments(c), step_size(T(c[2])), correction(T(c[3])), eps(T(c[4])) {}
  FASTNN_HD T operator()(T p, T g, T& m, T& v) const {
    moments(g, m, v);
    return p - step_size * (m / (sqrt_(v) / correction + eps));
  }
};

// Reddi et al. 2018: the largest v so far takes the place of v; NaN stays.
template <class T>
struct AmsGrad {
  static constexpr int kStates = 3, kCoefficients = 4;
  Adam<T> adam;
  FASTNN_HD explicit AmsGrad(const double* c) : adam(c) {}
  FASTNN_HD T operator()(T p, T g, T& m, T& v, T& largest) const {
    adam.moments(g, m, v);
    largest = largest > v || largest != largest ? largest : v;
    return p - adam.step_size * (m / (sqrt_(largest) / adam.correction + adam.eps));
  }
};

// Dozat 2016. of_g, of_m: the step sizes of the gradient and of its average.
template <class T>
struct NAdam {
  static constexpr int kStates = 2, kCoefficients = 5;
  Moments<T> moments;
  T of_g, of_m, correction, eps;
  FASTNN_HD explicit NAdam(const double* c)
      : moments(c), of_g(T(c[2])), of_m(T(c[3])), correction(T(c[4])), eps(T(c[5])) {}
  FASTNN_HD T operator()(T p, T g, T& m, T& v) const {
    moments(g, m, v);
    return p - (of_g * g + of_m * m) / (sqrt_(v) / correction + eps);
  }
};

// Liu et al. 2020. While the variance of v is not tractable, the step is the average alone; then step_size holds the
// rectification.
template <class T>
struct RAdam {
  static constexpr int kStates = 2, kCoefficients = 4;
  Moments<T> moments;
  T step_size;
  bool tractable;
  T eps;
  FASTNN_HD explicit RAdam(const double* c) : moments(c), step_size(T(c[2])), tractable(c[3] != 0), eps(T(c[4])) {}
  FASTNN_HD T operator()(T p, T g, T& m, T& v) const {
    moments(g, m, v);
    return p - step_size * (m / (tractable ? sqrt_(v) + eps : T(1)));
  }
};

// Adam with the infinity norm, Kingma and Ba 2015, algorithm 2.
template <class T>
struct Adamax {
  static constexpr int kStates = 2, kCoefficients = 4;
  T fresh1, beta2, step_size, eps;
  FASTNN_HD explicit Adamax(const double* c) : fresh1(T(1 - c[0])), beta2(T(c[1])), step_size(T(c[2])), eps(T(c[3])) {}
  FASTNN_HD T operator()(T p, T g, T& m, T& u) const {
    m += fresh1 * (g - m);
    const T size = fabs_(g) + eps;
    u *= beta2;
    u = size > u || size != size ? size : u;
    return p - step_size * (m / u);
  }
};

// Tieleman and Hinton 2012. States: the mean square, then the momentum buffer where used.
template <class T, bool WithMomentum>
struct RmsProp {
  static constexpr int kStates = 1 + WithMomentum, kCoefficients = 4;
  T alpha, fresh, lr, eps, momentum;
  FASTNN_HD explicit RmsProp(const double* c)
      : alpha(T(c[0])), fresh(T(1 - c[0])), lr(T(c[1])), eps(T(c[2])), momentum(T(c[3])) {}
  FASTNN_HD T operator()(T p, T g, T& v) const {
    v = alpha * v + fresh * g * g;
    return p - lr * (g / (sqrt_(v) + eps));
  }
  FASTNN_HD T operator()(T p, T g, T& v, T& buffer) const {
    v = alpha * v + fresh * g * g;
    buffer = momentum * buffer + g / (sqrt_(v) + eps);
    return p - lr * buffer;
  }
};

// The variance instead of the mean square: Graves 2013. States: the mean square, the mean, the buffer.
template <class T, bool WithMomentum>
struct CenteredRmsProp {
  static constexpr int kStates = 2 + WithMomentum, kCoefficients = 4;
  RmsProp<T, WithMomentum> plain;
  FASTNN_HD explicit CenteredRmsProp(const double* c) : plain(c) {}
  FASTNN_HD T scaled(T g, T& v, T& mean) const {
    v = plain.alpha * v + plain.fresh * g * g;
    mean += plain.fresh * (g - mean);
    return g / (sqrt_(v - mean * mean) + plain.eps);
  }
  FASTNN_HD T operator()(T p, T g, T& v, T& mean) const { return p - plain.lr * scaled(g, v, mean); }
  FASTNN_HD T operator()(T p, T g, T& v, T& mean, T& buffer) const {
    buffer = plain.momentum * buffer + scaled(g, v, mean);
    return p - plain.lr * buffer;
  }
};

// Duchi et al. 2011.
template <class T>
struct Adagrad {
  static constexpr int kStates = 1, kCoefficients = 3;
  T lr, eps;
  FASTNN_HD explicit Adagrad(const double* c) : lr(T(c[0])), eps(T(c[1])) {}
  FASTNN_HD T operator()(T p, T g, T& sum) const {
    sum += g * g;
    return p - lr * (g / (sqrt_(sum) + eps));
  }
};

// Zeiler 2012.
template <class T>
struct Adadelta {
  static constexpr int kStates = 2, kCoefficients = 3;
  T rho, fresh, lr, eps;
  FASTNN_HD explicit Adadelta(const double* c) : rho(T(c[0])), fresh(T(1 - c[0])), lr(T(c[1])), eps(T(c[2])) {}
  FASTNN_HD T operator()(T p, T g, T& v, T& deltas) const {
    v = rho * v + fresh * g * g;
    const T delta = sqrt_(deltas + eps) / sqrt_(v + eps) * g;
    deltas = rho * deltas + fresh * delta * delta;
    return p - lr * delta;
  }
};

// Chen et al. 2023: the sign of an average is the step; NaN stays.
template <class T>
struct Lion {
  static constexpr int kStates = 1, kCoefficients = 3;
  T beta1, fresh1, beta2, fresh2, lr;
  FASTNN_HD explicit Lion(const double* c)
      : beta1(T(c[0])), fresh1(T(1 - c[0])), beta2(T(c[1])), fresh2(T(1 - c[1])), lr(T(c[2])) {}
  FASTNN_HD T operator()(T p, T g, T& m) const {
    const T direction = beta1 * m + fresh1 * g;
    m = beta2 * m + fresh2 * g;
    const T sign = direction > T(0) ? T(1) : direction < T(0) ? T(-1) : direction;
    return p - lr * sign;
  }
};

template <class T>
using HeavyBall = Momentum<T, false>;
template <class T>
using Nesterov = Momentum<T, true>;
template <class T>
using PlainRmsProp = RmsProp<T, false>;
template <class T>
using MomentumRmsProp = RmsProp<T, true>;
template <class T>
using PlainCentered = CenteredRmsProp<T, false>;
template <class T>
using MomentumCentered = CenteredRmsProp<T, true>;

// ------------------------------------------------------------------------------- norms and clipping

FASTNN_HD inline double join_partials(double p, double a, double b) {
  if (p != INFINITY) return a + b;
  return b > a || b != b ? b : a;  // NaN stays
}
FASTNN_HD inline double norm_of_total(double p, double total) {
  return p == INFINITY ? total : p == 2 ? sqrt_(total) : pow_(total, 1 / p);
}
FASTNN_HD inline double clip_factor(double max_norm, double norm) {
  const double factor = max_norm / (norm + 1e-6);
  return factor >= 1 ? 1 : factor;  // NaN stays
}

// Calls use(rule) with the functor of a rule, made of its coefficients.
template <class T, class Use>
void with_rule(UpdateRule rule, const double* coefficients, const Use& use) {
  switch (rule) {
#define FASTNN_CASE(name, functor) \
  case UpdateRule::name: use(functor<T>(coefficients)); break;
    FASTNN_UPDATE_RULES(FASTNN_CASE)
#undef FASTNN_CASE
  }
}

}  // namespace
}  // namespace fastnn
