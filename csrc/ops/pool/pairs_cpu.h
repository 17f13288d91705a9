// Windows of 2x2 and stride 2 along one row, in registers: LeNet's pooling, forward and backward.
//
// A block of outputs is two loads a row, separated into even and odd columns, and three operations; its
// gradient is four selections, interleaved.
#pragma once

#include "ops/pool/lanes_cpu.h"

namespace fastnn {
namespace {

// The columns of `n` windows: x[0], x[2], ... and x[1], x[3], ...
template <class Stored, class T = Compute<Stored>>
inline void load_pairs(const Stored* x, int64_t n, Values<T>& even, Values<T>& odd) {
  constexpr int64_t lanes = kLanes<T>;
  const Values<T> low = load_values<Stored>(x, min(2 * n, lanes));
  const Values<T> high = 2 * n > lanes ? load_values<Stored>(x + lanes, 2 * n - lanes) : Values<T>{};
  separate<T>(low, high, even, odd);
}

template <class Stored, class T = Compute<Stored>>
inline void store_pairs(Stored* x, int64_t n, Values<T> even, Values<T> odd) {
  constexpr int64_t lanes = kLanes<T>;
  Values<T> low, high;
  interleave<T>(even, odd, low, high);
  store_values<Stored>(x, low, min(2 * n, lanes));
  if (2 * n > lanes) store_values<Stored>(x + lanes, high, 2 * n - lanes);
}

template <bool tapped, class Stored>
void max_pairs(const Stored* top, const Stored* bottom, int64_t n, Stored* best, uint8_t* taps) {
  using T = Compute<Stored>;
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    Values<T> value, other, low, lower;
    load_pairs(top + 2 * i, count, value, other);
    load_pairs(bottom + 2 * i, count, low, lower);
    Numbers<T> tap{};
    take<tapped, T>(other, broadcast_number<T>(1), value, tap);
    take<tapped, T>(low, broadcast_number<T>(2), value, tap);
    take<tapped, T>(lower, broadcast_number<T>(3), value, tap);
    store_values<Stored>(best + i, value, count);
    if (tapped) store_taps<T>(taps + i, tap, count);
  });
}

// Gives the gradient of both input rows; a last column without a window stays as it is.
template <class Stored>
void spread_max_pairs(const Stored* dy, const uint8_t* taps, int64_t n, Stored* top, Stored* bottom) {
  using T = Compute<Stored>;
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    const Values<T> values = load_values<Stored>(dy + i, count);
    const Numbers<T> tap = load_taps<T>(taps + i, count);
    Values<T> parts[4];
    for (int number = 0; number < 4; ++number) parts[number] = where_tap<T>(tap, broadcast_number<T>(number), values);
    store_pairs(top + 2 * i, count, parts[0], parts[1]);
    store_pairs(bottom + 2 * i, count, parts[2], parts[3]);
  });
}

template <class Stored>
void mean_of_pairs(const Stored* top, const Stored* bottom, int64_t n, Stored* mean) {
  using T = Compute<Stored>;
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    Values<T> even, odd, low_even, low_odd;
    load_pairs(top + 2 * i, count, even, odd);
    load_pairs(bottom + 2 * i, count, low_even, low_odd);
    store_values<Stored>(mean + i, ((even + odd) + (low_even + low_odd)) * T(0.25), count);
  });
}

// The gradient of either input row.
template <class Stored>
void spread_mean_pairs(const Stored* dy, int64_t n, Stored* dx) {
  using T = Compute<Stored>;
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    const Values<T> share = load_values<Stored>(dy + i, count) * T(0.25);
    store_pairs(dx + 2 * i, count, share, share);
  });
}

}  // namespace
}  // namespace fastnn
