// What becomes of the sums of a convolution on CUDA: activation(sum + bias + residual), rounded once.
#pragma once

#include "gemm/epilogue_cuda.h"
#include "ops/conv/gather_cuda.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

// Neighbouring elements, of adjacent channels; `channel` counts those of all groups.
template <class Stored, int kWidth>
__device__ inline void store_result(const ConvProduct& p, Pack<Compute<Stored>, kWidth> sums, int64_t channel,
                                    int64_t offset) {
  if (p.bias) add_elements(sums, static_cast<const Stored*>(p.bias) + channel, kWidth);
  if (p.residual) add_elements(sums, static_cast<const Stored*>(p.residual) + offset, kWidth);
  activate(p.activation, sums);
  store_values<kWidth>(static_cast<Stored*>(p.result) + offset, sums);
}

// The lines of a tile of sums are what is adjacent in the result: columns, or in planes of channels pixels (rows).
template <bool kWeightGrad>
__device__ inline bool lines_are_columns(const ConvProduct& p) {
  return !kWeightGrad && p.other.channel != 1;
}

// All threads of the block store a tile of sums from shared memory, lines kPitch apart, to the result or the partials.
// `rows` are the places of the tile's rows.
template <class Stored, int kRows, int kColumns, int kPitch, int kThreads, bool kWeightGrad>
__device__ inline void store_product(const ConvProduct& p, const ConvTile& tile, const Place* rows,
                                     const Compute<Stored>* lines) {
  using T = Compute<Stored>;
  const int64_t present_rows = tile.m - tile.row, present_columns = p.columns - tile.column;
  const int64_t first_channel = tile.group * p.columns + tile.column;
  T* const partials =
      static_cast<T*>(p.partials) +
      (kWeightGrad ? ((tile.split * p.groups + tile.group) * tile.m + tile.row) * p.columns + tile.column
                   : tile.split * p.images * p.other.image);
  const auto store = [&](const auto& sums, int row, int column) {
    const int64_t offset =
        kWeightGrad ? row * p.columns + column : rows[row].beside + (first_channel + column) * p.other.channel;
    if (kWeightGrad || p.splits > 1)
      store_pack(partials + offset, sums);
    else
      store_result<Stored>(p, sums, first_channel + column, offset);
  };
  if (lines_are_columns<kWeightGrad>(p)) {
#pragma unroll 1
    for (int i = int(threadIdx.x); i < kRows * kColumns; i += kThreads) {
      const int row = i % kRows, column = i / kRows;
      if (row < present_rows && column < present_columns) store(Pack<T, 1>{lines[column * kPitch + row]}, row, column);
    }
    return;
  }
  constexpr int kWidth = kPackOf16<T>;
  // Tiles begin at multiples of a pack, so this tells of all packs that are whole.
  const bool packs = p.columns % kWidth == 0;
#pragma unroll 1
  for (int i = int(threadIdx.x) * kWidth; i < kRows * kColumns; i += kThreads * kWidth) {
    const int row = i / kColumns, column = i % kColumns;
    if (row >= present_rows) return;
    const T* const line = lines + row * kPitch + column;
    if (packs && column < present_columns) {
      store(load_pack<kWidth>(line), row, column);
    } else {
      for (int j = 0; j < kWidth; ++j)
        if (column + j < present_columns) store(Pack<T, 1>{line[j]}, row, column + j);
    }
  }
}

}  // namespace
}  // namespace fastnn
