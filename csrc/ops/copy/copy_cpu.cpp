// Strided copies on the CPU.
//
//   dst[i] = src[i]      bytes: 2 x numel x item size; no arithmetic
//
// Rows that are contiguous on both sides are memcpy. Where the two sides run along different axes (a
// transpose), the two axes are walked in 32 x 32 tiles, so that a cache line is used whole on both.
#include "ops/copy/copy.h"

#include <cstring>

namespace fastnn {
namespace {

constexpr int64_t kTile = 32;
constexpr int64_t kGrainBytes = 128 * 1024;

template <class T>
void copy_row(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t n) {
  if (dst_stride == 1 && src_stride == 1) {
    memcpy(dst, src, size_t(n) * sizeof(T));
  } else if (dst_stride == 1 && src_stride == 0) {
    const T value = *src;
    for (int64_t i = 0; i < n; ++i) dst[i] = value;
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i * dst_stride] = src[i * src_stride];
  }
}

template <class T>
void copy_tile(T* dst, const int64_t* dst_strides, const T* src, const int64_t* src_strides, int64_t rows,
               int64_t columns) {
  for (int64_t row = 0; row < rows; ++row)
    copy_row(dst + row * dst_strides[0], dst_strides[1], src + row * src_strides[0], src_strides[1], columns);
}

// Copies the innermost two axes, rows [begin, end).
template <class T>
void copy_plane(const CopyArgs& args, T* dst, const T* src, int64_t begin, int64_t end) {
  const int axis = args.ndim - 2;
  const int64_t columns = args.shape[axis + 1];
  const int64_t* dst_strides = args.dst_strides + axis;
  const int64_t* src_strides = args.src_strides + axis;
  const bool tiled = src_strides[1] != 1 && src_strides[1] != 0 && columns > 4;
  const int64_t row_step = tiled ? kTile : end - begin;
  const int64_t column_step = tiled ? kTile : columns;
  for (int64_t row = begin; row < end; row += row_step) {
    const int64_t rows = end - row < row_step ? end - row : row_step;
    for (int64_t column = 0; column < columns; column += column_step) {
      const int64_t width = columns - column < column_step ? columns - column : column_step;
      copy_tile(dst + row * dst_strides[0] + column * dst_strides[1], dst_strides,
                src + row * src_strides[0] + column * src_strides[1], src_strides, rows, width);
    }
  }
}

// Work is numbered by (outer axes, blocks of rows of the plane).
template <class T>
void copy_typed(const CopyArgs& args) {
  T* const dst = static_cast<T*>(args.dst);
  const T* const src = static_cast<const T*>(args.src);
  const int plane = args.ndim - 2;
  const int64_t rows = args.shape[plane], columns = args.shape[plane + 1];
  const int64_t blocks = (rows + kTile - 1) / kTile;
  const int64_t planes = args.numel / (rows * columns);
  const int64_t block_bytes = kTile * columns * int64_t(sizeof(T));
  const int64_t grain = kGrainBytes / block_bytes > 1 ? kGrainBytes / block_bytes : 1;
  parallel_for(planes * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t work = begin; work < end; ++work) {
      int64_t rest = work / blocks, dst_offset = 0, src_offset = 0;
      for (int axis = plane - 1; axis >= 0; --axis) {
        const int64_t index = rest % args.shape[axis];
        rest /= args.shape[axis];
        dst_offset += index * args.dst_strides[axis];
        src_offset += index * args.src_strides[axis];
      }
      const int64_t row = work % blocks * kTile;
      copy_plane(args, dst + dst_offset, src + src_offset, row, row + kTile < rows ? row + kTile : rows);
    }
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
