// Pooling of (planes, height, width, channels) on the CPU: registers over channels.
//
//   y[o] = max or mean of x over the window of o        bytes: x once, y once (and the taps)
//
// Every position is a run of channels, so all windows, fixed, dilated or adaptive, go alike: up to four
// registers of channels at a time run over the window's positions. Overlapping windows read x again from the
// caches. The backward gathers: dx at a position is the sum over the windows that cover it, in ascending
// order, so that it needs no atomics, gives the same bits for any number of threads and writes dx once.
// The last registers of a run overlap when the channels are not a multiple of them; fewer channels than
// lanes take partial ones.
#include "core/memory.h"
#include "core/parallel.h"
#include "ops/pool/lanes_cpu.h"
#include "ops/pool/window.h"
#include "simd/stream.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements that a chunk reads or writes, about

template <int n>
struct Count {
  static constexpr int value = n;
};

// Calls block(Count, channel, lanes): that many registers, of `lanes` channels each: `most`, four, or one. The
// block is inlined, so that `lanes` is a constant in whole registers.
template <class T, int most, class Block>
inline __attribute__((always_inline)) void for_each_registers(int64_t channels, const Block& block) {
  constexpr int64_t lanes = kLanes<T>;
  if (channels < lanes) return block(Count<1>{}, int64_t(0), channels);
  int64_t channel = 0;
  if constexpr (most > 4)
    for (; channel + most * lanes <= channels; channel += most * lanes) block(Count<most>{}, channel, lanes);
  for (; channel + 4 * lanes <= channels; channel += 4 * lanes) block(Count<4>{}, channel, lanes);
  for (; channel < channels; channel += lanes) block(Count<1>{}, min(channel, channels - lanes), lanes);
}

// Calls rows(begin, end) for runs of the rows of all planes; `in_per_row` positions are touched for each.
template <class Rows>
void for_each_rows(const PoolArgs& args, int64_t rows_of_plane, int64_t positions_of_row, const Rows& rows) {
  const int64_t work = max(positions_of_row * args.channels, 1);
  parallel_for(args.planes * rows_of_plane, max(kGrain / work, 1), rows);
}

// About how many inputs an output row takes.
int64_t inputs_of_row(const PoolArgs& args) {
  return min(args.height.kernel, args.height.in) * max(args.width.in, args.width.out);
}

// Large results whose positions are whole cache lines go past the caches.
template <class Stored>
bool is_streamed(const PoolArgs& args, const void* result, int64_t height, int64_t width) {
  const int64_t pixel = args.channels * int64_t(sizeof(Stored));
  return sizeof(Stored) >= 4 && args.planes * height * width * pixel >= kStreamedBytes && pixel % 64 == 0 &&
         is_line_start(result);
}

template <class Stored>
inline void put(Stored* p, Values<Compute<Stored>> values, int64_t n, bool streamed) {
  if constexpr (sizeof(Stored) >= 4) {
    if (streamed) return stream_values<Stored>(p, values);
  }
  store_values<Stored>(p, values, n);
}

// ------------------------------------------------------------------------------------------ maximum

template <class Stored, class Tap>
struct MaxPixel {
  const Stored* x;  // the plane
  Stored* y;        // the pixel
  Tap* taps;
  Window rows, columns;
  bool streamed;
};

template <bool tapped, int n, class Stored, class Tap>
inline __attribute__((always_inline)) void max_registers(const PoolArgs& args, const MaxPixel<Stored, Tap>& pixel,
                                                         int64_t channel, int64_t lanes) {
  using T = Compute<Stored>;
  const Window rows = pixel.rows, columns = pixel.columns;
  const bool is_empty = rows.begin >= rows.end || columns.begin >= columns.end;
  Values<T> best[n];
  Numbers<T> taps[n];
  for (int r = 0; r < n; ++r) {
    best[r] = broadcast<T>(-T(__builtin_inf()));
    taps[r] = broadcast_number<T>(is_empty ? -1 : rows.first * args.width.kernel + columns.first);
  }
  int64_t first = rows.first * args.width.kernel + columns.first;
  for (int64_t row = rows.begin; row < rows.end; row += args.height.dilation, first += args.width.kernel) {
    const Stored* at = pixel.x + (row * args.width.in + columns.begin) * args.channels + channel;
    Numbers<T> number = broadcast_number<T>(first);
    for (int64_t column = columns.begin; column < columns.end; column += args.width.dilation) {
      for (int r = 0; r < n; ++r)
        take<tapped, T>(load_values<Stored>(at + r * kLanes<T>, lanes), number, best[r], taps[r]);
      at += args.width.dilation * args.channels;
      number += 1;
    }
  }
  for (int r = 0; r < n; ++r) {
    put<Stored>(pixel.y + channel + r * kLanes<T>, best[r], lanes, pixel.streamed);
    if (tapped) store_taps<T, Tap>(pixel.taps + channel + r * kLanes<T>, taps[r], lanes);
  }
}

