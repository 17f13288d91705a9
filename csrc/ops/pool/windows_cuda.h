// What the pooling kernels of CUDA have in common: who takes which outputs, windows known to the compiler, and taps.
#pragma once

#include "core/divisor.h"
#include "ops/pool/window.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

// A PoolAxis that divides without a division.
struct DividedAxis : PoolAxis {
  Divisor by_in, by_out, by_kernel, by_stride, by_dilation;

  explicit DividedAxis(const PoolAxis& axis)
      : PoolAxis(axis),
        by_in(axis.in),
        by_out(axis.out),
        by_kernel(axis.kernel),
        by_stride(max(axis.stride, int64_t(1))),
        by_dilation(axis.dilation) {}
};
FASTNN_HD inline int64_t over_in(const DividedAxis& axis, int64_t n) { return axis.by_in.quotient(n); }
FASTNN_HD inline int64_t over_out(const DividedAxis& axis, int64_t n) { return axis.by_out.quotient(n); }
FASTNN_HD inline int64_t over_stride(const DividedAxis& axis, int64_t n) { return axis.by_stride.quotient(n); }
FASTNN_HD inline int64_t over_dilation(const DividedAxis& axis, int64_t n) { return axis.by_dilation.quotient(n); }

// --------------------------------------------------------------------------------- usual windows

// Square windows of contiguous planes.
template <int kernel, int stride, int padding>
struct UsualWindow {
  static constexpr int kKernel = kernel, kStride = stride, kPadding = padding;
  static __device__ PoolAxis axis(const PoolAxis& of) { return {of.in, of.out, kernel, stride, padding, 1}; }
};

template <class W>
bool has_windows(const PoolAxis& axis) {
  return axis.kernel == W::kKernel && axis.stride == W::kStride && axis.padding == W::kPadding && axis.dilation == 1 &&
         axis.in < (1 << 30);
}

// Calls visit with the window that the arguments have; false when they have none of these.
template <class Visit>
bool with_usual_window(const PoolArgs& args, const Visit& visit) {
  const auto fits = [&](auto window) {
    using W = decltype(window);
    if (!has_windows<W>(args.height) || !has_windows<W>(args.width)) return false;
    visit(window);
    return true;
  };
  return fits(UsualWindow<2, 2, 0>()) || fits(UsualWindow<3, 2, 1>()) || fits(UsualWindow<3, 2, 0>()) ||
         fits(UsualWindow<3, 1, 1>());
}

// A thread takes kOutputs neighbouring outputs of a row, 16 bytes.
template <class Stored>
constexpr int kOutputs = kPackOf16<Stored>;

// `rows` rows of a plane and `blocks` blocks of a row.
struct BlockGrid {
  int64_t count;
  Divisor blocks, rows;
  bool in_packs, out_packs;  // can the rows of x and of y be read and written in packs?

  BlockGrid(const PoolArgs& args, int64_t rows_of_plane, int64_t blocks_of_row)
      : count(args.planes * rows_of_plane * blocks_of_row), blocks(blocks_of_row), rows(rows_of_plane) {
    const int64_t outputs = kPackOf16<char> / int64_t(item_size(args.dtype));
    in_packs = is_aligned(args.x, 16) && args.width.in % outputs == 0;
    out_packs = is_aligned(args.y, 16) && is_aligned(args.taps, 8) && args.width.out % outputs == 0;
  }
};

struct Block {
  int64_t plane;
  int row, block;
};

__device__ inline Block block_at(const BlockGrid& grid, int64_t index) {
  const Division by_row = grid.blocks.divide(index), by_plane = grid.rows.divide(by_row.quotient);
  return {by_plane.quotient, int(by_plane.rest), int(by_row.rest)};
}

