// Matrix products on AMX tiles (tile_amx.h) with one operand so small that it stays in the second-level cache.
//
// The other operand is "streamed": read once, where it lies, its k adjacent in memory. It takes the part of A in tile
// products, the "held" operand that of B:
//
//   pack all of the held operand                                  parallel over k
//   for each panel of 32 rows of the streamed operand             parallel
//     for each chunk of k                                         its parts (24 KiB) stay in the first-level cache
//       for each panel of 32 columns of the held operand
//         32 x 32 sums in tile registers
//
// Whole tiles of bfloat16 are multiplied from where they lie. All else is cut into parts and packed one step ahead of
// the products with the first panel held: vector units and tile units work side by side. For float32 a step of
// 32 x 32 elements is some 300 cycles of packing beside 384 of products for each panel held. gemm_amx.cpp would write
// the parts of the streamed operand to memory and read them back, at 1.5 times its own size.
//
// Where B is streamed the problem is C^T = B^T A^T, and blocks of sums are transposed on their way to C.
#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/gemm_amx.h"
#include "gemm/prefetch.h"
#include "gemm/store_amx.h"
#include "simd/integer.h"

namespace fastnn {
namespace {

constexpr int64_t kHeldBytes = int64_t(3) << 19;  // packed: three quarters of the second-level cache
// Less than this is for the vector engine. Tiles pad k to 32 and rows to 16; cutting a float32 into parts costs as
// much as multiplying it by some 10 others there, while bfloat16 is read at the speed of memory for 2 or for 32.
constexpr int64_t kLeastDepth = 16, kLeastRows = 16;
constexpr int64_t kVectorRows = 8;
// Of a held A: with more, transposing the sums of bfloat16 products costs more than packing B.
constexpr int64_t kTransposedRows = 256;

constexpr int64_t kStretchPanels = 128;          // of the streamed operand; then those whose parts were not exact
constexpr int64_t kTableSteps = 64;              // of a chunk, at most
constexpr int64_t kStoredPanels = 4;             // of sums that go to C together
constexpr int64_t kFarBytes = int64_t(1) << 19;  // of a C that is fetched before it is stored, since it is in no cache
template <int P>
constexpr int64_t kPackedSteps = P == 1 ? 16 : 12 / P;  // of a chunk that several panels use: 24 to 32 KiB
// The held operand passes the chunk by. Of three parts products take so long that it may as well displace them.
template <int P>
constexpr Streamed kHeldPasses = P == 1 ? Streamed::B : Streamed::None;

struct SkinnyProduct {
  PackSource streamed, held;
  int64_t n_streamed, n_held, k;
  bool transposed;  // B is streamed
  TileOutput out;
  bool far;  // C is fetched before it is stored, where products take long enough to hide it
};

// All of the held operand: panel j at data + j * panel_bytes.
struct HeldPanels {
  const char* data;
  int64_t panels, panel_bytes;
  PartRange range;
};

template <int P>
int64_t work_of(const SkinnyProduct& product) {
  return tile_work(ceil_div(product.n_streamed, kBlock), ceil_div(product.n_held, kBlock), ceil_div(product.k, kStepK),
                   P);
}

template <int P>
HeldPanels pack_held(const SkinnyProduct& product) {
  const int64_t steps = ceil_div(product.k, kStepK), panels = ceil_div(product.n_held, kBlock);
  const int64_t panel_bytes = steps * P * kBlockBytes;
  const int64_t piece = work_of<P>(product) < kTwofoldWork ? steps : max(1, kPackGrain / (kStepK * kBlock * panels));
  const int64_t pieces = ceil_div(steps, piece);
  char* data = static_cast<char*>(
      thread_scratch(Scratch::GemmB, size_t(panels * panel_bytes + pieces * int64_t(sizeof(PartRange)))));
  PartRange* ranges = reinterpret_cast<PartRange*>(data + panels * panel_bytes);
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t step = i * piece, k = step * kStepK;
      ranges[i] = pack_panels<P>(product.held, 0, product.n_held, k, min(piece * kStepK, product.k - k),
                                 {data + step * P * kBlockBytes, panel_bytes, TileForm::Pairs});
    }
  });
  HeldPanels held{data, panels, panel_bytes, {}};
  for (int64_t i = 0; i < pieces; ++i) held.range.add(ranges[i]);
  return held;
}

