// Pooling on the CPU.
//
//   y[o] = max or mean of x over the window of o        bytes: x once, y once (and the indices)
//
// One output row at a time: every input row of its window is folded into it. Along the row there are two
// ways. Short fixed windows go tap by tap: tap t of all windows is one strided loop over the row, which
// vectorises. Long or adaptive windows go window by window over contiguous values. Maxima of 2x2 windows
// of stride 2 have a loop of their own.
//
// Rows of 16-bit floats are converted to float32 as they are read. Forward runs over output rows, backward
// over whole planes, so that overlapping windows add up without races and in a fixed order.
#include "ops/pool/max_2x2_cpu.h"
#include "ops/pool/window.h"
#include "simd/convert.h"

namespace fastnn {
namespace {

constexpr int kMaxTaps = 16;
constexpr int64_t kGrain = 32768;  // multiply-adds or comparisons of a chunk

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Outputs [begin, end) of a row whose tap lies in the input; the first of them reads x[source].
struct Tap {
  int64_t begin, end, source;
};

struct Taps {
  int64_t count, stride;  // count 0: go window by window
  Tap tap[kMaxTaps];
};

Taps taps_of(const PoolAxis& axis) {
  Taps taps;
  taps.stride = axis.stride;
  taps.count = axis.stride && axis.kernel <= smaller(kMaxTaps, axis.out) ? axis.kernel : 0;
  for (int64_t t = 0; t < taps.count; ++t) {
    const int64_t shift = t * axis.dilation - axis.padding;
    const int64_t begin = shift < 0 ? (axis.stride - 1 - shift) / axis.stride : 0;
    const int64_t last = axis.in - 1 - shift;
    const int64_t end = last < 0 ? 0 : smaller(last / axis.stride + 1, axis.out);
    taps.tap[t] = {begin, larger(begin, end), begin * axis.stride + shift};
  }
  return taps;
}

bool is_2x2(const PoolAxis& axis) {
  return axis.kernel == 2 && axis.stride == 2 && axis.padding == 0 && axis.dilation == 1 && 2 * axis.out <= axis.in;
}

// Rows of a (height, width) plane in the compute type: in place, or through `buffer`.
template <class T>
struct InputRows {
  const void* plane;
  DType dtype;
  int64_t width;
  T* buffer;

