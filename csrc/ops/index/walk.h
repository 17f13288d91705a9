// The walk of an indexed read or write, and the two as differentiable operations on it.
#pragma once

#include <vector>

#include "ops/index/index.h"

namespace fastnn {

// Which places of a tensor of shape x_shape the positions of `shape` address: an axis runs along
// x_dim[axis], or along none of x's dims (-1); each index replaces the coordinate of its dim.
struct IndexWalk {
  struct Index {
    Tensor wrapped;  // int64, contiguous, in [0, size): a copy of its own
    int64_t dim;
    Dims strides;  // over the walk's axes
  };
  Dims x_shape, shape, x_dim;
  std::vector<Index> indices;

  // Checks and wraps; throws IndexError naming the first value out of range.
  void add_index(const char* op, const Tensor& index, int64_t dim, bool from_end, const Dims& strides);
};

void check_index_type(const char* op, const Tensor& x, const Tensor& index);

Tensor read_places(const char* op, const IndexWalk& walk, const Tensor& x);
Tensor add_places(const char* op, const IndexWalk& walk, const Tensor& dy);  // into zeros: the gradient of a read
Tensor write_places_(const char* op, const Tensor& x, const IndexWalk& walk, const Tensor& value, bool accumulate);

}  // namespace fastnn
