// The matrix engine on AMX tiles (tile_amx.h).
//
// A slab of B (kSlabPanels panels of columns, kSlabSteps steps of k) is packed by all threads, or by each of two where
// the product is small. Then blocks of A's rows times strips of the slab are the parallel tasks:
//
//   pack the block's rows of A                       they stay in the second-level cache
//   for each panel of 32 columns of B                read once, from the third-level cache, fetched ahead
//     for each chunk of k (kChunkSteps)              B's chunk stays in the first-level cache
//       for each panel of 32 rows of A
//         32 x 32 sums in tile registers
//
// A step of bfloat16 is 4 products (64 cycles) and 4 tile loads; while B's half of them hit the first-level cache, and
// the chunk of 16 KiB leaves room for A's, the second gives 32 bytes a cycle for A. An element of B is used for as
// many rows as a block has: at 256 of them, 2 bytes of B feed 512 operations, so that 1.5 TFLOP/s read 6 GB/s of the
// 28 that a core gets from the third level. Float32 makes 24 products per 14 loads.
//
// Where a 16-bit C keeps k whole and it is too long for a block, the block takes it piece by piece, and the sums of a
// strip wait in memory. Regions whose float32 parts would not be exact (pack_amx.h) take the vector engine.
#include "gemm/gemm_amx.h"

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/store_amx.h"
#include "simd/integer.h"

namespace fastnn {
namespace {

constexpr int64_t kSlabSteps = 32;                 // 1024 of k
constexpr int64_t kSlabPanels = 128;               // 4096 columns: 24 MiB of float32 parts
constexpr int64_t kNearBytes = int64_t(1) << 20;   // of B, packed: stays in the second-level cache too
constexpr int64_t kRowsBytes = int64_t(5) << 18;   // of A, packed: five eighths of the second-level cache
constexpr int64_t kBlockPanels = 8;                // of A in a block, at most; with 12 a panel of B has too little room
constexpr int64_t kLeastPanels = 4;                // of A in a block, or its k is cut
constexpr int64_t kFarBlocks = 4;                  // of A, wanted where B is read from the third-level cache
constexpr int64_t kStripPanels = 48;               // of B that pay for packing A
constexpr int64_t kNarrowPanels = 12;              // where A is a single block: the work has to be shared
constexpr int64_t kTasks = 8;                      // wanted, at least
constexpr int64_t kManyRows = 256;                 // of A: fewer make few blocks, which two threads share badly,
constexpr int64_t kFewRowsWork = 152 * 152 * 152;  // so that with less work vectors are faster
constexpr int64_t kStretchTasks = 1024;            // then those whose parts were not exact
constexpr int64_t kPackPanels = 8;                 // packed together: rows are read 256 columns at a time
template <int P>
constexpr int64_t kChunkSteps = P == 1 ? 8 : 16;

struct Problem {
  int64_t m, n, k;
  PackSource a, b;
  TileOutput out;
  char* packed_b;  // all slabs of B, or null
};

// A packed part of an operand: panel p at data + p * panel_bytes.
struct PackedSlab {
  const char* data;
  int64_t outer, count;  // rows or columns
  int64_t steps, panel_bytes;
  PartRange range;

  int64_t panels() const { return ceil_div(count, kBlock); }
};

template <int P>
int64_t slab_bytes(int64_t count, int64_t depth) {
  const int64_t panels = ceil_div(count, kBlock);
  return panels * ceil_div(depth, kStepK) * P * kBlockBytes + ceil_div(panels * int64_t(sizeof(PartRange)), 64) * 64;
}

// The ranges of the panels stand behind them.
template <int P>
PackedSlab pack_slab(const PackSource& source, int64_t outer, int64_t count, int64_t k, int64_t depth, TileForm form,
                     char* memory) {
  PackedSlab slab{memory, outer, count, ceil_div(depth, kStepK), 0, {}};
  slab.panel_bytes = slab.steps * P * kBlockBytes;
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + slab.panels() * slab.panel_bytes);
  const int64_t group = min(kPackPanels, max(1, kPackGrain / (kBlock * depth))),
                n_groups = ceil_div(slab.panels(), group);
  parallel_for(n_groups, max(1, kPackGrain / (group * kBlock * depth)), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * group * kBlock;
      ranges[g] = pack_panels<P>(source, outer + first, min(group * kBlock, count - first), k, depth,
                                 {memory + g * group * slab.panel_bytes, slab.panel_bytes, form});
    }
  });
  for (int64_t g = 0; g < n_groups; ++g) slab.range.add(ranges[g]);
  ranges[0] = slab.range;
  return slab;
}

