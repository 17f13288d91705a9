// Square tiles of products by plain multiply-adds: what each of 256 threads takes of one.
//
// A thread has 8 x 8 sums (4 x 4 of a tile of 64) in registers, in groups of 4 rows and columns that lie apart, so that
// a warp reads whole lines of shared memory. Both operands lie there as lines of a tile's rows or columns, one line for
// each step of the sum.
#pragma once

#include "gemm/mma_cuda.h"

namespace fastnn {
namespace {

constexpr int kSimtThreads = 256, kSimtSide = 16;  // threads of a block: 16 x 16

template <class T, int kTile>
struct SimtTile {
  static constexpr int kItems = kPackOf16<T>;
  static constexpr int kGroups = kTile / (4 * kSimtSide), kApart = kTile / kGroups;  // groups of 4 rows of a thread
  static constexpr int kEach = 4 * kGroups;
  using Sums = T[kEach][kEach];

  // The row or column of the tile that is a thread's index-th.
  static __device__ int place(int index, int thread) { return index / 4 * kApart + thread * 4 + index % 4; }

  static __device__ void load(T (&values)[kEach], const T* line, int thread) {
#pragma unroll
    for (int i = 0; i < kEach; i += kItems) {
      const Pack<T, kItems> pack = load_pack<kItems>(line + place(i, thread));
#pragma unroll
      for (int j = 0; j < kItems; ++j) values[i + j] = pack.at[j];
    }
  }

  // One step of the sum.
  static __device__ void multiply(Sums& sums, const T* line_of_rows, const T* line_of_columns, int down, int across) {
    T row[kEach], column[kEach];
    load(row, line_of_rows, down);
    load(column, line_of_columns, across);
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int j = 0; j < kEach; ++j) sums[i][j] += row[i] * column[j];
  }

  // Into shared memory: lines of columns, or transposed of rows.
  template <int kPitch>
  static __device__ void store(const Sums& sums, T* tile, bool transposed, int down, int across) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int j = 0; j < kEach; j += kItems) {
        Pack<T, kItems> pack;
#pragma unroll
        for (int e = 0; e < kItems; ++e) pack.at[e] = transposed ? sums[j + e][i] : sums[i][j + e];
        store_pack(tile + (transposed ? place(i, across) * kPitch + place(j, down)
                                      : place(i, down) * kPitch + place(j, across)),
                   pack);
      }
  }
};

// Where a thread stands among the 16 x 16: 8 x 4 to a warp.
__device__ inline int simt_across() { return int(threadIdx.x) % 8 + int(threadIdx.x) / 32 % 2 * 8; }
__device__ inline int simt_down() { return int(threadIdx.x) % 32 / 8 + int(threadIdx.x) / 64 * 4; }

}  // namespace
}  // namespace fastnn
