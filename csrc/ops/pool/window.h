// Where a pooling window lies along one axis, and which windows hold a position: shared by the CPU levels
// and CUDA.
#pragma once

#include "ops/pool/pool.h"
#include "simd/half.h"

namespace fastnn {
namespace {

// Positions begin, begin + dilation, ... < end of the input, of which `begin` is tap number `first` of the
// window; `extent` is what an average divides by.
struct Window {
  int64_t begin, end, first, extent;
};

FASTNN_HD inline Window window_of(const PoolAxis& axis, int64_t o, bool count_include_pad = false) {
  if (axis.stride == 0) {  // adaptive
    const int64_t begin = o * axis.in / axis.out;
    const int64_t end = ((o + 1) * axis.in + axis.out - 1) / axis.out;
    return {begin, end, 0, end - begin};
  }
  const int64_t start = o * axis.stride - axis.padding;
  const int64_t beyond = start + axis.dilation * (axis.kernel - 1) + 1;
  const int64_t skipped = start < 0 ? (axis.dilation - 1 - start) / axis.dilation : 0;
  const int64_t begin = start + skipped * axis.dilation;
  const int64_t end = beyond < axis.in ? beyond : axis.in;
  const int64_t padded_end = beyond < axis.in + axis.padding ? beyond : axis.in + axis.padding;
  return {begin, end, skipped, count_include_pad ? padded_end - start : end - begin};
}

// Outputs [begin, end) are those whose windows span the position; a dilated one may step over it.
struct Cover {
  int64_t begin, end;
};

FASTNN_HD inline Cover cover_of(const PoolAxis& axis, int64_t position) {
  if (axis.stride == 0) return {position * axis.out / axis.in, ((position + 1) * axis.out + axis.in - 1) / axis.in};
  const int64_t last = (position + axis.padding) / axis.stride;
  const int64_t short_of = position + axis.padding - axis.dilation * (axis.kernel - 1);
  const int64_t begin = short_of > 0 ? (short_of + axis.stride - 1) / axis.stride : 0;
  return {begin, last < axis.out ? last + 1 : axis.out};
}

// The number of a position among the taps of o's window, which spans it; -1 when the window steps over it.
FASTNN_HD inline int64_t tap_at(const PoolAxis& axis, int64_t o, int64_t position) {
  if (axis.stride == 0) return position - o * axis.in / axis.out;
  const int64_t distance = position + axis.padding - o * axis.stride;
  if (axis.dilation == 1) return distance;
  return distance % axis.dilation ? -1 : distance / axis.dilation;
}

// Where tap number `tap` of o's window lies.
FASTNN_HD inline int64_t position_of(const PoolAxis& axis, int64_t o, int64_t tap) {
  if (axis.stride == 0) return o * axis.in / axis.out + tap;
  return o * axis.stride - axis.padding + tap * axis.dilation;
}

}  // namespace
}  // namespace fastnn
