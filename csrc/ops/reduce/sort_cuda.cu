// Sorting rows on CUDA: values become keys of the same order (simd/sort_key.h), and sort_cuda.h sorts them.
//
// bytes: 32 an element and merge, 11 merges for a row of 4 million; where the first k are wanted, rows are sorted
// whole.
#include "ops/reduce/sort_cuda.h"

#include "core/cuda_index.h"
#include "ops/reduce/sort.h"
#include "simd/element_cuda.h"
#include "simd/sort_key.h"

namespace fastnn {
namespace {

template <class T>
__global__ void make_keys(const __grid_constant__ SortArgs args) {
  const int64_t i = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i >= args.n_rows * args.n) return;
  const uint64_t key = key_of(load_element<T>(args.x, args.dtype, i));
  args.keys[i] = args.descending ? ~key : key;
}

template <class T>
__global__ void take_sorted(const __grid_constant__ SortArgs args, SortRun sorted) {
  const int64_t i = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i >= args.n_rows * args.count) return;
  const int64_t row = i / args.count, index = sorted.indices[row * args.n + (i - row * args.count)];
  args.indices[i] = index;
  static_cast<T*>(args.values)[i] = static_cast<const T*>(args.x)[row * args.n + index];
}

void sort(const SortArgs& args) {
  const int64_t all = args.n_rows * args.n;
  const DType compute = compute_dtype(args.dtype);
  const auto keys = compute == DType::Float32   ? make_keys<float>
                    : compute == DType::Float64 ? make_keys<double>
                                                : make_keys<int64_t>;
  launch(keys, unsigned(blocks_for(all)), kBlockThreads, 0, args);
  CudaScratch scratch(2 * size_t(all) * sizeof(int64_t));
  int64_t* indices = scratch.as<int64_t>();
  const SortRun sorted = sort_pairs({args.keys, indices}, {args.keys + all, indices + all}, args.n_rows, args.n);
  const size_t size = item_size(args.dtype);
  const auto take = size == 1   ? take_sorted<uint8_t>
                    : size == 2 ? take_sorted<uint16_t>
                    : size == 4 ? take_sorted<uint32_t>
                                : take_sorted<uint64_t>;
  launch(take, unsigned(blocks_for(args.n_rows * args.count)), kBlockThreads, 0, args, sorted);
}

}  // namespace

FASTNN_CUDA_KERNEL(sort_rows, sort)

}  // namespace fastnn
