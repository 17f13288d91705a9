// Every elementwise formula and its derivative, once, for the CPU levels and for CUDA.
//
// A unary functor has
//   forward(x, p)        the value; p holds the operation's numbers (a slope, a bound)
//   grad(s, dy, p)       dy times the derivative, from the one saved tensor s
//   kFloatLimit          where it has one, float formulas hold up to |x| of that; beyond double ones are taken
//   saves                whether s is the input or the output (None: grad needs neither)
// A binary functor has forward(a, b). All are templates over T = float, double, and for the ones in
// the integer lists int64_t (bool and every integer type compute in int64 and wrap when stored).
//
// To add an activation: one functor here, one line in FASTNN_UNARY_FLOAT below, one line in
// python/fastnn/nn/functional.py, one case in tests/cases.py.
#pragma once

#include "simd/math.h"

namespace fastnn {

enum class Saves : uint8_t { None, Input, Output };

template <class T>
struct Params {
  T a, b;
};

namespace {

#define FASTNN_FORWARD \
  template <class T>   \
  FASTNN_HD static inline T forward(T x, Params<T> p)
#define FASTNN_GRAD  \
  template <class T> \
  FASTNN_HD static inline T grad(T s, T dy, Params<T> p)
#define FASTNN_UNUSED (void)p
#define FASTNN_SAVES(what) static constexpr Saves saves = Saves::what

// ------------------------------------------------------------------ arithmetic and exponentials

struct Neg {
  FASTNN_SAVES(None);
  FASTNN_FORWARD { return FASTNN_UNUSED, T(-x); }
  FASTNN_GRAD { return FASTNN_UNUSED, (void)s, -dy; }
};
struct Abs {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, x < T(0) ? T(-x) : (x == T(0) ? T(0) : x); }
  FASTNN_GRAD { return FASTNN_UNUSED, s > T(0) ? dy : (s < T(0) ? -dy : (s == T(0) ? T(0) : s)); }
};
struct Sign {
  FASTNN_SAVES(None);
  FASTNN_FORWARD { return FASTNN_UNUSED, x > T(0) ? T(1) : (x < T(0) ? T(-1) : (x == T(0) ? T(0) : x)); }
  FASTNN_GRAD { return FASTNN_UNUSED, (void)s, T(0) * dy; }
};
struct Square {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, x * x; }
  FASTNN_GRAD { return FASTNN_UNUSED, T(2) * s * dy; }
};
struct Sqrt {
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, sqrt_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, T(0.5) * dy / s; }
};
struct Rsqrt {
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, T(1) / sqrt_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, T(-0.5) * dy * s * s * s; }
};
struct Reciprocal {
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, T(1) / x; }
  FASTNN_GRAD { return FASTNN_UNUSED, -dy * s * s; }
};
struct Exp {
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, exp_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * s; }
};
struct Exp2 {
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, exp2_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * s * T(0.6931471805599453); }
};
struct Expm1 {
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, expm1_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * (s + T(1)); }
};
struct Log {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, log_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy / s; }
};
struct Log2 {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, log2_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy / (s * T(0.6931471805599453)); }
};
struct Log10 {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, log10_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy / (s * T(2.302585092994046)); }
};
struct Log1p {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, log1p_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy / (s + T(1)); }
};

// ------------------------------------------------------------------------------- trigonometry

struct Sin {
  static constexpr float kFloatLimit = kTrigonometricLimit;
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, sin_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * cos_(s); }
};
struct Cos {
  static constexpr float kFloatLimit = kTrigonometricLimit;
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, cos_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, -dy * sin_(s); }
};
struct Tan {
  static constexpr float kFloatLimit = kTrigonometricLimit;
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, tan_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * (T(1) + s * s); }
};
struct Asin {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, asin_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy / sqrt_(T(1) - s * s); }
};
struct Acos {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, acos_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, -dy / sqrt_(T(1) - s * s); }
};
struct Atan {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, atan_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy / (T(1) + s * s); }
};
struct Sinh {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, sinh_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * cosh_(s); }
};
struct Cosh {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, cosh_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * sinh_(s); }
};

// -------------------------------------------------------------------------------- activations

