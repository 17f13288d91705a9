// Micro-kernels: the tiles of gemm/tile.h, and the tile of packed panels. Included by gemm_cpu.cpp alone.
//
// Outer tiles: per step of k one broadcast for each row of A and two vector loads of B feed 2 * rows
// multiply-adds. A tile's sums go to C, or to a small block in memory, whence `Destination` puts them into C with what
// follows the product.
#pragma once

#include "gemm/epilogue.h"
#include "gemm/tile.h"
#include "simd/widen.h"

namespace fastnn {
namespace {

// Where a tile's sums go, and what is done to them on the way.
template <class T>
struct Destination {
  T* c;
  int64_t c_row;
  T alpha;
  bool accumulate;
  const T* row_bias;     // of the tile's first row, or null
  const T* column_bias;  // of the tile's first column, or null
  const T* residual;     // laid out as C, or null
  Activation activation;

  void put_one(T sum, int64_t row, int64_t column) const {
    T* target = c + row * c_row + column;
    sum *= alpha;
    if (accumulate) sum += *target;
    if (row_bias) sum += row_bias[row];
    if (column_bias) sum += column_bias[column];
    if (residual) sum += residual[row * c_row + column];
    *target = sum;
    activate_row(activation, target, 1);
  }

  // Whether sums go to C as they are.
  bool plain() const {
    return alpha == 1 && !accumulate && !row_bias && !column_bias && !residual && activation == Activation::None;
  }

  // A block of [rows][kColumns].
  template <int kColumns = Tile<T>::kColumns>
  void put(const T* block, int rows, int columns) const {
    constexpr int kLanes = Vec<T>::size;
    const Vec<T> factor = Vec<T>::broadcast(alpha);
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; j += kLanes) {
        if (j >= columns) break;
        const int count = columns - j;
        T* target = c + r * c_row + j;
        Vec<T> sum = Vec<T>::load(block + r * kColumns + j) * factor;
        if (accumulate) sum += count >= kLanes ? Vec<T>::load(target) : Vec<T>::load(target, count);
        if (row_bias) sum += Vec<T>::broadcast(row_bias[r]);
        if (column_bias) sum += count >= kLanes ? Vec<T>::load(column_bias + j) : Vec<T>::load(column_bias + j, count);
        if (residual) {
          const T* added = residual + (target - c);
          sum += count >= kLanes ? Vec<T>::load(added) : Vec<T>::load(added, count);
        }
        if (count >= kLanes) {
          sum.store(target);
        } else {
          sum.store(target, count);
        }
      }
      if (activation != Activation::None) activate_row(activation, c + r * c_row, columns);
    }
  }
};

// The sums go to rows of `out`, `out_row` elements apart. One pointer serves four rows of A, so that fourteen of them
// need four pointers and two strides, and all stay in registers. A run of tiles is one of a short k: what it writes is
// fetched beside its products. kMasked: `columns` may end inside the last vector.
template <class T, int kRows, int kVectors, bool kMasked, bool kAhead = false>
__attribute__((noinline)) void outer_tile(const OuterTile<T>& tile, T* out, int64_t out_row) {
  constexpr int kLanes = Vec<T>::size;
  constexpr bool kShort = kRows == Tile<T>::kShortRows && kVectors == Tile<T>::kShortVectors;
  const int64_t row_bytes = tile.a_row * int64_t(sizeof(T)), step = tile.a_column * int64_t(sizeof(T));
  const int tail = tile.columns - (kVectors - 1) * kLanes;
  const T* first = tile.b;
  for (int64_t i = 0; i < tile.run; ++i, first += tile.b_run, out += kVectors * kLanes) {
    const char* a[(kRows + 3) / 4];
#pragma GCC unroll 4
    for (int r = 0; r < (kRows + 3) / 4; ++r) a[r] = reinterpret_cast<const char*>(tile.a) + 4 * r * row_bytes;
    if (kShort && tile.run > 1) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) __builtin_prefetch(out + r * out_row + v * kLanes, 1);
    }
    Vec<T> sums[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec<T>::zero();
    for (int64_t p = 0; p < tile.k; ++p) {
      const T* b = first + tile.b_offsets[p];
      if constexpr (kAhead) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) __builtin_prefetch(b + tile.ahead + v * kLanes, 0, 2);
      }
      Vec<T> columns[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        columns[v] = kMasked && v == kVectors - 1 ? Vec<T>::load(b + v * kLanes, tail) : Vec<T>::load(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> row = Vec<T>::broadcast(*reinterpret_cast<const T*>(a[r / 4] + (r % 4) * row_bytes));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] += row * columns[v];
      }
