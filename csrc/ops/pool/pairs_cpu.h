// Windows of 2x2 and stride 2 along one row, in registers: LeNet's pooling, forward and backward.
//
// A block of outputs is two loads a row, separated into even and odd columns, and three operations; its
// gradient is four selections, interleaved.
#pragma once

#include "ops/pool/lanes_cpu.h"

namespace fastnn {
namespace {

// The columns of `n` windows: x[0], x[2], ... and x[1], x[3], ...
template <class T>
inline void load_pairs(const T* x, int64_t n, Values<T>& even, Values<T>& odd) {
  constexpr int64_t lanes = kLanes<T>;
  const Values<T> low = load_values<T>(x, smaller(2 * n, lanes));
  const Values<T> high = 2 * n > lanes ? load_values<T>(x + lanes, 2 * n - lanes) : Values<T>{};
  separate<T>(low, high, even, odd);
}

template <class T>
inline void store_pairs(T* x, int64_t n, Values<T> even, Values<T> odd) {
  constexpr int64_t lanes = kLanes<T>;
  Values<T> low, high;
  interleave<T>(even, odd, low, high);
  store_values<T>(x, low, smaller(2 * n, lanes));
  if (2 * n > lanes) store_values<T>(x + lanes, high, 2 * n - lanes);
}

template <bool tapped, class T>
void max_pairs(const T* top, const T* bottom, int64_t n, T* best, uint8_t* taps) {
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    Values<T> value, other, low, lower;
    load_pairs<T>(top + 2 * i, count, value, other);
    load_pairs<T>(bottom + 2 * i, count, low, lower);
    Numbers<T> tap{};
    take<tapped, T>(other, broadcast_number<T>(1), value, tap);
    take<tapped, T>(low, broadcast_number<T>(2), value, tap);
    take<tapped, T>(lower, broadcast_number<T>(3), value, tap);
    store_values<T>(best + i, value, count);
    if (tapped) store_taps<T>(taps + i, tap, count);
  });
}

// Gives the gradient of both input rows; a last column without a window stays as it is.
template <class T>
void spread_max_pairs(const T* dy, const uint8_t* taps, int64_t n, T* top, T* bottom) {
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    const Values<T> values = load_values<T>(dy + i, count);
    const Numbers<T> tap = load_taps<T>(taps + i, count);
    const auto part = [&](int64_t number)
                          FASTNN_INLINED { return where_tap<T>(tap, broadcast_number<T>(number), values); };
    store_pairs<T>(top + 2 * i, count, part(0), part(1));
    store_pairs<T>(bottom + 2 * i, count, part(2), part(3));
  });
}

template <class T>
void mean_of_pairs(const T* top, const T* bottom, int64_t n, T* mean) {
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    Values<T> even, odd, low_even, low_odd;
    load_pairs<T>(top + 2 * i, count, even, odd);
    load_pairs<T>(bottom + 2 * i, count, low_even, low_odd);
    store_values<T>(mean + i, ((even + odd) + (low_even + low_odd)) * T(0.25), count);
  });
}

// The gradient of either input row.
template <class T>
void spread_mean_pairs(const T* dy, int64_t n, T* dx) {
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    const Values<T> share = load_values<T>(dy + i, count) * T(0.25);
    store_pairs<T>(dx + 2 * i, count, share, share);
  });
}

}  // namespace
}  // namespace fastnn
