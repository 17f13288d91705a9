// Attention backward on tensor cores of 16-bit types: see attention_cuda_backward.cu for the loops.
//
// One kernel does both: its block owns 64 rows of a pair of operands (A, A') and walks over tiles of the other pair
// (B, B'), both of a tile on their way while the one before is computed with.
//
//                        A, A'    B, B'     rows     columns    results
//   dK and dV            K, V     Q, dO     keys     queries    dV += P^T dO, dK += dS^T Q
//   dQ, dS               Q, dO    K, V      queries  keys       dQ += dS K
//
// S = A B^T and dP = A' B'^T become P and dS in the registers of a warp, which owns 16 rows: as rounded operands they
// multiply B' and B at once, so they pass through no memory and between no warps.
//
// operations  14 q_len kv_len kDim of 990 TF/s (20 for 256 dimensions, where dK and dV are computed in two parts)
// bytes       the other pair once for each 64 rows, mostly from L2; a warp reads 8 kDim bytes of shared memory for each
//             column and 128 kDim (dQ: 96 kDim) operations
// a thread    dK and dV, kDim = 64: 64 accumulators, 64 scores; 128: 128 and 32; 256: 128 and 32; dQ: half, half, 128
// shared      48, 64, 128 KB
#pragma once

#include "ops/attention/tiles_mma.h"

