// Attention forward on AMX tiles: see attention.h for the formulas, gemm/tile_amx.h for the tiles.
//
//   for each task (rows_cpu.h)                                          parallel
//     K and V of its key and value head, cut into P bfloat16 parts and packed as tiles
//     for each block of 128 query rows
//       for each block of 128 keys                                      blocks beyond the diagonal are left out
//         S = Q K^T by tiles;  P = e^(S - max), cut into parts as it is made;  O = O e^(m - m') + P V by tiles
//
// bfloat16 is multiplied as it is, P rounded to it; float32 as three parts with its own accuracy (or as fewer: see
// set_float32_matmul_precision), float16 as two. For bfloat16 and head_dim 64 the products of 32 x 32 scores take 256
// cycles, their exponentials about twice that. Sums and parts of a block stay in the first-level cache, or close.
//
// Float32 whose parts would not be exact goes to the vector kernel. Blocks of bfloat16 whose scores are known to be
// small, with a boolean mask or none and without dropout, go to bounded_amx.h.
#include "gemm/store_amx.h"
#include "ops/attention/bounded_amx.h"

namespace fastnn {
namespace {

constexpr float kSlack = 8;  // of maxima, as a power of two

template <int P>
struct Workspace {
  StepTable<P> table;
  TilePanels<P> keys, values, queries, probabilities;
  float *scores, *out, *highest, *totals, *row;
  BoundedWorkspace bounded;

  void carve(const AttentionArgs& args, Carver& memory) {
    table.offsets = memory.take<int64_t>(max(kKeyPanels, ceil_div(args.head_dim, kStepK)));
    keys.data = memory.take<char>(TilePanels<P>::bytes(args.kv_len, args.head_dim));
    values.data = memory.take<char>(TilePanels<P>::bytes(args.value_dim, args.kv_len));
    queries.data = memory.take<char>(TilePanels<P>::bytes(kRows, args.head_dim));
    probabilities = {memory.take<char>(TilePanels<P>::bytes(kRows, kKeys)), kKeyPanels};
    scores = memory.take<float>(kRowPanels * kKeyPanels * kSumsPerBlock);
    out = memory.take<float>(kRowPanels * panels_of(args.value_dim) * kSumsPerBlock);
    highest = memory.take<float>(kRows);
    totals = memory.take<float>(16 * kRows);
    row = memory.take<float>(kKeys);
    if (suits_bounds(args)) bounded.carve(args, memory);
    if (row) memset(row, 0, size_t(kKeys) * sizeof(float));  // what no key writes is multiplied by 0
  }
  float* score_row(int64_t r) const { return block_row(scores + r / kBlock * kKeyPanels * kSumsPerBlock, r % kBlock); }
};

// The maxima of rows, as numbers that are subtracted, and what sums over earlier keys are multiplied by.
struct Shifts {
  alignas(64) float shifts[kBlock], ratios[kBlock];
  bool changed;
};

// New maxima of 32 rows. No row waits for another, and none branches: maxima change too irregularly to be predicted.
// A maximum stays until a score exceeds it by kSlack: e^(S - max) may be as large as 2^kSlack, and sums over earlier
// keys are seldom scaled anew.
inline Shifts update_maxima(const float* maxima, float* highest) {
  Shifts result;
  __mmask16 changed = 0;
  for (int64_t r = 0; r < kBlock; r += 16) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY), before = _mm512_load_ps(highest + r);
    const __m512 found = _mm512_load_ps(maxima + r), limit = _mm512_add_ps(before, _mm512_set1_ps(kSlack));
    const __m512 after = _mm512_mask_max_ps(before, _mm512_cmp_ps_mask(found, limit, _CMP_NLE_UQ), before, found);
    const __m512 shift = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(after, lowest, _CMP_NEQ_UQ), after);
    _mm512_store_ps(highest + r, after);
    _mm512_store_ps(result.shifts + r, shift);
    _mm512_store_ps(result.ratios + r, exp2_lanes<3>(_mm512_sub_ps(before, shift)));
    changed |= _mm512_cmp_ps_mask(before, after, _CMP_NEQ_UQ);
  }
  result.changed = changed != 0;
  return result;
}

