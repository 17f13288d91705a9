// The units that a recurrent kernel takes at a time: two registers of one row. Blocks are of kUnits units; the last one
// of a layer may be shorter, and its missing units compute on zeros.
#pragma once

#include "gemm/tile.h"
#include "simd/lanes.h"

namespace fastnn {
namespace {

template <class T>
constexpr int64_t kUnits = Tile<T>::kColumns;

// The units of one row of a block.
template <class T>
struct Units {
  static constexpr int kHalves = 2;
  static_assert(kUnits<T> == kHalves * kLanes<T>, "a block is two registers wide");
  Values<T> half[kHalves];

  Values<T>& operator[](int i) { return half[i]; }
  const Values<T>& operator[](int i) const { return half[i]; }
};

#define FASTNN_EACH_HALF _Pragma("GCC unroll 2") for (int i = 0; i < 2; ++i)

// Of adjacent elements, of which the first n are there.
template <class T, class Stored>
inline FASTNN_INLINED Units<T> load_adjacent(const Stored* p, int64_t n) {
  if (n == kUnits<T>) return {load_values(p), load_values(p + kLanes<T>)};
  if (n <= kLanes<T>) return {load_values(p, n), Values<T>{}};
  return {load_values(p), load_values(p + kLanes<T>, n - kLanes<T>)};
}
template <class T, class Stored>
inline FASTNN_INLINED void store_adjacent(Stored* p, const Units<T>& units, int64_t n) {
  if (n <= kLanes<T>) return store_values(p, units[0], n);
#ifdef __AVX512BF16__
  if constexpr (__is_same(Stored, bfloat16))
    if (n == kUnits<T>) return _mm512_storeu_si512(p, __m512i(_mm512_cvtne2ps_pbh(__m512(units[1]), __m512(units[0]))));
#endif
  store_values(p, units[0]);
  store_values(p + kLanes<T>, units[1], n - kLanes<T>);
}

template <class T>
inline FASTNN_INLINED Units<T> load_units(const T* p, int64_t n) {
  return load_adjacent<T>(p, n);
}
template <class T>
inline FASTNN_INLINED void store_units(T* p, const Units<T>& units, int64_t n) {
  store_adjacent(p, units, n);
}

// The same of a matrix of a storage type; a null one is zeros.
template <class T>
inline FASTNN_INLINED Units<T> load_units(const void* matrix, DType dtype, int64_t at, int64_t n) {
  if (!matrix) return {};
  if (dtype == dtype_of<T>()) return load_adjacent<T>(static_cast<const T*>(matrix) + at, n);
  if constexpr (__is_same(T, float)) {
    if (dtype == DType::BFloat16) return load_adjacent<T>(static_cast<const bfloat16*>(matrix) + at, n);
    return load_adjacent<T>(static_cast<const float16*>(matrix) + at, n);
  }
  return {};
}
template <class T>
inline FASTNN_INLINED void store_units(void* matrix, DType dtype, int64_t at, const Units<T>& units, int64_t n) {
  if (dtype == dtype_of<T>()) return store_adjacent(static_cast<T*>(matrix) + at, units, n);
  if constexpr (__is_same(T, float)) {
    if (dtype == DType::BFloat16) return store_adjacent(static_cast<bfloat16*>(matrix) + at, units, n);
    store_adjacent(static_cast<float16*>(matrix) + at, units, n);
  }
}

// Rows of units in a matrix of a storage type, which begin at element `first` and lie `stride` apart. By value, as what
// follows is: what a kernel stores may not change it, so it stays in registers.
template <class T, class Data>
struct StoredRows {
  Data* data;
  DType dtype;
  int64_t first, stride;

  FASTNN_INLINED Units<T> load(int64_t row, int64_t n, int64_t column = 0) const {
    return load_units<T>(data, dtype, first + row * stride + column, n);
  }
  FASTNN_INLINED void store(int64_t row, const Units<T>& units, int64_t n, int64_t column = 0) const {
    store_units(data, dtype, first + row * stride + column, units, n);
  }
};

// The same of whole blocks in the compute type, adjacent.
template <class T>
struct UnitRows {
  T* data;

  FASTNN_INLINED Units<T> get(int64_t row) const { return load_units(data + row * kUnits<T>, kUnits<T>); }
  FASTNN_INLINED void set(int64_t row, const Units<T>& units) const {
    store_units(data + row * kUnits<T>, units, kUnits<T>);
  }
};

template <class T>
inline FASTNN_INLINED void add_units(Units<T>& sum, const Units<T>& other) {
  FASTNN_EACH_HALF sum[i] += other[i];
}

}  // namespace
}  // namespace fastnn
