// Attention on the tensor cores of CUDA: tiles of 16-bit rows in shared memory, and products of them by warps, each of
// which owns 16 rows of the scores and of the result, or several times 16 (gemm/mma_cuda.h has the fragments' layouts).
//
// A row of kDim elements is kDim / 8 chunks of 16 bytes, of which chunk c lies at place c ^ (row % 8): eight rows of
// one chunk, which ldmatrix reads at a time, lie in different banks, and so do the chunks of a row, which copies write.
#pragma once

#include "gemm/mma_cuda.h"
#include "ops/attention/scores_cuda.h"

namespace fastnn {
namespace {

constexpr int64_t kMmaDim = 256;  // dimensions of a head, at most

// Elements from the begin of a tile.
template <int kDim>
FASTNN_HD constexpr int chunk_offset(int row, int chunk) {
  return row * kDim + (chunk ^ (row & 7)) * 8;
}

// The place of chunk c + k of a row from that of chunk c: c is 0 or 1 and k even.
FASTNN_HD constexpr int next_chunks(int offset, int k) { return offset ^ (k * 8); }

// Rows of a head; those beyond n and dimensions beyond dim count as zeros.
template <class T>
struct HeadRows {
  T* data;
  int64_t stride;
  int n, dim;
  bool packs;  // rows are chunks of 16 bytes
};

template <class T>
__device__ HeadRows<T> head_rows(T* data, const HeadStrides& strides, int64_t batch, int64_t head, int64_t n,
                                 int64_t dim, bool packs) {
  return {data + batch * strides.batch + head * strides.head, strides.row, int(n), int(dim), packs};
}

// kRows rows from `first` on, by all threads of the block. Whoever reads the tile waits for the copies and a barrier.
template <int kDim, int kRows, int kThreads, class T>
__device__ void load_tile(T* tile, const HeadRows<const T>& rows, int first) {
  constexpr int kChunks = kDim / 8, kStep = kThreads / kChunks;  // a thread copies one chunk of every kStep-th row
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0, "all threads copy equally many");
  const int own = int(threadIdx.x) / kChunks, row = first + own, d = int(threadIdx.x) % kChunks * 8;
  const int n = d < rows.dim ? rows.n - row : 0;
  const T* from = rows.data + row * rows.stride + d;
  if (rows.packs) {
#pragma unroll
    for (int i = 0; i < kRows; i += kStep, from += kStep * rows.stride)
      async_copy(tile + chunk_offset<kDim>(own + i, d / 8), from, i < n);
  } else {
#pragma unroll 1
    for (int i = 0; i < kRows; i += kStep, from += kStep * rows.stride)
#pragma unroll 1
      for (int e = 0; e < 8; ++e)
        tile[chunk_offset<kDim>(own + i, d / 8) + e] = i < n && d + e < rows.dim ? from[e] : T{};
  }
}

// Of the lane that holds the begin of rows and columns of a fragment: its first row and column.
__device__ inline int fragment_row() { return lane_id() / 4; }
__device__ inline int fragment_column() { return lane_id() % 4 * 2; }

// s += left right^T: 16 kFragments rows of one tile from `row` on, 8 N rows of another.
template <int kDim, class T, int kFragments, int N>
__device__ void multiply_rows(const T* left, int row, const T* right, float (&s)[kFragments][N][4]) {
  const int lane = lane_id();
  const int left_at = chunk_offset<kDim>(row + lane % 16, lane / 16);
  const int right_at = chunk_offset<kDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int k = 0; k < kDim / 8; k += 2) {
    uint32_t a[kFragments][4], b[4];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) load_matrix(a[f], left + next_chunks(left_at, k) + 16 * f * kDim);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      load_matrix(b, right + next_chunks(right_at, k) + 8 * n * kDim);
      const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        mma_16x8x16<T>(s[f][n], a[f], low);
        mma_16x8x16<T>(s[f][n + 1], a[f], high);
      }
    }
  }
}

// Scores rounded to left operands of products that sum over their columns.
template <class T, int N>
__device__ void round_scores(const float (&s)[N][4], uint32_t (&a)[N / 2][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    a[n / 2][n % 2 * 2] = pack_pair(T{}, s[n][0], s[n][1]);
    a[n / 2][n % 2 * 2 + 1] = pack_pair(T{}, s[n][2], s[n][3]);
  }
}

// result += scores times 16 K rows of a tile, of which it takes 8 kColumns dimensions.
template <int kDim, class T, int kFragments, int K, int kColumns>
__device__ void multiply_scores(const uint32_t (&scores)[kFragments][K][4], const T* tile,
                                float (&result)[kFragments][kColumns][4]) {
  const int at = chunk_offset<kDim>(lane_id() % 16, lane_id() / 16);
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int chunk = 0; chunk < kColumns; chunk += 2) {
      uint32_t b[4];
      load_matrix_transposed(b, tile + next_chunks(at, chunk) + 16 * k * kDim);
      const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        mma_16x8x16<T>(result[f][chunk], scores[f][k], low);
        mma_16x8x16<T>(result[f][chunk + 1], scores[f][k], high);
      }
    }
}

// 16 rows of a result, row g times factor[0] and row g + 8 times factor[1], into rows of a tile that no other warp
// uses.
template <int kDim, class T, int kColumns>
__device__ void round_result(const float (&result)[kColumns][4], const float (&factor)[2], T* tile, int row) {
#pragma unroll
  for (int chunk = 0; chunk < kColumns; ++chunk)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* to = tile + chunk_offset<kDim>(row + fragment_row() + 8 * half, chunk) + fragment_column();
      *reinterpret_cast<uint32_t*>(to) =
          pack_pair(T{}, result[chunk][2 * half] * factor[half], result[chunk][2 * half + 1] * factor[half]);
    }
}

// Stores `count` rows of a tile that this warp has written as rows from `first` on.
template <int kDim, class T>
__device__ void store_rows(const T* tile, int row, int count, const HeadRows<T>& rows, int first) {
  constexpr int kChunks = kDim / 8;
  warp_sync();
  for (int i = lane_id(); i < count * kChunks; i += kWarp) {
    const int to_row = first + i / kChunks, d = i % kChunks * 8;
    if (to_row >= rows.n || d >= rows.dim) continue;
    const auto chunk = load_pack<8>(tile + chunk_offset<kDim>(row + i / kChunks, i % kChunks));
    T* to = rows.data + to_row * rows.stride + d;
    if (rows.packs)
      store_pack(to, chunk);
    else
      for (int e = 0; e < 8 && d + e < rows.dim; ++e) to[e] = chunk.at[e];
  }
}

}  // namespace
}  // namespace fastnn
