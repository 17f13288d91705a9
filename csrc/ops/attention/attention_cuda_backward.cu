// Attention backward on CUDA: see attention.h for the formulas. Deterministic: each result has one block, which sums in
// a fixed order, so the scores are computed twice.
//
//   delta = sum dO O, of each row                                         a warp
//   for each tile of keys of a key and value head                         a block: dK and dV
//     for each of its query heads, for each tile of queries               tiles above the diagonal are left out
//       P = e^(Q K^T - lse);  dS = P (dO V^T - delta);  dV += P^T dO;  dK += dS^T Q
//   for each tile of queries of a head                                    a block: dQ, and dS where it is wanted
//     for each tile of keys
//       P and dS again;  dQ += dS K
//
// Here: without tensor cores (tiles_cuda.h). Operations: 14 q_len kv_len head_dim, as many scores more as there are
// parts of kPartColumns dimensions; bytes: the other tiles once for each tile, from L2.
//
// SASS gradients_mma: HMMA LDGSTS LDSM
#include <tuple>

#include "ops/attention/backward_mma.h"
#include "ops/attention/tiles_cuda.h"

namespace fastnn {
namespace {

// ---------------------------------------------------------------------------------------- delta

constexpr int kDeltaThreads = 256;

template <class Stored>
__global__ void __launch_bounds__(kDeltaThreads)
    dot_rows(const __grid_constant__ AttentionBackwardArgs args, Compute<Stored>* delta) {
  using T = Compute<Stored>;
  const AttentionArgs& forward = args.forward;
  const int64_t row = int64_t(blockIdx.x) * (kDeltaThreads / kWarp) + warp_id();
  if (row >= forward.batch * forward.heads * forward.q_len) return;
  const int64_t query = row % forward.q_len, pair = row / forward.q_len;
  const int64_t batch = pair / forward.heads, head = pair % forward.heads;
  const Stored* out = head_of<Stored>(static_cast<const void*>(forward.out), forward.out_strides, batch, head) +
                      query * forward.out_strides.row;
  const Stored* dout = head_of<Stored>(args.dout, args.dout_strides, batch, head) + query * args.dout_strides.row;
  T sum = T(0);
  for (int64_t d = lane_id(); d < forward.value_dim; d += kWarp) sum += to_compute<T>(out[d]) * to_compute<T>(dout[d]);
  sum = warp_reduce<Sum>(sum);
  if (lane_id() == 0) delta[row] = sum;
}

// ---------------------------------------------------------------------------------------- tiles of 64 x 64

// The rows of a head that a tile of scores reads.
template <class Stored>
struct TileRows {
  Rows<Stored> q, k, v, dout;

  __device__ TileRows(const AttentionBackwardArgs& args, int64_t batch, int64_t head, bool packs) {
    const AttentionArgs& f = args.forward;
    const int64_t kv_head = head / (f.heads / f.kv_heads);
    q = rows_of(head_of<Stored>(f.q, f.q_strides, batch, head), f.q_strides.row, f.q_len, f.head_dim, packs);
    k = rows_of(head_of<Stored>(f.k, f.k_strides, batch, kv_head), f.k_strides.row, f.kv_len, f.head_dim, packs);
    v = rows_of(head_of<Stored>(f.v, f.v_strides, batch, kv_head), f.v_strides.row, f.kv_len, f.value_dim, packs);
    dout = rows_of(head_of<Stored>(args.dout, args.dout_strides, batch, head), args.dout_strides.row, f.q_len,
                   f.value_dim, packs);
  }
};

// P, without the entries that dropout left out, and dS of the tile from (query, key) on.
template <class Stored, class T>
__device__ void score_gradients(const AttentionBackwardArgs& args, const T* delta, const TileRows<Stored>& rows,
                                const ScoreTile& tile, int query, int key, TileMemory<T>& memory, T (&p)[4][4],
                                T (&ds)[4][4]) {
  const AttentionArgs& forward = args.forward;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) p[i][j] = ds[i][j] = T(0);
  multiply_rows(rows.q, query, rows.k, key, memory, p);
  multiply_rows(rows.dout, query, rows.v, key, memory, ds);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) p[i][j] *= T(forward.scale);
  if (is_masked(forward, query, key + kTile)) mask_scores<Grid, false>(forward, tile, T(1), p);
  const bool drops = forward.drop_threshold != 0;
  const uint32_t kept = drops ? kept_scores<Grid, false, 4>(forward, tile) : 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool valid = tile.row + i < forward.q_len;
    const int64_t row = row_of(forward, tile.batch, tile.head, tile.row + i);
    const T lse = valid ? static_cast<const T*>(forward.lse)[row] : T(INFINITY), sum = valid ? delta[row] : T(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const T probability = exp_(p[i][j] - lse), keep = drops ? keep_factor<T>(forward, kept, i, j) : T(1);
      ds[i][j] = probability * (ds[i][j] * keep - sum);
      p[i][j] = probability * keep;
    }
  }
}

