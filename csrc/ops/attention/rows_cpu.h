// What the attention kernels share: how the work is cut into tasks, and the rows of the mask and of dropout.
//
// The query heads that read one key and value head are cut into blocks of rows. A task takes a range of these blocks
// and walks over all keys: it packs them once. More tasks than key and value heads are made only where these are few.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "ops/attention/attention.h"
#include "simd/convert.h"
#include "simd/element.h"
#include "simd/integer.h"
#include "simd/philox.h"
#include "simd/row.h"

namespace fastnn {
namespace {

constexpr int64_t kTasks = 12;                    // wanted, at least
constexpr int64_t kTaskWork = int64_t(1) << 21;   // multiply-adds that pay for a task
constexpr int64_t kSplitWork = int64_t(1) << 23;  // that pay for packing keys and values once more

template <class T>
inline T* element(const void* data, DType dtype, int64_t index) {
  return reinterpret_cast<T*>(static_cast<char*>(const_cast<void*>(data)) + index * int64_t(item_size(dtype)));
}

// One block of query rows of one head.
struct QueryBlock {
  int64_t batch, head, kv_head, row, rows;

  int64_t at(const HeadStrides& strides) const {
    return batch * strides.batch + head * strides.head + row * strides.row;
  }
};

struct Partition {
  int64_t block_rows, group, head_blocks;  // query heads of a key and value head, and blocks of each
  int64_t piece, splits;                   // blocks of a task, and tasks of a key and value head
  int64_t tasks, grain;

  Partition(const AttentionArgs& args, int64_t rows) : block_rows(rows) {
    const int64_t pairs = args.batch * args.kv_heads;
    group = args.heads / args.kv_heads;
    head_blocks = ceil_div(args.q_len, rows);
    const int64_t blocks = group * head_blocks;
    const int64_t work = group * args.q_len * max(1, args.kv_len) * (args.head_dim + args.value_dim);
    const int64_t wanted = max(1, min(blocks, min(ceil_div(kTasks, pairs), work / kSplitWork)));
    piece = ceil_div(blocks, wanted);
    splits = ceil_div(blocks, piece);
    tasks = pairs * splits;
    grain = max(1, kTaskWork * splits / max(1, work));
  }

  // The key and value head of a task, counted over the batch.
  int64_t pair(int64_t task) const { return task / splits; }

  // Calls body(QueryBlock) for the blocks of a task, in order.
  template <class Body>
  void for_each_block(const AttentionArgs& args, int64_t task, const Body& body) const {
    const int64_t batch = pair(task) / args.kv_heads, kv_head = pair(task) % args.kv_heads;
    const int64_t begin = task % splits * piece, end = min(begin + piece, group * head_blocks);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = block % head_blocks * block_rows;
      body(QueryBlock{batch, kv_head * group + block / head_blocks, kv_head, row, min(block_rows, args.q_len - row)});
    }
  }
};

// How many keys the rows of a block can reach.
inline int64_t reached_keys(const AttentionArgs& args, const QueryBlock& block) {
  return args.causal ? min(args.kv_len, block.row + block.rows) : args.kv_len;
}

// Whether some score of the block's rows and of keys below `end` is masked or has a number added.
inline bool is_biased(const AttentionArgs& args, const QueryBlock& block, int64_t end) {
  return args.mask || (args.causal && end > block.row + 1);
}

// What is added to the scores of row `r` of the block: the mask, and -inf for keys that take no part.
template <class T>
inline void bias_row(const AttentionArgs& args, const QueryBlock& block, int64_t r, int64_t key, int64_t n, T* bias) {
  const T lowest = -static_cast<T>(INFINITY);
  const int64_t row = block.row + r;
  if (!args.mask) {
    const int64_t valid = row + 1 - key;
    for (int64_t j = 0; j < n; ++j) bias[j] = j < valid ? T(0) : lowest;
    return;
  }
  const int64_t* strides = args.mask_strides;
  const int64_t at = block.batch * strides[0] + block.head * strides[1] + row * strides[2] + key * strides[3];
  FASTNN_LEVEL::load_row(bias, element<void>(args.mask, args.mask_dtype, at), args.mask_dtype, strides[3], n);
  if (args.mask_dtype == DType::Bool)
    for (int64_t j = 0; j < n; ++j) bias[j] = bias[j] != T(0) ? T(0) : lowest;
}

// The factors of dropout of row `r` of the block: 0, or keep_scale. `key` is a multiple of 4.
template <class T>
inline void keep_row(const AttentionArgs& args, const QueryBlock& block, int64_t r, int64_t key, int64_t n, T* keep) {
  constexpr int64_t kRun = 64;
  alignas(64) uint32_t words[kRun];
  const int64_t row = (block.batch * args.heads + block.head) * args.q_len + block.row + r;
  const uint64_t first = uint64_t(row * ceil_div(args.kv_len, 4) + key / 4);
  for (int64_t j = 0; j < n; j += kRun) {
    const int64_t count = min(kRun, n - j);
    philox_blocks(args.stream.seed, args.stream.offset, first + uint64_t(j) / 4, ceil_div(count, 4), words);
    for (int64_t i = 0; i < count; ++i) keep[j + i] = words[i] >= args.drop_threshold ? T(args.keep_scale) : T(0);
  }
}

// Pieces of one block of scratch, each at a multiple of 64 bytes; without memory it only counts.
struct Carver {
  char* memory = nullptr;
  int64_t bytes = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = memory ? reinterpret_cast<T*>(memory + bytes) : nullptr;
    bytes += round_up(count * int64_t(sizeof(T)), 64);
    return piece;
  }
};

}  // namespace
}  // namespace fastnn
