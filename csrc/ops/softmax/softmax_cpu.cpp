// softmax on the CPU: see softmax.h for the formulas.
//
// bytes: x once, y twice (it holds the exponentials until their sum is known); arithmetic: one exp, ~20
// operations, an element. Along the last axis a row stays in L1/L2 for its three passes: maximum,
// exponentials and their sum, scale. Along another axis, 32 columns advance together, row by row. 16-bit
// floats pass through float32 buffers: a whole row, or the rows of a column block. The maximum passes NaN
// over: its exponential makes the sum, and with it the row, NaN.
#include "ops/softmax/softmax.h"

#include "simd/convert.h"
#include "simd/row.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 8192;  // elements of a chunk, at least one row or column block
constexpr int64_t kColumns = 32;

inline int64_t grain_of(int64_t elements) { return elements < kGrain ? kGrain / elements : 1; }

// A row in the compute type: in place, or loaded into `buffer`.
template <class T>
const T* load(const void* data, DType dtype, int64_t first, int64_t n, T* buffer) {
  if (dtype == dtype_of<T>()) return static_cast<const T*>(data) + first;
  FASTNN_LEVEL::load_row(buffer, static_cast<const char*>(data) + first * int64_t(item_size(dtype)), dtype, 1, n);
  return buffer;
}

// Where to compute a row: in place, or in `buffer`, which `finish` then stores.
template <class T>
T* target(void* data, DType dtype, int64_t first, T* buffer) {
  return dtype == dtype_of<T>() ? static_cast<T*>(data) + first : buffer;
}

template <class T>
void finish(void* data, DType dtype, int64_t first, int64_t n, const T* row) {
  if (dtype == dtype_of<T>()) return;
  FASTNN_LEVEL::store_row(static_cast<char*>(data) + first * int64_t(item_size(dtype)), dtype, 1, row, n);
}

// ---------------------------------------------------------------------------------- along the last axis

template <class T>
void forward_row(bool log, const T* x, T* y, int64_t n) {
  const T highest = row_max(x, n);
  if (log) {
    const T log_sum = T(log_(row_sum<T>(n, [&](int64_t i) { return exp_(x[i] - highest); })));
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - highest) - log_sum;
    return;
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = exp_(x[i] - highest);
  const T scale = T(1 / row_sum<T>(n, [&](int64_t i) { return y[i]; }));
  for (int64_t i = 0; i < n; ++i) y[i] *= scale;
}

template <class T>
void backward_row(bool log, const T* dy, const T* y, T* dx, int64_t n) {
  if (log) {
    const T total = T(row_sum<T>(n, [&](int64_t i) { return dy[i]; }));
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) dx[i] = dy[i] - exp_(y[i]) * total;
  } else {
    const T total = T(row_sum<T>(n, [&](int64_t i) { return dy[i] * y[i]; }));
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) dx[i] = y[i] * (dy[i] - total);
  }
}

template <class T>
T* row_buffers(DType dtype, int64_t n, int64_t count) {
  if (dtype == dtype_of<T>()) return nullptr;
  return static_cast<T*>(thread_scratch(Scratch::Operation, size_t(n * count) * sizeof(T)));
}

template <class T>
void forward_rows(const SoftmaxArgs& args) {
  const int64_t n = args.n;
  parallel_for(args.outer, grain_of(n), [&](int64_t begin, int64_t end) {
    T* buffer = row_buffers<T>(args.dtype, n, 1);
    for (int64_t row = begin; row < end; ++row) {
      T* y = target(args.y, args.dtype, row * n, buffer);
      forward_row(args.log, load(args.x, args.dtype, row * n, n, buffer), y, n);
      finish(args.y, args.dtype, row * n, n, y);
    }
  });
}

template <class T>
void backward_rows(const SoftmaxBackwardArgs& args) {
  const int64_t n = args.n;
  parallel_for(args.outer, grain_of(n), [&](int64_t begin, int64_t end) {
    T* buffer = row_buffers<T>(args.dtype, n, 2);
    for (int64_t row = begin; row < end; ++row) {
      const T* dy = load(args.dy, args.dtype, row * n, n, buffer);
      const T* y = load(args.y, args.dtype, row * n, n, buffer + n);
      T* dx = target(args.dx, args.dtype, row * n, buffer);
      backward_row(args.log, dy, y, dx, n);
      finish(args.dx, args.dtype, row * n, n, dx);
    }
  });
}

