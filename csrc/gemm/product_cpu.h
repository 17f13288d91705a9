// A product as the ways through the vector engine see it, its cut into parallel tiles, and packed parts of B.
// Included by gemm_cpu.cpp alone.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/blocking_cpu.h"
#include "gemm/micro_cpu.h"
#include "gemm/pack_cpu.h"
#include "simd/integer.h"

namespace fastnn {
namespace {

// An operand: element (i, p) of A lies at i * outer + p * depth, element (p, j) of B at p * depth + j * outer.
struct Operand {
  const char* data;
  DType dtype;
  int64_t outer, depth;

  const char* at(int64_t i, int64_t p) const { return data + (i * outer + p * depth) * int64_t(item_size(dtype)); }
  template <class T>
  const T* at(int64_t i, int64_t p) const {
    return reinterpret_cast<const T*>(at(i, p));
  }
};

// One product, computed and stored in T.
template <class T>
struct Product {
  int64_t m, n, k;
  Operand a, b;
  Destination<T> out;

  int64_t work() const { return m * n * k; }
  // Of the tile at (row, column) for k in [begin, end): what C held comes in with the first block, what follows
  // the product with the last.
  Destination<T> destination(int64_t row, int64_t column, int64_t begin, int64_t end) const {
    const int64_t at = row * out.c_row + column;
    const bool last = end >= k;
    return {out.c + at,
            out.c_row,
            out.alpha,
            out.accumulate || begin > 0,
            out.row_bias && last ? out.row_bias + row : nullptr,
            out.column_bias && last ? out.column_bias + column : nullptr,
            out.residual && last ? out.residual + at : nullptr,
            last ? out.activation : Activation::None};
  }
};

// Calls body(row, row_end, column, column_end) for tiles of C of about kTaskWork, in parallel: cut by
// rows first, then by columns, none smaller than the units.
template <class Body>
void for_each_tile(int64_t m, int64_t n, int64_t k, int64_t row_unit, int64_t column_unit, const Body& body) {
  const int64_t work = m * n * k, tasks = work < kSerialWork ? 1 : round_up(ceil_div(work, kTaskWork), 2);
  const int64_t rows = max(min(row_unit, m), ceil_div(m, tasks)), row_tiles = ceil_div(m, rows);
  const int64_t columns = round_up(ceil_div(n, max(1, tasks / row_tiles)), column_unit);
  const int64_t column_tiles = ceil_div(n, columns), tiles = row_tiles * column_tiles;
  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile / column_tiles * rows, column = tile % column_tiles * columns;
      body(row, min(row + rows, m), column, min(column + columns, n));
    }
  });
}

// A packed part of B: panels of kColumns columns, each [depth][kColumns].
template <class T>
struct Slab {
  const T* panels;
  int64_t column, column_end;
  int64_t p, depth;

  int64_t bytes() const { return (column_end - column) * depth * int64_t(sizeof(T)); }
};

template <class T, int kColumns = Tile<T>::kColumns>
Slab<T> pack_slab(const Product<T>& product, int64_t column, int64_t column_end, int64_t p, int64_t depth) {
  const int64_t n_panels = ceil_div(column_end - column, kColumns), panel_size = kColumns * depth;
  T* panels =
      static_cast<T*>(thread_scratch(Scratch::GemmB, size_t(n_panels * panel_size + kPanelPadding) * sizeof(T)));
  parallel_for(n_panels, max(kPackedPanels, (1 << 16) / panel_size), [&](int64_t begin, int64_t end) {
    const int64_t j = column + begin * kColumns;
    pack_panels<kColumns>(product.b.at(j, p), product.b.dtype, product.b.depth, product.b.outer, depth,
                          min(column_end - j, (end - begin) * kColumns), panels + begin * panel_size, panel_size);
  });
  return {panels, column, column_end, p, depth};
}

}  // namespace
}  // namespace fastnn