  const T* row(int64_t h) const {
    if (dtype == dtype_of<T>()) return static_cast<const T*>(plane) + h * width;
    const char* from = static_cast<const char*>(plane) + h * width * int64_t(item_size(dtype));
    FASTNN_LEVEL::load_row(buffer, from, dtype, 1, width);
    return buffer;
  }
};

template <class T>
InputRows<T> input_rows(const void* x, DType dtype, int64_t width, int64_t height, int64_t plane, T* buffer) {
  const char* base = static_cast<const char*>(x) + plane * height * width * int64_t(item_size(dtype));
  return {base, dtype, width, buffer};
}

// Buffers of a chunk: an input row, an output row, its indices, its column extents.
template <class T>
struct Buffers {
  T* input;
  T* output;
  T* extents;
  int32_t* indices;
};

template <class T>
Buffers<T> buffers_of(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out;
  const int64_t bytes = (in + 2 * out) * int64_t(sizeof(T)) + out * int64_t(sizeof(int32_t));
  T* base = static_cast<T*>(thread_scratch(Scratch::Operation, size_t(bytes)));
  return {base, base + in, base + in + out, reinterpret_cast<int32_t*>(base + in + 2 * out)};
}

// Calls run(plane, output row) for every output row; work of a row decides the chunks.
template <class T, class Run>
void for_each_output_row(const PoolArgs& args, Run run) {
  const int64_t height_taps = args.height.stride ? smaller(args.height.kernel, args.height.in)
                                                 : args.height.in / larger(args.height.out, 1) + 1;
  const int64_t width_taps =
      args.width.stride ? smaller(args.width.kernel, args.width.in) : args.width.in / larger(args.width.out, 1) + 1;
  const int64_t work = larger(height_taps * width_taps * args.width.out, 1);
  const int64_t grain = larger(kGrain / work, 1);
  parallel_for(args.planes * args.height.out, grain, [&](int64_t begin, int64_t end) {
    const Buffers<T> buffers = buffers_of<T>(args);
    const Taps taps = taps_of(args.width);
    int64_t plane = begin / args.height.out, out_row = begin % args.height.out;
    for (int64_t row = begin; row < end; ++row) {
      run(plane, out_row, taps, buffers);
      if (++out_row == args.height.out) out_row = 0, ++plane;
    }
  });
}

// ------------------------------------------------------------------------------------------ maximum

// The best value so far and, when indexed, where it was; -1 at first. NaN beats everything.
template <bool indexed, class T>
inline void take(T value, int32_t position, T& best, int32_t& index) {
  bool wins = (value > best) | (value != value);
  (void)position, (void)index;
  if constexpr (indexed) {
    wins |= index < 0;
    index = wins ? position : index;
  }
  best = wins ? value : best;
}

template <bool indexed, int64_t fixed_stride, class T>
void max_tap(const T* x, int64_t stride, int64_t n, int64_t position, T* best, int32_t* indices) {
  const int64_t step = fixed_stride ? fixed_stride : stride;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    int32_t unused = 0;
    take<indexed>(x[i * step], int32_t(position + i * step), best[i], indexed ? indices[i] : unused);
  }
}

template <bool indexed, class T>
void max_fold_taps(const Taps& taps, const T* x, int64_t row_start, T* best, int32_t* indices) {
  for (int64_t t = 0; t < taps.count; ++t) {
    const auto [begin, end, source] = taps.tap[t];
    int32_t* at = indexed ? indices + begin : nullptr;
    const int64_t n = end - begin, position = row_start + source;
    if (n <= 0) continue;
    if (taps.stride == 1)
      max_tap<indexed, 1>(x + source, 1, n, position, best + begin, at);
    else if (taps.stride == 2)
      max_tap<indexed, 2>(x + source, 2, n, position, best + begin, at);
    else
      max_tap<indexed, 0>(x + source, taps.stride, n, position, best + begin, at);
  }
}

template <bool indexed, class T>
void max_fold_windows(const PoolAxis& axis, const T* x, int64_t row_start, T* best, int32_t* indices) {
  for (int64_t o = 0; o < axis.out; ++o) {
    const Window window = window_of(axis, o, false);
    T value = best[o];
    int32_t index = indexed ? indices[o] : 0;
    for (int64_t w = window.begin; w < window.end; w += axis.dilation)
      take<indexed>(x[w], int32_t(row_start + w), value, index);
    best[o] = value;
    if constexpr (indexed) indices[o] = index;
  }
}

template <bool indexed, class T>
void max_row(const PoolArgs& args, const Taps& taps, const InputRows<T>& input, int64_t out_row, T* best,
             int32_t* indices) {
  const int64_t width = args.width.in;
  for (int64_t o = 0; o < args.width.out; ++o) {
    best[o] = -static_cast<T>(__builtin_inf());
    if constexpr (indexed) indices[o] = -1;
  }
  const Window rows = window_of(args.height, out_row, false);
  for (int64_t h = rows.begin; h < rows.end; h += args.height.dilation) {
    const T* x = input.row(h);
    if (taps.count)
      max_fold_taps<indexed>(taps, x, h * width, best, indices);
    else
      max_fold_windows<indexed>(args.width, x, h * width, best, indices);
  }
}

template <bool indexed, class T>
void max_forward_typed(const PoolArgs& args) {
  const bool direct = args.dtype == dtype_of<T>();
  const bool pairs = args.dtype == DType::Float32 && is_2x2(args.height) && is_2x2(args.width) && args.width.out >= 2;
  const bool wide_indices = args.index_dtype == DType::Int64;
  for_each_output_row<T>(args, [&](int64_t plane, int64_t out_row, const Taps& taps, const Buffers<T>& buffers) {
    const int64_t width = args.width.in, n = args.width.out;
    const int64_t start = (plane * args.height.out + out_row) * n;
    const InputRows<T> input = input_rows<T>(args.x, args.dtype, width, args.height.in, plane, buffers.input);
    T* best = direct ? static_cast<T*>(args.y) + start : buffers.output;
    int32_t* indices = nullptr;
    if (indexed) indices = wide_indices ? buffers.indices : static_cast<int32_t*>(args.indices) + start;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (pairs) {
        const T* top = input.row(2 * out_row);
        max_2x2_row<indexed>(top, top + width, int32_t(2 * out_row * width), int32_t(width), n, best, indices);
      }
    }
    if (!pairs) max_row<indexed>(args, taps, input, out_row, best, indices);
    if (indexed && wide_indices)
      for (int64_t o = 0; o < n; ++o) static_cast<int64_t*>(args.indices)[start + o] = indices[o];
    if (!direct)
      FASTNN_LEVEL::store_row(static_cast<char*>(args.y) + start * int64_t(item_size(args.dtype)), args.dtype, 1, best,
                              n);
  });
}