namespace fastnn {
namespace {

template <int kHeadDim, bool kKeys>
struct BackwardTiles {
  static constexpr bool kOwnsKeys = kKeys;
  static constexpr int kDim = kHeadDim, kThreads = 128, kOwn = 64, kOther = kDim == 64 ? 64 : 32;
  static constexpr int kColumns = kOwnsKeys && kDim > 128 ? 128 : kDim;  // of the results, that a block computes
  static constexpr int kOwnSize = kOwn * kDim, kOtherSize = kOther * kDim;
  static constexpr size_t kRowsAt = size_t(2 * kOwnSize + 4 * kOtherSize) * 2;  // lse and delta of two tiles
  static constexpr size_t kSharedBytes = kRowsAt + 4 * kOther * sizeof(float);
};

// Scores and dP become P, without the entries that dropout left out, and dS. Of row g + 8h or of column n, i.
template <bool kKeysAreRows, int N, class RowOf>
__device__ void fragment_gradients(const AttentionArgs& args, const ScoreTile& tile, bool masked, const RowOf& row_of,
                                   float (&p)[N][4], float (&ds)[N][4]) {
  const float unit = float(args.scale) * kLog2E;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[n][i] *= unit;
  if (masked) mask_scores<Fragments, kKeysAreRows>(args, tile, kLog2E, p);
  const bool drops = args.drop_threshold != 0;
  const uint32_t kept = drops ? kept_scores<Fragments, kKeysAreRows, N>(args, tile) : 0;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 row = row_of(n, i);  // lse and delta
      const float probability = exp2_fast(p[n][i] - row.x * kLog2E);
      const float keep = drops ? keep_factor<float>(args, kept, n, i) : 1;
      ds[n][i] = probability * (ds[n][i] * keep - row.y);
      p[n][i] = probability * keep;
    }
}

// The pair of operands of a head: those of keys (K, V) or of queries (Q, dO).
template <class T>
struct OperandPair {
  HeadRows<const T> first, second;
};

template <class T>
__device__ OperandPair<T> key_pair(const AttentionBackwardArgs& args, int64_t batch, int64_t kv_head, bool packs) {
  const AttentionArgs& f = args.forward;
  return {head_rows(static_cast<const T*>(f.k), f.k_strides, batch, kv_head, f.kv_len, f.head_dim, packs),
          head_rows(static_cast<const T*>(f.v), f.v_strides, batch, kv_head, f.kv_len, f.value_dim, packs)};
}
template <class T>
__device__ OperandPair<T> query_pair(const AttentionBackwardArgs& args, int64_t batch, int64_t head, bool packs) {
  const AttentionArgs& f = args.forward;
  return {head_rows(static_cast<const T*>(f.q), f.q_strides, batch, head, f.q_len, f.head_dim, packs),
          head_rows(static_cast<const T*>(args.dout), args.dout_strides, batch, head, f.q_len, f.value_dim, packs)};
}

// The rows of a block, times `scale`, through the tile that they own.
template <class Tiles, class T>
__device__ void store_gradient(const float (&result)[1][Tiles::kColumns / 8][4], float scale, T* tile, void* to,
                               const HeadStrides& strides, const Place& place, int64_t n, int64_t dim, bool packs) {
  const float factor[2] = {scale, scale};
  const int own = warp_id() * 16, column = place.part * Tiles::kColumns;
  auto rows = head_rows(static_cast<T*>(to) + column, strides, place.batch, place.head, n,
                        min(dim - column, int64_t(Tiles::kColumns)), packs);
  round_result<Tiles::kDim>(result[0], factor, tile, own);
  store_rows<Tiles::kDim>(tile, own, 16, rows, place.tile * Tiles::kOwn + own);
}

template <class T, class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, Tiles::kDim <= 128 ? 2 : 1)
    gradients_mma(const __grid_constant__ AttentionBackwardArgs args, const float* delta, const Deal deal, bool packs) {
  constexpr int kDim = Tiles::kDim, kOther = Tiles::kOther, kThreads = Tiles::kThreads;
  constexpr bool kOwnsKeys = Tiles::kOwnsKeys;
  FASTNN_DYNAMIC_SHARED(shared);
  T* const own = reinterpret_cast<T*>(shared);
  T* const others = own + 2 * Tiles::kOwnSize;
  float* const rows = reinterpret_cast<float*>(shared + Tiles::kRowsAt);
  const AttentionArgs& forward = args.forward;
  const float* lse = static_cast<const float*>(forward.lse);
  const Place place = place_of(deal, !kOwnsKeys && forward.causal);
  const int64_t group = forward.heads / forward.kv_heads;
  const int first = place.tile * Tiles::kOwn, own_row = warp_id() * 16;
  // Keys meet the tiles of queries of each head in turn; queries meet tiles of keys.
  const int begin = kOwnsKeys ? first_reaching_tile(forward, first, kOther) : 0;
  const int end =
      kOwnsKeys ? int(tiles_for(forward.q_len, kOther)) : reached_tiles(forward, first + Tiles::kOwn, kOther);
  const int count = max(end - begin, 0), steps = kOwnsKeys ? count * int(group) : count;
  const auto head_at = [&](int step) { return kOwnsKeys ? place.head * group + step / count : place.head; };
  const auto tile_at = [&](int step) { return (begin + step % count) * kOther; };

  const auto load_others = [&](int step) {
    const int64_t head = head_at(step);
    const auto pair =
        kOwnsKeys ? query_pair<T>(args, place.batch, head, packs) : key_pair<T>(args, place.batch, head / group, packs);
    T* const to = others + step % 2 * 2 * Tiles::kOtherSize;
    load_tile<kDim, kOther, kThreads>(to, pair.first, tile_at(step));
    load_tile<kDim, kOther, kThreads>(to + Tiles::kOtherSize, pair.second, tile_at(step));
    if (kOwnsKeys && threadIdx.x < kOther) {  // zeros beyond the queries: dO and delta are, so nothing is added
      const int query = tile_at(step) + int(threadIdx.x);
      const int64_t at = row_of(forward, place.batch, head, query);
      float* const row = rows + step % 2 * 2 * kOther + threadIdx.x;
      async_copy<4>(row, lse + at, query < forward.q_len);
      async_copy<4>(row + kOther, delta + at, query < forward.q_len);
    }
  };

  const auto pair = kOwnsKeys ? key_pair<T>(args, place.batch, place.head, packs)
                              : query_pair<T>(args, place.batch, place.head, packs);
  load_tile<kDim, Tiles::kOwn, kThreads>(own, pair.first, first);
  load_tile<kDim, Tiles::kOwn, kThreads>(own + Tiles::kOwnSize, pair.second, first);
  if (steps > 0) load_others(0);
  async_copy_commit();
  float2 own_rows[2] = {};
  if constexpr (!kOwnsKeys) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first + own_row + fragment_row() + 8 * half;
      if (query >= forward.q_len) continue;
      const int64_t at = row_of(forward, place.batch, place.head, query);
      own_rows[half] = make_float2(lse[at], delta[at]);
    }
  }
  float result[1][Tiles::kColumns / 8][4] = {}, result_v[1][kOwnsKeys ? Tiles::kColumns / 8 : 1][4] = {};
  const bool useful = first + own_row < pair.first.n;
  for (int step = 0; step < steps; ++step) {
    async_copy_wait<0>();
    block_sync();
    if (step + 1 < steps) load_others(step + 1);
    async_copy_commit();
    if (!useful) continue;
    const T* const b = others + step % 2 * 2 * Tiles::kOtherSize;
    const float* const row = rows + step % 2 * 2 * kOther + fragment_column();
    const int other = tile_at(step), query = kOwnsKeys ? other : first + own_row;
    const int key_end = kOwnsKeys ? first + own_row + 16 : other + kOther;
    const ScoreTile tile{place.batch, head_at(step), first + own_row + fragment_row(), other + fragment_column()};
    float p[1][kOther / 8][4] = {}, ds[1][kOther / 8][4] = {};
    multiply_rows<kDim>(own, own_row, b, p);
    multiply_rows<kDim>(own + Tiles::kOwnSize, own_row, b + Tiles::kOtherSize, ds);
    fragment_gradients<kOwnsKeys>(
        forward, tile, is_masked(forward, query, key_end),
        [&](int n, int i) {
          if constexpr (kOwnsKeys) return make_float2(row[8 * n + i % 2], row[kOther + 8 * n + i % 2]);
          return own_rows[i / 2];
        },
        p[0], ds[0]);
    uint32_t operand[1][kOther / 16][4];
    if constexpr (kOwnsKeys) {
      round_scores<T>(p[0], operand[0]);
      multiply_scores<kDim>(operand, b + Tiles::kOtherSize + place.part * Tiles::kColumns, result_v);
    } else if (args.dscores) {
      store_score_gradients<Fragments, false>(args, tile, ds[0]);
    }
    round_scores<T>(ds[0], operand[0]);
    multiply_scores<kDim>(operand, b + place.part * Tiles::kColumns, result);
  }
  async_copy_wait<0>();
  block_sync();
  const float scale = float(forward.scale);
  if constexpr (kOwnsKeys) {
    store_gradient<Tiles>(result, scale, own, args.dk, args.dk_strides, place, forward.kv_len, forward.head_dim, packs);
    store_gradient<Tiles>(result_v, 1, own + Tiles::kOwnSize, args.dv, args.dv_strides, place, forward.kv_len,
                          forward.value_dim, packs);
  } else {
    store_gradient<Tiles>(result, scale, own, args.dq, args.dq_strides, place, forward.q_len, forward.head_dim, packs);
  }
}

