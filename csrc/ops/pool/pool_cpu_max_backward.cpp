// The gradient of maximum pooling of contiguous planes on the CPU, and that gradient's own.
//
//   dx[i] = sum of dy[o] over the windows o whose maximum i was        bytes: dy and the taps once, dx once
//
// Every row of dx is gathered from the output rows whose windows cover it, in ascending order: no atomics, the
// same bits for any number of threads, dx written once. As in the forward: pairs; small fixed windows by
// taps, where a register of dx selects from dy by comparing taps; larger ones that lie apart as zeros with dy
// at the maxima; anything else output by output.
#include "ops/pool/pairs_cpu.h"
#include "ops/pool/rows_cpu.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------------------- pairs

template <class Stored>
void max_backward_pairs(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out;
  const Sink sink = gradient_rows<Stored>(args);
  const int64_t pairs = (args.height.in + 1) / 2;
  for_each_rows(args, pairs, 2 * in, [&](int64_t begin, int64_t end) {
    Pieces pieces(Pieces::size<Stored>(in) * 2);
    Stored *upper = pieces.take<Stored>(in), *lower = pieces.take<Stored>(in);
    for (RowCursor at(begin, pairs); at.index < end; ++at) {
      const int64_t row = at.plane * args.height.in + 2 * at.row;
      const bool has_bottom = 2 * at.row + 1 < args.height.in;
      Stored* top = sink.line<Stored>(row, in, upper);
      Stored* bottom = has_bottom ? sink.line<Stored>(row + 1, in, lower) : lower;
      const int64_t covered = at.row < args.height.out ? 2 * out : 0;
      if (covered) {
        const int64_t from = (at.plane * args.height.out + at.row) * out;
        spread_max_pairs(static_cast<const Stored*>(args.y) + from, static_cast<const uint8_t*>(args.taps) + from, out,
                         top, bottom);
      }
      for (int64_t w = covered; w < in; ++w) top[w] = bottom[w] = Stored{};
      sink.put(row, in, top);
      if (has_bottom) sink.put(row + 1, in, bottom);
    }
    sink.finish();
  });
}

// ------------------------------------------------------------------------------------------ by taps

// dy and the taps of a few output rows, with margins whose taps match nothing.
template <class T>
struct OutputRows {
  T* dy;
  uint8_t* taps;
  int64_t ring, margin, length;  // of a row with its margins

  T* dy_of(int64_t row) const { return dy + (row & (ring - 1)) * length + margin; }
  uint8_t* taps_of(int64_t row) const { return taps + (row & (ring - 1)) * length + margin; }
};

// What a phase of dx gets: dy at the same place of `dy` where the taps are `tap`.
template <class T>
struct Contribution {
  const T* dy;
  const uint8_t* taps;
  Number<T> tap;
};
template <class T>
struct Contributions {
  int64_t n;
  Contribution<T> list[kMaxTaps];
};

// To phase r of row `position`.
template <class T>
void list_contributions(const PoolArgs& args, const Spread& spread, const OutputRows<T>& rows, int64_t position,
                        int64_t r, Contributions<T>& to) {
  const Cover cover = cover_of(args.height, position);
  to.n = 0;
  for (int64_t out_row = cover.begin; out_row < cover.end; ++out_row) {
    const int64_t row_tap = tap_at(args.height, out_row, position);
    if (row_tap < 0) continue;
    for (int64_t k = 0; k < spread.count[r]; ++k) {
      const auto [tap, shift] = spread.source[r][k];
      to.list[to.n++] = {rows.dy_of(out_row) + shift, rows.taps_of(out_row) + shift,
                         Number<T>(row_tap * args.width.kernel + tap)};
    }
  }
}

// `n` registers of every phase, from window i on.
template <int n, int fixed_stride, class T>
inline void gather_registers(const Contributions<T>* phases, int64_t any_stride, int64_t i, T* dx) {
  const int64_t stride = fixed_stride ? fixed_stride : any_stride;
  Values<T> sums[n][fixed_stride ? fixed_stride : kMaxStride];
  for (int64_t r = 0; r < stride; ++r) {
    Values<T> sum[n] = {};
    for (int64_t k = 0; k < phases[r].n; ++k) {
      const Contribution<T> from = phases[r].list[k];
      const Numbers<T> tap = broadcast_number<T>(from.tap);
      for (int j = 0; j < n; ++j)
        sum[j] +=
            where_tap<T>(load_taps<T>(from.taps + i + j * kLanes<T>), tap, load_values<T>(from.dy + i + j * kLanes<T>));
    }
    for (int j = 0; j < n; ++j) sums[j][r] = sum[j];
  }
  for (int j = 0; j < n; ++j) merge<T>(sums[j], stride, dx + (i + j * kLanes<T>)*stride);
}