// Flat positions in the plane, for the caller.
template <class Tap>
void expand_taps(const PoolArgs& args, int64_t out_row, int64_t out_column, const Tap* taps, int64_t* indices) {
  for (int64_t c = 0; c < args.channels; ++c) {
    const int64_t tap = taps[c] == Tap(-1) ? -1 : int64_t(taps[c]);
    const int64_t row = position_of(args.height, out_row, tap / args.width.kernel);
    const int64_t column = position_of(args.width, out_column, tap % args.width.kernel);
    indices[c] = tap < 0 ? -1 : row * args.width.in + column;
  }
}

template <bool tapped, class Stored, class Tap>
void max_forward_typed(const PoolArgs& args) {
  const int64_t in_size = args.height.in * args.width.in;
  const bool streamed = is_streamed<Stored>(args, args.y, args.height.out, args.width.out);
  for_each_rows(args, args.height.out, inputs_of_row(args), [&](int64_t begin, int64_t end) {
    Tap* buffer = nullptr;
    if (tapped && !args.taps)
      buffer = static_cast<Tap*>(thread_scratch(Scratch::Operation, size_t(args.channels) * sizeof(Tap)));
    for (RowCursor at(begin, args.height.out); at.index < end; ++at) {
      const Stored* x = static_cast<const Stored*>(args.x) + at.plane * in_size * args.channels;
      const Window rows = window_of(args.height, at.row);
      for (int64_t o = 0; o < args.width.out; ++o) {
        const int64_t start = (at.index * args.width.out + o) * args.channels;
        const MaxPixel<Stored, Tap> pixel = {x,
                                             static_cast<Stored*>(args.y) + start,
                                             args.taps ? static_cast<Tap*>(args.taps) + start : buffer,
                                             rows,
                                             window_of(args.width, o),
                                             streamed};
        for_each_registers<Compute<Stored>, 4>(
            args.channels, [&](auto count, int64_t channel, int64_t lanes) FASTNN_INLINED {
              max_registers<tapped, decltype(count)::value>(args, pixel, channel, lanes);
            });
        if (tapped && args.indices) expand_taps(args, at.row, o, pixel.taps, args.indices + start);
      }
    }
    if (streamed) finish_streaming();
  });
}

// The covering windows of every column, and the extents of the windows, worked out once for a chunk.
struct ColumnCover {
  int32_t begin, end;
};
struct Columns {
  ColumnCover* covers;
  int64_t* extents;

  explicit Columns(const PoolArgs& args) {
    const int64_t in = args.width.in, out = args.width.out;
    extents = static_cast<int64_t*>(
        thread_scratch(Scratch::Operation, size_t(out) * sizeof(int64_t) + size_t(in) * sizeof(ColumnCover)));
    covers = reinterpret_cast<ColumnCover*>(extents + out);
    for (int64_t o = 0; o < out; ++o) extents[o] = window_of(args.width, o, args.count_include_pad).extent;
    for (int64_t column = 0; column < in; ++column) {
      const Cover cover = cover_of(args.width, column);
      covers[column] = {int32_t(cover.begin), int32_t(cover.end)};
    }
  }
};

