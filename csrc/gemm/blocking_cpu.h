// The block sizes of the matrix engine on vectors, and the arithmetic behind them: they stand here, and nowhere else.
// (The size of the register tile is in gemm/tile.h, those of the engine on AMX tiles head gemm_amx.cpp and
// skinny_amx.cpp.) Figures are of float32 on AVX-512: a first-level cache of 48 KiB, a second-level one of 2 MiB, which
// gives 48 bytes a cycle, and a third-level one, which gives a core some 8.
//
// The five loops, from outside:
//
//   for each slab of B's columns                  \ a slab of 2304 x 2048 elements, 18 MiB, packed once by all threads:
//     for each slab of k                          /  it stays in the third-level cache, or in memory
//       for each block of A's rows, strip of B's columns          parallel
//         for each piece of k, kPackedDepth deep
//           pack 280 rows of A: 420 KiB stay in the second-level cache
//           for each panel of B, 32 columns x 384: 48 KiB, read once into the first-level cache
//             for each panel of A, 14 rows x 384: 21 KiB from the second-level cache
//               14 x 32 sums in 28 registers: per step of k 2 loads, 14 broadcasts, 28 multiply-adds in 14 cycles
//
// A panel of A comes in at 56 bytes per 14 cycles, 4 a cycle. A panel of B is used for 280 rows, 20 tiles of
// 14 x 384 cycles: 0.5 bytes a cycle, of which the third level has plenty. C is read and written once per piece of k:
// 3.5 KiB in a tile's 5376 cycles. Packing a block of A takes some 2 cycles for each 14 elements, and pays over a strip
// of 1024 columns, 32 tiles.
#pragma once

#include <cstdint>

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------ the five loops

template <class T>
constexpr int64_t kPackedDepth = sizeof(T) == 4 ? 384 : 256;  // of a piece of k
constexpr int64_t kBlockRows = 280;                           // of A: 20 tiles
constexpr int64_t kStripColumns = 1024;                       // a strip of B this wide pays for packing A again
constexpr int64_t kSlabDepth = 6 * 384;                       // of B
constexpr int64_t kSlabElements = kSlabDepth * 2048;
constexpr int64_t kPackedPanels = 4;  // of B in a packing task, at least: a row of them is 512 bytes

// -------------------------------------------------------------------- which way, and what pays
// Work is counted in multiply-adds.

constexpr int64_t kTaskWork = int64_t(1) << 20;            // pays for a task
constexpr int64_t kSerialWork = int64_t(1) << 19;          // less does not pay for a second thread
constexpr int64_t kTwofoldWork = int64_t(1) << 22;         // less does not pay for packing together
constexpr int64_t kDirectWork = int64_t(256) * 256 * 256;  // up to here packing does not pay
constexpr int64_t kStreamWork = int64_t(1) << 15;          // pays for a task that waits for memory
constexpr int64_t kItemWork = int64_t(1) << 26;            // larger products of a batch are parallel in themselves
constexpr int64_t kTasks = 8;                              // wanted of a blocked product, at least

constexpr int64_t kDotRows = 8, kDotColumns = 4;    // few rows or columns: the other operand is read once
constexpr int64_t kLeastDot = 16;                   // of k: below, most of a sum's lanes idle, and packing is faster
constexpr int64_t kShortDepth = 32;                 // of k: up to here the time goes into C
constexpr int64_t kRepackedRows = 256;              // of C, which pay for packing B all the same
constexpr int64_t kDirectDepth = 256;               // piece of k of operands in place
constexpr int64_t kCachedBytes = int64_t(1) << 20;  // of B; beyond, it is prefetched into the second-level cache

constexpr int64_t kSplitOutputs = 16384, kSplitDepth = 4096, kSplitChunks = 256;  // when k is split, and how
constexpr int64_t kCastRun = 512;                                                 // elements rounded at a time

}  // namespace
}  // namespace fastnn
