// From a floating dtype to its type, for launchers.
#pragma once

#include "core/dtype.h"
#include "simd/half.h"

namespace fastnn {
namespace {

// Calls visit(TypeTag<T>()) with the type of a floating dtype.
template <class Visit>
inline void with_float_type(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::Float64: return visit(TypeTag<double>());
    case DType::Float32: return visit(TypeTag<float>());
    case DType::BFloat16: return visit(TypeTag<bfloat16>());
    default: return visit(TypeTag<float16>());
  }
}

}  // namespace
}  // namespace fastnn
