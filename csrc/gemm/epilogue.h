// What follows a product, on a row of finished sums: included by the engine and by convolution.
#pragma once

#include "gemm/gemm.h"
#include "simd/functors.h"

namespace fastnn {
namespace {

template <class Functor, class T>
inline void apply_row(T* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] = Functor::forward(row[i], Params<T>{});
}

template <class T>
__attribute__((noinline)) void activate_row(Activation activation, T* row, int64_t n) {
  switch (activation) {
    case Activation::None: return;
    case Activation::Relu: return apply_row<Relu>(row, n);
    case Activation::Gelu: return apply_row<Gelu>(row, n);
    case Activation::GeluTanh: return apply_row<GeluTanh>(row, n);
    case Activation::Silu: return apply_row<Silu>(row, n);
    case Activation::Sigmoid: return apply_row<Sigmoid>(row, n);
    case Activation::Tanh: return apply_row<Tanh>(row, n);
  }
}

}  // namespace
}  // namespace fastnn
