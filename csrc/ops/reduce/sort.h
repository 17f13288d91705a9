// Sorting along one axis: values and their int64 indices. Stable; NaN counts as the largest value.
#pragma once

#include <utility>

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

// The first `count` of each of n_rows contiguous rows of n elements, in order. Scratch: `keys` holds 2 n
// uint64 a row, `spare` count int64 a row.
struct SortArgs {
  const void* x;
  DType dtype;
  bool descending;
  int64_t n_rows, n, count;
  void* values;  // (n_rows, count) of x's type
  int64_t* indices;
  uint64_t* keys;
  int64_t* spare;
};
extern Kernel<SortArgs> sort_rows;

std::pair<Tensor, Tensor> sort(const Tensor& x, int64_t axis = -1, bool descending = false);
Tensor argsort(const Tensor& x, int64_t axis = -1, bool descending = false);
// The k largest (or smallest) in order.
std::pair<Tensor, Tensor> topk(const Tensor& x, int64_t k, int64_t axis = -1, bool largest = true);

}  // namespace fastnn
