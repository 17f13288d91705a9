// Products with A in place, and B too where its rows are contiguous; else B is packed, while k is whole. Sums go from
// registers to C. Few columns: the same for C^T. Included by gemm_cpu.cpp alone.
#pragma once

#include "gemm/gemm_amx.h"
#include "gemm/product_cpu.h"

namespace fastnn {
namespace {

template <class T>
bool has_whole_rows(const Product<T>& product) {
  return product.b.outer == 1 && (kMaskedLoads || product.n % Vec<T>::size == 0);
}

// B's rows, in place or packed: row p of the columns from j on, a multiple of the tile's from the first one, begins at
// data + p * row + (j - first_column) * column.
template <class T>
struct RowsOfB {
  const T* data;
  int64_t row, column, first_column;
  int64_t ahead = 0;  // OuterTile
};

template <class T>
RowsOfB<T> rows_in_place(const Product<T>& product, int64_t ahead) {
  return {product.b.template at<T>(0, 0), product.b.depth, 1, 0, ahead};
}

template <class T, int kColumns>
RowsOfB<T> pack_rows_of(const Product<T>& product, int64_t column, int64_t column_end) {
  return {pack_slab<T, kColumns>(product, column, column_end, 0, product.k).panels, kColumns, product.k, column};
}

// C[row .. row_end, column .. column_end], A's rows in place, by tiles of kRows x kColumns.
template <class T, int kRows, int kColumns>
void direct_tiles(const Product<T>& product, const RowsOfB<T>& b, int64_t row, int64_t row_end, int64_t column,
                  int64_t column_end) {
  const int64_t depth = even_piece(product.k, kDirectDepth), height = even_piece(row_end - row, kRows);
  int64_t b_rows[kDirectDepth];
  for (int64_t p = 0; p < depth; ++p) b_rows[p] = p * b.row;
  // Tiles side by side from column j on; the column after them.
  const auto multiply = [&](int64_t i, int64_t j, int64_t end, int64_t p) {
    const int rows = int(min(height, row_end - i)), columns = int(min(kColumns, end - j));
    const Destination<T> out = product.destination(i, j, p, p + depth);
    const bool plain = out.plain() && (kMaskedLoads || columns % Vec<T>::size == 0);
    const OuterTile<T> tile{product.a.template at<T>(i, p),
                            product.a.outer,
                            product.a.depth,
                            b.data + p * b.row + (j - b.first_column) * b.column,
                            b_rows,
                            min(depth, product.k - p),
                            rows,
                            columns,
                            b.ahead,
                            plain ? max(1, (end - j) / kColumns) : 1,
                            kColumns * b.column};
    if (plain) {
      run_outer_tile<T, kRows, kColumns>(tile, out.c, out.c_row);
    } else {
      alignas(64) T block[kRows * kColumns];
      run_outer_tile<T, kRows, kColumns>(tile, block, kColumns);
      out.template put<kColumns>(block, rows, columns);
    }
    return j + tile.run * kColumns;
  };
  // With a short k the time goes into C: it is written along whole rows, while B waits in the second-level cache.
  const int64_t strip = product.k <= kShortDepth ? kStripColumns / kColumns * kColumns : kColumns;
  for (int64_t p = 0; p < product.k; p += depth)
    for (int64_t first = column; first < column_end; first += strip)
      for (int64_t i = row; i < row_end; i += height)
        for (int64_t j = first, end = min(first + strip, column_end); j < end;) j = multiply(i, j, end, p);
}

// `streamed`: a large B comes from memory in pieces of rows, which the hardware does not prefetch.
template <class T, int kRows, int kColumns>
void direct_by(const Product<T>& product, bool streamed) {
  if (!has_whole_rows(product) && product.work() < kTwofoldWork) {
    // Each of two tasks packs its own columns: that costs less than to fetch what the other core packed.
    const int64_t half = product.work() < kSerialWork ? product.n : round_up(ceil_div(product.n, 2), Vec<T>::size);
    return parallel_for(product.n, half, [&](int64_t begin, int64_t end) {
      direct_tiles<T, kRows, kColumns>(product, pack_rows_of<T, kColumns>(product, begin, end), 0, product.m, begin,
                                       end);
    });
  }
  // With a short k rows of C and rows of B would lie at the same distances, and meet in the same sets of the cache.
  const bool repacked = product.k <= kShortDepth && product.m >= kRepackedRows &&
                        product.n * product.k * int64_t(sizeof(T)) <= kCachedBytes;
  RowsOfB<T> b = rows_in_place(product, streamed ? 2 * kColumns : 0);
  if (repacked || !has_whole_rows(product)) b = pack_rows_of<T, kColumns>(product, 0, product.n);
  for_each_tile(product.m, product.n, product.k, product.m <= 2 * kRows ? product.m : kRows, kColumns,
                [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
                  direct_tiles<T, kRows, kColumns>(product, b, row, row_end, column, column_end);
                });
}

template <class T>
void direct(const Product<T>& product, bool streamed) {
  using Sizes = Tile<T>;
  if (product.k <= kShortDepth) return direct_by<T, Sizes::kShortRows, Sizes::kShortColumns>(product, false);
  direct_by<T, Sizes::kRows, Sizes::kColumns>(product, streamed);
}

// Few columns, and A's columns contiguous: C^T = B^T A^T, whose rows are written as columns of C.
template <class T>
void direct_transposed(const Product<T>& product) {
  constexpr int64_t kRows = Tile<T>::kRows, kColumns = Tile<T>::kColumns;
  const int64_t tasks = product.work() < kSerialWork ? 1 : round_up(min(kTasks, product.work() / kTaskWork), 2);
  const int64_t strip = round_up(ceil_div(product.m, max(1, tasks)), kColumns);
  parallel_for(ceil_div(product.m, strip), 1, [&](int64_t begin, int64_t end) {
    T* sums = static_cast<T*>(thread_scratch(Scratch::GemmA, size_t(product.n * strip) * sizeof(T)));
    alignas(64) T block[kRows * kColumns];
    for (int64_t first = begin * strip; first < min(end * strip, product.m); first += strip) {
      const int64_t count = min(strip, product.m - first);
      Product<T> part{product.n, count,     product.k,
                      product.b, product.a, {sums, strip, T(1), false, nullptr, nullptr, nullptr, Activation::None}};
      part.b.data = product.a.at(first, 0);
      direct(part, true);
      for (int64_t i = 0; i < count; i += kRows)
        for (int64_t j = 0; j < product.n; j += kColumns) {
          const int rows = int(min(kRows, count - i)), columns = int(min(kColumns, product.n - j));
          for (int c = 0; c < columns; ++c)
            for (int r = 0; r < rows; ++r) block[r * kColumns + c] = sums[(j + c) * strip + i + r];
          product.destination(first + i, j, 0, product.k).put(block, rows, columns);
        }
    }
  });
}

}  // namespace
}  // namespace fastnn
