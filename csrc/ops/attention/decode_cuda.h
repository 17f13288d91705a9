// Attention of a few query rows to many keys, as in decoding: keys and values are read once, where they lie.
//
//   for each piece of the keys of a key and value head                    a block
//     a group of lanes holds q and o of up to kRows query rows, each lane its dimensions, and takes every G-th key:
//       s = q k;  m' = max(m, s);  p = e^(s - m');  l = l e^(m - m') + p;  o = o e^(m - m') + p v
//     m, l, o of the groups are joined, in order
//   for each query row                                                    a block
//     out = sum o e^(m - M) / sum l e^(m - M) over the pieces, M the largest m; lse = M + log of that sum
//
// The pieces are fixed by the sizes. bytes: K and V, of 4.8 TB/s; a thread has kKeys packs of 16 bytes of each on their
// way. operations: 4 kDim for each key and row, which is below the memory's time up to some 4 rows of 16-bit elements;
// more rows take another block, which finds K and V in L2. Shared memory: 16 KB.
#pragma once

#include "ops/attention/scores_cuda.h"

namespace fastnn {
namespace {

constexpr int64_t kDecodeRows = 8;       // query rows of a key and value head, at most; more pay for tiles
constexpr int64_t kDecodeKeys = 128;     // of a piece, at least
constexpr int64_t kDecodeBlocks = 1024;  // wanted, at least: several for each multiprocessor
constexpr int kDecodeThreads = 128;

inline bool suits_decode(const AttentionArgs& args) {
  return args.heads / args.kv_heads * args.q_len <= kDecodeRows && args.drop_threshold == 0 && !args.causal &&
         args.kv_len >= 2 * kDecodeKeys && std::max(args.head_dim, args.value_dim) <= 256;
}

template <class Element, int kHeadDim, int kRowsOfBlock>
struct Decode {
  using Stored = Element;
  static constexpr int kDim = kHeadDim, kRows = kRowsOfBlock, kKeys = 4;
  static constexpr int kWidth = kPackOf16<Stored>, kLanes = kDim / kWidth < kWarp ? kDim / kWidth : kWarp;
  static constexpr int kPacks = kDim / (kWidth * kLanes), kHeld = kPacks * kWidth;  // elements of a row in a lane
  static constexpr int kGroups = kDecodeThreads / kLanes;
};

// What pieces of the keys give query rows: m and l in units of log 2, o[value_dim].
struct Partials {
  float2* sums;
  float* out;
  int64_t pieces, piece_keys;
};

// This lane's elements of a row; zeros beyond the row.
template <class D>
__device__ void load_held(const typename D::Stored* row, int64_t dim, bool packs, float (&held)[D::kHeld]) {
#pragma unroll
  for (int pack = 0; pack < D::kPacks; ++pack) {
    const int d = (pack * D::kLanes + lane_id() % D::kLanes) * D::kWidth;
    Pack<float, D::kWidth> values{};
    if (packs && d < dim) values = load_values<D::kWidth>(row + d);
#pragma unroll
    for (int i = 0; i < D::kWidth; ++i) {
      if (!packs && d + i < dim) values.at[i] = to_compute<float>(row[d + i]);
      held[pack * D::kWidth + i] = values.at[i];
    }
  }
}

template <class D>
struct DecodeState {
  float q[D::kRows][D::kHeld], out[D::kRows][D::kHeld] = {}, m[D::kRows], l[D::kRows];
};

// Scores of keys `key`, key + G, ... become exponentials, and the state is scaled to the new maximum.
template <class D>
__device__ void decode_softmax(const AttentionArgs& args, const Place& place, int64_t first_row, int64_t key,
                               int64_t end, float (&s)[D::kRows][D::kKeys], DecodeState<D>& state) {
  const int64_t group = args.heads / args.kv_heads, *strides = args.mask_strides;
  if (args.mask)
    with_mask_type(args.mask_dtype, [&](auto tag) {
      using Mask = typename decltype(tag)::type;
#pragma unroll
      for (int r = 0; r < D::kRows; ++r) {
        const int64_t row = min(first_row + r, group * args.q_len - 1);
        const Mask* mask = static_cast<const Mask*>(args.mask) + place.batch * strides[0] +
                           (place.head * group + row / args.q_len) * strides[1] + row % args.q_len * strides[2];
#pragma unroll
        for (int j = 0; j < D::kKeys; ++j)
          if (key + j * D::kGroups < end)
            s[r][j] += kLog2E * mask_term<float>(mask[(key + j * D::kGroups) * strides[3]]);
      }
    });
#pragma unroll
  for (int r = 0; r < D::kRows; ++r) {
    float m = state.m[r];
#pragma unroll
    for (int j = 0; j < D::kKeys; ++j) {
      if (key + j * D::kGroups >= end) s[r][j] = -INFINITY;
      m = max(m, s[r][j]);
    }
    const float shift = m == -INFINITY ? 0 : m, factor = exp2_fast(state.m[r] - shift);
    state.m[r] = m;
    state.l[r] *= factor;
#pragma unroll
    for (int i = 0; i < D::kHeld; ++i) state.out[r][i] *= factor;
#pragma unroll
    for (int j = 0; j < D::kKeys; ++j) state.l[r] += s[r][j] = exp2_fast(s[r][j] - shift);
  }
}

template <class D>
__global__ void __launch_bounds__(kDecodeThreads)
    decode_pieces(const __grid_constant__ AttentionArgs args, const Deal deal, const Partials partials, bool packs) {
  using Stored = typename D::Stored;
  __shared__ float outs[D::kGroups][D::kRows][D::kDim];
  __shared__ float2 sums[D::kGroups][D::kRows];
  const Place place = place_of(deal, false);
  const int64_t group = args.heads / args.kv_heads, n_rows = group * args.q_len;
  const int64_t first_row = place.part * D::kRows, begin = place.tile * partials.piece_keys;
  const int64_t end = min(begin + partials.piece_keys, args.kv_len);
  const Stored* k = head_of<Stored>(args.k, args.k_strides, place.batch, place.head);
  const Stored* v = head_of<Stored>(args.v, args.v_strides, place.batch, place.head);
  const int lanes = int(threadIdx.x) / D::kLanes;
  DecodeState<D> state;
#pragma unroll
  for (int r = 0; r < D::kRows; ++r) {
    const int64_t row = min(first_row + r, n_rows - 1);
    const Stored* q = head_of<Stored>(args.q, args.q_strides, place.batch, place.head * group + row / args.q_len);
    load_held<D>(q + row % args.q_len * args.q_strides.row, args.head_dim, packs, state.q[r]);
    state.m[r] = -INFINITY, state.l[r] = 0;
  }
  for (int64_t at = begin; at < end; at += D::kKeys * D::kGroups) {
    const int64_t key = at + lanes;
    float keys[D::kKeys][D::kHeld], values[D::kKeys][D::kHeld], s[D::kRows][D::kKeys] = {};
#pragma unroll
    for (int j = 0; j < D::kKeys; ++j) {
      const int64_t row = min(key + j * D::kGroups, end - 1);
      load_held<D>(k + row * args.k_strides.row, args.head_dim, packs, keys[j]);
      load_held<D>(v + row * args.v_strides.row, args.value_dim, packs, values[j]);
    }
#pragma unroll
    for (int r = 0; r < D::kRows; ++r)
#pragma unroll
      for (int j = 0; j < D::kKeys; ++j) {
#pragma unroll
        for (int i = 0; i < D::kHeld; ++i) s[r][j] += state.q[r][i] * keys[j][i];
        s[r][j] = warp_reduce<Sum, D::kLanes>(s[r][j]) * (float(args.scale) * kLog2E);
      }
    decode_softmax(args, place, first_row, key, end, s, state);
#pragma unroll
    for (int r = 0; r < D::kRows; ++r)
#pragma unroll
      for (int j = 0; j < D::kKeys; ++j)
#pragma unroll
        for (int i = 0; i < D::kHeld; ++i) state.out[r][i] += key + j * D::kGroups < end ? s[r][j] * values[j][i] : 0;
  }
#pragma unroll
  for (int r = 0; r < D::kRows; ++r) {
    if (lane_id() % D::kLanes == 0) sums[lanes][r] = make_float2(state.m[r], state.l[r]);
#pragma unroll
    for (int i = 0; i < D::kHeld; ++i)
      outs[lanes][r][(i / D::kWidth * D::kLanes + lane_id() % D::kLanes) * D::kWidth + i % D::kWidth] = state.out[r][i];
  }
  block_sync();
  for (int r = 0; r < D::kRows && first_row + r < n_rows; ++r) {
    float m = -INFINITY, l = 0;
    for (int g = 0; g < D::kGroups; ++g) m = max(m, sums[g][r].x);
    const float shift = m == -INFINITY ? 0 : m;
    const int64_t to = row_of(args, place.batch, place.head * group, first_row + r) * partials.pieces + place.tile;
    for (int d = int(threadIdx.x); d < args.value_dim; d += kDecodeThreads) {
      float out = 0;
      for (int g = 0; g < D::kGroups; ++g) out += outs[g][r][d] * exp2_fast(sums[g][r].x - shift);
      partials.out[to * args.value_dim + d] = out;
    }
    for (int g = 0; g < D::kGroups; ++g) l += sums[g][r].y * exp2_fast(sums[g][r].x - shift);
    if (threadIdx.x == 0) partials.sums[to] = make_float2(m, l);
  }
}

template <class Stored>
__global__ void __launch_bounds__(kDecodeThreads)
    join_pieces(const __grid_constant__ AttentionArgs args, const Partials partials) {
  const int64_t row = blockIdx.x, query = row % args.q_len, pair = row / args.q_len;
  const float2* sums = partials.sums + row * partials.pieces;
  float m = -INFINITY, l = 0;
  for (int64_t piece = 0; piece < partials.pieces; ++piece) m = max(m, sums[piece].x);
  const float shift = m == -INFINITY ? 0 : m;
  for (int64_t piece = 0; piece < partials.pieces; ++piece) l += sums[piece].y * exp2_fast(sums[piece].x - shift);
  const float factor = l == 0 ? 0 : 1 / l;
  Stored* to =
      head_of<Stored>(args.out, args.out_strides, pair / args.heads, pair % args.heads) + query * args.out_strides.row;
  for (int64_t d = threadIdx.x; d < args.value_dim; d += kDecodeThreads) {
    float out = 0;
    for (int64_t piece = 0; piece < partials.pieces; ++piece)
      out += partials.out[(row * partials.pieces + piece) * args.value_dim + d] * exp2_fast(sums[piece].x - shift);
    to[d] = to_stored<Stored>(out * factor);
  }
  if (threadIdx.x == 0) static_cast<float*>(args.lse)[row] = l == 0 ? INFINITY : m / kLog2E + log_(l);
}

template <class D>
void decode_of(const AttentionArgs& args) {
  using Stored = typename D::Stored;
  const bool packs = rows_in_packs(args.q, args.q_strides, args.head_dim, D::kWidth, sizeof(Stored)) &&
                     rows_in_packs(args.k, args.k_strides, args.head_dim, D::kWidth, sizeof(Stored)) &&
                     rows_in_packs(args.v, args.v_strides, args.value_dim, D::kWidth, sizeof(Stored));
  const int64_t rows = args.batch * args.heads * args.q_len,
                parts = tiles_for(args.heads / args.kv_heads * args.q_len, D::kRows);
  const int64_t wanted = tiles_for(kDecodeBlocks, args.batch * args.kv_heads * parts);
  Partials partials{};
  partials.piece_keys = std::max(kDecodeKeys, tiles_for(args.kv_len, wanted));
  partials.pieces = tiles_for(args.kv_len, partials.piece_keys);
  const CudaScratch scratch(size_t(rows * partials.pieces) * (sizeof(float2) + size_t(args.value_dim) * sizeof(float)));
  partials.sums = scratch.as<float2>();
  partials.out = reinterpret_cast<float*>(partials.sums + rows * partials.pieces);
  const Deal deal{args.kv_heads, partials.pieces, parts};
  launch(decode_pieces<D>, deal.shape(args.batch, kDecodeThreads, 0), args, deal, partials, packs);
  launch(join_pieces<Stored>, dim3(unsigned(rows)), dim3(kDecodeThreads), 0, args, partials);
}

template <class Stored, int kDim>
void decode_dim(const AttentionArgs& args) {
  if (args.heads / args.kv_heads * args.q_len == 1)
    decode_of<Decode<Stored, kDim, 1>>(args);
  else
    decode_of<Decode<Stored, kDim, 4>>(args);
}

template <class Stored>
void decode(const AttentionArgs& args) {
  const int64_t dim = std::max(args.head_dim, args.value_dim);
  if (dim <= 64)
    decode_dim<Stored, 64>(args);
  else if (dim <= 128)
    decode_dim<Stored, 128>(args);
  else
    decode_dim<Stored, 256>(args);
}

}  // namespace
}  // namespace fastnn
