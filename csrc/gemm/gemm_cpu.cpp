// The matrix engine on the CPU. Three ways through it, chosen by shape and strides alone:
//
//   dot      both operands are contiguous in k (x W^T) and there are few rows or columns: in place, 16-bit
//            elements too. The other operand is read once, at the speed of memory.
//   direct   the product is small, or has few rows, or a short k: A in place, and B too where its rows are contiguous;
//            else it is packed, while k is whole. Sums go from registers to C. Few columns: the same for C^T.
//   packed   the rest: the five loops of Goto and van de Geijn. A slab of B (kSlabElements at most) is
//            packed by all threads; then blocks of A's rows times strips of the slab are the parallel
//            tasks, each packing its rows of A one depth block at a time.
//
// Where the machine has AMX, most products go there instead: skinny_amx.cpp where one operand fits the second-level
// cache, gemm_amx.cpp the other large ones.
//
// k is not split between threads, except where C is so small and k so long that there is nothing else
// to split: then into chunks fixed by k, whose partial products are added in order.
#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/gemm.h"
#include "gemm/gemm_amx.h"
#include "gemm/gemv_cpu.h"
#include "gemm/micro_cpu.h"
#include "gemm/pack_cpu.h"
#include "gemm/prefetch.h"
#include "simd/integer.h"

