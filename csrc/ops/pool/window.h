// Where a pooling window lies along one axis: shared by the CPU levels and CUDA.
#pragma once

#include "ops/pool/pool.h"
#include "simd/half.h"

namespace fastnn {
namespace {

// Positions begin, begin + dilation, ... < end of the input; `extent` is what an average divides by.
struct Window {
  int64_t begin, end, extent;
};

FASTNN_HD inline Window window_of(const PoolAxis& axis, int64_t o, bool count_include_pad) {
  if (axis.stride == 0) {  // adaptive
    const int64_t begin = o * axis.in / axis.out;
    const int64_t end = ((o + 1) * axis.in + axis.out - 1) / axis.out;
    return {begin, end, end - begin};
  }
  const int64_t first = o * axis.stride - axis.padding;
  const int64_t beyond = first + axis.dilation * (axis.kernel - 1) + 1;
  const int64_t skipped = first < 0 ? (axis.dilation - 1 - first) / axis.dilation : 0;
  const int64_t begin = first + skipped * axis.dilation;
  const int64_t end = beyond < axis.in ? beyond : axis.in;
  const int64_t padded_end = beyond < axis.in + axis.padding ? beyond : axis.in + axis.padding;
  return {begin, end, count_include_pad ? padded_end - first : end - begin};
}

}  // namespace
}  // namespace fastnn
