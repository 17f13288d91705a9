// Maximum pooling of contiguous planes on the CPU.
//
//   y[o] = max of x over the window of o; its tap        bytes: x once, y and the taps once
//
// One output row at a time, in registers along it. Three ways, from the narrowest to the widest:
//   pairs     2x2 windows of stride 2, straight from the input rows;
//   by taps   small fixed windows: every input row is split into padded phases once (rows_cpu.h), in a ring as
//             high as a window, and an output register takes its taps one after the other;
//   by folds  any window: its rows are folded into one line of maxima, and the line by windows.
// The backward is in pool_cpu_max_backward.cpp.
#include "ops/pool/pairs_cpu.h"
#include "ops/pool/rows_cpu.h"

namespace fastnn {
namespace {

template <class T>
constexpr T kLowest = -T(__builtin_inf());

// Flat positions in the plane from the taps of an output row, for the caller.
template <class Tap>
void expand_taps(const PoolArgs& args, int64_t out_row, const Tap* taps, int64_t* indices) {
  for (int64_t o = 0; o < args.width.out; ++o) {
    const bool is_empty = taps[o] == Tap(-1);
    const int64_t row = position_of(args.height, out_row, int64_t(taps[o]) / args.width.kernel);
    const int64_t column = position_of(args.width, o, int64_t(taps[o]) % args.width.kernel);
    indices[o] = is_empty ? -1 : row * args.width.in + column;
  }
}

// The taps of output row `row` of all planes: where they stay, or in `buffer`.
template <class Tap>
Tap* taps_of(const PoolArgs& args, int64_t row, Tap* buffer) {
  return args.taps ? static_cast<Tap*>(args.taps) + row * args.width.out : buffer;
}

template <class Tap>
void finish_row(const PoolArgs& args, const RowCursor& at, const Tap* taps) {
  if (args.indices) expand_taps(args, at.row, taps, args.indices + at.index * args.width.out);
}

// ------------------------------------------------------------------------------------------- pairs

template <bool tapped, class Stored>
void max_forward_pairs(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out;
  for_each_rows(args, args.height.out, 2 * in, [&](int64_t begin, int64_t end) {
    uint8_t* tap_line = Pieces(Pieces::size<uint8_t>(out)).take<uint8_t>(out);
    for (RowCursor at(begin, args.height.out); at.index < end; ++at) {
      const Stored* top = static_cast<const Stored*>(args.x) + (at.plane * args.height.in + 2 * at.row) * in;
      uint8_t* taps = taps_of(args, at.index, tap_line);
      max_pairs<tapped>(top, top + in, out, static_cast<Stored*>(args.y) + at.index * out, taps);
      if (tapped) finish_row(args, at, taps);
    }
  });
}

// ------------------------------------------------------------------------------------------ by taps

// The split rows of a window, from the top; `first` is the tap number of the first one's first column.
template <class T>
struct SplitRows {
  const T* line[kMaxTaps];
  int64_t count, first;
};

// `fixed` is the number of taps in a row, or 0 when only known at run time.
template <bool tapped, int fixed, class T>
void max_row_by_taps(const Phases<T>& phases, const SplitRows<T>& rows, const Number<T>* first_columns, int64_t n,
                     T* best, uint8_t* taps) {
  const int64_t columns = fixed ? fixed : phases.taps;
  int64_t offset[fixed ? fixed : kMaxTaps];  // a copy, for stores of taps may change anything else
  for (int64_t t = 0; t < columns; ++t) offset[t] = phases.offset[t];
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    Values<T> value = broadcast<T>(kLowest<T>);
    Numbers<T> tap{}, number = broadcast_number<T>(rows.first);
    if (tapped) {
      memcpy(&tap, first_columns + i, sizeof tap);
      tap += number;
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      const T* line = rows.line[r] + i;
#pragma GCC unroll 3
      for (int64_t t = 0; t < columns; ++t) {
        take<tapped, T>(load_values<T>(line + offset[t]), number, value, tap);
        if (tapped) number += 1;
      }
    }
    store_values<T>(best + i, value, count);
    if (tapped) store_taps<T>(taps + i, tap, count);
  });
}

