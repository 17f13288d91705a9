// Arithmetic on sizes, for kernels: no std:: templates, which every CPU level would export.
#pragma once

#include <cstdint>

namespace fastnn {
namespace {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// The length of equal pieces of n, none above `limit`, in multiples of `unit`.
inline int64_t even_piece(int64_t n, int64_t limit, int64_t unit = 1) {
  return round_up(ceil_div(n, ceil_div(n, limit)), unit);
}

}  // namespace
}  // namespace fastnn
