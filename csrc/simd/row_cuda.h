// Rows of a tensor on a GPU: a warp or a block, the team of a row, takes it in packs of 16 bytes.
//
// An operation along rows whose every result needs the whole row (softmax, normalization) is a class Rows:
//
//   int64_t count, n;                    rows, and their elements
//   Rows::Element                        what is read for a result: a struct of a value or a few
//   Rows::State                          what elements are added to; the default is of no elements, merge(a, b) joins
//   two auto row = rows.at(index)            and of a row:
//     row.load<W>(i, elements)           W elements from element i on
//     row.add(state, element)
//     row.finish(state)                  the state of the whole row, known to every thread of its team
//     row.store<W>(i, elements)          their results
//
// map_rows walks it: rows that fit into the registers of a warp or a block are read once; longer ones are read for
// every step, and all reads but the first find a row of up to some 300 KB in L2.
#pragma once

#include <type_traits>

#include "core/cuda_device.h"
#include "core/cuda_index.h"
#include "core/cuda_launch.h"
#include "core/dtype.h"
#include "simd/element.h"
#include "simd/float_type.h"

namespace fastnn {
namespace {

// What a stored float is computed in.
template <class Stored>
using Compute = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

constexpr int kRowsOfWarps = 4;  // rows of a block whose teams are warps

// The row of this thread's team.
__device__ inline int64_t team_row() { return int64_t(blockIdx.x) * blockDim.y + threadIdx.y; }

template <int kTeam>
LaunchShape row_shape(int64_t rows) {
  constexpr int64_t together = kTeam == kWarp ? kRowsOfWarps : 1;
  return {dim3(unsigned((rows + together - 1) / together)), dim3(kTeam, unsigned(together))};
}

// Can rows of n elements from each of these addresses be read in packs of 16 bytes? Null addresses do not count.
template <class Stored>
bool rows_fit_packs(int64_t n, std::initializer_list<const void*> rows) {
  for (const void* row : rows)
    if (row && !is_aligned(row, 16)) return false;
  return n % kPackOf16<Stored> == 0;
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

// The same where only `count` elements are there, and only `packs` are aligned; 0 for the others.
template <int kWidth, class Stored>
__device__ Pack<Compute<Stored>, kWidth> load_some(const Stored* from, int64_t count, bool packs) {
  if (packs && count >= kWidth) return load_values<kWidth>(from);
  Pack<Compute<Stored>, kWidth> values;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values.at[i] = i < count ? to_compute<Compute<Stored>>(from[i]) : Compute<Stored>(0);
  return values;
}

template <int kWidth, class Stored, class T>
__device__ void store_some(Stored* to, const Pack<T, kWidth>& values, int64_t count, bool packs) {
  if (packs && count >= kWidth) return store_values<kWidth>(to, values);
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (i < count) to[i] = to_stored<Stored>(values.at[i]);
}

template <int kWidth, class Stored>
__device__ void load_elements(const Stored* from, Compute<Stored> (&elements)[kWidth]) {
  const Pack<Compute<Stored>, kWidth> values = load_values<kWidth>(from);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) elements[i] = values.at[i];
}

// result(element) of each.
template <int kWidth, class Stored, class Element, class Result>
__device__ void store_elements(Stored* to, const Element (&elements)[kWidth], const Result& result) {
  Pack<Compute<Stored>, kWidth> values;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values.at[i] = result(elements[i]);
  store_values<kWidth>(to, values);
}

// The states of all threads of a team merged in a fixed order: every thread gets the same bits. `partial` is shared
// memory for 32 states, which a team that is a warp does not use.
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
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const State theirs = shuffle_state(state, step);
    state = lane_id() & step ? State::merge(theirs, state) : State::merge(state, theirs);
  }
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

template <class T>
struct Total {
  T sum = T(0);
  static __device__ Total merge(const Total& a, const Total& b) {
    Total both;
    both.sum = a.sum + b.sum;
    return both;
  }
};

// -------------------------------------------------------------------------------------------- walks

// Elements that a thread holds: 64 registers at the most.
template <class Rows>
constexpr int kHeld = sizeof(typename Rows::Element) > 8 ? 256 / int(sizeof(typename Rows::Element)) : 32;
constexpr int kBlockTeam = 256;  // threads of a row that a block holds
constexpr int kLongTeam = 512;   // threads of a longer one

// visit(pack) for each pack of the row that this thread holds.
template <int kPacks, int kTeam, int kWidth, class Visit>
__device__ void for_held(int64_t n, const Visit& visit) {
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
    const int64_t i = int64_t(pack * kTeam + threadIdx.x) * kWidth;
    if (i >= n) break;
    visit(pack, i);
  }
}

