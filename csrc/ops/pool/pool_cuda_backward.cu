// The gradients of pooling on CUDA, and of the maximum's gradient: see pool.h.
//
//   dx[i] = sum over the windows o that hold i of dy[o] where i is its maximum      bytes: dy and the taps once, dx
//   once
//           or of dy[o] / divisor[o]
//
// Every dx is gathered from the windows that cover it, in ascending order, and written once: no atomics, the same bits
// every time. As forward:
//   blocks      2x2 and 3x3 windows of planes: a thread takes the inputs between the beginnings of 16 bytes of outputs
//               and the next ones, stride times stride as many; which tap of which window each of them is, is known to
//               the compiler
//   positions   anything else: a thread takes one input, with the channels last 16 bytes of channels
#include "ops/pool/windows_cuda.h"

namespace fastnn {
namespace {

// What an output gives to the element of its window with number `tap`.
struct ToMaximum {
  static constexpr bool kHasTaps = true;
  template <class T>
  static __device__ T share(T dy, int maximum, int tap) {
    return maximum == tap ? dy : T(0);
  }
};

struct ToAll {
  static constexpr bool kHasTaps = false;
  template <class T>
  static __device__ T share(T quotient, int, int) {
    return quotient;
  }
};

// ------------------------------------------------------------------------------------------- blocks

// Row and column `a` of a thread's inputs are position a + padding - stride b of the windows of output b.
template <class W>
constexpr int tap_of(int a, int b) {
  return a + W::kPadding - b * W::kStride;
}
template <class W>
constexpr bool holds(int a, int b) {
  return tap_of<W>(a, b) >= 0 && tap_of<W>(a, b) < W::kKernel;
}

// Shares of the outputs first, first + 1, ... of a row; those outside it have none.
template <class Op, class Stored, class W, int kMargin, int kLength>
__device__ void load_shares(const PoolArgs& args, int64_t plane, int out_row, int first, bool packs,
                            Compute<Stored> (&shares)[kLength], int (&taps)[kLength]) {
  using T = Compute<Stored>;
  constexpr int kCount = kOutputs<Stored>;
  const int out = int(args.width.out);
  const int64_t at = (plane * args.height.out + out_row) * out;
  load_run<kMargin, kCount, kCount>(static_cast<const Stored*>(args.y) + at, first, out, packs, T(0), shares);
  if constexpr (Op::kHasTaps) {
    load_run<kMargin, kCount, kCount>(static_cast<const uint8_t*>(args.taps) + at, first, out, packs, -1, taps);
  } else {
    const PoolAxis rows = W::axis(args.height), columns = W::axis(args.width);
    const int64_t row_extent = window_of(rows, out_row, args.count_include_pad).extent;
#pragma unroll
    for (int i = 0; i < kLength; ++i) {
      const int64_t extent = window_of(columns, first + i, args.count_include_pad).extent;
      shares[i] = first + i >= 0 && first + i < out ? shares[i] / divisor_of<T>(args, row_extent, extent) : T(0);
    }
  }
}

template <class Op, class Stored, class W>
__global__ void __launch_bounds__(kBlockThreads)
    spread_blocks(const __grid_constant__ PoolArgs args, const __grid_constant__ BlockGrid grid) {
  using T = Compute<Stored>;
  constexpr int kStride = W::kStride, kRows = kStride, kColumns = kOutputs<Stored> * kStride;
  constexpr int kFirst = -((W::kKernel - 1 - W::kPadding) / kStride);  // outputs around the thread's own
  constexpr int kLastRow = (kRows - 1 + W::kPadding) / kStride;
  constexpr int kLength = (kColumns - 1 + W::kPadding) / kStride - kFirst + 1;
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= grid.count) return;
  const Block block = block_at(grid, index);
  const int first = block.block * kOutputs<Stored>;

  T dx[kRows][kColumns] = {};
#pragma unroll
  for (int b = kFirst; b <= kLastRow; ++b) {
    const int out_row = block.row + b;
    if (out_row < 0 || out_row >= int(args.height.out)) continue;
    T shares[kLength];
    int taps[kLength];
    load_shares<Op, Stored, W, -kFirst>(args, block.plane, out_row, first + kFirst, grid.out_packs, shares, taps);
#pragma unroll
    for (int row = 0; row < kRows; ++row)
#pragma unroll
      for (int column = 0; column < kColumns; ++column)
#pragma unroll
        for (int i = 0; i < kLength; ++i)
          if (holds<W>(row, b) && holds<W>(column, i + kFirst))
            dx[row][column] +=
                Op::share(shares[i], taps[i], tap_of<W>(row, b) * W::kKernel + tap_of<W>(column, i + kFirst));
  }
  const int height = int(args.height.in), width = int(args.width.in);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int in_row = block.row * kStride + row, column = first * kStride;
    if (in_row >= height) break;
    Stored* to = static_cast<Stored*>(args.x) + (block.plane * height + in_row) * width + column;
    store_run(to, dx[row], width - column, grid.in_packs);
  }
}

