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
// Float32 whose parts would not be exact goes to the vector kernel.
#include "gemm/store_amx.h"
#include "ops/attention/tiles_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kRowPanels = 4, kKeyPanels = 4;  // of a block of scores
constexpr int64_t kRows = kRowPanels * kBlock, kKeys = kKeyPanels * kBlock;

template <int P>
struct Workspace {
  StepTable<P> table;
  TilePanels<P> keys, values, queries, probabilities;
  float *scores, *out, *highest, *totals, *row;

  void carve(const AttentionArgs& args, Carver& memory) {
    table.offsets = memory.take<int64_t>(max(kKeyPanels, ceil_div(args.head_dim, kStepK)));
    keys.data = memory.take<char>(TilePanels<P>::bytes(args.kv_len, args.head_dim));
    values.data = memory.take<char>(TilePanels<P>::bytes(args.value_dim, args.kv_len));
    queries.data = memory.take<char>(TilePanels<P>::bytes(kRows, args.head_dim));
    probabilities = {memory.take<char>(TilePanels<P>::bytes(kRows, kKeys)), kKeyPanels};
    scores = memory.take<float>(kRowPanels * kKeyPanels * kSumsPerBlock);
    out = memory.take<float>(kRowPanels * value_panels(args) * kSumsPerBlock);
    highest = memory.take<float>(kRows);
    totals = memory.take<float>(16 * kRows);
    row = memory.take<float>(kKeys);
  }
  static int64_t value_panels(const AttentionArgs& args) { return ceil_div(args.value_dim, kBlock); }
  float* score_row(int64_t r) const { return block_row(scores + r / kBlock * kKeyPanels * kSumsPerBlock, r % kBlock); }
};

// One row of a block: the scores become probabilities in parts. `valid` keys of the `vectors` * 16 take part. Gives
// the factor for what was summed before; `totals` are 16 sums side by side. kPlain: all keys take part, and nothing is
// added to their scores or dropped.
template <int P, bool kPlain>
inline __attribute__((always_inline)) float softmax_row(float* row, int64_t vectors, int64_t valid, float scale,
                                                        const float* bias, const float* keep, char* tiles,
                                                        float& highest, float* totals) {
  const __m512 lowest = _mm512_set1_ps(-INFINITY), factor = _mm512_set1_ps(scale);
  __m512 most = lowest;
  for (int64_t i = 0; i < vectors; ++i) {
    float* lanes = lanes_of(row, i);
    __m512 x = _mm512_mul_ps(_mm512_load_ps(lanes), factor);
    if (!kPlain) {
      if (bias) x = _mm512_fmadd_ps(_mm512_load_ps(bias + 16 * i), _mm512_set1_ps(kLog2e), x);
      x = _mm512_mask_mov_ps(lowest, lane_mask(valid - 16 * i), x);
      _mm512_store_ps(lanes, x);
    }
    most = _mm512_max_ps(most, x);
  }
  const float before = highest, block = _mm512_reduce_max_ps(most);
  highest = block > before ? block : before;
  const __m512 shift = _mm512_set1_ps(highest == -INFINITY ? 0.0f : highest);
  __m512 sum = _mm512_load_ps(totals);
  float ratio = 1.0f;
  if (before != highest) {
    const __m512 lanes = exp2_lanes<P>(_mm512_sub_ps(_mm512_set1_ps(before), shift));
    ratio = _mm512_cvtss_f32(lanes);
    sum = _mm512_mul_ps(sum, lanes);
  }
  for (int64_t i = 0; i < vectors; i += 2) {
    __m512 p[2];
#pragma GCC unroll 2
    for (int64_t half = 0; half < 2; ++half) {
      const __m512 x = _mm512_load_ps(lanes_of(row, i + half));
      p[half] = exp2_lanes<P>(kPlain ? _mm512_fmsub_ps(x, factor, shift) : _mm512_sub_ps(x, shift));
      sum = _mm512_add_ps(sum, p[half]);
      if (!kPlain && keep) p[half] = _mm512_mul_ps(p[half], _mm512_load_ps(keep + 16 * (i + half)));
    }
    store_along<P>(p[0], p[1], tiles + i / 2 * kStepBytes<P>);
  }
  _mm512_store_ps(totals, sum);
  return ratio;
}

template <int P>
void softmax_block(const AttentionArgs& args, const QueryBlock& block, int64_t key, int64_t n,
                   const Workspace<P>& work) {
  const int64_t vectors = 2 * ceil_div(n, kBlock), value_panels = Workspace<P>::value_panels(args);
  const float scale = float(args.scale) * kLog2e;
  alignas(64) float keep[kKeys] = {};
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t valid = args.causal ? min(n, block.row + r + 1 - key) : n;
    float *row = work.score_row(r), *totals = work.totals + 16 * r;
    char* tiles = work.probabilities.data + r / kBlock * kKeyPanels * kStepBytes<P> + r % kBlock * 64;
    if (args.mask) bias_lanes(args, block, r, key, n, work.row);
    if (args.drop_threshold) keep_row(args, block, r, key, n, keep);
    const float* bias = args.mask ? work.row : nullptr;
    const float* kept = args.drop_threshold ? keep : nullptr;
    const float factor =
        valid == 16 * vectors && !bias && !kept
            ? softmax_row<P, true>(row, vectors, valid, scale, nullptr, nullptr, tiles, work.highest[r], totals)
            : softmax_row<P, false>(row, vectors, valid, scale, bias, kept, tiles, work.highest[r], totals);
    if (factor == 1.0f || key == 0) continue;
    const __m512 lanes = _mm512_set1_ps(factor);
    float* out = block_row(work.out + r / kBlock * value_panels * kSumsPerBlock, r % kBlock);
    for (int64_t v = 0; v < 2 * value_panels; ++v)
      _mm512_store_ps(lanes_of(out, v), _mm512_mul_ps(_mm512_load_ps(lanes_of(out, v)), lanes));
  }
}

