// How a matrix product is cut over the blocks of a GPU, and how its tiles lie in shared memory: index mathematics,
// which a compiler tests without a GPU (tests/test_cuda_host.py).
#pragma once

#include <cstdint>

#include "simd/half.h"

namespace fastnn {

// What a block computes: a tile of one matrix of the batch, over one part of k. Blocks run in the order of their
// numbers, so those at work at the same time share rows of A and columns of B in L2: a group is kGroupRows tiles high.
struct GemmTile {
  int64_t item, row, column;  // `row` and `column` count tiles
  int split;
};

struct GemmGrid {
  int64_t row_tiles, column_tiles, items;
  int splits = 1;            // parts of k, which are summed up afterwards in their order
  int64_t split_k = 0;       // elements of k in each part but the last
  void* partials = nullptr;  // of splits > 1: sums in the accumulators' type, [split][item][m][n]

  FASTNN_HD constexpr int64_t blocks() const { return row_tiles * column_tiles * items * splits; }
  FASTNN_HD constexpr GemmTile at(int64_t block) const {
    constexpr int64_t kGroupRows = 8;
    const int64_t tiles = row_tiles * column_tiles, tile = block % tiles, matrix = block / tiles;
    const int64_t group = tile / (kGroupRows * column_tiles), first = group * kGroupRows;
    const int64_t height = row_tiles - first < kGroupRows ? row_tiles - first : kGroupRows;
    const int64_t within = tile - first * column_tiles;
    return {matrix % items, first + within % height, within / height, int(matrix / items)};
  }
};

// Parts of k that give every multiprocessor a block, each of at least `least_k`; a multiple of `unit` in each.
struct GemmSplit {
  int splits;
  int64_t split_k;
};
FASTNN_HD constexpr GemmSplit split_k_of(int64_t blocks, int64_t k, int64_t unit, int64_t least_k, int64_t processors) {
  int64_t splits = blocks > 0 ? processors / blocks : 1;
  if (splits > k / least_k) splits = k / least_k;
  if (splits <= 1) return {1, k};
  const int64_t split_k = ((k + splits - 1) / splits + unit - 1) / unit * unit;
  return {int((k + split_k - 1) / split_k), split_k};
}

// The tile of a product on Hopper, and how long it takes for one of k, in units of 0.7 clocks (16-bit): half a tile
// takes a tenth more than half as long, because its operands are read for fewer products.
struct WgmmaTile {
  int rows, columns, time;
};
constexpr WgmmaTile kWgmmaTiles[] = {{128, 256, 20}, {128, 128, 11}, {64, 128, 6}};

// That of the least time, in rounds of all multiprocessors. Parts of k, of at least 8 stages of `depth`, cost 8 bytes
// for each of their sums, of which a multiprocessor moves some 30 in a unit of time.
constexpr WgmmaTile wgmma_tile(int64_t m, int64_t n, int64_t items, int64_t k, int64_t depth, int64_t processors) {
  WgmmaTile best{};
  int64_t least = 0;
  for (const WgmmaTile& tile : kWgmmaTiles) {
    const int64_t tiles = ((m + tile.rows - 1) / tile.rows) * ((n + tile.columns - 1) / tile.columns) * items;
    const GemmSplit split = split_k_of(tiles, k, depth, 8 * depth, processors);
    const int64_t rounds = (tiles * split.splits + processors - 1) / processors;
    const int64_t sums = split.splits > 1 ? split.splits * items * m * n : 0;
    const int64_t time = rounds * split.split_k * tile.time + sums / (4 * processors);
    if (best.rows == 0 || time < least) best = tile, least = time;
  }
  return best;
}

// A tile of an operand in shared memory, for tensor cores: rows of 16-byte chunks that are exchanged among themselves,
// so that the eight chunks that are read together lie in different banks.
//
//   along k       `outer` rows (of m or n) of 128 bytes of k;     read by rows of 8, at one chunk
//   across k      rows of k, `outer` elements each;               16-bit: read by 8 rows, at one chunk (transposed)
//                                                                 32-bit: words of 4 rows at two chunks
template <int kItemBytes, int kOuter, bool kAlongK>
struct OperandTile {
  static constexpr int kItems = 16 / kItemBytes;   // of a chunk
  static constexpr int kDepth = 128 / kItemBytes;  // of k
  static constexpr int kRows = kAlongK ? kOuter : kDepth;
  static constexpr int kChunks = (kAlongK ? kDepth : kOuter) / kItems;  // of a row
  static constexpr int kBytes = kOuter * 128;

  FASTNN_HD static constexpr int offset(int row, int chunk) {
    const int exchange = kItemBytes == 4 && !kAlongK ? row % 4 * 2 : row % 8;
    return (row * kChunks + (chunk ^ exchange)) * 16;
  }
};

}  // namespace fastnn
