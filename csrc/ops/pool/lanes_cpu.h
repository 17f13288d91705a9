// The registers of the pooling kernels: values of a compute type, and beside every value a tap number.
#pragma once

#include "simd/lanes.h"

namespace fastnn {
namespace {

// For lambdas that compilers would otherwise call: their constant arguments must reach the loops.
#define FASTNN_INLINED __attribute__((always_inline))

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// ----------------------------------------------------------------------------------------- numbers

template <class T, class Tap>
inline Numbers<T> load_taps(const Tap* p, int64_t n = kLanes<T>) {
  return widen<Numbers<T>>(load_narrow<Tap, T>(p, n));
}

template <class T, class Tap>
inline void store_taps(Tap* p, Numbers<T> taps, int64_t n = kLanes<T>) {
  store_narrow<Tap, T>(p, narrow<NarrowLanes<Tap, T>>(taps), n);
}

// --------------------------------------------------------------------------------------- operations

// The better of the two: NaN beats everything, and the later of two NaNs.
template <bool tapped, class T>
inline void take(Values<T> value, Numbers<T> number, Values<T>& best, Numbers<T>& tap) {
  const Numbers<T> wins = (value > best) | (value != value);
  best = wins ? value : best;
  if (tapped) tap = wins ? number : tap;
}

// `values` where the taps are `number`, zero elsewhere.
template <class T>
inline Values<T> where_tap(Numbers<T> taps, Numbers<T> number, Values<T> values) {
  return taps == number ? values : Values<T>{};
}

// 0, 1, 2, ...
template <class T>
inline Numbers<T> lane_numbers() {
  Numbers<T> numbers;
  for (int i = 0; i < kLanes<T>; ++i) numbers[i] = i;
  return numbers;
}

template <class T>
inline bool any_lane(Numbers<T> mask) {
  Number<T> any = 0;
  for (int i = 0; i < kLanes<T>; ++i) any |= mask[i];
  return any != 0;
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

// The largest value, none of them NaN, and the lowest number of all lanes.
template <class T, int apart = kLanes<T> / 2>
inline T highest_lane(Values<T> values) {
  const Values<T> other = pick<T>(values, values, lane_numbers<T>() ^ Number<T>(apart));
  const Values<T> higher = values > other ? values : other;
  if constexpr (apart > 1)
    return highest_lane<T, apart / 2>(higher);
  else
    return higher[0];
}
template <class T, int apart = kLanes<T> / 2>
inline Number<T> lowest_lane(Numbers<T> numbers) {
  const Values<T> bits = Values<T>(numbers);
  const Numbers<T> other = Numbers<T>(pick<T>(bits, bits, lane_numbers<T>() ^ Number<T>(apart)));
  const Numbers<T> lower = numbers < other ? numbers : other;
  if constexpr (apart > 1)
    return lowest_lane<T, apart / 2>(lower);
  else
    return lower[0];
}

// Elements 0, 2, 4, ... and 1, 3, 5, ... of two registers side by side; and back.
template <class T>
inline void separate(Values<T> low, Values<T> high, Values<T>& even, Values<T>& odd) {
  Numbers<T> numbers;
  for (int i = 0; i < kLanes<T>; ++i) numbers[i] = 2 * i;
  even = pick<T>(low, high, numbers);
  odd = pick<T>(low, high, numbers + 1);
}
template <class T>
inline void interleave(Values<T> even, Values<T> odd, Values<T>& low, Values<T>& high) {
  Numbers<T> numbers;
  for (int i = 0; i < kLanes<T>; ++i) numbers[i] = i / 2 + (i % 2 ? kLanes<T> : 0);
  low = pick<T>(even, odd, numbers);
  high = pick<T>(even, odd, numbers + kLanes<T> / 2);
}

// Covers [0, n) by whole registers, the last one overlapping its neighbour, or by one partial register:
// calls block(i, count). For results that do not depend on their neighbours. The block is inlined, so that
// `count` is a constant in whole registers.
template <class T, class Block>
inline __attribute__((always_inline)) void for_each_block(int64_t n, const Block& block) {
  constexpr int64_t lanes = kLanes<T>;
  if (n >= lanes) {
    for (int64_t i = 0; i < n; i += lanes) block(smaller(i, n - lanes), lanes);
  } else if (n > 0) {
    block(int64_t(0), n);
  }
}

// Row `row` of plane `plane`, of `height` rows each; `index` counts through all planes.
struct RowCursor {
  int64_t index, plane, row, height;

  RowCursor(int64_t begin, int64_t rows) : index(begin), plane(begin / rows), row(begin % rows), height(rows) {}
  RowCursor& operator++() {
    ++index;
    if (++row == height) row = 0, ++plane;
    return *this;
  }
};

}  // namespace
}  // namespace fastnn
