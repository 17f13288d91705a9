// What the attention kernels of CUDA share: which part of the work a block takes, the mask and the dropout of a tile of
// scores, the rows of heads.
//
// A thread holds scores as s[N][4], of a tile whose rows and columns are queries and keys (kKeysAreRows: keys and
// queries). Its Layout says where s[n][i] lies from the thread's own first row and column.
#pragma once

#include "ops/attention/attention.h"
#include "simd/philox.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// ------------------------------------------------------------------------------------------ work of a block

// The blocks of a launch: `tiles` for each head, and `parts` for each tile.
struct Deal {
  int64_t heads, tiles, parts;

  LaunchShape shape(int64_t batch, int threads, size_t shared_bytes) const {
    return {dim3(unsigned(batch * heads * tiles * parts)), dim3(unsigned(threads)), shared_bytes};
  }
};

struct Place {
  int64_t batch, head;
  int tile, part;
};

// Under a causal mask tiles of queries with the most keys come first.
__device__ inline Place place_of(const Deal& deal, bool last_first) {
  const int64_t tile = blockIdx.x / deal.parts, pair = tile / deal.tiles;
  const int index = int(tile % deal.tiles);
  return {pair / deal.heads, pair % deal.heads, last_first ? int(deal.tiles) - 1 - index : index,
          int(blockIdx.x % deal.parts)};
}

constexpr int64_t tiles_for(int64_t length, int64_t rows) { return (length + rows - 1) / rows; }

// The tiles of keys that queries below `end` reach; the first tile of queries that reaches keys from `first` on.
__device__ inline int reached_tiles(const AttentionArgs& args, int end, int keys) {
  const int64_t reached = args.causal ? min(args.kv_len, int64_t(end)) : args.kv_len;
  return int(tiles_for(reached, keys));
}
__device__ inline int first_reaching_tile(const AttentionArgs& args, int first, int queries) {
  return args.causal ? first / queries : 0;
}

template <class Stored>
__device__ const Stored* head_of(const void* data, const HeadStrides& strides, int64_t batch, int64_t head) {
  return static_cast<const Stored*>(data) + batch * strides.batch + head * strides.head;
}
template <class Stored>
__device__ Stored* head_of(void* data, const HeadStrides& strides, int64_t batch, int64_t head) {
  return static_cast<Stored*>(data) + batch * strides.batch + head * strides.head;
}

// Where (batch, head, query) lies among all rows: that of lse and delta.
__device__ inline int64_t row_of(const AttentionArgs& args, int64_t batch, int64_t head, int64_t query) {
  return (batch * args.heads + head) * args.q_len + query;
}

// Do all rows begin at a multiple of `count` elements, and have such a length?
inline bool rows_in_packs(const void* data, const HeadStrides& strides, int64_t dim, int count, size_t bytes) {
  return is_aligned(data, int(count * bytes)) && dim % count == 0 && strides.batch % count == 0 &&
         strides.head % count == 0 && strides.row % count == 0;
}

// ------------------------------------------------------------------------------------------ scores of a thread

// s[i][j] is four rows by four columns.
struct Grid {
  static __device__ constexpr int row(int n, int) { return n; }
  static __device__ constexpr int column(int, int i) { return i; }
};

// The accumulators of tensor cores (gemm/mma_cuda.h): s[n] lies in columns 8n to 8n + 7.
struct Fragments {
  static __device__ constexpr int row(int, int i) { return 8 * (i / 2); }
  static __device__ constexpr int column(int n, int i) { return 8 * n + i % 2; }
};

// Of tile rows from `row` on and columns from `column` on, which are those of this thread's s[0][0].
struct ScoreTile {
  int64_t batch, head;
  int row, column;

  template <class Layout, bool kKeysAreRows>
  __device__ int query(int n, int i) const {
    return kKeysAreRows ? column + Layout::column(n, i) : row + Layout::row(n, i);
  }
  template <class Layout, bool kKeysAreRows>
  __device__ int key(int n, int i) const {
    return kKeysAreRows ? row + Layout::row(n, i) : column + Layout::column(n, i);
  }
};

