// Pooling on CUDA: see pool.h.
//
//   y[o] = max or mean of x over the window of o; its tap       bytes: x once, y and the taps once
//
// Arithmetic is a comparison or an addition for each element of a window, so memory sets the time as long as indices
// cost little: 4.8 TB/s of 2.5 bytes a float16 input leave a thread some 15 instructions for it.
//   blocks      2x2 and 3x3 windows of planes: a thread takes 16 bytes of neighbouring outputs, whose inputs it reads
//               in packs of 16 bytes and holds in registers, each for all the windows that want it
//   positions   anything else: a thread takes one output, with the channels last 16 bytes of channels
//   large       windows of 32 elements and more: the lanes of a warp share a window, or with the channels last 8 warps
//               32 packs of channels, so that loads stay together and few outputs still fill the GPU
#include "ops/pool/windows_cuda.h"

namespace fastnn {
namespace {

constexpr int64_t kLargeWindow = 32;
constexpr int kStrips = 8;  // warps of a block that take large windows
constexpr int kNoTap = INT32_MAX;

// ------------------------------------------------------------------------------------------ maximum

// Of equal values the first one's tap, of NaNs the last one's.
template <class T>
struct Highest {
  T value = T(-INFINITY);
  int tap = kNoTap;

  __device__ void take(T x, int number) {
    if (x > value || x != x) value = x, tap = number;
  }
  static __device__ Highest merge(const Highest& a, const Highest& b) {
    const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
    if (a_is_nan && b_is_nan) return a.tap > b.tap ? a : b;
    if (a_is_nan || b_is_nan) return a_is_nan ? a : b;
    if (a.value != b.value) return a.value > b.value ? a : b;
    return a.tap < b.tap ? a : b;
  }
};

struct Maximum {
  static constexpr bool kHasTaps = true;
  template <class T>
  using State = Highest<T>;
  template <class T>
  static __device__ T missing() {
    return T(-INFINITY);
  }
  // The state before a window's elements, of which the first has number `tap`: none may be higher than -inf.
  template <class T>
  static __device__ Highest<T> start(int tap) {
    Highest<T> state;
    state.tap = tap;
    return state;
  }
};

// ------------------------------------------------------------------------------------------ average

template <class T>
struct Added {
  T value = T(0);

  __device__ void take(T x, int) { value += x; }
  static __device__ Added merge(const Added& a, const Added& b) {
    Added both;
    both.value = a.value + b.value;
    return both;
  }
};

struct Average {
  static constexpr bool kHasTaps = false;
  template <class T>
  using State = Added<T>;
  template <class T>
  static __device__ T missing() {
    return T(0);
  }
  template <class T>
  static __device__ Added<T> start(int) {
    return {};
  }
};

// ------------------------------------------------------------------------------------------ results

// The windows' axes, and the place of a result among them.
template <class Axis>
struct Output {
  const Axis &height, &width;
  int64_t row, column;
};

template <class Op, class State, class Axis>
__device__ auto result_of(const PoolArgs& args, const State& state, const Output<Axis>& output) {
  using T = decltype(state.value);
  if constexpr (Op::kHasTaps) {
    return state.value;
  } else {
    const int64_t row_extent = window_of(output.height, output.row, args.count_include_pad).extent;
    const int64_t column_extent = window_of(output.width, output.column, args.count_include_pad).extent;
    return state.value / divisor_of<T>(args, row_extent, column_extent);
  }
}

template <class Axis>
__device__ void store_index(const PoolArgs& args, int64_t at, const Output<Axis>& output, int tap) {
  const Division by_row = split_tap(output.width, tap);
  args.indices[at] = tap < 0 ? -1
                             : position_of(output.height, output.row, by_row.quotient) * args.width.in +
                                   position_of(output.width, output.column, by_row.rest);
}

// The results of kWidth channels of an output position.
template <class Op, int kWidth, class Stored, class State>
__device__ void store_position(const PoolArgs& args, int64_t at, const Output<DividedAxis>& output,
                               const State (&states)[kWidth]) {
  Pack<Compute<Stored>, kWidth> values;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values.at[i] = result_of<Op>(args, states[i], output);
  store_values<kWidth>(static_cast<Stored*>(args.y) + at, values);
  if constexpr (Op::kHasTaps) {
    int taps[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) taps[i] = states[i].tap == kNoTap ? -1 : states[i].tap;
    if (args.taps) store_taps(args, at, taps);
    if (!args.indices) return;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) store_index(args, at + i, output, taps[i]);
  }
}

// ------------------------------------------------------------------------------------------- blocks

template <class Op, class Stored, class W>
__global__ void __launch_bounds__(kBlockThreads)
    pool_blocks(const __grid_constant__ PoolArgs args, const __grid_constant__ BlockGrid grid) {
  using T = Compute<Stored>;
  constexpr int kCount = kOutputs<Stored>, kStride = W::kStride, kKernel = W::kKernel;
  constexpr int kLength = (kCount - 1) * kStride + kKernel;
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= grid.count) return;
  const Block block = block_at(grid, index);
  const int height = int(args.height.in), width = int(args.width.in), first = block.block * kCount;
  const Stored* x = static_cast<const Stored*>(args.x) + block.plane * height * width;
  const int top = block.row * kStride - W::kPadding, left = first * kStride - W::kPadding;

