// Attention forward on CUDA: see attention.h for the formulas.
//
//   for each tile of queries of a head                                    a block
//     for each tile of keys                                               tiles beyond the diagonal are left out
//       S = Q K^T;  m' = max(m, max S);  P = e^(S - m');  l = l e^(m - m') + sum P;  O = O e^(m - m') + P V
//     out = O / l,  lse = m + log l
//
// Here: without tensor cores (tiles_cuda.h), for float32, float64, and the 16-bit types of head dimensions above 256.
// Operations: 2 q_len kv_len (head_dim parts + value_dim) of 67 TF/s in float32, where a part of kPartColumns values
// computes its scores anew; bytes: K and V once for each tile of queries, from L2. Shared memory: 34 KB in float32.
//
// SASS attend_mma: HMMA LDGSTS LDSM
#include "ops/attention/decode_cuda.h"
#include "ops/attention/forward_mma.h"
#include "ops/attention/tiles_cuda.h"

namespace fastnn {
namespace {

// ---------------------------------------------------------------------------------------- tiles of 64 x 64

// The running maximum and sum of four rows: l is the sum over the columns of this thread.
template <class T>
struct SoftmaxRows {
  T m[4], l[4];
};

template <class T>
__device__ void softmax_tile(const AttentionArgs& args, const ScoreTile& tile, T (&s)[4][4], SoftmaxRows<T>& rows,
                             T (&factor)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const T highest = warp_reduce<Max, 16>(max(max(s[i][0], s[i][1]), max(s[i][2], s[i][3])));
    const T m = max(rows.m[i], highest), shift = m == -T(INFINITY) ? T(0) : m;
    factor[i] = exp_(rows.m[i] - shift);
    rows.m[i] = m;
    T sum = T(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += s[i][j] = exp_(s[i][j] - shift);
    rows.l[i] = rows.l[i] * factor[i] + sum;
  }
  if (args.drop_threshold != 0) drop_scores<Grid>(args, tile, s);
}

template <class Stored>
__global__ void __launch_bounds__(kTileThreads, 1)
    attend_tiles(const __grid_constant__ AttentionArgs args, const Deal deal, bool packs) {
  using T = Compute<Stored>;
  FASTNN_DYNAMIC_SHARED(shared);
  auto& memory = *reinterpret_cast<TileMemory<T>*>(shared);
  const Place place = place_of(deal, args.causal);
  const int64_t batch = place.batch, head = place.head, kv_head = head / (args.heads / args.kv_heads);
  const auto q = rows_of(head_of<Stored>(args.q, args.q_strides, batch, head), args.q_strides.row, args.q_len,
                         args.head_dim, packs);
  const auto k = rows_of(head_of<Stored>(args.k, args.k_strides, batch, kv_head), args.k_strides.row, args.kv_len,
                         args.head_dim, packs);
  const auto v = rows_of(head_of<Stored>(args.v, args.v_strides, batch, kv_head), args.v_strides.row, args.kv_len,
                         args.value_dim, packs);
  const int first = place.tile * kTile, column = place.part * kPartColumns<T>;
  const int row = first + 4 * thread_y();
  SoftmaxRows<T> softmax;
  T out[kGroups<T>][4][4] = {}, factor[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) softmax.m[i] = -T(INFINITY), softmax.l[i] = T(0);
  const int tiles = reached_tiles(args, first + kTile, kTile);
  for (int tile = 0; tile < tiles; ++tile) {
    const int key = tile * kTile;
    T s[4][4] = {};
    multiply_rows(q, first, k, key, memory, s);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) s[i][j] *= T(args.scale);
    const ScoreTile scores{batch, head, row, key + 4 * thread_x()};
    if (is_masked(args, first, key + kTile)) mask_scores<Grid, false>(args, scores, T(1), s);
    softmax_tile(args, scores, s, softmax, factor);
#pragma unroll
    for (int group = 0; group < kGroups<T>; ++group)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) out[group][i][j] *= factor[i];
    share_scores<false>(s, memory.scores);
    multiply_scores(v, key, column, memory, out);
  }
  T* lse = static_cast<T*>(args.lse) + row_of(args, batch, head, 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const T total = warp_reduce<Sum, 16>(softmax.l[i]);
    factor[i] = total == T(0) ? T(0) : T(1) / total;
    if (place.part == 0 && thread_x() == 0 && row + i < args.q_len)
      lse[row + i] = total == T(0) ? T(INFINITY) : softmax.m[i] + log_(total);
  }
  store_result(head_of<Stored>(args.out, args.out_strides, batch, head), args.out_strides.row, q.n, v.dim, first,
               column, factor, out);
}

template <class Stored>
void forward_tiles(const AttentionArgs& args) {
  using T = Compute<Stored>;
  const bool packs = rows_in_packs(args.q, args.q_strides, args.head_dim, 4, sizeof(Stored)) &&
                     rows_in_packs(args.k, args.k_strides, args.head_dim, 4, sizeof(Stored)) &&
                     rows_in_packs(args.v, args.v_strides, args.value_dim, 4, sizeof(Stored));
  const Deal deal{args.heads, tiles_for(args.q_len, kTile), tiles_for(args.value_dim, kPartColumns<T>)};
  launch(attend_tiles<Stored>, deal.shape(args.batch, kTileThreads, sizeof(TileMemory<T>)), args, deal, packs);
}

// ---------------------------------------------------------------------------------------- launcher

void forward(const AttentionArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    if constexpr (sizeof(Stored) <= 4)
      if (suits_decode(args)) return decode<Stored>(args);
    if constexpr (sizeof(Stored) == 2)
      if (args.head_dim <= kMmaDim && args.value_dim <= kMmaDim) return forward_mma<Stored>(args);
    forward_tiles<Stored>(args);
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(attention_forward, forward)

}  // namespace fastnn