// The sums of the held panels from `first` on, `count` of them.
void store_sums(const SkinnyProduct& product, float* sums, int64_t streamed, int64_t first, int64_t count) {
  const int64_t n_streamed = min(kBlock, product.n_streamed - streamed);
  const int64_t held = first * kBlock, n_held = min(count * kBlock, product.n_held - held);
  if (!product.transposed) return store_blocks(product.out, sums, streamed, held, n_streamed, n_held);
  for (int64_t j = 0; j < n_held; j += kBlock, sums += kSumsPerBlock) {
    transpose_block(sums);
    store_blocks(product.out, sums, held + j, streamed, min(kBlock, n_held - j), n_streamed);
  }
}

// A chunk of a panel of the streamed operand on its way to tiles: step s goes to chunk + steps[s].
template <int P, class T>
struct ChunkPacker {
  const char* source;
  int64_t row_bytes, count, depth;
  char* chunk;
  const int64_t* steps;
  RangeLanes* range;

  // Beside the products of a step, the next one is packed.
  void operator()(int64_t step, int64_t n_steps) const {
    if (step + 1 < n_steps) pack(step + 1);
  }
  void pack(int64_t step) const {
    const int64_t rest = depth - step * kStepK;
    if (count == kBlock && rest >= kStepK) return pack_rows(step, kBlock, 0xffff, 0xffff);
    pack_rows(step, count, lane_mask(rest), lane_mask(rest - 16));
  }
  __attribute__((always_inline)) void pack_rows(int64_t step, int64_t rows, __mmask16 low, __mmask16 high) const {
    RangeLanes seen = *range;
    const char* row = source + step * kStepK * int64_t(sizeof(T));
    char* tile = chunk + steps[step];
    __m512i parts[P];
    for (int64_t r = 0; r < kBlock; ++r, row += row_bytes, tile += 64) {
      load_along<P, T>(row, r < rows ? low : 0, r < rows ? high : 0, parts, seen);
      store_parts<P>(tile, kBlockBytes, parts);
    }
    *range = seen;
  }
};

// The lines of C that a panel's sums go to, fetched beside the products of all held panels but the first, beside which
// the streamed one is packed. float32, 96 products of 128x64x128: 1320 to 1420 us without, 1150 to 1250 with.
struct OutputAhead {
  const char* c;
  int64_t row_bytes, line_bytes;  // of which so much is fetched
  StepShare rows;

  OutputAhead(const SkinnyProduct& product, int64_t streamed, int64_t panel, int64_t panels, int64_t steps) {
    const TileOutput& out = product.out;
    const int64_t n_streamed = min(kBlock, product.n_streamed - streamed), others = panels - 1;
    const int64_t count = product.transposed ? product.n_held : n_streamed;
    const int64_t begin = count * (panel - 1) / others, end = count * panel / others;
    row_bytes = out.c_row * out.size();
    line_bytes = (product.transposed ? n_streamed : product.n_held) * out.size();
    c = out.c + (product.transposed ? streamed * out.size() : streamed * row_bytes) + begin * row_bytes;
    rows = StepShare(end - begin, steps);
  }
  void operator()(int64_t step, int64_t) const {
    for (int64_t r = rows.at(step); r < rows.at(step + 1); ++r)
      for (int64_t at = 0; at < line_bytes; at += 64) prefetch_near(c + r * row_bytes + at);
  }
};

