// Planes: a channel of an image, padded, widened, and split by stride phase, so that a filter tap
// becomes an offset.
//
// Along one axis a tap t reads source positions  step*i + t*dilation - pad,  i = 0, 1, ...  Its phase
// is t*dilation % step and its shift t*dilation / step: in the plane of that phase, whose element i is
// source[step*i + phase - pad] (zero outside), the tap reads positions i + shift. So for every tap of
// every channel, the values that consecutive outputs of a row need are consecutive in memory.
// Rows of a plane are wider than rows of the output; tiles run on over the row ends, and what they
// compute in between ("gaps") is dropped.
#pragma once

#include <cstring>

#include "core/dtype.h"
#include "gemm/tile.h"
#include "ops/conv/conv.h"
#include "simd/convert.h"
#include "simd/integer.h"

namespace fastnn {
namespace {

struct PlaneAxis {
  int64_t source;  // size of the source
  int64_t step, pad;
  int64_t dilation;  // phase f starts at source position f*dilation % step - pad
  int64_t phases;
  int64_t length;  // of a plane

  int64_t phase_begin(int64_t phase) const { return phase * dilation % step - pad; }
};

inline int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }

// The planes that `taps` taps at distance `dilation` read for `outputs` outputs. Phases repeat with
// period step / gcd(step, dilation), so tap t has phase number t % phases.
inline PlaneAxis plane_axis(int64_t source, int64_t step, int64_t pad, int64_t dilation, int64_t taps,
                            int64_t outputs) {
  return {source, step, pad, dilation, min(taps, step / gcd(step, dilation)), outputs + (taps - 1) * dilation / step};
}

// The planes of one group of channels of images; memory order [channel][phase][phase][row][column].
struct Planes {
  const char* source;
  DType dtype;
  int64_t channels;  // of a group
  PlaneAxis rows, columns;

  int64_t plane_count() const { return channels * rows.phases * columns.phases; }
  int64_t source_plane() const { return rows.source * columns.source; }
  const char* source_channel(int64_t channel) const {
    return source + channel * source_plane() * int64_t(item_size(dtype));
  }
};

template <class T>
void copy_run(T* target, const char* source, DType dtype, int64_t stride, int64_t count) {
  if (dtype == dtype_of<T>() && stride == 1) {
    constexpr int kLanes = Vec<T>::size;
    const T* elements = reinterpret_cast<const T*>(source);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) Vec<T>::load(elements + i).store(target + i);
    if (i < count) Vec<T>::load(elements + i, count - i).store(target + i, count - i);
  } else {
    FASTNN_LEVEL::load_row(target, source, dtype, stride, count);
  }
}

template <class T>
void fill_zero(T* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = 0;
}

// Elements begin, begin + step, ... of a source row; zeros outside it, and everywhere when it is null.
template <class T>
void copy_plane_row(T* target, int64_t length, const char* row, DType dtype, int64_t size, int64_t stride,
                    int64_t begin, int64_t step) {
  const int64_t first = row == nullptr ? length : min(length, begin < 0 ? ceil_div(-begin, step) : 0);
  const int64_t end = row == nullptr || begin >= size ? first : max(first, min(length, ceil_div(size - begin, step)));
  fill_zero(target, first);
  if (end > first) {
    const char* source = row + (begin + first * step) * stride * int64_t(item_size(dtype));
    copy_run(target + first, source, dtype, stride * step, end - first);
  }
  fill_zero(target + end, length - end);
}

