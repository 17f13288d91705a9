// Micro-kernels: one register tile of C, all of its k. Included by gemm_cpu.cpp alone.
//
// outer_tile    C[rows, 2 vectors] from A[:, p] B[p, :], p = 0 .. k: one broadcast per row and two
//               vector loads feed rows * 2 multiply-adds. The operands lie where they lie.
// packed_tile   the same for whole tiles of packed panels; edges are cut off at the end.
// dot_tile      C[i, j] from A[i, :] B[:, j], vectors along k, for operands contiguous in k (x W^T):
//               a block of as many sums as a vector has lanes.
// Block sizes stand here, beside the kernels they are made for.
#pragma once

#include <cstdint>

#include "simd/transpose.h"
#include "simd/vec.h"

namespace fastnn {
namespace {

template <class T>
struct Tile {
  // Accumulators fill the registers: 28 of 32 zmm, 24 of 32 on aarch64, 12 of 16 ymm or xmm.
#if defined(__AVX512F__)
  static constexpr int kRows = 14;
#elif defined(__aarch64__)
  static constexpr int kRows = 12;
#else
  static constexpr int kRows = 6;
#endif
  static constexpr int kColumns = 2 * Vec<T>::size;
  // The depth of a packed block: a panel of B, kDepth x kColumns, is about the first-level cache.
  static constexpr int64_t kDepth = sizeof(T) == 4 ? 384 : 256;
  static constexpr int kDotRows = Vec<T>::size >= 16 ? 4 : Vec<T>::size >= 4 ? 2 : 1;
  static constexpr int kDotColumns = Vec<T>::size / kDotRows;
};

// Where a tile's sums go, and what is done to them on the way.
template <class T>
struct Destination {
  T* c;
  int64_t c_row;
  T alpha;
  bool accumulate;
  const T* row_bias;     // of the tile's first row, or null
  const T* column_bias;  // of the tile's first column, or null

  T finish(T sum, int64_t row, int64_t column) const {
    sum *= alpha;
    if (accumulate) sum += c[row * c_row + column];
    if (row_bias) sum += row_bias[row];
    if (column_bias) sum += column_bias[column];
    return sum;
  }

  // A tile of sums, from registers spilled once: the loop is not unrolled over them.
  template <int kVectors>
  void put(const Vec<T> (*sums)[kVectors], int rows, int columns) const {
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) put_vector(sums[r][v], r, v * Vec<T>::size, columns - v * Vec<T>::size);
  }

