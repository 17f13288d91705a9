// Attention backward on AMX tiles: see attention.h for the formulas, attention_amx.cpp for the parts of numbers.
//
//   for each task (rows_cpu.h)                                          parallel
//     for each block of 128 query rows
//       for each block of 128 keys
//         for each panel of 32 keys:  S^T = K Q^T,  dP^T = V dO^T,  from them P^T and dS^T;  dV += P^T dO,  dK += dS^T
//         Q dQ^T += K^T dS^T
//
// Scores stand transposed, keys by queries: so P^T and dS^T are the left operands that dV and dK need as they are
// made, and dS^T, two rows at a time, is the right operand of dQ^T. lse and delta are vectors then. All other operands
// are packed from q, k, v and dO, in both orders: those of keys once for a task, those of queries once for a block.
//
// Where several tasks share a key and value head their dK and dV are added up in order afterwards. The gradient of a
// mask, and float32 whose parts would not be exact, are left to the vector kernel.
#include "gemm/store_amx.h"
#include "ops/attention/tiles_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kRowPanels = 4, kKeyPanels = 4;  // of a block of scores
constexpr int64_t kRows = kRowPanels * kBlock, kKeys = kKeyPanels * kBlock;

template <int P>
struct Workspace {
  StepTable<P> table;
  TilePanels<P> keys, values, keys_t;                   // left: of the whole key and value head
  TilePanels<P> queries, douts, queries_t, douts_t;     // right: of a block of rows
  TilePanels<P> probabilities, dscores, dscores_right;  // of a block of scores
  float *scores, *dprobabilities, *dq, *lse, *delta, *bias, *keep;

  static int64_t steps(const AttentionArgs& args) {
    return max(max(kRowPanels, kKeyPanels), max(panels_of(args.head_dim), panels_of(args.value_dim)));
  }
  void carve(const AttentionArgs& args, Carver& memory) {
    const auto panels = [&](int64_t outer, int64_t depth) {
      return TilePanels<P>{memory.take<char>(TilePanels<P>::bytes(outer, depth)), ceil_div(depth, kStepK)};
    };
    const auto blocks = [&](int64_t count) { return memory.take<float>(count * kSumsPerBlock); };
    table.offsets = memory.take<int64_t>(steps(args));
    keys = panels(args.kv_len, args.head_dim), values = panels(args.kv_len, args.value_dim);
    keys_t = panels(args.head_dim, args.kv_len);
    queries = panels(kRows, args.head_dim), douts = panels(kRows, args.value_dim);
    queries_t = panels(args.head_dim, kRows), douts_t = panels(args.value_dim, kRows);
    probabilities = panels(kBlock, kRows), dscores = panels(kBlock, kRows), dscores_right = panels(kRows, kKeys);
    scores = blocks(kRowPanels), dprobabilities = blocks(kRowPanels);
    dq = blocks(kRowPanels * panels_of(args.head_dim));
    lse = memory.take<float>(kRows), delta = memory.take<float>(kRows);
    bias = args.mask ? blocks(kRowPanels) : nullptr;
    keep = args.drop_threshold ? blocks(kRowPanels) : nullptr;
  }
};

// Blocks of dK and dV, before the scale: [key panel][panel of the dimension].
struct KeySums {
  float *dk, *dv;

  void carve(const AttentionArgs& args, Carver& memory) {
    dk = memory.take<float>(panels_of(args.kv_len) * panels_of(args.head_dim) * kSumsPerBlock);
    dv = memory.take<float>(panels_of(args.kv_len) * panels_of(args.value_dim) * kSumsPerBlock);
  }
};

inline int64_t key_sums_bytes(const AttentionArgs& args) {
  Carver memory;
  KeySums{}.carve(args, memory);
  return memory.bytes;
}