template <int fixed_stride, class T>
void gather_row(const PoolArgs& args, const Spread& spread, const OutputRows<T>& rows, int64_t position, T* dx) {
  const int64_t stride = args.width.stride, end = (args.width.in + stride - 1) / stride;
  Contributions<T> phases[kMaxStride];
  for (int64_t r = 0; r < stride; ++r) list_contributions(args, spread, rows, position, r, phases[r]);
  int64_t i = 0;
  for (; i + 3 * kLanes<T> < end; i += 4 * kLanes<T>) gather_registers<4, fixed_stride, T>(phases, stride, i, dx);
  if (i + kLanes<T> < end) gather_registers<2, fixed_stride, T>(phases, stride, i, dx), i += 2 * kLanes<T>;
  if (i < end) gather_registers<1, fixed_stride, T>(phases, stride, i, dx);
}

template <int fixed_stride, class T>
void max_backward_by_taps(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out, stride = args.width.stride;
  const Spread spread(args.width);
  const Sink sink = gradient_rows<T>(args);
  const int64_t blocks = (in + stride * kLanes<T> - 1) / (stride * kLanes<T>)+1;
  const int64_t ring = ring_slots((reach_of(args.height) - 1) / args.height.stride + 2);
  const int64_t length = max(out, blocks * kLanes<T>) + 2 * spread.margin, line_size = blocks * kLanes<T> * stride;
  for_each_rows(args, args.height.in, 2 * in, [&](int64_t begin, int64_t end) {
    Pieces pieces(Pieces::size<T>(ring * length) + Pieces::size<uint8_t>(ring * length) +
                  Pieces::size<T>(max(line_size, 2 * in)));
    OutputRows<T> rows{pieces.take<T>(ring * length), pieces.take<uint8_t>(ring * length), ring, spread.margin, length};
    T* line = pieces.take<T>(max(line_size, 2 * in));
    memset(rows.taps, 255, size_t(ring * length));
    for (int64_t i = 0; i < ring * length; ++i) rows.dy[i] = T(0);

    int64_t loaded_to = -1;  // output rows of the plane below this one are in the ring
    for (RowCursor at(begin, args.height.in); at.index < end; ++at) {
      const Cover cover = cover_of(args.height, at.row);
      if (loaded_to < 0 || at.row == 0) loaded_to = cover.begin;
      // One row ahead: a load from a line that is still being stored would wait for the store.
      const int64_t ahead = min(cover.end + 1, args.height.out);
      for (; loaded_to < ahead; ++loaded_to) {
        const int64_t from = at.plane * args.height.out + loaded_to;
        memcpy(rows.dy_of(loaded_to), get_row<T>(args.y, args.dtype, from, out, line), size_t(out) * sizeof(T));
        memcpy(rows.taps_of(loaded_to), static_cast<const uint8_t*>(args.taps) + from * out, size_t(out));
      }
      gather_row<fixed_stride, T>(args, spread, rows, at.row, line);
      T* dx = sink.line<T>(at.index, in, line);
      if (dx != line) memcpy(dx, line, size_t(in) * sizeof(T));
      sink.put(at.index, in, dx);
    }
    sink.finish();
  });
}

// ------------------------------------------------------------------------------------ apart windows

// Windows that do not overlap, none of them larger than what lies between their beginnings.
inline bool are_apart(const PoolArgs& args) {
  const auto is_apart = [](const PoolAxis& axis) {
    return axis.stride && axis.kernel <= axis.stride && axis.padding == 0 && axis.dilation == 1;
  };
  return is_apart(args.height) && is_apart(args.width);
}

constexpr int64_t kZerosBytes = 32 << 10;

// The rows of a row of windows, and what is beyond the last, are zeros but for the maxima. Large results are made in
// a few rows of zeros that stay in the cache, and stored past the caches. Values are copied as they are: Bits.
template <class Tap, class Bits>
void max_backward_apart(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out, size = int64_t(sizeof(Bits));
  const auto first_row = [&](int64_t row) { return row < args.height.out ? row * args.height.stride : args.height.in; };
  const int64_t largest = max(args.height.stride, args.height.in - first_row(args.height.out - 1)) * in;
  const bool streams = args.planes * args.height.in * in * size >= kStreamedBytes && largest * size <= kZerosBytes;
  for_each_rows(args, args.height.out, inputs_of_row(args), [&](int64_t begin, int64_t end) {
    Pieces pieces(Pieces::size<int64_t>(out) + Pieces::size<Bits>(streams ? largest : 0));
    int64_t* places = pieces.take<int64_t>(out);
    Bits* zeros = pieces.take<Bits>(streams ? largest : 0);
    if (streams) memset(zeros, 0, size_t(largest * size));
    for (RowCursor at(begin, args.height.out); at.index < end; ++at) {
      const int64_t row = first_row(at.row), n = (first_row(at.row + 1) - row) * in;
      Bits* dx = static_cast<Bits*>(args.x) + (at.plane * args.height.in + row) * in;
      Bits* rows = streams ? zeros : dx;
      if (!streams) memset(dx, 0, size_t(n * size));
      const Tap* taps = static_cast<const Tap*>(args.taps) + at.index * out;
      const Bits* dy = static_cast<const Bits*>(args.y) + at.index * out;
      for (int64_t o = 0; o < out; ++o) {
        const uint32_t tap = uint32_t(taps[o]), tap_row = tap / uint32_t(args.width.kernel);
        places[o] = int64_t(tap_row) * (in - args.width.kernel) + o * args.width.stride + int64_t(tap);
        rows[places[o]] = dy[o];
      }
      if (!streams) continue;
      stream_copy(dx, zeros, n * size);
      for (int64_t o = 0; o < out; ++o) zeros[places[o]] = 0;
    }
    if (streams) finish_streaming();
  });
}