void max_forward(const PoolArgs& args) {
  const bool wide = args.dtype == DType::Float64;
  if (args.indices) return wide ? max_forward_typed<true, double>(args) : max_forward_typed<true, float>(args);
  wide ? max_forward_typed<false, double>(args) : max_forward_typed<false, float>(args);
}

// -------------------------------------------------------------------------------------- over planes

// Runs a backward over whole planes: `add(plane, dx)` adds into dx, which starts at zero and is the plane
// itself or, for 16-bit floats, a float32 copy.
template <class T, class Add>
void for_each_plane(const PoolArgs& args, Add add) {
  const int64_t size = args.height.in * args.width.in;
  const int64_t work = larger(size + args.height.out * args.width.out, 1);
  const bool direct = args.dtype == dtype_of<T>();
  parallel_for(args.planes, larger(kGrain / work, 1), [&](int64_t begin, int64_t end) {
    const int64_t buffers = (direct ? 0 : size) + 2 * args.width.out;
    T* buffer = static_cast<T*>(thread_scratch(Scratch::Operation, size_t(buffers) * sizeof(T)));
    for (int64_t plane = begin; plane < end; ++plane) {
      char* out = static_cast<char*>(args.x) + plane * size * int64_t(item_size(args.dtype));
      T* dx = direct ? reinterpret_cast<T*>(out) : buffer + 2 * args.width.out;
      for (int64_t i = 0; i < size; ++i) dx[i] = T(0);
      add(plane, dx, buffer);
      if (!direct) FASTNN_LEVEL::store_row(out, args.dtype, 1, dx, size);
    }
  });
}

template <class T>
const T* gradient_row(const PoolArgs& args, int64_t plane, int64_t out_row, T* buffer) {
  return input_rows<T>(args.y, args.dtype, args.width.out, args.height.out, plane, buffer).row(out_row);
}

template <class Index, class T>
void max_backward_typed(const PoolArgs& args) {
  const int64_t n = args.width.out;
  for_each_plane<T>(args, [&](int64_t plane, T* dx, T* buffer) {
    const Index* indices = static_cast<const Index*>(args.indices) + plane * args.height.out * n;
    for (int64_t out_row = 0; out_row < args.height.out; ++out_row, indices += n) {
      const T* dy = gradient_row<T>(args, plane, out_row, buffer);
      for (int64_t o = 0; o < n; ++o)
        if (indices[o] >= 0) dx[indices[o]] += dy[o];
    }
  });
}

void max_backward(const PoolArgs& args) {
  const bool wide = args.dtype == DType::Float64;
  if (args.index_dtype == DType::Int64)
    return wide ? max_backward_typed<int64_t, double>(args) : max_backward_typed<int64_t, float>(args);
  wide ? max_backward_typed<int32_t, double>(args) : max_backward_typed<int32_t, float>(args);
}

template <class Index>
void max_gather_typed(const PoolArgs& args) {
  const int64_t in = args.height.in * args.width.in, out = args.height.out * args.width.out;
  const int64_t bytes = int64_t(item_size(args.dtype));
  parallel_for(args.planes, larger(kGrain / larger(out, 1), 1), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const Index* indices = static_cast<const Index*>(args.indices) + plane * out;
      const char* x = static_cast<const char*>(args.x) + plane * in * bytes;
      char* y = static_cast<char*>(args.y) + plane * out * bytes;
      for (int64_t o = 0; o < out; ++o)
        for (int64_t byte = 0; byte < bytes; ++byte)
          y[o * bytes + byte] = indices[o] < 0 ? char(0) : x[indices[o] * bytes + byte];
    }
  });
}

void max_gather(const PoolArgs& args) {
  args.index_dtype == DType::Int64 ? max_gather_typed<int64_t>(args) : max_gather_typed<int32_t>(args);
}

// ------------------------------------------------------------------------------------------ average

template <int64_t fixed_stride, class T>
void add_tap(const T* x, int64_t stride, int64_t n, T* sums) {
  const int64_t step = fixed_stride ? fixed_stride : stride;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) sums[i] += x[i * step];
}

template <class T>
T sum_run(const T* x, int64_t n) {
  constexpr int kLanes = 8;
  T lanes[kLanes] = {}, rest = T(0);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane];
  for (; i < n; ++i) rest += x[i];
  for (int lane = 0; lane < kLanes; ++lane) rest += lanes[lane];
  return rest;
}