// Blocks [row panel] of numbers that fill(row, 32 floats) makes for each query row, transposed: keys by queries.
template <class Fill>
void fill_transposed(int64_t rows, float* blocks, const Fill& fill) {
  alignas(64) float row[kBlock] = {};
  for (int64_t r = 0; r < panels_of(rows) * kBlock; ++r) {
    if (r < rows) fill(r, row);
    float* lanes = block_row(blocks + r / kBlock * kSumsPerBlock, r % kBlock);
    _mm512_store_ps(lanes, _mm512_load_ps(row));
    _mm512_store_ps(lanes + 256, _mm512_load_ps(row + 16));
  }
  for (int64_t i = 0; i < panels_of(rows); ++i) transpose_block(blocks + i * kSumsPerBlock);
}

// Which of 16 query rows, from `row` on, see the key.
inline __mmask16 seeing(const AttentionArgs& args, int64_t row, int64_t key) {
  if (key >= args.kv_len) return 0;
  const int64_t first = key - row;
  return !args.causal || first <= 0 ? __mmask16(0xffff) : first >= 16 ? __mmask16(0) : __mmask16(0xffff << first);
}

// P^T and dS^T of 32 keys from `key` on by the 32 queries of row panel i, as operands. j: the key panel in its block.
template <int P, bool kPlain>
void softmax_gradient(const AttentionArgs& args, const QueryBlock& block, int64_t i, int64_t j, int64_t key,
                      const Workspace<P>& work) {
  const __m512 scale = _mm512_set1_ps(float(args.scale) * kLog2e);
  __m512 lse[2], delta[2];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    lse[half] = _mm512_load_ps(work.lse + i * kBlock + 16 * half);
    delta[half] = _mm512_load_ps(work.delta + i * kBlock + 16 * half);
  }
  const int64_t first = i * kSumsPerBlock, tile_at = i * kStepBytes<P>;
  for (int64_t r = 0; r < kBlock; r += 2) {
    __m512 ds[2][2];
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      __m512 p[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int64_t at = block_row(work.scores + first, r + odd) + 256 * half - work.scores;
        __m512 x = _mm512_fmsub_ps(_mm512_load_ps(work.scores + at), scale, lse[half]);
        if (!kPlain && work.bias) x = _mm512_fmadd_ps(_mm512_load_ps(work.bias + at), _mm512_set1_ps(kLog2e), x);
        p[half] = exp2_lanes<P>(x);
        if (!kPlain)
          p[half] = _mm512_maskz_mov_ps(seeing(args, block.row + i * kBlock + 16 * half, key + r + odd), p[half]);
        __m512 dp = _mm512_load_ps(work.dprobabilities + at);
        if (!kPlain && work.keep) dp = _mm512_mul_ps(dp, _mm512_load_ps(work.keep + at));
        ds[odd][half] = _mm512_mul_ps(p[half], _mm512_sub_ps(dp, delta[half]));
        if (!kPlain && work.keep) p[half] = _mm512_mul_ps(p[half], _mm512_load_ps(work.keep + at));
      }
      const int64_t row_at = tile_at + (r + odd) * 64;
      store_along<P>(p[0], p[1], work.probabilities.data + row_at);
      store_along<P>(ds[odd][0], ds[odd][1], work.dscores.data + row_at);
    }
    char* pairs = work.dscores_right.data + (i * kKeyPanels + j) * kStepBytes<P> + r / 2 * 64;
    store_across<P>(ds[0][0], ds[1][0], pairs);
    store_across<P>(ds[0][1], ds[1][1], pairs + kTileBytes);
  }
}

