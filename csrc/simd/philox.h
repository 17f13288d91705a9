// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): a bijection of 128-bit
// counters under a 64-bit key, and the conversions of its words to numbers.
//
// A stream is (seed, offset): the key is the seed, the counter holds the offset in its high half and the
// block number in its low half. Word w of a stream is word w % 4 of block w / 4, so that it depends on
// nothing else, and a stream is 2^66 words long.
//
// The same bits at every CPU level: a product that meets a sum below is exact, or, in the normal numbers, is
// compiled unfused (CMakeLists.txt). Those of CUDA differ from these in their last bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd/math.h"

namespace fastnn {
namespace {

FASTNN_HD inline void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
  const uint64_t product0 = uint64_t(0xD2511F53u) * c0;
  const uint64_t product1 = uint64_t(0xCD9E8D57u) * c2;
  c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
  c1 = uint32_t(product1);
  c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
  c3 = uint32_t(product0);
}

// `count` consecutive blocks, words[4 * i ... 4 * i + 3] each. The rounds are unrolled, so that compilers
// vectorise over blocks.
FASTNN_HD inline void philox_blocks(uint64_t seed, uint64_t offset, uint64_t first_block, int64_t count,
                                    uint32_t* words) {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t block = first_block + uint64_t(i);
    uint32_t c0 = uint32_t(block), c1 = uint32_t(block >> 32), c2 = uint32_t(offset), c3 = uint32_t(offset >> 32);
#ifdef __CUDA_ARCH__
#pragma unroll
#elif !defined(__CUDACC__)  // where nvcc compiles for the host, neither is known
#pragma GCC unroll 10
#endif
    for (uint32_t round = 0; round < 10; ++round)
      philox_round(c0, c1, c2, c3, uint32_t(seed) + round * 0x9E3779B9u, uint32_t(seed >> 32) + round * 0xBB67AE85u);
    words[4 * i] = c0;
    words[4 * i + 1] = c1;
    words[4 * i + 2] = c2;
    words[4 * i + 3] = c3;
  }
}

FASTNN_HD inline uint64_t join_words(uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; }

// [0, 1) with as many bits as a type's mantissa holds: rounding to it cannot give 1.
FASTNN_HD inline float uniform_float(uint32_t word, int mantissa_bits) {
  return float(word >> (32 - mantissa_bits)) * (1.0f / float(1u << mantissa_bits));
}
FASTNN_HD inline double uniform_double(uint64_t word) { return double(word >> 11) * 0x1p-53; }

// Two independent standard normal numbers from two uniform ones: Box-Muller. A word is a quadrant and an
// angle in it around 0, which sine and cosine take without a reduction.
FASTNN_HD inline void normal_pair(uint32_t word0, uint32_t word1, float* z) {
  const float radius = sqrt_(-2.0f * log_normal((float(word0) + 0.5f) * 0x1p-32f));
  const float r = float(int32_t(word1 << 2)) * (1.57079633f * 0x1p-32f);
  const float sine = sin_small(r), cosine = cos_small(r);
  const float sign = word1 & 0x80000000u ? -radius : radius;
  z[0] = sign * (word1 & 0x40000000u ? sine : cosine);
  z[1] = sign * (word1 & 0x40000000u ? cosine : sine);
}
FASTNN_HD inline void normal_pair(uint64_t word0, uint64_t word1, double* z) {
  const double radius = ::sqrt(-2.0 * ::log(uniform_double(word0) + 0x1p-53));
  const double angle = 6.283185307179586 * uniform_double(word1);
  z[0] = radius * ::cos(angle);
  z[1] = radius * ::sin(angle);
}

// a + b u. In float the product of two 24-bit numbers is exact in double.
FASTNN_HD inline float scale_shift(float u, double a, double b) {
  return float(double(float(b)) * double(u) + double(float(a)));
}
FASTNN_HD inline double scale_shift(double u, double a, double b) { return ::fma(b, u, a); }

// [0, range) by the high half of a 128-bit product; the bias is below range / 2^64. Range 0 means 2^64.
FASTNN_HD inline uint64_t bounded(uint64_t word, uint64_t range) {
  if (range == 0) return word;
#ifdef __CUDA_ARCH__
  return __umul64hi(word, range);
#else
  return uint64_t((static_cast<unsigned __int128>(word) * range) >> 64);
#endif
}

}  // namespace
}  // namespace fastnn
