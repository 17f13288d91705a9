// Convolution in groups of few channels, depthwise above all: a group has too few channels for matrix tiles, so each
// filter tap is multiplied with rows of pixels.
//
// What both directions share: the bands that taps read. A band is some rows of one channel, widened, with zeros where
// the taps reach beyond the image, each row split by stride phase as in planes_cpu.h. Output row r reads the
// band's rows r * step + t * dilation; within a row, a tap is an offset. A band stays in the first-level cache.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "ops/conv/planes_cpu.h"
#include "simd/transpose.h"

namespace fastnn {

#ifdef FASTNN_LEVEL
namespace FASTNN_LEVEL {
// False, and nothing is done: the arguments are left to the matrix tiles.
bool depthwise_forward(const ConvArgs& args);
bool depthwise_input_grad(const ConvArgs& args);
bool depthwise_weight_grad(const ConvArgs& args);
}  // namespace FASTNN_LEVEL

namespace amx {
bool depthwise_forward(const ConvArgs& args);
bool depthwise_input_grad(const ConvArgs& args);
}  // namespace amx
#endif

namespace {

constexpr int64_t kFewSources = 4, kFewResults = 8;  // channels of a group, at most
constexpr int64_t kBandBytes = 24 * 1024;            // of all channels of a group
constexpr int64_t kBandRows = 28;                    // a multiple of what kernels take at once
constexpr int64_t kLargestStep = 256;  // stride, dilation or padding: beyond it, bands would be mostly zeros
constexpr int64_t kLargestBand = int64_t(1) << 22;  // elements

struct Band {
  PlaneAxis rows, columns;  // rows are not split: of `rows`, only source, step and pad are used
  int64_t outputs;          // rows of a band but the last one
  int64_t count;            // bands of a channel
  int64_t height;           // rows that are read for them
  int64_t lead;             // elements before a row's first: the image's first column is aligned
  int64_t phase_pitch, row_pitch, channel_pitch;
  int64_t image_columns;  // leading elements of an image's row that are read, at most

  // Where a tap reads for output column 0. Phases repeat: see planes_cpu.h.
  int64_t column_offset(int64_t tap) const {
    return lead + tap % columns.phases * phase_pitch + tap * columns.dilation / columns.step;
  }
};

// `extent` rows are spanned by the taps of an output row; `lanes` elements may be read beyond a row's last.
inline Band make_band(const PlaneAxis& rows, const PlaneAxis& columns, int64_t outputs, int64_t extent,
                      int64_t channels, int64_t lanes, int64_t item_size) {
  Band band{};
  band.rows = rows;
  band.columns = columns;
  const int64_t begin = max(0, columns.step == 1 ? columns.pad : columns.pad / 2);
  band.lead = ceil_div(begin, lanes) * lanes - begin;
  band.phase_pitch = ceil_div(band.lead + columns.length + lanes + 2, lanes) * lanes;
  band.row_pitch = columns.phases * band.phase_pitch;
  band.image_columns = max(0, min(columns.source, columns.step * columns.length - columns.pad));
  const int64_t fitting = kBandBytes / (channels * band.row_pitch * item_size);
  band.outputs = min(outputs, even_piece(outputs, max(1, (fitting - extent) / rows.step + 1), kBandRows));
  band.count = ceil_div(outputs, band.outputs);
  band.height = (band.outputs - 1) * rows.step + extent;
  band.channel_pitch = band.height * band.row_pitch;
  return band;
}

inline bool is_usual(const ConvAxis& axis) {
  return axis.stride <= kLargestStep && axis.dilation <= kLargestStep && axis.padding <= kLargestStep &&
         axis.kernel <= kLargestStep;
}

// Whether rows are faster than matrix tiles, for `sources` channels read by `results` channels: 3 x 3 taps are
// reused in registers, others are not.
inline bool suits_bands(const ConvArgs& args, int64_t sources, int64_t results, int64_t most_sources) {
  const bool is_3x3 = args.height.kernel == 3 && args.width.kernel == 3;
  const bool few = is_3x3 ? sources <= most_sources && results <= kFewResults : sources * results <= 2;
  return few && is_usual(args.height) && is_usual(args.width);
}

// A row of the image, without its padding: the band's zeros stay. Whole vectors are stored.
template <class T>
inline void copy_image_row(const Band& band, const T* row, T* target) {
  constexpr int kLanes = Vec<T>::size;
  const PlaneAxis& columns = band.columns;
  target += band.lead;
  int64_t i = max(0, -columns.pad);
  const int64_t n = band.image_columns;
  if (columns.step == 1) {
    target += columns.pad;
    for (; i + kLanes <= n; i += kLanes) Vec<T>::load(row + i).store(target + i);
    if (i < n) Vec<T>::load(row + i, n - i).store(target + i);
  } else if (columns.step == 2 && columns.phases == 2) {
    T* even = target + columns.pad % 2 * band.phase_pitch + columns.pad / 2;
    T* odd = target + (columns.pad + 1) % 2 * band.phase_pitch + (columns.pad + 1) / 2;
    for (; i < n; i += 2 * kLanes) {
      const bool whole = i + 2 * kLanes <= n;
      Vec<T> a = whole ? Vec<T>::load(row + i) : Vec<T>::load(row + i, min(kLanes, n - i));
      Vec<T> b = whole ? Vec<T>::load(row + i + kLanes) : Vec<T>::load(row + i + kLanes, max(0, n - i - kLanes));
      deinterleave(a, b);
      a.store(even + i / 2);
      b.store(odd + i / 2);
    }
  } else {
    for (int64_t phase = 0; phase < columns.phases; ++phase)
      copy_plane_row(target + phase * band.phase_pitch, columns.length, reinterpret_cast<const char*>(row),
                     dtype_of<T>(), columns.source, 1, columns.phase_begin(phase), columns.step);
  }
}

// The rows [row, row_end) of a channel in T: in place, or widened into `buffer`.
template <class T>
inline const T* widen_rows(const char* channel, DType dtype, int64_t row, int64_t row_end, int64_t columns, T* buffer) {
  channel += row * columns * int64_t(item_size(dtype));
  if (dtype == dtype_of<T>()) return reinterpret_cast<const T*>(channel);
  FASTNN_LEVEL::load_row(buffer, channel, dtype, 1, (row_end - row) * columns);
  return buffer;
}

// The rows of an image that `outputs` output rows from `output` on read: [first, end) of [top, bottom).
struct RowRange {
  int64_t top, bottom, first, end;

  RowRange(const Band& band, int64_t output, int64_t outputs)
      : top(output * band.rows.step - band.rows.pad),
        bottom(top + band.height - (band.outputs - outputs) * band.rows.step),
        first(min(max(top, 0), band.rows.source)),
        end(max(first, min(bottom, band.rows.source))) {}
};

// A band of a channel. The padding of its rows is zero already.
template <class T>
void load_band(const Band& band, const char* channel, DType dtype, const RowRange& range, T* widened, T* target) {
  constexpr int kLanes = Vec<T>::size;
  const T* image = widen_rows(channel, dtype, range.first, range.end, band.columns.source, widened);
  for (int64_t row = range.top; row < range.bottom; ++row, target += band.row_pitch) {
    if (row >= range.first && row < range.end) {
      copy_image_row(band, image, target);
      image += band.columns.source;
    } else {
      for (int64_t i = 0; i < band.row_pitch; i += kLanes) Vec<T>::zero().store(target + i);
    }
  }
}

}  // namespace
}  // namespace fastnn
