// Sorting rows on the CPU.
//
// Values become unsigned keys of the same order (NaN above all, -0 equal to 0; inverted to descend), so
// that one stable sort of (key, index) serves every type: insertion up to 48 elements, else radix by
// bytes, least significant first, skipping bytes that all keys share: 4 passes for float32, 8 for
// float64, fewer for small integers.
#include "ops/reduce/sort.h"

#include <cstring>

#include "simd/convert.h"

namespace fastnn {
namespace {

constexpr int64_t kInsertion = 48;
constexpr int64_t kGrain = 8192;

// Order-preserving keys.
inline uint64_t key_of(int64_t value) { return uint64_t(value) ^ (uint64_t(1) << 63); }
inline uint64_t key_of(double value) {
  uint64_t bits;
  value += 0.0;  // -0 becomes 0
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return ~uint64_t(0);
  return bits >> 63 ? ~bits : bits | (uint64_t(1) << 63);
}
inline uint64_t key_of(float value) {
  value += 0.0f;
  const uint32_t bits = float_to_bits(value);
  if (value != value) return UINT32_MAX;
  return bits >> 31 ? uint32_t(~bits) : bits | (uint32_t(1) << 31);
}

struct Row {
  uint64_t *keys, *spare_keys;
  int64_t *indices, *spare_indices;
  int64_t n;
};

template <class T>
void make_keys(const SortArgs& args, int64_t row, const Row& out, uint64_t invert) {
  alignas(64) T values[kRowChunk];
  const char* x = static_cast<const char*>(args.x) + row * args.n * int64_t(item_size(args.dtype));
  for (int64_t begin = 0; begin < out.n; begin += kRowChunk) {
    const int64_t n = out.n - begin < kRowChunk ? out.n - begin : kRowChunk;
    FASTNN_LEVEL::load_row(values, x + begin * int64_t(item_size(args.dtype)), args.dtype, 1, n);
    for (int64_t i = 0; i < n; ++i) {
      out.keys[begin + i] = key_of(values[i]) ^ invert;
      out.indices[begin + i] = begin + i;
    }
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
  const int64_t size = int64_t(item_size(args.dtype)), offset = row * args.n;
  const char* from = static_cast<const char*>(args.x) + offset * size;
  char* to = static_cast<char*>(args.values) + offset * size;
  const int64_t* indices = args.indices + offset;
  switch (size) {
    case 1:
      return take<uint8_t>(from, indices, args.n, to);
    case 2:
      return take<uint16_t>(from, indices, args.n, to);
    case 4:
      return take<uint32_t>(from, indices, args.n, to);
    default:
      return take<uint64_t>(from, indices, args.n, to);
  }
}

void sort(const SortArgs& args) {
  const DType compute = compute_dtype(args.dtype);
  // Only the bytes that a key of the type can have are inverted: the rest stay shared and are skipped.
  const uint64_t invert = !args.descending ? 0 : compute == DType::Float32 ? UINT32_MAX : ~uint64_t(0);
  parallel_for(args.n_rows, kGrain / (args.n + 8) + 1, [&](int64_t first, int64_t past) {
    for (int64_t row = first; row < past; ++row) {
      const int64_t offset = row * args.n;
      const Row work{args.keys + 2 * offset, args.keys + 2 * offset + args.n, args.indices + offset,
                     args.spare + offset, args.n};
      if (compute == DType::Float32)
        make_keys<float>(args, row, work, invert);
      else if (compute == DType::Float64)
        make_keys<double>(args, row, work, invert);
      else
        make_keys<int64_t>(args, row, work, invert);
      if (args.n <= kInsertion)
        insertion_sort(work);
      else
        radix_sort(work);
      take_values(args, row);
    }
  });
}

}  // namespace

FASTNN_CPU_KERNEL(sort_rows, sort)

}  // namespace fastnn
