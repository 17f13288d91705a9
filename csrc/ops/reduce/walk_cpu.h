// Positions of a reduction's walk, for its CPU kernels.
#pragma once

#include "ops/reduce/reduce.h"

namespace fastnn {
namespace {

// The offset of a row-major position.
inline int64_t offset_of(int64_t position, int n_axes, const int64_t* shape, const int64_t* strides) {
  int64_t offset = 0;
  for (int axis = n_axes - 1; axis > 0; --axis) {
    offset += position % shape[axis] * strides[axis];
    position /= shape[axis];
  }
  return n_axes > 0 ? offset + position * strides[0] : 0;
}

}  // namespace
}  // namespace fastnn
