// Attention forward on tensor cores of 16-bit types: see attention_cuda.cu for the loop.
//
// A block takes 128 queries of a head; a warp owns 32 of them (16 of 256 dimensions) with their scores, sums and output
// in registers, so rows need no memory and no other warp. Tiles of 64 keys (32 where the output leaves no registers for
// more scores) and of their values take turns: the values come while the scores are computed, the next keys while the
// values are multiplied. Scores are kept in units of log 2: the exponential is one instruction.
//
// operations  4 q_len kv_len kDim of 990 TF/s, half of them under the diagonal; an exponential for 4 kDim of them
// bytes       K and V once for each 128 queries, mostly from L2; a warp reads 4 kDim bytes of shared memory for each
//             key and 128 kDim operations, 1/2 of what a fragment of 16 rows would need
// a thread    kDim = 64: 64 accumulators, 64 scores; 128: 128 and 32; 256: 128 and 16; up to 255 registers
// shared      32, 48, 96 KB; two blocks of an SM overlap their exponentials and products (one of 256 dimensions)
#pragma once

#include "ops/attention/tiles_mma.h"

namespace fastnn {
namespace {

template <int kHeadDim>
struct ForwardTiles {
  static constexpr int kDim = kHeadDim, kKeys = kDim == 64 ? 64 : 32;
  static constexpr int kFragments = kDim <= 128 ? 2 : 1;  // of 16 queries, of a warp
  static constexpr int kThreads = kDim <= 128 ? 128 : 256;
  static constexpr int kQueries = kThreads / kWarp * 16 * kFragments;
  static constexpr size_t kSharedBytes = size_t(kQueries + 2 * kKeys) * kDim * 2;
};

// The running maximum and sum of the rows g and g + 8 of a fragment; the sum is of this lane's columns.
struct FragmentRows {
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
};

// Scores become e^(S - m); factor is what earlier sums and outputs are multiplied by.
template <int N>
__device__ void softmax_fragment(const AttentionArgs& args, const ScoreTile& tile, bool masked, float (&s)[N][4],
                                 FragmentRows& rows, float (&factor)[2]) {
  float unit = float(args.scale) * kLog2E;
  if (masked || !(unit > 0)) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] *= unit;
    mask_scores<Fragments, false>(args, tile, kLog2E, s);
    unit = 1;
  }
  float shift[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = s[0][2 * half];
#pragma unroll
    for (int n = 0; n < N; ++n) highest = max(highest, max(s[n][2 * half], s[n][2 * half + 1]));
    const float m = max(rows.m[half], warp_reduce<Max, 4>(highest) * unit);
    shift[half] = m == -INFINITY ? 0 : m;
    factor[half] = exp2_fast(rows.m[half] - shift[half]);
    rows.m[half] = m;
    rows.l[half] *= factor[half];
  }
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[n][i] = exp2_fast(s[n][i] * unit - shift[i / 2]);
      rows.l[i / 2] += s[n][i];
    }
  if (args.drop_threshold != 0) drop_scores<Fragments>(args, tile, s);
}

template <int N>
__device__ void scale_fragment(const float (&factor)[2], float (&out)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) out[n][i] *= factor[i / 2];
}

