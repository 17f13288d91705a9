// Squares of registers: transposing them, and summing each of their rows. Both are butterflies of
// log2(size) steps of two-register shuffles.
#pragma once

#include "simd/vec.h"

namespace fastnn {
namespace {

template <int kBytes>
struct LaneIndex;
template <>
struct LaneIndex<4> {
  using type = int32_t;
};
template <>
struct LaneIndex<8> {
  using type = int64_t;
};

// One step between lanes `kStep` apart: `a` keeps its lanes with that bit clear and takes those of
// `b`, moved up; `b` keeps its lanes with that bit set and takes those of `a`, moved down.
template <int kStep, class T>
inline __attribute__((always_inline)) void exchange(Vec<T>& a, Vec<T>& b) {
  constexpr int kSize = Vec<T>::size;
  typedef typename LaneIndex<sizeof(T)>::type Lanes __attribute__((vector_size(kVectorBytes)));
  Lanes low, high;
  for (int i = 0; i < kSize; ++i) {
    low[i] = i & kStep ? kSize + i - kStep : i;
    high[i] = i & kStep ? kSize + i : i + kStep;
  }
#if defined(__clang__)
  const auto first = a.raw, second = b.raw;
  for (int i = 0; i < kSize; ++i) {
    a.raw[i] = low[i] < kSize ? first[low[i]] : second[low[i] - kSize];
    b.raw[i] = high[i] < kSize ? first[high[i]] : second[high[i] - kSize];
  }
#else
  const auto first = __builtin_shuffle(a.raw, b.raw, low);
  b.raw = __builtin_shuffle(a.raw, b.raw, high);
  a.raw = first;
#endif
}

// Transposes `size` registers in place.
template <int kStep = 1, class T>
inline __attribute__((always_inline)) void transpose(Vec<T>* rows) {
  if constexpr (kStep < Vec<T>::size) {
#pragma GCC unroll 16
    for (int i = 0; i < Vec<T>::size; ++i)
      if (!(i & kStep)) exchange<kStep>(rows[i], rows[i + kStep]);
    transpose<2 * kStep>(rows);
  }
}

// Lane i of the result is the sum of rows[i]; the rows are used up.
template <int kStep = 1, class T>
inline __attribute__((always_inline)) Vec<T> row_sums(Vec<T>* rows) {
  if constexpr (kStep < Vec<T>::size) {
#pragma GCC unroll 16
    for (int i = 0; i < Vec<T>::size; i += 2 * kStep) {
      exchange<kStep>(rows[i], rows[i + kStep]);
      rows[i] += rows[i + kStep];
    }
    return row_sums<2 * kStep>(rows);
  } else {
    return rows[0];
  }
}

}  // namespace
}  // namespace fastnn
