// 3 x 3 taps of stride 1 of a bfloat16 image in place, 32 columns at a time.
//
// A bfloat16 is the upper half of a float32, so one register of 32 columns holds two of float32: the odd columns under
// a mask, the even ones shifted up by 16 bits. Loads from the first and from the third column tap give all that the
// taps read, and results are rounded where they are and joined again: no lane is moved.
#pragma once

#include "ops/conv/taps_cpu.h"

#if defined(__AVX512BW__)
namespace fastnn {
namespace {

constexpr int64_t kPairColumns = 32;

// Two registers of float32: of the even columns and of the odd ones.
struct Pair {
  __m512 even, odd;
};
typedef uint32_t Words __attribute__((vector_size(64)));

inline __mmask32 words_below(int64_t n) { return __mmask32(_bzhi_u32(~0u, uint32_t(max(0, min(n, kPairColumns))))); }

inline __attribute__((always_inline)) Pair load_pair(const bfloat16* p, __mmask32 words) {
  const Words bits = Words(_mm512_maskz_loadu_epi16(words, p));
  return {__m512(bits << 16), __m512(bits & 0xffff0000u)};
}

#if defined(__AVX512BF16__)
// The instruction rounds two registers into the halves of one.
inline __attribute__((always_inline)) void store_pair(bfloat16* p, Pair pair, __mmask32 words) {
  typedef uint16_t Shorts __attribute__((vector_size(64)));
  const Shorts order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = __m512i(_mm512_cvtne2ps_pbh(pair.odd, pair.even));
  _mm512_mask_storeu_epi16(p, words, _mm512_permutexvar_epi16(__m512i(order), halves));
}
#else
// to_bfloat16 in the upper half of every lane; what is below is left over.
inline __attribute__((always_inline)) Words round_upper(__m512 value) {
  const Words bits = Words(value), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return value != value ? bits | 0x400000u : rounded;
}

inline __attribute__((always_inline)) void store_pair(bfloat16* p, Pair pair, __mmask32 words) {
  const Words joined = (round_upper(pair.odd) & 0xffff0000u) | (round_upper(pair.even) >> 16);
  _mm512_mask_storeu_epi16(p, words, __m512i(joined));
}
#endif

// out[r][c] = bias + sum over sources s and taps t of weights[s * source_weights + t] * image_s[position of t for r, c]
struct PairsProduct {
  const Source<float>* sources;
  int64_t n_sources;
  const float* weights;  // of source s at s * source_weights
  int64_t source_weights;
  float bias;
  bfloat16* out;
  int64_t rows, columns;  // of the results, one after the other
};

template <int kRows>
__attribute__((noinline)) void sum_pairs_3x3(const PairsProduct& p, int64_t row) {
  for (int64_t c = 0; c < p.columns; c += kPairColumns) {
    Pair sums[kRows];
#pragma GCC unroll 7
    for (int r = 0; r < kRows; ++r) sums[r] = {_mm512_set1_ps(p.bias), _mm512_set1_ps(p.bias)};
    for (int64_t s = 0; s < p.n_sources; ++s) {
      const Source<float>& source = p.sources[s];
      const ImageTaps<bfloat16, 1> taps{source, nullptr};
      const auto rows = taps.rows(row);
      const int64_t width = source.image.width, begin = source.left + c;
      const __mmask32 words = words_below(width - begin) & ~words_below(-begin);
      const __mmask32 third_words = words_below(width - begin - 2) & ~words_below(-begin - 2);
      __m512 weights[9];
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) {
        weights[t] = _mm512_set1_ps(p.weights[s * p.source_weights + t]);
        keep_in_register(weights[t]);
      }
#pragma GCC unroll 9
      for (int i = 0; i < kRows + 2; ++i) {
        if (!taps.has(rows, i)) continue;
        const bfloat16* pixels = rows.begin + i * width + begin;
        const Pair first = load_pair(pixels, words), third = load_pair(pixels + 2, third_words);
#pragma GCC unroll 7
        for (int r = 0; r < kRows; ++r) {
          if (i < r || i - r > 2) continue;
          const __m512* w = weights + (i - r) * 3;
          sums[r].even = _mm512_fmadd_ps(first.even, w[0], sums[r].even);
          sums[r].odd = _mm512_fmadd_ps(first.odd, w[0], sums[r].odd);
          sums[r].even = _mm512_fmadd_ps(first.odd, w[1], sums[r].even);
          sums[r].odd = _mm512_fmadd_ps(third.even, w[1], sums[r].odd);
          sums[r].even = _mm512_fmadd_ps(third.even, w[2], sums[r].even);
          sums[r].odd = _mm512_fmadd_ps(third.odd, w[2], sums[r].odd);
        }
      }
    }
#pragma GCC unroll 7
    for (int r = 0; r < kRows; ++r) store_pair(p.out + (row + r) * p.columns + c, sums[r], words_below(p.columns - c));
  }
}

inline void multiply_pairs_3x3(const PairsProduct& p) {
  int64_t row = 0;
  for (; row + 7 <= p.rows; row += 7) sum_pairs_3x3<7>(p, row);
  if (row + 4 <= p.rows) sum_pairs_3x3<4>(p, row), row += 4;
  if (row + 2 <= p.rows) sum_pairs_3x3<2>(p, row), row += 2;
  if (row < p.rows) sum_pairs_3x3<1>(p, row);
}

}  // namespace
}  // namespace fastnn
#endif