template <class Stored, class Tap>
void max_backward_typed(const PoolArgs& args) {
  using T = Compute<Stored>;
  const int64_t out_size = args.height.out * args.width.out;
  const bool streamed = is_streamed<Stored>(args, args.x, args.height.in, args.width.in);
  for_each_rows(args, args.height.in, 2 * args.width.in, [&](int64_t begin, int64_t end) {
    const Columns layout(args);
    for (RowCursor at(begin, args.height.in); at.index < end; ++at) {
      const int64_t position = at.row;
      const Cover rows = cover_of(args.height, position);
      const Stored* dy = static_cast<const Stored*>(args.y) + at.plane * out_size * args.channels;
      const Tap* taps = static_cast<const Tap*>(args.taps) + at.plane * out_size * args.channels;
      for (int64_t column = 0; column < args.width.in; ++column) {
        const ColumnCover columns = layout.covers[column];
        Stored* dx = static_cast<Stored*>(args.x) + (at.index * args.width.in + column) * args.channels;
        for_each_registers<T, 4>(args.channels, [&](auto count, int64_t channel, int64_t lanes) FASTNN_INLINED {
          constexpr int n = decltype(count)::value;
          Values<T> sums[n] = {};
          for (int64_t out_row = rows.begin; out_row < rows.end; ++out_row) {
            const int64_t row_tap = tap_at(args.height, out_row, position);
            if (row_tap < 0) continue;
            for (int64_t o = columns.begin; o < columns.end; ++o) {
              const int64_t column_tap = tap_at(args.width, o, column);
              if (column_tap < 0) continue;
              const int64_t from = (out_row * args.width.out + o) * args.channels + channel;
              const Numbers<T> number = broadcast_number<T>(row_tap * args.width.kernel + column_tap);
              for (int r = 0; r < n; ++r)
                sums[r] += where_tap<T>(load_taps<T, Tap>(taps + from + r * kLanes<T>, lanes), number,
                                        load_values<Stored>(dy + from + r * kLanes<T>, lanes));
            }
          }
          for (int r = 0; r < n; ++r) put<Stored>(dx + channel + r * kLanes<T>, sums[r], lanes, streamed);
        });
      }
    }
    if (streamed) finish_streaming();
  });
}

// ------------------------------------------------------------------------------------------ average

// Sums at a time: half of the registers, so that long windows read long runs.
constexpr int kSums = kVectorBytes == 64 ? 16 : 8;
constexpr int64_t kRun = 64;  // positions added up before they are carried over: the error grows with both

template <class Stored>
void avg_forward_typed(const PoolArgs& args) {
  using T = Compute<Stored>;
  const int64_t in_size = args.height.in * args.width.in;
  const bool streamed = is_streamed<Stored>(args, args.y, args.height.out, args.width.out);
  for_each_rows(args, args.height.out, inputs_of_row(args), [&](int64_t begin, int64_t end) {
    for (RowCursor at(begin, args.height.out); at.index < end; ++at) {
      const Window rows = window_of(args.height, at.row, args.count_include_pad);
      const Stored* x = static_cast<const Stored*>(args.x) + at.plane * in_size * args.channels;
      for (int64_t o = 0; o < args.width.out; ++o) {
        const Window columns = window_of(args.width, o, args.count_include_pad);
        const int64_t extent = args.divisor_override ? args.divisor_override : rows.extent * columns.extent;
        const Values<T> divisor = broadcast<T>(T(extent));
        Stored* y = static_cast<Stored*>(args.y) + (at.index * args.width.out + o) * args.channels;
        for_each_registers<T, kSums>(args.channels, [&](auto count, int64_t channel, int64_t lanes) FASTNN_INLINED {
          constexpr int n = decltype(count)::value;
          Values<T> sums[n] = {}, totals[n] = {};
          int64_t left = kRun;
          for (int64_t h = rows.begin; h < rows.end; ++h) {
            const Stored* from = x + (h * args.width.in + columns.begin) * args.channels + channel;
            for (int64_t w = columns.begin; w < columns.end; ++w, from += args.channels) {
              for (int r = 0; r < n; ++r) sums[r] += load_values<Stored>(from + r * kLanes<T>, lanes);
              if (--left > 0) continue;
              for (int r = 0; r < n; ++r) totals[r] += sums[r], sums[r] = Values<T>{};
              left = kRun;
            }
          }
          for (int r = 0; r < n; ++r) sums[r] += totals[r];
          for (int r = 0; r < n; ++r) put<Stored>(y + channel + r * kLanes<T>, sums[r] / divisor, lanes, streamed);
        });
      }
    }
    if (streamed) finish_streaming();
  });
}

