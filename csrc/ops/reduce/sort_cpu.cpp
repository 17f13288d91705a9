// Sorting rows on the CPU.
//
// Values become unsigned keys of the same order (NaN above all, -0 equal to 0; inverted to descend), so
// that one stable sort of (key, index) serves every type: insertion up to 48 elements, else radix by
// bytes, least significant first, skipping bytes that all keys share: 4 passes for float32, 8 for
// float64, fewer for small integers. Where only the first k are wanted, the k-th key is found first, byte
// by byte from the most significant one, and what comes before it is collected and sorted.
#include "ops/reduce/sort.h"

#include <cstring>

#include "simd/convert.h"
#include "simd/sort_key.h"

namespace fastnn {
namespace {

constexpr int64_t kInsertion = 48;
constexpr int64_t kGrain = 8192;

struct Row {
  uint64_t *keys, *spare_keys;
  int64_t *indices, *spare_indices;
  int64_t n;
};

template <class T>
void make_keys(const SortArgs& args, int64_t row, uint64_t* keys, uint64_t invert) {
  alignas(64) T values[kRowChunk];
  const char* x = static_cast<const char*>(args.x) + row * args.n * int64_t(item_size(args.dtype));
  for (int64_t begin = 0; begin < args.n; begin += kRowChunk) {
    const int64_t n = args.n - begin < kRowChunk ? args.n - begin : kRowChunk;
    FASTNN_LEVEL::load_row(values, x + begin * int64_t(item_size(args.dtype)), args.dtype, 1, n);
    for (int64_t i = 0; i < n; ++i) keys[begin + i] = key_of(values[i]) ^ invert;
  }
}

// Moves the `count` smallest of n keys to the front, in the order of their indices, which are written.
void select_first(uint64_t* keys, int64_t n, int64_t count, int key_bytes, int64_t* indices) {
  uint64_t known = 0, mask = 0;  // of the count-th smallest key
  int64_t wanted = count;        // how many of the keys that agree with it so far are in
  for (int shift = 8 * key_bytes - 8; shift >= 0; shift -= 8) {
    int64_t sizes[256] = {};
    for (int64_t i = 0; i < n; ++i) sizes[keys[i] >> shift & 255] += (keys[i] & mask) == known;
    uint64_t byte = 0;
    for (; sizes[byte] < wanted; ++byte) wanted -= sizes[byte];
    known |= byte << shift;
    mask |= uint64_t(255) << shift;
    if (sizes[byte] == wanted) break;
  }
  int64_t found = 0;
  for (int64_t i = 0; found < count; ++i) {
    const uint64_t key = keys[i], leading = key & mask;
    if (leading > known || (leading == known && wanted-- <= 0)) continue;
    keys[found] = key;
    indices[found++] = i;
  }
}

void insertion_sort(const Row& row) {
  for (int64_t i = 1; i < row.n; ++i) {
    const uint64_t key = row.keys[i];
    const int64_t index = row.indices[i];
    int64_t at = i;
    for (; at > 0 && row.keys[at - 1] > key; --at) {
      row.keys[at] = row.keys[at - 1];
      row.indices[at] = row.indices[at - 1];
    }
    row.keys[at] = key;
    row.indices[at] = index;
  }
}

// One stable pass by the byte at `shift`; false when all keys share it.
bool radix_pass(const Row& from, uint64_t* keys, int64_t* indices, int shift) {
  int64_t places[256] = {};
  for (int64_t i = 0; i < from.n; ++i) ++places[from.keys[i] >> shift & 255];
  if (places[from.keys[0] >> shift & 255] == from.n) return false;
  int64_t next = 0;
  for (int64_t& place : places) {
    const int64_t count = place;
    place = next;
    next += count;
  }
  for (int64_t i = 0; i < from.n; ++i) {
    const int64_t place = places[from.keys[i] >> shift & 255]++;
    keys[place] = from.keys[i];
    indices[place] = from.indices[i];
  }
  return true;
}

void radix_sort(Row row) {
  int64_t* const result = row.indices;
  for (int shift = 0; shift < 64; shift += 8) {
    if (!radix_pass(row, row.spare_keys, row.spare_indices, shift)) continue;
    row = {row.spare_keys, row.keys, row.spare_indices, row.indices, row.n};
  }
  if (row.indices != result) memcpy(result, row.indices, size_t(row.n) * sizeof(int64_t));
}

template <class T>
void take(const void* from, const int64_t* indices, int64_t n, void* to) {
  for (int64_t i = 0; i < n; ++i) static_cast<T*>(to)[i] = static_cast<const T*>(from)[indices[i]];
}

void take_values(const SortArgs& args, int64_t row) {
  const int64_t size = int64_t(item_size(args.dtype));
  const char* from = static_cast<const char*>(args.x) + row * args.n * size;
  char* to = static_cast<char*>(args.values) + row * args.count * size;
  const int64_t* indices = args.indices + row * args.count;
  switch (size) {
    case 1: return take<uint8_t>(from, indices, args.count, to);
    case 2: return take<uint16_t>(from, indices, args.count, to);
    case 4: return take<uint32_t>(from, indices, args.count, to);
    default: return take<uint64_t>(from, indices, args.count, to);
  }
}

void sort(const SortArgs& args) {
  const DType compute = compute_dtype(args.dtype);
  // Only the bytes that a key of the type can have are inverted: the rest stay shared and are skipped.
  const uint64_t invert = !args.descending ? 0 : compute == DType::Float32 ? UINT32_MAX : ~uint64_t(0);
  parallel_for(args.n_rows, kGrain / (args.n + 8) + 1, [&](int64_t first, int64_t past) {
    for (int64_t row = first; row < past; ++row) {
      uint64_t* keys = args.keys + 2 * row * args.n;
      const Row work{keys, keys + args.n, args.indices + row * args.count, args.spare + row * args.count, args.count};
      if (compute == DType::Float32) {
        make_keys<float>(args, row, keys, invert);
      } else if (compute == DType::Float64) {
        make_keys<double>(args, row, keys, invert);
      } else {
        make_keys<int64_t>(args, row, keys, invert);
      }
      if (args.count < args.n) {
        select_first(keys, args.n, args.count, compute == DType::Float32 ? 4 : 8, work.indices);
      } else {
        for (int64_t i = 0; i < args.n; ++i) work.indices[i] = i;
      }
      if (work.n <= kInsertion) {
        insertion_sort(work);
      } else {
        radix_sort(work);
      }
      take_values(args, row);
    }
  });
}

}  // namespace

FASTNN_CPU_KERNEL(sort_rows, sort)

}  // namespace fastnn