namespace fastnn {
namespace {

// Work is counted in multiply-adds.
constexpr int64_t kTaskWork = int64_t(1) << 20;            // pays for a task
constexpr int64_t kSerialWork = int64_t(1) << 19;          // less does not pay for a second thread
constexpr int64_t kTwofoldWork = int64_t(1) << 22;         // less does not pay for packing together
constexpr int64_t kDirectWork = int64_t(256) * 256 * 256;  // up to here packing does not pay
constexpr int64_t kStreamWork = int64_t(1) << 16;          // the same where each of them waits for memory
constexpr int64_t kItemWork = int64_t(1) << 26;            // larger products of a batch are parallel in themselves
constexpr int64_t kTasks = 8;                              // wanted of a packed product, at least

constexpr int64_t kDotRows = 8, kDotColumns = 4;    // few rows or columns: the other operand is read once
constexpr int64_t kLeastDot = 16;                   // of k: below, most of a sum's lanes idle, and packing is faster
constexpr int64_t kShortDepth = 32;                 // up to here neither
constexpr int64_t kRepackedRows = 256;              // of C, which pay for packing B all the same
constexpr int64_t kDirectDepth = 256;               // depth block of operands in place
constexpr int64_t kCachedBytes = int64_t(1) << 20;  // of B; beyond, it is prefetched into the second-level cache

// Of a packed block: a panel of B this deep is about the first-level cache.
template <class T>
constexpr int64_t kPackedDepth = sizeof(T) == 4 ? 384 : 256;
constexpr int64_t kBlockRows = 280;      // of A; kPackedDepth deep it is a quarter of the second-level cache
constexpr int64_t kStripColumns = 1024;  // a strip of B this wide pays for packing A again
constexpr int64_t kSlabDepth = 6 * 384;  // of B
constexpr int64_t kSlabElements = kSlabDepth * 2048;
constexpr int64_t kPackedPanels = 4;  // of B in a packing task, at least: a row of them is 512 bytes

constexpr int64_t kSplitOutputs = 16384, kSplitDepth = 4096, kSplitChunks = 256;  // when k is split, and how
constexpr int64_t kCastRun = 512;

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
  const auto multiply = [&](int64_t i, int64_t j, int64_t p) {
    const int rows = int(min(height, row_end - i)), columns = int(min(kColumns, column_end - j));
    const Destination<T> out = product.destination(i, j, p, p + depth);
    const OuterTile<T> tile{product.a.template at<T>(i, p),
                            product.a.outer,
                            product.a.depth,
                            b.data + p * b.row + (j - b.first_column) * b.column,
                            b_rows,
                            min(depth, product.k - p),
                            rows,
                            columns,
                            b.ahead};
    if (out.plain() && (kMaskedLoads || columns % Vec<T>::size == 0)) {
      if (product.k <= kShortDepth)
        for (int r = 0; r < rows; ++r)
          for (int64_t c = 0; c < columns; c += Vec<T>::size) prefetch_written(out.c + r * out.c_row + c);
      return run_outer_tile<T, kRows, kColumns>(tile, out.c, out.c_row);
    }
    alignas(64) T block[kRows * kColumns];
    run_outer_tile<T, kRows, kColumns>(tile, block, kColumns);
    out.template put<kColumns>(block, rows, columns);
  };
  // With a short k the time goes into C: it is written along whole rows, while B waits in the second-level cache.
  const int64_t strip = product.k <= kShortDepth ? kStripColumns / kColumns * kColumns : kColumns;
  for (int64_t p = 0; p < product.k; p += depth)
    for (int64_t first = column; first < column_end; first += strip)
      for (int64_t i = row; i < row_end; i += height)
        for (int64_t j = first; j < min(first + strip, column_end); j += kColumns) multiply(i, j, p);
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
void packed(const Product<T>& product) {
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

template <class T>
void multiply_whole(const Product<T>& product) {
  const bool in_place = product.a.dtype == dtype_of<T>();
  const bool along_k = product.a.depth == 1 && product.b.depth == 1 && product.k > 1;
  const bool few = product.m <= kDotRows || product.n <= kDotColumns;
  const bool few_rows = product.m <= 2 * Tile<T>::kRows && has_whole_rows(product);
  const bool few_columns = product.n <= kFewColumns && product.a.outer == 1 && product.a.depth != 1;
  if (along_k && few && (product.k >= kLeastDot || product.m == 1 || product.n == 1)) return dot(product);
  if (in_place && few_columns) return direct_transposed(product);
  const bool small = product.work() <= kDirectWork || product.k <= kShortDepth;
  if (in_place && (few_rows || (small && (has_whole_rows(product) || product.n * product.k <= kSlabElements))))
    return direct(product, product.n * product.k * int64_t(sizeof(T)) > kCachedBytes);
  packed(product);
}

// A long k over few outputs: partial products of fixed chunks of k, added in order.
template <class T>
void multiply_split(const Product<T>& product) {
  const int64_t depth = max(kSplitDepth, ceil_div(product.k, kSplitChunks)), chunks = ceil_div(product.k, depth);
  const int64_t outputs = product.m * product.n;
  T* partials = static_cast<T*>(thread_scratch(Scratch::GemmPartials, size_t(chunks * outputs) * sizeof(T)));
  parallel_for(chunks, max(1, kTaskWork / (depth * outputs)), [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      Product<T> part = product;
      part.a.data = product.a.at(0, chunk * depth);
      part.b.data = product.b.at(0, chunk * depth);
      part.k = min(depth, product.k - chunk * depth);
      part.out = {partials + chunk * outputs, product.n, T(1), false, nullptr, nullptr, nullptr, Activation::None};
      multiply_whole(part);
    }
  });
  for (int64_t i = 0; i < product.m; ++i)
    for (int64_t j = 0; j < product.n; ++j) {
      T sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * outputs + i * product.n + j];
      product.out.put_one(sum, i, j);
    }
}

template <class T>
void multiply(const Product<T>& product) {
  if (product.k >= 2 * kSplitDepth && product.m * product.n <= kSplitOutputs) return multiply_split(product);
  if (product.k > 0) return multiply_whole(product);
  for (int64_t i = 0; i < product.m; ++i)
    for (int64_t j = 0; j < product.n; ++j) product.out.put_one(T(0), i, j);
}

template <class T>
Product<T> make_product(const GemmArgs& args, const GemmItem& item, const Destination<T>& out) {
  // Strides along a dimension of size one mean nothing: they count as adjacent.
  return {args.m,
          args.n,
          args.k,
          {item.a, args.dtype, args.a_row, args.k == 1 ? 1 : args.a_column},
          {item.b, args.dtype, args.n == 1 ? 1 : args.b_column, args.k == 1 ? 1 : args.b_row},
          out};
}

template <class T>
void multiply_item(const GemmArgs& args, const GemmItem& item) {
  const T* bias = static_cast<const T*>(args.bias);
  const T* residual = static_cast<const T*>(args.residual);
  T* c = reinterpret_cast<T*>(item.c);
  multiply(make_product<T>(
      args, item,
      {c, args.c_row, T(args.alpha), args.accumulate, args.bias_kind == GemmBias::PerRow ? bias : nullptr,
       args.bias_kind == GemmBias::PerColumn ? bias : nullptr,
       residual ? residual + (c - static_cast<const T*>(args.c)) : nullptr, args.activation}));
}

// A 16-bit C: the sums are made in float32, and rounded once.
void multiply_rounded(const GemmArgs& args, const GemmItem& item) {
  float* sums = static_cast<float*>(thread_scratch(Scratch::GemmSums, size_t(args.m * args.n) * sizeof(float)));
  multiply(make_product<float>(args, item,
                               {sums, args.n, float(args.alpha), false, nullptr, nullptr, nullptr, Activation::None}));
  const int64_t size = int64_t(item_size(args.c_dtype));
  const char* bias = static_cast<const char*>(args.bias);
  parallel_for(args.m, max(1, (1 << 16) / args.n), [&](int64_t begin, int64_t end) {
    float addend[kCastRun];
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < args.n; j += kCastRun) {
        const int64_t run = min(kCastRun, args.n - j);
        float* row = sums + i * args.n + j;
        char* target = item.c + (i * args.c_row + j) * size;
        const auto add = [&](const char* source, int64_t stride) {
          FASTNN_LEVEL::load_row(addend, source, args.c_dtype, stride, run);
          for (int64_t e = 0; e < run; ++e) row[e] += addend[e];
        };
        if (args.accumulate) add(target, 1);
        if (args.bias_kind == GemmBias::PerRow) add(bias + i * size, 0);
        if (args.bias_kind == GemmBias::PerColumn) add(bias + j * size, 1);
        if (args.residual) add(static_cast<const char*>(args.residual) + (target - static_cast<char*>(args.c)), 1);
        activate_row(args.activation, row, run);
        FASTNN_LEVEL::store_row(target, args.c_dtype, 1, row, run);
      }
  });
}

