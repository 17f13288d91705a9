// Products of attention's blocks by register tiles (gemm/tile.h), and their operands packed for them.
//
// The right operand is packed in panels of kColumns columns, [panel][depth][kColumns], padded with zeros.
#pragma once

#include "gemm/pack_cpu.h"
#include "gemm/tile.h"
#include "ops/attention/rows_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kKeys = 128;  // of a block of scores

template <class T>
constexpr int64_t kPanel = Tile<T>::kColumns;
template <class T>
constexpr int64_t kBlockRows = 4 * Tile<T>::kRows;  // query rows of a block: with kKeys scores each, about the L1 cache

template <class T>
int64_t padded(int64_t columns) {
  return round_up(columns, kPanel<T>);
}

template <class T>
struct Panels {
  T* data;
  int64_t depth;

  static int64_t size(int64_t depth, int64_t columns) { return padded<T>(columns) * depth + kPanelPadding; }
  // From (depth, column) on; `column` begins a panel.
  const T* at(int64_t row, int64_t column) const { return data + column * depth + row * kPanel<T>; }
  int64_t stride() const { return depth * kPanel<T>; }
};

// Packs `columns` columns, `depth` deep, of a source with these strides.
template <class T>
void pack(const void* source, DType dtype, int64_t depth_stride, int64_t column_stride, int64_t depth, int64_t columns,
          Panels<T>& panels) {
  panels.depth = depth;
  pack_panels<int(kPanel<T>)>(static_cast<const char*>(source), dtype, depth_stride, column_stride, depth, columns,
                              panels.data, panels.stride());
}

// The left operand: element (i, p) at data[i * row + p * column].
template <class T>
struct Left {
  const T* data;
  int64_t row, column;
};

// C (rows x columns, whole panels wide) = or += A B. offsets[p] = p * kPanel.
template <bool kAdd, class T>
void multiply(const Left<T>& a, int64_t rows, const T* b, int64_t b_stride, int64_t depth, int64_t columns,
              const int64_t* offsets, T* c, int64_t c_row) {
  constexpr int64_t kRows = Tile<T>::kRows, kLanes = Vec<T>::size;
  alignas(64) T sums[kRows * kPanel<T>];
  const int64_t height = ceil_div(rows, ceil_div(rows, kRows));
  for (int64_t j = 0; j < columns; j += kPanel<T>, b += b_stride) {
    const int64_t width = min(kPanel<T>, round_up(columns - j, kLanes));
    for (int64_t i = 0; i < rows; i += height) {
      const int64_t n = min(height, rows - i);
      FASTNN_LEVEL::gemm_outer_tile({a.data + i * a.row, a.row, a.column, b, offsets, depth, int(n), int(width)}, sums);
      for (int64_t r = 0; r < n; ++r)
        for (int64_t w = 0; w < width; w += kLanes) {
          T* target = c + (i + r) * c_row + j + w;
          Vec<T> sum = Vec<T>::load(sums + r * kPanel<T> + w);
          if (kAdd) sum += Vec<T>::load(target);
          sum.store(target);
        }
    }
  }
}

// Rows in the compute type: in place, or loaded into `buffer`.
template <class T>
Left<T> rows_of(const void* data, DType dtype, int64_t at, int64_t stride, int64_t rows, int64_t n, T* buffer) {
  if (dtype == dtype_of<T>()) return {element<T>(data, dtype, at), stride, 1};
  for (int64_t r = 0; r < rows; ++r)
    FASTNN_LEVEL::load_row(buffer + r * n, element<void>(data, dtype, at + r * stride), dtype, 1, n);
  return {buffer, n, 1};
}

// offsets of `count` rows of a panel.
template <class T>
void fill_offsets(int64_t* offsets, int64_t count) {
  for (int64_t p = 0; p < count; ++p) offsets[p] = p * kPanel<T>;
}

}  // namespace
}  // namespace fastnn
