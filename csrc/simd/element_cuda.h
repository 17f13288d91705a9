// Elements of any dtype on a GPU, as registers of the type that a kernel computes in: the switch goes the same way
// for the whole grid. The conversions are those of the CPU (simd/element.h).
#pragma once

#include "core/cuda_device.h"
#include "core/dtype.h"
#include "simd/element.h"

namespace fastnn {
namespace {

template <class T>
__device__ T load_element(const void* data, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::Bool: return to_compute<T>(static_cast<const bool*>(data)[offset]);
    case DType::UInt8: return to_compute<T>(static_cast<const uint8_t*>(data)[offset]);
    case DType::Int8: return to_compute<T>(static_cast<const int8_t*>(data)[offset]);
    case DType::Int16: return to_compute<T>(static_cast<const int16_t*>(data)[offset]);
    case DType::Int32: return to_compute<T>(static_cast<const int32_t*>(data)[offset]);
    case DType::Int64: return to_compute<T>(static_cast<const int64_t*>(data)[offset]);
    case DType::Float16: return to_compute<T>(static_cast<const float16*>(data)[offset]);
    case DType::BFloat16: return to_compute<T>(static_cast<const bfloat16*>(data)[offset]);
    case DType::Float32: return to_compute<T>(static_cast<const float*>(data)[offset]);
    default: return to_compute<T>(static_cast<const double*>(data)[offset]);
  }
}

template <class T>
__device__ void store_element(void* data, DType dtype, int64_t offset, T value) {
  switch (dtype) {
    case DType::Bool: static_cast<bool*>(data)[offset] = to_stored<bool>(value); return;
    case DType::UInt8: static_cast<uint8_t*>(data)[offset] = to_stored<uint8_t>(value); return;
    case DType::Int8: static_cast<int8_t*>(data)[offset] = to_stored<int8_t>(value); return;
    case DType::Int16: static_cast<int16_t*>(data)[offset] = to_stored<int16_t>(value); return;
    case DType::Int32: static_cast<int32_t*>(data)[offset] = to_stored<int32_t>(value); return;
    case DType::Int64: static_cast<int64_t*>(data)[offset] = to_stored<int64_t>(value); return;
    case DType::Float16: static_cast<float16*>(data)[offset] = to_stored<float16>(value); return;
    case DType::BFloat16: static_cast<bfloat16*>(data)[offset] = to_stored<bfloat16>(value); return;
    case DType::Float32: static_cast<float*>(data)[offset] = to_stored<float>(value); return;
    default: static_cast<double*>(data)[offset] = to_stored<double>(value); return;
  }
}

// Four neighbouring elements, aligned to their size together.
constexpr int kFour = 4;

template <class Stored, class T>
__device__ void load_four_of(const void* data, int64_t offset, T (&x)[kFour]) {
  const Pack<Stored, kFour> pack = load_pack<kFour>(static_cast<const Stored*>(data) + offset);
#pragma unroll
  for (int j = 0; j < kFour; ++j) x[j] = to_compute<T>(pack.at[j]);
}

template <class T>
__device__ void load_four(const void* data, DType dtype, int64_t offset, T (&x)[kFour]) {
  switch (dtype) {
    case DType::Bool: return load_four_of<bool>(data, offset, x);
    case DType::UInt8: return load_four_of<uint8_t>(data, offset, x);
    case DType::Int8: return load_four_of<int8_t>(data, offset, x);
    case DType::Int16: return load_four_of<int16_t>(data, offset, x);
    case DType::Int32: return load_four_of<int32_t>(data, offset, x);
    case DType::Int64: return load_four_of<int64_t>(data, offset, x);
    case DType::Float16: return load_four_of<float16>(data, offset, x);
    case DType::BFloat16: return load_four_of<bfloat16>(data, offset, x);
    case DType::Float32: return load_four_of<float>(data, offset, x);
    default: return load_four_of<double>(data, offset, x);
  }
}

template <class Stored, class T>
__device__ void store_four_of(void* data, int64_t offset, const T (&x)[kFour]) {
  Pack<Stored, kFour> pack;
#pragma unroll
  for (int j = 0; j < kFour; ++j) pack.at[j] = to_stored<Stored>(x[j]);
  store_pack(static_cast<Stored*>(data) + offset, pack);
}

template <class T>
__device__ void store_four(void* data, DType dtype, int64_t offset, const T (&x)[kFour]) {
  switch (dtype) {
    case DType::Bool: return store_four_of<bool>(data, offset, x);
    case DType::UInt8: return store_four_of<uint8_t>(data, offset, x);
    case DType::Int8: return store_four_of<int8_t>(data, offset, x);
    case DType::Int16: return store_four_of<int16_t>(data, offset, x);
    case DType::Int32: return store_four_of<int32_t>(data, offset, x);
    case DType::Int64: return store_four_of<int64_t>(data, offset, x);
    case DType::Float16: return store_four_of<float16>(data, offset, x);
    case DType::BFloat16: return store_four_of<bfloat16>(data, offset, x);
    case DType::Float32: return store_four_of<float>(data, offset, x);
    default: return store_four_of<double>(data, offset, x);
  }
}

}  // namespace
}  // namespace fastnn
