// Products of tiles in shared memory on tensor cores (mma.sync): how a warp reads fragments of an OperandTile,
// multiplies them, and lays out its sums. The kernels that bring the tiles there are others'.
#pragma once

#include "core/dtype.h"
#include "gemm/mma_cuda.h"
#include "gemm/tile_cuda.h"

namespace fastnn {
namespace {

// 16 of m or n by 32 bytes of k, as four fragments of 8 by 16 bytes: of an A the first index to change is the half of
// m, of a B that of k.
template <class T, class Tile, bool kAlongK, bool kIsA>
__device__ inline void load_fragments(uint32_t (&r)[4], const unsigned char* tile, int outer, int step) {
  if constexpr (!kAlongK && sizeof(T) == 4) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int at = outer + (kIsA ? q % 2 : q / 2) * 8 + g, row = step * 8 + (kIsA ? q / 2 : q % 2) * 4 + t;
      r[q] = *reinterpret_cast<const uint32_t*>(tile + Tile::offset(row, at / 4) + at % 4 * 4);
    }
  } else {
    const int matrix = lane_id() / 8, line = lane_id() % 8;
    const int half_outer = kIsA ? matrix % 2 : matrix / 2, half_k = kIsA ? matrix / 2 : matrix % 2;
    if constexpr (kAlongK)
      load_matrix(r, tile + Tile::offset(outer + half_outer * 8 + line, step * 2 + half_k));
    else
      load_matrix_transposed(r, tile + Tile::offset(step * 16 + half_k * 8 + line, outer / 8 + half_outer));
  }
  if constexpr (sizeof(T) == 4)
#pragma unroll
    for (uint32_t& word : r) word = to_tf32(bits_to_float(word));
}

template <class T>
__device__ inline void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 4)
    mma_16x8x8_tf32(sums, a, b);
  else
    mma_16x8x16<T>(sums, a, b);
}

// A tile of kRows x kColumns of which a warp takes half the rows and 32 columns.
template <class T, int kRows, int kColumns, bool kAAlongK, bool kBAlongK>
struct WarpTile {
  using TileA = OperandTile<sizeof(T), kRows, kAAlongK>;
  using TileB = OperandTile<sizeof(T), kColumns, kBAlongK>;
  static constexpr int kWarpRows = 2, kWarpColumns = kColumns / 32;  // of warps
  static constexpr int kThreads = kWarpRows * kWarpColumns * kWarp;
  static constexpr int kHigh = kRows / kWarpRows / 16, kWide = 2;  // of a warp: 16 rows each, 16 columns each
  static constexpr int kSteps = 4;                                 // of 32 bytes of k in a stage
  static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;

  float sums[kHigh][2 * kWide][4] = {};

  static __device__ int first_row() { return warp_id() / kWarpColumns * kHigh * 16; }
  static __device__ int first_column() { return warp_id() % kWarpColumns * kWide * 16; }

  // Adds the product of a stage: A's tile with B's behind it.
  __device__ void multiply(const unsigned char* stage) {
    uint32_t rows[2][kHigh][4], columns[2][kWide][4];
    const auto load = [&](int step) {
#pragma unroll
      for (int i = 0; i < kHigh; ++i)
        load_fragments<T, TileA, kAAlongK, true>(rows[step % 2][i], stage, first_row() + i * 16, step);
#pragma unroll
      for (int j = 0; j < kWide; ++j)
        load_fragments<T, TileB, kBAlongK, false>(columns[step % 2][j], stage + TileA::kBytes, first_column() + j * 16,
                                                  step);
    };
    load(0);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step + 1 < kSteps) load(step + 1);
#pragma unroll
      for (int i = 0; i < kHigh; ++i)
#pragma unroll
        for (int j = 0; j < 2 * kWide; ++j) {
          const uint32_t (&pair)[4] = columns[step % 2][j / 2];
          const uint32_t column[2] = {pair[j % 2 * 2], pair[j % 2 * 2 + 1]};
          multiply_fragments<T>(sums[i][j], rows[step % 2][i], column);
        }
    }
  }

  // visit(row, column, pair) for the sums of this lane: two columns each.
  template <class Visit>
  __device__ void for_pairs(const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < kHigh; ++i)
#pragma unroll
      for (int j = 0; j < 2 * kWide; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          visit(first_row() + i * 16 + half * 8 + lane_id() / 4, first_column() + j * 8 + lane_id() % 4 * 2,
                Pack<float, 2>{sums[i][j][2 * half], sums[i][j][2 * half + 1]});
  }
};

}  // namespace
}  // namespace fastnn
