// Attention backward on the CPU, on the vector units: see attention.h for the formulas.
//
//   for each task (rows_cpu.h)                                          parallel
//     K^T, V^T and K of its key and value head, packed in panels
//     for each block of query rows (kBlockRows); Q and dO of the block packed in panels
//       for each block of keys (kKeys)
//         P = e^(Q K^T - lse);  dS = P (dO V^T - delta);  dV += P^T dO;  dK += dS^T Q;  dQ += dS K
//     dK and dV of the task
//
// arithmetic: 10 q_len kv_len head_dim and an exponential for each score. Where several tasks share a key and value
// head their dK and dV are added up in order afterwards, so that nothing depends on the number of threads.
#include "ops/attention/panels_cpu.h"

namespace fastnn {
namespace {

template <class T>
struct Workspace {
  int64_t* offsets;
  Panels<T> keys_t, values_t, keys, queries, douts;
  T *query_rows, *dout_rows, *probabilities, *dscores, *dq, *delta, *row;

  void carve(const AttentionArgs& args, Carver& memory) {
    const int64_t rows = kBlockRows<T>;
    offsets = memory.take<int64_t>(max(max(args.head_dim, args.value_dim), kKeys));
    keys_t.data = memory.take<T>(Panels<T>::size(args.head_dim, args.kv_len));
    values_t.data = memory.take<T>(Panels<T>::size(args.value_dim, args.kv_len));
    keys.data = memory.take<T>(Panels<T>::size(args.kv_len, args.head_dim));
    queries.data = memory.take<T>(Panels<T>::size(rows, args.head_dim));
    douts.data = memory.take<T>(Panels<T>::size(rows, args.value_dim));
    query_rows = memory.take<T>(rows * args.head_dim);
    dout_rows = memory.take<T>(rows * args.value_dim);
    probabilities = memory.take<T>(rows * kKeys);
    dscores = memory.take<T>(rows * kKeys);
    dq = memory.take<T>(rows * padded<T>(args.head_dim));
    delta = memory.take<T>(rows);
    row = memory.take<T>(max(kKeys, args.value_dim));
  }
};

// The sums of dK and dV over the blocks of a task, before the scale: rows of whole panels.
template <class T>
struct KeySums {
  T *dk, *dv;