template <class Stored>
void avg_backward_typed(const PoolArgs& args) {
  using T = Compute<Stored>;
  const int64_t out_size = args.height.out * args.width.out;
  const bool streamed = is_streamed<Stored>(args, args.x, args.height.in, args.width.in);
  for_each_rows(args, args.height.in, 2 * args.width.in, [&](int64_t begin, int64_t end) {
    const Columns layout(args);
    for (RowCursor at(begin, args.height.in); at.index < end; ++at) {
      const Cover rows = cover_of(args.height, at.row);
      const Stored* dy = static_cast<const Stored*>(args.y) + at.plane * out_size * args.channels;
      for (int64_t column = 0; column < args.width.in; ++column) {
        const ColumnCover columns = layout.covers[column];
        Stored* dx = static_cast<Stored*>(args.x) + (at.index * args.width.in + column) * args.channels;
        for_each_registers<T, 4>(args.channels, [&](auto count, int64_t channel, int64_t lanes) FASTNN_INLINED {
          constexpr int n = decltype(count)::value;
          Values<T> sums[n] = {};
          for (int64_t out_row = rows.begin; out_row < rows.end; ++out_row) {
            const int64_t row_extent = window_of(args.height, out_row, args.count_include_pad).extent;
            for (int64_t o = columns.begin; o < columns.end; ++o) {
              const int64_t extent = row_extent * layout.extents[o];
              const T share = T(1) / T(args.divisor_override ? args.divisor_override : extent);
              const Stored* from = dy + (out_row * args.width.out + o) * args.channels + channel;
              for (int r = 0; r < n; ++r) sums[r] += load_values<Stored>(from + r * kLanes<T>, lanes) * share;
            }
          }
          for (int r = 0; r < n; ++r) put<Stored>(dx + channel + r * kLanes<T>, sums[r], lanes, streamed);
        });
      }
    }
    if (streamed) finish_streaming();
  });
}

// ------------------------------------------------------------------------------------ apart windows

// Windows that do not overlap: every window's gradient is loaded once and spread over its columns.
bool are_apart(const PoolArgs& args) {
  const auto is_apart = [](const PoolAxis& axis) { return axis.dilation == 1 && axis.kernel <= axis.stride; };
  return is_apart(args.height) && is_apart(args.width);
}

// Few channels, and windows side by side: one register holds all positions of a window's row.
template <class T>
struct FewChannels {
  int64_t channels, windows, in_window;
  bool suits;
  Numbers<T> channel, position;  // of every lane

  explicit FewChannels(const PoolArgs& args)
      : channels(args.channels), windows(args.width.out), in_window(args.width.kernel * channels) {
    const PoolAxis& width = args.width;
    suits = in_window <= kLanes<T> && width.kernel == width.stride && width.padding == 0 &&
            width.out * width.stride <= width.in;
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      channel[lane] = Number<T>(lane % channels);
      position[lane] = Number<T>(lane / channels);
    }
  }

  // The gradient of a row; `row_tap` is the number of its first tap.
  template <bool is_max, class Stored, class Tap>
  void spread(const Stored* dy, const Tap* taps, int64_t row_tap, T extent, Stored* dx) const {
    const Numbers<T> number = position + Number<T>(row_tap);
    for (int64_t o = 0; o < windows; ++o, dy += channels, dx += in_window) {
      Values<T> values = load_values<Stored>(dy, channels);
      values = pick<T>(values, values, channel);
      if constexpr (is_max) {
        const Values<T> tap = Values<T>(load_taps<T, Tap>(taps + o * channels, channels));
        values = where_tap<T>(Numbers<T>(pick<T>(tap, tap, channel)), number, values);
      } else {
        values /= broadcast<T>(extent);
      }
      store_values<Stored>(dx, values, in_window);
    }
  }
};