template <bool tapped, int fixed, class T>
void max_forward_by_taps(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out, ring = ring_slots(reach_of(args.height) + args.height.stride);
  const Phases<T> phases(args.width);
  const Sink sink = result_rows<T>(args.y, args.dtype);
  const int64_t registers = max(out, kLanes<T>);
  for_each_rows(args, args.height.out, inputs_of_row(args), [&](int64_t begin, int64_t end) {
    Pieces pieces(Pieces::size<T>(ring * phases.size()) + Pieces::size<T>(in) + Pieces::size<T>(2 * out) +
                  Pieces::size<uint8_t>(out) + Pieces::size<Number<T>>(registers));
    T *lines = pieces.take<T>(ring * phases.size()), *buffer = pieces.take<T>(in), *line = pieces.take<T>(2 * out);
    uint8_t* tap_line = pieces.take<uint8_t>(out);
    Number<T>* first_columns = pieces.take<Number<T>>(registers);
    for (int64_t slot = 0; slot < ring; ++slot) phases.fill(lines + slot * phases.size(), kLowest<T>);
    for (int64_t o = 0; o < registers; ++o) first_columns[o] = Number<T>(o < out ? window_of(args.width, o).first : 0);

    int64_t split_to = -1;  // rows of the plane below this one are in the ring
    for (RowCursor at(begin, args.height.out); at.index < end; ++at) {
      const Window window = window_of(args.height, at.row);
      if (split_to < 0 || at.row == 0) split_to = window.begin;
      // One output row ahead: a load from a line that is still being stored would wait for the store.
      const Window ahead = at.row + 1 < args.height.out ? window_of(args.height, at.row + 1) : window;
      for (; split_to < ahead.end; ++split_to)
        phases.split(get_row<T>(args.x, args.dtype, at.plane * args.height.in + split_to, in, buffer), in,
                     lines + (split_to & (ring - 1)) * phases.size());
      SplitRows<T> rows{{}, 0, window.first * args.width.kernel};
      for (int64_t h = window.begin; h < window.end; h += args.height.dilation)
        rows.line[rows.count++] = lines + (h & (ring - 1)) * phases.size();
      T* best = sink.line<T>(at.index, out, line);
      uint8_t* taps = taps_of(args, at.index, tap_line);
      max_row_by_taps<tapped, fixed, T>(phases, rows, first_columns, out, best, taps);
      if (tapped) finish_row(args, at, taps);
      sink.put(at.index, out, best);
    }
  });
}

// ----------------------------------------------------------------------------------------- by folds

// The maxima of the columns over rows `step` elements apart, and the taps that their rows begin with: `first`
// and every `row_taps` from there on. Says whether there is a NaN among the maxima.
template <class Stored>
bool fold_rows(const Stored* x, int64_t n_rows, int64_t step, int64_t first, int64_t row_taps, int64_t n,
               Compute<Stored>* best, Number<Compute<Stored>>* rows) {
  using T = Compute<Stored>;
  Numbers<T> nan{};
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    Values<T> value = broadcast<T>(kLowest<T>);
    Numbers<T> at = broadcast_number<T>(first), number = at;
    for (int64_t row = 0; row < n_rows; ++row, number += Number<T>(row_taps)) {
      prefetch(x + row * step + i);
      take<true, T>(load_values<Stored>(x + row * step + i, count), number, value, at);
    }
    store_values<T>(best + i, value, count);
    memcpy(rows + i, &at, size_t(count) * sizeof(Number<T>));
    nan |= value != value;
  });
  return any_lane<T>(nan);
}