// ---------------------------------------------------------------------------------------- positions

template <class Op, class Stored, int kWidth>
__global__ void __launch_bounds__(kBlockThreads)
    spread_positions(const __grid_constant__ PoolArgs args, const __grid_constant__ PositionGrid grid) {
  using T = Compute<Stored>;
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= grid.count) return;
  const Position input = position_at(grid, index);
  const DividedAxis &height = grid.height, &width = grid.width;
  const Cover rows = cover_of(height, input.row), columns = cover_of(width, input.column);
  Pack<T, kWidth> dx{};
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const int64_t row_tap = tap_at(height, row, input.row);
    if (row_tap < 0) continue;
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      const int64_t column_tap = tap_at(width, column, input.column);
      if (column_tap < 0) continue;
      const int64_t at = ((input.plane * height.out + row) * width.out + column) * args.channels + input.pack * kWidth;
      Pack<T, kWidth> shares = load_values<kWidth>(static_cast<const Stored*>(args.y) + at);
      int taps[kWidth];
      if constexpr (Op::kHasTaps) {
        load_taps(args, at, taps);
      } else {
        const T divisor = divisor_of<T>(args, window_of(height, row, args.count_include_pad).extent,
                                        window_of(width, column, args.count_include_pad).extent);
#pragma unroll
        for (T& share : shares.at) share /= divisor;
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        dx.at[i] += Op::share(shares.at[i], taps[i], int(row_tap * width.kernel + column_tap));
    }
  }
  store_values<kWidth>(static_cast<Stored*>(args.x) + index * kWidth, dx);
}

// ------------------------------------------------------------------------------------------- gather

// y = x at the maxima, or zero where a window had none; in any layout, and without arithmetic.
template <class Bits>
__global__ void __launch_bounds__(kBlockThreads)
    gather_maxima(const __grid_constant__ PoolArgs args, const __grid_constant__ PositionGrid grid) {
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= grid.count) return;
  const Position output = position_at(grid, index);
  int taps[1];
  load_taps(args, index, taps);
  Bits value = 0;
  if (taps[0] >= 0) {
    const Division tap = split_tap(grid.width, taps[0]);
    const int64_t row = position_of(grid.height, output.row, tap.quotient);
    const int64_t column = position_of(grid.width, output.column, tap.rest);
    const int64_t at = ((output.plane * args.height.in + row) * args.width.in + column) * args.channels + output.pack;
    value = static_cast<const Bits*>(args.x)[at];
  }
  static_cast<Bits*>(args.y)[index] = value;
}

// ----------------------------------------------------------------------------------------- launchers

template <class Op, class Stored, int kWidth>
void run_positions(const PoolArgs& args) {
  const PositionGrid grid(args, args.height.in, args.width.in, kWidth);
  launch(spread_positions<Op, Stored, kWidth>, unsigned(blocks_for(grid.count)), kBlockThreads, 0, args, grid);
}

template <class Op, class Stored>
bool run_usual(const PoolArgs& args) {
  return with_usual_window(args, [&](auto window) {
    using W = decltype(window);
    constexpr int64_t kColumns = kOutputs<Stored> * W::kStride;
    const int64_t rows = (args.height.in + W::kStride - 1) / W::kStride;
    const BlockGrid grid(args, rows, (args.width.in + kColumns - 1) / kColumns);
    launch(spread_blocks<Op, Stored, W>, unsigned(blocks_for(grid.count)), kBlockThreads, 0, args, grid);
  });
}

template <class Op>
void backward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    if constexpr (sizeof(Stored) < 8) {
      if (args.channels > 1 && channels_fit_packs<Stored>(args))
        return run_positions<Op, Stored, kPackOf16<Stored>>(args);
      if (args.channels == 1 && run_usual<Op, Stored>(args)) return;
    }
    run_positions<Op, Stored, 1>(args);
  });
}

template <class Bits>
void gather_bits(const PoolArgs& args) {
  const PositionGrid grid(args, args.height.out, args.width.out, 1);
  launch(gather_maxima<Bits>, unsigned(blocks_for(grid.count)), kBlockThreads, 0, args, grid);
}

void gather(const PoolArgs& args) {
  switch (item_size(args.dtype)) {
    case 2: return gather_bits<uint16_t>(args);
    case 4: return gather_bits<uint32_t>(args);
    default: return gather_bits<uint64_t>(args);
  }
}

}  // namespace

FASTNN_CUDA_KERNEL(max_pool_backward, backward<ToMaximum>)
FASTNN_CUDA_KERNEL(max_pool_channels_last_backward, backward<ToMaximum>)
FASTNN_CUDA_KERNEL(avg_pool_backward, backward<ToAll>)
FASTNN_CUDA_KERNEL(avg_pool_channels_last_backward, backward<ToAll>)
FASTNN_CUDA_KERNEL(max_pool_gather, gather)

}  // namespace fastnn
