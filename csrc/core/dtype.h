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

// A digit for each type, the first one last: compilers put a table of a constexpr function on the stack, and to read
// one number of it waits until what was stored before has reached the cache.
constexpr size_t item_size(DType t) { return (0x8422842111 >> (4 * static_cast<int>(t))) & 15; }
static_assert(item_size(DType::Bool) == 1 && item_size(DType::Int16) == 2 && item_size(DType::Int32) == 4 &&
              item_size(DType::Int64) == 8 && item_size(DType::Float16) == 2 && item_size(DType::BFloat16) == 2 &&
              item_size(DType::Float32) == 4 && item_size(DType::Float64) == 8);

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