// The scores of 32 rows become probabilities in parts. kPlain: all keys take part, nothing is added to their scores or
// dropped, and the scale is positive.
template <int P, bool kPlain>
void softmax_panel(const AttentionArgs& args, const QueryBlock& block, int64_t panel, int64_t key, int64_t n,
                   const Workspace<P>& work) {
  const int64_t vectors = 2 * panels_of(n), value_panels = panels_of(args.value_dim);
  const int64_t first = panel * kBlock, rows = min(kBlock, block.rows - first);
  const __m512 lowest = _mm512_set1_ps(-INFINITY), scale = _mm512_set1_ps(float(args.scale) * kLog2e);
  alignas(64) float maxima[kBlock];
  for (int64_t r = rows; r < kBlock; ++r) maxima[r] = -INFINITY;
  for (int64_t r = 0; r < rows; ++r) {
    float* row = work.score_row(first + r);
    __m512 most = lowest;
    if (!kPlain && args.mask) bias_lanes(args, block, first + r, key, n, work.row);
    const int64_t valid = args.causal ? min(n, block.row + first + r + 1 - key) : n;
    for (int64_t i = 0; i < vectors; ++i) {
      __m512 x = _mm512_load_ps(lanes_of(row, i));
      if (!kPlain) {
        x = _mm512_mul_ps(x, scale);
        if (args.mask) x = _mm512_fmadd_ps(_mm512_load_ps(work.row + 16 * i), _mm512_set1_ps(kLog2e), x);
        x = _mm512_mask_mov_ps(lowest, lane_mask(valid - 16 * i), x);
        _mm512_store_ps(lanes_of(row, i), x);
      }
      most = _mm512_max_ps(most, x);
    }
    maxima[r] = _mm512_reduce_max_ps(kPlain ? _mm512_mul_ps(most, scale) : most);
  }
  const Shifts shifts = update_maxima(maxima, work.highest + first);
  for (int64_t r = 0; r < rows; ++r) {
    float *row = work.score_row(first + r), *totals = work.totals + 16 * (first + r);
    char* tiles = work.probabilities.data + panel * kKeyPanels * kStepBytes<P> + r * 64;
    if (!kPlain && args.drop_threshold) keep_row(args, block, first + r, key, n, work.row);
    const __m512 shift = _mm512_set1_ps(shifts.shifts[r]);
    __m512 sum = _mm512_mul_ps(_mm512_load_ps(totals), _mm512_set1_ps(shifts.ratios[r]));
    for (int64_t i = 0; i < vectors; i += 2) {
      __m512 p[2];
#pragma GCC unroll 2
      for (int64_t half = 0; half < 2; ++half) {
        const __m512 x = _mm512_load_ps(lanes_of(row, i + half));
        p[half] = exp2_lanes<P>(kPlain ? _mm512_fmsub_ps(x, scale, shift) : _mm512_sub_ps(x, shift));
        sum = _mm512_add_ps(sum, p[half]);
        if (!kPlain && args.drop_threshold)
          p[half] = _mm512_mul_ps(p[half], _mm512_load_ps(work.row + 16 * (i + half)));
      }
      store_along<P>(p[0], p[1], tiles + i / 2 * kStepBytes<P>);
    }
    _mm512_store_ps(totals, sum);
  }
  if (key == 0 || !shifts.changed) return;
  for (int64_t r = 0; r < rows; ++r) {
    float* out = block_row(work.out + panel * value_panels * kSumsPerBlock, r);
    const __m512 ratio = _mm512_set1_ps(shifts.ratios[r]);
    for (int64_t v = 0; v < 2 * value_panels; ++v)
      _mm512_store_ps(lanes_of(out, v), _mm512_mul_ps(_mm512_load_ps(lanes_of(out, v)), ratio));
  }
}