// A line of such maxima, with room for one more register; of `n_rows` rows.
template <class T>
struct Folded {
  T* best;
  Number<T>* rows;
  int64_t n_rows;
  bool has_nan;
};

// The maximum of a window over the line, and its tap: of equal values the first in order of rows, then
// columns; of NaNs the last.
template <class T>
Number<T> max_by_columns(const PoolAxis& width, const Window& window, const Folded<T>& line, T* value) {
  T highest = kLowest<T>;
  Number<T> column = Number<T>(window.first), tap = -1;
  for (int64_t w = window.begin; w < window.end; w += width.dilation, ++column) {
    const T x = line.best[w];
    const Number<T> number = line.rows[w] + column;
    const bool wins =
        x != x ? highest == highest || number > tap : x > highest || (x == highest && (tap < 0 || number < tap));
    if (wins) highest = x, tap = number;
  }
  *value = highest;
  return tap;
}

// The same without NaN and dilation: the highest value, then the lowest tap that has it.
template <class T>
Number<T> max_by_registers(const Window& window, const Folded<T>& line, T* value) {
  const auto for_each_register = [&](const auto& use) FASTNN_INLINED {
    for (int64_t w = window.begin; w < window.end; w += kLanes<T>) {
      const Numbers<T> inside = lane_numbers<T>() < Number<T>(min(window.end - w, kLanes<T>));
      use(w, inside ? load_values<T>(line.best + w) : broadcast<T>(kLowest<T>), inside);
    }
  };
  Values<T> best = broadcast<T>(kLowest<T>);
  for_each_register([&](int64_t, Values<T> x, Numbers<T>) FASTNN_INLINED { best = x > best ? x : best; });
  const T highest = highest_lane<T>(best);
  Numbers<T> taps = broadcast_number<T>(INT32_MAX);
  for_each_register([&](int64_t w, Values<T> x, Numbers<T> inside) FASTNN_INLINED {
    Numbers<T> number;
    memcpy(&number, line.rows + w, sizeof number);
    number += lane_numbers<T>() + Number<T>(w - window.begin);
    const Numbers<T> wins = (x == broadcast<T>(highest)) & inside & (number < taps);
    taps = wins ? number : taps;
  });
  *value = highest;
  return lowest_lane<T>(taps);
}

// All windows of `kernel` values side by side, without NaN.
template <class Tap, class T>
void max_in_registers(const PoolAxis& width, const Folded<T>& line, T* values, Tap* taps) {
  const int64_t n = width.out * width.kernel;
  const Numbers<T> columns = lane_numbers<T>() & Number<T>(width.kernel - 1);
  for (int64_t w = 0, o = 0; w < n; w += kLanes<T>) {
    Values<T> best = load_values<T>(line.best + w);
    Numbers<T> number;
    memcpy(&number, line.rows + w, sizeof number);
    number += columns;
    for (int64_t apart = 1; apart < width.kernel; apart *= 2) {
      const Numbers<T> across = lane_numbers<T>() ^ Number<T>(apart);
      const Values<T> other = pick<T>(best, best, across), bits = Values<T>(number);
      const Numbers<T> other_number = Numbers<T>(pick<T>(bits, bits, across));
      const Numbers<T> wins = (other > best) | ((other == best) & (other_number < number));
      best = wins ? other : best;
      number = wins ? other_number : number;
    }
    T lanes[kLanes<T>];
    Number<T> numbers[kLanes<T>];
    store_values<T>(lanes, best);
    memcpy(numbers, &number, sizeof number);
    for (int64_t lane = 0; lane < min(n - w, kLanes<T>); lane += width.kernel, ++o) {
      values[o] = lanes[lane];
      taps[o] = Tap(numbers[lane]);
    }
  }
}

template <class T>
Number<T> max_of_window(const PoolAxis& width, const Window& window, const Folded<T>& line, T* value) {
  if (line.has_nan || width.dilation > 1 || window.first > 0) return max_by_columns(width, window, line, value);
  return max_by_registers(window, line, value);
}

