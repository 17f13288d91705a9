// Attention of a few query rows to many keys, as in decoding: keys and values are read once, where they lie.
//
//   for each key and value head, for each piece of its keys (kPieceKeys)        parallel
//     for each query row:  s = K q;  m = max s;  p = e^(s - m);  l = sum p;  o = p V      several rows side by side
//   for each query row                                                          parallel
//     out = sum o e^(m - M) / sum l e^(m - M) over the pieces, M the largest m
//
// The pieces are fixed by the number of keys. Cost: the bytes of K and V; 16-bit elements are widened in registers.
#pragma once

#include "gemm/micro_cpu.h"
#include "ops/attention/rows_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kDecodeRows = 8;  // query rows of a key and value head, at most; more pay for packing
constexpr int64_t kPieceKeys = 512;
constexpr int64_t kPieceWork = int64_t(1) << 17;  // elements of K and V that pay for a task

inline bool suits_decode(const AttentionArgs& args) {
  return args.heads / args.kv_heads * args.q_len <= kDecodeRows && args.head_dim > 0 && args.value_dim > 0;
}

// What pieces of the keys give query rows: m, l, o[value_dim].
template <class T>
struct Partials {
  char* data;
  int64_t pieces, value_dim;

  static int64_t bytes(int64_t value_dim) { return round_up((value_dim + 2) * int64_t(sizeof(T)), 64); }
  T* at(int64_t row, int64_t piece) const {
    return reinterpret_cast<T*>(data + (row * pieces + piece) * bytes(value_dim));
  }
};

// The head of a query row, counted over the batch and the heads.
inline QueryBlock head_of(const AttentionArgs& args, int64_t row) {
  const int64_t head = row / args.q_len % args.heads;
  return {row / args.q_len / args.heads, head, head / (args.heads / args.kv_heads), 0, args.q_len};
}

// scores[i][j] = q_i . k_j, rows of kPieceKeys: kRows queries with as many keys at a time as make a vector of sums.
template <class T, class S, int kRows>
void dot_keys(const S* q, int64_t q_row, int64_t rows, const S* k, int64_t k_row, int64_t n, int64_t dim, T* scores) {
  constexpr int kLanes = Vec<T>::size, kColumns = kLanes / kRows;
  int64_t offsets[kColumns];
  for (int j = 0; j < kColumns; ++j) offsets[j] = j * k_row;
  alignas(64) T sums[kLanes];
  for (int64_t j = 0; j < n; j += kColumns) {
    const int columns = int(min(kColumns, n - j));
    DotTile<S> tile{q, q_row, k + j * k_row, offsets, dim, int(rows), columns};
    tile.ahead = kLanes * k_row;
    dot_tile<T, S, kRows, kColumns>(tile, sums);
    for (int64_t i = 0; i < rows; ++i)
      for (int c = 0; c < columns; ++c) scores[i * kPieceKeys + j + c] = sums[i * kColumns + c];
  }
}

