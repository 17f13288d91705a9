// Large products: the five loops of Goto and van de Geijn, as gemm/blocking_cpu.h draws them. Included by gemm_cpu.cpp
// alone.
#pragma once

#include "gemm/prefetch.h"
#include "gemm/product_cpu.h"

namespace fastnn {
namespace {

inline void prefetch_lines(const char* memory, int64_t lines) {
  for (int64_t line = 0; line < lines; ++line) prefetch_near(memory + line * 64);
}

// C[row .. row_end, panels begin .. end of the slab].
template <class T>
void multiply_block(const Product<T>& product, int64_t row, int64_t row_end, const Slab<T>& slab, int64_t begin,
                    int64_t end) {
  constexpr int64_t kRows = Tile<T>::kRows, kColumns = Tile<T>::kColumns;
  const int64_t rows = row_end - row, depth = even_piece(slab.depth, kPackedDepth<T>, 4);
  const int64_t elements = (rows + kRows) * depth + kPanelPadding;
  T* block = static_cast<T*>(thread_scratch(Scratch::GemmA, size_t(elements) * sizeof(T)));
  for (int64_t p = 0; p < slab.depth; p += depth) {
    const int64_t k = min(depth, slab.depth - p), first_p = slab.p + p;
    pack_panels<kRows>(product.a.at(row, first_p), product.a.dtype, product.a.depth, product.a.outer, k, rows, block,
                       kRows * k);
    // A large slab: while a panel is used, the next one comes from memory into the second-level cache.
    const bool large = slab.bytes() > kCachedBytes;
    const int64_t lines = k * kColumns * int64_t(sizeof(T)) / 64, lines_per_tile = ceil_div(lines * kRows, rows);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t j = slab.column + panel * kColumns;
      const T* b = slab.panels + (panel * slab.depth + p) * kColumns;
      const char* next = reinterpret_cast<const char*>(b + slab.depth * kColumns);
      for (int64_t i = 0; i < rows; i += kRows, next += lines_per_tile * 64) {
        if (large && panel + 1 < end) prefetch_lines(next, lines_per_tile);
        packed_tile<T>(block + i * k, b, k, int(min(kRows, rows - i)), int(min(kColumns, slab.column_end - j)),
                       product.destination(row + i, j, first_p, first_p + k));
      }
    }
  }
}

template <class T>
void blocked(const Product<T>& product) {
  constexpr int64_t kRows = Tile<T>::kRows, kColumns = Tile<T>::kColumns;
  const int64_t slab_depth = even_piece(product.k, kSlabDepth, 4);
  const int64_t slab_columns = even_piece(product.n, kSlabElements / slab_depth, kColumns);
  // Enough tasks: first by strips, as long as a strip is wide enough to pay for packing A again, then by
  // blocks of rows, then by narrower strips.
  const int64_t wide_strips = max(1, min(product.n / kStripColumns, kTasks / ceil_div(product.m, kBlockRows)));
  const int64_t block_limit = min(kBlockRows, max(4 * kRows, product.m * wide_strips / kTasks)) / kRows * kRows;
  const int64_t block_rows = even_piece(product.m, block_limit, kRows);
  const int64_t blocks = ceil_div(product.m, block_rows);
  for (int64_t column = 0; column < product.n; column += slab_columns)
    for (int64_t p = 0; p < product.k; p += slab_depth) {
      const Slab<T> slab =
          pack_slab(product, column, min(product.n, column + slab_columns), p, min(slab_depth, product.k - p));
      const int64_t n_panels = ceil_div(slab.column_end - slab.column, kColumns);
      const int64_t strip = min(n_panels, max(4, ceil_div(n_panels * blocks, kTasks)));
      const int64_t strips = ceil_div(n_panels, strip);
      parallel_for(blocks * strips, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task / strips * block_rows, panel = task % strips * strip;
          multiply_block(product, row, min(row + block_rows, product.m), slab, panel, min(panel + strip, n_panels));
        }
      });
    }
}

}  // namespace
}  // namespace fastnn
