// Recurrent layers with products of AMX tiles (gemm/tile_amx.h): bfloat16, and float32 of many rows. See recurrent.h
// for the formulas, walk_cpu.h for the walk over the steps.
//
// Weights are packed once a sequence; the state is cut into bfloat16 parts where it is made, a block of units being
// one step of the products to come. bfloat16: one part, the state rounded as y is, and half the bytes of weights a
// step, which pays from one row on. float32 takes six products of parts for float32 accuracy, as everywhere; with few
// rows the vector units are faster, having fewer bytes to read. Numbers of 2^100 and more, infinities and NaNs have no
// such parts: a sequence with one of them is left to the vector units; below 2^-100 the lower parts of a number may be
// lost.
#include <immintrin.h>

#include "gemm/pack_amx.h"
#include "ops/recurrent/backward_walk_cpu.h"
#include "ops/recurrent/forward_walk_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kLeastBatch = 24;        // of what takes several parts
constexpr uint32_t kLargest = 0x71800000;  // 2^100, as bits

inline void clear_flag(bool* flag) { __atomic_store_n(flag, false, __ATOMIC_RELAXED); }

template <int P>
class TileProduct {
 public:
  using Sum = float;
  static constexpr int64_t kRows = kBlock;
  static constexpr int64_t kSums = 4 * kSumsPerBlock;
  static int64_t padded(int64_t depth) { return ceil_div(depth, kStepK) * kStepK; }

  // P matrices of bfloat16, rows a line more than their columns apart.
  struct Operand {
    char* data = nullptr;
    int64_t row_bytes = 0, part_bytes = 0;
    bool* exact_so_far = nullptr;

    bool exact() const { return *exact_so_far; }
    void take(Arena& memory, int64_t rows, int64_t columns) {
      row_bytes = padded(columns) * 2 + 64;
      part_bytes = ceil_div(rows, kBlock) * kBlock * row_bytes;
      data = memory.take<char>(P * part_bytes);
      exact_so_far = memory.take<bool>(1);
      if (!data) return;
      memset(data, 0, size_t(P * part_bytes));
      *exact_so_far = true;
    }
    void set(int64_t row, int64_t column, const Units<float>& units, int64_t n) {
      const __m512 low = _mm512_maskz_loadu_ps(lane_mask(n), units.v),
                   high = _mm512_maskz_loadu_ps(lane_mask(n - 16), units.v + 16);
      __m512i parts[P];
      split<P>(low, high, parts, [](__m512 a, __m512 b) { return join_upper(a, b); });
      char* target = data + row * row_bytes + column * 2;
      for (int p = 0; p < P; ++p) _mm512_storeu_si512(target + p * part_bytes, parts[p]);
      if (P > 1 && !(is_exact(low) && is_exact(high))) clear_flag(exact_so_far);
    }
    static bool is_exact(__m512 x) {
      const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
      return _mm512_cmpge_epu32_mask(magnitude, _mm512_set1_epi32(int(kLargest))) == 0;
    }
  };

  bool exact() const { return *exact_weights_; }

  void take(Arena& memory, const PhaseWeights& weights) {
    gates_ = weights.gates;
    outputs_ = weights.outputs;
    n_steps_ = weights.runs * padded(weights.depth) / kStepK;
    panels_ = memory.take<char>(ceil_div(outputs_, kBlock) * gates_ * panel_bytes());
    operand_steps_ = memory.take<int64_t>(n_steps_);
    panel_steps_ = memory.take<int64_t>(n_steps_);
    exact_weights_ = memory.take<bool>(1);
  }

