// The matrix engine on AMX tiles (tile_amx.h).
//
// A slab of k (kSlabSteps steps) of A and of B is packed by all threads, then blocks of C are the parallel tasks:
//
//   for each block of up to 512 x 256 of C                       parallel; its sums stay in the second-level cache
//     for each chunk of k (kChunkSteps)                          chunks of A and B come from the third, fetched ahead
//       for each panel of 32 rows of A
//         for each panel of 32 columns of B
//           32 x 32 sums in tile registers
//
// Per step and pair of panels that is 24 products of 16 cycles per 14 tile loads for float32. Per unit of k a block
// reads (512 + 256) * 6 bytes for 512 * 256 multiply-adds: 9 GB/s at 500 GFLOP/s, a third of what the third level
// gives. The block sizes are kBlockPanels (columns; rows take twice as many), the chunk kChunkSteps.
//
// Float32 operands whose parts would not be exact (pack_amx.h) take the vector engine, slab by slab.
#include "gemm/gemm_amx.h"

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/store_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kSlabSteps = 32;                // 1024 of k
constexpr int64_t kSlabPanels = 128;              // 4096 rows or columns: 24 MiB of float32 parts
constexpr int64_t kBlockPanels = 8;               // 256 rows or columns
constexpr int64_t kTasks = 8;                     // wanted, at least
constexpr int64_t kTaskProducts = 256;            // of 32 x 32 x 32, 64 cycles each: pay for a task
constexpr int64_t kPackGrain = int64_t(1) << 14;  // elements of a packing task
constexpr int64_t kPackPanels = 8;                // packed together: rows are read 256 columns at a time

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t even_piece(int64_t n, int64_t limit) { return ceil_div(n, ceil_div(n, limit)); }

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

struct Panels {
  int64_t begin, end;
};

// All of k of a slab for one block of C: the sums of panels rows x columns, [row panel][column panel].
template <int P>
void multiply_block(const PackedSlab& a, const PackedSlab& b, Panels rows, Panels columns, float* sums) {
  constexpr int64_t kChunk = kChunkSteps;
  int64_t steps[kChunk];
  for (int64_t s = 0; s < kChunk; ++s) steps[s] = s * P * kBlockBytes;
  const TileScope tiles;
  for (int64_t s = 0; s < a.steps; s += kChunk) {
    const int64_t offset = s * P * kBlockBytes, n_steps = min(kChunk, a.steps - s);
    // Meanwhile the next chunk comes from the third-level cache: of A's panel i the part that is j's, and of B's
    // panel j the part that is i's.
    const int64_t lines = s + kChunk < a.steps ? min(kChunk, a.steps - s - kChunk) * P * kBlockBytes / 64 : 0;
    const int64_t next = offset + kChunk * P * kBlockBytes;
    const int64_t a_lines = ceil_div(lines, columns.end - columns.begin),
                  b_lines = ceil_div(lines, rows.end - rows.begin);
    float* block = sums;
    for (int64_t i = rows.begin; i < rows.end; ++i)
      for (int64_t j = columns.begin; j < columns.end; ++j, block += kSumsPerBlock) {
        const TileAhead ahead{a.data + i * a.panel_bytes + next + (j - columns.begin) * a_lines * 64,
                              b.data + j * b.panel_bytes + next + (i - rows.begin) * b_lines * 64, a_lines, b_lines};
        tile_block<P>({a.data + i * a.panel_bytes + offset, steps, 64, kTileBytes, kBlockBytes},
                      {b.data + j * b.panel_bytes + offset, steps, 64, kTileBytes, kBlockBytes}, 0, n_steps,
                      a.count - i * kBlock > 16, b.count - j * kBlock > 16, block, s == 0, ahead);
      }
  }
}

void store_blocks(const TileOutput& out, const PackedSlab& a, const PackedSlab& b, Panels rows, Panels columns,
                  float* sums) {
  for (int64_t i = rows.begin; i < rows.end; ++i)
    for (int64_t j = columns.begin; j < columns.end; ++j, sums += kSumsPerBlock)
      store_block(out, sums, a.outer + i * kBlock, b.outer + j * kBlock, min(kBlock, a.count - i * kBlock),
                  min(kBlock, b.count - j * kBlock));
}

