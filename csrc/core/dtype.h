// Element types, their names and sizes, and PyTorch's promotion rules as one table.
//
// bfloat16 and float16 are storage types: kernels load them into float32, compute, and round back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/check.h"
#include "simd/half.h"

namespace fastnn {

enum class DType : uint8_t { Bool, UInt8, Int8, Int16, Int32, Int64, Float16, BFloat16, Float32, Float64 };
constexpr int kDTypeCount = 10;

constexpr bool is_floating(DType t) { return t >= DType::Float16; }
constexpr bool is_reduced_float(DType t) { return t == DType::Float16 || t == DType::BFloat16; }
constexpr bool is_integral(DType t) { return t < DType::Float16 && t != DType::Bool; }

constexpr size_t item_size(DType t) {
  constexpr size_t sizes[kDTypeCount] = {1, 1, 1, 2, 4, 8, 2, 2, 4, 8};
  return sizes[static_cast<int>(t)];
}

constexpr const char* dtype_name(DType t) {
  constexpr const char* names[kDTypeCount] = {"bool",  "uint8",   "int8",     "int16",   "int32",
                                              "int64", "float16", "bfloat16", "float32", "float64"};
  return names[static_cast<int>(t)];
}

inline std::ostream& operator<<(std::ostream& out, DType t) { return out << dtype_name(t); }

// The type of `a + b` for two tensors that both have dimensions.
DType promote(DType a, DType b);

// The type a kernel computes in: float32 for the 16-bit floats, int64 for bool and integers.
constexpr DType compute_dtype(DType t) {
  return t == DType::Float64 ? t : is_floating(t) ? DType::Float32 : DType::Int64;
}

template <class T>
struct TypeTag {
  using type = T;
};

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<bool>() {
  return DType::Bool;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::UInt8;
}
template <>
constexpr DType dtype_of<int8_t>() {
  return DType::Int8;
}
template <>
constexpr DType dtype_of<int16_t>() {
  return DType::Int16;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::Int32;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::Int64;
}
template <>
constexpr DType dtype_of<float16>() {
  return DType::Float16;
}
template <>
constexpr DType dtype_of<bfloat16>() {
  return DType::BFloat16;
}
template <>
constexpr DType dtype_of<float>() {
  return DType::Float32;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::Float64;
}

}  // namespace fastnn