struct Tanh {
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, tanh_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * (T(1) - s * s); }
};
struct Sigmoid {
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, sigmoid_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * s * (T(1) - s); }
};
struct LogSigmoid {  // min(x, 0) - log(1 + e^-|x|)
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, (x < T(0) ? x : T(0)) - log1p_(exp_(-fabs_(x))); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * sigmoid_(-s); }
};
struct Relu {  // NaN stays NaN
  FASTNN_SAVES(Output);
  FASTNN_FORWARD { return FASTNN_UNUSED, x < T(0) ? T(0) : x; }
  FASTNN_GRAD { return FASTNN_UNUSED, s <= T(0) ? T(0) : dy; }
};
struct LeakyRelu {  // a: slope below zero
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return x > T(0) ? x : p.a * x; }
  FASTNN_GRAD { return s > T(0) ? dy : p.a * dy; }
};
struct Elu {  // a: alpha
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return x > T(0) ? x : p.a * expm1_(x); }
  FASTNN_GRAD { return s > T(0) ? dy : dy * p.a * exp_(s); }
};
struct Selu {  // the self-normalising constants of Klambauer et al. 2017
  FASTNN_SAVES(Input);
  FASTNN_FORWARD {
    return FASTNN_UNUSED,
           T(1.0507009873554804934193349852946) * (x > T(0) ? x : T(1.6732632423543772848170429916717) * expm1_(x));
  }
  FASTNN_GRAD {
    return FASTNN_UNUSED, dy * T(1.0507009873554804934193349852946) *
                              (s > T(0) ? T(1) : T(1.6732632423543772848170429916717) * exp_(s));
  }
};
struct Celu {  // a: alpha
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return x > T(0) ? x : p.a * expm1_(x / p.a); }
  FASTNN_GRAD { return s > T(0) ? dy : dy * exp_(s / p.a); }
};
struct Gelu {  // x Phi(x)
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, T(0.5) * x * (T(1) + erf_(x * T(0.7071067811865475244))); }
  FASTNN_GRAD {
    const T cdf = T(0.5) * (T(1) + erf_(s * T(0.7071067811865475244)));
    return FASTNN_UNUSED, dy * (cdf + s * T(0.3989422804014326779) * exp_(T(-0.5) * s * s));
  }
};
struct GeluTanh {  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  FASTNN_SAVES(Input);
  FASTNN_FORWARD {
    return FASTNN_UNUSED, T(0.5) * x * (T(1) + tanh_(T(0.7978845608028653559) * (x + T(0.044715) * x * x * x)));
  }
  FASTNN_GRAD {
    const T t = tanh_(T(0.7978845608028653559) * (s + T(0.044715) * s * s * s));
    const T slope = T(0.7978845608028653559) * (T(1) + T(0.134145) * s * s);
    return FASTNN_UNUSED, dy * T(0.5) * ((T(1) + t) + s * (T(1) - t * t) * slope);
  }
};
struct Silu {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, x * sigmoid_(x); }
  FASTNN_GRAD {
    const T sigma = sigmoid_(s);
    return FASTNN_UNUSED, dy * sigma * (T(1) + s * (T(1) - sigma));
  }
};
struct Softplus {  // a: beta, b: threshold of beta x above which the identity is used
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return x * p.a > p.b ? x : log1p_(exp_(x * p.a)) / p.a; }
  FASTNN_GRAD { return s * p.a > p.b ? dy : dy * sigmoid_(s * p.a); }
};
struct Mish {  // x tanh(softplus(x))
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, x * tanh_(x > T(20) ? x : log1p_(exp_(x))); }
  FASTNN_GRAD {
    const T t = tanh_(s > T(20) ? s : log1p_(exp_(s)));
    return FASTNN_UNUSED, dy * (t + s * (T(1) - t * t) * sigmoid_(s));
  }
};
struct Softsign {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, x / (T(1) + fabs_(x)); }
  FASTNN_GRAD {
    const T d = T(1) + fabs_(s);
    return FASTNN_UNUSED, dy / (d * d);
  }
};
struct Hardsigmoid {  // clamp(x / 6 + 1 / 2, 0, 1)
  FASTNN_SAVES(Input);
  FASTNN_FORWARD {
    const T y = x * T(0.16666666666666667) + T(0.5);
    return FASTNN_UNUSED, y < T(0) ? T(0) : (y > T(1) ? T(1) : y);
  }
  FASTNN_GRAD { return FASTNN_UNUSED, s > T(-3) && s < T(3) ? dy * T(0.16666666666666667) : T(0); }
};
struct Hardswish {  // x hardsigmoid(x)
  FASTNN_SAVES(Input);
  FASTNN_FORWARD {
    const T y = x + T(3);
    return FASTNN_UNUSED, x * (y < T(0) ? T(0) : (y > T(6) ? T(6) : y)) * T(0.16666666666666667);
  }
  FASTNN_GRAD {
    return FASTNN_UNUSED, s <= T(-3) ? T(0) : (s >= T(3) ? dy : dy * (s * T(0.33333333333333333) + T(0.5)));
  }
};
struct Clamp {  // a: lower, b: upper bound
  FASTNN_SAVES(Input);
  FASTNN_FORWARD {
    const T low = x < p.a ? p.a : x;
    return low > p.b ? p.b : low;
  }
  FASTNN_GRAD { return s < p.a || s > p.b ? T(0) : dy; }
};
struct PowScalar {  // a: exponent
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return pow_(x, p.a); }
  FASTNN_GRAD { return p.a == T(0) ? T(0) : dy * p.a * pow_(s, p.a - T(1)); }
};
struct Erf {
  FASTNN_SAVES(Input);
  FASTNN_FORWARD { return FASTNN_UNUSED, erf_(x); }
  FASTNN_GRAD { return FASTNN_UNUSED, dy * T(1.1283791670955126) * exp_(-s * s); }
};

