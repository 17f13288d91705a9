// The matrix engine on AMX tiles (tile_amx.h).
//
// C is cut into regions (region_amx.h), the parallel tasks: blocks of one operand, held in the second-level cache,
// times strips of the other, streamed through the first-level cache. Which is which:
//
//   A held, B packed beside the products       few rows of A
//   B held, A packed beside the products       A's k is adjacent, and its rows are not many
//   A held, B packed before, by all threads    the rest, and a B that the caller has packed
//
// Beside the products an operand is packed anew for each block held, and nothing is written to memory; but where
// float32 is cut into parts that is slower than to do it once. An element that is read is used for as many rows or
// columns as a block holds: at 256 of them, 2 bytes feed 512 operations, so that 1.5 TFLOP/s read 6 GB/s of the 28 that
// a core gets from the third-level cache.
//
// A slab of B is kSlabPanels panels of columns, kSlabSteps steps of k; a float32 C takes the sums of one slab after the
// other. Where a 16-bit C keeps k whole and it is too long to be held, a region takes it piece by piece, and the sums
// of a strip wait in memory. Blocks whose float32 parts would not be exact (pack_amx.h) take the vector engine.
#include "gemm/gemm_amx.h"

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/region_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kSlabSteps = 32;                // 1024 of k
constexpr int64_t kHeldBytes = int64_t(5) << 18;  // packed: five eighths of the second-level cache
constexpr int64_t kLeastPanels = 4;               // held, or k is cut
constexpr int64_t kStripPanels = 32;              // streamed that pay for packing what is held
constexpr int64_t kTasks = 8;                     // wanted
constexpr int64_t kSharedWork = 120 * 120 * 120;  // of few rows; with less, and with few columns, vectors are faster
constexpr int64_t kUnsharedWork = 208 * 208 * 208;
constexpr int64_t kFewRows = 256;  // of an A that is held, B packed beside
template <int P>
constexpr int64_t kHeldBRows = P == 1 ? 1024 : 512;  // of an A that is packed beside
constexpr int64_t kPackPanels = 8;                   // packed together: rows are read 256 columns at a time

struct Problem {
  int64_t m, n, k;
  PackSource a, b;
  TileOutput out;
  char* packed_b;  // all slabs of B, or null
};

template <int P>
int64_t slab_bytes(int64_t count, int64_t depth) {
  const int64_t panels = ceil_div(count, kBlock);
  return panels * ceil_div(depth, kStepK) * P * kBlockBytes + ceil_div(panels * int64_t(sizeof(PartRange)), 64) * 64;
}

// The ranges of the panels stand behind them.
template <int P>
PackedSlab pack_slab(const PackSource& source, int64_t outer, int64_t count, int64_t k, int64_t depth, char* memory) {
  PackedSlab slab{memory, outer, count, ceil_div(depth, kStepK), 0, {}};
  slab.panel_bytes = slab.steps * P * kBlockBytes;
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + slab.panels() * slab.panel_bytes);
  const int64_t group = min(kPackPanels, max(1, kPackGrain / (kBlock * depth))),
                n_groups = ceil_div(slab.panels(), group);
  parallel_for(n_groups, max(1, kPackGrain / (group * kBlock * depth)), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * group * kBlock;
      ranges[g] = pack_panels<P>(source, outer + first, min(group * kBlock, count - first), k, depth,
                                 {memory + g * group * slab.panel_bytes, slab.panel_bytes, TileForm::Pairs});
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

// How a slab's part of C is cut into tasks: blocks of panels held times strips of panels streamed, both nearly equal.
struct Tiling {
  int64_t blocks, strips;
  int64_t grain;        // tasks of one thread at a time
  int64_t piece_steps;  // of k, held at a time
};

template <int P, bool kHeldA>
Tiling make_tiling(int64_t held, int64_t streamed, int64_t steps) {
  constexpr int64_t kStepBytes = P * kBlockBytes;
  const int64_t work = tile_work(held, streamed, steps, P);
  const int64_t tasks = work < kSerialWork ? 1 : work < kTwofoldWork ? 2 : min(kTasks, work / kTaskProducts);
  const int64_t whole = kHeldBytes / (steps * kStepBytes);  // panels of which all of k is held
  Tiling tiling;
  tiling.blocks = ceil_div(held, whole >= kLeastPanels ? min(whole, kRegionPanels<kHeldA>) : kRegionPanels<kHeldA>);
  if (tiling.blocks > 1 || (tasks > 1 && held >= 2 * kLeastPanels)) tiling.blocks = round_up(tiling.blocks, 2);
  const int64_t least = tiling.blocks == 1 ? kLeastPanels : kStripPanels;
  tiling.strips = max(ceil_div(streamed, kSlabPanels), min(ceil_div(tasks, tiling.blocks), streamed / least));
  const int64_t all = tiling.blocks * tiling.strips;
  tiling.grain = max(1, tasks == 1 ? all : kTaskProducts * all / work);
  tiling.piece_steps = even_piece(steps, max(1, kHeldBytes / (ceil_div(held, tiling.blocks) * kStepBytes)));
  return tiling;
}

// Panels [n * i / pieces, n * (i + 1) / pieces) of an operand's `count` rows or columns from `outer` on.
Strip strip_of(const PackSource& source, int64_t outer, int64_t count, int64_t i, int64_t pieces) {
  const int64_t panels = ceil_div(count, kBlock), begin = panels * i / pieces * kBlock;
  return {source, outer + begin, min(panels * (i + 1) / pieces * kBlock, count) - begin};
}

// A part of the product on the vector engine.
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
    pack_slab<P>(problem.b, column, count, k, depth, memory);
    memory += slab_bytes<P>(count, depth);
  });
}

