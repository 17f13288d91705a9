// Index mathematics of CUDA kernels, apart from them so that a compiler can test it without a GPU
// (tests/test_cuda_host.py evaluates it at compile time).
#pragma once

#include <cstdint>

#include "core/divisor.h"
#include "core/tensor.h"
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

// The same walk, prepared by the launcher: divisions are multiplications, and where every position and offset is below
// 2^31, index arithmetic is of 32 bits: per axis a multiplication, a shift and N + 1 multiply-adds.
class StridedWalk {
 public:
  // Over operands with these strides; those of a null pointer do not count.
  template <int N>
  constexpr StridedWalk(int ndim, const int64_t* shape, const int64_t* const (&strides)[N]) : ndim_(ndim) {
    double positions = 1, reach[N] = {};  // which do not overflow
    for (int axis = 0; axis < ndim; ++axis) {
      const int64_t size = shape[axis] > 0 ? shape[axis] : 1;
      if (axis > 0) by_[axis] = Divisor(size);
      positions *= double(size);
      for (int operand = 0; operand < N; ++operand) {
        const double stride = strides[operand] ? double(strides[operand][axis]) : 0.0;
        reach[operand] += double(size - 1) * (stride < 0 ? -stride : stride);
      }
    }
    constexpr double kNarrow = double(int64_t(1) << 31);
    narrow_ = positions < kNarrow;
    for (const double offset : reach) narrow_ = narrow_ && offset < kNarrow;
  }

  FASTNN_HD constexpr bool narrow() const { return narrow_; }

  template <int N>
  FASTNN_HD constexpr Offsets<N> offsets(int64_t position, const int64_t* const (&strides)[N]) const {
    return narrow_ ? offsets_of(int32_t(position), strides) : offsets_of(position, strides);
  }
  FASTNN_HD constexpr int64_t offset(int64_t position, const int64_t* strides) const {
    const int64_t* const only[1] = {strides};
    return offsets(position, only).of[0];
  }

 private:
  template <class Index, int N>
  FASTNN_HD constexpr Offsets<N> offsets_of(Index position, const int64_t* const (&strides)[N]) const {
    Index of[N] = {};
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
    for (int axis = ndim_ - 1; axis > 0; --axis) {
      const Index rest = by_[axis].quotient_of(position);
      const Index index = position - rest * Index(by_[axis].divisor());
      position = rest;
      for (int operand = 0; operand < N; ++operand) of[operand] += index * Index(strides[operand][axis]);
    }
    Offsets<N> offsets{};
    for (int operand = 0; operand < N; ++operand)
      offsets.of[operand] = ndim_ > 0 ? of[operand] + position * Index(strides[operand][0]) : 0;
    return offsets;
  }

  int ndim_;
  bool narrow_ = false;
  Divisor by_[kMaxDims];
};

}  // namespace fastnn
