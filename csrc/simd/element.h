// One element between its storage type and the type a kernel computes in, for CPU levels and for CUDA.
//
// Integers wrap on store as C++ and PyTorch do; float to integer truncates; bool stores 1 for anything
// but 0.
#pragma once

#include <cstdint>

#include "simd/half.h"

namespace fastnn {
namespace {

template <class T>
constexpr bool is_float_type = T(0.5) != T(0);

template <class To, class From>
FASTNN_HD inline To to_compute(From value) {
  if constexpr (sizeof(From) == 2 && !__is_trivially_constructible(From, int))
    return static_cast<To>(to_float(value));
  else
    return static_cast<To>(value);
}

template <class Stored, class T>
FASTNN_HD inline Stored to_stored(T value) {
  if constexpr (__is_same(Stored, bfloat16)) {
    return to_bfloat16(static_cast<float>(value));
  } else if constexpr (__is_same(Stored, float16)) {
    return to_float16(static_cast<float>(value));
  } else if constexpr (__is_same(Stored, bool)) {
    return value != T(0);
  } else if constexpr (is_float_type<T> && !is_float_type<Stored>) {
    // Out of range (and NaN) is undefined in C++: give what x86's cvttsd2si gives for int64, wrapped.
    const bool fits = value >= T(-9223372036854775808.0) && value < T(9223372036854775808.0);
    return static_cast<Stored>(fits ? static_cast<int64_t>(value) : INT64_MIN);
  } else {
    return static_cast<Stored>(value);
  }
}

}  // namespace
}  // namespace fastnn