template <class T>
void sum_fold(const PoolArgs& args, const Taps& taps, const T* x, T* sums) {
  if (!taps.count) {
    for (int64_t o = 0; o < args.width.out; ++o) {
      const Window window = window_of(args.width, o, false);
      sums[o] += sum_run(x + window.begin, window.end - window.begin);
    }
    return;
  }
  for (int64_t t = 0; t < taps.count; ++t) {
    const auto [begin, end, source] = taps.tap[t];
    if (taps.stride == 1)
      add_tap<1>(x + source, 1, end - begin, sums + begin);
    else if (taps.stride == 2)
      add_tap<2>(x + source, 2, end - begin, sums + begin);
    else
      add_tap<0>(x + source, taps.stride, end - begin, sums + begin);
  }
}

// values[o] /= the size of o's window.
template <class T>
void divide_row(const PoolArgs& args, int64_t row_extent, T* values) {
  for (int64_t o = 0; o < args.width.out; ++o) {
    const int64_t columns = window_of(args.width, o, args.count_include_pad).extent;
    values[o] /= args.divisor_override ? T(args.divisor_override) : T(row_extent) * T(columns);
  }
}

template <class T>
void avg_forward_typed(const PoolArgs& args) {
  const bool direct = args.dtype == dtype_of<T>();
  for_each_output_row<T>(args, [&](int64_t plane, int64_t out_row, const Taps& taps, const Buffers<T>& buffers) {
    const int64_t n = args.width.out, start = (plane * args.height.out + out_row) * n;
    const InputRows<T> input = input_rows<T>(args.x, args.dtype, args.width.in, args.height.in, plane, buffers.input);
    T* sums = direct ? static_cast<T*>(args.y) + start : buffers.output;
    for (int64_t o = 0; o < n; ++o) sums[o] = T(0);
    const Window rows = window_of(args.height, out_row, args.count_include_pad);
    for (int64_t h = rows.begin; h < rows.end; ++h) sum_fold(args, taps, input.row(h), sums);
    divide_row(args, rows.extent, sums);
    if (!direct)
      FASTNN_LEVEL::store_row(static_cast<char*>(args.y) + start * int64_t(item_size(args.dtype)), args.dtype, 1, sums,
                              n);
  });
}

void avg_forward(const PoolArgs& args) {
  args.dtype == DType::Float64 ? avg_forward_typed<double>(args) : avg_forward_typed<float>(args);
}

template <class T>
void spread_row(const PoolArgs& args, const Taps& taps, const T* shares, T* dx) {
  if (!taps.count) {
    for (int64_t o = 0; o < args.width.out; ++o) {
      const Window window = window_of(args.width, o, false);
      for (int64_t w = window.begin; w < window.end; ++w) dx[w] += shares[o];
    }
    return;
  }
  for (int64_t t = 0; t < taps.count; ++t) {
    const auto [begin, end, source] = taps.tap[t];
#pragma GCC ivdep
    for (int64_t i = 0; i < end - begin; ++i) dx[source + i * taps.stride] += shares[begin + i];
  }
}

template <class T>
void avg_backward_typed(const PoolArgs& args) {
  const Taps taps = taps_of(args.width);
  for_each_plane<T>(args, [&](int64_t plane, T* dx, T* buffer) {
    T* shares = buffer + args.width.out;
    for (int64_t out_row = 0; out_row < args.height.out; ++out_row) {
      const T* dy = gradient_row<T>(args, plane, out_row, buffer);
      for (int64_t o = 0; o < args.width.out; ++o) shares[o] = dy[o];
      const Window rows = window_of(args.height, out_row, args.count_include_pad);
      divide_row(args, rows.extent, shares);
      for (int64_t h = rows.begin; h < rows.end; ++h) spread_row(args, taps, shares, dx + h * args.width.in);
    }
  });
}

void avg_backward(const PoolArgs& args) {
  args.dtype == DType::Float64 ? avg_backward_typed<double>(args) : avg_backward_typed<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(max_pool_forward, max_forward)
FASTNN_CPU_KERNEL(max_pool_backward, max_backward)
FASTNN_CPU_KERNEL(max_pool_gather, max_gather)
FASTNN_CPU_KERNEL(avg_pool_forward, avg_forward)
FASTNN_CPU_KERNEL(avg_pool_backward, avg_backward)

}  // namespace fastnn