// What pack_slab made.
template <int P>
PackedSlab view_slab(int64_t outer, int64_t count, int64_t depth, char* memory) {
  PackedSlab slab{memory, outer, count, ceil_div(depth, kStepK), 0, {}};
  slab.panel_bytes = slab.steps * P * kBlockBytes;
  slab.range = *reinterpret_cast<const PartRange*>(memory + slab.panels() * slab.panel_bytes);
  return slab;
}

// A part of C: rows of A times columns of B.
struct Region {
  int64_t row, rows, column, columns;
};

// How a slab's part of C is cut into tasks: blocks of row panels times strips of column panels.
struct Tiling {
  int64_t block_panels, blocks, strip_panels, strips;
  int64_t grain;        // tasks of one thread at a time
  bool twofold;         // of which there are two
  int64_t piece_steps;  // of k whose rows of A are packed at a time
};

template <int P>
Tiling make_tiling(int64_t row_panels, int64_t column_panels, int64_t steps) {
  constexpr int64_t kStepBytes = P * kBlockBytes;
  const int64_t work = tile_work(row_panels, column_panels, steps, P);
  const bool serial = work < kSerialWork, twofold = work < kTwofoldWork;
  const int64_t tasks = serial ? 1 : twofold ? 2 : min(kTasks, work / kTaskProducts);
  const int64_t whole = kRowsBytes / (steps * kStepBytes);  // panels of which all of k is held
  const bool near = column_panels * steps * kStepBytes <= kNearBytes;
  Tiling tiling;
  const int64_t limit = whole >= kLeastPanels ? min(whole, kBlockPanels) : kBlockPanels;
  tiling.block_panels =
      even_piece(row_panels, min(limit, max(near ? 1 : kLeastPanels, ceil_div(row_panels, near ? tasks : kFarBlocks))));
  tiling.blocks = ceil_div(row_panels, tiling.block_panels);
  const int64_t least = tiling.blocks == 1 ? kNarrowPanels : kStripPanels;
  const int64_t strips = max(1, min(ceil_div(tasks, tiling.blocks), column_panels / least));
  tiling.strip_panels = even_piece(column_panels, ceil_div(column_panels, strips));
  tiling.strips = ceil_div(column_panels, tiling.strip_panels);
  const int64_t all = tiling.blocks * tiling.strips;
  tiling.grain = twofold ? ceil_div(all, tasks) : max(1, kTaskProducts * all / work);
  tiling.twofold = twofold;
  tiling.piece_steps = even_piece(steps, max(1, kRowsBytes / (tiling.block_panels * kStepBytes)));
  return tiling;
}

// A's rows of one region, a piece of k at a time, times the slab of B. False, and nothing stored, where the parts are
// not exact.
template <int P>
bool multiply_region(const Problem& problem, const PackedSlab& b, int64_t k, int64_t depth, const Region& region,
                     int64_t piece_steps, const TileOutput& out) {
  constexpr int64_t kStepBytes = P * kBlockBytes, kChunk = kChunkSteps<P>;
  const int64_t row_panels = ceil_div(region.rows, kBlock), column_panels = ceil_div(region.columns, kBlock);
  const int64_t pieces = ceil_div(b.steps, piece_steps), held_panels = pieces == 1 ? 1 : column_panels;
  const int64_t a_bytes = row_panels * piece_steps * kStepBytes;
  char* memory = static_cast<char*>(thread_scratch(
      Scratch::GemmA, size_t(a_bytes + row_panels * held_panels * kSumsPerBlock * int64_t(sizeof(float)))));
  float* sums = reinterpret_cast<float*>(memory + a_bytes);
  int64_t steps[kChunk];
  for (int64_t s = 0; s < kChunk; ++s) steps[s] = s * kStepBytes;
  PartRange range;
  for (int64_t piece = 0; piece < b.steps; piece += piece_steps) {
    const int64_t n_steps = min(piece_steps, b.steps - piece), panel_bytes = n_steps * kStepBytes;
    const bool last_piece = piece + n_steps == b.steps;
    range.add(pack_panels<P>(problem.a, region.row, region.rows, k + piece * kStepK,
                             min(n_steps * kStepK, depth - piece * kStepK), {memory, panel_bytes, TileForm::Rows}));
    if (P > 1 && last_piece && !parts_are_exact(range, b.range)) return false;
    const TileScope tiles;
    for (int64_t j = 0; j < column_panels; ++j) {
      const int64_t column = region.column + j * kBlock;
      const char* panel = b.data + (column - b.outer) / kBlock * b.panel_bytes + piece * kStepBytes;
      float* panel_sums = sums + (pieces == 1 ? 0 : j * row_panels * kSumsPerBlock);
      for (int64_t s = 0; s < n_steps; s += kChunk) {
        const int64_t chunk = min(kChunk, n_steps - s);
        // Meanwhile the next chunk, or the next panel's first one, comes from the third-level cache.
        const bool panel_ends = s + chunk == n_steps, last = last_piece && panel_ends;
        const char* next = panel_ends ? panel + b.panel_bytes : panel + (s + chunk) * kStepBytes;
        const int64_t lines = panel_ends && j + 1 == column_panels ? 0 : chunk * kStepBytes / 64,
                      share = ceil_div(lines, row_panels);
        for (int64_t i = 0; i < row_panels; ++i) {
          float* block = panel_sums + i * kSumsPerBlock;
          const int64_t rows = min(kBlock, region.rows - i * kBlock),
                        columns = min(kBlock, region.columns - j * kBlock);
          tile_block<P>({memory + i * panel_bytes + s * kStepBytes, steps, 64, kTileBytes, kBlockBytes},
                        {panel + s * kStepBytes, steps, 64, kTileBytes, kBlockBytes}, 0, chunk, rows > 16, columns > 16,
                        block, piece + s == 0, TileAhead{next + i * share * 64, max(0, min(share, lines - i * share))});
          if (last) store_blocks(out, block, region.row + i * kBlock, column, rows, columns);
        }
      }
    }
  }
  return true;
}