void multiply_any(const GemmArgs& args, const GemmItem& item) {
  if (is_reduced_float(args.c_dtype)) {
    multiply_rounded(args, item);
  } else if (args.c_dtype == DType::Float64) {
    multiply_item<double>(args, item);
  } else {
    multiply_item<float>(args, item);
  }
}

}  // namespace

namespace FASTNN_LEVEL {

#ifdef FASTNN_AMX
void gemm_vectors(const GemmArgs& args, const GemmItem& item) { multiply_any(args, item); }
#endif

void gemm(const GemmArgs& args) {
  const int64_t batch = gemm_batch_size(args);
  if (args.m == 0 || args.n == 0 || batch == 0) return;
#ifdef FASTNN_AMX
  const bool has_tiles = cpu_level() == CpuLevel::Amx;
  const bool skinny = has_tiles && amx::gemm_skinny_suits(args), tiles = has_tiles && amx::gemm_suits(args);
#endif
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const GemmItem item = gemm_item(args, index);
#ifdef FASTNN_AMX
      if (skinny || tiles) {
        skinny ? amx::gemm_skinny(args, item) : amx::gemm(args, item);
        continue;
      }
#endif
      multiply_any(args, item);
    }
  };
  const int64_t work = max(1, args.m * args.n * args.k);
  if (batch > 1 && work <= kItemWork) {
    parallel_for(batch, max(1, kTaskWork / work), run);
  } else {
    run(0, batch);
  }
}

void gemm_outer_tile(const OuterTile<float>& tile, float* block) { run_outer_tile(tile, block, Tile<float>::kColumns); }
void gemm_outer_tile(const OuterTile<double>& tile, double* block) {
  run_outer_tile(tile, block, Tile<double>::kColumns);
}
void gemm_dot_tile(const DotTile<float>& tile, float* block) { dot_tile<float>(tile, block); }
void gemm_dot_tile(const DotTile<double>& tile, double* block) { dot_tile<double>(tile, block); }

}  // namespace FASTNN_LEVEL
}  // namespace fastnn