template <int P>
bool attend_block(const AttentionArgs& args, const QueryBlock& block, const PartRange& keys, Workspace<P>& work) {
  const int64_t value_panels = panels_of(args.value_dim), row_panels = panels_of(block.rows);
  const PartRange range =
      work.queries.pack(head_source(args.q, args.dtype, block.at(args.q_strides), args.q_strides.row), block.rows,
                        args.head_dim, TileForm::Rows);
  if (P > 1 && !parts_are_exact(range, keys)) return false;
  for (int64_t r = 0; r < kRows; ++r) {
    work.highest[r] = -INFINITY;
    _mm512_store_ps(work.totals + 16 * r, _mm512_setzero_ps());
  }
  const int64_t reached = reached_keys(args, block), dim_steps = work.queries.steps;
  for (int64_t key = 0; key < reached; key += kKeys) {
    const int64_t n = min(kKeys, reached - key), key_panels = panels_of(n), first = key / kBlock;
    for (int64_t j = 0; j < key_panels; ++j)
      for (int64_t i = 0; i < row_panels; ++i)
        tile_block<P>(work.table.stream(work.queries.at(i, 0)), work.table.stream(work.keys.at(first + j, 0)), 0,
                      dim_steps, block.rows - i * kBlock > 16, true, work.scores + (i * kKeyPanels + j) * kSumsPerBlock,
                      true);
    for (int64_t i = 0; i < row_panels; ++i) {
      const bool reached_by_all = !args.causal || key + n <= block.row + i * kBlock + 1;
      if (n % kBlock == 0 && reached_by_all && !args.mask && !args.drop_threshold && args.scale > 0) {
        softmax_panel<P, true>(args, block, i, key, n, work);
      } else {
        softmax_panel<P, false>(args, block, i, key, n, work);
      }
    }
    for (int64_t j = 0; j < value_panels; ++j)
      for (int64_t i = 0; i < row_panels; ++i)
        tile_block<P>(work.table.stream(work.probabilities.at(i, 0)), work.table.stream(work.values.at(j, first)), 0,
                      key_panels, block.rows - i * kBlock > 16, args.value_dim - j * kBlock > 16,
                      work.out + (i * value_panels + j) * kSumsPerBlock, key == 0);
  }
  for (int64_t r = 0; r < block.rows; ++r) work.totals[r] = _mm512_reduce_add_ps(_mm512_load_ps(work.totals + 16 * r));
  if (args.dtype == DType::Float32) {
    store_rows<float>(args, block, work.out, work.totals, work.highest);
  } else if (args.dtype == DType::BFloat16) {
    store_rows<bfloat16>(args, block, work.out, work.totals, work.highest);
  } else {
    store_rows<float16>(args, block, work.out, work.totals, work.highest);
  }
  return true;
}

// False where parts would not be exact.
template <int P>
bool run_task(const AttentionArgs& args, const Partition& partition, int64_t task, Workspace<P>& work) {
  const int64_t batch = partition.pair(task) / args.kv_heads, head = partition.pair(task) % args.kv_heads;
  const HeadStrides &ks = args.k_strides, &vs = args.v_strides;
  const PackSource key_source = head_source(args.k, args.dtype, batch * ks.batch + head * ks.head, ks.row);
  const PartRange values =
      work.values.pack(transposed(head_source(args.v, args.dtype, batch * vs.batch + head * vs.head, vs.row)),
                       args.value_dim, args.kv_len, TileForm::Pairs);
  bool bounded = false, packed = false, exact = P == 1 || parts_are_exact(values);
  if constexpr (P == 1) {
    bounded = suits_bounds(args);
    const bfloat16* rows = static_cast<const bfloat16*>(args.k) + batch * ks.batch + head * ks.head;
    if (bounded) work.bounded.largest_key = pack_keys({rows, ks.row, args.kv_len}, args.head_dim, work.bounded.keys);
  }
  PartRange keys;
  partition.for_each_block(args, task, [&](const QueryBlock& block) {
    if constexpr (P == 1)
      if (bounded && attend_bounded(args, block, work.values, work.bounded)) return;
    if (!packed) keys = work.keys.pack(key_source, args.kv_len, args.head_dim, TileForm::Pairs);
    packed = true;
    exact = exact && attend_block(args, block, keys, work);
  });
  return exact;
}

template <int P>
void forward_parts(const AttentionArgs& args) {
  const Partition partition(args, kRows);
  bool* exact = static_cast<bool*>(thread_scratch(Scratch::OperationShared, size_t(partition.tasks)));
  parallel_for(partition.tasks, partition.grain, [&](int64_t begin, int64_t end) {
    Carver memory;
    Workspace<P> work{};
    work.carve(args, memory);
    memory = {static_cast<char*>(thread_scratch(Scratch::Operation, size_t(memory.bytes))), 0};
    work.carve(args, memory);
    work.table.fill(max(kKeyPanels, ceil_div(args.head_dim, kStepK)));
    if constexpr (P == 1) work.bounded.table = work.table;
    _tile_loadconfig(&kTileConfig);
    for (int64_t task = begin; task < end; ++task) exact[task] = run_task(args, partition, task, work);
    _tile_release();
  });
  bool all_exact = true;
  for (int64_t task = 0; task < partition.tasks; ++task) all_exact = all_exact && exact[task];
  if (!all_exact) call_level(attention_forward, CpuLevel::Avx512, args);
}

void forward(const AttentionArgs& args) {
  if (!suits_tiles(args)) return call_level(attention_forward, CpuLevel::Avx512, args);
  switch (parts_of(args.dtype)) {
    case 1: return forward_parts<1>(args);
    case 2: return forward_parts<2>(args);
    default: return forward_parts<3>(args);
  }
}

}  // namespace

FASTNN_AMX_KERNEL(attention_forward, forward)

}  // namespace fastnn