template <class Rows, int kTeam, int kWidth>
__global__ void __launch_bounds__(kTeam == kWarp ? kWarp * kRowsOfWarps : kTeam)
    map_held_rows(const __grid_constant__ Rows rows) {
  constexpr int kPacks = kHeld<Rows> / kWidth;
  __shared__ typename Rows::State partial[kWarp];
  if (team_row() >= rows.count) return;
  auto row = rows.at(team_row());
  typename Rows::Element held[kPacks][kWidth];
  for_held<kPacks, kTeam, kWidth>(rows.n, [&](int pack, int64_t i) { row.template load<kWidth>(i, held[pack]); });
  if constexpr (Rows::kCentred) {
    __shared__ Total<typename Rows::Element> totals[kWarp];
    Total<typename Rows::Element> total;
    for_held<kPacks, kTeam, kWidth>(rows.n, [&](int pack, int64_t) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total.sum += held[pack][j];
    });
    row.centre(merge_team<kTeam>(total, totals).sum / typename Rows::Element(rows.n));
  }
  typename Rows::State state;
  for_held<kPacks, kTeam, kWidth>(rows.n, [&](int pack, int64_t) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) row.add(state, held[pack][j]);
  });
  row.finish(merge_team<kTeam>(state, partial));
  for_held<kPacks, kTeam, kWidth>(rows.n, [&](int pack, int64_t i) { row.template store<kWidth>(i, held[pack]); });
}

// visit(elements, first) for each pack of a long row that this thread takes.
template <int kWidth, class Rows, class Row, class Visit>
__device__ void for_read(const Rows& rows, const Row& row, const Visit& visit) {
  typename Rows::Element elements[kWidth];
  for (int64_t i = int64_t(threadIdx.x) * kWidth; i < rows.n; i += kLongTeam * kWidth) {
    row.template load<kWidth>(i, elements);
    visit(elements, i);
  }
}

template <class Rows, int kWidth>
__global__ void __launch_bounds__(kLongTeam, 1) map_long_rows(const __grid_constant__ Rows rows) {
  using Elements = typename Rows::Element[kWidth];
  __shared__ typename Rows::State partial[kWarp];
  auto row = rows.at(team_row());
  if constexpr (Rows::kCentred) {
    __shared__ Total<typename Rows::Element> totals[kWarp];
    Total<typename Rows::Element> total;
    for_read<kWidth>(rows, row, [&](const Elements& elements, int64_t) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total.sum += elements[j];
    });
    row.centre(merge_team<kLongTeam>(total, totals).sum / typename Rows::Element(rows.n));
  }
  typename Rows::State state;
  for_read<kWidth>(rows, row, [&](const Elements& elements, int64_t) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) row.add(state, elements[j]);
  });
  row.finish(merge_team<kLongTeam>(state, partial));
  for_read<kWidth>(rows, row, [&](const Elements& elements, int64_t i) { row.template store<kWidth>(i, elements); });
}

template <int kWidth, class Rows>
void map_rows_of(const Rows& rows) {
  if (rows.n <= kHeld<Rows> * kWarp)
    launch(map_held_rows<Rows, kWarp, kWidth>, row_shape<kWarp>(rows.count), rows);
  else if (rows.n <= kHeld<Rows> * kBlockTeam)
    launch(map_held_rows<Rows, kBlockTeam, kWidth>, row_shape<kBlockTeam>(rows.count), rows);
  else
    launch(map_long_rows<Rows, kWidth>, row_shape<kLongTeam>(rows.count), rows);
}

// `packs`: all rows can be read in packs of 16 bytes of Stored.
template <class Stored, class Rows>
void map_rows(const Rows& rows, bool packs) {
  packs ? map_rows_of<kPackOf16<Stored>>(rows) : map_rows_of<1>(rows);
}

}  // namespace
}  // namespace fastnn