// Packs the block's rows; false where parts would not be exact.
template <int P>
bool pack_rows(const AttentionBackwardArgs& args, const QueryBlock& block, const PartRange& keys,
               const PartRange& values, Workspace<P>& work) {
  const AttentionArgs& forward = args.forward;
  const DType dtype = forward.dtype;
  const int64_t rows = block.rows, head_dim = forward.head_dim, value_dim = forward.value_dim;
  const PackSource q = head_source(forward.q, dtype, block.at(forward.q_strides), forward.q_strides.row);
  const PackSource dout = head_source(args.dout, dtype, block.at(args.dout_strides), args.dout_strides.row);
  const PartRange q_range = work.queries.pack(q, rows, head_dim, TileForm::Pairs);
  const PartRange dout_range = work.douts.pack(dout, rows, value_dim, TileForm::Pairs);
  if (P > 1 && !(parts_are_exact(q_range, keys) && parts_are_exact(dout_range, values))) return false;
  work.queries_t.pack(transposed(q), head_dim, rows, TileForm::Pairs);
  work.douts_t.pack(transposed(dout), value_dim, rows, TileForm::Pairs);
  const float* lse =
      static_cast<const float*>(forward.lse) + (block.batch * forward.heads + block.head) * forward.q_len + block.row;
  const int64_t out_at = block.at(forward.out_strides);
  for (int64_t r = 0; r < kRows; ++r) {
    work.lse[r] = r < rows ? lse[r] * kLog2e : INFINITY;
    work.delta[r] = 0;
    if (r >= rows) continue;
    alignas(64) float y[kRowChunk], dy[kRowChunk];
    for (int64_t c = 0; c < value_dim; c += kRowChunk) {
      const int64_t n = min(kRowChunk, value_dim - c);
      FASTNN_LEVEL::load_row(y, element<void>(forward.out, dtype, out_at + r * forward.out_strides.row + c), dtype, 1,
                             n);
      FASTNN_LEVEL::load_row(dy, dout.at(r, c), dtype, 1, n);
      work.delta[r] += float(row_dot(y, dy, n));
    }
  }
  return true;
}

// One panel of keys: its scores, their gradients, and what they add to dK and dV. j: the panel in its block.
template <int P>
void key_panel(const AttentionArgs& args, const QueryBlock& block, int64_t key, int64_t j, const Workspace<P>& work,
               const KeySums& sums) {
  const int64_t row_panels = panels_of(block.rows), panel = key / kBlock;
  const int64_t dim_panels = panels_of(args.head_dim), value_panels = panels_of(args.value_dim);
  const auto product = [&](const char* a, const char* b, int64_t steps, bool wide, float* target, bool first) {
    tile_block<P>(work.table.stream(a), work.table.stream(b), 0, steps, true, wide, target, first);
  };
  for (int64_t i = 0; i < row_panels; ++i) {
    product(work.keys.at(panel, 0), work.queries.at(i, 0), dim_panels, true, work.scores + i * kSumsPerBlock, true);
    product(work.values.at(panel, 0), work.douts.at(i, 0), value_panels, true, work.dprobabilities + i * kSumsPerBlock,
            true);
  }
  const int64_t n = min(kBlock, args.kv_len - key);
  if (work.bias)
    fill_transposed(block.rows, work.bias, [&](int64_t r, float* row) { bias_lanes(args, block, r, key, n, row); });
  if (work.keep)
    fill_transposed(block.rows, work.keep, [&](int64_t r, float* row) { keep_row(args, block, r, key, n, row); });
  for (int64_t i = 0; i < row_panels; ++i) {
    const bool whole = n == kBlock && (!args.causal || key + kBlock <= block.row + i * kBlock + 1);
    if (whole && !work.bias && !work.keep) {
      softmax_gradient<P, true>(args, block, i, j, key, work);
    } else {
      softmax_gradient<P, false>(args, block, i, j, key, work);
    }
  }
  for (int64_t c = 0; c < value_panels; ++c)
    product(work.probabilities.data, work.douts_t.at(c, 0), row_panels, args.value_dim - c * kBlock > 16,
            sums.dv + (panel * value_panels + c) * kSumsPerBlock, false);
  for (int64_t c = 0; c < dim_panels; ++c)
    product(work.dscores.data, work.queries_t.at(c, 0), row_panels, args.head_dim - c * kBlock > 16,
            sums.dk + (panel * dim_panels + c) * kSumsPerBlock, false);
}

