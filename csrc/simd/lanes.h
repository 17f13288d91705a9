// Registers of a compute type over rows of any float: 16-bit floats are widened as they are loaded and rounded as
// they are stored. A partial load or store takes the first n lanes, 0 < n <= kLanes.
#pragma once

#include "core/dtype.h"
#include "simd/element.h"
#include "simd/integer.h"
#include "simd/transpose.h"

namespace fastnn {
namespace {

// For lambdas that compilers would otherwise call: their constant arguments must reach the loops.
#define FASTNN_INLINED __attribute__((always_inline))

// A number that a generic lambda sees as a constant.
template <int64_t number>
struct Constant {
  static constexpr int64_t value = number;
};

template <class T>
using Values = typename Vec<T>::Raw;
template <class T>
struct NumbersOf {
  typedef typename LaneIndex<sizeof(T)>::type Number;
  typedef Number Type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Number = typename NumbersOf<T>::Number;
template <class T>
using Numbers = typename NumbersOf<T>::Type;
template <class T>
constexpr int kLanes = Vec<T>::size;

// What a storage type is computed in.
template <class Stored>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
template <class Stored>
using Compute = typename ComputeOf<Stored>::Type;

template <class T>
inline Values<T> broadcast(T value) {
  return Vec<T>::broadcast(value).raw;
}
template <class T>
inline Numbers<T> broadcast_number(int64_t number) {
  return Number<T>(number) - Numbers<T>{};
}

// As many narrow elements as a register of T has lanes.
template <class Narrow, class T>
struct NarrowOf {
  typedef Narrow Type __attribute__((vector_size(sizeof(Narrow) * kLanes<T>)));
};
template <class Narrow, class T>
using NarrowLanes = typename NarrowOf<Narrow, T>::Type;

template <class Narrow, class T>
inline NarrowLanes<Narrow, T> load_narrow(const void* p, int64_t n) {
  NarrowLanes<Narrow, T> lanes{};
  if (n == kLanes<T>) {
    memcpy(&lanes, p, sizeof lanes);
    return lanes;
  }
#ifdef __AVX512BW__
  const uint32_t mask = (1u << n) - 1;
  if constexpr (sizeof(Narrow) == 1) {
    const __m128i bytes = _mm_maskz_loadu_epi8(__mmask16(mask), p);
    memcpy(&lanes, &bytes, sizeof lanes);
  } else if constexpr (sizeof(Narrow) == 2) {
    const __m256i words = _mm256_maskz_loadu_epi16(__mmask16(mask), p);
    memcpy(&lanes, &words, sizeof lanes);
  } else {
    memcpy(&lanes, p, size_t(n) * sizeof(Narrow));
  }
#else
  memcpy(&lanes, p, size_t(n) * sizeof(Narrow));
#endif
  return lanes;
}

template <class Narrow, class T>
inline void store_narrow(void* p, NarrowLanes<Narrow, T> lanes, int64_t n) {
  if (n == kLanes<T>) {
    memcpy(p, &lanes, sizeof lanes);
    return;
  }
#ifdef __AVX512BW__
  const uint32_t mask = (1u << n) - 1;
  if constexpr (sizeof lanes == 16 && sizeof(Narrow) == 1)
    return _mm_mask_storeu_epi8(p, __mmask16(mask), __m128i(lanes));
  else if constexpr (sizeof lanes == 32 && sizeof(Narrow) == 2)
    return _mm256_mask_storeu_epi16(p, __mmask16(mask), __m256i(lanes));
#endif
  memcpy(p, &lanes, size_t(n) * sizeof(Narrow));
}

// Between narrow integers and those of a register, cut off. GCC 12 widens and narrows vectors of less than a
// register element by element; its forms without a mask warn of an undefined register.
template <class Wide, class Narrow>
inline Wide widen(Narrow lanes) {
#if defined(__AVX512BW__)
  if constexpr (sizeof(Narrow) == 16 && sizeof(lanes[0]) == 1)
    return Wide(_mm512_maskz_cvtepu8_epi32(0xffff, __m128i(lanes)));
  else if constexpr (sizeof(Narrow) == 32 && sizeof(lanes[0]) == 2)
    return Wide(_mm512_maskz_cvtepu16_epi32(0xffff, __m256i(lanes)));
  else
#elif defined(__AVX2__)
  if constexpr (sizeof(Narrow) == 8 && sizeof(lanes[0]) == 1)
    return Wide(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)lanes)));
  else if constexpr (sizeof(Narrow) == 16 && sizeof(lanes[0]) == 2)
    return Wide(_mm256_cvtepu16_epi32(__m128i(lanes)));
  else
#endif
    return __builtin_convertvector(lanes, Wide);
}
template <class Narrow, class Wide>
inline Narrow narrow(Wide lanes) {
#if defined(__AVX512BW__)
  if constexpr (sizeof(Narrow) == 16 && sizeof(lanes[0]) == 4)
    return Narrow(_mm512_maskz_cvtepi32_epi8(0xffff, __m512i(lanes)));
  else if constexpr (sizeof(Narrow) == 32 && sizeof(lanes[0]) == 4)
    return Narrow(_mm512_maskz_cvtepi32_epi16(0xffff, __m512i(lanes)));
  else
#elif defined(__AVX2__)
  if constexpr (sizeof(Narrow) <= 16 && sizeof(lanes[0]) == 4) {
    const __m256i kept = _mm256_and_si256(__m256i(lanes), _mm256_set1_epi32(sizeof(Narrow) == 8 ? 0xff : 0xffff));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
    if constexpr (sizeof(Narrow) == 16)
      return Narrow(words);
    else
      return Narrow(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
  } else
#endif
    return __builtin_convertvector(lanes, Narrow);
}

// ------------------------------------------------------------------------------------------- values

template <class Stored>
inline Values<Compute<Stored>> load_values(const Stored* p, int64_t n = kLanes<Compute<Stored>>) {
  using T = Compute<Stored>;
  if constexpr (sizeof(Stored) == sizeof(T)) {
    return n == kLanes<T> ? Vec<T>::load(p).raw : Vec<T>::load(p, n).raw;
  } else {
    const auto bits = load_narrow<uint16_t, float>(p, n);
    if constexpr (__is_same(Stored, bfloat16)) {
      typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
      return Values<float>(widen<Words>(bits) << 16);
    } else {
#if defined(__AVX512F__)
      return Values<float>(_mm512_maskz_cvtph_ps(0xffff, __m256i(bits)));
#elif defined(__F16C__)
      return Values<float>(_mm256_cvtph_ps(__m128i(bits)));
#else
      Values<float> values{};
      for (int i = 0; i < kLanes<float>; ++i) values[i] = to_float(float16{bits[i]});
      return values;
#endif
    }
  }
}

template <class Stored>
inline void store_values(Stored* p, Values<Compute<Stored>> values, int64_t n = kLanes<Compute<Stored>>) {
  using T = Compute<Stored>;
  if constexpr (sizeof(Stored) == sizeof(T)) {
    n == kLanes<T> ? Vec<T>(values).store(p) : Vec<T>(values).store(p, n);
  } else if constexpr (__is_same(Stored, bfloat16)) {  // to_bfloat16, lane by lane
#if defined(__AVX512BF16__)  // matrix kernels alone, which flush subnormals to zero, as the instruction does
    const auto rounded = NarrowLanes<uint16_t, float>(_mm512_cvtneps_pbh(__m512(values)));
    store_narrow<uint16_t, float>(p, rounded, n);
#else
    typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
    const Words bits = Words(values);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words quiet_nan = (bits >> 16) | 0x40u;
    const Words result = (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
    store_narrow<uint16_t, float>(p, narrow<NarrowLanes<uint16_t, float>>(result), n);
#endif
  } else {
    NarrowLanes<uint16_t, float> bits;
#if defined(__AVX512F__)
    bits = NarrowLanes<uint16_t, float>(_mm512_maskz_cvtps_ph(0xffff, __m512(values), 0));
#elif defined(__F16C__)
    bits = NarrowLanes<uint16_t, float>(_mm256_cvtps_ph(__m256(values), 0));
#else
    for (int i = 0; i < kLanes<float>; ++i) bits[i] = to_float16(values[i]).bits;
#endif
    store_narrow<uint16_t, float>(p, bits, n);
  }
}

// --------------------------------------------------------------------------------------- operations

// 0, 1, 2, ...
template <class T>
inline Numbers<T> lane_numbers() {
  Numbers<T> numbers;
  for (int i = 0; i < kLanes<T>; ++i) numbers[i] = i;
  return numbers;
}

// Lanes of (low, high) by number. clang has no __builtin_shuffle, but folds the loop.
template <class T>
inline Values<T> pick(Values<T> low, Values<T> high, Numbers<T> chosen) {
#ifdef __clang__
  Values<T> picked;
  for (int i = 0; i < kLanes<T>; ++i) picked[i] = chosen[i] < kLanes<T> ? low[chosen[i]] : high[chosen[i] - kLanes<T>];
  return picked;
#else
  return __builtin_shuffle(low, high, chosen);
#endif
}

// The largest value; none of them is NaN.
template <class T, int apart = kLanes<T> / 2>
inline T highest_lane(Values<T> values) {
  const Values<T> other = pick<T>(values, values, lane_numbers<T>() ^ Number<T>(apart));
  const Values<T> higher = values > other ? values : other;
  if constexpr (apart > 1)
    return highest_lane<T, apart / 2>(higher);
  else
    return higher[0];
}
// The sum of all lanes, halves first.
template <class T, int apart = kLanes<T> / 2>
inline T sum_lanes(Values<T> values) {
  const Values<T> sums = values + pick<T>(values, values, lane_numbers<T>() ^ Number<T>(apart));
  if constexpr (apart > 1)
    return sum_lanes<T, apart / 2>(sums);
  else
    return sums[0];
}

// The first n lanes, and zeros.
template <class T>
inline Values<T> first_lanes_of(Values<T> values, int64_t n) {
  return n == kLanes<T> ? values : lane_numbers<T>() < broadcast_number<T>(n) ? values : Values<T>{};
}

// Whole registers of a row, then the rest: calls visit(i, count).
template <class T, class Visit>
inline FASTNN_INLINED void for_each_register(int64_t n, const Visit& visit) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) visit(i, int64_t(kLanes<T>));
  if (i < n) visit(i, n - i);
}

// Covers [0, n) by whole registers, the last one overlapping its neighbour, or by one partial register:
// calls block(i, count). For results that do not depend on their neighbours. The block is inlined, so that
// `count` is a constant in whole registers.
template <class T, class Block>
inline __attribute__((always_inline)) void for_each_block(int64_t n, const Block& block) {
  constexpr int64_t lanes = kLanes<T>;
  if (n >= lanes) {
    for (int64_t i = 0; i < n; i += lanes) block(min(i, n - lanes), lanes);
  } else if (n > 0) {
    block(int64_t(0), n);
  }
}

}  // namespace
}  // namespace fastnn
