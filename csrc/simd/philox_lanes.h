// Philox's blocks on whole registers, the bits of philox.h: for the fills, which are bound by these rounds.
//
// A word of 8 blocks (with AVX-512) is the low half of 64-bit lanes. A product takes the low halves alone, so that its
// own low half is the next word as it stands, whatever lies above: a round is two products, two moves and the sums.
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

// The high halves moved down. A shuffle has a port of its own, a shift shares that of the products.
inline WideWords high_halves(WideWords a) {
#if defined(__AVX512F__)
  return WideWords(_mm512_maskz_shuffle_epi32(0xffff, __m512i(a), _MM_PERM_DDBB));
#else
  return WideWords(_mm256_shuffle_epi32(__m256i(a), 0xf5));
#endif
}

// The words of as many blocks as there are lanes, from their halves of a block: `low`, then `high`.
inline void store_blocks(WideWords low, WideWords high, uint32_t* words) {
  constexpr int lanes = kVectorBytes / 8;
#ifdef __clang__
  for (int i = 0; i < 2 * lanes; ++i) {
    const uint64_t pair = i % 2 ? high[i / 2] : low[i / 2];
    memcpy(words + 2 * i, &pair, sizeof pair);
  }
#else
  typedef int64_t Chosen __attribute__((vector_size(kVectorBytes)));
  Chosen chosen;
  for (int i = 0; i < lanes; ++i) chosen[i] = i / 2 + i % 2 * lanes;
  const WideWords first = __builtin_shuffle(low, high, chosen);
  const WideWords second = __builtin_shuffle(low, high, chosen + lanes / 2);
  memcpy(words, &first, sizeof first);
  memcpy(words + 2 * lanes, &second, sizeof second);
#endif
}

// As many blocks as two registers have lanes: the rounds are a chain of products, and two hide each other's latency.
constexpr int kChains = 2;

inline void philox_registers(uint64_t seed, uint64_t offset, uint64_t first_block, uint32_t* words) {
  constexpr int lanes = kVectorBytes / 8;
  const WideWords zero{};
  WideWords lane{};
  for (int i = 0; i < lanes; ++i) lane[i] = uint64_t(i);
  WideWords c0[kChains], c1[kChains], c2[kChains], c3[kChains];
  for (int k = 0; k < kChains; ++k) {
    c0[k] = lane + (first_block + uint64_t(k * lanes));
    c1[k] = c0[k] >> 32;
    c2[k] = zero + offset;
    c3[k] = zero + (offset >> 32);
  }
#pragma GCC unroll 10
  for (uint32_t round = 0; round < 10; ++round) {
    const uint64_t key0 = uint32_t(seed) + round * 0x9E3779B9u, key1 = uint32_t(seed >> 32) + round * 0xBB67AE85u;
#pragma GCC unroll 2
    for (int k = 0; k < kChains; ++k) {
      const WideWords product0 = multiply_low(c0[k], zero + 0xD2511F53u);
      const WideWords product1 = multiply_low(c2[k], zero + 0xCD9E8D57u);
      c0[k] = high_halves(product1) ^ c1[k] ^ key0;
      c2[k] = high_halves(product0) ^ c3[k] ^ key1;
      c1[k] = product1;
      c3[k] = product0;
    }
  }
#pragma GCC unroll 2
  for (int k = 0; k < kChains; ++k)
    store_blocks((c0[k] & 0xffffffffu) | (c1[k] << 32), (c2[k] & 0xffffffffu) | (c3[k] << 32), words + 4 * lanes * k);
}
#endif

// philox_blocks, by registers where the level has them.
inline void philox_lanes(uint64_t seed, uint64_t offset, uint64_t first_block, int64_t count, uint32_t* words) {
  int64_t i = 0;
#if defined(__AVX2__)
  constexpr int64_t step = kChains * kVectorBytes / 8;
  for (; i + step <= count; i += step) philox_registers(seed, offset, first_block + uint64_t(i), words + 4 * i);
#endif
  philox_blocks(seed, offset, first_block + uint64_t(i), count - i, words + 4 * i);
}

}  // namespace
}  // namespace fastnn