template <int P, class T>
void store_rows(const AttentionArgs& args, const QueryBlock& block, const Workspace<P>& work) {
  const int64_t value_panels = Workspace<P>::value_panels(args), at = block.at(args.out_strides);
  float* lse = static_cast<float*>(args.lse) + (block.batch * args.heads + block.head) * args.q_len + block.row;
  for (int64_t r = 0; r < block.rows; ++r) {
    const float total = _mm512_reduce_add_ps(_mm512_load_ps(work.totals + 16 * r));
    const __m512 factor = _mm512_set1_ps(total == 0.0f ? 0.0f : 1.0f / total);
    float* row = block_row(work.out + r / kBlock * value_panels * kSumsPerBlock, r % kBlock);
    char* out = element<char>(args.out, args.dtype, at + r * args.out_strides.row);
    for (int64_t v = 0; 16 * v < args.value_dim; ++v)
      store_lanes<T>(out + 16 * v * int64_t(sizeof(T)), lane_mask(args.value_dim - 16 * v),
                     _mm512_mul_ps(_mm512_load_ps(lanes_of(row, v)), factor));
    lse[r] = total == 0.0f ? INFINITY : work.highest[r] * kLn2 + log_(total);
  }
}

template <int P>
bool attend_block(const AttentionArgs& args, const QueryBlock& block, const PartRange& keys, Workspace<P>& work) {
  const int64_t value_panels = Workspace<P>::value_panels(args), row_panels = ceil_div(block.rows, kBlock);
  const PartRange range =
      work.queries.pack(head_source(args.q, args.dtype, block.at(args.q_strides), args.q_strides.row), block.rows,
                        args.head_dim, TileForm::Rows);
  if (P > 1 && !parts_are_exact(range, keys)) return false;
  for (int64_t r = 0; r < block.rows; ++r) {
    work.highest[r] = -INFINITY;
    _mm512_store_ps(work.totals + 16 * r, _mm512_setzero_ps());
  }
  const int64_t reached = reached_keys(args, block), dim_steps = work.queries.steps;
  for (int64_t key = 0; key < reached; key += kKeys) {
    const int64_t n = min(kKeys, reached - key), key_panels = ceil_div(n, kBlock), first = key / kBlock;
    for (int64_t j = 0; j < key_panels; ++j)
      for (int64_t i = 0; i < row_panels; ++i)
        tile_block<P>(work.table.stream(work.queries.at(i, 0)), work.table.stream(work.keys.at(first + j, 0)), 0,
                      dim_steps, block.rows - i * kBlock > 16, true, work.scores + (i * kKeyPanels + j) * kSumsPerBlock,
                      true);
    softmax_block(args, block, key, n, work);
    for (int64_t j = 0; j < value_panels; ++j)
      for (int64_t i = 0; i < row_panels; ++i)
        tile_block<P>(work.table.stream(work.probabilities.at(i, 0)), work.table.stream(work.values.at(j, first)), 0,
                      key_panels, block.rows - i * kBlock > 16, args.value_dim - j * kBlock > 16,
                      work.out + (i * value_panels + j) * kSumsPerBlock, key == 0);
  }
  if (args.dtype == DType::Float32) {
    store_rows<P, float>(args, block, work);
  } else if (args.dtype == DType::BFloat16) {
    store_rows<P, bfloat16>(args, block, work);
  } else {
    store_rows<P, float16>(args, block, work);
  }
  return true;
}

// False where parts would not be exact.
template <int P>
bool run_task(const AttentionArgs& args, const Partition& partition, int64_t task, Workspace<P>& work) {
  const int64_t batch = partition.pair(task) / args.kv_heads, head = partition.pair(task) % args.kv_heads;
  const HeadStrides &ks = args.k_strides, &vs = args.v_strides;
  const PartRange keys = work.keys.pack(head_source(args.k, args.dtype, batch * ks.batch + head * ks.head, ks.row),
                                        args.kv_len, args.head_dim, TileForm::Pairs);
  const PartRange values =
      work.values.pack(transposed(head_source(args.v, args.dtype, batch * vs.batch + head * vs.head, vs.row)),
                       args.value_dim, args.kv_len, TileForm::Pairs);
  bool exact = P == 1 || parts_are_exact(values);
  partition.for_each_block(args, task,
                           [&](const QueryBlock& block) { exact = exact && attend_block(args, block, keys, work); });
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
