// The mean of a row, and its sums around a centre: of d = x - centre and of d^2, so that the variance, E d^2 - (E d)^2,
// keeps its digits however large the mean. The centre is the mean of the row's first kRowBlock elements.
#pragma once

#include "simd/row.h"

namespace fastnn {
namespace {

template <class Stored>
Compute<Stored> centre_of(const Stored* x, int64_t n) {
  using T = Compute<Stored>;
  const int64_t first = min(n, kRowBlock);
  return T(
      row_sum<T>(first, [&](int64_t i, int64_t count) FASTNN_INLINED { return load_values<Stored>(x + i, count); }) /
      double(first));
}

template <class Stored, bool kCentred>
Sums moments(const Stored* x, int64_t n, Compute<Stored> centre) {
  using T = Compute<Stored>;
  return fold_row<T>(n, [&](int64_t i, int64_t count, Values<T>& sum, Values<T>& square) FASTNN_INLINED {
    const Values<T> d = first_lanes_of<T>(load_values<Stored>(x + i, count) - broadcast<T>(centre), count);
    if (kCentred) sum += d;
    square += d * d;
  });
}

// mean = centre + shift.
struct Spread {
  double shift, rstd;
  Spread(const Sums& sums, int64_t n, double eps) : shift(sums.first / double(n)) {
    const double var = sums.second / double(n) - shift * shift;
    rstd = 1 / sqrt_((var < 0 ? 0 : var) + eps);
  }
};

}  // namespace
}  // namespace fastnn