template <class Tap, class Stored>
void max_forward_by_folds(const PoolArgs& args) {
  using T = Compute<Stored>;
  const int64_t in = args.width.in, out = args.width.out, step = args.height.dilation * in;
  const Sink sink = result_rows<T>(args.y, args.dtype);
  for_each_rows(args, args.height.out, inputs_of_row(args), [&](int64_t begin, int64_t end) {
    const int64_t size = in + kLanes<T>;
    Pieces pieces(2 * (Pieces::size<T>(size) + Pieces::size<Number<T>>(size)) + Pieces::size<T>(2 * out) +
                  Pieces::size<Tap>(out));
    Folded<T> folded[2];
    for (Folded<T>& line : folded) line = {pieces.take<T>(size), pieces.take<Number<T>>(size), 0, false};
    T* line = pieces.take<T>(2 * out);
    Tap* tap_line = pieces.take<Tap>(out);
    const auto fold = [&](const RowCursor& at) {
      const Window rows = window_of(args.height, at.row);
      const Stored* x = static_cast<const Stored*>(args.x) + (at.plane * args.height.in + rows.begin) * in;
      Folded<T>& to = folded[at.index & 1];
      to.n_rows = max(rows.end - rows.begin + args.height.dilation - 1, 0) / args.height.dilation;
      const int64_t first = rows.first * args.width.kernel;
      to.has_nan = fold_rows(x, to.n_rows, step, first, args.width.kernel, in, to.best, to.rows);
    };
    // One row ahead: a load from a line that is still being stored would wait for the store.
    RowCursor at(begin, args.height.out), ahead = at;
    fold(ahead);
    for (; at.index < end; ++at) {
      if ((++ahead).index < end) fold(ahead);
      const Folded<T>& from = folded[at.index & 1];
      T* values = sink.line<T>(at.index, out, line);
      Tap* taps = taps_of(args, at.index, tap_line);
      const bool in_registers = from.n_rows > 0 && !from.has_nan && fits_registers<T>(args.width);
      if (in_registers) max_in_registers(args.width, from, values, taps);
      for (int64_t o = in_registers ? out : 0; o < out; ++o) {
        const Number<T> tap = max_of_window<T>(args.width, window_of(args.width, o), from, values + o);
        taps[o] = Tap(from.n_rows > 0 ? tap : -1);
      }
      finish_row(args, at, taps);
      sink.put(at.index, out, values);
    }
  });
}

// ---------------------------------------------------------------------------------------- launchers

// A dilated window that reaches into the padding may hold nothing: only folds look out for that.
bool may_be_empty(const PoolAxis& axis) { return axis.dilation > 1 && axis.padding > 0; }

template <bool tapped, class Stored>
void max_forward_tapped(const PoolArgs& args) {
  using T = Compute<Stored>;
  if (is_2x2(args)) return max_forward_pairs<tapped, Stored>(args);
  if (goes_by_taps(args) && !may_be_empty(args.height) && !may_be_empty(args.width)) {
    if (args.width.kernel == 2) return max_forward_by_taps<tapped, 2, T>(args);
    if (args.width.kernel == 3) return max_forward_by_taps<tapped, 3, T>(args);
    return max_forward_by_taps<tapped, 0, T>(args);
  }
  if (args.tap_dtype == DType::UInt8) return max_forward_by_folds<uint8_t, Stored>(args);
  max_forward_by_folds<int32_t, Stored>(args);
}

template <class Stored>
void max_forward_typed(const PoolArgs& args) {
  args.taps || args.indices ? max_forward_tapped<true, Stored>(args) : max_forward_tapped<false, Stored>(args);
}

void max_forward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) { max_forward_typed<typename decltype(tag)::type>(args); });
}

}  // namespace

FASTNN_CPU_KERNEL(max_pool_forward, max_forward)

}  // namespace fastnn
