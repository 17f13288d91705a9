// What becomes of the sums of a convolution on CUDA: activation(sum + bias + residual), rounded once.
#pragma once

#include "ops/conv/gather_cuda.h"
#include "simd/functors.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

template <class T>
__device__ inline T activated(Activation activation, T x) {
  switch (activation) {
    case Activation::Relu: return Relu::forward(x, Params<T>{});
    case Activation::Gelu: return Gelu::forward(x, Params<T>{});
    case Activation::GeluTanh: return GeluTanh::forward(x, Params<T>{});
    case Activation::Silu: return Silu::forward(x, Params<T>{});
    case Activation::Sigmoid: return Sigmoid::forward(x, Params<T>{});
    case Activation::Tanh: return Tanh::forward(x, Params<T>{});
    default: return x;
  }
}

// Of one element; `channel` counts those of all groups.
template <class Stored>
__device__ inline void store_result(const ConvProduct& p, Compute<Stored> sum, int64_t channel, int64_t offset) {
  using T = Compute<Stored>;
  if (p.bias) sum += to_compute<T>(static_cast<const Stored*>(p.bias)[channel]);
  if (p.residual) sum += to_compute<T>(static_cast<const Stored*>(p.residual)[offset]);
  static_cast<Stored*>(p.result)[offset] = to_stored<Stored>(activated(p.activation, sum));
}

}  // namespace
}  // namespace fastnn