template <class T>
void store_dq(const AttentionBackwardArgs& args, const QueryBlock& block, float* dq) {
  const AttentionArgs& forward = args.forward;
  const __m512 scale = _mm512_set1_ps(float(forward.scale));
  char* target = element<char>(args.dq, forward.dtype, block.at(args.dq_strides));
  for (int64_t c = 0; c < panels_of(forward.head_dim); ++c)
    for (int64_t i = 0; i < panels_of(block.rows); ++i) {
      float* sums = dq + (c * kRowPanels + i) * kSumsPerBlock;
      transpose_block(sums);
      const __mmask16 low = lane_mask(forward.head_dim - c * kBlock),
                      high = lane_mask(forward.head_dim - c * kBlock - 16);
      for (int64_t r = i * kBlock; r < min(block.rows, (i + 1) * kBlock); ++r) {
        const float* lanes = block_row(sums, r % kBlock);
        char* row = target + (r * args.dq_strides.row + c * kBlock) * int64_t(sizeof(T));
        store_lanes<T>(row, low, _mm512_mul_ps(_mm512_load_ps(lanes), scale));
        if (high) store_lanes<T>(row + 16 * sizeof(T), high, _mm512_mul_ps(_mm512_load_ps(lanes + 256), scale));
      }
    }
}

template <int P, class T>
bool backward_block(const AttentionBackwardArgs& args, const QueryBlock& block, const PartRange& keys,
                    const PartRange& values, Workspace<P>& work, const KeySums& sums) {
  const AttentionArgs& forward = args.forward;
  if (!pack_rows(args, block, keys, values, work)) return false;
  const int64_t reached = reached_keys(forward, block), dim_panels = panels_of(forward.head_dim);
  const int64_t row_panels = panels_of(block.rows);
  for (int64_t key = 0; key < reached; key += kKeys) {
    const int64_t key_panels = panels_of(min(kKeys, reached - key));
    for (int64_t j = 0; j < key_panels; ++j) key_panel(forward, block, key + j * kBlock, j, work, sums);
    for (int64_t c = 0; c < dim_panels; ++c)
      for (int64_t i = 0; i < row_panels; ++i)
        tile_block<P>(work.table.stream(work.keys_t.at(c, key / kBlock)),
                      work.table.stream(work.dscores_right.at(i, 0)), 0, key_panels, forward.head_dim - c * kBlock > 16,
                      true, work.dq + (c * kRowPanels + i) * kSumsPerBlock, key == 0);
  }
  store_dq<T>(args, block, work.dq);
  return true;
}

// Rows [begin, end) of dK and dV of one key and value head: the sums of `splits` tasks, `stride` bytes apart, in order.
template <class T>
void store_key_sums(const AttentionBackwardArgs& args, int64_t pair, char* memory, int64_t splits, int64_t stride,
                    int64_t begin, int64_t end) {
  const AttentionArgs& forward = args.forward;
  const int64_t batch = pair / forward.kv_heads, head = pair % forward.kv_heads;
  Carver carver{memory, 0};
  KeySums sums{};
  sums.carve(forward, carver);
  const auto store = [&](float* blocks, void* target, const HeadStrides& strides, int64_t dim, float factor) {
    const __m512 scale = _mm512_set1_ps(factor);
    for (int64_t key = begin; key < end; ++key) {
      float* row = block_row(blocks + key / kBlock * panels_of(dim) * kSumsPerBlock, key % kBlock);
      char* to = element<char>(target, forward.dtype, batch * strides.batch + head * strides.head + key * strides.row);
      for (int64_t v = 0; 16 * v < dim; ++v, to += 16 * sizeof(T)) {
        const char* lanes = reinterpret_cast<const char*>(lanes_of(row, v));
        __m512 sum = _mm512_load_ps(lanes);
        for (int64_t split = 1; split < splits; ++split)
          sum = _mm512_add_ps(sum, _mm512_load_ps(lanes + split * stride));
        store_lanes<T>(to, lane_mask(dim - 16 * v), _mm512_mul_ps(sum, scale));
      }
    }
  };
  store(sums.dk, args.dk, args.dk_strides, forward.head_dim, float(forward.scale));
  store(sums.dv, args.dv, args.dv_strides, forward.value_dim, 1.0f);
}

