// What batch normalization does to a channel, in both directions and both layouts: two sums, then a line.
//
//   sums    v and v d, with d = x - centre              forward: v = d       backward: v = dy
//   result  (x - centre) slope + dy dy_slope + offset
//
// A forward centre is the mean of the channel's first block, so that the variance, E d^2 - (E d)^2, loses at most
// the ratio of all values to those of a block, however large the mean: that block's share of (E d)^2 is part of
// the variance itself. Sums of float32 are carried over to float64 after each block.
#pragma once

#include "core/dtype.h"
#include "simd/convert.h"
#include "simd/integer.h"

namespace fastnn {
namespace {

constexpr int64_t kBlock = 4096;  // elements of a block: 16 KiB of float32
constexpr int64_t kPart = 32768;  // elements of a chunk

template <class T>
struct Line {
  T centre, slope, offset, dy_slope;
};

// `runs` runs of `length` elements, `stride` elements apart; `first` counts from the tensor's start.
struct Block {
  int64_t first, runs, length, stride;
};

// Runs that lie side by side, `stride` apart, are one.
inline Block packed(const Block& block, int64_t stride) {
  const bool joined = stride == block.length;
  return {block.first, joined ? 1 : block.runs, joined ? block.runs * block.length : block.length, block.stride};
}

template <class T>
struct Runs {
  T* data;
  int64_t stride;
  T* run(int64_t i) const { return data ? data + i * stride : nullptr; }
};

inline char* element(const void* data, DType dtype, int64_t index) {
  return static_cast<char*>(const_cast<void*>(data)) + index * int64_t(item_size(dtype));
}

// A block in the compute type: in place, or packed into `buffer`. Null stays null.
template <class T>
Runs<const T> load(const void* data, DType dtype, const Block& block, T* buffer) {
  if (!data || dtype == dtype_of<T>())
    return {data ? static_cast<const T*>(data) + block.first : nullptr, block.stride};
  const Block from = packed(block, block.stride);
  for (int64_t run = 0; run < from.runs; ++run)
    FASTNN_LEVEL::load_row(buffer + run * from.length, element(data, dtype, from.first + run * from.stride), dtype, 1,
                           from.length);
  return {buffer, block.length};
}

// Where to compute a block: in place, or packed in `buffer`, which `finish` then stores.
template <class T>
Runs<T> target(void* data, DType dtype, const Block& block, T* buffer) {
  if (dtype == dtype_of<T>()) return {static_cast<T*>(data) + block.first, block.stride};
  return {buffer, block.length};
}

template <class T>
void finish(void* data, DType dtype, const Block& block, const T* buffer) {
  if (dtype == dtype_of<T>()) return;
  const Block to = packed(block, block.stride);
  for (int64_t run = 0; run < to.runs; ++run)
    FASTNN_LEVEL::store_row(element(data, dtype, to.first + run * to.stride), dtype, 1, buffer + run * to.length,
                            to.length);
}

}  // namespace
}  // namespace fastnn
