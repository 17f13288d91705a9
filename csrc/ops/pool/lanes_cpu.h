// The registers of the pooling kernels: values of a compute type (simd/lanes.h), and beside every value a tap number.
#pragma once

#include "simd/float_type.h"
#include "simd/lanes.h"

namespace fastnn {
namespace {

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

template <class T>
inline bool any_lane(Numbers<T> mask) {
  Number<T> any = 0;
  for (int i = 0; i < kLanes<T>; ++i) any |= mask[i];
  return any != 0;
}

// The lowest number of all lanes.
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
