// Products of few rows or few columns: the one large matrix is read once, at the speed of memory.
//
//   out[i, j] = sum over k of few[i, k] many[j, k]      i < 8;  C or its transpose
//
// Along k (a weight's rows): a warp takes 4 rows of `many`, its lanes pieces of 16 bytes along k; `few` comes from the
// caches, and is used for all 4. Across k: a lane takes a piece of 16 bytes of a row of k, the 8 warps of a block every
// eighth row. Lanes, warps and parts of k are summed up in a fixed order.
//
//   bytes        those of `many` / 4.8 TB/s (H200): 4096 x 4096 in bfloat16 7 us
//   in flight    8 warps of 4 pieces a lane: 16 KB a block, two blocks a multiprocessor ask for what 600 ns hold
//   registers    4 x 8 or 8 x 8 sums: below 128
#include <utility>

#include "gemm/epilogue_cuda.h"
#include "gemm/gemm_cuda.h"

namespace fastnn {
namespace {

constexpr int kFewest = 8;  // rows of `few` at the most
constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kRows = 4;  // of `many`, of a warp along k
constexpr int64_t kLeastSplit = 2048;

// `few` and `many` of a product, in elements from their beginnings.
struct Sides {
  bool few_is_b;
  int64_t few, many;             // extents
  int64_t few_outer, few_depth;  // strides
  int64_t many_outer, many_depth;
};

Sides sides_of(const GemmArgs& args) {
  if (args.n <= kFewest && (args.n < args.m || args.m > kFewest))
    return {true, args.n, args.m, args.b_column, args.b_row, args.a_row, args.a_column};
  return {false, args.m, args.n, args.a_row, args.a_column, args.b_column, args.b_row};
}

bool in_pieces(const GemmArgs& args, const void* data, const int64_t* batch, int64_t stride, int64_t extent) {
  const int64_t items = 16 / int64_t(item_size(args.dtype));
  bool aligned = is_aligned(data, 16) && stride % items == 0 && extent % items == 0;
  for (int d = 0; d < args.batch_ndim; ++d) aligned = aligned && batch[d] % items == 0;
  return aligned;
}

// One sum to C, or to the partials.
template <class T>
__device__ void store_sum(const GemmArgs& args, const GemmGrid& grid, const GemmTile& tile, const GemmItem& item,
                          int64_t row, int64_t column, SumOf<T> sum) {
  using Total = SumOf<T>;
  if (grid.splits == 1) return Epilogue<T, 1>{args, item}.store(Pack<Total, 1>{sum}, row, column, 1);
  static_cast<Total*>(grid.partials)[((tile.split * grid.items + tile.item) * args.m + row) * args.n + column] = sum;
}

template <class T, int kFew>
__global__ void __launch_bounds__(kThreads, 2)
    along_k_kernel(const __grid_constant__ GemmArgs args, const __grid_constant__ GemmGrid grid,
                   const __grid_constant__ Sides sides) {
  using Total = SumOf<T>;
  constexpr int kItems = kPackOf16<T>;
  const GemmTile tile = grid.at(blockIdx.x);
  const GemmItem item = device_item<T>(args, tile.item);
  const int64_t first = (tile.row * kWarps + warp_id()) * kRows;
  if (first >= sides.many) return;
  const T* const few = reinterpret_cast<const T*>(sides.few_is_b ? item.b : item.a);
  const T* const many = reinterpret_cast<const T*>(sides.few_is_b ? item.a : item.b);
  const int64_t begin = tile.split * grid.split_k;
  const int64_t end = args.k - begin < grid.split_k ? args.k : begin + grid.split_k;
  const T* rows[kRows];  // those beyond the last one are read as the last one
#pragma unroll
  for (int j = 0; j < kRows; ++j)
    rows[j] = many + (first + j < sides.many ? first + j : sides.many - 1) * sides.many_outer;
  Total sums[kFew][kRows] = {};
  for (int64_t k = begin + lane_id() * kItems; k < end; k += kWarp * kItems) {
    Pack<T, kItems> pieces[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) pieces[j] = load_streaming<kItems>(rows[j] + k);
#pragma unroll
    for (int i = 0; i < kFew; ++i) {
      if (i >= sides.few) break;
      const Pack<T, kItems> x = load_pack<kItems>(few + i * sides.few_outer + k);
#pragma unroll
      for (int j = 0; j < kRows; ++j)
#pragma unroll
        for (int e = 0; e < kItems; ++e) sums[i][j] += to_compute<Total>(x.at[e]) * to_compute<Total>(pieces[j].at[e]);
    }
  }
  Total mine = 0;  // lane i * kRows + j stores sum i, j
#pragma unroll
  for (int i = 0; i < kFew; ++i)
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const Total sum = warp_reduce<Sum>(sums[i][j]);
      if (lane_id() == i * kRows + j) mine = sum;
    }
  const int i = lane_id() / kRows;
  const int64_t j = first + lane_id() % kRows;
  if (i < sides.few && i < kFew && j < sides.many)
    store_sum<T>(args, grid, tile, item, sides.few_is_b ? j : i, sides.few_is_b ? i : j, mine);
}

template <class T, int kFew>
__global__ void __launch_bounds__(kThreads, 2)
    across_k_kernel(const __grid_constant__ GemmArgs args, const __grid_constant__ GemmGrid grid,
                    const __grid_constant__ Sides sides) {
  using Total = SumOf<T>;
  constexpr int kItems = kPackOf16<T>, kColumns = kWarp * kItems;
  __shared__ Total strips[kWarps][kColumns], totals[kFew][kColumns];
  const GemmTile tile = grid.at(blockIdx.x);
  const GemmItem item = device_item<T>(args, tile.item);
  const int64_t column = tile.row * kColumns + lane_id() * kItems;
  const T* const few = reinterpret_cast<const T*>(sides.few_is_b ? item.b : item.a);
  const T* const many = reinterpret_cast<const T*>(sides.few_is_b ? item.a : item.b) + column;
  const int64_t begin = tile.split * grid.split_k;
  const int64_t end = args.k - begin < grid.split_k ? args.k : begin + grid.split_k;
  Total sums[kFew][kItems] = {};
  if (column < sides.many) {
#pragma unroll 4
    for (int64_t k = begin + warp_id(); k < end; k += kWarps) {
      const Pack<T, kItems> piece = load_streaming<kItems>(many + k * sides.many_depth);
#pragma unroll
      for (int i = 0; i < kFew; ++i) {
        if (i >= sides.few) break;
        const Total x = to_compute<Total>(few[i * sides.few_outer + k * sides.few_depth]);
#pragma unroll
        for (int e = 0; e < kItems; ++e) sums[i][e] += x * to_compute<Total>(piece.at[e]);
      }
    }
  }
  const int at = int(threadIdx.x);
#pragma unroll
  for (int i = 0; i < kFew; ++i) {
    if (i >= sides.few) break;
    block_sync();
#pragma unroll
    for (int e = 0; e < kItems; ++e) strips[warp_id()][lane_id() * kItems + e] = sums[i][e];
    block_sync();
    if (at >= kColumns) continue;
    Total sum = strips[0][at];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) sum += strips[warp][at];
    totals[i][at] = sum;
  }
  const int64_t j = tile.row * kColumns + at;
  if (at >= kColumns || j >= sides.many) return;
#pragma unroll 1
  for (int i = 0; i < sides.few; ++i)
    store_sum<T>(args, grid, tile, item, sides.few_is_b ? j : i, sides.few_is_b ? i : j, totals[i][at]);
}

