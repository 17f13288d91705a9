// Attention of a few query rows to many keys, as in decoding: keys and values are read once, where they lie.
//
//   for each key and value head, for each piece of its keys (kPieceKeys)        parallel
//     for each query row:  s = K q;  m = max s;  p = e^(s - m);  l = sum p;  o = p V
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

// scores[j] = q . k_j, as many keys at a time as a vector has lanes.
template <class T, class S>
void dot_keys(const S* q, const S* k, int64_t k_row, int64_t n, int64_t dim, T* scores) {
  constexpr int kLanes = Vec<T>::size;
  int64_t offsets[kLanes];
  for (int i = 0; i < kLanes; ++i) offsets[i] = i * k_row;
  alignas(64) T sums[kLanes];
  for (int64_t j = 0; j < n; j += kLanes) {
    const int columns = int(min(kLanes, n - j));
    DotTile<S> tile{q, 0, k + j * k_row, offsets, dim, 1, columns};
    tile.ahead = kLanes * k_row;
    dot_tile<T, S, 1, kLanes>(tile, sums);
    for (int i = 0; i < columns; ++i) scores[j + i] = sums[i];
  }
}

// out = sum_j p[j] v_j over one strip of columns, kWide whole vectors of S (or part of one: `count` elements).
template <class T, class S, int kWide, bool kPart>
void add_values(const T* p, const S* v, int64_t v_row, int64_t n, int64_t count, T* out) {
  using Elements = DotElements<T, S>;
  constexpr int kVectors = Elements::kVectors, kStep = kVectors * Vec<T>::size;
  Vec<T> sums[kWide][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kWide; ++i)
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) sums[i][u] = Vec<T>::zero();
  for (int64_t j = 0; j < n; ++j, v += v_row) {
    const Vec<T> weight = Vec<T>::broadcast(p[j]);
#pragma GCC unroll 4
    for (int i = 0; i < kWide; ++i) {
      Vec<T> values[kVectors];
      __builtin_prefetch(v + 16 * v_row + i * kStep);
      if constexpr (kPart) {
        Elements::load(v, count, values);
      } else {
        Elements::load(v + i * kStep, values);
      }
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) sums[i][u] += weight * values[u];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kWide; ++i) {
    Elements::restore(sums[i]);
    alignas(64) T row[kStep];
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) sums[i][u].store(row + u * Vec<T>::size);
    memcpy(out + i * kStep, row, size_t(kPart ? count : kStep) * sizeof(T));
  }
}

template <class T, class S>
void weigh_values(const T* p, const S* v, int64_t v_row, int64_t n, int64_t dim, T* out) {
  constexpr int64_t kStep = DotElements<T, S>::kVectors * Vec<T>::size;
  int64_t c = 0;
  for (; c + 4 * kStep <= dim; c += 4 * kStep) add_values<T, S, 4, false>(p, v + c, v_row, n, 0, out + c);
  for (; c + kStep <= dim; c += kStep) add_values<T, S, 1, false>(p, v + c, v_row, n, 0, out + c);
  if (c < dim) add_values<T, S, 1, true>(p, v + c, v_row, n, dim - c, out + c);
}

// Row r of a head against keys [key, key + n).
template <class T, class S>
void decode_row(const AttentionArgs& args, const QueryBlock& block, int64_t r, int64_t key, int64_t n, T* partial) {
  alignas(64) T scores[kPieceKeys], factors[kPieceKeys];
  const HeadStrides &ks = args.k_strides, &vs = args.v_strides;
  const S* q = element<S>(args.q, args.dtype, block.at(args.q_strides) + r * args.q_strides.row);
  const S* k = element<S>(args.k, args.dtype, block.batch * ks.batch + block.kv_head * ks.head + key * ks.row);
  const S* v = element<S>(args.v, args.dtype, block.batch * vs.batch + block.kv_head * vs.head + key * vs.row);
  dot_keys(q, k, ks.row, n, args.head_dim, scores);
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
  weigh_values(scores, v, vs.row, n, args.value_dim, partial + 2);
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
  const int64_t i = row % args.q_len, head = row / args.q_len % args.heads, batch = row / args.q_len / args.heads;
  const HeadStrides& strides = args.out_strides;
  FASTNN_LEVEL::store_row(
      element<void>(args.out, args.dtype, batch * strides.batch + head * strides.head + i * strides.row), args.dtype, 1,
      sum, args.value_dim);
  static_cast<T*>(args.lse)[row] = total == T(0) ? static_cast<T>(INFINITY) : shift + log_(total);
}

template <class T, class S>
void decode(const AttentionArgs& args) {
  const int64_t group = args.heads / args.kv_heads, pairs = args.batch * args.kv_heads;
  const int64_t keys = args.causal ? min(args.kv_len, args.q_len) : args.kv_len;
  const int64_t rows = args.batch * args.heads * args.q_len;
  Partials<T> partials{nullptr, max(1, ceil_div(keys, kPieceKeys)), args.value_dim};
  partials.data = static_cast<char*>(
      thread_scratch(Scratch::OperationShared, size_t(rows * partials.pieces * Partials<T>::bytes(args.value_dim))));
  const int64_t work = max(1, min(keys, kPieceKeys)) * (args.head_dim + args.value_dim);
  parallel_for(pairs * partials.pieces, max(1, kPieceWork / work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t pair = task / partials.pieces, piece = task % partials.pieces;
      const int64_t batch = pair / args.kv_heads, kv_head = pair % args.kv_heads, key = piece * kPieceKeys;
      for (int64_t h = 0; h < group; ++h)
        for (int64_t r = 0; r < args.q_len; ++r) {
          const int64_t head = kv_head * group + h;
          const QueryBlock block{batch, head, kv_head, 0, args.q_len};
          decode_row<T, S>(args, block, r, key, min(kPieceKeys, keys - key),
                           partials.at((batch * args.heads + head) * args.q_len + r, piece));
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
