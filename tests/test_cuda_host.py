"""The parts of the CUDA backend that need no GPU: the allocator of streams, and index mathematics at compile time."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"

in_source_tree = pytest.mark.skipif(not SOURCES.exists(), reason="compiles the C++, and there is none here")


@in_source_tree
def test_the_allocator_of_streams(tmp_path: Path) -> None:
    sources = [ROOT / "tests/stream_allocator.cpp", *(SOURCES / "core").glob("*_allocator.cpp")]
    program = tmp_path / "stream_allocator"
    command = ["c++", "-std=c++17", "-O0", "-I", str(SOURCES), *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


INDEX_CHECKS = """
#include "core/cuda_index.h"
#include "core/divisor.h"
using namespace fastnn;

static_assert(blocks_for(1) == 1 && blocks_for(kBlockThreads) == 1 && blocks_for(kBlockThreads + 1) == 2);
static_assert(blocks_for(int64_t(1) << 40) * kBlockThreads == int64_t(1) << 40);

// Every position against the nested loops it stands for: a transposed and a broadcast operand.
constexpr bool walks_like_loops() {
  const int64_t shape[3] = {2, 3, 5}, transposed[3] = {1, 2, 6}, broadcast[3] = {0, -1, 0};
  int64_t position = 0;
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 3; ++j)
      for (int64_t k = 0; k < 5; ++k, ++position) {
        const int64_t* const strides[2] = {transposed, broadcast};
        const Offsets<2> offsets = strided_offsets(position, 3, shape, strides);
        if (offsets.of[0] != i + 2 * j + 6 * k || offsets.of[1] != -j) return false;
      }
  return true;
}
static_assert(walks_like_loops());

// Beyond 32 bits, and of a number (no dimensions).
constexpr bool is_wide() {
  const int64_t shape[2] = {1 << 20, 1 << 20}, stride[2] = {1 << 20, 1};
  const int64_t* const strides[1] = {stride};
  const int64_t last = (int64_t(1) << 40) - 1;
  return strided_offsets(last, 2, shape, strides).of[0] == last && strided_offsets(0, 0, shape, strides).of[0] == 0;
}
static_assert(is_wide());

// The prepared walk is the same one, in 32 bits where it says so: a transposed, a reversed and a broadcast operand.
constexpr bool walks_alike(int64_t step, bool narrow) {
  const int64_t shape[4] = {2, 3, 5, 7}, transposed[4] = {step, 2, 6, 30}, reversed[4] = {-105, 35, -7, 1};
  const int64_t none[4] = {};
  const int64_t* const strides[3] = {transposed, reversed, none};
  for (int ndim = 0; ndim <= 4; ++ndim) {
    const StridedWalk walk(ndim, shape, strides);
    if (walk.narrow() != (narrow || ndim == 0)) return false;
    int64_t numel = 1;
    for (int axis = 0; axis < ndim; ++axis) numel *= shape[axis];
    for (int64_t position = 0; position < numel; ++position) {
      const Offsets<3> offsets = walk.offsets(position, strides);
      const Offsets<3> expected = strided_offsets(position, ndim, shape, strides);
      for (int k = 0; k < 3; ++k)
        if (offsets.of[k] != expected.of[k]) return false;
      if (walk.offset(position, transposed) != expected.of[0]) return false;
    }
  }
  return true;
}
static_assert(walks_alike(1, true) && walks_alike((int64_t(1) << 31) - 1 - 4 - 24 - 180, true));
static_assert(walks_alike(int64_t(1) << 31, false) && walks_alike(-(int64_t(1) << 40), false));

// Too many positions, strides that overflow 64 bits together, an operand that does not count, and no positions at all.
constexpr bool knows_its_width() {
  const int64_t many[2] = {1 << 16, 1 << 15}, far[2] = {int64_t(1) << 62, int64_t(1) << 62}, none[2] = {};
  const int64_t empty[2] = {3, 0};
  const int64_t* const still[1] = {none};
  const int64_t* const apart[1] = {far};
  const int64_t* const absent[1] = {nullptr};
  return !StridedWalk(2, many, still).narrow() && !StridedWalk(2, many, apart).narrow() &&
         StridedWalk(2, empty, still).narrow() && StridedWalk(1, many, absent).narrow();
}
static_assert(knows_its_width());