// ---------------------------------------------------------------- rounding and tests: zero gradient

#define FASTNN_FLAT(Name, expression)                         \
  struct Name {                                               \
    FASTNN_SAVES(None);                                       \
    FASTNN_FORWARD { return FASTNN_UNUSED, expression; }      \
    FASTNN_GRAD { return FASTNN_UNUSED, (void)s, T(0) * dy; } \
  };
FASTNN_FLAT(Floor, floor_(x))
FASTNN_FLAT(Ceil, ceil_(x))
FASTNN_FLAT(Trunc, trunc_(x))
FASTNN_FLAT(Round, rint_(x))  // half to even
FASTNN_FLAT(IsNan, T(x != x))
FASTNN_FLAT(IsInf, T(x == T(INFINITY) || x == -T(INFINITY)))
FASTNN_FLAT(IsFinite, T(x - x == T(0)))
FASTNN_FLAT(LogicalNot, T(x == T(0)))
FASTNN_FLAT(BitwiseNot, T(~x))
FASTNN_FLAT(Copy, x)
#undef FASTNN_FLAT

// ------------------------------------------------------------------------------------- binary

#define FASTNN_BINARY_FUNCTOR(Name, expression)   \
  struct Name {                                   \
    template <class T>                            \
    FASTNN_HD static inline T forward(T a, T b) { \
      return expression;                          \
    }                                             \
  };
FASTNN_BINARY_FUNCTOR(Add, T(a + b))
FASTNN_BINARY_FUNCTOR(Sub, T(a - b))
FASTNN_BINARY_FUNCTOR(Mul, T(a* b))
FASTNN_BINARY_FUNCTOR(Div, a / b)
FASTNN_BINARY_FUNCTOR(Pow, pow_(a, b))
FASTNN_BINARY_FUNCTOR(Atan2, atan2_(a, b))
// NaN in either operand wins, as in PyTorch and numpy.
FASTNN_BINARY_FUNCTOR(Maximum, a != a ? a : (b > a || b != b ? b : a))
FASTNN_BINARY_FUNCTOR(Minimum, a != a ? a : (b < a || b != b ? b : a))
FASTNN_BINARY_FUNCTOR(Eq, T(a == b))
FASTNN_BINARY_FUNCTOR(Ne, T(a != b))
FASTNN_BINARY_FUNCTOR(Lt, T(a < b))
FASTNN_BINARY_FUNCTOR(Le, T(a <= b))
FASTNN_BINARY_FUNCTOR(Gt, T(a > b))
FASTNN_BINARY_FUNCTOR(Ge, T(a >= b))
FASTNN_BINARY_FUNCTOR(LogicalAnd, T(a != T(0) && b != T(0)))
FASTNN_BINARY_FUNCTOR(LogicalOr, T(a != T(0) || b != T(0)))
FASTNN_BINARY_FUNCTOR(LogicalXor, T((a != T(0)) != (b != T(0))))
FASTNN_BINARY_FUNCTOR(BitwiseAnd, T(a& b))
FASTNN_BINARY_FUNCTOR(BitwiseOr, T(a | b))
FASTNN_BINARY_FUNCTOR(BitwiseXor, T(a ^ b))
#undef FASTNN_BINARY_FUNCTOR