template <class Visit>
__device__ void with_mask_type(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::Bool: return visit(TypeTag<bool>());
    case DType::Float64: return visit(TypeTag<double>());
    case DType::Float32: return visit(TypeTag<float>());
    case DType::BFloat16: return visit(TypeTag<bfloat16>());
    default: return visit(TypeTag<float16>());
  }
}

// What a mask adds to a score.
template <class T, class Mask>
__device__ T mask_term(Mask mask) {
  if constexpr (std::is_same_v<Mask, bool>)
    return mask ? T(0) : -T(INFINITY);
  else
    return to_compute<T>(mask);
}

// visit(score, query, key, at) for every score, where at = query query_stride + key key_stride. Eight at a time: the
// scores leave few registers to loads on their way. The whole warp calls.
template <class Layout, bool kKeysAreRows, class Scores, int N, class Visit>
__device__ void for_scores(const ScoreTile& tile, Scores (&s)[N][4], int64_t query_stride, int64_t key_stride,
                           const Visit& visit) {
  const int64_t row_stride = kKeysAreRows ? key_stride : query_stride;
  const int64_t column_stride = kKeysAreRows ? query_stride : key_stride;
  const int64_t step = Layout::row(1, 0) * row_stride + Layout::column(1, 0) * column_stride;
  int64_t at = tile.row * row_stride + tile.column * column_stride;
#pragma unroll
  for (int n = 0; n < N; ++n, at += step) {
    if (n % 2 == 0) warp_sync();
#pragma unroll
    for (int i = 0; i < 4; ++i)
      visit(s[n][i], tile.query<Layout, kKeysAreRows>(n, i), tile.key<Layout, kKeysAreRows>(n, i),
            at + Layout::row(0, i) * row_stride + Layout::column(0, i) * column_stride);
  }
}

// Adds the mask times `unit`; scores of keys that take no part become -inf.
template <class Layout, bool kKeysAreRows, class T, int N>
__device__ void mask_scores(const AttentionArgs& args, const ScoreTile& tile, T unit, T (&s)[N][4]) {
  const int64_t* strides = args.mask_strides;
  const int n_queries = int(args.q_len), n_keys = int(args.kv_len);
  if (args.mask)
    with_mask_type(args.mask_dtype, [&](auto tag) {
      using Mask = typename decltype(tag)::type;
      const Mask* mask = static_cast<const Mask*>(args.mask) + tile.batch * strides[0] + tile.head * strides[1];
      for_scores<Layout, kKeysAreRows>(tile, s, strides[2], strides[3], [&](T& score, int query, int key, int64_t at) {
        if (query < n_queries && key < n_keys) score += unit * mask_term<T>(mask[at]);
      });
    });
  for_scores<Layout, kKeysAreRows>(tile, s, 0, 0, [&](T& score, int query, int key, int64_t) {
    if (key >= n_keys || (args.causal && key > query)) score = -T(INFINITY);
  });
}

// Does mask_scores change anything in a tile of queries from `query` on and keys below `end`?
__device__ inline bool is_masked(const AttentionArgs& args, int query, int end) {
  return args.mask || end > args.kv_len || (args.causal && end > query + 1);
}

// Writes dS where the gradient of the mask is wanted.
template <class Layout, bool kKeysAreRows, class T, int N>
__device__ void store_score_gradients(const AttentionBackwardArgs& args, const ScoreTile& tile, const T (&ds)[N][4]) {
  const int n_queries = int(args.forward.q_len), n_keys = int(args.forward.kv_len);
  const int64_t first = row_of(args.forward, tile.batch, tile.head, 0);
  with_mask_type(args.forward.mask_dtype, [&](auto tag) {
    using Mask = typename decltype(tag)::type;
    Mask* dscores = static_cast<Mask*>(args.dscores) + first * n_keys;
    for_scores<Layout, kKeysAreRows>(tile, ds, n_keys, 1, [&](T gradient, int query, int key, int64_t at) {
      if (query < n_queries && key < n_keys) dscores[at] = to_stored<Mask>(gradient);
    });
  });
}