template <int P>
void multiply_slabs(const PackedSlab& a, const PackedSlab& b, const TileOutput& out) {
  const int64_t products = a.panels() * b.panels() * a.steps * (P * (P + 1) / 2);
  const int64_t wanted = products < kSerialProducts ? 1 : min(kTasks, products / kTaskProducts);
  int64_t row_panels = even_piece(a.panels(), 2 * kBlockPanels), column_panels = even_piece(b.panels(), kBlockPanels);
  const auto tasks = [&] { return ceil_div(a.panels(), row_panels) * ceil_div(b.panels(), column_panels); };
  while (tasks() < wanted && row_panels * column_panels > 1)
    (row_panels > column_panels ? row_panels : column_panels) = ceil_div(max(row_panels, column_panels), 2);
  const int64_t column_blocks = ceil_div(b.panels(), column_panels);
  parallel_for(tasks(), 1, [&](int64_t begin, int64_t end) {
    float* sums = static_cast<float*>(
        thread_scratch(Scratch::GemmA, size_t(row_panels * column_panels * kSumsPerBlock) * sizeof(float)));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / column_blocks * row_panels, j = task % column_blocks * column_panels;
      const Panels rows{i, min(i + row_panels, a.panels())}, columns{j, min(j + column_panels, b.panels())};
      multiply_block<P>(a, b, rows, columns, sums);
      store_blocks(out, a, b, rows, columns, sums);
    }
  });
}

// The same part of the product on the vector engine.
void multiply_vectors(const Problem& problem, const PackedSlab& a, const PackedSlab& b, int64_t k, int64_t depth,
                      const TileOutput& out) {
  GemmArgs args{};
  args.m = a.count, args.n = b.count, args.k = depth;
  args.a_row = problem.a.outer_stride, args.a_column = problem.a.depth_stride;
  args.b_row = problem.b.depth_stride, args.b_column = problem.b.outer_stride;
  args.c_row = out.c_row;
  args.dtype = problem.a.dtype, args.c_dtype = out.dtype;
  args.alpha = out.alpha;
  args.accumulate = out.accumulate;
  args.activation = out.activation;
  args.bias_kind = out.row_bias ? GemmBias::PerRow : out.column_bias ? GemmBias::PerColumn : GemmBias::None;
  const int64_t size = out.size(), first = (a.outer * out.c_row + b.outer) * size;
  if (out.row_bias) args.bias = out.row_bias + a.outer * size;
  if (out.column_bias) args.bias = out.column_bias + b.outer * size;
  if (out.residual) args.residual = out.residual + first;
  args.c = out.c + first;
  avx512::gemm_vectors(args, {problem.a.at(a.outer, k), problem.b.at(b.outer, k), out.c + first});
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

template <int P>
void multiply(const Problem& problem) {
  const int64_t depth_limit = min(problem.k, slab_depth(problem));
  const int64_t a_bytes = slab_bytes<P>(min(problem.m, kSlabOuter), depth_limit);
  const int64_t b_bytes = problem.packed_b ? 0 : slab_bytes<P>(min(problem.n, kSlabOuter), depth_limit);
  char* memory = static_cast<char*>(thread_scratch(Scratch::GemmB, size_t(a_bytes + b_bytes)));
  char* packed = problem.packed_b;
  for_each_slab(problem, [&](int64_t column, int64_t count, int64_t k, int64_t depth) {
    const PackedSlab b = packed ? view_slab<P>(column, count, depth, packed)
                                : pack_slab<P>(problem.b, column, count, k, depth, TileForm::Pairs, memory + a_bytes);
    if (packed) packed += slab_bytes<P>(count, depth);
    const TileOutput out = slab_output(problem, k, depth);
    for (int64_t row = 0; row < problem.m; row += kSlabOuter) {
      const PackedSlab a =
          pack_slab<P>(problem.a, row, min(kSlabOuter, problem.m - row), k, depth, TileForm::Rows, memory);
      if (P == 1 || parts_are_exact(a.range, b.range)) {
        multiply_slabs<P>(a, b, out);
      } else {
        multiply_vectors(problem, a, b, k, depth, out);
      }
    }
  });
}

}  // namespace

namespace amx {

bool gemm_suits(const GemmArgs& args) {
  if (args.dtype == DType::Float64 || args.k < 16 || args.m < 16 || args.n < 16) return false;
  const int64_t work = args.m * args.n * args.k;
  return args.dtype == DType::BFloat16 || work >= int64_t(96) * 96 * 96;
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
