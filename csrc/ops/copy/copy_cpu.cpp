// Strided copies on the CPU.
//
//   dst[i] = src[i]      bytes: 2 x numel x item size; no arithmetic
//
// Rows that are contiguous on both sides are memcpy, or streamed when the result is large. Where the two sides run
// along different axes (a transpose), the two axes are walked in 64 x 64 tiles, so that a cache line is used whole on
// both; 32 and 64-bit elements go through squares of registers, stored past the caches when the result is large.
#include "ops/copy/copy.h"

#include <cstring>

#include "simd/stream.h"
#include "simd/transpose.h"

namespace fastnn {
namespace {

constexpr int64_t kTile = 64;
constexpr int64_t kGrainBytes = 128 * 1024;

template <class T>
void copy_row(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t n, bool streamed) {
  if (dst_stride == 1 && src_stride == 1) {
    streamed ? stream_copy(dst, src, n * int64_t(sizeof(T))) : void(memcpy(dst, src, size_t(n) * sizeof(T)));
  } else if (dst_stride == 1 && src_stride == 0) {
    const T value = *src;
    for (int64_t i = 0; i < n; ++i) dst[i] = value;
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i * dst_stride] = src[i * src_stride];
  }
}

template <class T>
void copy_tile(T* dst, const int64_t* dst_strides, const T* src, const int64_t* src_strides, int64_t rows,
               int64_t columns, bool streamed) {
  for (int64_t row = 0; row < rows; ++row)
    copy_row(dst + row * dst_strides[0], dst_strides[1], src + row * src_strides[0], src_strides[1], columns, streamed);
}

// Registers are of floating types.
template <int kBytes>
struct Lane;
template <>
struct Lane<4> {
  using type = float;
};
template <>
struct Lane<8> {
  using type = double;
};

// dst[row][column] = src[column][row] of a square as wide as a register; `stride` elements between rows.
template <class V>
void transpose_square(V* dst, int64_t dst_stride, const V* src, int64_t src_stride, bool streamed) {
  constexpr int kSize = Vec<V>::size;
  Vec<V> square[kSize];
#pragma GCC unroll 16
  for (int i = 0; i < kSize; ++i) square[i] = Vec<V>::load(src + i * src_stride);
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < kSize; ++i)
    streamed ? stream_values<V>(dst + i * dst_stride, square[i].raw) : square[i].store(dst + i * dst_stride);
}

// A tile whose rows are adjacent in src and whose columns are in dst.
template <class T>
void transpose_tile(T* dst, const int64_t* dst_strides, const T* src, const int64_t* src_strides, int64_t rows,
                    int64_t columns, bool streamed) {
  using V = typename Lane<sizeof(T)>::type;
  constexpr int64_t size = Vec<V>::size;
  const int64_t whole_rows = rows / size * size, whole_columns = columns / size * size;
  for (int64_t column = 0; column < whole_columns; column += size)
    for (int64_t row = 0; row < whole_rows; row += size)
      transpose_square(reinterpret_cast<V*>(dst + row * dst_strides[0] + column), dst_strides[0],
                       reinterpret_cast<const V*>(src + row + column * src_strides[1]), src_strides[1], streamed);
  copy_tile(dst + whole_columns, dst_strides, src + whole_columns * src_strides[1], src_strides, whole_rows,
            columns - whole_columns, false);
  copy_tile(dst + whole_rows * dst_strides[0], dst_strides, src + whole_rows, src_strides, rows - whole_rows, columns,
            false);
}

// Is every row of the result whole lines, and the result too large for the caches?
template <class T>
bool is_streamed(const CopyArgs& args) {
  bool whole_lines = is_line_start(args.dst);
  for (int axis = 0; axis < args.ndim - 1; ++axis)
    whole_lines &= args.shape[axis] == 1 || args.dst_strides[axis] * int64_t(sizeof(T)) % 64 == 0;
  return whole_lines && args.numel * int64_t(sizeof(T)) >= kStreamedBytes;
}

// Is the innermost axis of src so far from contiguous that tiles pay?
bool is_tiled(const CopyArgs& args) {
  const int last = args.ndim - 1;
  return args.src_strides[last] != 1 && args.src_strides[last] != 0 && args.shape[last] > 4;
}

// Copies the innermost two axes, rows [begin, end).
template <class T>
void copy_plane(const CopyArgs& args, T* dst, const T* src, int64_t begin, int64_t end, bool streamed) {
  const int axis = args.ndim - 2;
  const int64_t columns = args.shape[axis + 1];
  const int64_t* dst_strides = args.dst_strides + axis;
  const int64_t* src_strides = args.src_strides + axis;
  const bool tiled = is_tiled(args);
  const bool transposed = tiled && src_strides[0] == 1 && dst_strides[1] == 1;
  const int64_t row_step = tiled ? kTile : end - begin;
  const int64_t column_step = tiled ? kTile : columns;
  for (int64_t row = begin; row < end; row += row_step) {
    const int64_t rows = end - row < row_step ? end - row : row_step;
    for (int64_t column = 0; column < columns; column += column_step) {
      const int64_t width = columns - column < column_step ? columns - column : column_step;
      T* const to = dst + row * dst_strides[0] + column * dst_strides[1];
      const T* const from = src + row * src_strides[0] + column * src_strides[1];
      if constexpr (sizeof(T) >= 4)
        if (transposed) {
          transpose_tile(to, dst_strides, from, src_strides, rows, width, streamed);
          continue;
        }
      copy_tile(to, dst_strides, from, src_strides, rows, width, streamed);
    }
  }
}

// Work is numbered by (outer axes, blocks of rows of the plane): of a tile's rows, or fewer when they are long.
template <class T>
void copy_typed(const CopyArgs& args) {
  T* const dst = static_cast<T*>(args.dst);
  const T* const src = static_cast<const T*>(args.src);
  const int plane = args.ndim - 2;
  const int64_t rows = args.shape[plane], columns = args.shape[plane + 1];
  const int64_t row_bytes = columns * int64_t(sizeof(T));
  const int64_t block = is_tiled(args) ? kTile : max(1, min(kTile, kGrainBytes / row_bytes));
  const int64_t blocks = ceil_div(rows, block);
  const int64_t planes = args.numel / (rows * columns);
  const int64_t grain = max(1, kGrainBytes / (block * row_bytes));
  const bool streamed = is_streamed<T>(args);
  parallel_for(planes * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t work = begin; work < end; ++work) {
      int64_t rest = work / blocks, dst_offset = 0, src_offset = 0;
      for (int axis = plane - 1; axis >= 0; --axis) {
        const int64_t index = rest % args.shape[axis];
        rest /= args.shape[axis];
        dst_offset += index * args.dst_strides[axis];
        src_offset += index * args.src_strides[axis];
      }
      const int64_t row = work % blocks * block;
      copy_plane(args, dst + dst_offset, src + src_offset, row, min(row + block, rows), streamed);
    }
    if (streamed) finish_streaming();
  });
}

void copy(const CopyArgs& args) {
  switch (args.item_size) {
    case 1: return copy_typed<uint8_t>(args);
    case 2: return copy_typed<uint16_t>(args);
    case 4: return copy_typed<uint32_t>(args);
    default: return copy_typed<uint64_t>(args);
  }
}

}  // namespace

FASTNN_CPU_KERNEL(copy_strided, copy)

}  // namespace fastnn