template <class Stored>
__global__ void __launch_bounds__(kTileThreads, 1)
    key_gradients(const __grid_constant__ AttentionBackwardArgs args, const Compute<Stored>* delta, const Deal deal,
                  bool packs) {
  using T = Compute<Stored>;
  FASTNN_DYNAMIC_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T>*>(shared);
  const AttentionArgs& forward = args.forward;
  const Place place = place_of(deal, false);
  const int64_t batch = place.batch, group = forward.heads / forward.kv_heads;
  const int key = place.tile * kTile, column = place.part * kPartColumns<T>;
  T dk[kGroups<T>][4][4] = {}, dv[kGroups<T>][4][4] = {};
  for (int64_t head = place.head * group; head < (place.head + 1) * group; ++head) {
    const TileRows<Stored> rows(args, batch, head, packs);
    for (int query = first_reaching_tile(forward, key, kTile) * kTile; query < forward.q_len; query += kTile) {
      const ScoreTile tile{batch, head, query + 4 * thread_y(), key + 4 * thread_x()};
      T p[4][4], ds[4][4];
      score_gradients(args, delta, rows, tile, query, key, memory, p, ds);
      share_scores<true>(p, memory.scores);
      multiply_scores(rows.dout, query, column, memory, dv);
      share_scores<true>(ds, memory.scores);
      multiply_scores(rows.q, query, column, memory, dk);
    }
  }
  const T scale = T(forward.scale), scales[4] = {scale, scale, scale, scale}, ones[4] = {T(1), T(1), T(1), T(1)};
  store_result(head_of<Stored>(args.dk, args.dk_strides, batch, place.head), args.dk_strides.row, int(forward.kv_len),
               int(forward.head_dim), key, column, scales, dk);
  store_result(head_of<Stored>(args.dv, args.dv_strides, batch, place.head), args.dv_strides.row, int(forward.kv_len),
               int(forward.value_dim), key, column, ones, dv);
}

template <class Stored>
__global__ void __launch_bounds__(kTileThreads, 1)
    query_gradients(const __grid_constant__ AttentionBackwardArgs args, const Compute<Stored>* delta, const Deal deal,
                    bool packs) {
  using T = Compute<Stored>;
  FASTNN_DYNAMIC_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T>*>(shared);
  const AttentionArgs& forward = args.forward;
  const Place place = place_of(deal, forward.causal);
  const int query = place.tile * kTile, column = place.part * kPartColumns<T>;
  const TileRows<Stored> rows(args, place.batch, place.head, packs);
  T dq[kGroups<T>][4][4] = {};
  const int tiles = reached_tiles(forward, query + kTile, kTile);
  for (int key = 0; key < tiles * kTile; key += kTile) {
    const ScoreTile tile{place.batch, place.head, query + 4 * thread_y(), key + 4 * thread_x()};
    T p[4][4], ds[4][4];
    score_gradients(args, delta, rows, tile, query, key, memory, p, ds);
    if (args.dscores && place.part == 0) store_score_gradients<Grid, false>(args, tile, ds);
    share_scores<false>(ds, memory.scores);
    multiply_scores(rows.k, key, column, memory, dq);
  }
  const T scale = T(forward.scale), scales[4] = {scale, scale, scale, scale};
  store_result(head_of<Stored>(args.dq, args.dq_strides, place.batch, place.head), args.dq_strides.row,
               int(forward.q_len), int(forward.head_dim), query, column, scales, dq);
}

template <class Stored>
void backward_tiles(const AttentionBackwardArgs& args, const Compute<Stored>* delta) {
  using T = Compute<Stored>;
  const AttentionArgs& forward = args.forward;
  const bool packs = rows_in_packs(forward.q, forward.q_strides, forward.head_dim, 4, sizeof(Stored)) &&
                     rows_in_packs(forward.k, forward.k_strides, forward.head_dim, 4, sizeof(Stored)) &&
                     rows_in_packs(forward.v, forward.v_strides, forward.value_dim, 4, sizeof(Stored)) &&
                     rows_in_packs(args.dout, args.dout_strides, forward.value_dim, 4, sizeof(Stored));
  const int64_t q_parts = tiles_for(forward.head_dim, kPartColumns<T>);
  const int64_t kv_parts = std::max(q_parts, tiles_for(forward.value_dim, kPartColumns<T>));
  const Deal keys{forward.kv_heads, tiles_for(forward.kv_len, kTile), kv_parts};
  const Deal queries{forward.heads, tiles_for(forward.q_len, kTile), q_parts};
  launch(key_gradients<Stored>, keys.shape(forward.batch, kTileThreads, sizeof(TileMemory<T>)), args, delta, keys,
         packs);
  launch(query_gradients<Stored>, queries.shape(forward.batch, kTileThreads, sizeof(TileMemory<T>)), args, delta,
         queries, packs);
}

// ---------------------------------------------------------------------------------------- launcher

template <class Stored>
void backward_of(const AttentionBackwardArgs& args) {
  const AttentionArgs& forward = args.forward;
  const int64_t rows = forward.batch * forward.heads * forward.q_len;
  const CudaScratch scratch(size_t(rows) * sizeof(Compute<Stored>));
  const auto delta = scratch.as<Compute<Stored>>();
  launch(dot_rows<Stored>, dim3(unsigned(tiles_for(rows, kDeltaThreads / kWarp))), dim3(kDeltaThreads), 0, args, delta);
  if constexpr (sizeof(Stored) == 2)
    if (forward.head_dim <= kMmaDim && forward.value_dim <= kMmaDim) return backward_mma<Stored>(args, delta);
  backward_tiles<Stored>(args, delta);
}

void backward(const AttentionBackwardArgs& args) {
  with_float_type(args.forward.dtype, [&](auto tag) { backward_of<typename decltype(tag)::type>(args); });
}

}  // namespace

FASTNN_CUDA_KERNEL(attention_backward, backward)

}  // namespace fastnn
