// Average pooling of contiguous planes on the CPU.
//
//   y[o] = sum of x over the window of o / divisor[o]              bytes: x once, y once
//   dx[i] = sum of dy[o] / divisor[o] over the windows o that cover i
//
// Sums over a window are sums of columns, then along the row. Forward: the rows of a window are added into one
// line, in registers along it; then its windows are summed, tap by tap from phases (rows_cpu.h) or, long and
// adaptive ones, as runs. Backward: every output row is spread along the row once, into a ring; a row of dx is
// the sum of those that cover it, in ascending order. 2x2 windows of stride 2 go straight from rows to rows,
// and windows over whole planes as one run each.
#include "ops/pool/pairs_cpu.h"
#include "ops/pool/rows_cpu.h"

namespace fastnn {
namespace {

// The windows of a row in sums: whether they go tap by tap, and what each sum is divided by.
template <class T>
struct Columns {
  bool by_taps;
  Phases<T> phases;
  T* extents;  // of every window, rounded up to whole registers

  static bool go_by_taps(const PoolAxis& width) { return width.stride && width.stride <= 2 && width.kernel <= 16; }
  static PoolAxis axis_of_phases(const PoolAxis& width) {
    return go_by_taps(width) ? width : PoolAxis{1, 1, 1, 1, 0, 1};
  }
  static int64_t size(const PoolAxis& width) { return Pieces::size<T>(width.out + kLanes<T>); }