#pragma GCC unroll 4
      for (int r = 0; r < (kRows + 3) / 4; ++r) a[r] += step;
    }
    T* target = out;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r, target += out_row)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        if (kMasked && v == kVectors - 1) {
          sums[r][v].store(target + v * kLanes, tail);
        } else {
          sums[r][v].store(target + v * kLanes);
        }
      }
  }
}

// Calls the kernel for the tile's height and width, searching from the largest ones down.
template <class T, int kRows = Tile<T>::kRows, int kColumns = Tile<T>::kColumns>
void run_outer_tile(const OuterTile<T>& tile, T* out, int64_t out_row) {
  constexpr int kLanes = Vec<T>::size, kVectors = kColumns / kLanes;
  if constexpr (kRows > 1) {
    if (tile.rows < kRows) return run_outer_tile<T, kRows - 1, kColumns>(tile, out, out_row);
  }
  if constexpr (kVectors > 1) {
    if (tile.columns <= kColumns - kLanes) return run_outer_tile<T, kRows, kColumns - kLanes>(tile, out, out_row);
  }
  if constexpr (kMaskedLoads && kVectors == 2 && 2 * kRows >= Tile<T>::kRows) {
    if (tile.ahead > 0) return outer_tile<T, kRows, 2, true, true>(tile, out, out_row);
  }
  if constexpr (kMaskedLoads) {
    // A mask costs AVX-512 nothing; AVX2 has a kernel for whole vectors too.
    if (kVectorBytes == 64 || tile.columns % kLanes != 0)
      return outer_tile<T, kRows, kVectors, true>(tile, out, out_row);
  }
  if constexpr (kVectorBytes != 64) return outer_tile<T, kRows, kVectors, false>(tile, out, out_row);
}

// A is a panel [k][kRows], B a panel [k][kColumns], both zero-padded to the whole tile.
template <class T>
__attribute__((noinline)) void packed_tile(const T* a, const T* b, int64_t k, int rows, int columns,
                                           const Destination<T>& out) {
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
  alignas(64) T block[kRows * kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sums[r][0].store(block + r * kColumns);
    sums[r][1].store(block + r * kColumns + kLanes);
  }
  out.put(block, rows, columns);
}

// block[kRows][kColumns], one sum for each lane of a vector. Rows and columns beyond the valid ones repeat the
// last one.
template <class T, class S, int kRows = Tile<T>::kDotRows, int kColumns = Tile<T>::kDotColumns>
__attribute__((noinline)) void dot_tile(const DotTile<S>& tile, T* block) {
  using Elements = DotElements<T, S>;
  constexpr int kSums = Vec<T>::size, kVectors = Elements::kVectors, kStep = kVectors * Vec<T>::size;
  static_assert(kRows * kColumns == kSums);
  const S* a[kRows];
  const S* b[kColumns];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) a[i] = tile.a + (i < tile.rows ? i : tile.rows - 1) * tile.a_row;
#pragma GCC unroll 16
  for (int j = 0; j < kColumns; ++j) b[j] = tile.b + tile.b_offsets[j < tile.columns ? j : tile.columns - 1];
  Vec<T> sums[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sums[i] = Vec<T>::zero();
  const auto step = [&](int64_t p, auto load) __attribute__((always_inline)) {
    Vec<T> rows[kRows][kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) load(a[i] + p, rows[i]);
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) {
      Vec<T> column[kVectors];
      load(b[j] + p, column);
      __builtin_prefetch(b[j] + p + tile.ahead, 0, 2);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[i * kColumns + j] += rows[i][v] * column[v];
    }
  };
  for (int64_t run = 0; run < tile.runs; ++run) {
    int64_t p = 0;
    for (; p + kStep <= tile.k; p += kStep) step(p, [](const S* x, Vec<T>* out) { Elements::load(x, out); });
    if (p < tile.k) step(p, [&](const S* x, Vec<T>* out) { Elements::load(x, tile.k - p, out); });
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) a[i] += tile.a_run;
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) b[j] += tile.b_run;
  }
  row_sums(sums).store(block);
}

}  // namespace
}  // namespace fastnn
