// Products whose operands are both contiguous in k, of few rows or columns: in place, 16-bit elements too. The other
// operand is read once, at the speed of memory. Included by gemm_cpu.cpp alone.
#pragma once

#include "gemm/gemv_cpu.h"
#include "gemm/product_cpu.h"

namespace fastnn {
namespace {

// The operand of few rows (columns) takes the rows of tiles, the other one the columns: where that is A, C^T = B^T A^T.
template <class T, class S, int kRows, int kColumns>
void dot_tiles(const Product<T>& product) {
  const bool transposed = product.m > product.n;
  const Operand &few = transposed ? product.b : product.a, &many = transposed ? product.a : product.b;
  const int64_t n_few = min(product.m, product.n), n_many = max(product.m, product.n);
  const bool streamed = n_many * product.k * int64_t(sizeof(S)) > kCachedBytes;
  int64_t columns_at[kColumns];
  for (int64_t j = 0; j < kColumns; ++j) columns_at[j] = j * many.outer;
  const auto multiply_tile = [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
    alignas(64) T block[kRows * kColumns];
    for (int64_t j = column; j < column_end; j += kColumns)
      for (int64_t i = row; i < row_end; i += kRows) {
        const int rows = int(min(kRows, row_end - i)), columns = int(min(kColumns, column_end - j));
        DotTile<S> tile{
            few.template at<S>(i, 0), few.outer, many.template at<S>(j, 0), columns_at, product.k, rows, columns};
        if (streamed && i == row) tile.ahead = kColumns * many.outer;
        dot_tile<T, S, kRows, kColumns>(tile, block);
        const Destination<T> out =
            transposed ? product.destination(j, i, 0, product.k) : product.destination(i, j, 0, product.k);
        for (int r = 0; r < rows; ++r)
          for (int c = 0; c < columns; ++c)
            out.put_one(block[r * kColumns + c], transposed ? c : r, transposed ? r : c);
      }
  };
  for_each_tile(n_few, n_many, product.k, kRows, kColumns, multiply_tile);
}

// One row (column), and a matrix that comes from memory.
template <class T, class S>
void dot_stream(const Product<T>& product) {
  constexpr int64_t kSums = Vec<T>::size;
  const bool transposed = product.m > product.n;
  const Operand &vector = transposed ? product.b : product.a, &matrix = transposed ? product.a : product.b;
  const int64_t n_rows = max(product.m, product.n);
  const int64_t pieces = round_up(ceil_div(n_rows * product.k, kStreamWork), 2);
  const int64_t piece = round_up(ceil_div(n_rows, pieces), kSums);
  parallel_for(ceil_div(n_rows, piece), 1, [&](int64_t begin, int64_t end) {
    alignas(64) T sums[2 * kSums] = {};  // a row as wide as a tile's
    for (int64_t j = begin * piece; j < min(end * piece, n_rows); j += kSums) {
      const int64_t count = min(kSums, n_rows - j);
      dot_rows<T, S>(vector.template at<S>(0, 0), matrix.template at<S>(j, 0), matrix.outer, count, product.k, sums);
      if (!transposed) {
        product.destination(0, j, 0, product.k).put(sums, 1, int(count));
      } else {
        for (int64_t i = 0; i < count; ++i) product.destination(j, 0, 0, product.k).put_one(sums[i], i, 0);
      }
    }
  });
}

// The fewer rows there are, the more columns are read at once: memory is fast along many, or along one.
template <class T, class S>
void dot_of(const Product<T>& product) {
  constexpr int kSums = Vec<T>::size;
  const int64_t n_few = min(product.m, product.n), row_bytes = product.k * int64_t(sizeof(S));
  if (n_few == 1) {
    const int64_t stride = product.m > product.n ? product.a.outer : product.b.outer;
    const bool large = max(product.m, product.n) * row_bytes > kCachedBytes;
    if (large && (stride == product.k || row_bytes >= kStreamedRow)) return dot_stream<T, S>(product);
    return dot_tiles<T, S, 1, kSums>(product);
  }
  if (n_few == 2 && kSums > 2) return dot_tiles<T, S, 2, kSums / 2>(product);
  dot_tiles<T, S, Tile<T>::kDotRows, Tile<T>::kDotColumns>(product);
}

template <class T>
void dot(const Product<T>& product) {
  if constexpr (sizeof(T) == 4) {
    if (product.a.dtype == DType::BFloat16) return dot_of<T, bfloat16>(product);
    if (product.a.dtype == DType::Float16) return dot_of<T, float16>(product);
  }
  dot_of<T, T>(product);
}

}  // namespace
}  // namespace fastnn
