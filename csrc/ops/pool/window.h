// Where a pooling window lies along one axis, and which windows hold a position: shared by the CPU levels
// and CUDA.
#pragma once

#include "ops/pool/pool.h"
#include "simd/half.h"

namespace fastnn {
namespace {

// Division by an axis's numbers, for axes that know a faster way.
FASTNN_HD inline int64_t over_in(const PoolAxis& axis, int64_t n) { return n / axis.in; }
FASTNN_HD inline int64_t over_out(const PoolAxis& axis, int64_t n) { return n / axis.out; }
FASTNN_HD inline int64_t over_stride(const PoolAxis& axis, int64_t n) { return n / axis.stride; }
FASTNN_HD inline int64_t over_dilation(const PoolAxis& axis, int64_t n) { return n / axis.dilation; }

// Positions begin, begin + dilation, ... < end of the input, of which `begin` is tap number `first` of the
// window; `extent` is what an average divides by.
struct Window {
  int64_t begin, end, first, extent;
};

template <class Axis>
FASTNN_HD inline Window window_of(const Axis& axis, int64_t o, bool count_include_pad = false) {
  if (axis.stride == 0) {  // adaptive
    const int64_t begin = over_out(axis, o * axis.in);
    const int64_t end = over_out(axis, (o + 1) * axis.in + axis.out - 1);
    return {begin, end, 0, end - begin};
  }
  const int64_t start = o * axis.stride - axis.padding;
  const int64_t beyond = start + axis.dilation * (axis.kernel - 1) + 1;
  const int64_t skipped = start < 0 ? over_dilation(axis, axis.dilation - 1 - start) : 0;
  const int64_t begin = start + skipped * axis.dilation;
  const int64_t end = beyond < axis.in ? beyond : axis.in;
  const int64_t padded_end = beyond < axis.in + axis.padding ? beyond : axis.in + axis.padding;
  return {begin, end, skipped, count_include_pad ? padded_end - start : end - begin};
}

// Outputs [begin, end) are those whose windows span the position; a dilated one may step over it.
struct Cover {
  int64_t begin, end;
};

template <class Axis>
FASTNN_HD inline Cover cover_of(const Axis& axis, int64_t position) {
  if (axis.stride == 0)
    return {over_in(axis, position * axis.out), over_in(axis, (position + 1) * axis.out + axis.in - 1)};
  const int64_t last = over_stride(axis, position + axis.padding);
  const int64_t short_of = position + axis.padding - axis.dilation * (axis.kernel - 1);
  const int64_t begin = short_of > 0 ? over_stride(axis, short_of + axis.stride - 1) : 0;
  return {begin, last < axis.out ? last + 1 : axis.out};
}

// The number of a position among the taps of o's window, which spans it; -1 when the window steps over it.
template <class Axis>
FASTNN_HD inline int64_t tap_at(const Axis& axis, int64_t o, int64_t position) {
  if (axis.stride == 0) return position - over_out(axis, o * axis.in);
  const int64_t distance = position + axis.padding - o * axis.stride;
  if (axis.dilation == 1) return distance;
  const int64_t tap = over_dilation(axis, distance);
  return tap * axis.dilation == distance ? tap : -1;
}

// Where tap number `tap` of o's window lies.
template <class Axis>
FASTNN_HD inline int64_t position_of(const Axis& axis, int64_t o, int64_t tap) {
  if (axis.stride == 0) return over_out(axis, o * axis.in) + tap;
  return o * axis.stride - axis.padding + tap * axis.dilation;
}

}  // namespace
}  // namespace fastnn