// out[i] = sum_j p[i][j] v_j over one strip of columns, kWide whole vectors of S (or part of one: `count` elements).
template <class T, class S, int kRows, int kWide, bool kPart>
void add_values(const T* p, int64_t rows, const S* v, int64_t v_row, int64_t n, int64_t count, T* out,
                int64_t out_row) {
  using Elements = DotElements<T, S>;
  constexpr int kVectors = Elements::kVectors, kStep = kVectors * Vec<T>::size;
  const T* weights[kRows];
  for (int r = 0; r < kRows; ++r) weights[r] = p + min(r, rows - 1) * kPieceKeys;
  Vec<T> sums[kRows][kWide][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kWide; ++i)
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) sums[r][i][u] = Vec<T>::zero();
  for (int64_t j = 0; j < n; ++j, v += v_row) {
    Vec<T> values[kWide][kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kWide; ++i) {
      __builtin_prefetch(v + 16 * v_row + i * kStep);
      if constexpr (kPart) {
        Elements::load(v, count, values[i]);
      } else {
        Elements::load(v + i * kStep, values[i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> weight = Vec<T>::broadcast(weights[r][j]);
#pragma GCC unroll 4
      for (int i = 0; i < kWide; ++i)
#pragma GCC unroll 2
        for (int u = 0; u < kVectors; ++u) sums[r][i][u] += weight * values[i][u];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kWide && r < rows; ++i) {
      Elements::restore(sums[r][i]);
      alignas(64) T row[kStep];
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) sums[r][i][u].store(row + u * Vec<T>::size);
      memcpy(out + r * out_row + i * kStep, row, size_t(kPart ? count : kStep) * sizeof(T));
    }
}

template <class T, class S, int kRows>
void weigh_values(const T* p, int64_t rows, const S* v, int64_t v_row, int64_t n, int64_t dim, T* out,
                  int64_t out_row) {
  constexpr int kVectors = DotElements<T, S>::kVectors, kWide = kRows == 1 ? 4 : 4 / kVectors;
  constexpr int64_t kStep = kVectors * Vec<T>::size, kStrip = kWide * kStep;
  int64_t c = 0;
  for (; c + kStrip <= dim; c += kStrip)
    add_values<T, S, kRows, kWide, false>(p, rows, v + c, v_row, n, 0, out + c, out_row);
  for (; c + kStep <= dim; c += kStep) add_values<T, S, kRows, 1, false>(p, rows, v + c, v_row, n, 0, out + c, out_row);
  if (c < dim) add_values<T, S, kRows, 1, true>(p, rows, v + c, v_row, n, dim - c, out + c, out_row);
}

// Scores to weights of one row; partial[0] and [1] become m and l.
template <class T>
void weigh_keys(const AttentionArgs& args, const QueryBlock& block, int64_t r, int64_t key, int64_t n, T* scores,
                T* partial) {
  alignas(64) T factors[kPieceKeys];
  const T scale = T(args.scale);
  if (is_biased(args, block, key + n)) {
    bias_row(args, block, r, key, n, factors);
    for (int64_t j = 0; j < n; ++j) scores[j] = scores[j] * scale + factors[j];
  } else {
    for (int64_t j = 0; j < n; ++j) scores[j] *= scale;
  }
  const T highest = row_max(scores, n), shift = highest == -static_cast<T>(INFINITY) ? T(0) : highest;
  for (int64_t j = 0; j < n; ++j) scores[j] = exp_(scores[j] - shift);
  partial[0] = highest;
  partial[1] =
      T(row_sum<T>(n, [&](int64_t j, int64_t count) FASTNN_INLINED { return load_values<T>(scores + j, count); }));
  if (args.drop_threshold) {
    keep_row(args, block, r, key, n, factors);
    for (int64_t j = 0; j < n; ++j) scores[j] *= factors[j];
  }
}

// At most kRows rows from `first` on, of one head or one of each head, against keys [key, key + n). Their partials are
// partial_row elements apart.
template <class T, class S, int kRows>
void decode_rows(const AttentionArgs& args, int64_t first, int64_t rows, int64_t key, int64_t n, T* partial,
                 int64_t partial_row) {
  alignas(64) T scores[kRows * kPieceKeys];
  const HeadStrides &qs = args.q_strides, &ks = args.k_strides, &vs = args.v_strides;
  const QueryBlock head = head_of(args, first);
  const S* q = element<S>(args.q, args.dtype, head.at(qs) + first % args.q_len * qs.row);
  const S* k = element<S>(args.k, args.dtype, head.batch * ks.batch + head.kv_head * ks.head + key * ks.row);
  const S* v = element<S>(args.v, args.dtype, head.batch * vs.batch + head.kv_head * vs.head + key * vs.row);
  dot_keys<T, S, kRows>(q, args.q_len == 1 ? qs.head : qs.row, rows, k, ks.row, n, args.head_dim, scores);
  for (int64_t i = 0; i < rows; ++i)
    weigh_keys(args, head_of(args, first + i), (first + i) % args.q_len, key, n, scores + i * kPieceKeys,
               partial + i * partial_row);
  weigh_values<T, S, kRows>(scores, rows, v, vs.row, n, args.value_dim, partial + 2, partial_row);
}

// The pieces of one query row, in order; `row` is counted over the batch and the heads.
template <class T>
void combine_row(const AttentionArgs& args, const Partials<T>& partials, int64_t row) {
  T highest = -static_cast<T>(INFINITY), total = T(0);
  for (int64_t i = 0; i < partials.pieces; ++i)
    highest = partials.at(row, i)[0] > highest ? partials.at(row, i)[0] : highest;
  const T shift = highest == -static_cast<T>(INFINITY) ? T(0) : highest;
  T* sum = partials.at(row, 0) + 2;
  for (int64_t i = 0; i < partials.pieces; ++i) {
    const T* partial = partials.at(row, i);
    const T factor = exp_(partial[0] - shift);
    total += partial[1] * factor;
    if (i == 0) {
      for (int64_t c = 0; c < args.value_dim; ++c) sum[c] *= factor;
    } else {
      for (int64_t c = 0; c < args.value_dim; ++c) sum[c] += factor * partial[2 + c];
    }
  }
  const T factor = total == T(0) ? T(0) : T(1) / total;
  for (int64_t c = 0; c < args.value_dim; ++c) sum[c] *= factor;
  FASTNN_LEVEL::store_row(
      element<void>(args.out, args.dtype,
                    head_of(args, row).at(args.out_strides) + row % args.q_len * args.out_strides.row),
      args.dtype, 1, sum, args.value_dim);
  static_cast<T*>(args.lse)[row] = total == T(0) ? static_cast<T>(INFINITY) : shift + log_(total);
}

template <class T, class S>
void decode(const AttentionArgs& args) {
  const int64_t group = args.heads / args.kv_heads, pairs = args.batch * args.kv_heads;
  const int64_t keys = args.causal ? min(args.kv_len, args.q_len) : args.kv_len;
  const int64_t rows = args.batch * args.heads * args.q_len;
  constexpr int kTogether = Tile<T>::kDotRows;
  const int64_t even =
      args.q_len == 1 ? group : args.q_len;  // rows that lie evenly: the strides of their queries agree
  Partials<T> partials{nullptr, max(1, ceil_div(keys, kPieceKeys)), args.value_dim};
  partials.data = static_cast<char*>(
      thread_scratch(Scratch::OperationShared, size_t(rows * partials.pieces * Partials<T>::bytes(args.value_dim))));
  const int64_t work = max(1, min(keys, kPieceKeys)) * (args.head_dim + args.value_dim);
  parallel_for(pairs * partials.pieces, max(1, kPieceWork / work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t pair = task / partials.pieces, piece = task % partials.pieces;
      const int64_t key = piece * kPieceKeys, n = min(kPieceKeys, keys - key);
      const int64_t begin_row = pair * group * args.q_len, end_row = begin_row + group * args.q_len;
      for (int64_t row = begin_row; row < end_row;) {
        const int64_t together = min(kTogether, even - row % even);
        T* partial = partials.at(row, piece);
        if (together == 1) {
          decode_rows<T, S, 1>(args, row, 1, key, n, partial, 0);
        } else {
          decode_rows<T, S, kTogether>(args, row, together, key, n, partial, partials.at(row + 1, piece) - partial);
        }
        row += together;
      }
    }
  });
  parallel_for(rows, max(1, kPieceWork / (partials.pieces * args.value_dim)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) combine_row(args, partials, row);
  });
}

inline void decode_any(const AttentionArgs& args) {
  switch (args.dtype) {
    case DType::Float64: return decode<double, double>(args);
    case DType::BFloat16: return decode<float, bfloat16>(args);
    case DType::Float16: return decode<float, float16>(args);
    default: return decode<float, float>(args);
  }
}

}  // namespace
}  // namespace fastnn
