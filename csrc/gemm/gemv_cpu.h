// A vector times the rows of a matrix too large for the caches:  sums[j] = sum over p of a[p] b_j[p].
//
// Cost: the bytes of the matrix. Memory serves one stream of rows, one after the other, faster than the sixteen rows
// side by side of a dot tile (gemm/tile.h), by a fifth, as long as prefetches lead and not loads. So loads are held
// back: by one chain of sums, four cycles for a line, and a loop that is not unrolled. With four chains the fifth is
// lost.
#pragma once

#include "gemm/prefetch.h"
#include "simd/widen.h"

namespace fastnn {
namespace {

constexpr int64_t kAheadBytes = 8192;
constexpr int64_t kStreamedRow = 4096;  // bytes: shorter rows make a stream only where they are adjacent

// The sums of `rows` <= Vec<T>::size rows, `row` elements apart; those beyond are 0.
template <class T, class S>
__attribute__((noinline)) void dot_rows(const S* a, const S* b, int64_t row, int64_t rows, int64_t k, T* sums) {
  using Elements = DotElements<T, S>;
  constexpr int kVectors = Elements::kVectors, kStep = kVectors * Vec<T>::size;
  Vec<T> totals[Vec<T>::size];
  for (int64_t j = 0; j < Vec<T>::size; ++j) totals[j] = Vec<T>::zero();
  for (int64_t j = 0; j < rows; ++j, b += row) {
    Vec<T> chain[kVectors], left[kVectors], right[kVectors];
    for (int v = 0; v < kVectors; ++v) chain[v] = Vec<T>::zero();
    const auto add = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) chain[v] += left[v] * right[v];
    };
    int64_t p = 0;
#pragma GCC unroll 1
    for (; p + kStep <= k; p += kStep) {
      prefetch_near(reinterpret_cast<const char*>(b + p) + kAheadBytes);
      Elements::load(a + p, left);
      Elements::load(b + p, right);
      add();
    }
    if (p < k) {
      Elements::load(a + p, k - p, left);
      Elements::load(b + p, k - p, right);
      add();
    }
    for (int v = 0; v < kVectors; ++v) totals[j] += chain[v];
  }
  row_sums(totals).store(sums);
}

}  // namespace
}  // namespace fastnn