  typename Op::template State<T> states[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    states[i] = Op::template start<T>(max(-top, 0) * kKernel + max(-(left + i * kStride), 0));
#pragma unroll
  for (int row = 0; row < kKernel; ++row) {
    if (top + row < 0 || top + row >= height) continue;
    T run[kLength];
    load_run<W::kPadding, kCount * kStride, kCount>(x + int64_t(top + row) * width, left, width, grid.in_packs,
                                                    Op::template missing<T>(), run);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
#pragma unroll
      for (int column = 0; column < kKernel; ++column)
        states[i].take(run[i * kStride + column], row * kKernel + column);
  }

  const int n = int(args.width.out) - first;
  const int64_t at = (block.plane * args.height.out + block.row) * args.width.out + first;
  const PoolAxis rows = W::axis(args.height), columns = W::axis(args.width);
  const auto output = [&](int i) { return Output<PoolAxis>{rows, columns, block.row, first + i}; };
  T values[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = result_of<Op>(args, states[i], output(i));
  store_run(static_cast<Stored*>(args.y) + at, values, n, grid.out_packs);
  if constexpr (Op::kHasTaps) {
    uint8_t* taps = static_cast<uint8_t*>(args.taps) + at;
    Pack<uint8_t, kCount> pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.at[i] = uint8_t(states[i].tap);
    if (args.taps && grid.out_packs && n >= kCount) {
      store_pack(taps, pack);
    } else if (args.taps) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (i < n) taps[i] = pack.at[i];
    }
    if (!args.indices) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i < n) store_index(args, at + i, output(i), states[i].tap);
  }
}

// ---------------------------------------------------------------------------------------- positions

// kKernel: of rows and columns, or 0 when only known at run time.
template <class Op, class Stored, int kKernel, int kWidth>
__global__ void __launch_bounds__(kBlockThreads)
    pool_positions(const __grid_constant__ PoolArgs args, const __grid_constant__ PositionGrid grid) {
  using T = Compute<Stored>;
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= grid.count) return;
  const Position at = position_at(grid, index);
  const Window rows = window_of(grid.height, at.row), columns = window_of(grid.width, at.column);
  const Stored* x =
      static_cast<const Stored*>(args.x) + at.plane * args.height.in * args.width.in * args.channels + at.pack * kWidth;
  const int first = int(rows.first * args.width.kernel + columns.first);
  const bool is_empty = rows.begin >= rows.end || columns.begin >= columns.end;

  typename Op::template State<T> states[kWidth];
