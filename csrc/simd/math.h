// Scalar mathematics for functors: float versions without branches, which compilers turn into vector
// code at every level; double versions straight from libm (gradcheck wants the last bit, not speed).
// On CUDA both come from the device library.
//
// exp: n = rint(x log2 e), r = x - n ln 2 in two parts, degree-6 polynomial, 2^n in two factors so
// that subnormal results round once. log: mantissa in [sqrt(1/2), sqrt(2)), atanh series.
// Over two million values of the whole range exp stays within 3 ulp of the exact value and log within 1.
#pragma once

#include <cmath>

#include "simd/half.h"

namespace fastnn {
namespace {

#ifdef __CUDACC__
FASTNN_HD inline float exp_(float x) { return expf(x); }
FASTNN_HD inline float log_(float x) { return logf(x); }
FASTNN_HD inline float log1p_(float x) { return log1pf(x); }
FASTNN_HD inline float expm1_(float x) { return expm1f(x); }
FASTNN_HD inline float tanh_(float x) { return tanhf(x); }
FASTNN_HD inline float erf_(float x) { return erff(x); }
#else
// e^r for |r| <= ln 2 / 2; V is float, or a register of them.
template <class V>
inline V exp_polynomial(V r) {
  V p = r * 1.3981999e-3f + 8.3333319e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 5.0e-1f;
  return p * r * r + r + 1.0f;
}

inline float exp_(float x) {
  // Outside this range the result is 0 or infinity; NaN passes through both comparisons.
  float clamped = x > 89.0f ? 89.0f : x;
  clamped = clamped < -104.0f ? -104.0f : clamped;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the mantissa.
  const float shifted = clamped * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  const float p = exp_polynomial(r);
  const int32_t exponent = int32_t(float_to_bits(shifted)) - 0x4b400000;
  const int32_t half = exponent >> 1;
  const float scale_a = bits_to_float(uint32_t(half + 127) << 23);
  const float scale_b = bits_to_float(uint32_t(exponent - half + 127) << 23);
  return p * scale_a * scale_b;
}

inline float log_(float x) {
  // Subnormals are scaled up first.
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 8388608.0f : x;
  const uint32_t bits = float_to_bits(scaled);
  // Centre the mantissa on 1: subtract sqrt(1/2)'s bits, keep the exponent, put the rest back.
  const uint32_t offset = bits - 0x3f3504f3u;
  const float e = float(int32_t(offset) >> 23) - (tiny ? 23.0f : 0.0f);
  const float f = bits_to_float((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float s = f / (2.0f + f);
  const float z = s * s;
  const float series = z * (0.66666669f + z * (0.39999948f + z * (0.28577885f + z * 0.23970354f)));
  const float half_square = 0.5f * f * f;
  const float tail = s * (half_square + series) + e * 9.0580006e-6f;
  float result = e * 0.69313812f + (f - (half_square - tail));
  result = x == INFINITY ? x : result;
  result = x == 0.0f ? -INFINITY : result;
  return x < 0.0f ? NAN : (x != x ? x : result);
}

inline float log1p_(float x) {
  const float u = 1.0f + x;
  const float exact = log_(u) + ((x - (u - 1.0f)) / u);  // what rounding 1 + x lost, to first order
  const float result = u == 1.0f ? x : exact;
  return x == INFINITY ? x : (x == -1.0f ? -INFINITY : result);
}

inline float expm1_(float x) {
  // Small x by series, the rest from exp.
  const float series =
      x *
      (1.0f + x * (0.5f + x * (1.6666667e-1f +
                               x * (4.1666668e-2f + x * (8.3333333e-3f + x * (1.3888889e-3f + x * 1.9841270e-4f))))));
  const float direct = exp_(x) - 1.0f;
  return fabsf(x) < 0.35f ? series : direct;
}

inline float tanh_(float x) {
  const float a = fabsf(x);
  const float z = x * x;
  const float series =
      a +
      a * z * (-3.3333287e-1f + z * (1.3331474e-1f + z * (-5.3739930e-2f + z * (2.0639034e-2f + z * -5.7049858e-3f))));
  const float direct = 1.0f - 2.0f / (exp_(a + a) + 1.0f);
  return copysignf(a < 0.625f ? series : direct, x);  // the series loses the sign of -0
}

inline float erf_(float x) {
  const float a = fabsf(x);
  const float z = x * x;
  float small = 7.8538485e-5f;
  small = small * z - 8.0101908e-4f;
  small = small * z + 5.1883273e-3f;
  small = small * z - 2.6853811e-2f;
  small = small * z + 1.1283585e-1f;
  small = small * z - 3.7612626e-1f;
  small = small * z + 1.2837917e-1f;
  small = small * x + x;
  const float t = a > 4.0f ? 4.0f : a;  // erf(4) rounds to 1
  float large = 5.2971914e-6f;
  large = large * t - 4.9942763e-5f;
  large = large * t - 2.7423684e-5f;
  large = large * t + 2.8690896e-3f;
  large = large * t - 2.2575567e-2f;
  large = large * t + 1.0516945e-1f;
  large = large * t + 6.3567317e-1f;
  large = large * t + 1.1285415f;
  const float direct = copysignf(1.0f - exp_(-t * large), x);
  const float result = a < 1.0f ? small : direct;
  return x != x ? x : result;
}
#endif

FASTNN_HD inline double exp_(double x) { return ::exp(x); }
FASTNN_HD inline double log_(double x) { return ::log(x); }
FASTNN_HD inline double log1p_(double x) { return ::log1p(x); }
FASTNN_HD inline double expm1_(double x) { return ::expm1(x); }
FASTNN_HD inline double tanh_(double x) { return ::tanh(x); }
FASTNN_HD inline double erf_(double x) { return ::erf(x); }

// 1 / (1 + e^-x); for float the overflow of e^-x gives the right limit, 0.
template <class T>
FASTNN_HD inline T sigmoid_(T x) {
  return T(1) / (T(1) + exp_(-x));
}

// The rest is rarer and calls libm lane by lane.
#define FASTNN_LIBM(name)                                          \
  FASTNN_HD inline float name##_(float x) { return ::name##f(x); } \
  FASTNN_HD inline double name##_(double x) { return ::name(x); }
FASTNN_LIBM(sin)
FASTNN_LIBM(cos)
FASTNN_LIBM(tan)
FASTNN_LIBM(asin)
FASTNN_LIBM(acos)
FASTNN_LIBM(atan)
FASTNN_LIBM(sinh)
FASTNN_LIBM(cosh)
FASTNN_LIBM(exp2)
FASTNN_LIBM(log2)
FASTNN_LIBM(log10)
FASTNN_LIBM(sqrt)
FASTNN_LIBM(floor)
FASTNN_LIBM(ceil)
FASTNN_LIBM(trunc)
FASTNN_LIBM(rint)
FASTNN_LIBM(fabs)
#undef FASTNN_LIBM

FASTNN_HD inline float pow_(float a, float b) { return ::powf(a, b); }
FASTNN_HD inline double pow_(double a, double b) { return ::pow(a, b); }
FASTNN_HD inline float fmod_(float a, float b) { return ::fmodf(a, b); }
FASTNN_HD inline double fmod_(double a, double b) { return ::fmod(a, b); }
FASTNN_HD inline float atan2_(float a, float b) { return ::atan2f(a, b); }
FASTNN_HD inline double atan2_(double a, double b) { return ::atan2(a, b); }

}  // namespace
}  // namespace fastnn
