// Stable sorting of rows of (key, index) on a GPU, for sort and for indexed writes.
//
// A block sorts a run of 2048 pairs in shared memory by a bitonic network: 66 steps. Runs are then merged two by two; a
// thread finds by bisection where its eight pairs of the result begin in both runs. Pairs are compared by key, then by
// index, so that equal keys keep their order.
//
// bytes: 32 a pair for the runs and for each of the log2(n / 2048) merges.
#pragma once

#include <utility>

#include "core/cuda_device.h"
#include "core/cuda_launch.h"

namespace fastnn {
namespace {

constexpr int kRunThreads = 512;
constexpr int kMergeThreads = 256;
constexpr int kMerged = 8;  // pairs of the result that a thread merges
FASTNN_HD constexpr int64_t longest_run() { return 2048; }

struct SortRun {
  uint64_t* keys;
  int64_t* indices;
};

__device__ inline bool comes_before(uint64_t key, int64_t index, uint64_t other_key, int64_t other_index) {
  return key < other_key || (key == other_key && index < other_index);
}

// Runs of `size` keys, a power of two, of rows of n: in place, and their indices.
__global__ void __launch_bounds__(kRunThreads) sort_runs(SortRun rows, int64_t n, int size) {
  __shared__ uint64_t keys[longest_run()];
  __shared__ int32_t places[longest_run()];
  const int64_t runs = (n + size - 1) / size, row = blockIdx.x / runs;
  const int64_t begin = (blockIdx.x - row * runs) * size, first = row * n + begin;
  const int count = int(n - begin < size ? n - begin : size);
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    keys[i] = i < count ? rows.keys[first + i] : UINT64_MAX;
    places[i] = i;
  }
  for (int length = 2; length <= size; length *= 2)
    for (int apart = length / 2; apart > 0; apart /= 2) {
      block_sync();
      for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
        const int low = 2 * pair - (pair & (apart - 1)), high = low + apart;
        const bool swapped = comes_before(keys[high], places[high], keys[low], places[low]);
        if (swapped != ((low & length) != 0)) {
          const uint64_t key = keys[low];
          const int32_t place = places[low];
          keys[low] = keys[high], places[low] = places[high];
          keys[high] = key, places[high] = place;
        }
      }
    }
  block_sync();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    rows.keys[first + i] = keys[i];
    rows.indices[first + i] = begin + places[i];
  }
}

// Merges neighbouring sorted runs of `length` in rows of n.
__global__ void __launch_bounds__(kMergeThreads)
    merge_runs(SortRun from, SortRun to, int64_t n_rows, int64_t n, int64_t length) {
  const int64_t threads_of_row = (n + kMerged - 1) / kMerged;
  const int64_t thread = int64_t(blockIdx.x) * kMergeThreads + threadIdx.x, row = thread / threads_of_row;
  if (row >= n_rows) return;
  int64_t at = (thread - row * threads_of_row) * kMerged;
  const int64_t end = at + kMerged < n ? at + kMerged : n;
  const int64_t base = at / (2 * length) * (2 * length);  // kMerged divides the length
  const int64_t n_left = n - base < length ? n - base : length;
  const int64_t n_right = n - base - n_left < length ? n - base - n_left : length;
  const uint64_t *left = from.keys + row * n + base, *right = left + n_left;
  const int64_t *left_index = from.indices + row * n + base, *right_index = left_index + n_left;
  // How many of the first at - base come from the left: a right one comes first only with a smaller key, since
  // indices of the left run are smaller.
  const int64_t before = at - base;
  int64_t low = before > n_right ? before - n_right : 0, high = before < n_left ? before : n_left;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (left[middle] <= right[before - 1 - middle])
      low = middle + 1;
    else
      high = middle;
  }
  int64_t i = low, j = before - low;
  for (; at < end; ++at) {
    const bool takes_left = j >= n_right || (i < n_left && left[i] <= right[j]);
    to.keys[row * n + at] = takes_left ? left[i] : right[j];
    to.indices[row * n + at] = takes_left ? left_index[i++] : right_index[j++];
  }
}

// Sorts rows of n keys; `spare` is as large. The result is where the returned run says.
inline SortRun sort_pairs(SortRun rows, SortRun spare, int64_t n_rows, int64_t n) {
  int size = 2;
  while (size < n && size < longest_run()) size *= 2;
  const int threads = size / 2 < kWarp ? kWarp : size / 2 < kRunThreads ? size / 2 : kRunThreads;
  launch(sort_runs, unsigned(n_rows * ((n + size - 1) / size)), unsigned(threads), 0, rows, n, size);
  for (int64_t length = size; length < n; length *= 2) {
    const int64_t all = n_rows * ((n + kMerged - 1) / kMerged);
    launch(merge_runs, unsigned((all + kMergeThreads - 1) / kMergeThreads), kMergeThreads, 0, rows, spare, n_rows, n,
           length);
    std::swap(rows, spare);
  }
  return rows;
}

}  // namespace
}  // namespace fastnn