  void carve(const AttentionArgs& args, Carver& memory) {
    dk = memory.take<T>(args.kv_len * padded<T>(args.head_dim));
    dv = memory.take<T>(args.kv_len * padded<T>(args.value_dim));
  }
};

template <class T>
int64_t key_sums_bytes(const AttentionArgs& args) {
  Carver memory;
  KeySums<T>{}.carve(args, memory);
  return memory.bytes;
}

// P (kept ones, scaled, where there is dropout) and dS from the scores and dP of one row.
template <class T>
void softmax_gradient_row(const AttentionArgs& args, const QueryBlock& block, int64_t r, int64_t key, int64_t n, T lse,
                          bool biased, const Workspace<T>& work) {
  T *p = work.probabilities + r * kKeys, *ds = work.dscores + r * kKeys, *row = work.row;
  const T scale = T(args.scale), delta = work.delta[r];
  if (biased) {
    bias_row(args, block, r, key, n, row);
    for (int64_t j = 0; j < n; ++j) p[j] = exp_(p[j] * scale + row[j] - lse);
  } else {
    for (int64_t j = 0; j < n; ++j) p[j] = exp_(p[j] * scale - lse);
  }
  if (args.drop_threshold == 0) {
    for (int64_t j = 0; j < n; ++j) ds[j] = p[j] * (ds[j] - delta);
    return;
  }
  keep_row(args, block, r, key, n, row);
  for (int64_t j = 0; j < n; ++j) {
    ds[j] = p[j] * (ds[j] * row[j] - delta);
    p[j] *= row[j];
  }
}

template <class T>
void softmax_gradient(const AttentionBackwardArgs& args, const QueryBlock& block, int64_t key, int64_t n,
                      const Workspace<T>& work) {
  const AttentionArgs& forward = args.forward;
  const bool biased = is_biased(forward, block, key + n);
  const int64_t first = (block.batch * forward.heads + block.head) * forward.q_len + block.row;
  for (int64_t r = 0; r < block.rows; ++r) {
    softmax_gradient_row(forward, block, r, key, n, static_cast<const T*>(forward.lse)[first + r], biased, work);
    if (args.dscores)
      FASTNN_LEVEL::store_row(element<void>(args.dscores, forward.mask_dtype, (first + r) * forward.kv_len + key),
                              forward.mask_dtype, 1, work.dscores + r * kKeys, n);
  }
}

// delta of the block's rows.
template <class T>
void dot_rows(const AttentionArgs& args, const QueryBlock& block, const Left<T>& dout, const Workspace<T>& work) {
  const int64_t at = block.at(args.out_strides);
  for (int64_t r = 0; r < block.rows; ++r) {
    FASTNN_LEVEL::load_row(work.row, element<void>(args.out, args.dtype, at + r * args.out_strides.row), args.dtype, 1,
                           args.value_dim);
    const T* dy = dout.data + r * dout.row;
    work.delta[r] = T(row_dot(dy, work.row, args.value_dim));
  }
}

template <class T>
void backward_block(const AttentionBackwardArgs& args, const QueryBlock& block, Workspace<T>& work,
                    const KeySums<T>& sums) {
  const AttentionArgs& forward = args.forward;
  const int64_t head_dim = forward.head_dim, value_dim = forward.value_dim, rows = block.rows;
  const int64_t q_at = block.at(forward.q_strides), dout_at = block.at(args.dout_strides);
  const int64_t q_width = padded<T>(head_dim), v_width = padded<T>(value_dim);
  const DType dtype = forward.dtype;
  const Left<T> queries = rows_of(forward.q, dtype, q_at, forward.q_strides.row, rows, head_dim, work.query_rows);
  const Left<T> douts = rows_of(args.dout, dtype, dout_at, args.dout_strides.row, rows, value_dim, work.dout_rows);
  pack(queries.data, dtype_of<T>(), queries.row, 1, rows, head_dim, work.queries);
  pack(douts.data, dtype_of<T>(), douts.row, 1, rows, value_dim, work.douts);
  dot_rows(forward, block, douts, work);
  for (int64_t i = 0; i < rows * q_width; ++i) work.dq[i] = T(0);
  const int64_t reached = reached_keys(forward, block);
  for (int64_t key = 0; key < reached; key += kKeys) {
    const int64_t n = min(kKeys, reached - key);
    const Left<T> ds{work.dscores, kKeys, 1};
    const Left<T> p_t{work.probabilities, 1, kKeys}, ds_t{work.dscores, 1, kKeys};
    multiply<false>(queries, rows, work.keys_t.at(0, key), work.keys_t.stride(), head_dim, n, work.offsets,
                    work.probabilities, kKeys);
    multiply<false>(douts, rows, work.values_t.at(0, key), work.values_t.stride(), value_dim, n, work.offsets,
                    work.dscores, kKeys);
    softmax_gradient(args, block, key, n, work);
    multiply<true>(p_t, n, work.douts.data, work.douts.stride(), rows, value_dim, work.offsets, sums.dv + key * v_width,
                   v_width);
    multiply<true>(ds_t, n, work.queries.data, work.queries.stride(), rows, head_dim, work.offsets,
                   sums.dk + key * q_width, q_width);
    multiply<true>(ds, rows, work.keys.at(key, 0), work.keys.stride(), n, head_dim, work.offsets, work.dq, q_width);
  }
  const T scale = T(forward.scale);
  for (int64_t i = 0; i < rows * q_width; ++i) work.dq[i] *= scale;
  const int64_t dq_at = block.at(args.dq_strides);
  for (int64_t r = 0; r < rows; ++r)
    FASTNN_LEVEL::store_row(element<void>(args.dq, dtype, dq_at + r * args.dq_strides.row), dtype, 1,
                            work.dq + r * q_width, head_dim);
}

template <class T>
void pack_keys(const AttentionArgs& args, int64_t pair, Workspace<T>& work) {
  const HeadStrides &ks = args.k_strides, &vs = args.v_strides;
  const int64_t batch = pair / args.kv_heads, head = pair % args.kv_heads;
  const void* k = element<void>(args.k, args.dtype, batch * ks.batch + head * ks.head);
  const void* v = element<void>(args.v, args.dtype, batch * vs.batch + head * vs.head);
  pack(k, args.dtype, 1, ks.row, args.head_dim, args.kv_len, work.keys_t);
  pack(v, args.dtype, 1, vs.row, args.value_dim, args.kv_len, work.values_t);
  pack(k, args.dtype, ks.row, 1, args.kv_len, args.head_dim, work.keys);
}

// Rows [begin, end) of dK and dV of one key and value head: the sums of `splits` tasks, `stride` bytes apart, in order.
template <class T>
void store_key_sums(const AttentionBackwardArgs& args, int64_t pair, char* memory, int64_t splits, int64_t stride,
                    int64_t begin, int64_t end) {
  const AttentionArgs& forward = args.forward;
  const int64_t batch = pair / forward.kv_heads, head = pair % forward.kv_heads;
  const auto store = [&](T* KeySums<T>::* part, void* target, const HeadStrides& strides, int64_t dim, T scale) {
    const int64_t width = padded<T>(dim);
    const auto at = [&](int64_t split, int64_t row) {
      Carver carver{memory + split * stride, 0};
      KeySums<T> sums{};
      sums.carve(forward, carver);
      return sums.*part + row * width;
    };
    for (int64_t row = begin; row < end; ++row) {
      T* sum = at(0, row);
      for (int64_t split = 1; split < splits; ++split) {
        const T* other = at(split, row);
        for (int64_t c = 0; c < width; ++c) sum[c] += other[c];
      }
      for (int64_t c = 0; c < width; ++c) sum[c] *= scale;
      const int64_t first = batch * strides.batch + head * strides.head + row * strides.row;
      FASTNN_LEVEL::store_row(element<void>(target, forward.dtype, first), forward.dtype, 1, sum, dim);
    }
  };
  store(&KeySums<T>::dk, args.dk, args.dk_strides, forward.head_dim, T(forward.scale));
  store(&KeySums<T>::dv, args.dv, args.dv_strides, forward.value_dim, T(1));
}

template <class T>
void backward_typed(const AttentionBackwardArgs& args) {
  const AttentionArgs& forward = args.forward;
  const Partition partition(forward, kBlockRows<T>);
  const int64_t sums_bytes = key_sums_bytes<T>(forward);
  const bool shared = partition.splits > 1;
  char* all_sums =
      shared ? static_cast<char*>(thread_scratch(Scratch::OperationShared, size_t(partition.tasks * sums_bytes)))
             : nullptr;
  parallel_for(partition.tasks, partition.grain, [&](int64_t begin, int64_t end) {
    Carver memory;
    Workspace<T> work{};
    work.carve(forward, memory);
    const int64_t work_bytes = memory.bytes;
    char* scratch =
        static_cast<char*>(thread_scratch(Scratch::Operation, size_t(work_bytes + (shared ? 0 : sums_bytes))));
    memory = {scratch, 0};
    work.carve(forward, memory);
    fill_offsets<T>(work.offsets, max(max(forward.head_dim, forward.value_dim), kKeys));
    for (int64_t task = begin; task < end; ++task) {
      char* own = shared ? all_sums + task * sums_bytes : scratch + work_bytes;
      Carver carver{own, 0};
      KeySums<T> sums{};
      sums.carve(forward, carver);
      memset(own, 0, size_t(sums_bytes));
      pack_keys(forward, partition.pair(task), work);
      partition.for_each_block(forward, task,
                               [&](const QueryBlock& block) { backward_block(args, block, work, sums); });
      if (!shared) store_key_sums<T>(args, partition.pair(task), own, 1, 0, 0, forward.kv_len);
    }
  });
  if (!shared) return;
  const int64_t chunks = ceil_div(forward.kv_len, kKeys);
  parallel_for(forward.batch * forward.kv_heads * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / chunks, key = i % chunks * kKeys;
      store_key_sums<T>(args, pair, all_sums + pair * partition.splits * sums_bytes, partition.splits, sums_bytes, key,
                        min(key + kKeys, forward.kv_len));
    }
  });
}

void backward(const AttentionBackwardArgs& args) {
  args.forward.dtype == DType::Float64 ? backward_typed<double>(args) : backward_typed<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(attention_backward, backward)

}  // namespace fastnn
