// What 3 x 3 taps read, in registers: from the bands of depthwise_cpu.h, or from an image as it lies in memory, where
// the level's masks leave out what is beyond its edges. Output (r, c) reads source rows r * kStep + {0, 1, 2}, and so
// for columns. Both have
//
//   rows(row, pointers, n)     n source rows, from the first that output row `row` reads on
//   columns(c, n)              for outputs c, c + 1, ..., n of them: the others read as zero
//   load(row, columns, x)      one source row's values for the three column taps
#pragma once

#include "ops/conv/depthwise_cpu.h"

namespace fastnn {
namespace {

// Rows [first, end) of a channel, without padding. `zeros` is as long as a row.
template <class T>
struct Image {
  const T* pixels;
  int64_t first, end, width;
  const T* zeros;
};

template <class T>
struct Source {
  const T* band;
  Image<T> image;
  int64_t top, left;  // of the image, for output (0, 0)
  int64_t row_pitch;  // of the band
};

template <class T, int kRowStep>
struct BandTaps {
  const Source<T>& source;
  const int64_t* offsets;  // of the three column taps in a row of the band
  struct Columns {
    int64_t c, n;
  };

  inline __attribute__((always_inline)) void rows(int64_t row, const T** pointers, int n) const {
    for (int i = 0; i < n; ++i) pointers[i] = source.band + (row * kRowStep + i) * source.row_pitch;
  }
  Columns columns(int64_t c, int64_t n) const { return {c, n}; }
  inline __attribute__((always_inline)) void load(const T* row, const Columns& columns, Vec<T>* x) const {
#pragma GCC unroll 3
    for (int b = 0; b < 3; ++b) {
      const T* p = row + offsets[b] + columns.c;
      x[b] = columns.n >= Vec<T>::size ? Vec<T>::load(p) : Vec<T>::load(p, columns.n);
    }
  }
};

#if defined(__AVX512F__)
constexpr bool kImageTaps = true;
constexpr int kTapRows = 7;  // output rows at once: image sizes like 56, 28, 14 and 7 come in sevens

inline Vec<float> load_lanes(const float* p, uint32_t lanes) {
  return Vec<float>(Vec<float>::Raw(_mm512_maskz_loadu_ps(__mmask16(lanes), p)));
}
inline Vec<double> load_lanes(const double* p, uint32_t lanes) {
  return Vec<double>(Vec<double>::Raw(_mm512_maskz_loadu_pd(__mmask8(lanes), p)));
}

template <class T, int kStep>
struct ImageTaps {
  static constexpr int kLanes = Vec<T>::size, kLoads = kStep == 1 ? 3 : 4;
  const Source<T>& source;
  const int64_t* offsets;  // unused: what BandTaps has
  struct Columns {
    int64_t position[kLoads];
    uint32_t lanes[kLoads];
  };

  inline __attribute__((always_inline)) void rows(int64_t row, const T** pointers, int n) const {
    const Image<T>& image = source.image;
    const int64_t top = source.top + row * kStep;
    for (int i = 0; i < n; ++i)
      pointers[i] = top + i >= image.first && top + i < image.end ? image.pixels + (top + i - image.first) * image.width
                                                                  : image.zeros;
  }
  // Of stride 2: even positions are those of the first tap, odd ones of the second; then the third's.
  inline __attribute__((always_inline)) Columns columns(int64_t c, int64_t n) const {
    Columns columns;
    const int64_t left = source.left + c * kStep, width = source.image.width;
#pragma GCC unroll 4
    for (int i = 0; i < kLoads; ++i) {
      const int64_t begin = left + (kStep == 1 ? i : i / 2 * 2);
      const int64_t end = min(width, begin + kStep * n), position = begin + (kStep == 1 ? 0 : i % 2 * kLanes);
      columns.position[i] = position;
      columns.lanes[i] = lanes_below(end - position) & ~lanes_below(-position);
    }
    return columns;
  }
  static uint32_t lanes_below(int64_t n) { return (1u << max(0, min(n, kLanes))) - 1; }

  inline __attribute__((always_inline)) void load(const T* row, const Columns& columns, Vec<T>* x) const {
#pragma GCC unroll 3
    for (int b = 0; b < 3; ++b) x[b] = load_lanes(row + columns.position[b], columns.lanes[b]);
    if constexpr (kStep == 2) {
      Vec<T> last = load_lanes(row + columns.position[3], columns.lanes[3]);
      deinterleave(x[0], x[1]);
      deinterleave(x[2], last);
    }
  }
};
#else
constexpr bool kImageTaps = false;
constexpr int kTapRows = 4;
template <class T, int kStep>
using ImageTaps = BandTaps<T, kStep>;
#endif

// 3 x 3 taps whose image is read in place.
inline bool suits_image_taps(const PlaneAxis& rows, const PlaneAxis& columns, int64_t row_taps, int64_t column_taps) {
  return kImageTaps && row_taps == 3 && column_taps == 3 && rows.dilation == 1 && columns.dilation == 1 &&
         rows.step == columns.step && rows.step <= 2;
}

// Source channel `s` of a group: in place, with `bands` a row of zeros, or as a band there.
template <class T>
Source<T> load_source(const Band& band, bool in_place, const char* channel, DType dtype, const RowRange& range,
                      int64_t s, T* bands, T* widened) {
  const int64_t width = band.columns.source;
  widened += s * band.height * width;
  Source<T> source{};
  if (in_place) {
    source.image = {widen_rows(channel, dtype, range.first, range.end, width, widened), range.first, range.end, width,
                    bands};
    source.top = range.top;
    source.left = -band.columns.pad;
    return source;
  }
  T* const target = bands + s * band.channel_pitch;
  load_band(band, channel, dtype, range, widened, target);
  source.band = target;
  source.row_pitch = band.row_pitch;
  return source;
}

}  // namespace
}  // namespace fastnn