template <class T, int kFew>
void multiply(const GemmArgs& args, const Sides& sides) {
  const bool along_k = sides.many_depth == 1;
  const int blocks_of = along_k ? kWarps * kRows : kWarp * kPackOf16<T>;
  const GemmTileShape shape{sides.few_is_b ? blocks_of : kFewest, sides.few_is_b ? kFewest : blocks_of,
                            kWarp * kPackOf16<T>, along_k ? kLeastSplit : kLeastSplit / 16};
  run_tiles(args, shape, 2 * gemm_cuda::gpu().processors, [&](GemmGrid grid) {
    if (!sides.few_is_b) grid.row_tiles = std::exchange(grid.column_tiles, 1);
    launch(along_k ? along_k_kernel<T, kFew> : across_k_kernel<T, kFew>, unsigned(grid.blocks()), kThreads, 0, args,
           grid, sides);
  });
}

template <class T>
void multiply_few(const GemmArgs& args) {
  const Sides sides = sides_of(args);
  sides.few == 1 ? multiply<T, 1>(args, sides) : multiply<T, kFewest>(args, sides);
}

}  // namespace

namespace gemm_cuda {

bool skinny_suits(const GemmArgs& args) {
  if (args.m > kFewest && args.n > kFewest) return false;
  const Sides sides = sides_of(args);
  const void* const few = sides.few_is_b ? args.b : args.a;
  const void* const many = sides.few_is_b ? args.a : args.b;
  const int64_t* const few_batch = sides.few_is_b ? args.b_batch : args.a_batch;
  const int64_t* const many_batch = sides.few_is_b ? args.a_batch : args.b_batch;
  if (sides.many_depth == 1 && sides.few_depth == 1)
    return in_pieces(args, many, many_batch, sides.many_outer, args.k) &&
           in_pieces(args, few, few_batch, sides.few_outer, args.k);
  return sides.many_outer == 1 && in_pieces(args, many, many_batch, sides.many_depth, sides.many);
}

void skinny(const GemmArgs& args) {
  switch (args.dtype) {
    case DType::Float64: return multiply_few<double>(args);
    case DType::Float32: return multiply_few<float>(args);
    case DType::BFloat16: return multiply_few<bfloat16>(args);
    default: return multiply_few<float16>(args);
  }
}

}  // namespace gemm_cuda
}  // namespace fastnn
