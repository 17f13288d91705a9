// The walk over the steps of a recurrent layer on CUDA, in phases of step_cuda.h: one or two a step.
//
//   a launch a phase     of any size; weights come from L2 at every step
//   a launch a walk      where a multiprocessor holds the weights of 8 units: each block copies its own into
//                        shared memory once and goes through all steps, with what its threads carry
//
// In the second, a row of another batch index is of no interest: the blocks of one group of rows wait for each other
// after a phase, on a counter of their own that only grows. Bytes a step are then those of the operand, `units / 8`
// times: an LSTM of 1024 units in bfloat16 with 32 rows reads 8 MB of L2, 1.5 us, and waits about one more; its weights
// would be another 8 MB.
//
// All is known when the kernels are launched: a captured walk can be replayed. A table of steps, which only packed
// sequences have, travels in the parameters of kernels.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "ops/recurrent/step_cuda.h"

namespace fastnn {
namespace {

// The second phase may lack weights: then there is none.
template <class First, class Second>
struct Walk {
  First first;
  Second second;
  RecurrentRows rows;
  bool backwards;  // from the last step to the first, and one more
  __device__ __host__ int64_t n_steps() const { return rows.n_steps + backwards; }
  __device__ __host__ StepRows step(int64_t i) const { return step_rows(rows, backwards ? rows.n_steps - 1 - i : i); }
};

inline int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// ---------------------------------------------------------------------------------- a launch a phase

template <class Phase>
__device__ void run_step(const Phase& phase, const StepRows& step) {
  FASTNN_DYNAMIC_SHARED(shared);
  const int64_t first_unit = int64_t(blockIdx.y) * kStepUnits;
  run_tile(phase, block_weights(phase.weights, first_unit), step, first_unit, int64_t(blockIdx.x) * kStepRows,
           reinterpret_cast<Compute<typename Phase::Stored>*>(shared));
}

template <class Phase>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_kernel_of_vector_units(const __grid_constant__ Phase phase, const __grid_constant__ StepRows step) {
  run_step(phase, step);
}
template <class Phase>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_kernel_of_tensor_cores(const __grid_constant__ Phase phase, const __grid_constant__ StepRows step) {
  run_step(phase, step);
}

template <class Phase>
void launch_phase(const Phase& phase, const StepRows& step) {
  const dim3 grid(unsigned(tiles_of(phase.rows(step), kStepRows)), unsigned(tiles_of(phase.weights.units, kStepUnits)));
  if constexpr (sizeof(typename Phase::Stored) == 2)
    launch(step_kernel_of_tensor_cores<Phase>, grid, dim3(kStepThreads), kPartialBytes<Phase>, phase, step);
  else
    launch(step_kernel_of_vector_units<Phase>, grid, dim3(kStepThreads), kPartialBytes<Phase>, phase, step);
}

// ----------------------------------------------------------------------------------- a launch a walk

// Of a row of weights in shared memory: eight lanes that read from two rows then meet different banks.
FASTNN_HD constexpr int64_t resident_row_bytes(int64_t depth, int64_t size) {
  return (depth * size + 127) / 128 * 128 + 64;
}

template <class Phase>
FASTNN_HD int64_t resident_bytes(const Phase& phase) {
  if (!phase.weights.data) return 0;
  return Phase::kGates * kStepUnits * resident_row_bytes(phase.weights.depth, sizeof(typename Phase::Stored));
}

// Copies a block's weights to `shared`.
template <class Phase, class T = typename Phase::Stored>
__device__ BlockWeights<T> make_resident(const Phase& phase, int64_t first_unit, unsigned char* shared) {
  const int64_t depth = phase.weights.depth, stride = resident_row_bytes(depth, sizeof(T)) / int64_t(sizeof(T));
  T* const to = reinterpret_cast<T*>(shared);
  if (phase.weights.data) {
    const BlockWeights<T> from = block_weights(phase.weights, first_unit);
    for (int row = warp_id(); row < Phase::kGates * kStepUnits; row += kStepWarps) {
      const int unit = row % kStepUnits;
      if (first_unit + unit >= phase.weights.units) continue;
      const T* weights = from.data + row / kStepUnits * from.gate_stride + unit * from.unit_stride;
      if (phase.weights.packs)
        for (int64_t k = lane_id() * kPackOf16<T>; k < depth; k += kWarp * kPackOf16<T>)
          store_pack(to + row * stride + k, load_pack<kPackOf16<T>>(weights + k));
      else
        for (int64_t k = lane_id(); k < depth; k += kWarp) to[row * stride + k] = weights[k];
    }
  }
  return {to, stride, kStepUnits * stride};
}

// Waits until `blocks` have come here as often as this one has, and sees what they wrote.
__device__ inline void wait_for_group(unsigned* arrived, unsigned blocks, unsigned& expected) {
  expected += blocks;
  block_sync();
  if (threadIdx.x == 0) {
    add_release(arrived, 1u);
    Spin spin;
    while (load_acquire(arrived) < expected) spin.wait("the other blocks of a recurrent layer");
  }
  block_sync();
}

template <class First, class Second>
__device__ void run_walk(const Walk<First, Second>& walk, unsigned* arrived) {
  using T = typename First::Stored;
  FASTNN_DYNAMIC_SHARED(shared);
  Compute<T>* const partials = reinterpret_cast<Compute<T>*>(shared);
  const int64_t first_unit = int64_t(blockIdx.y) * kStepUnits;
  const BlockWeights<T> first = make_resident(walk.first, first_unit, shared + kPartialBytes<First>);
  const BlockWeights<T> second =
      make_resident(walk.second, first_unit, shared + kPartialBytes<First> + resident_bytes(walk.first));
  block_sync();
  const auto run = [&](const auto& phase, const BlockWeights<T>& weights, const StepRows& step) {
    if (first_unit >= phase.weights.units) return;
    for (int64_t row = int64_t(blockIdx.x) * kStepRows; row < phase.rows(step); row += int64_t(gridDim.x) * kStepRows) {
      run_tile(phase, weights, step, first_unit, row, partials);
      block_sync();
    }
  };
  unsigned expected = 0;
  for (int64_t i = 0; i < walk.n_steps(); ++i) {
    const StepRows step = walk.step(i);
    run(walk.first, first, step);
    wait_for_group(arrived + blockIdx.x, gridDim.y, expected);
    if (!walk.second.weights.data) continue;
    run(walk.second, second, step);
    wait_for_group(arrived + blockIdx.x, gridDim.y, expected);
  }
}

template <class First, class Second>
__global__ void __launch_bounds__(kStepThreads, 1)
    walk_kernel_of_vector_units(const __grid_constant__ Walk<First, Second> walk, unsigned* arrived) {
  run_walk(walk, arrived);
}
template <class First, class Second>
__global__ void __launch_bounds__(kStepThreads, 1)
    walk_kernel_of_tensor_cores(const __grid_constant__ Walk<First, Second> walk, unsigned* arrived) {
  run_walk(walk, arrived);
}

constexpr int kTableSteps = 128;

struct TablePart {
  int64_t first, count;
  int64_t begins[kTableSteps], batch_sizes[kTableSteps];
};

__global__ void __launch_bounds__(kTableSteps)
    store_table(const __grid_constant__ TablePart part, int64_t* begins, int64_t* batch_sizes) {
  const int i = int(threadIdx.x);
  if (i >= part.count) return;
  begins[part.first + i] = part.begins[i];
  batch_sizes[part.first + i] = part.batch_sizes[i];
}

inline void upload_table(const RecurrentRows& rows, int64_t* begins, int64_t* batch_sizes) {
  for (int64_t first = 0; first < rows.n_steps; first += kTableSteps) {
    TablePart part{first, std::min<int64_t>(kTableSteps, rows.n_steps - first), {}, {}};
    std::copy_n(rows.begins + first, part.count, part.begins);
    std::copy_n(rows.batch_sizes + first, part.count, part.batch_sizes);
    launch(store_table, dim3(1), dim3(kTableSteps), 0, part, begins, batch_sizes);
  }
}

inline int64_t device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

template <class First, class Second>
void launch_walk(Walk<First, Second> walk, int64_t unit_tiles, int64_t processors, size_t shared) {
  const unsigned groups = unsigned(std::min(tiles_of(walk.rows.batch, kStepRows), processors / unit_tiles));
  const CudaScratch arrived(groups * sizeof(unsigned));
  check_cuda(cudaMemsetAsync(arrived.as<void>(), 0, groups * sizeof(unsigned), cuda_stream()), "cudaMemsetAsync");
  const bool packed = walk.rows.batch_sizes != nullptr;
  const CudaScratch table(packed ? size_t(2 * walk.rows.n_steps) * sizeof(int64_t) : 0);
  if (packed) {
    int64_t *begins = table.as<int64_t>(), *batch_sizes = begins + walk.rows.n_steps;
    upload_table(walk.rows, begins, batch_sizes);
    walk.rows.begins = begins;
    walk.rows.batch_sizes = batch_sizes;
  }
  const LaunchShape shape{dim3(groups, unsigned(unit_tiles)), dim3(kStepThreads), shared, 1, true};
  if constexpr (sizeof(typename First::Stored) == 2)
    launch(walk_kernel_of_tensor_cores<First, Second>, shape, walk, arrived.as<unsigned>());
  else
    launch(walk_kernel_of_vector_units<First, Second>, shape, walk, arrived.as<unsigned>());
}

template <class First, class Second>
void run(const Walk<First, Second>& walk) {
  if constexpr (!std::is_same_v<typename First::Stored, double>) {
    const int64_t units = std::max(walk.first.weights.units, walk.second.weights.data ? walk.second.weights.units : 0);
    const int64_t unit_tiles = tiles_of(units, kStepUnits),
                  processors = device_attribute(cudaDevAttrMultiProcessorCount);
    const int64_t shared = kPartialBytes<First> + resident_bytes(walk.first) + resident_bytes(walk.second);
    if (unit_tiles <= processors && shared <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
      return launch_walk(walk, unit_tiles, processors, size_t(shared));
  }
  for (int64_t i = 0; i < walk.n_steps(); ++i) {
    const StepRows step = walk.step(i);
    launch_phase(walk.first, step);
    if (walk.second.weights.data) launch_phase(walk.second, step);
  }
}

// ---------------------------------------------------------------------------------- what launchers share

// (batch, hidden) in the compute type, carried from step to step: c of an LSTM, h of a GRU, or their gradients.
template <class Value>
class Carried {
 public:
  Carried(Cell cell, int64_t batch, int64_t hidden)
      : lstm_(cell == Cell::Lstm),
        gru_(cell >= Cell::Gru),
        memory_(lstm_ || gru_ ? size_t(batch * hidden) * sizeof(Value) : 0) {}
  Value* h() const { return gru_ ? memory_.template as<Value>() : nullptr; }
  Value* c() const { return lstm_ ? memory_.template as<Value>() : nullptr; }

 private:
  bool lstm_, gru_;
  CudaScratch memory_;
};

// Calls of_type(tag) unless there is nothing to do. Weights are used as they are: nothing of them would be packed.
template <class Args, class OfType>
void run_layer(const Args& args, std::initializer_list<PackedForm*> forms, const OfType& of_type) {
  bool asked = false;
  for (PackedForm* form : forms)
    if (form) *form = {}, asked = true;
  if (!asked && args.rows.batch > 0) with_float_type(args.dtype, of_type);
}

}  // namespace
}  // namespace fastnn