template <class T, class Tiles>
void backward_mma_of(const AttentionBackwardArgs& args, const float* delta) {
  const AttentionArgs& f = args.forward;
  bool packs = true;
  for (const auto& [data, strides, dim] : {std::tuple<const void*, HeadStrides, int64_t>{f.q, f.q_strides, f.head_dim},
                                           {f.k, f.k_strides, f.head_dim},
                                           {f.v, f.v_strides, f.value_dim},
                                           {args.dout, args.dout_strides, f.value_dim},
                                           {args.dq, args.dq_strides, f.head_dim},
                                           {args.dk, args.dk_strides, f.head_dim},
                                           {args.dv, args.dv_strides, f.value_dim}})
    packs = packs && rows_in_packs(data, strides, dim, 8, sizeof(T));
  const Deal deal{Tiles::kOwnsKeys ? f.kv_heads : f.heads,
                  tiles_for(Tiles::kOwnsKeys ? f.kv_len : f.q_len, Tiles::kOwn), Tiles::kDim / Tiles::kColumns};
  launch(gradients_mma<T, Tiles>, deal.shape(f.batch, Tiles::kThreads, Tiles::kSharedBytes), args, delta, deal, packs);
}

template <class T, int kDim>
void backward_mma_dim(const AttentionBackwardArgs& args, const float* delta) {
  backward_mma_of<T, BackwardTiles<kDim, true>>(args, delta);
  backward_mma_of<T, BackwardTiles<kDim, false>>(args, delta);
}

template <class T>
void backward_mma(const AttentionBackwardArgs& args, const float* delta) {
  const int64_t dim = std::max(args.forward.head_dim, args.forward.value_dim);
  if (dim <= 64)
    backward_mma_dim<T, 64>(args, delta);
  else if (dim <= 128)
    backward_mma_dim<T, 128>(args, delta);
  else
    backward_mma_dim<T, 256>(args, delta);
}

}  // namespace
}  // namespace fastnn
