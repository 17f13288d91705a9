// One phase of a recurrent step on CUDA: the product of a few rows with weights that stay in L2, and what follows it.
//
//   sums[gate][row][unit] = sum over k < depth of operand(row)[k] * weights[gate][unit][k],   then finish(row, unit)
//
// A block makes all gates of 8 units for 32 rows; its warps take turns along k, and their sums meet in shared memory in
// the order of the warps. Both operands have k as their fast axis and go from L2 into registers, 16 bytes a load, with
// no stop in shared memory: of 16-bit types a lane loads 8 neighbours of k and gives them to two products of the tensor
// cores as (2t, 2t + 1, 2t + 8, 2t + 9) of each, for both operands alike: a sum does not ask for the order of k.
//
//   lane (g, t)        16-bit: loads weights of unit g and row g of each 8      others: the weights of unit g, and rows
//                      holds the sums of unit g and rows 2t, 2t + 1 of each 8           2t, 2t + 1 of each 8
//
// operations  2 * gates * hidden * depth * rows: an LSTM of 1024 units and 64 rows, 0.54 G, are 0.5 us of 990 TF/s
//             (bfloat16), 8 us of 67 TF/s (float32)
// bytes       the weights once for each 32 rows: of that LSTM 16 MB of L2, some 3 us at 5.5 TB/s
#pragma once

#include "core/cuda_launch.h"
#include "gemm/mma_cuda.h"
#include "ops/recurrent/cells.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int kStepWarps = 8;
constexpr int kStepUnits = 8;
constexpr int kStepRows = 32;
constexpr int kRowTiles = kStepRows / 8;
constexpr int kPartialRows = kStepRows + 8;  // eight units' sums then lie in different banks

// Where a step's rows lie, and those of its neighbours in the order of processing.
struct StepRows {
  Step before, here, after;
  int64_t row_stride;

  __device__ int64_t at(const Step& step, int64_t row) const { return step.begin + row * row_stride; }
};

FASTNN_HD inline StepRows step_rows(const RecurrentRows& rows, int64_t s) {
  return {step_at(rows, s - 1), step_at(rows, s), step_at(rows, s + 1), rows.row_stride};
}

// Weights as a phase multiplies by them: (gates, units, depth), the gates `gate_stride` apart. `packs`: they and the
// operand can be read 16 bytes at a time.
template <class T>
struct StepWeights {
  const T* data;
  int64_t units, depth, gate_stride;
  bool packs;
};

// `operands` begin at multiples of `width` from these addresses.
template <class T>
StepWeights<T> step_weights(const void* data, int64_t units, int64_t depth, int64_t gate_units, int64_t width,
                            std::initializer_list<const void*> operands) {
  const bool packs = rows_fit_packs<T>(depth, {data}) && rows_fit_packs<T>(width, operands);
  return {static_cast<const T*>(data), units, depth, gate_units * depth, packs};
}

// Elements [k, k + a pack) of a row of `depth`; zeros beyond it, and of a null row.
template <bool kPacked, class T>
__device__ Pack<T, kPackOf16<T>> load_run(const T* row, int64_t k, int64_t depth) {
  constexpr int kWidth = kPackOf16<T>;
  Pack<T, kWidth> run = {};
  if constexpr (kPacked) {
    if (row && k < depth) run = load_pack<kWidth>(row + k);
  } else if (row) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      if (k + i < depth) run.at[i] = row[k + i];
  }
  return run;
}

// Four sums of a lane: gates 2 pair, 2 pair + 1, each for rows 2t and 2t + 1 of a tile.
template <class T, int kGates>
struct StepSums {
  Compute<T> of[(kGates + 1) / 2][kRowTiles][4];
};

// An element of a matrix that may be null: then it is zeros.
template <class Value, class T>
__device__ Value read_or_zero(const T* matrix, int64_t at) {
  return matrix ? to_compute<Value>(matrix[at]) : Value(0);
}

template <class T>
struct TensorCores {
  static constexpr int kSpan = 32;     // of k that a warp takes at a time
  static constexpr int kTileRows = 1;  // rows of each tile that a lane loads
  static __device__ int row(int) { return lane_id() / 4; }

  template <int kGates, bool kPacked, class Rows>
  static __device__ void multiply(StepSums<T, kGates>& sums, const T* weights, int64_t gate_stride, const Rows& rows,
                                  int64_t first, int64_t depth) {
    const int64_t k = first + lane_id() % 4 * 8;
    uint32_t gates[kGates][4], states[kRowTiles][4];
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) read<kPacked>(gates[gate], weights + gate * gate_stride, k, depth);
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) read<kPacked>(states[tile], rows[tile], k, depth);
#pragma unroll
    for (int pair = 0; pair < (kGates + 1) / 2; ++pair)
#pragma unroll
      for (int half = 0; half < 4; half += 2) {
        const bool both = 2 * pair + 1 < kGates;
        const uint32_t (&low)[4] = gates[2 * pair];
        const uint32_t (&high)[4] = gates[both ? 2 * pair + 1 : 0];
        const uint32_t a[4] = {low[half], both ? high[half] : 0u, low[half + 1], both ? high[half + 1] : 0u};
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          const uint32_t b[2] = {states[tile][half], states[tile][half + 1]};
          mma_16x8x16<T>(sums.of[pair][tile], a, b);
        }
      }
  }

 private:
  template <bool kPacked>
  static __device__ void read(uint32_t (&words)[4], const T* row, int64_t k, int64_t depth) {
    const Pack<T, 8> run = load_run<kPacked>(row, k, depth);
    memcpy(words, &run, sizeof words);
  }
};

