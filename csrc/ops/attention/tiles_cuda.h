// Attention on CUDA without tensor cores: products of tiles of 64 queries and 64 keys by a block of 16 x 16 threads.
// Thread (x, y) holds the scores of queries 4y to 4y + 3 and keys 4x to 4x + 3, and of a result of 64 rows the rows
// 4y to 4y + 3 and four columns from 4x + 64c on.
//
// Operands pass through shared memory kStep dimensions (or rows) at a time, so any dimension will do. In a step each
// thread reads packs of 4 and multiplies 4 x 4 (scores) or 4 x 4 kGroups (results): 3 and 2 + 2 kGroups wavefronts of
// 128 bytes for 16 and 16 kGroups multiply-adds a thread, which take 4 and 4 kGroups cycles.
#pragma once

#include "ops/attention/scores_cuda.h"

namespace fastnn {
namespace {

constexpr int kTile = 64;
constexpr int kTileThreads = 256;
constexpr int kStep = 16;
constexpr int kTileStride = kTile + 4;  // of shared rows: the stores of a column meet different banks

// Columns of a result that one block computes; wider results are cut into parts.
template <class T>
constexpr int kGroups = sizeof(T) == 8 ? 1 : 2;
template <class T>
constexpr int kPartColumns = kGroups<T> * kTile;

template <class T>
struct TileMemory {
  T left[kStep * kTileStride], right[kStep * kTileStride];  // columns of the operands: [dimension][row]
  T scores[kTile * kTileStride];                            // [index that is summed over][row of the result]
  T rows[kStep * kPartColumns<T>];
};

__device__ inline int thread_x() { return int(threadIdx.x) % 16; }
__device__ inline int thread_y() { return int(threadIdx.x) / 16; }

// Rows of a head from `first` on; those beyond n and dimensions beyond dim count as zeros.
template <class Stored>
struct Rows {
  const Stored* data;
  int64_t stride;
  int n, dim;
  bool packs;  // in fours

  // Four elements of a row.
  __device__ Pack<Compute<Stored>, 4> load(int row, int d) const {
    Pack<Compute<Stored>, 4> values{};
    if (row >= n || d >= dim) return values;
    const Stored* from = data + row * stride + d;
    if (packs) return load_values<4>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (d + i < dim) values.at[i] = to_compute<Compute<Stored>>(from[i]);
    return values;
  }
};

// 64 rows from `first` on, dimensions d to d + kStep - 1, into columns.
template <class Stored>
__device__ void load_columns(const Rows<Stored>& rows, int first, int d, Compute<Stored>* columns) {
  const int row = int(threadIdx.x) / 4, c = int(threadIdx.x) % 4 * 4;
  const auto values = rows.load(first + row, d + c);
#pragma unroll
  for (int i = 0; i < 4; ++i) columns[(c + i) * kTileStride + row] = values.at[i];
}

// s += left right^T for the tiles of rows from `query` and `key` on.
template <class Stored, class T>
__device__ void multiply_rows(const Rows<Stored>& left, int query, const Rows<Stored>& right, int key,
                              TileMemory<T>& memory, T (&s)[4][4]) {
  for (int d = 0; d < left.dim; d += kStep) {
    block_sync();
    load_columns(left, query, d, memory.left);
    load_columns(right, key, d, memory.right);
    block_sync();
#pragma unroll 4
    for (int k = 0; k < kStep; ++k) {
      const auto a = load_pack<4>(memory.left + k * kTileStride + 4 * thread_y());
      const auto b = load_pack<4>(memory.right + k * kTileStride + 4 * thread_x());
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] += a.at[i] * b.at[j];
    }
  }
}

// Scores of (query, key) become the left operand of multiply_scores: keys are summed over, or queries.
template <bool kSumQueries, class T>
__device__ void share_scores(const T (&s)[4][4], T* scores) {
  block_sync();  // until those before are read
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Pack<T, 4> pack;
#pragma unroll
    for (int j = 0; j < 4; ++j) pack.at[j] = kSumQueries ? s[i][j] : s[j][i];
    const int outer = kSumQueries ? thread_y() : thread_x(), inner = kSumQueries ? thread_x() : thread_y();
    store_pack(scores + (4 * outer + i) * kTileStride + 4 * inner, pack);
  }
}

// result += shared scores times 64 rows from `first` on, columns from `column` on.
template <class Stored, class T>
__device__ void multiply_scores(const Rows<Stored>& rows, int first, int column, TileMemory<T>& memory,
                                T (&result)[kGroups<T>][4][4]) {
  constexpr int kPacks = kPartColumns<T> / 4;
  const int n = min(rows.n - first, kTile);
  for (int at = 0; at < n; at += kStep) {
    block_sync();
    for (int i = int(threadIdx.x); i < kStep * kPacks; i += kTileThreads)
      store_pack(memory.rows + 4 * i, rows.load(first + at + i / kPacks, column + i % kPacks * 4));
    block_sync();
#pragma unroll 4
    for (int k = 0; k < kStep; ++k) {
      const auto a = load_pack<4>(memory.scores + (at + k) * kTileStride + 4 * thread_y());
#pragma unroll
      for (int group = 0; group < kGroups<T>; ++group) {
        const auto b = load_pack<4>(memory.rows + k * kPartColumns<T> + group * kTile + 4 * thread_x());
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) result[group][i][j] += a.at[i] * b.at[j];
      }
    }
  }
}

// Rows from `first` on and columns from `column` on of a result, row i times factor[i].
template <class Stored, class T>
__device__ void store_result(Stored* to, int64_t stride, int n, int dim, int first, int column, const T (&factor)[4],
                             const T (&result)[kGroups<T>][4][4]) {
#pragma unroll
  for (int group = 0; group < kGroups<T>; ++group)
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = first + 4 * thread_y() + i, d = column + group * kTile + 4 * thread_x() + j;
        if (row < n && d < dim) to[row * stride + d] = to_stored<Stored>(result[group][i][j] * factor[i]);
      }
}

template <class Stored>
__device__ Rows<Stored> rows_of(const Stored* data, int64_t stride, int64_t n, int64_t dim, bool packs) {
  return {data, stride, int(n), int(dim), packs};
}

}  // namespace
}  // namespace fastnn
