// The two 16-bit float storage types and their conversions, for CPU levels and for CUDA.
//
// Rounding is to nearest even; NaN stays NaN (quiet). The conversions are plain integer arithmetic,
// which compilers vectorise; float16 uses the F16C instruction where the level has it. A GPU has
// an instruction for each.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__F16C__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

#ifdef __CUDACC__
#define FASTNN_HD __host__ __device__
#else
#define FASTNN_HD
#endif

namespace fastnn {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

namespace {

FASTNN_HD inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FASTNN_HD inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

FASTNN_HD inline float to_float(bfloat16 h) { return bits_to_float(uint32_t(h.bits) << 16); }

FASTNN_HD inline bfloat16 to_bfloat16(float f) {
#ifdef __CUDA_ARCH__
  bfloat16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
  return h;
#else
  uint32_t bits = float_to_bits(f);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
#endif
}

FASTNN_HD inline float to_float(float16 h) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h.bits));
  return f;
#elif defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(h.bits);
#else
  uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  uint32_t magnitude = h.bits & 0x7fffu;
  // Subnormals count units of 2^-24; made from an integer, they survive flush-to-zero.
  uint32_t subnormal = float_to_bits(float(int32_t(magnitude)) * 0x1p-24f);
  uint32_t finite = magnitude < 0x400u ? subnormal : (magnitude << 13) + 0x38000000u;
  uint32_t bits = magnitude >= 0x7c00u ? (0x7f800000u | (magnitude << 13)) : finite;
  return bits_to_float(sign | bits);
#endif
}

FASTNN_HD inline float16 to_float16(float f) {
#if defined(__CUDA_ARCH__)
  float16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
  return h;
#elif defined(__F16C__) && !defined(__CUDACC__)
  return {uint16_t(_cvtss_sh(f, 0))};
#else
  uint32_t bits = float_to_bits(f);
  uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu))};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the spacing is 2^-24: adding 0.5 (spacing 2^-24) rounds to it.
    float rounded = bits_to_float(magnitude) + 0.5f;
    return {uint16_t(sign | (float_to_bits(rounded) - 0x3f000000u))};
  }
  uint32_t rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  return {uint16_t(sign | rounded)};
#endif
}

}  // namespace
}  // namespace fastnn