// One panel of the streamed operand times all of the held one. False, and nothing stored, where parts are not exact.
template <int P, class T>
bool multiply_panel(const SkinnyProduct& product, const HeldPanels& held, int64_t row, float* sums, char* memory) {
  constexpr int64_t kStepBytes = P * kBlockBytes;
  // Times a single panel, packed steps are used once: two of them take turns in one place.
  const int64_t chunk_steps = held.panels == 1 ? kTableSteps : kPackedSteps<P>,
                places = held.panels == 1 ? 2 : chunk_steps;
  int64_t ready_steps[kTableSteps], packed_steps[kTableSteps], held_steps[kTableSteps];
  for (int64_t s = 0; s < chunk_steps; ++s) {
    ready_steps[s] = s * 64;
    packed_steps[s] = s % places * kStepBytes;
    held_steps[s] = s * kStepBytes;
  }
  const int64_t count = min(kBlock, product.n_streamed - row);
  const int64_t row_bytes = product.streamed.outer_stride * int64_t(sizeof(T));
  const bool tall = count > 16;
  // Rows that begin inside cache lines take twice the loads: that pays once.
  const bool aligned = reinterpret_cast<intptr_t>(product.streamed.data) % 64 == 0 && row_bytes % 64 == 0;
  const bool direct = P == 1 && dtype_of<T>() == DType::BFloat16 && (aligned || held.panels == 1);
  RangeLanes range;
  for (int64_t k = 0, depth; k < product.k; k += depth) {
    depth = min(chunk_steps * kStepK, product.k - k);
    const bool ready = direct && count % 16 == 0 && depth >= kStepK;
    if (ready) depth = depth / kStepK * kStepK;
    const char* source = product.streamed.at(row, k);
    const ChunkPacker<P, T> packer{source, row_bytes, count, depth, memory, packed_steps, &range};
    const TileStream rows = ready ? TileStream{source, ready_steps, row_bytes, 16 * row_bytes, 0}
                                  : TileStream{memory, packed_steps, 64, kTileBytes, kBlockBytes};
    if (!ready) packer.pack(0);
    const bool first = k == 0, last = k + depth == product.k;
    const int64_t n_steps = ceil_div(depth, kStepK);
    for (int64_t j = 0; j < held.panels; ++j) {
      const bool wide = product.n_held - j * kBlock > 16;
      float* block = sums + (first && last ? j % kStoredPanels : j) * kSumsPerBlock;
      const TileStream columns{held.data + j * held.panel_bytes + k / kStepK * kStepBytes, held_steps, 64, kTileBytes,
                               kBlockBytes};
      if (P > 1 && j > 0 && last && product.far) {
        tile_block<P, kHeldPasses<P>>(rows, columns, 0, n_steps, tall, wide, block, first,
                                      OutputAhead(product, row, j, held.panels, n_steps));
      } else if (ready || j > 0) {
        tile_block<P, kHeldPasses<P>>(rows, columns, 0, n_steps, tall, wide, block, first);
      } else {
        tile_block<P, kHeldPasses<P>>(rows, columns, 0, n_steps, tall, wide, block, first, packer);
        if (last && P > 1 && !parts_are_exact(range.finish(), held.range)) return false;
      }
      const int64_t stored = j % kStoredPanels;
      if (last && (stored == kStoredPanels - 1 || j == held.panels - 1))
        store_sums(product, block - stored * kSumsPerBlock, row, j - stored, stored + 1);
    }
  }
  return true;
}

// The rows [begin, end) of the streamed operand on the vector engine.
void multiply_vectors(const GemmArgs& whole, const GemmItem& item, bool transposed, int64_t begin, int64_t end) {
  GemmArgs args = whole;
  GemmItem part = item;
  const int64_t size = int64_t(item_size(args.dtype)), c_size = int64_t(item_size(args.c_dtype));
  if (transposed) {
    args.n = end - begin;
    part.b += begin * args.b_column * size;
    part.c += begin * c_size;
  } else {
    args.m = end - begin;
    part.a += begin * args.a_row * size;
    part.c += begin * args.c_row * c_size;
  }
  if (args.bias_kind == (transposed ? GemmBias::PerColumn : GemmBias::PerRow))
    args.bias = static_cast<const char*>(args.bias) + begin * c_size;
  avx512::gemm_vectors(args, part);
}

