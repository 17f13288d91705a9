// Mathematics on whole registers: the formulas of math.h, for kernels that hold their values in registers.
#pragma once

#include "simd/lanes.h"
#include "simd/math.h"

namespace fastnn {
namespace {

// e^x, as precise as math.h's. With vscalefps the power of two takes one step instead of five.
inline Values<float> exp_lanes(Values<float> x) {
  // Outside this range the result is 0 or infinity; NaN passes through both comparisons.
  x = x > 89.0f ? 89.0f - Values<float>{} : x;
  x = x < -104.0f ? -104.0f - Values<float>{} : x;
  const Values<float> shifted = x * 1.44269504f + kRoundToInteger;
  const Values<float> n = shifted - kRoundToInteger;
  const Values<float> p = expm1_small((x - n * 0.693359375f) + n * 2.12194440e-4f) + 1.0f;
#ifdef __AVX512F__
  return Values<float>(_mm512_maskz_scalef_ps(0xffff, __m512(p), __m512(n)));
#else
  const Numbers<float> exponent = Numbers<float>(shifted) - 0x4b400000, half = exponent >> 1;
  return p * Values<float>((half + 127) << 23) * Values<float>((exponent - half + 127) << 23);
#endif
}

inline Values<double> exp_lanes(Values<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = exp_(x[i]);
  return x;
}

}  // namespace
}  // namespace fastnn