#pragma unroll
  for (auto& state : states) state = Op::template start<T>(is_empty ? -1 : first);
  const auto take = [&](int64_t row, int64_t column, int tap) {
    const Pack<T, kWidth> values = load_values<kWidth>(x + (row * args.width.in + column) * args.channels);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) states[i].take(values.at[i], tap);
  };
  if constexpr (kKernel > 0) {
#pragma unroll
    for (int row = 0; row < kKernel; ++row)
#pragma unroll
      for (int column = 0; column < kKernel; ++column)
        if (rows.begin + row < rows.end && columns.begin + column < columns.end)
          take(rows.begin + row, columns.begin + column, first + row * kKernel + column);
  } else {
    int tap = first;
    for (int64_t row = rows.begin; row < rows.end; row += args.height.dilation, tap += int(args.width.kernel)) {
      int number = tap;
      for (int64_t column = columns.begin; column < columns.end; column += args.width.dilation)
        take(row, column, number++);
    }
  }
  store_position<Op, kWidth, Stored>(args, index * kWidth, {grid.height, grid.width, at.row, at.column}, states);
}

// -------------------------------------------------------------------------------------------- large

// Every kStep-th position of a window, from number `begin` on: visit(row, column, tap).
template <int kStep, class Visit>
__device__ void for_share(const PositionGrid& grid, const Window& rows, const Window& columns, int begin,
                          const Visit& visit) {
  if (rows.begin >= rows.end || columns.begin >= columns.end) return;
  const int n_rows = int(over_dilation(grid.height, rows.end - rows.begin - 1)) + 1;
  const int n_columns = int(over_dilation(grid.width, columns.end - columns.begin - 1)) + 1;
  const int row_step = kStep / n_columns, column_step = kStep % n_columns;
  int row = begin / n_columns, column = begin % n_columns;
  while (row < n_rows) {
    visit(rows.begin + row * grid.height.dilation, columns.begin + column * grid.width.dilation,
          int((rows.first + row) * grid.width.kernel + columns.first + column));
    row += row_step;
    column += column_step;
    if (column >= n_columns) column -= n_columns, ++row;
  }
}

template <class Op, class Stored>
__global__ void __launch_bounds__(kWarp* kStrips)
    pool_large_planes(const __grid_constant__ PoolArgs args, const __grid_constant__ PositionGrid grid) {
  using T = Compute<Stored>;
  const int64_t index = int64_t(blockIdx.x) * kStrips + threadIdx.y;
  if (index >= grid.count) return;
  const Position at = position_at(grid, index);
  const Window rows = window_of(grid.height, at.row), columns = window_of(grid.width, at.column);
  const Stored* x = static_cast<const Stored*>(args.x) + at.plane * args.height.in * args.width.in;
  typename Op::template State<T> states[1];
  bool is_first = true;
  for_share<kWarp>(grid, rows, columns, int(threadIdx.x), [&](int64_t row, int64_t column, int tap) {
    if (is_first) states[0] = Op::template start<T>(tap);
    is_first = false;
    states[0].take(to_compute<T>(x[row * args.width.in + column]), tap);
  });
  states[0] = merge_warp(states[0]);
  if (threadIdx.x == 0)
    store_position<Op, 1, Stored>(args, index, {grid.height, grid.width, at.row, at.column}, states);
}

template <class Op, class Stored, int kWidth>
__global__ void __launch_bounds__(kWarp* kStrips)
    pool_large_channels(const __grid_constant__ PoolArgs args, const __grid_constant__ PositionGrid grid,
                        const __grid_constant__ Divisor groups) {
  using T = Compute<Stored>;
  using State = typename Op::template State<T>;
  __shared__ State strips[kStrips][kWidth][kWarp];
  const int64_t packs = args.channels / kWidth;
  const Division by_group = groups.divide(blockIdx.x);
  const int64_t pack = by_group.rest * kWarp + threadIdx.x, index = by_group.quotient * packs + min(pack, packs - 1);
  const Position at = position_at(grid, index);
  const Window rows = window_of(grid.height, at.row), columns = window_of(grid.width, at.column);
  const Stored* x =
      static_cast<const Stored*>(args.x) + at.plane * args.height.in * args.width.in * args.channels + at.pack * kWidth;
  State states[kWidth];
  bool is_first = true;
  for_share<kStrips>(grid, rows, columns, int(threadIdx.y), [&](int64_t row, int64_t column, int tap) {
    const Pack<T, kWidth> values = load_values<kWidth>(x + (row * args.width.in + column) * args.channels);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (is_first) states[i] = Op::template start<T>(tap);
      states[i].take(values.at[i], tap);
    }
    is_first = false;
  });
