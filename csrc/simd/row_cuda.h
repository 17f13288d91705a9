// Rows of a tensor on a GPU: a warp or a block shares a row, each of its threads takes packs of 16 bytes.
//
// A kernel over rows is launched with blocks of (threads of a team, rows): threadIdx.x is the rank within the team,
// threadIdx.y tells the rows of a block apart. A team of 32 is a warp; a larger one is a whole block.
#pragma once

#include <type_traits>

#include "core/cuda_device.h"
#include "core/cuda_launch.h"
#include "core/dtype.h"
#include "simd/element.h"

namespace fastnn {
namespace {

// What a stored float is computed in.
template <class Stored>
using Compute = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

// Calls visit(TypeTag<Stored>()) with the type of a floating dtype.
template <class Visit>
void with_float_type(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::Float64: return visit(TypeTag<double>());
    case DType::Float32: return visit(TypeTag<float>());
    case DType::BFloat16: return visit(TypeTag<bfloat16>());
    default: return visit(TypeTag<float16>());
  }
}

constexpr int kRowsOfWarps = 4;  // rows of a block whose teams are warps

// The row of this thread's team.
__device__ inline int64_t team_row() { return int64_t(blockIdx.x) * blockDim.y + threadIdx.y; }

template <int kTeam>
LaunchShape row_shape(int64_t rows) {
  constexpr int64_t together = kTeam == kWarp ? kRowsOfWarps : 1;
  return {dim3(unsigned((rows + together - 1) / together)), dim3(kTeam, unsigned(together))};
}

// Can a row of n elements at every one of these addresses be read in packs of `width`?
template <class Stored>
bool rows_fit_packs(int64_t n, int width, std::initializer_list<const Stored*> rows) {
  for (const Stored* row : rows)
    if (!is_aligned(row, width * int(sizeof(Stored)))) return false;
  return n % width == 0;
}

// visit(first element, count) for each pack of a row that this thread takes.
template <int kTeam, int kWidth, class Visit>
__device__ void for_packs(int64_t n, const Visit& visit) {
  for (int64_t i = int64_t(threadIdx.x) * kWidth; i < n; i += kTeam * kWidth) visit(i);
}

// kWidth elements as they are computed with, and back.
template <int kWidth, class Stored>
__device__ Pack<Compute<Stored>, kWidth> load_values(const Stored* from) {
  const Pack<Stored, kWidth> stored = load_pack<kWidth>(from);
  Pack<Compute<Stored>, kWidth> values;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values.at[i] = to_compute<Compute<Stored>>(stored.at[i]);
  return values;
}

template <int kWidth, class Stored>
__device__ void store_values(Stored* to, const Pack<Compute<Stored>, kWidth>& values) {
  Pack<Stored, kWidth> stored;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) stored.at[i] = to_stored<Stored>(values.at[i]);
  store_pack(to, stored);
}

// The values of all threads of a team merged in a fixed order; every thread gets the result. `partial` is shared
// memory of 32 values, and is not used by a team that is a warp. State: a struct of 4, 8, 16 ... bytes with
// State::merge(a, b), commutative.
template <class State>
__device__ State shuffle_state(const State& mine, int lane_mask) {
  static_assert(sizeof(State) % 4 == 0, "shuffles move 4 bytes");
  uint32_t words[sizeof(State) / 4];
  memcpy(words, &mine, sizeof mine);
#pragma unroll
  for (uint32_t& word : words) word = shuffle_xor(word, lane_mask);
  State theirs;
  memcpy(&theirs, words, sizeof theirs);
  return theirs;
}

template <class State>
__device__ State merge_warp(State state) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) state = State::merge(state, shuffle_state(state, step));
  return state;
}

template <int kTeam, class State>
__device__ State merge_team(State state, State* partial) {
  state = merge_warp(state);
  if constexpr (kTeam == kWarp) return state;
  if (lane_id() == 0) partial[warp_id()] = state;
  block_sync();
  state = merge_warp(lane_id() < kTeam / kWarp ? partial[lane_id()] : State());
  block_sync();
  return state;
}

}  // namespace
}  // namespace fastnn
