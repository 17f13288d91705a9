// The matrix engine on CUDA: gemm.h has the formula. Any launcher may call it; `args` is of device memory, of a
// floating dtype, and all work goes to the current stream. An element's sum runs over k in an order fixed by the shape
// and the GPU's model: results are the same bits every time.
//
//   float32     "highest": float32 arithmetic; "high" and "medium": TF32 on tensor cores
//   float64     float64 arithmetic
//   16-bit      tensor cores, sums in float32
#pragma once

#include <climits>

#include "core/cuda_launch.h"
#include "gemm/gemm.h"
#include "gemm/tile_cuda.h"

namespace fastnn {

void cuda_gemm(const GemmArgs& args);

// The kernels under it.
namespace gemm_cuda {

void simt(const GemmArgs& args);  // float32 and float64
void mma(const GemmArgs& args);   // 16-bit, and float32 as TF32: compute capability 8.0
void sm90(const GemmArgs& args);  // the same, of operands that the copy engine can read: compute capability 9.0
bool sm90_suits(const GemmArgs& args);
void skinny(const GemmArgs& args);  // a row or column of few elements: bound by memory
bool skinny_suits(const GemmArgs& args);

// Multiprocessors, and compute capability as 80 or 90, of the current device.
struct Gpu {
  int processors, capability;
};
Gpu gpu();

// Adds up grid.partials, in order, and stores C.
void sum_partials(const GemmArgs& args, const GemmGrid& grid);

}  // namespace gemm_cuda

namespace {

// What a kernel's blocks compute, and the least k that is worth a part of its own.
struct GemmTileShape {
  int rows, columns, depth;
  int64_t least_split;
};

inline int64_t tiles_along(int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; }
inline int64_t tiles_of(const GemmArgs& args, int rows, int columns) {
  return tiles_along(args.m, rows) * tiles_along(args.n, columns) * gemm_batch_size(args);
}

// Calls launch_tiles(grid) with the grid for a product, cut along k where there are fewer tiles than multiprocessors.
template <class Launch>
void run_tiles(const GemmArgs& args, const GemmTileShape& shape, int processors, const Launch& launch_tiles) {
  GemmGrid grid{tiles_along(args.m, shape.rows), tiles_along(args.n, shape.columns), gemm_batch_size(args)};
  const GemmSplit split = split_k_of(grid.blocks(), args.k, shape.depth, shape.least_split, processors);
  grid.splits = split.splits;
  grid.split_k = split.split_k;
  check(grid.blocks() <= INT_MAX, "matmul: ", grid.items, " products of ", args.m, " x ", args.n, " take ",
        grid.blocks(), " blocks, more than CUDA launches");
  if (grid.splits == 1) return launch_tiles(grid);
  const size_t sum_bytes = args.dtype == DType::Float64 ? sizeof(double) : sizeof(float);
  const CudaScratch partials(size_t(grid.splits) * size_t(grid.items * args.m * args.n) * sum_bytes);
  grid.partials = partials.as<void>();
  launch_tiles(grid);
  gemm_cuda::sum_partials(args, grid);
}

}  // namespace
}  // namespace fastnn