// Rows [row, row_end) of all planes of the group that starts at `channel` (counted over all images and
// groups); consecutive planes are `pitch` elements apart.
template <class T>
void copy_planes(const Planes& planes, int64_t channel, int64_t row, int64_t row_end, T* target, int64_t pitch) {
  const PlaneAxis &rows = planes.rows, &columns = planes.columns;
  const int64_t size = int64_t(item_size(planes.dtype));
  for (int64_t c = 0; c < planes.channels; ++c) {
    const char* source = planes.source_channel(channel + c);
    for (int64_t row_phase = 0; row_phase < rows.phases; ++row_phase)
      for (int64_t column_phase = 0; column_phase < columns.phases; ++column_phase, target += pitch) {
        const int64_t begin = rows.phase_begin(row_phase), column_begin = columns.phase_begin(column_phase);
        if (columns.source == 1 && columns.length == 1 && column_begin == 0) {  // a signal: its rows are one run
          copy_plane_row(target, row_end - row, source, planes.dtype, rows.source, 1, begin + row * rows.step,
                         rows.step);
          continue;
        }
        for (int64_t i = row; i < row_end; ++i) {
          const int64_t position = begin + i * rows.step;
          const bool inside = position >= 0 && position < rows.source;
          copy_plane_row(target + (i - row) * columns.length, columns.length,
                         inside ? source + position * columns.source * size : nullptr, planes.dtype, columns.source,
                         int64_t(1), column_begin, columns.step);
        }
      }
  }
}

// The offset, from the first plane's first element, of what tap (t_row, t_column) of a channel reads
// for output (0, 0). `pitch` as above; `row_length` elements between rows.
inline int64_t tap_offset(const Planes& planes, int64_t channel, int64_t t_row, int64_t t_column, int64_t pitch) {
  const PlaneAxis &rows = planes.rows, &columns = planes.columns;
  const int64_t plane = (channel * rows.phases + t_row % rows.phases) * columns.phases + t_column % columns.phases;
  return plane * pitch + t_row * rows.dilation / rows.step * columns.length +
         t_column * columns.dilation / columns.step;
}

inline bool is_pointwise(const ConvAxis& axis) {
  return axis.kernel == 1 && axis.stride == 1 && axis.padding == 0 && axis.output == axis.input;
}

// The same convolution with rows as long as can be: signals, and images under 1 x 1 kernels, are of height 1 here.
inline ConvArgs with_long_rows(ConvArgs args) {
  if (is_pointwise(args.height) && is_pointwise(args.width)) {
    const int64_t pixels = args.height.input * args.width.input;
    args.width = {pixels, pixels, 1, 1, 0, 1};
    args.height = {1, 1, 1, 1, 0, 1};
  } else if (args.width.input == 1 && args.width.kernel == 1 && args.width.output == 1) {
    const ConvAxis height = args.height;
    args.height = args.width;
    args.width = height;
  }
  return args;
}

// Positions of a pass's results along one axis of the output: first, first + step, ...
struct OutputAxis {
  int64_t size;  // of the output
  int64_t first, step, count;
};

// ------------------------------------------------------------------------------ input gradient

// Along one axis: the input positions first, first + stride, ... take their gradients from the taps
// tap, tap + period, ..., `taps` of them, applied in reverse order to dy.
struct GradPhase {
  OutputAxis out;
  PlaneAxis plane;
  int64_t tap, period, taps;

  int64_t kernel_index(int64_t reversed_tap) const { return tap + period * (taps - 1 - reversed_tap); }
};

inline GradPhase grad_phase(const ConvAxis& axis, int64_t first) {
  const int64_t shared_factor = gcd(axis.stride, axis.dilation), period = axis.stride / shared_factor;
  const int64_t residue = (first + axis.padding) % axis.stride, quotient = (first + axis.padding) / axis.stride;
  const int64_t count = ceil_div(axis.input - first, axis.stride);
  int64_t tap = 0;
  while (tap < axis.kernel && tap < period && tap * axis.dilation % axis.stride != residue) ++tap;
  const bool found = tap < axis.kernel && tap < period;
  const int64_t taps = found ? ceil_div(axis.kernel - tap, period) : 0, dilation = axis.dilation / shared_factor;
  const int64_t reach = found ? (tap * axis.dilation - residue) / axis.stride + (taps - 1) * dilation : 0;
  return {{axis.input, first, axis.stride, count},
          plane_axis(axis.output, 1, reach - quotient, dilation, max(1, taps), count),
          tap,
          period,
          taps};
}

}  // namespace
}  // namespace fastnn
