// Scalar mathematics for functors: float versions without branches, which compilers turn into vector
// code at every level; double versions straight from libm (gradcheck wants the last bit, not speed).
// On CUDA both come from the device library.
//
//   exp, expm1   n = rint(x log2 e), r = x - n ln 2 in two parts, e^r - 1 by a polynomial, 2^n in two
//                factors so that subnormal results round once
//   log          mantissa in [sqrt(1/2), sqrt(2)), a polynomial for log(1 + f): a division takes as long
//                as the whole polynomial
//   tanh, erf    both are expm1 of something, near 0 polynomials
//   sin, cos     n = rint(x 2/pi), x - n pi/2 in double, polynomials on [-pi/4, pi/4]
//   tan          the same; in odd quadrants -1 / tan
//   asin, acos   a polynomial up to 1/2; above asin(x) = pi/2 - 2 asin(sqrt((1 - x) / 2))
//   atan         a polynomial up to 1; above atan(x) = pi/2 - atan(1 / x)
//   sinh, cosh   h -+ 1 / (4 h) with h = e^|x| / 2; sinh up to 1 a polynomial
//
// Errors against float64, over the whole range: at most 1.1 units in the last place for exp, log, exp2; 1.3 for asin
// and acos; 1.5 for log1p, atan and 1 / sqrt; 1.6 for sin and cos; 2 for the others but tan, 2.8 (tests/test_math.py).
// With AVX-512 whole registers have formulas of their own, within the same bounds: lanes_math.h.
#pragma once

#include <cmath>

#include "simd/half.h"

