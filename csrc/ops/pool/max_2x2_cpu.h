// Maxima of 2x2 windows of stride 2 along one output row of float32: LeNet's pooling.
//
// A block of 16, 8, 4 or 2 outputs is computed in registers: two loads a row, split into even and odd columns,
// three selects. What is left of a row is covered by one more block that overlaps the last one, and rows
// shorter than a block take narrower ones: the loop that compilers make of the same formula runs rows
// shorter than a register without vectors and branches on the data, eight times slower.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/vec.h"

namespace fastnn {
namespace {

template <class T, int n>
struct LanesOf {
  typedef T Type __attribute__((vector_size(n * sizeof(T))));
};
template <class T, int n>
using Lanes = typename LanesOf<T, n>::Type;

template <int n>
inline Lanes<float, n> load_lanes(const float* p) {
  Lanes<float, n> lanes;
  memcpy(&lanes, p, sizeof lanes);
  return lanes;
}

template <int n>
inline Lanes<int32_t, n> even_numbers() {
  Lanes<int32_t, n> lanes{};
  for (int i = 0; i < n; ++i) lanes[i] = 2 * i;
  return lanes;
}

// The chosen values of `low` and, from n on, `high`. clang has no __builtin_shuffle, but folds the loop.
template <int n>
inline Lanes<float, n> pick(Lanes<float, n> low, Lanes<float, n> high, Lanes<int32_t, n> chosen) {
#ifdef __clang__
  Lanes<float, n> picked;
  for (int i = 0; i < n; ++i) picked[i] = chosen[i] < n ? low[chosen[i]] : high[chosen[i] - n];
  return picked;
#else
  return __builtin_shuffle(low, high, chosen);
#endif
}

// The better of the two, by `take` in pool_cpu.cpp: NaN beats everything.
template <class Values, class Indices>
inline void take_lanes(Values value, Indices position, Values& best, Indices& index) {
  const Indices wins = (value > best) | (value != value);
  best = wins ? value : best;
  index = wins ? position : index;
}

// Outputs [0, n) of a block; `position` is the flat index of top[0], and bottom[0] lies `width` further.
template <bool indexed, int n>
inline void max_2x2_block(const float* top, const float* bottom, int32_t position, int32_t width, float* best,
                          int32_t* indices) {
  const auto even = even_numbers<n>(), odd = even + 1, first = even + position;
  const auto top_low = load_lanes<n>(top), top_high = load_lanes<n>(top + n);
  const auto bottom_low = load_lanes<n>(bottom), bottom_high = load_lanes<n>(bottom + n);
  auto value = pick<n>(top_low, top_high, even);
  auto index = first;
  take_lanes(pick<n>(top_low, top_high, odd), first + 1, value, index);
  take_lanes(pick<n>(bottom_low, bottom_high, even), first + width, value, index);
  take_lanes(pick<n>(bottom_low, bottom_high, odd), first + width + 1, value, index);
  memcpy(best, &value, sizeof value);
  if (indexed) memcpy(indices, &index, sizeof index);
}

// n >= 2.
template <bool indexed, int block = Vec<float>::size>
void max_2x2_row(const float* top, const float* bottom, int32_t position, int32_t width, int64_t n, float* best,
                 int32_t* indices) {
  if constexpr (block > 2) {
    if (n < block) return max_2x2_row<indexed, block / 2>(top, bottom, position, width, n, best, indices);
  }
  for (int64_t i = 0; i < n; i += block) {
    const int64_t at = i + block <= n ? i : n - block;
    max_2x2_block<indexed, block>(top + 2 * at, bottom + 2 * at, position + int32_t(2 * at), width, best + at,
                                  indexed ? indices + at : nullptr);
  }
}

}  // namespace
}  // namespace fastnn
