// Row conversions between storage and compute types: see convert.h. Memory-bound; the contiguous
// loops vectorise, the strided ones are a load per element.
#include "simd/convert.h"

#include "simd/element.h"

namespace fastnn {
namespace {

template <class From, class To>
void load_typed(To* __restrict row, const void* src, int64_t stride, int64_t n) {
  const From* from = static_cast<const From*>(src);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) row[i] = to_compute<To>(from[i]);
  } else if (stride == 0) {
    const To value = to_compute<To>(from[0]);
    for (int64_t i = 0; i < n; ++i) row[i] = value;
  } else {
    for (int64_t i = 0; i < n; ++i) row[i] = to_compute<To>(from[i * stride]);
  }
}

template <class Stored, class T>
void store_typed(void* dst, int64_t stride, const T* __restrict row, int64_t n) {
  Stored* to = static_cast<Stored*>(dst);
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = to_stored<Stored>(row[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * stride] = to_stored<Stored>(row[i]);
  }
}

template <class T>
void load_any(T* row, const void* src, DType dtype, int64_t stride, int64_t n) {
  if (n <= 0) return;
  switch (dtype) {
    case DType::Bool: return load_typed<bool>(row, src, stride, n);
    case DType::UInt8: return load_typed<uint8_t>(row, src, stride, n);
    case DType::Int8: return load_typed<int8_t>(row, src, stride, n);
    case DType::Int16: return load_typed<int16_t>(row, src, stride, n);
    case DType::Int32: return load_typed<int32_t>(row, src, stride, n);
    case DType::Int64: return load_typed<int64_t>(row, src, stride, n);
    case DType::Float16: return load_typed<float16>(row, src, stride, n);
    case DType::BFloat16: return load_typed<bfloat16>(row, src, stride, n);
    case DType::Float32: return load_typed<float>(row, src, stride, n);
    case DType::Float64: return load_typed<double>(row, src, stride, n);
  }
}

template <class T>
void store_any(void* dst, DType dtype, int64_t stride, const T* row, int64_t n) {
  switch (dtype) {
    case DType::Bool: return store_typed<bool>(dst, stride, row, n);
    case DType::UInt8: return store_typed<uint8_t>(dst, stride, row, n);
    case DType::Int8: return store_typed<int8_t>(dst, stride, row, n);
    case DType::Int16: return store_typed<int16_t>(dst, stride, row, n);
    case DType::Int32: return store_typed<int32_t>(dst, stride, row, n);
    case DType::Int64: return store_typed<int64_t>(dst, stride, row, n);
    case DType::Float16: return store_typed<float16>(dst, stride, row, n);
    case DType::BFloat16: return store_typed<bfloat16>(dst, stride, row, n);
    case DType::Float32: return store_typed<float>(dst, stride, row, n);
    case DType::Float64: return store_typed<double>(dst, stride, row, n);
  }
}

}  // namespace

namespace FASTNN_LEVEL {

#define FASTNN_ROWS(T)                                                              \
  void load_row(T* row, const void* src, DType dtype, int64_t stride, int64_t n) {  \
    load_any(row, src, dtype, stride, n);                                           \
  }                                                                                 \
  void store_row(void* dst, DType dtype, int64_t stride, const T* row, int64_t n) { \
    store_any(dst, dtype, stride, row, n);                                          \
  }
FASTNN_ROWS(float)
FASTNN_ROWS(double)
FASTNN_ROWS(int64_t)
#undef FASTNN_ROWS

}  // namespace FASTNN_LEVEL
}  // namespace fastnn