template <class T>
struct VectorUnits {
  static constexpr int kSpan = 32 / int(sizeof(T));  // a sector of L2
  static constexpr int kTileRows = 2;
  static __device__ int row(int i) { return lane_id() % 4 * 2 + i; }

  template <int kGates, bool kPacked, class Rows>
  static __device__ void multiply(StepSums<T, kGates>& sums, const T* weights, int64_t gate_stride, const Rows& rows,
                                  int64_t first, int64_t depth) {
    constexpr int kWidth = kPackOf16<T>;
#pragma unroll
    for (int64_t k = first; k < first + kSpan; k += kWidth) {
      Pack<T, kWidth> gates[kGates];
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) gates[gate] = load_run<kPacked>(weights + gate * gate_stride, k, depth);
#pragma unroll
      for (int row = 0; row < 2 * kRowTiles; ++row) {
        const Pack<T, kWidth> state = load_run<kPacked>(rows[row], k, depth);
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate)
#pragma unroll
          for (int i = 0; i < kWidth; ++i)
            sums.of[gate / 2][row / 2][gate % 2 * 2 + row % 2] += gates[gate].at[i] * state.at[i];
      }
    }
  }
};

template <class T>
using StepUnit = std::conditional_t<sizeof(T) == 2, TensorCores<T>, VectorUnits<T>>;

// Where a block finds the weights of its units: in device memory, or a copy in shared memory.
template <class T>
struct BlockWeights {
  const T* data;
  int64_t unit_stride, gate_stride;
};

template <class T>
__device__ BlockWeights<T> block_weights(const StepWeights<T>& weights, int64_t first_unit) {
  return {weights.data + first_unit * weights.depth, weights.depth, weights.gate_stride};
}

// A lane's sums along the part of k that its warp takes.
template <bool kPacked, class Phase, class T = typename Phase::Stored>
__device__ void multiply_rows(StepSums<T, Phase::kGates>& sums, const Phase& phase, const BlockWeights<T>& weights,
                              const StepRows& step, int64_t first_unit, int64_t first_row) {
  using Unit = StepUnit<T>;
  const int64_t unit = first_unit + lane_id() / 4 < phase.weights.units ? lane_id() / 4 : 0;  // 0: thrown away
  const int64_t depth = phase.weights.depth;
  const int64_t last = phase.rows(step) - 1;
  const T* rows[kRowTiles * Unit::kTileRows];
#pragma unroll
  for (int i = 0; i < kRowTiles * Unit::kTileRows; ++i) {
    const int64_t row = first_row + i / Unit::kTileRows * 8 + Unit::row(i % Unit::kTileRows);
    rows[i] = row <= last ? phase.operand(step, row) : nullptr;
  }
  const T* of_unit = weights.data + unit * weights.unit_stride;
  for (int64_t first = warp_id() * Unit::kSpan; first < depth; first += kStepWarps * Unit::kSpan)
    Unit::template multiply<Phase::kGates, kPacked>(sums, of_unit, weights.gate_stride, rows, first, depth);
}

constexpr int kStepThreads = kStepWarps * kWarp;
static_assert(kStepThreads == kStepUnits * kStepRows, "a thread finishes one unit of one row");

template <class Phase>
constexpr int64_t kPartialBytes =
    int64_t(kStepWarps) * Phase::kGates * kStepUnits * kPartialRows * int64_t(sizeof(Compute<typename Phase::Stored>));

// A block's tile of a phase; `partials` is shared memory of kPartialBytes, [warp][gate][unit][row].
//
// A Phase has: Stored, kGates, weights, rows(step), operand(step, row) (null: zeros) and finish(step, row, unit, sums).
template <class Phase, class T = typename Phase::Stored>
__device__ void run_tile(const Phase& phase, const BlockWeights<T>& weights, const StepRows& step, int64_t first_unit,
                         int64_t first_row, Compute<T>* partials) {
  using Value = Compute<T>;
  constexpr int kGates = Phase::kGates;
  const int lane = lane_id();
  StepSums<T, kGates> sums = {};
  if (phase.weights.packs)
    multiply_rows<true>(sums, phase, weights, step, first_unit, first_row);
  else
    multiply_rows<false>(sums, phase, weights, step, first_unit, first_row);
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    Value* to = partials + ((warp_id() * kGates + gate) * kStepUnits + lane / 4) * kPartialRows + lane % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile)
      store_pack(to + tile * 8,
                 Pack<Value, 2>{{sums.of[gate / 2][tile][gate % 2 * 2], sums.of[gate / 2][tile][gate % 2 * 2 + 1]}});
  }
  block_sync();
  const int64_t unit = first_unit + threadIdx.x % kStepUnits, row = first_row + threadIdx.x / kStepUnits;
  if (unit < phase.weights.units && row < phase.rows(step)) {
    const Value* from = partials + threadIdx.x % kStepUnits * kPartialRows + threadIdx.x / kStepUnits;
    Value made[kGates] = {};
    for (int warp = 0; warp < kStepWarps; ++warp)
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) made[gate] += from[(warp * kGates + gate) * kStepUnits * kPartialRows];
    phase.finish(step, row, unit, made);
  }
}

}  // namespace
}  // namespace fastnn