// At the edges of a divisor's multiples, the last below 2^31, and beyond 32 bits.
constexpr bool divides(int64_t divisor) {
  const Divisor by(divisor);
  const int64_t most = (int64_t(1) << 31) - 1, many = (int64_t(1) << 62) / divisor * divisor;
  const int64_t last = most / divisor * divisor;
  const int64_t multiples[] = {1, divisor, 7 * divisor, last, most, most + 1, many};
  for (const int64_t multiple : multiples)
    for (int64_t n = multiple - 1; n <= multiple + 1; ++n) {
      if (n < 0) continue;
      const Division division = by.divide(n);
      if (division.quotient != n / divisor || division.rest != n % divisor) return false;
    }
  return true;
}
constexpr bool divides() {
  for (int64_t divisor = 1; divisor < 300; ++divisor)
    if (!divides(divisor) || !divides(divisor * 7919 + 1)) return false;
  for (int shift = 8; shift < 34; ++shift)
    for (int64_t off = -1; off <= 1; ++off)
      if (!divides((int64_t(1) << shift) + off)) return false;
  return true;
}
static_assert(divides());
"""

TILE_CHECKS = """
#include "gemm/tile_cuda.h"
using namespace fastnn;

// Every tile of every matrix and part once, and never more than 8 rows of tiles apart within a group.
constexpr bool visits_all(int64_t rows, int64_t columns, int64_t items, int splits) {
  const GemmGrid grid{rows, columns, items, splits};
  bool seen[256] = {};
  for (int64_t block = 0; block < grid.blocks(); ++block) {
    const GemmTile tile = grid.at(block);
    if (tile.row < 0 || tile.row >= rows || tile.column < 0 || tile.column >= columns) return false;
    if (tile.item < 0 || tile.item >= items || tile.split < 0 || tile.split >= splits) return false;
    bool& mark = seen[((tile.split * items + tile.item) * rows + tile.row) * columns + tile.column];
    if (mark) return false;
    mark = true;
    if (tile.row / 8 != block % (rows * columns) / (8 * columns)) return false;
  }
  return true;
}
static_assert(visits_all(1, 1, 1, 1) && visits_all(3, 5, 2, 3) && visits_all(17, 3, 2, 1) && visits_all(8, 8, 1, 2));

// The parts of k cover it, and begin where a stage does.
constexpr bool covers(int64_t blocks, int64_t k) {
  const GemmSplit split = split_k_of(blocks, k, 64, 256, 132);
  const int64_t last = k - (split.splits - 1) * split.split_k;
  const bool whole_stages = split.splits == 1 || (split.split_k % 64 == 0 && split.split_k >= 256);
  return last > 0 && last <= split.split_k && whole_stages &&
         split.splits * blocks <= (blocks > 132 ? blocks : 132);
}
constexpr bool covers_all() {
  for (int64_t blocks = 1; blocks < 140; ++blocks)
    for (int64_t k = 1; k < 40000; k += 997)
      if (!covers(blocks, k)) return false;
  return true;
}
static_assert(covers_all());

// Tiles fill their memory without overlap, and the 8 chunks that a matrix of ldmatrix is lie in different banks.
template <int kItemBytes, int kOuter, bool kAlongK>
constexpr bool lies_well() {
  using Tile = OperandTile<kItemBytes, kOuter, kAlongK>;
  bool seen[Tile::kBytes / 16] = {};
  for (int row = 0; row < Tile::kRows; ++row)
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      bool& mark = seen[Tile::offset(row, chunk) / 16];
      if (mark) return false;
      mark = true;
    }
  for (int row = 0; row < Tile::kRows; row += 8)
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      unsigned banks = 0;
      if (kItemBytes == 4 && !kAlongK)  // words: 4 rows of 8 elements
        for (int i = 0; i < 8; ++i) banks |= 1u << Tile::offset(row + i % 4, chunk / 2 * 2 + i / 4) / 16 % 8;
      else
        for (int i = 0; i < 8; ++i) banks |= 1u << Tile::offset(row + i, chunk) / 16 % 8;
      if (banks != 255) return false;
    }
  return true;
}
static_assert(lies_well<2, 128, true>() && lies_well<2, 128, false>() && lies_well<2, 64, true>());
static_assert(lies_well<2, 64, false>() && lies_well<4, 128, true>() && lies_well<4, 128, false>());
static_assert(lies_well<4, 64, true>() && lies_well<4, 64, false>());

// The largest tile where there are many, the smallest for few rows and for few tiles.
constexpr bool takes(int64_t m, int64_t n, int64_t k, int rows, int columns) {
  const WgmmaTile tile = wgmma_tile(m, n, 1, k, 64, 132);
  return tile.rows == rows && tile.columns == columns;
}
static_assert(takes(4096, 4096, 4096, 128, 256) && takes(8192, 8192, 8192, 128, 256));
static_assert(takes(2048, 768, 768, 128, 128) && takes(64, 4096, 4096, 64, 128) && takes(512, 512, 512, 64, 128));
"""


@in_source_tree
@pytest.mark.parametrize("checks", [INDEX_CHECKS, TILE_CHECKS], ids=["index", "tile"])
def test_index_mathematics(checks: str, tmp_path: Path) -> None:
    (tmp_path / "index.cpp").write_text(checks)
    command = ["c++", "-std=c++17", "-fsyntax-only", "-I", str(SOURCES), str(tmp_path / "index.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
