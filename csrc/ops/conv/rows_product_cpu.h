// Rows of results of 3 x 3 taps, and of any, in registers: the products of depthwise_pass_cpu.h.
#pragma once

#include "ops/conv/taps_cpu.h"

namespace fastnn {
namespace {

// out[o][r][c] = bias[o] + addend[o][r][c] + sum over sources s and taps t of
//   weights[(o * n_sources + s) * source_weights + t] * band_s[r * band_row + c + offsets[t]]
template <class T, class Out = T>
struct RowsProduct {
  const Source<T>* sources;
  int64_t n_sources, n_results;
  int64_t band_row;
  const T* weights;
  int64_t source_weights;
  const int64_t* offsets;
  int64_t taps;
  const T* bias;    // may be null
  const T* addend;  // of out's layout; may be null or out itself
  Out* out;
  int64_t out_plane, out_row;
  int64_t rows, columns;

  const T* weights_of(int64_t result, int64_t source) const {
    return weights + (result * n_sources + source) * source_weights;
  }
};

template <class T, int kRows, class Out>
inline __attribute__((always_inline)) void start_sums(const RowsProduct<T, Out>& p, int64_t result, int64_t at,
                                                      int64_t n, Vec<T>* sums) {
  const Vec<T> bias = Vec<T>::broadcast(p.bias ? p.bias[result] : T(0));
#pragma GCC unroll 7
  for (int r = 0; r < kRows; ++r) {
    const T* addend = p.addend + at + r * p.out_row;
    sums[r] = p.addend == nullptr ? bias : bias + (n >= Vec<T>::size ? Vec<T>::load(addend) : Vec<T>::load(addend, n));
  }
}

template <class T, int kRows, class Out>
inline __attribute__((always_inline)) void store_sums(Out* out, int64_t out_row, int64_t n, const Vec<T>* sums) {
#pragma GCC unroll 7
  for (int r = 0; r < kRows; ++r) store_values<Out>(out + r * out_row, sums[r].raw, min(n, Vec<T>::size));
}

// The lines of the next rows, or of the next channel's first: nine streams are more than the hardware follows.
template <class Taps, int kStep, int kRows, class T, class Out>
inline __attribute__((always_inline)) void fetch_ahead(const RowsProduct<T, Out>& p, int64_t result, int64_t row,
                                                       int64_t column) {
  const Taps taps{p.sources[0], p.offsets};
  const Out* out = p.out + result * p.out_plane + (row + kRows) * p.out_row + column;
#pragma GCC unroll 14
  for (int i = 0; i < kRows * kStep; ++i) taps.fetch(row * kStep + (kRows - 1) * kStep + 3 + i, column * kStep);
#pragma GCC unroll 7
  for (int r = 0; r < kRows; ++r) __builtin_prefetch(out + r * p.out_row, 1);
}

// Of kResults results from `result` on, kRows rows from `row` on, a vector of columns; kStep source rows lie between.
template <class Taps, int kStep, int kResults, int kRows, class T, class Out>
inline __attribute__((always_inline)) void sum_block_3x3(const RowsProduct<T, Out>& p, int64_t result, int64_t row,
                                                         int64_t c, const typename Taps::Columns& columns) {
  constexpr bool kKept = kResults == 1 && kRows == 7;  // seven rows at once: where there are 32 registers
  Vec<T> sums[kResults][kRows];
#pragma GCC unroll 4
  for (int o = 0; o < kResults; ++o)
    start_sums<T, kRows>(p, result + o, (result + o) * p.out_plane + row * p.out_row + c, p.columns - c, sums[o]);
  for (int64_t s = 0; s < p.n_sources; ++s) {
    const Taps taps{p.sources[s], p.offsets};
    const T* weights = p.weights_of(result, s);
    Vec<T> kept[9];
#pragma GCC unroll 9
    for (int t = 0; t < (kKept ? 9 : 0); ++t) {
      kept[t] = Vec<T>::broadcast(weights[t]);
      keep_in_register(kept[t].raw);
    }
    const auto weight = [&](int o, int t) FASTNN_INLINED {
      return kKept ? kept[t] : Vec<T>::broadcast(weights[o * p.n_sources * p.source_weights + t]);
    };
    for_each_product_3x3<kStep, kRows>(taps, row, columns, [&](int r, int tap, Vec<T> x) FASTNN_INLINED {
#pragma GCC unroll 4
      for (int o = 0; o < kResults; ++o) sums[o][r] += weight(o, tap) * x;
    });
  }
#pragma GCC unroll 4
  for (int o = 0; o < kResults; ++o)
    store_sums<T, kRows>(p.out + (result + o) * p.out_plane + row * p.out_row + c, p.out_row, p.columns - c, sums[o]);
}

// The rows [row, end) of kResults results, as many as fill blocks of kRows. Returns the next row.
template <class Taps, int kStep, int kResults, int kRows, bool kFetch = false, class T, class Out>
__attribute__((noinline)) int64_t sum_3x3(const RowsProduct<T, Out>& p, int64_t result, int64_t row, int64_t end) {
  const Taps taps{p.sources[0], p.offsets};
  const auto first = taps.columns(0, Vec<T>::size);
  for (; row + kRows <= end; row += kRows) {
    auto columns = first;
    for (int64_t c = 0;;) {
      if constexpr (kFetch) fetch_ahead<Taps, kStep, kRows>(p, result, row, c);
      sum_block_3x3<Taps, kStep, kResults, kRows>(p, result, row, c, columns);
      if ((c += Vec<T>::size) >= p.columns) break;
      columns = taps.columns(c, Vec<T>::size);
    }
  }
  return row;
}

template <class Taps, int kStep, class T, class Out>
void multiply_3x3(const RowsProduct<T, Out>& given) {
  const RowsProduct<T, Out> p = given;
  int64_t result = 0;
  for (; result + kGroupResults <= p.n_results; result += kGroupResults) {
    const int64_t row = sum_3x3<Taps, kStep, kGroupResults, kGroupRows>(p, result, 0, p.rows);
    sum_3x3<Taps, kStep, kGroupResults, 1>(p, result, row, p.rows);
  }
  for (; result < p.n_results; ++result) {
    const auto sum_rows = p.columns > Vec<T>::size ? sum_3x3<Taps, kStep, 1, kTapRows, true, T, Out>
                                                   : sum_3x3<Taps, kStep, 1, kTapRows, false, T, Out>;
    int64_t row = sum_rows(p, result, 0, p.rows);
    if (row + 4 <= p.rows) row = sum_3x3<Taps, kStep, 1, 4>(p, result, row, p.rows);
    if (row + 2 <= p.rows) row = sum_3x3<Taps, kStep, 1, 2>(p, result, row, p.rows);
    if (row < p.rows) sum_3x3<Taps, kStep, 1, 1>(p, result, row, p.rows);
  }
}

// One result; the sums of several sources meet in the output.
template <class T, int kRows>
inline __attribute__((always_inline)) void sum_taps(const RowsProduct<T>& p, int64_t s, int64_t row) {
  const T* weights = p.weights_of(0, s);
  for (int64_t c = 0; c < p.columns; c += Vec<T>::size) {
    const T* band = p.sources[s].band + row * p.band_row + c;
    Vec<T> sums[kRows];
    start_sums<T, kRows>(p, 0, row * p.out_row + c, p.columns - c, sums);
    for (int64_t t = 0; t < p.taps; ++t) {
      const Vec<T> weight = Vec<T>::broadcast(weights[t]);
#pragma GCC unroll 7
      for (int r = 0; r < kRows; ++r) sums[r] += weight * Vec<T>::load(band + p.offsets[t] + r * p.band_row);
    }
    store_sums<T, kRows>(p.out + row * p.out_row + c, p.out_row, p.columns - c, sums);
  }
}

template <class T>
void multiply_taps(const RowsProduct<T>& given) {
  RowsProduct<T> p = given;
  for (int64_t s = 0; s < p.n_sources; ++s) {
    int64_t row = 0;
    for (; row + 4 <= p.rows; row += 4) sum_taps<T, 4>(p, s, row);
    for (; row < p.rows; ++row) sum_taps<T, 1>(p, s, row);
    p.addend = p.out;
    p.bias = nullptr;
  }
}

}  // namespace
}  // namespace fastnn