 private:
  void put_vector(Vec<T> sum, int row, int column, int count) const {
    if (count <= 0) return;
    T* target = c + row * c_row + column;
    const bool whole = count >= Vec<T>::size;
    sum = sum * Vec<T>::broadcast(alpha);
    if (accumulate) sum += whole ? Vec<T>::load(target) : Vec<T>::load(target, count);
    if (row_bias) sum += Vec<T>::broadcast(row_bias[row]);
    if (column_bias) sum += whole ? Vec<T>::load(column_bias + column) : Vec<T>::load(column_bias + column, count);
    if (whole) {
      sum.store(target);
    } else {
      sum.store(target, count);
    }
  }
};

// A: a_row between rows, a_column between steps of k. B: b_row between steps of k.
template <class T>
struct OuterTile {
  const T* a;
  int64_t a_row, a_column;
  const T* b;
  int64_t b_row;
  int64_t k;
  int rows, columns;
  Destination<T> out;
};

// One pointer serves four rows, so that fourteen of them need four pointers and two strides, and all
// stay in registers. kMasked: `columns` may end inside the last vector.
template <class T, int kRows, int kVectors, bool kMasked>
__attribute__((noinline)) void outer_tile(const OuterTile<T>& tile) {
  constexpr int kLanes = Vec<T>::size;
  const int64_t row_bytes = tile.a_row * int64_t(sizeof(T)), step = tile.a_column * int64_t(sizeof(T));
  const char* a[(kRows + 3) / 4];
#pragma GCC unroll 4
  for (int i = 0; i < (kRows + 3) / 4; ++i) a[i] = reinterpret_cast<const char*>(tile.a) + 4 * i * row_bytes;
  const T* b = tile.b;
  const int tail = tile.columns - (kVectors - 1) * kLanes;
  Vec<T> sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec<T>::zero();
  for (int64_t p = 0; p < tile.k; ++p) {
    Vec<T> columns[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      columns[v] = kMasked && v == kVectors - 1 ? Vec<T>::load(b + v * kLanes, tail) : Vec<T>::load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> row = Vec<T>::broadcast(*reinterpret_cast<const T*>(a[r / 4] + (r % 4) * row_bytes));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[r][v] += row * columns[v];
    }
#pragma GCC unroll 4
    for (int i = 0; i < (kRows + 3) / 4; ++i) a[i] += step;
    b += tile.b_row;
  }
  Vec<T> block[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) block[r][v] = sums[r][v];
  tile.out.put(block, kRows, tile.columns);
}

// Partial loads inside the k loop need masks: the baseline has none, and takes whole vectors only.
#if defined(__AVX2__)
constexpr bool kMaskedLoads = true;
#else
constexpr bool kMaskedLoads = false;
#endif

// Calls the kernel for the tile's height and width, searching from the largest height down.
template <class T, int kRows = Tile<T>::kRows>
void run_outer_tile(const OuterTile<T>& tile) {
  constexpr int kLanes = Vec<T>::size;
  if constexpr (kRows > 1) {
    if (tile.rows < kRows) return run_outer_tile<T, kRows - 1>(tile);
  }
  if constexpr (kMaskedLoads) {
    if (kLanes == 16 || tile.columns % kLanes != 0)
      return tile.columns > kLanes ? outer_tile<T, kRows, 2, true>(tile) : outer_tile<T, kRows, 1, true>(tile);
  }
  if constexpr (kLanes != 16)
    return tile.columns > kLanes ? outer_tile<T, kRows, 2, false>(tile) : outer_tile<T, kRows, 1, false>(tile);
}

// A is a panel [k][kRows], B a panel [k][kColumns], zero-padded to the whole tile.
template <class T>
__attribute__((noinline)) void packed_tile(const T* a, const T* b, int64_t k, int rows, int columns, const Destination<T>& out) {
  constexpr int kLanes = Vec<T>::size, kRows = Tile<T>::kRows, kColumns = Tile<T>::kColumns;
  constexpr int kPrefetchSteps = 16;
  for (int r = 0; r < rows; ++r) {
    __builtin_prefetch(out.c + r * out.c_row, 1);
    __builtin_prefetch(out.c + r * out.c_row + kLanes, 1);
  }
  Vec<T> sums[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vec<T>::zero();
#pragma GCC unroll 4
  for (int64_t p = 0; p < k; ++p) {
    const Vec<T> left = Vec<T>::load(b), right = Vec<T>::load(b + kLanes);
    __builtin_prefetch(a + kPrefetchSteps * kRows);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> row = Vec<T>::broadcast(a[r]);
      sums[r][0] += row * left;
      sums[r][1] += row * right;
    }
    a += kRows;
    b += kColumns;
  }
  Vec<T> block[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) block[r][0] = sums[r][0], block[r][1] = sums[r][1];
  out.put(block, rows, columns);
}

// Both operands are contiguous in k. Rows and columns beyond the valid ones repeat the last one.
template <class T>
struct DotTile {
  const T* a;
  int64_t a_row;
  const T* b;
  int64_t b_column;
  int64_t k;
  int rows, columns;
  Destination<T> out;
};

template <class T>
__attribute__((noinline)) void dot_tile(const DotTile<T>& tile) {
  constexpr int kLanes = Vec<T>::size, kRows = Tile<T>::kDotRows, kColumns = Tile<T>::kDotColumns;
  const T* a[kRows];
  const T* b[kColumns];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) a[i] = tile.a + (i < tile.rows ? i : tile.rows - 1) * tile.a_row;
#pragma GCC unroll 4
  for (int j = 0; j < kColumns; ++j) b[j] = tile.b + (j < tile.columns ? j : tile.columns - 1) * tile.b_column;
  Vec<T> sums[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) sums[i] = Vec<T>::zero();
  for (int64_t p = 0; p < tile.k; p += kLanes) {
    const int64_t left = tile.k - p;
    Vec<T> columns[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j)
      columns[j] = left >= kLanes ? Vec<T>::load(b[j] + p) : Vec<T>::load(b[j] + p, left);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> row = left >= kLanes ? Vec<T>::load(a[i] + p) : Vec<T>::load(a[i] + p, left);
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) sums[i * kColumns + j] += row * columns[j];
    }
  }
  T block[kLanes];
  row_sums(sums).store(block);
  for (int i = 0; i < tile.rows; ++i)
    for (int j = 0; j < tile.columns; ++j)
      tile.out.c[i * tile.out.c_row + j] = tile.out.finish(block[i * kColumns + j], i, j);
}

}  // namespace
}  // namespace fastnn