// False where parts would not be exact.
template <int P, class T>
bool run_task(const AttentionBackwardArgs& args, const Partition& partition, int64_t task, Workspace<P>& work,
              const KeySums& sums) {
  const AttentionArgs& forward = args.forward;
  const int64_t batch = partition.pair(task) / forward.kv_heads, head = partition.pair(task) % forward.kv_heads;
  const HeadStrides &ks = forward.k_strides, &vs = forward.v_strides;
  const PackSource k = head_source(forward.k, forward.dtype, batch * ks.batch + head * ks.head, ks.row);
  const PackSource v = head_source(forward.v, forward.dtype, batch * vs.batch + head * vs.head, vs.row);
  const PartRange keys = work.keys.pack(k, forward.kv_len, forward.head_dim, TileForm::Rows);
  const PartRange values = work.values.pack(v, forward.kv_len, forward.value_dim, TileForm::Rows);
  work.keys_t.pack(transposed(k), forward.head_dim, forward.kv_len, TileForm::Rows);
  bool exact = true;
  partition.for_each_block(forward, task, [&](const QueryBlock& block) {
    exact = exact && backward_block<P, T>(args, block, keys, values, work, sums);
  });
  return exact;
}

// False where parts would not be exact: then nothing that was stored counts.
template <int P, class T>
bool backward_parts(const AttentionBackwardArgs& args) {
  const AttentionArgs& forward = args.forward;
  const Partition partition(forward, kRows);
  const int64_t sums_bytes = key_sums_bytes(forward);
  const bool shared = partition.splits > 1;
  char* all_sums = static_cast<char*>(
      thread_scratch(Scratch::OperationShared, size_t((shared ? partition.tasks * sums_bytes : 0) + partition.tasks)));
  bool* exact = reinterpret_cast<bool*>(all_sums + (shared ? partition.tasks * sums_bytes : 0));
  parallel_for(partition.tasks, partition.grain, [&](int64_t begin, int64_t end) {
    Carver memory;
    Workspace<P> work{};
    work.carve(forward, memory);
    const int64_t work_bytes = memory.bytes;
    char* scratch =
        static_cast<char*>(thread_scratch(Scratch::Operation, size_t(work_bytes + (shared ? 0 : sums_bytes))));
    memory = {scratch, 0};
    work.carve(forward, memory);
    work.table.fill(Workspace<P>::steps(forward));
    _tile_loadconfig(&kTileConfig);
    for (int64_t task = begin; task < end; ++task) {
      char* own = shared ? all_sums + task * sums_bytes : scratch + work_bytes;
      Carver carver{own, 0};
      KeySums sums{};
      sums.carve(forward, carver);
      memset(own, 0, size_t(sums_bytes));
      exact[task] = run_task<P, T>(args, partition, task, work, sums);
      if (!shared) store_key_sums<T>(args, partition.pair(task), own, 1, 0, 0, forward.kv_len);
    }
    _tile_release();
  });
  for (int64_t task = 0; task < partition.tasks; ++task)
    if (!exact[task]) return false;
  if (!shared) return true;
  const int64_t chunks = ceil_div(forward.kv_len, kKeys);
  parallel_for(forward.batch * forward.kv_heads * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / chunks, key = i % chunks * kKeys;
      store_key_sums<T>(args, pair, all_sums + pair * partition.splits * sums_bytes, partition.splits, sums_bytes, key,
                        min(key + kKeys, forward.kv_len));
    }
  });
  return true;
}

bool backward_tiles(const AttentionBackwardArgs& args) {
  if (args.dscores || !suits_tiles(args.forward)) return false;
  if (args.forward.dtype == DType::BFloat16) return backward_parts<1, bfloat16>(args);
  if (args.forward.dtype == DType::Float16) return backward_parts<2, float16>(args);
  if (float32_parts == 1) return backward_parts<1, float>(args);
  if (float32_parts == 2) return backward_parts<2, float>(args);
  return backward_parts<3, float>(args);
}

void backward(const AttentionBackwardArgs& args) {
  if (!backward_tiles(args)) call_level(attention_backward, CpuLevel::Avx512, args);
}

}  // namespace

FASTNN_AMX_KERNEL(attention_backward, backward)

}  // namespace fastnn