// The same part of the product on the vector engine.
void multiply_vectors(const Problem& problem, const Region& region, int64_t k, int64_t depth, const TileOutput& out) {
  GemmArgs args{};
  args.m = region.rows, args.n = region.columns, args.k = depth;
  args.a_row = problem.a.outer_stride, args.a_column = problem.a.depth_stride;
  args.b_row = problem.b.depth_stride, args.b_column = problem.b.outer_stride;
  args.c_row = out.c_row;
  args.dtype = problem.a.dtype, args.c_dtype = out.dtype;
  args.alpha = out.alpha;
  args.accumulate = out.accumulate;
  args.activation = out.activation;
  args.bias_kind = out.row_bias ? GemmBias::PerRow : out.column_bias ? GemmBias::PerColumn : GemmBias::None;
  const int64_t size = out.size(), first = (region.row * out.c_row + region.column) * size;
  if (out.row_bias) args.bias = out.row_bias + region.row * size;
  if (out.column_bias) args.bias = out.column_bias + region.column * size;
  if (out.residual) args.residual = out.residual + first;
  args.c = out.c + first;
  avx512::gemm_vectors(args, {problem.a.at(region.row, k), problem.b.at(region.column, k), out.c + first});
}

// What C held comes in with the first slab of k, what follows the product with the last.
TileOutput slab_output(const Problem& problem, int64_t k, int64_t depth) {
  TileOutput out = problem.out;
  if (k > 0) out.accumulate = true;
  if (k + depth < problem.k) {
    out.row_bias = out.column_bias = out.residual = nullptr;
    out.activation = Activation::None;
  }
  return out;
}

constexpr int64_t kSlabOuter = kSlabPanels * kBlock;

// A 16-bit C cannot hold partial sums: there k stays whole.
int64_t slab_depth(const Problem& problem) {
  const int64_t depth = problem.out.dtype == DType::Float32 ? even_piece(problem.k, kSlabSteps * kStepK) : problem.k;
  return ceil_div(depth, kStepK) * kStepK;
}

// Calls body(column, count, k, depth) for the slabs of B.
template <class Body>
void for_each_slab(const Problem& problem, const Body& body) {
  const int64_t unit = slab_depth(problem);
  for (int64_t column = 0; column < problem.n; column += kSlabOuter)
    for (int64_t k = 0; k < problem.k; k += unit)
      body(column, min(kSlabOuter, problem.n - column), k, min(unit, problem.k - k));
}

template <int P>
int64_t packed_bytes(const Problem& problem) {
  int64_t bytes = 0;
  for_each_slab(problem, [&](int64_t, int64_t count, int64_t, int64_t depth) { bytes += slab_bytes<P>(count, depth); });
  return bytes;
}

template <int P>
void pack_b(const Problem& problem) {
  char* memory = problem.packed_b;
  for_each_slab(problem, [&](int64_t column, int64_t count, int64_t k, int64_t depth) {
    pack_slab<P>(problem.b, column, count, k, depth, TileForm::Pairs, memory);
    memory += slab_bytes<P>(count, depth);
  });
}