// Division rounded down, and the remainder with the divisor's sign (Python's // and %); fmod keeps
// the dividend's sign. Integers: the caller has excluded a zero divisor.
struct FloorDivide {
  template <class T>
  FASTNN_HD static inline T forward(T a, T b) {
    if constexpr (T(0.5) == T(0)) {
      if (b == T(-1)) return T(0 - uint64_t(a));  // the one quotient that overflows wraps
      const T quotient = a / b;
      return quotient - T(quotient * b != a && (a < T(0)) != (b < T(0)));
    } else {
      return floor_(a / b);
    }
  }
};
struct Remainder {
  template <class T>
  FASTNN_HD static inline T forward(T a, T b) {
    if constexpr (T(0.5) == T(0)) {
      if (b == T(-1)) return T(0);
      const T r = a % b;
      return r != T(0) && (r < T(0)) != (b < T(0)) ? r + b : r;
    } else {
      const T r = fmod_(a, b);
      return r != T(0) && (r < T(0)) != (b < T(0)) ? r + b : r;
    }
  }
};
struct Fmod {
  template <class T>
  FASTNN_HD static inline T forward(T a, T b) {
    if constexpr (T(0.5) == T(0))
      return b == T(-1) ? T(0) : a % b;
    else
      return fmod_(a, b);
  }
};
struct IntPow {  // by squaring; a negative exponent gives 1 / a^n rounded to zero
  template <class T>
  FASTNN_HD static inline T forward(T a, T b) {
    if (b < T(0)) return a == T(1) ? T(1) : (a == T(-1) ? (b % 2 ? T(-1) : T(1)) : T(0));
    uint64_t result = 1, base = uint64_t(a);
    for (uint64_t n = uint64_t(b); n; n >>= 1, base *= base)
      if (n & 1) result *= base;
    return T(result);
  }
};

#undef FASTNN_FORWARD
#undef FASTNN_GRAD
#undef FASTNN_UNUSED
#undef FASTNN_SAVES

}  // namespace

// The lists: X(python name, functor). From them come the enums, kernels, functions and bindings.

// clang-format off
#define FASTNN_UNARY_BOTH(X) /* floats and integers */ \
  X(neg, Neg) X(abs, Abs) X(sign, Sign) X(square, Square) X(relu, Relu)

#define FASTNN_UNARY_FLOAT(X) /* integers are promoted to float32 first */ \
  X(sqrt, Sqrt) X(rsqrt, Rsqrt) X(reciprocal, Reciprocal) X(exp, Exp) X(exp2, Exp2) X(expm1, Expm1) \
  X(log, Log) X(log2, Log2) X(log10, Log10) X(log1p, Log1p) X(sin, Sin) X(cos, Cos) X(tan, Tan) \
  X(asin, Asin) X(acos, Acos) X(atan, Atan) X(sinh, Sinh) X(cosh, Cosh) X(tanh, Tanh) X(sigmoid, Sigmoid) \
  X(logsigmoid, LogSigmoid) X(selu, Selu) X(silu, Silu) X(mish, Mish) X(softsign, Softsign) \
  X(hardsigmoid, Hardsigmoid) X(hardswish, Hardswish) X(erf, Erf)

#define FASTNN_UNARY_ROUND(X) /* identity on integers */ \
  X(floor, Floor) X(ceil, Ceil) X(trunc, Trunc) X(round, Round)

#define FASTNN_UNARY_TEST(X) /* give bool */ \
  X(isnan, IsNan) X(isinf, IsInf) X(isfinite, IsFinite) X(logical_not, LogicalNot)

#define FASTNN_UNARY_PARAMS(X) /* take numbers; written out in unary.cpp */ \
  X(leaky_relu, LeakyRelu) X(elu, Elu) X(celu, Celu) X(gelu, Gelu) X(gelu_tanh, GeluTanh) \
  X(softplus, Softplus) X(pow_scalar, PowScalar)

#define FASTNN_BINARY_BOTH(X) /* floats and integers */ \
  X(add, Add) X(sub, Sub) X(mul, Mul) X(maximum, Maximum) X(minimum, Minimum) \
  X(floor_divide, FloorDivide) X(remainder, Remainder) X(fmod, Fmod)

#define FASTNN_BINARY_FLOAT(X) X(div, Div) X(atan2, Atan2) X(pow, Pow)

#define FASTNN_BINARY_COMPARE(X) /* give bool */ \
  X(eq, Eq) X(ne, Ne) X(lt, Lt) X(le, Le) X(gt, Gt) X(ge, Ge) \
  X(logical_and, LogicalAnd) X(logical_or, LogicalOr) X(logical_xor, LogicalXor)

#define FASTNN_BINARY_BITS(X) /* bool and integers only */ \
  X(bitwise_and, BitwiseAnd) X(bitwise_or, BitwiseOr) X(bitwise_xor, BitwiseXor)
// clang-format on

}  // namespace fastnn