  void pack(const PhaseWeights& weights) {
    for (int64_t step = 0; step < n_steps_; ++step) {
      operand_steps_[step] = step * kStepK * 2;
      panel_steps_[step] = step * P * kBlockBytes;
    }
    *exact_weights_ = true;
    const int64_t run_bytes = panel_bytes() / weights.runs, block_bytes = gates_ * panel_bytes();
    parallel_for(ceil_div(outputs_, kBlock), max(1, kPackWork / block_bytes), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kBlock, count = min(end * kBlock, outputs_) - first;
      for (int64_t gate = 0; gate < gates_; ++gate)
        for (int64_t run = 0; run < weights.runs; ++run) {
          char* target = panels_ + begin * block_bytes + gate * panel_bytes() + run * run_bytes;
          const PartRange range =
              pack_panels<P>({weights.run_at(gate, run), weights.dtype, weights.output_stride, weights.k_stride}, first,
                             count, 0, weights.depth, {target, block_bytes, TileForm::Pairs});
          if (P > 1 && range.largest >= kLargest) clear_flag(exact_weights_);
        }
    });
  }

  void multiply(const Operand& operand, int64_t row, int64_t rows, int64_t block, float* sums) const {
    const bool wide = outputs_ - block * kBlock > 16;
    const TileStream state{operand.data + row * operand.row_bytes, operand_steps_, operand.row_bytes,
                           16 * operand.row_bytes, operand.part_bytes};
    const char* panel = panels_ + block * gates_ * panel_bytes();
    // Weights beyond the second-level cache: while a panel is used, that of the next block comes into it.
    const bool ahead = ceil_div(outputs_, kBlock) * gates_ * panel_bytes() > kCachedWeights;
    const int64_t lines = ahead ? panel_bytes() / 64 : 0;
    const TileScope tiles;
    for (int64_t gate = 0; gate < gates_; ++gate, panel += panel_bytes())
      tile_block<P>(state, {panel, panel_steps_, 64, kTileBytes, kBlockBytes}, 0, n_steps_, rows > 16, wide,
                    sums + gate * kSumsPerBlock, true, TileAhead{panel + gates_ * panel_bytes(), lines});
  }

  static Units<float> units(float* sums, int64_t gate, int64_t row) {
    Units<float> units;
    const float* from = block_row(sums + gate * kSumsPerBlock, row);
    memcpy(units.v, from, 64);
    memcpy(units.v + 16, from + 256, 64);
    return units;
  }

 private:
  static constexpr int64_t kPackWork = int64_t(1) << 16;  // bytes that pay for a task
  int64_t panel_bytes() const { return n_steps_ * P * kBlockBytes; }

  int64_t gates_ = 0, outputs_ = 0, n_steps_ = 0;
  char* panels_ = nullptr;  // [block][gate][step][part]
  int64_t *operand_steps_ = nullptr, *panel_steps_ = nullptr;
  bool* exact_weights_ = nullptr;
};

bool suits(DType dtype, const RecurrentRows& rows, int64_t hidden) {
  if (dtype == DType::Float64 || rows.batch == 0 || hidden < 16) return false;
  return parts_of(dtype) == 1 || rows.batch >= kLeastBatch;
}

template <template <class> class Walk, class Args>
bool run(const Args& args) {
  switch (parts_of(args.dtype)) {
    case 1: return Walk<TileProduct<1>>(args).run();
    case 2: return Walk<TileProduct<2>>(args).run();
    default: return Walk<TileProduct<3>>(args).run();
  }
}

void forward(const RecurrentArgs& args) {
  if (!args.exact || !suits(args.dtype, args.rows, args.hidden))
    return call_level(recurrent_forward, CpuLevel::Avx512, args);
  *args.exact = run<ForwardWalk>(args);
}

void backward(const RecurrentBackwardArgs& args) {
  if (suits(args.dtype, args.rows, args.hidden) && run<BackwardWalk>(args)) return;
  call_level(recurrent_backward, CpuLevel::Avx512, args);
}

}  // namespace

FASTNN_AMX_KERNEL(recurrent_forward, forward)
FASTNN_AMX_KERNEL(recurrent_backward, backward)

}  // namespace fastnn