// One slab of B times all of A, in stretches of rows. The vector engine uses the memory that B is packed in, so it
// takes its regions after a stretch, and B is packed anew for the next.
template <int P>
void multiply_slab(const Problem& problem, char* packed, int64_t column, int64_t count, int64_t k, int64_t depth) {
  const TileOutput out = slab_output(problem, k, depth);
  const Tiling tiling = make_tiling<P>(ceil_div(problem.m, kBlock), ceil_div(count, kBlock), ceil_div(depth, kStepK));
  const int64_t block = tiling.block_panels * kBlock, strip = tiling.strip_panels * kBlock;
  const int64_t stretch = max(1, kStretchTasks / tiling.strips);
  for (int64_t first = 0; first < tiling.blocks; first += stretch) {
    const auto pack = [&] {
      return pack_slab<P>(problem.b, column, count, k, depth, TileForm::Pairs,
                          static_cast<char*>(thread_scratch(Scratch::GemmB, size_t(slab_bytes<P>(count, depth)))));
    };
    const bool twofold = tiling.twofold && !packed;
    const PackedSlab shared = packed ? view_slab<P>(column, count, depth, packed) : twofold ? PackedSlab{} : pack();
    PackedTwofold<PackedSlab> own;
    const auto region = [&](int64_t task) {
      const int64_t row = (first + task / tiling.strips) * block, offset = task % tiling.strips * strip;
      return Region{row, min(block, problem.m - row), column + offset, min(strip, count - offset)};
    };
    const int64_t tasks = min(stretch, tiling.blocks - first) * tiling.strips;
    bool exact[kStretchTasks];
    parallel_for(tasks, tiling.grain, [&](int64_t begin, int64_t end) {
      const PackedSlab b = twofold ? own.get(begin / tiling.grain, pack) : shared;
      for (int64_t task = begin; task < end; ++task)
        exact[task] = multiply_region<P>(problem, b, k, depth, region(task), tiling.piece_steps, out);
    });
    for (int64_t task = 0; task < tasks; ++task)
      if (!exact[task]) multiply_vectors(problem, region(task), k, depth, out);
  }
}

template <int P>
void multiply(const Problem& problem) {
  char* packed = problem.packed_b;
  for_each_slab(problem, [&](int64_t column, int64_t count, int64_t k, int64_t depth) {
    multiply_slab<P>(problem, packed, column, count, k, depth);
    if (packed) packed += slab_bytes<P>(count, depth);
  });
}

}  // namespace

namespace amx {

bool gemm_suits(const GemmArgs& args) {
  if (args.dtype == DType::Float64 || args.k < 16 || args.m < 16 || args.n < 16) return false;
  if (vectors_suit(args)) return false;
  if (args.dtype == DType::BFloat16) return true;
  const bool few_rows =
      args.dtype == DType::Float32 && float32_parts == 3 && args.batch_ndim == 0 && args.m < kManyRows;
  return args.m * args.n * args.k >= (few_rows ? kFewRowsWork : least_parts_work(args));
}

}  // namespace amx

namespace {

Problem make_problem(const GemmArgs& args, const GemmItem& item) {
  return {args.m,
          args.n,
          args.k,
          {item.a, args.dtype, args.a_row, args.a_column},
          {item.b, args.dtype, args.b_column, args.b_row},
          tile_output(args, item),
          static_cast<char*>(const_cast<void*>(args.packed_b))};
}

void pack(const GemmPack& request) {
  const GemmArgs& args = *request.gemm;
  *request.bytes = 0;
  if (gemm_batch_size(args) != 1 || amx::gemm_skinny_suits(args) || !amx::gemm_suits(args)) return;
  Problem problem = make_problem(
      args, {static_cast<const char*>(args.a), static_cast<const char*>(args.b), static_cast<char*>(args.c)});
  problem.packed_b = static_cast<char*>(request.target);
  const int parts = parts_of(args.dtype);
  *request.bytes = parts == 1   ? packed_bytes<1>(problem)
                   : parts == 2 ? packed_bytes<2>(problem)
                                : packed_bytes<3>(problem);
  if (request.target) (parts == 1 ? pack_b<1> : parts == 2 ? pack_b<2> : pack_b<3>)(problem);
}

}  // namespace

FASTNN_AMX_KERNEL(gemm_pack, pack)

namespace amx {

void gemm(const GemmArgs& args, const GemmItem& item) {
  const Problem problem = make_problem(args, item);
  switch (parts_of(args.dtype)) {
    case 1: return multiply<1>(problem);
    case 2: return multiply<2>(problem);
    default: return multiply<3>(problem);
  }
}

}  // namespace amx
}  // namespace fastnn
