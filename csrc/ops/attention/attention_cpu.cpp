// Attention forward on the CPU, on the vector units: see attention.h for the formulas.
//
//   for each task (rows_cpu.h)                                          parallel
//     K^T and V of its key and value head, packed in panels
//     for each block of query rows (kBlockRows)
//       for each block of keys (kKeys)                                  blocks beyond the diagonal are left out
//         S = Q K^T;  m' = max(m, max S);  P = e^(S - m');  l = l e^(m - m') + sum P;  O = O e^(m - m') + P V
//       out = O / l,  lse = m + log l
//
// arithmetic: 2 q_len kv_len (head_dim + value_dim) and an exponential for each score; S, P and O stay in the
// first-level cache, the panels in the second. 16-bit floats are widened on the way. Few rows: decode_cpu.h.
#include "ops/attention/decode_cpu.h"
#include "ops/attention/panels_cpu.h"

namespace fastnn {
namespace {

template <class T>
struct Workspace {
  int64_t* offsets;
  Panels<T> keys, values;
  T *queries, *scores, *out, *highest, *totals, *row;

  void carve(const AttentionArgs& args, Carver& memory) {
    const int64_t rows = kBlockRows<T>;
    offsets = memory.take<int64_t>(max(args.head_dim, kKeys));
    keys.data = memory.take<T>(Panels<T>::size(args.head_dim, args.kv_len));
    values.data = memory.take<T>(Panels<T>::size(args.kv_len, args.value_dim));
    queries = memory.take<T>(rows * args.head_dim);
    scores = memory.take<T>(rows * kKeys);
    out = memory.take<T>(rows * padded<T>(args.value_dim));
    highest = memory.take<T>(rows);
    totals = memory.take<T>(rows);
    row = memory.take<T>(kKeys);
  }
};

// One row of scores becomes exponentials; what was summed before has to be multiplied by the result.
template <class T>
T softmax_row(T* s, int64_t n, T scale, const T* bias, T& highest, T& total) {
  if (bias) {
    for (int64_t j = 0; j < n; ++j) s[j] = s[j] * scale + bias[j];
  } else {
    for (int64_t j = 0; j < n; ++j) s[j] *= scale;
  }
  const T before = highest, block = row_max(s, n);
  highest = block > before ? block : before;
  const T shift = highest == -static_cast<T>(INFINITY) ? T(0) : highest;
  for (int64_t j = 0; j < n; ++j) s[j] = exp_(s[j] - shift);
  const T factor = before == highest ? T(1) : exp_(before - shift);
  total = total * factor +
          T(row_sum<T>(n, [&](int64_t j, int64_t count) FASTNN_INLINED { return load_values<T>(s + j, count); }));
  return factor;
}

template <class T>
void softmax_block(const AttentionArgs& args, const QueryBlock& block, int64_t key, int64_t n,
                   const Workspace<T>& work) {
  const int64_t width = padded<T>(args.value_dim);
  const bool biased = is_biased(args, block, key + n);
  for (int64_t r = 0; r < block.rows; ++r) {
    T* s = work.scores + r * kKeys;
    if (biased) bias_row(args, block, r, key, n, work.row);
    const T factor = softmax_row(s, n, T(args.scale), biased ? work.row : nullptr, work.highest[r], work.totals[r]);
    if (factor != T(1))
      for (int64_t c = 0; c < width; ++c) work.out[r * width + c] *= factor;
    if (args.drop_threshold == 0) continue;
    keep_row(args, block, r, key, n, work.row);
    for (int64_t j = 0; j < n; ++j) s[j] *= work.row[j];
  }
}

template <class T>
void store_block(const AttentionArgs& args, const QueryBlock& block, const Workspace<T>& work) {
  const int64_t width = padded<T>(args.value_dim), at = block.at(args.out_strides);
  T* lse = static_cast<T*>(args.lse) + (block.batch * args.heads + block.head) * args.q_len + block.row;
  for (int64_t r = 0; r < block.rows; ++r) {
    const T total = work.totals[r], factor = total == T(0) ? T(0) : T(1) / total;
    T* row = work.out + r * width;
    for (int64_t c = 0; c < width; ++c) row[c] *= factor;
    FASTNN_LEVEL::store_row(element<void>(args.out, args.dtype, at + r * args.out_strides.row), args.dtype, 1, row,
                            args.value_dim);
    lse[r] = total == T(0) ? static_cast<T>(INFINITY) : work.highest[r] + log_(total);
  }
}

template <class T>
void attend_block(const AttentionArgs& args, const QueryBlock& block, const Workspace<T>& work) {
  const int64_t width = padded<T>(args.value_dim);
  const Left<T> queries = rows_of(args.q, args.dtype, block.at(args.q_strides), args.q_strides.row, block.rows,
                                  args.head_dim, work.queries);
  for (int64_t r = 0; r < block.rows; ++r) work.highest[r] = -static_cast<T>(INFINITY), work.totals[r] = T(0);
  for (int64_t i = 0; i < block.rows * width; ++i) work.out[i] = T(0);
  const int64_t reached = reached_keys(args, block);
  for (int64_t key = 0; key < reached; key += kKeys) {
    const int64_t n = min(kKeys, reached - key);
    multiply<false>(queries, block.rows, work.keys.at(0, key), work.keys.stride(), args.head_dim, n, work.offsets,
                    work.scores, kKeys);
    softmax_block(args, block, key, n, work);
    multiply<true>(Left<T>{work.scores, kKeys, 1}, block.rows, work.values.at(key, 0), work.values.stride(), n,
                   args.value_dim, work.offsets, work.out, width);
  }
  store_block(args, block, work);
}

template <class T>
void forward_typed(const AttentionArgs& args) {
  const Partition partition(args, kBlockRows<T>);
  parallel_for(partition.tasks, partition.grain, [&](int64_t begin, int64_t end) {
    Carver memory;
    Workspace<T> work{};
    work.carve(args, memory);
    memory = {static_cast<char*>(thread_scratch(Scratch::Operation, size_t(memory.bytes))), 0};
    work.carve(args, memory);
    fill_offsets<T>(work.offsets, max(args.head_dim, kKeys));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = partition.pair(task) / args.kv_heads, head = partition.pair(task) % args.kv_heads;
      const HeadStrides &ks = args.k_strides, &vs = args.v_strides;
      pack(element<void>(args.k, args.dtype, batch * ks.batch + head * ks.head), args.dtype, 1, ks.row, args.head_dim,
           args.kv_len, work.keys);
      pack(element<void>(args.v, args.dtype, batch * vs.batch + head * vs.head), args.dtype, vs.row, 1, args.kv_len,
           args.value_dim, work.values);
      partition.for_each_block(args, task, [&](const QueryBlock& block) { attend_block(args, block, work); });
    }
  });
}

void forward(const AttentionArgs& args) {
  if (suits_decode(args)) return decode_any(args);
  args.dtype == DType::Float64 ? forward_typed<double>(args) : forward_typed<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(attention_forward, forward)

}  // namespace fastnn
