// Shuffles of two registers, and what is made of them: splitting elements into even and odd ones and back, and
// squares of registers, transposed or summed along their rows in butterflies of log2(size) steps.
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

template <class T>
struct LaneNumbers {
  typedef typename LaneIndex<sizeof(T)>::type Type __attribute__((vector_size(kVectorBytes)));
};

// The chosen lanes of `a` and, from `size` on, of `b`. clang has no __builtin_shuffle, but folds the loop.
template <class T>
inline __attribute__((always_inline)) Vec<T> shuffle(Vec<T> a, Vec<T> b, typename LaneNumbers<T>::Type chosen) {
#if defined(__clang__)
  Vec<T> result;
  for (int i = 0; i < Vec<T>::size; ++i)
    result.raw[i] = chosen[i] < Vec<T>::size ? a.raw[chosen[i]] : b.raw[chosen[i] - Vec<T>::size];
  return result;
#else
  return Vec<T>(__builtin_shuffle(a.raw, b.raw, chosen));
#endif
}

// Of 2 * size elements in a row, `a` keeps the even ones and `b` the odd ones.
template <class T>
inline __attribute__((always_inline)) void deinterleave(Vec<T>& a, Vec<T>& b) {
  typename LaneNumbers<T>::Type even;
  for (int i = 0; i < Vec<T>::size; ++i) even[i] = 2 * i;
  const Vec<T> first = a;
  a = shuffle(first, b, even);
  b = shuffle(first, b, even + 1);
}

// The reverse: the elements of `a` become the even ones of 2 * size in a row, those of `b` the odd ones.
template <class T>
inline __attribute__((always_inline)) void interleave(Vec<T>& a, Vec<T>& b) {
  constexpr int kSize = Vec<T>::size;
  typename LaneNumbers<T>::Type low;
  for (int i = 0; i < kSize; ++i) low[i] = i / 2 + i % 2 * kSize;
  const Vec<T> first = a;
  a = shuffle(first, b, low);
  b = shuffle(first, b, low + kSize / 2);
}

// One step between lanes `kStep` apart: `a` keeps its lanes with that bit clear and takes those of
// `b`, moved up; `b` keeps its lanes with that bit set and takes those of `a`, moved down.
template <int kStep, class T>
inline __attribute__((always_inline)) void exchange(Vec<T>& a, Vec<T>& b) {
  constexpr int kSize = Vec<T>::size;
  typename LaneNumbers<T>::Type low, high;
  for (int i = 0; i < kSize; ++i) {
    low[i] = i & kStep ? kSize + i - kStep : i;
    high[i] = i & kStep ? kSize + i : i + kStep;
  }
  const Vec<T> first = a;
  a = shuffle(first, b, low);
  b = shuffle(first, b, high);
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