template <bool is_max, class Stored, class Tap>
void backward_apart(const PoolArgs& args) {
  using T = Compute<Stored>;
  const int64_t channels = args.channels, out_size = args.height.out * args.width.out;
  const bool streamed = is_streamed<Stored>(args, args.x, args.height.in, args.width.in);
  const FewChannels<T> few(args);
  for_each_rows(args, args.height.in, 2 * args.width.in, [&](int64_t begin, int64_t end) {
    for (RowCursor at(begin, args.height.in); at.index < end; ++at) {
      Stored* dx = static_cast<Stored*>(args.x) + at.index * args.width.in * channels;
      const Cover cover = cover_of(args.height, at.row);
      const int64_t n_windows = cover.begin < cover.end ? args.width.out : 0;
      const int64_t row_tap = n_windows ? tap_at(args.height, cover.begin, at.row) * args.width.kernel : 0;
      const int64_t row_extent = n_windows ? window_of(args.height, cover.begin, args.count_include_pad).extent : 0;
      int64_t column = 0;  // those before it are done
      if (few.suits && n_windows) {
        const int64_t from = (at.plane * args.height.out + cover.begin) * args.width.out * channels;
        const int64_t extent = args.divisor_override ? args.divisor_override : row_extent * args.width.kernel;
        few.template spread<is_max>(static_cast<const Stored*>(args.y) + from,
                                    static_cast<const Tap*>(args.taps) + from, row_tap, T(extent), dx);
        column = few.windows * args.width.kernel;
      }
      for (int64_t o = few.suits ? n_windows : 0; o < n_windows; ++o) {
        const Window window = window_of(args.width, o, args.count_include_pad);
        const int64_t from = (at.plane * out_size + cover.begin * args.width.out + o) * channels;
        const int64_t extent = args.divisor_override ? args.divisor_override : row_extent * window.extent;
        fill<Stored>(dx + column * channels, 0, (window.begin - column) * channels);
        for_each_registers<T, 4>(channels, [&](auto count, int64_t channel, int64_t lanes) FASTNN_INLINED {
          constexpr int n = decltype(count)::value;
          Values<T> values[n];
          Numbers<T> taps[n] = {}, number = broadcast_number<T>(row_tap + window.first);
          for (int r = 0; r < n; ++r) {
            const int64_t where = from + channel + r * kLanes<T>;
            values[r] = load_values<Stored>(static_cast<const Stored*>(args.y) + where, lanes);
            if (is_max) taps[r] = load_taps<T, Tap>(static_cast<const Tap*>(args.taps) + where, lanes);
            if (!is_max) values[r] /= broadcast<T>(T(extent));
          }
          for (int64_t w = window.begin; w < window.end; ++w, number += 1)
            for (int r = 0; r < n; ++r)
              put<Stored>(dx + w * channels + channel + r * kLanes<T>,
                          is_max ? where_tap<T>(taps[r], number, values[r]) : values[r], lanes, streamed);
        });
        column = max(column, window.end);
      }
      fill<Stored>(dx + column * channels, 0, (args.width.in - column) * channels);
    }
    if (streamed) finish_streaming();
  });
}

// ---------------------------------------------------------------------------------------- launchers

template <class Stored>
void max_forward_stored(const PoolArgs& args) {
  if (!args.taps && !args.indices) return max_forward_typed<false, Stored, uint8_t>(args);
  if (args.tap_dtype == DType::UInt8) return max_forward_typed<true, Stored, uint8_t>(args);
  max_forward_typed<true, Stored, int32_t>(args);
}

template <class Stored>
void max_backward_stored(const PoolArgs& args) {
  if (args.tap_dtype != DType::UInt8) return max_backward_typed<Stored, int32_t>(args);
  are_apart(args) ? backward_apart<true, Stored, uint8_t>(args) : max_backward_typed<Stored, uint8_t>(args);
}

template <class Stored>
void avg_backward_stored(const PoolArgs& args) {
  are_apart(args) ? backward_apart<false, Stored, uint8_t>(args) : avg_backward_typed<Stored>(args);
}

void max_forward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) { max_forward_stored<typename decltype(tag)::type>(args); });
}
void max_backward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) { max_backward_stored<typename decltype(tag)::type>(args); });
}
void avg_forward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) { avg_forward_typed<typename decltype(tag)::type>(args); });
}
void avg_backward(const PoolArgs& args) {
  with_float_type(args.dtype, [&](auto tag) { avg_backward_stored<typename decltype(tag)::type>(args); });
}

}  // namespace

FASTNN_CPU_KERNEL(max_pool_channels_last_forward, max_forward)
FASTNN_CPU_KERNEL(max_pool_channels_last_backward, max_backward)
FASTNN_CPU_KERNEL(avg_pool_channels_last_forward, avg_forward)
FASTNN_CPU_KERNEL(avg_pool_channels_last_backward, avg_backward)

}  // namespace fastnn
