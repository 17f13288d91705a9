// The formulas of elementwise losses, for CPU levels and for CUDA: one functor a loss, with its value and its
// derivatives by the input x and by the target t. `a` is the loss's parameter: beta, delta or the weight of positives.
#pragma once

#include "simd/math.h"

namespace fastnn {
namespace {

template <class T>
FASTNN_HD T sign_of(T d) {
  return d > T(0) ? T(1) : (d < T(0) ? T(-1) : d);  // NaN stays
}

// For losses of the difference x - t, whose two derivatives are opposite.
#define FASTNN_DIFFERENCE_LOSS(value_of_d, slope_of_d) \
  template <class T>                                   \
  FASTNN_HD static T value(T x, T t, T a) {            \
    const T d = x - t;                                 \
    (void)a;                                           \
    return value_of_d;                                 \
  }                                                    \
  template <class T>                                   \
  FASTNN_HD static T d_input(T x, T t, T a) {          \
    const T d = x - t;                                 \
    (void)a;                                           \
    return slope_of_d;                                 \
  }                                                    \
  template <class T>                                   \
  FASTNN_HD static T d_target(T x, T t, T a) {         \
    return -d_input(x, t, a);                          \
  }

struct MseLoss {
  FASTNN_DIFFERENCE_LOSS(d* d, T(2) * d)
};
struct L1Loss {
  FASTNN_DIFFERENCE_LOSS(fabs_(d), sign_of(d))
};
struct SmoothL1Loss {  // a = beta
  FASTNN_DIFFERENCE_LOSS(fabs_(d) < a ? T(0.5) * d * d / a : fabs_(d) - T(0.5) * a, fabs_(d) < a ? d / a : sign_of(d))
};
struct HuberLoss {  // a = delta
  FASTNN_DIFFERENCE_LOSS(fabs_(d) <= a ? T(0.5) * d * d : a * (fabs_(d) - T(0.5) * a),
                         fabs_(d) <= a ? d : a * sign_of(d))
};
#undef FASTNN_DIFFERENCE_LOSS

#define FASTNN_VALUE \
  template <class T> \
  FASTNN_HD static T value(T x, T t, T a)
#define FASTNN_D_INPUT \
  template <class T>   \
  FASTNN_HD static T d_input(T x, T t, T a)
#define FASTNN_D_TARGET \
  template <class T>    \
  FASTNN_HD static T d_target(T x, T t, T a)

// Logarithms are cut off at -100, so that a probability of exactly 0 or 1 has a finite loss.
template <class T>
FASTNN_HD T log_clamped(T x) {
  const T y = log_(x);
  return y < T(-100) ? T(-100) : y;
}
template <class T>
FASTNN_HD T log_complement_clamped(T x) {
  const T y = log1p_(-x);
  return y < T(-100) ? T(-100) : y;
}
struct BceLoss {
  FASTNN_VALUE { return (void)a, (t - T(1)) * log_complement_clamped(x) - t * log_clamped(x); }
  FASTNN_D_INPUT {
    (void)a;
    const T variance = (T(1) - x) * x;
    return (x - t) / (variance < T(1e-12) ? T(1e-12) : variance);
  }
  FASTNN_D_TARGET { return (void)t, (void)a, log_complement_clamped(x) - log_clamped(x); }
};

// log(1 + e^-x), which never overflows.
template <class T>
FASTNN_HD T softplus_of_minus(T x) {
  return log1p_(exp_(-fabs_(x))) + (x < T(0) ? -x : T(0));
}
struct BceWithLogitsLoss {  // a = pos_weight
  FASTNN_VALUE { return (T(1) - t) * x + (T(1) + (a - T(1)) * t) * softplus_of_minus(x); }
  FASTNN_D_INPUT { return (a * t + T(1) - t) * sigmoid_(x) - a * t; }
  FASTNN_D_TARGET { return (void)t, (a - T(1)) * softplus_of_minus(x) - x; }
};

struct KlDivLoss {
  FASTNN_VALUE { return (void)a, (t == T(0) ? T(0) : t * log_(t)) - t * x; }
  FASTNN_D_INPUT { return (void)x, (void)a, -t; }
  FASTNN_D_TARGET { return (void)a, log_(t) + T(1) - x; }
};
struct KlDivLogLoss {
  FASTNN_VALUE { return (void)a, exp_(t) * (t - x); }
  FASTNN_D_INPUT { return (void)x, (void)a, -exp_(t); }
  FASTNN_D_TARGET { return (void)a, exp_(t) * (t - x + T(1)); }
};
#undef FASTNN_VALUE
#undef FASTNN_D_INPUT
#undef FASTNN_D_TARGET

}  // namespace
}  // namespace fastnn