template <class T, class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads)
    attend_mma(const __grid_constant__ AttentionArgs args, const Deal deal, bool packs) {
  constexpr int kDim = Tiles::kDim, kKeys = Tiles::kKeys, kFragments = Tiles::kFragments, kThreads = Tiles::kThreads;
  FASTNN_DYNAMIC_SHARED(shared);
  T* const queries = reinterpret_cast<T*>(shared);
  T *const keys = queries + Tiles::kQueries * kDim, *const values = keys + kKeys * kDim;
  const Place place = place_of(deal, args.causal);
  const int64_t batch = place.batch, head = place.head, kv_head = head / (args.heads / args.kv_heads);
  const auto q =
      head_rows(static_cast<const T*>(args.q), args.q_strides, batch, head, args.q_len, args.head_dim, packs);
  const auto k =
      head_rows(static_cast<const T*>(args.k), args.k_strides, batch, kv_head, args.kv_len, args.head_dim, packs);
  const auto v =
      head_rows(static_cast<const T*>(args.v), args.v_strides, batch, kv_head, args.kv_len, args.value_dim, packs);
  const int first = place.tile * Tiles::kQueries, own = warp_id() * 16 * kFragments;  // row of this warp in the tile
  const int row = first + own, tiles = reached_tiles(args, first + Tiles::kQueries, kKeys);
  FragmentRows softmax[kFragments];
  float out[kFragments][kDim / 8][4] = {};
  load_tile<kDim, Tiles::kQueries, kThreads>(queries, q, first);
  load_tile<kDim, kKeys, kThreads>(keys, k, 0);
  async_copy_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    const int key = tile * kKeys;
    const bool useful = row < q.n && !(args.causal && key >= row + 16 * kFragments);  // the same for the whole warp
    async_copy_wait<0>();
    block_sync();
    load_tile<kDim, kKeys, kThreads>(values, v, key);
    async_copy_commit();
    float s[kFragments][kKeys / 8][4] = {};
    if (useful) multiply_rows<kDim>(queries, own, keys, s);
    async_copy_wait<0>();
    block_sync();
    if (tile + 1 < tiles) load_tile<kDim, kKeys, kThreads>(keys, k, key + kKeys);
    async_copy_commit();
    if (!useful) continue;
    uint32_t p[kFragments][kKeys / 16][4];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const ScoreTile scores{batch, head, row + 16 * f + fragment_row(), key + fragment_column()};
      float factor[2];
      softmax_fragment(args, scores, is_masked(args, row + 16 * f, key + kKeys), s[f], softmax[f], factor);
      scale_fragment(factor, out[f]);
      round_scores<T>(s[f], p[f]);
    }
    multiply_scores<kDim>(p, values, out);
  }
  async_copy_wait<0>();
  block_sync();
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = warp_reduce<Sum, 4>(softmax[f].l[half]);
      const int query = row + 16 * f + fragment_row() + 8 * half;
      factor[half] = total == 0 ? 0 : 1 / total;
      if (lane_id() % 4 == 0 && query < q.n)
        static_cast<float*>(args.lse)[row_of(args, batch, head, query)] =
            total == 0 ? INFINITY : softmax[f].m[half] / kLog2E + log_(total);
    }
    round_result<kDim>(out[f], factor, queries, own + 16 * f);
  }
  const auto to =
      head_rows(static_cast<T*>(args.out), args.out_strides, batch, head, args.q_len, args.value_dim, packs);
  store_rows<kDim>(queries, own, 16 * kFragments, to, row);
}

template <class T, class Tiles>
void forward_mma_of(const AttentionArgs& args) {
  const bool packs = rows_in_packs(args.q, args.q_strides, args.head_dim, 8, sizeof(T)) &&
                     rows_in_packs(args.k, args.k_strides, args.head_dim, 8, sizeof(T)) &&
                     rows_in_packs(args.v, args.v_strides, args.value_dim, 8, sizeof(T)) &&
                     rows_in_packs(args.out, args.out_strides, args.value_dim, 8, sizeof(T));
  const Deal deal{args.heads, tiles_for(args.q_len, Tiles::kQueries), 1};
  launch(attend_mma<T, Tiles>, deal.shape(args.batch, Tiles::kThreads, Tiles::kSharedBytes), args, deal, packs);
}

template <class T>
void forward_mma(const AttentionArgs& args) {
  const int64_t dim = std::max(args.head_dim, args.value_dim);
  if (dim <= 64)
    forward_mma_of<T, ForwardTiles<64>>(args);
  else if (dim <= 128)
    forward_mma_of<T, ForwardTiles<128>>(args);
  else
    forward_mma_of<T, ForwardTiles<256>>(args);
}

}  // namespace
}  // namespace fastnn