template <int P, class T>
void multiply(const SkinnyProduct& product, const GemmArgs& args, const GemmItem& item) {
  const int64_t panels = ceil_div(product.n_streamed, kBlock), work = work_of<P>(product);
  const bool twofold = work < kTwofoldWork;
  for (int64_t stretch = 0; stretch < panels; stretch += kStretchPanels) {
    const int64_t n_panels = min(kStretchPanels, panels - stretch);
    const int64_t grain = work < kSerialWork ? n_panels
                          : twofold          ? ceil_div(n_panels, 2)
                                             : max(1, kTaskProducts * panels / work);
    const HeldPanels shared = twofold ? HeldPanels{} : pack_held<P>(product);
    PackedTwofold<HeldPanels> own;
    bool exact[kStretchPanels];
    parallel_for(n_panels, grain, [&](int64_t begin, int64_t end) {
      const HeldPanels held = twofold ? own.get(begin / grain, [&] { return pack_held<P>(product); }) : shared;
      const int64_t chunk_bytes = kPackedSteps<P> * P * kBlockBytes;
      char* memory = static_cast<char*>(
          thread_scratch(Scratch::GemmA, size_t(chunk_bytes + held.panels * kSumsPerBlock * int64_t(sizeof(float)))));
      const TileScope tiles;
      for (int64_t i = begin; i < end; ++i)
        exact[i] = multiply_panel<P, T>(product, held, (stretch + i) * kBlock,
                                        reinterpret_cast<float*>(memory + chunk_bytes), memory);
    });
    for (int64_t i = 0; i < n_panels; ++i) {
      const int64_t row = (stretch + i) * kBlock;
      if (!exact[i]) multiply_vectors(args, item, product.transposed, row, min(row + kBlock, product.n_streamed));
    }
  }
}

// The longer of the operands whose k is adjacent is streamed.
bool streams_a(const GemmArgs& args) { return args.a_column == 1 && (args.m >= args.n || args.b_row != 1); }
bool streams_b(const GemmArgs& args) { return args.b_row == 1 && !streams_a(args); }

}  // namespace

namespace amx {

bool gemm_skinny_suits(const GemmArgs& args) {
  if (args.dtype == DType::Float64 || args.k < kLeastDepth || vectors_suit(args) ||
      !(streams_a(args) || streams_b(args)))
    return false;
  const int64_t streamed = streams_a(args) ? args.m : args.n, held = streams_a(args) ? args.n : args.m;
  const int64_t parts = parts_of(args.dtype);
  if (ceil_div(held, kBlock) * ceil_div(args.k, kStepK) * parts * kBlockBytes > kHeldBytes) return false;
  if (args.dtype == DType::BFloat16)
    return streamed >= kLeastRows && held >= 2 && !(streams_b(args) && held > kTransposedRows);
  // Few rows of A times a B in the order of its rows: gemm_amx.cpp shares B among threads, vectors the rows.
  if (args.b_row != 1 && args.m < (args.n >= kSharedColumns ? kManyRows : 2 * kBlock)) return false;
  return streamed >= kLeastRows && held > kVectorRows && args.m * args.n * args.k >= least_parts_work(args);
}

void gemm_skinny(const GemmArgs& args, const GemmItem& item) {
  const PackSource a{item.a, args.dtype, args.a_row, args.a_column}, b{item.b, args.dtype, args.b_column, args.b_row};
  const bool transposed = !streams_a(args);
  const SkinnyProduct product{transposed ? b : a,
                              transposed ? a : b,
                              transposed ? args.n : args.m,
                              transposed ? args.m : args.n,
                              args.k,
                              transposed,
                              tile_output(args, item),
                              gemm_batch_size(args) * args.m * args.n * int64_t(item_size(args.c_dtype)) >= kFarBytes};
  if (args.dtype == DType::BFloat16) return multiply<1, bfloat16>(product, args, item);
  if (args.dtype == DType::Float16) return multiply<2, float16>(product, args, item);
  if (float32_parts == 1) return multiply<1, float>(product, args, item);
  if (float32_parts == 2) return multiply<2, float>(product, args, item);
  multiply<3, float>(product, args, item);
}

}  // namespace amx
}  // namespace fastnn