// One slab of B times all of A. kHeldA: whether A is held, and not B. `packed`: the slab, or null.
template <int P, bool kHeldA>
void multiply_slab(const Problem& problem, const PackedSlab* packed, int64_t column, int64_t count, int64_t k,
                   int64_t depth) {
  const TileOutput out = slab_output(problem, k, depth);
  const int64_t rows = ceil_div(problem.m, kBlock), columns = ceil_div(count, kBlock);
  const Tiling tiling =
      make_tiling<P, kHeldA>(kHeldA ? rows : columns, kHeldA ? columns : rows, ceil_div(depth, kStepK));
  parallel_for(tiling.blocks * tiling.strips, tiling.grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / tiling.strips, strip = task % tiling.strips;
      const Strip a = strip_of(problem.a, 0, problem.m, kHeldA ? block : strip, kHeldA ? tiling.blocks : tiling.strips);
      const Strip b =
          strip_of(problem.b, column, count, kHeldA ? strip : block, kHeldA ? tiling.strips : tiling.blocks);
      RegionProduct<P, kHeldA> product(kHeldA ? a : b, kHeldA ? b : a, packed, k, depth, tiling.piece_steps, out);
      product.run();
      product.for_each_inexact([&](const Region& region) { multiply_vectors(problem, region, k, depth, out); });
    }
  });
}

// While a region is left to the vector engine, others read the slab: it lies in memory that the engine uses for 16-bit
// results only, whose B is never shared unless its parts are always exact.
template <int P>
void multiply_slab(const Problem& problem, char* packed, int64_t column, int64_t count, int64_t k, int64_t depth) {
  const bool along = problem.a.depth_stride == 1, shared = P == 1 || problem.out.dtype == DType::Float32;
  const int64_t held_rows = !shared && !along ? problem.m : P == 1 && along ? 0 : along ? kFewRows / 2 : kFewRows;
  if (!packed && problem.m <= held_rows) return multiply_slab<P, true>(problem, nullptr, column, count, k, depth);
  if (!packed && along && (!shared || problem.m <= kHeldBRows<P>))
    return multiply_slab<P, false>(problem, nullptr, column, count, k, depth);
  const PackedSlab slab =
      packed ? view_slab<P>(column, count, depth, packed)
             : pack_slab<P>(problem.b, column, count, k, depth,
                            static_cast<char*>(thread_scratch(Scratch::GemmSums, size_t(slab_bytes<P>(count, depth)))));
  multiply_slab<P, true>(problem, &slab, column, count, k, depth);
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
  const int64_t least = !few_rows ? least_parts_work(args) : args.n >= kSharedColumns ? kSharedWork : kUnsharedWork;
  return args.m * args.n * args.k >= least;
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