  Columns(const PoolArgs& args, Pieces& pieces)
      : by_taps(go_by_taps(args.width)),
        phases(axis_of_phases(args.width)),
        extents(pieces.take<T>(args.width.out + kLanes<T>)) {
    for (int64_t o = 0; o < args.width.out + kLanes<T>; ++o)
      extents[o] = o < args.width.out ? T(window_of(args.width, o, args.count_include_pad).extent) : T(1);
  }
};

// values[o] / divisor[o]
template <class T>
void divide_row(const PoolArgs& args, const Columns<T>& columns, int64_t row_extent, const T* values, T* quotients) {
  const Values<T> given = broadcast<T>(T(args.divisor_override));
  for_each_block<T>(args.width.out, [&](int64_t i, int64_t count) FASTNN_INLINED {
    const Values<T> extents = load_values<T>(columns.extents + i) * T(row_extent);
    store_values<T>(quotients + i, load_values<T>(values + i, count) / (args.divisor_override ? given : extents),
                    count);
  });
}

// The n contiguous values summed into one register, through four side by side.
template <class Stored>
inline Values<Compute<Stored>> lane_sums(const Stored* x, int64_t n) {
  using T = Compute<Stored>;
  constexpr int64_t lanes = kLanes<T>;
  Values<T> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes)
    for (int r = 0; r < 4; ++r) {
      prefetch(x + i + r * lanes);
      sums[r] += load_values<Stored>(x + i + r * lanes);
    }
  for (; i + lanes <= n; i += lanes) {
    prefetch(x + i);
    sums[0] += load_values<Stored>(x + i);
  }
  if (i < n) sums[1] += load_values<Stored>(x + i, n - i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The sum of a window along a line: of a short one, value by value.
template <class T>
T sum_of_run(const T* x, int64_t n) {
  T sum = T(0);
  if (n < 2 * kLanes<T>) {
    for (int64_t i = 0; i < n; ++i) sum += x[i];
  } else {
    const Values<T> sums = lane_sums(x, n);
    for (int lane = 0; lane < kLanes<T>; ++lane) sum += sums[lane];
  }
  return sum;
}

// ---------------------------------------------------------------------------------------- forward

// line[w] = sum of x[row][w] over n_rows rows that lie `width` apart.
template <class Stored>
void add_rows(const Stored* x, int64_t n_rows, int64_t width, Compute<Stored>* line) {
  using T = Compute<Stored>;
  constexpr int64_t lanes = kLanes<T>;
  int64_t w = 0;
  for (; w + 4 * lanes <= width; w += 4 * lanes) {
    Values<T> sums[4] = {};
    for (int64_t row = 0; row < n_rows; ++row)
      for (int r = 0; r < 4; ++r) {
        const Stored* at = x + row * width + w + r * lanes;
        prefetch(at);
        sums[r] += load_values<Stored>(at);
      }
    for (int r = 0; r < 4; ++r) store_values<T>(line + w + r * lanes, sums[r]);
  }
  for (; w < width; w += lanes) {
    const int64_t count = min(width - w, lanes);
    Values<T> sum{};
    for (int64_t row = 0; row < n_rows; ++row) {
      prefetch(x + row * width + w);
      sum += load_values<Stored>(x + row * width + w, count);
    }
    store_values<T>(line + w, sum, count);
  }
}

// The sums of `kernel` values each, side by side.
template <class T>
void sum_in_registers(const PoolAxis& width, const T* line, T* sums) {
  const int64_t n = width.out * width.kernel;
  for (int64_t w = 0, o = 0; w < n; w += kLanes<T>) {
    Values<T> values = load_values<T>(line + w, min(n - w, kLanes<T>));
    for (int64_t apart = 1; apart < width.kernel; apart *= 2)
      values += pick<T>(values, values, lane_numbers<T>() ^ Number<T>(apart));
    T lanes[kLanes<T>];
    store_values<T>(lanes, values);
    for (int64_t lane = 0; lane < min(n - w, kLanes<T>); lane += width.kernel) sums[o++] = lanes[lane];
  }
}

// The sums of the windows of a line, or of its split, if the windows go tap by tap.
template <class T>
void sum_windows(const PoolArgs& args, const Columns<T>& columns, const T* line, T* sums) {
  if (!columns.by_taps) {
    if (fits_registers<T>(args.width)) return sum_in_registers(args.width, line, sums);
    for (int64_t o = 0; o < args.width.out; ++o) {
      const Window window = window_of(args.width, o);
      sums[o] = sum_of_run<T>(line + window.begin, window.end - window.begin);
    }
    return;
  }
  const Phases<T>& phases = columns.phases;
  for_each_block<T>(args.width.out, [&](int64_t i, int64_t count) FASTNN_INLINED {
    Values<T> sum = load_values<T>(line + phases.offset[0] + i);
    for (int64_t t = 1; t < phases.taps; ++t) sum += load_values<T>(line + phases.offset[t] + i);
    store_values<T>(sums + i, sum, count);
  });
}

template <class Stored>
void avg_forward_rows(const PoolArgs& args) {
  using T = Compute<Stored>;
  const int64_t in = args.width.in, out = args.width.out;
  const Sink sink = result_rows<T>(args.y, args.dtype);
  for_each_rows(args, args.height.out, inputs_of_row(args), [&](int64_t begin, int64_t end) {
    const int64_t line_size = max(Columns<T>::go_by_taps(args.width) ? Phases<T>(args.width).size() : 0, in);
    Pieces pieces(Columns<T>::size(args.width) + 3 * Pieces::size<T>(line_size) + Pieces::size<T>(out) +
                  Pieces::size<T>(2 * out));
    const Columns<T> columns(args, pieces);
    T* whole = pieces.take<T>(line_size);
    T* lines[2] = {pieces.take<T>(line_size), pieces.take<T>(line_size)};
    T *sums = pieces.take<T>(out), *means = pieces.take<T>(2 * out);
    for (T* line : lines)
      for (int64_t i = 0; i < line_size; ++i) line[i] = T(0);
    const auto add = [&](const RowCursor& at) {
      const Window rows = window_of(args.height, at.row);
      const Stored* x = static_cast<const Stored*>(args.x) + (at.plane * args.height.in + rows.begin) * in;
      add_rows(x, rows.end - rows.begin, in, columns.by_taps ? whole : lines[at.index & 1]);
      if (columns.by_taps) columns.phases.split(whole, in, lines[at.index & 1]);
    };
    // One row ahead: a load from a line that is still being stored would wait for the store.
    RowCursor at(begin, args.height.out), ahead = at;
    add(ahead);
    for (; at.index < end; ++at) {
      if ((++ahead).index < end) add(ahead);
      sum_windows(args, columns, lines[at.index & 1], sums);
      T* y = sink.line<T>(at.index, out, means);
      divide_row(args, columns, window_of(args.height, at.row, args.count_include_pad).extent, sums, y);
      sink.put(at.index, out, y);
    }
  });
}

template <class Stored>
void avg_forward_pairs(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out;
  for_each_rows(args, args.height.out, 2 * in, [&](int64_t begin, int64_t end) {
    for (RowCursor at(begin, args.height.out); at.index < end; ++at) {
      const Stored* top = static_cast<const Stored*>(args.x) + (at.plane * args.height.in + 2 * at.row) * in;
      mean_of_pairs(top, top + in, out, static_cast<Stored*>(args.y) + at.index * out);
    }
  });
}

// One window over the whole plane.
bool is_global(const PoolArgs& args) {
  const auto whole = [](const PoolAxis& axis) {
    return axis.out == 1 && axis.padding == 0 && (axis.stride == 0 || axis.kernel == axis.in);
  };
  return whole(args.height) && whole(args.width);
}

template <class T>
T divisor_of_plane(const PoolArgs& args) {
  return T(args.divisor_override ? args.divisor_override : args.height.in * args.width.in);
}

template <class Stored>
void avg_forward_planes(const PoolArgs& args) {
  using T = Compute<Stored>;
  const int64_t plane_size = args.height.in * args.width.in;
  const T divisor = divisor_of_plane<T>(args);
  for_each_rows(args, 1, plane_size, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane += kLanes<T>) {  // one of the results' registers at a time
      const int64_t count = min(end - plane, kLanes<T>);
      Vec<T> sums[kLanes<T>] = {};
      for (int64_t i = 0; i < count; ++i)
        sums[i] = Vec<T>(lane_sums(static_cast<const Stored*>(args.x) + (plane + i) * plane_size, plane_size));
      store_values<Stored>(static_cast<Stored*>(args.y) + plane, row_sums(sums).raw / divisor, count);
    }
  });
}

template <class Stored>
void avg_forward_typed(const PoolArgs& args) {
  if (is_global(args)) return avg_forward_planes<Stored>(args);
  if (is_2x2(args) && !args.divisor_override) return avg_forward_pairs<Stored>(args);
  avg_forward_rows<Stored>(args);
}

// --------------------------------------------------------------------------------------- backward

// line[w] = sum of the shares of the windows that cover w.
template <class T>
void spread_windows(const PoolArgs& args, const Columns<T>& columns, const Spread& spread, const T* shares, T* line) {
  if (!columns.by_taps) {
    for (int64_t w = 0; w < args.width.in; ++w) line[w] = T(0);
    for (int64_t o = 0; o < args.width.out; ++o) {
      const Window window = window_of(args.width, o);
      for (int64_t w = window.begin; w < window.end; ++w) line[w] += shares[o];
    }
    return;
  }
  const int64_t stride = args.width.stride;
  for (int64_t i = 0; i * stride < args.width.in; i += kLanes<T>) {
    Values<T> phases[kMaxStride];
    for (int64_t r = 0; r < stride; ++r) {
      Values<T> sum{};
      for (int64_t k = 0; k < spread.count[r]; ++k) sum += load_values<T>(shares + i + spread.source[r][k].shift);
      phases[r] = sum;
    }
    merge<T>(phases, stride, line + i * stride);
  }
}

// dx = sum of the lines [begin, end) of a ring.
template <class T>
void add_lines(const T* ring, int64_t slots, int64_t length, Cover cover, int64_t n, T* dx) {
  for_each_block<T>(n, [&](int64_t w, int64_t count) FASTNN_INLINED {
    Values<T> sum{};
    for (int64_t row = cover.begin; row < cover.end; ++row)
      sum += load_values<T>(ring + (row & (slots - 1)) * length + w, count);
    store_values<T>(dx + w, sum, count);
  });
}

// The most windows that cover one position of an axis.
int64_t widest_cover(const PoolAxis& axis) {
  return min(axis.stride ? (axis.kernel - 1) / axis.stride + 1 : axis.out / axis.in + 2, axis.out);
}

template <class T>
void avg_backward_rows(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out;
  const Sink sink = gradient_rows<T>(args);
  const Spread spread(Columns<T>::axis_of_phases(args.width));
  const int64_t per_register = max(args.width.stride, 1) * kLanes<T>;
  const int64_t blocks = (in + per_register - 1) / per_register;
  const int64_t length = blocks * per_register, slots = ring_slots(widest_cover(args.height));
  const int64_t shares_length = max(out, blocks * kLanes<T>) + 2 * spread.margin;
  for_each_rows(args, args.height.in, 2 * in, [&](int64_t begin, int64_t end) {
    Pieces pieces(Columns<T>::size(args.width) + Pieces::size<T>(out) + Pieces::size<T>(shares_length) +
                  Pieces::size<T>(slots * length) + Pieces::size<T>(2 * in));
    const Columns<T> columns(args, pieces);
    T *buffer = pieces.take<T>(out), *shares = pieces.take<T>(shares_length);
    T *ring = pieces.take<T>(slots * length), *line = pieces.take<T>(2 * in);
    for (int64_t i = 0; i < shares_length; ++i) shares[i] = T(0);
    int64_t spread_to = -1;  // output rows of the plane below this one are in the ring
    for (RowCursor at(begin, args.height.in); at.index < end; ++at) {
      const Cover cover = cover_of(args.height, at.row);
      if (spread_to < 0 || at.row == 0) spread_to = cover.begin;
      for (; spread_to < cover.end; ++spread_to) {
        const T* dy = get_row<T>(args.y, args.dtype, at.plane * args.height.out + spread_to, out, buffer);
        const int64_t row_extent = window_of(args.height, spread_to, args.count_include_pad).extent;
        divide_row(args, columns, row_extent, dy, shares + spread.margin);
        spread_windows(args, columns, spread, shares + spread.margin, ring + (spread_to & (slots - 1)) * length);
      }
      T* dx = sink.line<T>(at.index, in, line);
      add_lines(ring, slots, length, cover, in, dx);
      sink.put(at.index, in, dx);
    }
    sink.finish();
  });
}

template <class Stored>
void avg_backward_pairs(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out;
  const Sink sink = gradient_rows<Stored>(args);
  for_each_rows(args, args.height.in, in, [&](int64_t begin, int64_t end) {
    Stored* line = Pieces(Pieces::size<Stored>(in)).take<Stored>(in);
    for (RowCursor at(begin, args.height.in); at.index < end; ++at) {
      const int64_t out_row = at.row / 2, covered = out_row < args.height.out ? 2 * out : 0;
      const Stored* dy = static_cast<const Stored*>(args.y) + (at.plane * args.height.out + out_row) * out;
      Stored* dx = sink.line<Stored>(at.index, in, line);
      if (covered) spread_mean_pairs(dy, out, dx);
      for (int64_t w = covered; w < in; ++w) dx[w] = Stored{};
      sink.put(at.index, in, dx);
    }
    sink.finish();
  });
}

template <class Stored>
void avg_backward_planes(const PoolArgs& args) {
  using T = Compute<Stored>;
  const int64_t plane_size = args.height.in * args.width.in;
  const T divisor = divisor_of_plane<T>(args);
  const bool streams =
      args.planes * plane_size * int64_t(sizeof(Stored)) >= kStreamedBytes && plane_size * sizeof(Stored) % 64 == 0;
  for_each_rows(args, 1, plane_size, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const T dy = load_values<Stored>(static_cast<const Stored*>(args.y) + plane, 1)[0];
      Stored* dx = static_cast<Stored*>(args.x) + plane * plane_size;
      streams ? stream_fill<Stored>(dx, dy / divisor, plane_size) : fill<Stored>(dx, dy / divisor, plane_size);
    }
    if (streams) finish_streaming();
  });
}

template <class Stored>
void avg_backward_typed(const PoolArgs& args) {
  if (is_global(args)) return avg_backward_planes<Stored>(args);
  if (is_2x2(args) && !args.divisor_override) return avg_backward_pairs<Stored>(args);
  avg_backward_rows<Compute<Stored>>(args);
}

// ---------------------------------------------------------------------------------------- launchers

void avg_forward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) { avg_forward_typed<typename decltype(tag)::type>(args); });
}

void avg_backward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) { avg_backward_typed<typename decltype(tag)::type>(args); });
}

}  // namespace

FASTNN_CPU_KERNEL(avg_pool_forward, avg_forward)
FASTNN_CPU_KERNEL(avg_pool_backward, avg_backward)

}  // namespace fastnn