// ------------------------------------------------------------------------------------------ dropout

// The four words of the stream for a query and keys 4 group ... 4 group + 3, as on the CPU.
__device__ inline void dropout_words(const AttentionArgs& args, const ScoreTile& tile, int query, int group,
                                     uint32_t (&words)[4]) {
  const int64_t row = row_of(args, tile.batch, tile.head, query);
  philox_blocks(args.stream.seed, args.stream.offset, uint64_t(row * ((args.kv_len + 3) / 4) + group), 1, words);
}

__device__ inline uint32_t pick(const uint32_t (&words)[4], int i) {
  return i & 2 ? (i & 1 ? words[3] : words[2]) : (i & 1 ? words[1] : words[0]);
}

// The words of s[n][0...3]. Every score takes one word of a block of four, so each thread makes the blocks of as many
// scores as it holds, and neighbours exchange words: the whole warp calls.
template <class Layout, bool kKeysAreRows>
__device__ void words_of(const AttentionArgs& args, const ScoreTile& tile, int n, uint32_t (&words)[4]) {
  uint32_t mine[4];
  if constexpr (std::is_same_v<Layout, Grid>) {
    static_assert(!kKeysAreRows, "keys along columns");
    return dropout_words(args, tile, tile.row + n, tile.column / 4, words);
  } else if constexpr (kKeysAreRows) {
    const int lane = lane_id() / 4 % 4;  // of the four that hold keys of one block; it makes the block of s[n][lane]
    dropout_words(args, tile, tile.column + 8 * n + lane % 2, (tile.row + 8 * (lane / 2)) / 4, mine);
    uint32_t received[4] = {pick(mine, lane), 0, 0, 0};
#pragma unroll
    for (int other = 1; other < 4; ++other) received[other] = shuffle_xor(pick(mine, lane ^ other), 4 * other);
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pick(received, lane ^ i);
  } else {
    const bool odd = lane_id() % 2;  // of the two that hold keys of one block; it makes the block of one row
    dropout_words(args, tile, tile.row + (odd ? 8 : 0), (tile.column + 8 * n) / 4, mine);
    const uint32_t first = shuffle_xor(odd ? mine[0] : mine[2], 1), second = shuffle_xor(odd ? mine[1] : mine[3], 1);
    words[0] = odd ? first : mine[0], words[1] = odd ? second : mine[1];
    words[2] = odd ? mine[2] : first, words[3] = odd ? mine[3] : second;
  }
}

// Which scores dropout keeps: bit 4n + i for s[n][i]. A rolled loop, which leaves registers to the scores.
template <class Layout, bool kKeysAreRows, int N>
__device__ uint32_t kept_scores(const AttentionArgs& args, const ScoreTile& tile) {
  static_assert(4 * N <= 32, "a bit for each score");
  uint32_t kept = 0;
#pragma unroll 1
  for (int n = 0; n < N; ++n) {
    uint32_t words[4];
    words_of<Layout, kKeysAreRows>(args, tile, n, words);
#pragma unroll
    for (int i = 0; i < 4; ++i) kept |= uint32_t(words[i] >= args.drop_threshold) << (4 * n + i);
  }
  return kept;
}

// The factor of dropout of s[n][i].
template <class T>
__device__ T keep_factor(const AttentionArgs& args, uint32_t kept, int n, int i) {
  return kept >> (4 * n + i) & 1 ? T(args.keep_scale) : T(0);
}

template <class Layout, class T, int N>
__device__ void drop_scores(const AttentionArgs& args, const ScoreTile& tile, T (&s)[N][4]) {
  const uint32_t kept = kept_scores<Layout, false, N>(args, tile);
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] *= keep_factor<T>(args, kept, n, i);
}

}  // namespace
}  // namespace fastnn
