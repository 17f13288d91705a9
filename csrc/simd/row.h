// Folds over a contiguous row, for kernels of rows (normalization, softmax, losses).
//
// Several registers of running results hide the latency of an addition; they are combined in a fixed order. Sums of
// float32 are carried over to float64 after every kRowBlock elements.
#pragma once

#include "simd/integer.h"
#include "simd/lanes_math.h"

namespace fastnn {
namespace {

constexpr int64_t kRowBlock = 4096;  // elements summed in the compute type
constexpr int kAccumulators = 4;     // registers for each running result: additions take 4 cycles

// Whole registers of [begin, end), then the rest: calls visit(i, count, k) for accumulator k.
template <class T, class Visit>
inline FASTNN_INLINED void for_each_accumulated(int64_t begin, int64_t end, const Visit& visit) {
  constexpr int64_t lanes = kLanes<T>, step = kAccumulators * lanes;
  int64_t i = begin;
  for (; i + step <= end; i += step)
#pragma GCC unroll 4
    for (int k = 0; k < kAccumulators; ++k) visit(i + k * lanes, lanes, k);
  for (; i + lanes <= end; i += lanes) visit(i, lanes, 0);
  if (i < end) visit(i, end - i, 0);
}

struct Sums {
  double first = 0, second = 0;
};

// Adds up what add(i, count, first, second) adds to two registers for `count` elements from i on.
template <class T, class Add>
inline FASTNN_INLINED Sums fold_row(int64_t n, const Add& add) {
  Sums total;
  for (int64_t begin = 0; begin < n; begin += kRowBlock) {
    Values<T> first[kAccumulators] = {}, second[kAccumulators] = {};
    for_each_accumulated<T>(begin, min(n, begin + kRowBlock), [&](int64_t i, int64_t count, int k) FASTNN_INLINED {
      add(i, count, first[k], second[k]);
    });
    total.first += double(sum_lanes<T>((first[0] + first[1]) + (first[2] + first[3])));
    total.second += double(sum_lanes<T>((second[0] + second[1]) + (second[2] + second[3])));
  }
  return total;
}

// The sum of term(i, count), whose lanes past `count` are ignored.
template <class T, class Term>
inline FASTNN_INLINED double row_sum(int64_t n, const Term& term) {
  return fold_row<T>(n, [&](int64_t i, int64_t count, Values<T>& sum, Values<T>&)
                            FASTNN_INLINED { sum += first_lanes_of<T>(term(i, count), count); })
      .first;
}

template <class T>
inline double row_dot(const T* a, const T* b, int64_t n) {
  return row_sum<T>(n, [&](int64_t i, int64_t count)
                           FASTNN_INLINED { return load_values<T>(a + i, count) * load_values<T>(b + i, count); });
}

// The maximum, or -inf for an empty row; NaN is passed over.
template <class Stored>
inline Compute<Stored> row_max(const Stored* x, int64_t n) {
  using T = Compute<Stored>;
  const Values<T> lowest = broadcast<T>(-static_cast<T>(INFINITY));
  Values<T> best[kAccumulators] = {lowest, lowest, lowest, lowest};
  for_each_accumulated<T>(0, n, [&](int64_t i, int64_t count, int k) FASTNN_INLINED {
    const Values<T> loaded = load_values<Stored>(x + i, count);
    const Values<T> value = count == kLanes<T>                               ? loaded
                            : lane_numbers<T>() < broadcast_number<T>(count) ? loaded
                                                                             : lowest;
    best[k] = value > best[k] ? value : best[k];
  });
  const Values<T> low = best[0] > best[1] ? best[0] : best[1], high = best[2] > best[3] ? best[2] : best[3];
  return highest_lane<T>(low > high ? low : high);
}

}  // namespace
}  // namespace fastnn
