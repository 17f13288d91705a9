// Register tiles: what the matrix engine is made of, for families whose operands are not matrices in
// memory (convolution reads patches of images as rows of B, by offset).
//
//   outer tile   block[i][j] = sum over p of A[i, p] B[p, j]     B's rows lie at b + b_offsets[p]
//   dot tile     block[i][j] = sum over p of A[i, p] B[p, j]     A's rows and B's columns are contiguous
//                                                                in p, B's columns lie at b + b_offsets[j];
//                                                                16-bit elements are widened in registers
// Compiled once per CPU level, in gemm_cpu.cpp.
#pragma once

#include <cstdint>

#include "simd/vec.h"

namespace fastnn {
namespace {

// Partial loads inside a loop over k need masks: the baseline has none, and its outer tiles are whole vectors.
#if defined(__AVX2__)
constexpr bool kMaskedLoads = true;
#else
constexpr bool kMaskedLoads = false;
#endif

template <class T>
struct Tile {
  // The outer tile: accumulators fill the registers, 28 of 32 zmm, 24 of 32 on aarch64, 12 of 16 ymm or xmm.
  // The short one is for products of a short k, whose time goes into C: wider, it writes longer runs.
#if defined(__AVX512F__)
  static constexpr int kRows = 14, kShortRows = 8, kShortVectors = 3;
#elif defined(__aarch64__)
  static constexpr int kRows = 12, kShortRows = kRows, kShortVectors = 2;
#else
  static constexpr int kRows = 6, kShortRows = kRows, kShortVectors = 2;
#endif
  static constexpr int kColumns = 2 * Vec<T>::size, kShortColumns = kShortVectors * Vec<T>::size;
  // The dot tile: as many sums as a vector has lanes.
  static constexpr int kDotRows = Vec<T>::size >= 16 ? 4 : Vec<T>::size >= 4 ? 2 : 1;
  static constexpr int kDotColumns = Vec<T>::size / kDotRows;
};

}  // namespace

// rows <= kRows, columns <= kColumns; without masked loads `columns` is a multiple of the vector.
// `ahead`: a tall tile prefetches each row of B this many elements further on, for the tiles to come.
// `run`: as many tiles side by side, of whole columns, their B `b_run` elements apart: a call costs as much as some
// five steps of k.
template <class T>
struct OuterTile {
  const T* a;
  int64_t a_row, a_column;
  const T* b;
  const int64_t* b_offsets;
  int64_t k;
  int rows, columns;
  int64_t ahead = 0;
  int64_t run = 1, b_run = 0;
};

// rows <= kDotRows, columns <= kDotColumns; sums beyond them are meaningless. k may come in several
// runs of equal length, `a_run` and `b_run` elements apart. `ahead`: B's columns are prefetched this many elements
// further on, for the tiles to come.
template <class S>
struct DotTile {
  const S* a;
  int64_t a_row;
  const S* b;
  const int64_t* b_offsets;
  int64_t k;
  int rows, columns;
  int64_t runs = 1, a_run = 0, b_run = 0;
  int64_t ahead = 0;
};

#ifdef FASTNN_LEVEL
namespace FASTNN_LEVEL {
// `block` is 64-byte aligned, [rows][kColumns] or [kDotRows][kDotColumns].
void gemm_outer_tile(const OuterTile<float>& tile, float* block);
void gemm_outer_tile(const OuterTile<double>& tile, double* block);
void gemm_dot_tile(const DotTile<float>& tile, float* block);
void gemm_dot_tile(const DotTile<double>& tile, double* block);
}  // namespace FASTNN_LEVEL
#endif

}  // namespace fastnn
