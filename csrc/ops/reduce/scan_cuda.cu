// Cumulative sums and products on CUDA: see scan.h.
//
// bytes: x once (twice where lines are cut), y once; arithmetic in float64 or int64, which is not the limit.
//
// Along the last axis a block takes a line, 1024 elements at a time: four a thread one by one, then threads and warps
// by a tree. Where there are few lines they are cut into chunks: one kernel joins each chunk, and the blocks of the
// next begin with what the chunks before theirs come to. Along another axis a thread takes a line.
#include "ops/reduce/scan.h"

#include <algorithm>

#include "core/cuda_device.h"
#include "core/cuda_launch.h"
#include "simd/element_cuda.h"

namespace fastnn {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // elements of a thread
constexpr int kTile = kThreads * kEach;
constexpr int64_t kMaxChunks = 1024;
constexpr int64_t kBusyBlocks = 1024;

struct Product {
  template <class T>
  static __device__ T identity() {
    return T(1);
  }
  template <class T>
  static __device__ T combine(T a, T b) {
    return a * b;
  }
};

// The element that is number i in the direction of the scan.
__device__ inline int64_t place_of(const ScanArgs& args, int64_t i) { return args.reverse ? args.n - 1 - i : i; }

// Joins `value` over the threads up to this one; `total` is that of the block.
template <class F, class T>
__device__ T scan_block(T value, T* warps, T& total) {
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = shuffle_up(value, step);
    if (lane_id() >= step) value = F::combine(before, value);
  }
  if (lane_id() == kWarp - 1) warps[warp_id()] = value;
  block_sync();
  T before = F::template identity<T>();
  total = before;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    if (warp == warp_id()) before = total;
    total = F::combine(total, warps[warp]);
  }
  block_sync();
  return F::combine(before, value);
}

// A tile's elements of this thread, and what they come to.
template <class F, class T>
__device__ T load_tile(const ScanArgs& args, int64_t line, int64_t first, int64_t end, T (&x)[kEach]) {
  T joined = F::template identity<T>();
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = first + k;
    x[k] = i < end ? load_element<T>(args.x, args.x_dtype, line + place_of(args, i)) : F::template identity<T>();
    joined = F::combine(joined, x[k]);
  }
  return joined;
}

// totals[line][chunk]
template <class F, class T>
__global__ void __launch_bounds__(kThreads)
    join_chunks(const __grid_constant__ ScanArgs args, int64_t chunk_length, int64_t n_chunks, T* totals) {
  __shared__ T warps[kThreads / kWarp];
  const int64_t line = blockIdx.x / n_chunks, chunk = blockIdx.x - line * n_chunks;
  const int64_t begin = chunk * chunk_length, end = begin + chunk_length < args.n ? begin + chunk_length : args.n;
  T whole = F::template identity<T>(), total, x[kEach];
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const T mine = load_tile<F>(args, line * args.n, tile + threadIdx.x * kEach, end, x);
    scan_block<F>(mine, warps, total);
    whole = F::combine(whole, total);
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = whole;
}

template <class F, class T>
__global__ void __launch_bounds__(kThreads)
    scan_lines(const __grid_constant__ ScanArgs args, int64_t chunk_length, int64_t n_chunks, const T* totals) {
  __shared__ T warps[kThreads / kWarp], last[kThreads / kWarp];
  const int64_t line = blockIdx.x / n_chunks, chunk = blockIdx.x - line * n_chunks;
  const int64_t begin = chunk * chunk_length, end = begin + chunk_length < args.n ? begin + chunk_length : args.n;
  T total, x[kEach], carry = F::template identity<T>();
  for (int64_t first = 0; first < chunk; first += kThreads) {  // the chunks before this one
    const int64_t before = first + threadIdx.x;
    scan_block<F>(before < chunk ? totals[line * n_chunks + before] : F::template identity<T>(), warps, total);
    carry = F::combine(carry, total);
  }
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t first = tile + threadIdx.x * kEach;
    const T mine = load_tile<F>(args, line * args.n, first, end, x);
    const T through = scan_block<F>(mine, warps, total);
    T joined = shuffle_up(through, 1);  // what comes before this thread's
    if (lane_id() == kWarp - 1) last[warp_id()] = through;
    block_sync();
    if (lane_id() == 0) joined = warp_id() == 0 ? F::template identity<T>() : last[warp_id() - 1];
    block_sync();
    joined = F::combine(carry, joined);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      joined = F::combine(joined, x[k]);
      if (first + k < end) store_element(args.y, args.y_dtype, line * args.n + place_of(args, first + k), joined);
    }
    carry = F::combine(carry, total);
  }
}

template <class F, class T>
__global__ void __launch_bounds__(kThreads) scan_columns(const __grid_constant__ ScanArgs args) {
  const int64_t column = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= args.outer * args.inner) return;
  const int64_t outer = column / args.inner;
  const int64_t first = outer * args.n * args.inner + (column - outer * args.inner);
  T joined = F::template identity<T>();
  for (int64_t i = 0; i < args.n; ++i) {
    const int64_t at = first + place_of(args, i) * args.inner;
    joined = F::combine(joined, load_element<T>(args.x, args.x_dtype, at));
    store_element(args.y, args.y_dtype, at, joined);
  }
}

template <class F, class T>
void scan_with(const ScanArgs& args) {
  if (args.inner > 1) {
    const int64_t columns = args.outer * args.inner;
    return launch(scan_columns<F, T>, unsigned((columns + kThreads - 1) / kThreads), kThreads, 0, args);
  }
  const int64_t tiles = (args.n + kTile - 1) / kTile;
  const int64_t wanted = std::max<int64_t>(1, std::min({kBusyBlocks / args.outer, kMaxChunks, tiles / 4}));
  const int64_t chunk_length = (tiles + wanted - 1) / wanted * kTile;
  const int64_t n_chunks = (args.n + chunk_length - 1) / chunk_length;
  CudaScratch scratch(n_chunks > 1 ? size_t(args.outer * n_chunks) * sizeof(T) : 0);
  const auto blocks = unsigned(args.outer * n_chunks);
  if (n_chunks > 1) launch(join_chunks<F, T>, blocks, kThreads, 0, args, chunk_length, n_chunks, scratch.as<T>());
  launch(scan_lines<F, T>, blocks, kThreads, 0, args, chunk_length, n_chunks, scratch.as<T>());
}

template <class T>
void scan_typed(const ScanArgs& args) {
  args.op == ScanOp::Sum ? scan_with<Sum, T>(args) : scan_with<Product, T>(args);
}

void scan(const ScanArgs& args) { args.compute == DType::Int64 ? scan_typed<int64_t>(args) : scan_typed<double>(args); }

}  // namespace

FASTNN_CUDA_KERNEL(scan_rows, scan)

}  // namespace fastnn
