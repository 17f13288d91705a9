// Where an extreme stands, on the CPU: the first position along the reduced axis that equals it.
//
//   index[k] = min { r : x[k, r] = y[k], or both are NaN }      bytes: x up to the position
//
// The values come from the reduction before, so this is a search: by rows it stops at the first block
// that holds the value; by columns rows are visited from the last to the first, and the last hit stays.
#include "ops/reduce/walk_cpu.h"
#include "simd/convert.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 32768;

template <class T>
inline bool same(T a, T b) {
  return (a == b) | ((a != a) & (b != b));
}

template <class T>
void load(const void* data, DType dtype, int64_t offset, int64_t stride, int64_t n, T* row) {
  const char* from = static_cast<const char*>(data) + offset * int64_t(item_size(dtype));
  FASTNN_LEVEL::load_row(row, from, dtype, stride, n);
}

template <class T>
int64_t first_in_row(const ReduceArgs& args, int64_t offset, int64_t stride, T value) {
  alignas(64) T row[kRowChunk];
  for (int64_t begin = 0; begin < args.n_reduced; begin += kRowChunk) {
    const int64_t n = args.n_reduced - begin < kRowChunk ? args.n_reduced - begin : kRowChunk;
    load(args.x, args.x_dtype, offset + begin * stride, stride, n, row);
    int hit = 0;
    for (int64_t i = 0; i < n; ++i) hit |= same(row[i], value);
    if (!hit) continue;
    for (int64_t i = 0; i < n; ++i)
      if (same(row[i], value)) return begin + i;
  }
  return 0;
}

template <class T>
void find_rows(const FindFirstArgs& args) {
  const ReduceArgs& walk = args.walk;
  const int64_t stride = walk.n_reduced_axes ? walk.reduced_x_strides[0] : 0;
  parallel_for(walk.n_kept, kGrain / (walk.n_reduced + 8) + 1, [&](int64_t first, int64_t past) {
    for (int64_t kept = first; kept < past; ++kept) {
      const int64_t at = offset_of(kept, walk.n_kept_axes, walk.kept_shape, walk.kept_y_strides);
      T value;
      load(walk.y, walk.y_dtype, at, 1, 1, &value);
      const int64_t x = offset_of(kept, walk.n_kept_axes, walk.kept_shape, walk.kept_x_strides);
      args.index[at] = first_in_row(walk, x, stride, value);
    }
  });
}

template <class T>
void find_columns(const FindFirstArgs& args) {
  const ReduceArgs& walk = args.walk;
  const int last = walk.n_kept_axes - 1;
  const int64_t width = walk.kept_shape[last], blocks = (width + kRowChunk - 1) / kRowChunk;
  const int64_t x_stride = walk.kept_x_strides[last], y_stride = walk.kept_y_strides[last];
  const int64_t stride = walk.n_reduced_axes ? walk.reduced_x_strides[0] : 0;
  const int64_t unit = walk.n_reduced * (width < kRowChunk ? width : kRowChunk);
  parallel_for(walk.n_kept / width * blocks, kGrain / (unit + 64) + 1, [&](int64_t first, int64_t past) {
    alignas(64) T values[kRowChunk], row[kRowChunk];
    alignas(64) int64_t index[kRowChunk];
    for (int64_t work = first; work < past; ++work) {
      const int64_t column = work % blocks * kRowChunk, outer = work / blocks;
      const int64_t n = width - column < kRowChunk ? width - column : kRowChunk;
      const int64_t y = offset_of(outer, last, walk.kept_shape, walk.kept_y_strides) + column * y_stride;
      const int64_t x = offset_of(outer, last, walk.kept_shape, walk.kept_x_strides) + column * x_stride;
      load(walk.y, walk.y_dtype, y, y_stride, n, values);
      for (int64_t i = 0; i < n; ++i) index[i] = 0;
      for (int64_t r = walk.n_reduced - 1; r >= 0; --r) {
        load(walk.x, walk.x_dtype, x + r * stride, x_stride, n, row);
        for (int64_t i = 0; i < n; ++i) index[i] = same(row[i], values[i]) ? r : index[i];
      }
      for (int64_t i = 0; i < n; ++i) args.index[y + i * y_stride] = index[i];
    }
  });
}

template <class T>
void find_typed(const FindFirstArgs& args) {
  if (args.walk.by_rows)
    find_rows<T>(args);
  else
    find_columns<T>(args);
}

void find_first(const FindFirstArgs& args) {
  if (args.walk.compute == DType::Float32) return find_typed<float>(args);
  if (args.walk.compute == DType::Float64) return find_typed<double>(args);
  find_typed<int64_t>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(reduce_find_first, find_first)

}  // namespace fastnn
