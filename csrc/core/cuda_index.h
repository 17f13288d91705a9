// Index mathematics of CUDA kernels, apart from them so that a compiler can test it without a GPU
// (tests/test_cuda_host.py evaluates it at compile time).
#pragma once

#include <cstdint>

#include "simd/half.h"

namespace fastnn {

constexpr int kBlockThreads = 256;  // of a block that walks elements, one element a thread

// Blocks that give every one of n elements a thread.
FASTNN_HD constexpr int64_t blocks_for(int64_t n) { return (n + kBlockThreads - 1) / kBlockThreads; }

template <int N>
struct Offsets {
  int64_t of[N];
};

// Where element `position` of a row-major walk over `shape` lies in each of N operands.
template <int N>
FASTNN_HD constexpr Offsets<N> strided_offsets(int64_t position, int ndim, const int64_t* shape,
                                               const int64_t* const (&strides)[N]) {
  Offsets<N> offsets{};
  for (int axis = ndim - 1; axis >= 0; --axis) {
    const int64_t rest = axis > 0 ? position / shape[axis] : 0;
    const int64_t index = position - rest * shape[axis];
    position = rest;
    for (int operand = 0; operand < N; ++operand) offsets.of[operand] += index * strides[operand][axis];
  }
  return offsets;
}

FASTNN_HD constexpr int64_t strided_offset(int64_t position, int ndim, const int64_t* shape, const int64_t* strides) {
  const int64_t* const only[1] = {strides};
  return strided_offsets(position, ndim, shape, only).of[0];
}

}  // namespace fastnn