template <class Tap>
void max_backward_apart(const PoolArgs& args) {
  switch (item_size(args.dtype)) {
    case 2: return max_backward_apart<Tap, uint16_t>(args);
    case 4: return max_backward_apart<Tap, uint32_t>(args);
    default: return max_backward_apart<Tap, uint64_t>(args);
  }
}

// ----------------------------------------------------------------------------------------- in general

template <class Tap, class T>
void max_backward_by_outputs(const PoolArgs& args) {
  const int64_t in = args.width.in, out = args.width.out;
  const Sink sink = gradient_rows<T>(args);
  for_each_rows(args, args.height.in, 2 * in, [&](int64_t begin, int64_t end) {
    Pieces pieces(Pieces::size<T>(2 * in) + Pieces::size<T>(out));
    T *line = pieces.take<T>(2 * in), *buffer = pieces.take<T>(out);
    for (RowCursor at(begin, args.height.in); at.index < end; ++at) {
      T* dx = sink.line<T>(at.index, in, line);
      for (int64_t w = 0; w < in; ++w) dx[w] = T(0);
      const Cover cover = cover_of(args.height, at.row);
      for (int64_t out_row = cover.begin; out_row < cover.end; ++out_row) {
        const int64_t first = tap_at(args.height, out_row, at.row) * args.width.kernel;
        const int64_t from = at.plane * args.height.out + out_row;
        const Tap* taps = static_cast<const Tap*>(args.taps) + from * out;
        const T* dy = get_row<T>(args.y, args.dtype, from, out, buffer);
        for (int64_t o = 0; o < out; ++o) {
          const int64_t column = taps[o] == Tap(-1) ? -1 : int64_t(taps[o]) - first;
          if (column >= 0 && column < args.width.kernel && first >= 0) dx[position_of(args.width, o, column)] += dy[o];
        }
      }
      sink.put(at.index, in, dx);
    }
    sink.finish();
  });
}

// ------------------------------------------------------------------------------------------- gather

// y = x at the maxima, or zero where a window had none; in any layout, and without arithmetic.
template <class Tap>
void gather_typed(const PoolArgs& args) {
  const int64_t channels = args.channels, bytes = int64_t(item_size(args.dtype));
  for_each_rows(args, args.height.out, args.width.out * channels, [&](int64_t begin, int64_t end) {
    for (RowCursor at(begin, args.height.out); at.index < end; ++at) {
      const char* x = static_cast<const char*>(args.x) + at.plane * args.height.in * args.width.in * channels * bytes;
      for (int64_t i = 0; i < args.width.out * channels; ++i) {
        const int64_t to = at.index * args.width.out * channels + i;
        const Tap tap = static_cast<const Tap*>(args.taps)[to];
        char* y = static_cast<char*>(args.y) + to * bytes;
        if (tap == Tap(-1)) {
          memset(y, 0, size_t(bytes));
          continue;
        }
        const int64_t h = position_of(args.height, at.row, int64_t(tap) / args.width.kernel);
        const int64_t w = position_of(args.width, i / channels, int64_t(tap) % args.width.kernel);
        memcpy(y, x + ((h * args.width.in + w) * channels + i % channels) * bytes, size_t(bytes));
      }
    }
  });
}

// ---------------------------------------------------------------------------------------- launchers

template <class Stored>
void max_backward_typed(const PoolArgs& args) {
  using T = Compute<Stored>;
  if (is_2x2(args)) return max_backward_pairs<Stored>(args);
  if (goes_by_taps(args)) {
    if (args.width.stride == 1) return max_backward_by_taps<1, T>(args);
    if (args.width.stride == 2) return max_backward_by_taps<2, T>(args);
    return max_backward_by_taps<0, T>(args);
  }
  if (args.tap_dtype == DType::UInt8) return max_backward_by_outputs<uint8_t, T>(args);
  max_backward_by_outputs<int32_t, T>(args);
}

void max_backward(const PoolArgs& args) {
  if (are_apart(args) && !is_2x2(args))
    return args.tap_dtype == DType::UInt8 ? max_backward_apart<uint8_t>(args) : max_backward_apart<int32_t>(args);
  with_float_type(args.dtype, [&](auto tag) { max_backward_typed<typename decltype(tag)::type>(args); });
}

void gather(const PoolArgs& args) {
  args.tap_dtype == DType::UInt8 ? gather_typed<uint8_t>(args) : gather_typed<int32_t>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(max_pool_backward, max_backward)
FASTNN_CPU_KERNEL(max_pool_gather, gather)

}  // namespace fastnn
