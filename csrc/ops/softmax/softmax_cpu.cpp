// softmax on the CPU: see softmax.h for the formulas.
//
// bytes: x and y once; arithmetic: one exp an element. Along the last axis a row stays in L1 or L2 for its passes:
// maximum, exponentials (into a buffer) and their sum, result; short rows take each pass in groups, so that one's sum
// is known while another's is added up. Along another axis, a block of kColumns columns goes through the same passes
// row by row, its maxima and sums in registers. The maximum passes NaN over: its exponential makes the sum, and with it
// the row, NaN.
#include "ops/softmax/softmax.h"

#include "simd/row.h"
#include "simd/stream.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 16384;  // elements of a chunk, at least one group of rows or one column block
constexpr int64_t kGroup = 4;      // short rows that take each pass together
constexpr int64_t kRegisters = 4;  // of a row of a column block

inline int64_t grain_of(int64_t elements) { return max(1, kGrain / elements); }
inline int64_t group_of(int64_t n) { return n <= kRowBlock / kGroup ? kGroup : 1; }

// ---------------------------------------------------------------------------------- along the last axis

// Rows [first, first + rows) in each pass together; `buffer` has room for them.
template <class Stored, bool kStreamed>
void forward_group(const SoftmaxArgs& args, int64_t first, int64_t rows, Compute<Stored>* buffer) {
  using T = Compute<Stored>;
  const int64_t n = args.n;
  const Stored* x = static_cast<const Stored*>(args.x) + first * n;
  Stored* y = static_cast<Stored*>(args.y) + first * n;
  T highest[kGroup], sums[kGroup];
  for (int64_t k = 0; k < rows; ++k) highest[k] = row_max(x + k * n, n);
  for (int64_t k = 0; k < rows; ++k) {
    const Values<T> top = broadcast<T>(highest[k]);
    sums[k] = T(row_sum<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
      const Values<T> e = exp_lanes(load_values<Stored>(x + k * n + i, count) - top);
      if (!args.log) store_values<T>(buffer + k * n + i, e, count);
      return e;
    }));
  }
  for (int64_t k = 0; k < rows; ++k) {
    const Values<T> top = broadcast<T>(highest[k]), shift = broadcast<T>(args.log ? log_(sums[k]) : T(0));
    const Values<T> scale = broadcast<T>(T(1) / sums[k]);
    if (args.log)
      write_row<kStreamed>(y + k * n, n, [&](int64_t i, int64_t count) FASTNN_INLINED {
        return (load_values<Stored>(x + k * n + i, count) - top) - shift;
      });
    else
      write_row<kStreamed>(y + k * n, n, [&](int64_t i, int64_t count) FASTNN_INLINED {
        return load_values<T>(buffer + k * n + i, count) * scale;
      });
  }
}

template <class Stored>
void forward_rows(const SoftmaxArgs& args) {
  using T = Compute<Stored>;
  const int64_t n = args.n, group = group_of(n);
  parallel_for(args.outer, grain_of(n), [&](int64_t begin, int64_t end) {
    T* buffer = static_cast<T*>(thread_scratch(Scratch::Operation, size_t(group * n) * sizeof(T)));
    with_streaming(streams_rows<Stored>(args.outer, n), [&](auto streamed) {
      for (int64_t row = begin; row < end; row += group)
        forward_group<Stored, streamed.value>(args, row, min(group, end - row), buffer);
    });
  });
}

template <class Stored, bool kStreamed>
void backward_group(const SoftmaxBackwardArgs& args, int64_t first, int64_t rows) {
  using T = Compute<Stored>;
  const int64_t n = args.n;
  const Stored* dy = static_cast<const Stored*>(args.dy) + first * n;
  const Stored* y = static_cast<const Stored*>(args.y) + first * n;
  Stored* dx = static_cast<Stored*>(args.dx) + first * n;
  T totals[kGroup];
  for (int64_t k = 0; k < rows; ++k) {
    const Stored *dy_row = dy + k * n, *y_row = y + k * n;
    totals[k] = T(row_sum<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
      const Values<T> gradient = load_values<Stored>(dy_row + i, count);
      return args.log ? gradient : gradient * load_values<Stored>(y_row + i, count);
    }));
  }
  for (int64_t k = 0; k < rows; ++k) {
    const Stored *dy_row = dy + k * n, *y_row = y + k * n;
    const Values<T> total = broadcast<T>(totals[k]);
    const auto write = [&](auto log) FASTNN_INLINED {
      write_row<kStreamed>(dx + k * n, n, [&](int64_t i, int64_t count) FASTNN_INLINED {
        const Values<T> gradient = load_values<Stored>(dy_row + i, count);
        const Values<T> value = load_values<Stored>(y_row + i, count);
        if constexpr (log.value) return Values<T>(gradient - exp_lanes(value) * total);
        return value * (gradient - total);
      });
    };
    args.log ? write(Constant<1>()) : write(Constant<0>());
  }
}

template <class Stored>
void backward_rows(const SoftmaxBackwardArgs& args) {
  const int64_t n = args.n, group = group_of(n);
  parallel_for(args.outer, grain_of(n), [&](int64_t begin, int64_t end) {
    with_streaming(streams_rows<Stored>(args.outer, n), [&](auto streamed) {
      for (int64_t row = begin; row < end; row += group)
        backward_group<Stored, streamed.value>(args, row, min(group, end - row));
    });
  });
}

// -------------------------------------------------------------------------------- along another axis