#pragma unroll
  for (int i = 0; i < kWidth; ++i) strips[threadIdx.y][i][threadIdx.x] = states[i];
  block_sync();
  if (threadIdx.y > 0 || pack >= packs) return;
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    for (int strip = 1; strip < kStrips; ++strip) states[i] = State::merge(states[i], strips[strip][i][threadIdx.x]);
  store_position<Op, kWidth, Stored>(args, index * kWidth, {grid.height, grid.width, at.row, at.column}, states);
}

// ----------------------------------------------------------------------------------------- launchers

template <class Op, class Stored, int kKernel, int kWidth>
void run_positions(const PoolArgs& args) {
  const PositionGrid grid(args, args.height.out, args.width.out, kWidth);
  launch(pool_positions<Op, Stored, kKernel, kWidth>, unsigned(blocks_for(grid.count)), kBlockThreads, 0, args, grid);
}

template <class Op, class Stored>
void run_large_channels(const PoolArgs& args) {
  constexpr int kWidth = kPackOf16<Stored>;
  const PositionGrid grid(args, args.height.out, args.width.out, kWidth);
  const int64_t packs = args.channels / kWidth, groups = (packs + kWarp - 1) / kWarp;
  launch(pool_large_channels<Op, Stored, kWidth>, unsigned(grid.count / packs * groups), dim3(kWarp, kStrips), 0, args,
         grid, Divisor(groups));
}

template <class Op, class Stored>
void run_channels(const PoolArgs& args) {
  constexpr int kWidth = kPackOf16<Stored>;
  const PoolAxis &height = args.height, &width = args.width;
  if (height.kernel * width.kernel >= kLargeWindow) return run_large_channels<Op, Stored>(args);
  const auto is_square = [&](int64_t kernel) {
    return height.stride && width.stride && height.kernel == kernel && width.kernel == kernel && height.dilation == 1 &&
           width.dilation == 1;
  };
  if (is_square(2)) return run_positions<Op, Stored, 2, kWidth>(args);
  if (is_square(3)) return run_positions<Op, Stored, 3, kWidth>(args);
  run_positions<Op, Stored, 0, kWidth>(args);
}

template <class Op, class Stored>
bool run_usual(const PoolArgs& args) {
  return with_usual_window(args, [&](auto window) {
    const int64_t blocks = (args.width.out + kOutputs<Stored> - 1) / kOutputs<Stored>;
    const BlockGrid grid(args, args.height.out, blocks);
    launch(pool_blocks<Op, Stored, decltype(window)>, unsigned(blocks_for(grid.count)), kBlockThreads, 0, args, grid);
  });
}

template <class Op>
void forward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    if constexpr (sizeof(Stored) < 8) {  // float64 goes the simple way
      if (args.channels > 1 && channels_fit_packs<Stored>(args)) return run_channels<Op, Stored>(args);
      if (args.channels == 1 && run_usual<Op, Stored>(args)) return;
    }
    if (args.channels > 1 || args.height.kernel * args.width.kernel < kLargeWindow)
      return run_positions<Op, Stored, 0, 1>(args);
    const PositionGrid grid(args, args.height.out, args.width.out, 1);
    launch(pool_large_planes<Op, Stored>, unsigned((grid.count + kStrips - 1) / kStrips), dim3(kWarp, kStrips), 0, args,
           grid);
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(max_pool_forward, forward<Maximum>)
FASTNN_CUDA_KERNEL(max_pool_channels_last_forward, forward<Maximum>)
FASTNN_CUDA_KERNEL(avg_pool_forward, forward<Average>)
FASTNN_CUDA_KERNEL(avg_pool_channels_last_forward, forward<Average>)

}  // namespace fastnn