// Elements first, first + 1, ... of a row of n; `missing` for those outside it. kCore of them, after kMargin, are whole
// packs of kPack if `packs`.
template <int kMargin, int kCore, int kPack, int kLength, class Stored, class T>
__device__ void load_run(const Stored* row, int first, int n, bool packs, T missing, T (&values)[kLength]) {
  if (packs && first + kMargin + kCore <= n) {
#pragma unroll
    for (int i = 0; i < kCore; i += kPack) {
      const Pack<Stored, kPack> pack = load_pack<kPack>(row + first + kMargin + i);
#pragma unroll
      for (int j = 0; j < kPack; ++j) values[kMargin + i + j] = to_compute<T>(pack.at[j]);
    }
  } else {
#pragma unroll
    for (int i = kMargin; i < kMargin + kCore; ++i) values[i] = first + i < n ? to_compute<T>(row[first + i]) : missing;
  }
#pragma unroll
  for (int i = 0; i < kLength; ++i) {
    if (i >= kMargin && i < kMargin + kCore) continue;
    values[i] = first + i >= 0 && first + i < n ? to_compute<T>(row[first + i]) : missing;
  }
}

// n <= kLength values to `to`, in packs if they are whole.
template <int kLength, class Stored>
__device__ void store_run(Stored* to, const Compute<Stored> (&values)[kLength], int n, bool packs) {
  constexpr int kPack = kPackOf16<Stored>;
  if (packs && n >= kLength) {
#pragma unroll
    for (int i = 0; i < kLength; i += kPack) {
      Pack<Compute<Stored>, kPack> pack;
#pragma unroll
      for (int j = 0; j < kPack; ++j) pack.at[j] = values[i + j];
      store_values<kPack>(to + i, pack);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kLength; ++i)
    if (i < n) to[i] = to_stored<Stored>(values[i]);
}

// ------------------------------------------------------------------------------- any other window

// A thread takes one position, of kWidth channels: (planes, rows, columns, channels).
struct PositionGrid {
  int64_t count;
  Divisor packs, columns, rows;
  DividedAxis height, width;

  PositionGrid(const PoolArgs& args, int64_t rows_of_plane, int64_t columns_of_row, int pack_size)
      : count(args.planes * rows_of_plane * columns_of_row * (args.channels / pack_size)),
        packs(args.channels / pack_size),
        columns(columns_of_row),
        rows(rows_of_plane),
        height(args.height),
        width(args.width) {}
};

struct Position {
  int64_t plane, row, column, pack;
};

__device__ inline Position position_at(const PositionGrid& grid, int64_t index) {
  const Division by_position = grid.packs.divide(index);
  const Division by_row = grid.columns.divide(by_position.quotient), by_plane = grid.rows.divide(by_row.quotient);
  return {by_plane.quotient, by_plane.rest, by_row.rest, by_position.rest};
}

// Can positions be read and written in packs of channels?
template <class Stored>
bool channels_fit_packs(const PoolArgs& args) {
  return rows_fit_packs<Stored>(args.channels, {args.x, args.y}) && is_aligned(args.taps, 32);
}

// ------------------------------------------------------------------------------------------- taps

// A window without a maximum has tap -1.
template <int kWidth>
__device__ void load_taps(const PoolArgs& args, int64_t at, int (&taps)[kWidth]) {
  if (args.tap_dtype == DType::UInt8) {
    const Pack<uint8_t, kWidth> pack = load_pack<kWidth>(static_cast<const uint8_t*>(args.taps) + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) taps[i] = pack.at[i] == 255 ? -1 : int(pack.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) taps[i] = static_cast<const int32_t*>(args.taps)[at + i];
  }
}

template <int kWidth>
__device__ void store_taps(const PoolArgs& args, int64_t at, const int (&taps)[kWidth]) {
  if (args.tap_dtype == DType::UInt8) {
    Pack<uint8_t, kWidth> pack;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) pack.at[i] = uint8_t(taps[i]);
    store_pack(static_cast<uint8_t*>(args.taps) + at, pack);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) static_cast<int32_t*>(args.taps)[at + i] = taps[i];
  }
}

// Its row and column in the window.
__device__ inline Division split_tap(const PoolAxis& width, int64_t tap) {
  return {tap / width.kernel, tap % width.kernel};
}
__device__ inline Division split_tap(const DividedAxis& width, int64_t tap) { return width.by_kernel.divide(tap); }

// The divisor of an average; CPU and GPU multiply the same extents.
template <class T>
__device__ T divisor_of(const PoolArgs& args, int64_t row_extent, int64_t column_extent) {
  return args.divisor_override ? T(args.divisor_override) : T(column_extent) * T(row_extent);
}

}  // namespace
}  // namespace fastnn