// Calls run(first, columns, registers) for every block of columns, several registers wide or, at the end, up to one.
// `first` is the block's first element; rows of the block are `inner` elements apart.
template <class T, class Run>
void for_each_column_block(int64_t outer, int64_t n, int64_t inner, const Run& run) {
  constexpr int64_t wide = kRegisters * kLanes<T>;
  const int64_t blocks = ceil_div(inner, wide);
  parallel_for(outer * blocks, grain_of(n * min(inner, wide)), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block % blocks * wide, last = min(inner, first + wide);
      const int64_t start = block / blocks * n * inner;
      if (last - first == wide) {
        run(start + first, int64_t(kLanes<T>), Constant<kRegisters>());
      } else {
        for (int64_t column = first; column < last; column += kLanes<T>)
          run(start + column, min(last - column, kLanes<T>), Constant<1>());
      }
    }
  });
}

template <class Stored>
void forward_columns(const SoftmaxArgs& args) {
  using T = Compute<Stored>;
  const Stored* x = static_cast<const Stored*>(args.x);
  Stored* y = static_cast<Stored*>(args.y);
  for_each_column_block<T>(args.outer, args.n, args.inner, [&](int64_t first, int64_t count, auto registers) {
    constexpr int64_t width = registers.value * kLanes<T>;
    T* buffer = static_cast<T*>(thread_scratch(Scratch::Operation, size_t(args.n * width) * sizeof(T)));
    Values<T> highest[registers.value], sums[registers.value];
    // Calls visit(where, r, row) for every register.
    const auto for_each = [&](const auto& visit) FASTNN_INLINED {
      for (int64_t row = 0; row < args.n; ++row)
#pragma GCC unroll 4
        for (int64_t r = 0; r < registers.value; ++r) visit(first + row * args.inner + r * kLanes<T>, r, row);
    };
    for (int64_t r = 0; r < registers.value; ++r) {
      highest[r] = broadcast<T>(-static_cast<T>(INFINITY));
      sums[r] = Values<T>{};
    }
    for_each([&](int64_t at, int64_t r, int64_t) FASTNN_INLINED {
      const Values<T> value = load_values<Stored>(x + at, count);
      highest[r] = value > highest[r] ? value : highest[r];
    });
    for_each([&](int64_t at, int64_t r, int64_t row) FASTNN_INLINED {
      const Values<T> e = exp_lanes(load_values<Stored>(x + at, count) - highest[r]);
      sums[r] += e;
      store_values<T>(buffer + row * width + r * kLanes<T>, e);
    });
    for (int64_t r = 0; r < registers.value; ++r)
      for (int64_t lane = 0; lane < kLanes<T>; ++lane)
        sums[r][lane] = args.log ? log_(T(sums[r][lane])) : T(1) / sums[r][lane];
    if (args.log)
      for_each([&](int64_t at, int64_t r, int64_t) FASTNN_INLINED {
        store_values<Stored>(y + at, (load_values<Stored>(x + at, count) - highest[r]) - sums[r], count);
      });
    else
      for_each([&](int64_t at, int64_t r, int64_t row) FASTNN_INLINED {
        store_values<Stored>(y + at, load_values<T>(buffer + row * width + r * kLanes<T>) * sums[r], count);
      });
  });
}

template <class Stored>
void backward_columns(const SoftmaxBackwardArgs& args) {
  using T = Compute<Stored>;
  const Stored *dy = static_cast<const Stored*>(args.dy), *y = static_cast<const Stored*>(args.y);
  Stored* dx = static_cast<Stored*>(args.dx);
  for_each_column_block<T>(args.outer, args.n, args.inner, [&](int64_t first, int64_t count, auto registers) {
    Values<T> totals[registers.value] = {};
    const auto for_each = [&](const auto& visit) FASTNN_INLINED {
      for (int64_t row = 0; row < args.n; ++row)
#pragma GCC unroll 4
        for (int64_t r = 0; r < registers.value; ++r) {
          const int64_t at = first + row * args.inner + r * kLanes<T>;
          visit(at, r, load_values<Stored>(dy + at, count), load_values<Stored>(y + at, count));
        }
    };
    for_each([&](int64_t, int64_t r, Values<T> gradient, Values<T> value)
                 FASTNN_INLINED { totals[r] += args.log ? gradient : gradient * value; });
    if (args.log)
      for_each([&](int64_t at, int64_t r, Values<T> gradient, Values<T> value)
                   FASTNN_INLINED { store_values<Stored>(dx + at, gradient - exp_lanes(value) * totals[r], count); });
    else
      for_each([&](int64_t at, int64_t r, Values<T> gradient, Values<T> value)
                   FASTNN_INLINED { store_values<Stored>(dx + at, value * (gradient - totals[r]), count); });
  });
}

// ------------------------------------------------------------------------------------------ launchers

template <class Stored>
void forward_of(const SoftmaxArgs& args) {
  args.inner == 1 ? forward_rows<Stored>(args) : forward_columns<Stored>(args);
}

template <class Stored>
void backward_of(const SoftmaxBackwardArgs& args) {
  args.inner == 1 ? backward_rows<Stored>(args) : backward_columns<Stored>(args);
}

void forward(const SoftmaxArgs& args) {
  if (args.outer == 0 || args.n == 0 || args.inner == 0) return;
  if (args.dtype == DType::Float32) return forward_of<float>(args);
  if (args.dtype == DType::Float64) return forward_of<double>(args);
  args.dtype == DType::BFloat16 ? forward_of<bfloat16>(args) : forward_of<float16>(args);
}

void backward(const SoftmaxBackwardArgs& args) {
  if (args.outer == 0 || args.n == 0 || args.inner == 0) return;
  if (args.dtype == DType::Float32) return backward_of<float>(args);
  if (args.dtype == DType::Float64) return backward_of<double>(args);
  args.dtype == DType::BFloat16 ? backward_of<bfloat16>(args) : backward_of<float16>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(softmax_forward, forward)
FASTNN_CPU_KERNEL(softmax_backward, backward)

}  // namespace fastnn
