// The sum of exponentials behind softmax, in one read (Milakov and Gimelshein 2018).
#pragma once

#include "core/cuda_device.h"
#include "simd/math.h"

namespace fastnn {
namespace {

// sum exp(x - maximum), with the maximum so far: a larger one scales the sum down. An element of -inf adds nothing, of
// +inf or NaN makes the sum NaN.
template <class T>
struct ExpSum {
  T maximum = T(-INFINITY), sum = T(0);

  __device__ void add(T x) {
    if (x > maximum) {
      sum = sum * exp_(maximum - x) + (x - x + T(1));
      maximum = x;
    } else if (x != T(-INFINITY)) {
      sum += exp_(x - maximum);
    }
  }
  static __device__ ExpSum merge(const ExpSum& a, const ExpSum& b) {
    ExpSum both;
    both.maximum = a.maximum > b.maximum ? a.maximum : b.maximum;
    both.sum = a.scaled(both.maximum) + b.scaled(both.maximum);
    return both;
  }
  __device__ T scaled(T top) const { return maximum == top ? sum : sum * exp_(maximum - top); }
};

}  // namespace
}  // namespace fastnn
