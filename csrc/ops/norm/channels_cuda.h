// What batch and group normalization do to a channel on CUDA, in both directions and both layouts: two sums, then a
// line. channels_cuda.cu has the kernels.
//
//   sums    forward: d = x - centre and d^2, whose centre is one of the channel's values       backward: dy and dy d
//   result  (x - centre) slope + dy dy_slope + offset
//
// A channel here is whatever has sums of its own: of batch normalization a channel, of group normalization a sample's
// channel, or forward a sample's group.
#pragma once

#include "core/cuda_launch.h"
#include "core/dtype.h"
#include "simd/half.h"

namespace fastnn {

// x, dy (null forward) and the result. Row-major: (outer, channels, inner). With the channels last: `outer` samples of
// (inner, channels), each with channels of its own.
struct ChannelTensors {
  DType dtype;
  bool channels_last;
  int64_t outer, channels, inner;
  const void *x, *dy;
  void* out;
};

// Of a channel, in float64: a sum and one of products, around `centre`.
struct ChannelSums {
  double centre, value, product;
};

// Of channel c: means[stride * (c / channels)]; null forward.
struct ChannelMeans {
  const double* means;
  int64_t stride, channels;
};

// T is the compute type of the dtype.
template <class T>
struct ChannelLine {
  T centre, slope, offset, dy_slope;
};

// (x - mean) slope + dy dy_slope + offset, from the centre that T has nearest to the mean.
template <class T>
FASTNN_HD inline ChannelLine<T> line_through(double mean, double slope, double offset, double dy_slope) {
  const T centre = T(mean);
  return {centre, T(slope), T(offset + (double(centre) - mean) * slope), T(dy_slope)};
}

// sums[channel], of every sample with the channels last. Fixed order. No tensor is empty.
void cuda_sum_channels(const ChannelTensors& tensors, const ChannelMeans& means, ChannelSums* sums);

// Row-major, plane p has line p % n_lines; with the channels last each of a sample's channels has one.
void cuda_draw_channels(const ChannelTensors& tensors, const void* lines, int64_t n_lines);

}  // namespace fastnn