namespace fastnn {
namespace {

// Up to here |x - n pi/2| is exact enough in double for every float, also next to the zeros of sine and cosine.
constexpr float kTrigonometricLimit = 1048576.0f;

#ifdef __CUDACC__
FASTNN_HD inline float exp_(float x) { return expf(x); }
FASTNN_HD inline float log_(float x) { return logf(x); }
FASTNN_HD inline float log_normal(float x) { return logf(x); }
FASTNN_HD inline float log1p_(float x) { return log1pf(x); }
FASTNN_HD inline float expm1_(float x) { return expm1f(x); }
FASTNN_HD inline float tanh_(float x) { return tanhf(x); }
FASTNN_HD inline float erf_(float x) { return erff(x); }
FASTNN_HD inline float sin_(float x) { return sinf(x); }
FASTNN_HD inline float cos_(float x) { return cosf(x); }
FASTNN_HD inline float tan_(float x) { return tanf(x); }
FASTNN_HD inline float sinh_(float x) { return sinhf(x); }
FASTNN_HD inline float cosh_(float x) { return coshf(x); }
FASTNN_HD inline float asin_(float x) { return asinf(x); }
FASTNN_HD inline float acos_(float x) { return acosf(x); }
FASTNN_HD inline float atan_(float x) { return atanf(x); }
FASTNN_HD inline float atan2_(float y, float x) { return atan2f(y, x); }
FASTNN_HD inline float exp2_(float x) { return exp2f(x); }
FASTNN_HD inline float log2_(float x) { return log2f(x); }
FASTNN_HD inline float log10_(float x) { return log10f(x); }
FASTNN_HD inline float sigmoid_(float x) { return 1.0f / (1.0f + expf(-x)); }
FASTNN_HD inline float sin_small(float r) { return sinf(r); }
FASTNN_HD inline float cos_small(float r) { return cosf(r); }
#else

// 2^n for -252 <= n <= 254 as two factors of normal size.
struct PowerOfTwo {
  float a, b;
  explicit PowerOfTwo(int32_t n)
      : a(bits_to_float(uint32_t((n >> 1) + 127) << 23)), b(bits_to_float(uint32_t(n - (n >> 1) + 127) << 23)) {}
};

// The nearest integer in the low bits of the mantissa: what adding 1.5 * 2^23 leaves.
constexpr float kRoundToInteger = 12582912.0f;
inline int32_t integer_of(float shifted) { return int32_t(float_to_bits(shifted)) - 0x4b400000; }

// x = n ln 2 + r, |r| <= ln 2 / 2; |x| below 2^15.
struct ExpParts {
  int32_t n;
  float r;
  explicit ExpParts(float x) {
    const float shifted = x * 1.44269504f + kRoundToInteger;
    const float whole = shifted - kRoundToInteger;
    n = integer_of(shifted);
    r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  }
};

// e^r - 1 on [-ln 2 / 2, ln 2 / 2]; V is float, or a register of them.
template <class V>
inline V expm1_small(V r) {
  V p = r * 1.98459995e-4f + 1.39406230e-3f;
  p = p * r + 8.33338872e-3f;
  p = p * r + 4.16663624e-2f;
  p = p * r + 1.66666657e-1f;
  p = p * r + 0.5f;
  return p * (r * r) + r;
}

// Comparisons keep NaN.
inline float clamp_(float x, float low, float high) {
  const float above = x < low ? low : x;
  return above > high ? high : above;
}

inline float exp_(float x) {
  const ExpParts parts(clamp_(x, -104.0f, 89.0f));  // outside the result is 0 or infinity
  const PowerOfTwo scale(parts.n);
  return (1.0f + expm1_small(parts.r)) * scale.a * scale.b;
}

// For -87 <= x <= 88.
inline float expm1_normal(float x) {
  const ExpParts parts(x);
  const float scale = bits_to_float(uint32_t(parts.n + 127) << 23);
  return expm1_small(parts.r) * scale + (scale - 1.0f);
}

inline float expm1_(float x) {
  const ExpParts parts(clamp_(x, -20.0f, 89.0f));
  const PowerOfTwo scale(parts.n);
  const float half = 1.0f / scale.b;  // (2^n - 1) / b: 2^n itself may overflow where the result does not
  const float result = (expm1_small(parts.r) * scale.a + (scale.a - half)) * scale.b;
  return x == 0.0f ? x : result;  // keeps the sign of 0
}

// 2^r on [-1/2, 1/2].
template <class V>
inline V exp2_small(V r) {
  V p = r * 1.53211455e-4f + 1.33901625e-3f;
  p = p * r + 9.61852632e-3f;
  p = p * r + 5.55036217e-2f;
  p = p * r + 2.40226477e-1f;
  p = p * r + 6.93147182e-1f;
  return p * r + 1.0f;
}

inline float exp2_(float x) {
  const float inside = clamp_(x, -152.0f, 129.0f);
  const float shifted = inside + kRoundToInteger;
  const PowerOfTwo scale(integer_of(shifted));
  return exp2_small(inside - (shifted - kRoundToInteger)) * scale.a * scale.b;
}

// x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)): e, f and log(1 + f) = f + tail. Positive finite x.
struct LogParts {
  float e, f, tail;
  explicit LogParts(float x) : LogParts(is_tiny(x) ? x * 8388608.0f : x, is_tiny(x) ? 23.0f : 0.0f) {}
  static bool is_tiny(float x) { return x < 1.17549435e-38f; }  // subnormals are scaled up first
  // Of scaled 2^-raised; scaled is normal.
  LogParts(float scaled, float raised) {
    // Centre the mantissa on 1: subtract sqrt(1/2)'s bits, keep the exponent, put the rest back.
    const uint32_t offset = float_to_bits(scaled) - 0x3f3504f3u;
    e = float(int32_t(offset) >> 23) - raised;
    f = bits_to_float((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float p = 6.74648955e-2f;
    p = p * f - 1.16756156e-1f;
    p = p * f + 1.18882120e-1f;
    p = p * f - 1.24055982e-1f;
    p = p * f + 1.42195463e-1f;
    p = p * f - 1.66679949e-1f;
    p = p * f + 2.00021192e-1f;
    p = p * f - 2.50000089e-1f;
    p = p * f + 3.33333135e-1f;
    const float square = f * f;
    tail = p * (square * f) - 0.5f * square;
  }
  float sum() const { return e * 0.693359375f + (f + (tail - e * 2.12194440e-4f)); }
};

// The logarithm of what LogParts does not take.
inline float log_of_special(float x, float result) {
  result = x == INFINITY ? x : result;
  result = x == 0.0f ? -INFINITY : result;
  return x < 0.0f ? NAN : (x != x ? x : result);
}

inline float log_normal(float x) { return LogParts(x, 0.0f).sum(); }  // of a positive normal number

inline float log_(float x) { return log_of_special(x, LogParts(x).sum()); }

inline float log2_(float x) {  // 1.4427 in two parts, the first of few bits
  const LogParts parts(x);
  const float low = (parts.f + parts.tail) * 4.4269504e-1f + parts.tail;
  return log_of_special(x, parts.e + (parts.f + low));
}

inline float log10_(float x) {
  const LogParts parts(x);
  const float sum = (parts.f + parts.tail) * 4.34294482e-1f;
  return log_of_special(x, parts.e * 3.01025391e-1f + (sum + parts.e * 4.60503906e-6f));
}

inline float log1p_(float x) {
  const float u = 1.0f + x;
  const float exact = log_(u) + ((x - (u - 1.0f)) / u);  // what rounding 1 + x lost, to first order
  const float result = u == 1.0f ? x : exact;
  return x == INFINITY ? x : (x == -1.0f ? -INFINITY : result);
}

inline float tanh_(float x) {                     // u / (2 + u) with u = e^2x - 1; near 0 a polynomial
  const float a = clamp_(fabsf(x), 0.0f, 10.0f);  // tanh(10) rounds to 1
  const float u = expm1_normal(2.0f * a), z = a * a;
  float q = 0.0172405336f;
  q = q * z - 0.0530450083f;
  q = q * z + 0.133258715f;
  q = q * z - 0.333331436f;
  return copysignf(a < 0.5f ? a * (q * z) + a : u / (2.0f + u), x);
}

// 1 / (1 + e^-x), the sum rounded once. From where 1 / e^-x is subnormal the result is 0, its limit.
inline float sigmoid_(float x) {
  const ExpParts parts(clamp_(-x, -87.0f, 88.0f));
  const float scale = bits_to_float(uint32_t(parts.n + 127) << 23);
  const float result = 1.0f / ((expm1_small(parts.r) * scale + 1.0f) + scale);
  return x < -88.0f ? 0.0f : result;
}

inline float erf_(float x) {                      // 1 - exp(-a (9/8 + p(a))), a = |x|; near 0 a polynomial
  const float a = clamp_(fabsf(x), 0.0f, 3.93f);  // erf(3.93) rounds to 1
  float p = 1.43906777e-6f;
  p = p * a - 2.36924825e-5f;
  p = p * a + 1.76430578e-4f;
  p = p * a - 7.58474344e-4f;
  p = p * a + 1.81911513e-3f;
  p = p * a - 2.65357288e-4f;
  p = p * a - 1.91136356e-2f;
  p = p * a + 1.02770656e-1f;
  p = p * a + 6.36619866e-1f;
  p = p * a + 3.37916659e-3f;
  const float z = a * a;
  float q = 0.00471916003f;
  q = q * z - 0.0267582592f;
  q = q * z + 0.112828508f;
  q = q * z - 0.376126111f;
  q = q * z + 0.128379166f;
  return copysignf(a < 0.5f ? a * q + a : -expm1_normal(-(a * p) - a * 1.125f), x);
}

template <class V>
inline V sin_small(V r) {  // |r| <= pi/4
  const V z = r * r;
  return ((-1.95152010e-4f * z + 8.33216030e-3f) * z - 1.66666552e-1f) * (z * r) + r;
}
template <class V>
inline V cos_small(V r) {
  const V z = r * r;
  return ((2.44330568e-5f * z - 1.38873153e-3f) * z + 4.16666456e-2f) * (z * z) + (1.0f - 0.5f * z);
}

// Sine and cosine of the rest of x modulo pi/2, and the number of the quadrant.
struct Quadrant {
  float r, sine, cosine;
  int32_t number;
  explicit Quadrant(float x) {
    const double wide = double(x), shift = 6755399441055744.0;  // 1.5 * 2^52 rounds to an integer
    const double n = (wide * 0.63661977236758134308 + shift) - shift;
    // pi/2 in a part of 33 bits, whose products with n are exact, and the rest.
    r = float((wide - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11);
    number = int32_t(n);
    sine = x == 0.0f ? x : sin_small(r);  // keeps the sign of 0
    cosine = cos_small(r);
  }
};

// For |x| up to kTrigonometricLimit: what lies beyond, and NaN, is computed in double.
inline float sin_(float x) {
  const Quadrant q(x);
  const float value = q.number & 1 ? q.cosine : q.sine;
  return q.number & 2 ? -value : value;
}

inline float cos_(float x) {
  const Quadrant q(x);
  const float value = q.number & 1 ? q.sine : q.cosine;
  return (q.number + 1) & 2 ? -value : value;
}

// |r| <= 0.83: n in float may be the neighbour's.
template <class V>
inline V tan_small(V r) {
  const V z = r * r;
  V p = z * 5.09362621e-3f - 1.41306082e-3f;
  p = p * z + 1.20596597e-2f;
  p = p * z + 2.07951497e-2f;
  p = p * z + 5.41570894e-2f;
  p = p * z + 1.33317813e-1f;
  p = p * z + 3.33333760e-1f;
  return p * (z * r) + r;
}

inline float tan_(float x) {
  const Quadrant q(x);
  const float value = tan_small(q.r);
  return q.number & 1 ? -1.0f / value : value;
}

// pi/2 in two parts; of the second two the first is of few bits: 3/2 - 2r is exact where the result is below 1.
constexpr float kHalfPi = 1.57079637f, kHalfPiRest = -4.37113883e-8f;
constexpr float kThreeHalves = 1.5f, kHalfPiAbove = 7.07963258e-2f;

// (asin(r) - r) / r of z = r^2, |r| <= 1/2.
template <class V>
inline V asin_excess(V z) {
  V p = z * 4.21583056e-2f + 2.41847783e-2f;
  p = p * z + 4.54691499e-2f;
  p = p * z + 7.49530941e-2f;
  p = p * z + 1.66667521e-1f;
  return p * z;
}

// Of a = |x|: r = a up to 1/2, above sqrt((1 - a) / 2); asin(r) = r + tail.
struct ArcSineParts {
  bool far;
  float r, tail;
  explicit ArcSineParts(float a) : far(a > 0.5f) {
    const float z = far ? 0.5f - 0.5f * a : a * a;
    r = far ? sqrtf(z) : a;
    tail = asin_excess(z) * r;
  }
};

inline float asin_(float x) {
  const ArcSineParts s(fabsf(x));
  const float far = (kThreeHalves - 2.0f * s.r) + (kHalfPiAbove - 2.0f * s.tail);
  return copysignf(s.far ? far : s.r + s.tail, x);
}

inline float acos_(float x) {
  const ArcSineParts s(fabsf(x));
  const float r = copysignf(s.r, x), tail = copysignf(s.tail, x);
  const float near = (kThreeHalves - r) + (kHalfPiAbove - tail);
  const float far = 2.0f * (r + tail);
  return s.far ? (x < 0.0f ? (2.0f * kThreeHalves + far) + 2.0f * kHalfPiAbove : far) : near;
}

template <class V>
inline V atan_small(V r) {  // |r| <= 1
  const V z = r * r;
  V p = z * 2.92035984e-3f - 1.63665209e-2f;
  p = p * z + 4.32094261e-2f;
  p = p * z - 7.55199343e-2f;
  p = p * z + 1.06658928e-1f;
  p = p * z - 1.42110243e-1f;
  p = p * z + 1.99937686e-1f;
  p = p * z - 3.33331525e-1f;
  return p * (z * r) + r;
}

// atan(y / x) of magnitudes, in [0, pi/2].
inline float atan_of_ratio(float y, float x) {
  const bool far = y > x;
  const float value = atan_small((far ? -x : y) / (far ? y : x));
  return far ? (value + kHalfPiRest) + kHalfPi : value;
}
inline float atan_(float x) { return copysignf(atan_of_ratio(fabsf(x), 1.0f), x); }

inline float atan2_(float y, float x) {
  const float a = fabsf(y), b = fabsf(x);
  // 0 / 0 counts as 0, infinity / infinity as 1.
  const float equal = a == 0.0f ? 0.0f : 0.5f * kHalfPi;
  const float value = a == b ? equal : atan_of_ratio(a, b);
  const float beyond = (2.0f * kHalfPi - value) + 2.0f * kHalfPiRest;
  return copysignf(float_to_bits(x) >> 31 ? beyond : value, y);
}

// e^a / 2 for 0 <= a, which overflows where cosh does.
inline float half_exp(float a) {
  const ExpParts parts(clamp_(a, 0.0f, 90.0f));
  const PowerOfTwo scale(parts.n - 1);
  return (1.0f + expm1_small(parts.r)) * scale.a * scale.b;
}

inline float sinh_(float x) {
  const float a = fabsf(x), h = half_exp(a), z = a * a;
  float p = z * 2.78221319e-6f + 1.98428956e-4f;
  p = p * z + 8.33331048e-3f;
  p = p * z + 1.66666672e-1f;
  return copysignf(a < 1.0f ? p * (z * a) + a : h - 0.25f / h, x);
}

inline float cosh_(float x) {
  const float h = half_exp(fabsf(x));
  return h + 0.25f / h;
}
#endif

FASTNN_HD inline double exp_(double x) { return ::exp(x); }
FASTNN_HD inline double log_(double x) { return ::log(x); }
FASTNN_HD inline double log1p_(double x) { return ::log1p(x); }
FASTNN_HD inline double expm1_(double x) { return ::expm1(x); }
FASTNN_HD inline double tanh_(double x) { return ::tanh(x); }
FASTNN_HD inline double erf_(double x) { return ::erf(x); }

FASTNN_HD inline double sigmoid_(double x) { return 1.0 / (1.0 + ::exp(-x)); }
FASTNN_HD inline double sin_(double x) { return ::sin(x); }
FASTNN_HD inline double cos_(double x) { return ::cos(x); }
FASTNN_HD inline double tan_(double x) { return ::tan(x); }
FASTNN_HD inline double asin_(double x) { return ::asin(x); }
FASTNN_HD inline double acos_(double x) { return ::acos(x); }
FASTNN_HD inline double atan_(double x) { return ::atan(x); }
FASTNN_HD inline double atan2_(double y, double x) { return ::atan2(y, x); }
FASTNN_HD inline double sinh_(double x) { return ::sinh(x); }
FASTNN_HD inline double cosh_(double x) { return ::cosh(x); }
FASTNN_HD inline double exp2_(double x) { return ::exp2(x); }
FASTNN_HD inline double log2_(double x) { return ::log2(x); }
FASTNN_HD inline double log10_(double x) { return ::log10(x); }

// Instructions, or rarer and by libm lane by lane.
#define FASTNN_LIBM(name)                                          \
  FASTNN_HD inline float name##_(float x) { return ::name##f(x); } \
  FASTNN_HD inline double name##_(double x) { return ::name(x); }
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

}  // namespace
}  // namespace fastnn