// -------------------------------------------------------------------------------- along another axis

// Calls run(first, columns) for every block of columns: `first` is the block's first element, and rows of
// the block are `inner` elements apart.
template <class Run>
void for_each_block(int64_t outer, int64_t n, int64_t inner, Run run) {
  const int64_t blocks = (inner + kColumns - 1) / kColumns;
  parallel_for(outer * blocks, grain_of(n * kColumns), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t column = block % blocks * kColumns;
      const int64_t columns = inner - column < kColumns ? inner - column : kColumns;
      run(block / blocks * n * inner + column, columns);
    }
  });
}

template <class T>
void forward_columns(const SoftmaxArgs& args) {
  for_each_block(args.outer, args.n, args.inner, [&](int64_t first, int64_t columns) {
    T highest[kColumns], sums[kColumns] = {}, x_buffer[kColumns], y_buffer[kColumns];
    auto for_each_row = [&](auto&& visit) {
      for (int64_t row = 0, at = first; row < args.n; ++row, at += args.inner)
        visit(at, load(args.x, args.dtype, at, columns, x_buffer));
    };
    for (int64_t c = 0; c < kColumns; ++c) highest[c] = -static_cast<T>(INFINITY);
    for_each_row([&](int64_t, const T* x) {
      for (int64_t c = 0; c < columns; ++c) highest[c] = x[c] > highest[c] ? x[c] : highest[c];
    });
    for_each_row([&](int64_t, const T* x) {
      for (int64_t c = 0; c < columns; ++c) sums[c] += exp_(x[c] - highest[c]);
    });
    for (int64_t c = 0; c < columns; ++c) sums[c] = args.log ? log_(sums[c]) : T(1) / sums[c];
    for_each_row([&](int64_t at, const T* x) {
      T* y = target(args.y, args.dtype, at, y_buffer);
#pragma GCC ivdep
      for (int64_t c = 0; c < columns; ++c)
        y[c] = args.log ? (x[c] - highest[c]) - sums[c] : exp_(x[c] - highest[c]) * sums[c];
      finish(args.y, args.dtype, at, columns, y);
    });
  });
}

template <class T>
void backward_columns(const SoftmaxBackwardArgs& args) {
  for_each_block(args.outer, args.n, args.inner, [&](int64_t first, int64_t columns) {
    T totals[kColumns] = {}, dy_buffer[kColumns], y_buffer[kColumns], dx_buffer[kColumns];
    auto for_each_row = [&](auto&& visit) {
      for (int64_t row = 0, at = first; row < args.n; ++row, at += args.inner)
        visit(at, load(args.dy, args.dtype, at, columns, dy_buffer), load(args.y, args.dtype, at, columns, y_buffer));
    };
    for_each_row([&](int64_t, const T* dy, const T* y) {
      for (int64_t c = 0; c < columns; ++c) totals[c] += args.log ? dy[c] : dy[c] * y[c];
    });
    for_each_row([&](int64_t at, const T* dy, const T* y) {
      T* dx = target(args.dx, args.dtype, at, dx_buffer);
#pragma GCC ivdep
      for (int64_t c = 0; c < columns; ++c)
        dx[c] = args.log ? dy[c] - exp_(y[c]) * totals[c] : y[c] * (dy[c] - totals[c]);
      finish(args.dx, args.dtype, at, columns, dx);
    });
  });
}

// ------------------------------------------------------------------------------------------ launchers

template <class Args>
bool is_empty(const Args& args) {
  return args.outer == 0 || args.n == 0 || args.inner == 0;
}

void forward(const SoftmaxArgs& args) {
  const bool wide = args.dtype == DType::Float64;
  if (is_empty(args)) return;
  if (args.inner == 1) return wide ? forward_rows<double>(args) : forward_rows<float>(args);
  wide ? forward_columns<double>(args) : forward_columns<float>(args);
}

void backward(const SoftmaxBackwardArgs& args) {
  const bool wide = args.dtype == DType::Float64;
  if (is_empty(args)) return;
  if (args.inner == 1) return wide ? backward_rows<double>(args) : backward_rows<float>(args);
  wide ? backward_columns<double>(args) : backward_columns<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(softmax_forward, forward)
FASTNN_CPU_KERNEL(softmax_backward, backward)

}  // namespace fastnn
