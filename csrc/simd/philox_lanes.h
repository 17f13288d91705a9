// Philox's blocks on whole registers, the bits of philox.h: for the fills, which are bound by these rounds.
//
// A word of 8 blocks (with AVX-512) is the low half of 64-bit lanes. A product takes the low halves alone, so that its
// own low half is the next word as it stands, whatever lies above: a round is two products, two shifts and the sums.
#pragma once

#include "simd/philox.h"
#include "simd/vec.h"

namespace fastnn {
namespace {

#if defined(__AVX2__)
typedef uint64_t WideWords __attribute__((vector_size(kVectorBytes)));

// The product of the low halves.
inline WideWords multiply_low(WideWords a, WideWords b) {
#if defined(__AVX512F__)
  return WideWords(_mm512_maskz_mul_epu32(0xff, __m512i(a), __m512i(b)));
#else
  return WideWords(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#endif
}

// As many blocks as there are lanes.
inline void philox_register(uint64_t seed, uint64_t offset, uint64_t first_block, uint32_t* words) {
  constexpr int lanes = kVectorBytes / 8;
  const WideWords zero{};
  WideWords c0;
  for (int i = 0; i < lanes; ++i) c0[i] = first_block + uint64_t(i);
  WideWords c1 = c0 >> 32, c2 = zero + offset, c3 = zero + (offset >> 32);
#pragma GCC unroll 10
  for (uint32_t round = 0; round < 10; ++round) {
    const WideWords product0 = multiply_low(c0, zero + 0xD2511F53u), product1 = multiply_low(c2, zero + 0xCD9E8D57u);
    c0 = (product1 >> 32) ^ c1 ^ uint64_t(uint32_t(seed) + round * 0x9E3779B9u);
    c2 = (product0 >> 32) ^ c3 ^ uint64_t(uint32_t(seed >> 32) + round * 0xBB67AE85u);
    c1 = product1;
    c3 = product0;
  }
  const WideWords low = (c0 & 0xffffffffu) | (c1 << 32), high = (c2 & 0xffffffffu) | (c3 << 32);
  typedef int64_t Chosen __attribute__((vector_size(kVectorBytes)));
  Chosen chosen;  // of a block `low`, then `high`
  for (int i = 0; i < lanes; ++i) chosen[i] = i / 2 + i % 2 * lanes;
#ifdef __clang__
  for (int i = 0; i < 2 * lanes; ++i) {
    const uint64_t pair = i % 2 ? high[i / 2] : low[i / 2];
    memcpy(words + 2 * i, &pair, sizeof pair);
  }
#else
  const WideWords first = __builtin_shuffle(low, high, chosen);
  const WideWords second = __builtin_shuffle(low, high, chosen + lanes / 2);
  memcpy(words, &first, sizeof first);
  memcpy(words + 2 * lanes, &second, sizeof second);
#endif
}
#endif

// philox_blocks, by registers where the level has them.
inline void philox_lanes(uint64_t seed, uint64_t offset, uint64_t first_block, int64_t count, uint32_t* words) {
  int64_t i = 0;
#if defined(__AVX2__)
  constexpr int64_t lanes = kVectorBytes / 8;
  for (; i + lanes <= count; i += lanes) philox_register(seed, offset, first_block + uint64_t(i), words + 4 * i);
#endif
  philox_blocks(seed, offset, first_block + uint64_t(i), count - i, words + 4 * i);
}

}  // namespace
}  // namespace fastnn
