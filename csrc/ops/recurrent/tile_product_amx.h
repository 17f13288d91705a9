// Products of AMX tiles (gemm/tile_amx.h) for the walk over a recurrent layer's steps (walk_cpu.h).
//
// Weights are packed once a sequence; the state is cut into P bfloat16 parts where it is made, a block of units being
// one step of the products to come. Numbers of 2^100 and more, infinities and NaNs have no such parts: a sequence with
// one of them is left to the vector units; below 2^-100 the lower parts of a number may be lost.
#pragma once

#include <immintrin.h>

#include "gemm/pack_amx.h"
#include "ops/recurrent/walk_cpu.h"

namespace fastnn {
namespace {

constexpr uint32_t kLargest = 0x71800000;  // 2^100, as bits

inline void clear_flag(bool* flag) { __atomic_store_n(flag, false, __ATOMIC_RELAXED); }

template <int P>
class TileProduct {
 public:
  using Sum = float;
  static constexpr int64_t kForm = P;
  static constexpr int64_t kRows = kBlock;
  static constexpr int64_t kGateSums = kSumsPerBlock;
  static int64_t padded(int64_t depth) { return ceil_div(depth, kStepK) * kStepK; }

  // P matrices of bfloat16, rows a line more than their columns apart.
  struct Operand {
    char* data = nullptr;
    int64_t row_bytes = 0, part_bytes = 0;
    bool* exact_so_far = nullptr;

    bool exact() const { return *exact_so_far; }
    void take(Arena& memory, int64_t rows, int64_t columns) {
      row_bytes = padded(columns) * 2 + 64;
      part_bytes = (rows + kBlock) * row_bytes;  // a block may begin at any row
      data = memory.take<char>(P * part_bytes);
      exact_so_far = memory.take<bool>(1);
      if (data) *exact_so_far = true;
    }
    FASTNN_INLINED void set(int64_t row, int64_t column, const Units<float>& units, int64_t n) const {
      const __m512 low = _mm512_maskz_mov_ps(lane_mask(n), __m512(units[0])),
                   high = _mm512_maskz_mov_ps(lane_mask(n - 16), __m512(units[1]));
      __m512i parts[P];
      if constexpr (P == 1)
        parts[0] = __m512i(_mm512_cvtne2ps_pbh(high, low));
      else
        split<P>(low, high, parts, [](__m512 a, __m512 b) { return join_upper(a, b); });
      char* target = data + row * row_bytes + column * 2;
      for (int p = 0; p < P; ++p) _mm512_storeu_si512(target + p * part_bytes, parts[p]);
      if (P > 1 && !(is_exact(low) && is_exact(high))) clear_flag(exact_so_far);
    }
    void load(int64_t row, const void* matrix, DType dtype, int64_t at, int64_t n) {
      const char* from = static_cast<const char*>(matrix) + at * int64_t(item_size(dtype));
      if (dtype == DType::BFloat16) return load_row<bfloat16>(row, from, n);
      if (dtype == DType::Float16) return load_row<float16>(row, from, n);
      load_row<float>(row, from, n);
    }
    template <class T>
    void load_row(int64_t row, const char* from, int64_t n) {
      RangeLanes range;
      char* target = data + row * row_bytes;
      for (int64_t k = 0; k < n; k += kStepK, from += kStepK * int64_t(sizeof(T)), target += kStepK * 2) {
        __m512i parts[P];
        load_along<P, T>(from, lane_mask(n - k), lane_mask(n - k - 16), parts, range);
        store_parts<P>(target, part_bytes, parts);
      }
      if (P > 1 && range.finish().largest >= kLargest) clear_flag(exact_so_far);
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
    parallel_for(ceil_div(outputs_, kBlock), max(1, kPackWork / max(1, block_bytes)), [&](int64_t begin, int64_t end) {
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
    const char* panels = panels_ + block * gates_ * panel_bytes();
    const TileScope tiles(rows);
    for (int64_t step = 0; step < n_steps_; step += kSteps)
      for (int64_t gate = 0; gate < gates_; ++gate)
        tile_block<P>(state, {panels + gate * panel_bytes(), panel_steps_, 64, kTileBytes, kBlockBytes}, step,
                      min(kSteps, n_steps_ - step), rows > 16, wide, sums + gate * kSumsPerBlock, step == 0);
  }

  static FASTNN_INLINED Units<float> units(float* sums, int64_t gate, int64_t row) {
    const float* from = block_row(sums + gate * kSumsPerBlock, row);
    return {load_values(from), load_values(from + 256)};
  }
  static FASTNN_INLINED void set_units(float* sums, int64_t gate, int64_t row, const Units<float>& units) {
    float* to = block_row(sums + gate * kSumsPerBlock, row);
    store_values(to, units[0]);
    store_values(to + 256, units[1]);
  }

 private:
  // Of k, that all gates take at a time: one part of the state then stays in the first-level cache. Of more parts the
  // sums would come and go too often. Fetching weights ahead of their use, into either cache, is slower than without.
  static constexpr int64_t kSteps = P == 1 ? 8 : int64_t(1) << 30;
  static constexpr int64_t kPackWork = int64_t(1) << 16;  // bytes that pay for a task
  int64_t panel_bytes() const { return n_steps_ * P * kBlockBytes; }

  int64_t gates_ = 0, outputs_ = 0, n_steps_ = 0;
  char* panels_ = nullptr;  // [block][gate][step][part]
  int64_t *operand_steps_ = nullptr, *panel_steps_ = nullptr;
  bool* exact_weights_ = nullptr;
};

}  // namespace
}  // namespace fastnn
