// Folds over a contiguous row of a compute type, for kernels of rows (softmax, losses).
//
// Sixteen running results side by side vectorise at every level and are combined in a fixed order. Sums of
// float32 are carried over to float64 every 512 elements.
#pragma once

#include <cstdint>

#include "simd/math.h"

namespace fastnn {
namespace {

constexpr int kRowLanes = 16;
constexpr int64_t kRowRun = 512;

// The maximum, or -inf for an empty row; NaN is passed over.
template <class T>
inline T row_max(const T* x, int64_t n) {
  const T lowest = -static_cast<T>(INFINITY);
  T lanes[kRowLanes];
  for (int lane = 0; lane < kRowLanes; ++lane) lanes[lane] = lowest;
  int64_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes)
    for (int lane = 0; lane < kRowLanes; ++lane) lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  T best = lowest;
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  for (int lane = 0; lane < kRowLanes; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
  return best;
}

// The sum of term(i), i in [0, n).
template <class T, class Term>
inline double row_sum(int64_t n, Term term) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kRowRun) {
    const int64_t end = n - begin < kRowRun ? n : begin + kRowRun;
    T lanes[kRowLanes] = {};
    int64_t i = begin;
    for (; i + kRowLanes <= end; i += kRowLanes)
      for (int lane = 0; lane < kRowLanes; ++lane) lanes[lane] += term(i + lane);
    T rest = T(0);
    for (; i < end; ++i) rest += term(i);
    for (int lane = 0; lane < kRowLanes; ++lane) rest += lanes[lane];
    total += double(rest);
  }
  return total;
}

}  // namespace
}  // namespace fastnn
