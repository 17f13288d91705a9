// What 3 x 3 taps read, in registers: from the bands of depthwise_cpu.h, or from an image as it lies in memory, where
// the level's masks leave out what is beyond its edges and 16-bit floats are widened as they are loaded. Output (r, c)
// reads source rows r * kStep + {0, 1, 2}, and so for columns. Both have
//
//   rows(row)                  the source rows that output row `row` reads, and those after them
//   has(rows, i)               whether the i-th of them is in the image: the others are zero
//   columns(c, n)              for outputs c, c + 1, ..., n of them: the others read as zero
//   fetch(row, column)         fetches what source row `row` has there into the first-level cache
//   load(rows, i, columns, x)  the i-th source row's values for the three column taps
#pragma once

#include "ops/conv/depthwise_cpu.h"
#include "simd/lanes.h"

namespace fastnn {
namespace {

// A channel, without padding, in the dtype that the taps expect; its rows [first, end) are read.
struct Image {
  const void* pixels;
  int64_t first, end, width;
};

template <class T>
struct Source {
  const T* band;
  Image image;
  int64_t top, left;  // of the image, for output (0, 0)
  int64_t row_pitch;  // of the band
};

template <class Type, int kRowStep>
struct BandTaps {
  using T = Type;
  using Pixel = T;
  const Source<T>& source;
  const int64_t* offsets;  // of the three column taps in a row of the band
  using Rows = const T*;
  struct Columns {
    int64_t c, n;
  };

  Rows rows(int64_t row) const { return source.band + row * kRowStep * source.row_pitch; }
  static bool has(const Rows&, int) { return true; }
  Columns columns(int64_t c, int64_t n) const { return {c, n}; }
  void fetch(int64_t, int64_t) const {}  // a band was just written
  inline __attribute__((always_inline)) void load(const Rows& rows, int i, const Columns& columns, Vec<T>* x) const {
#pragma GCC unroll 3
    for (int b = 0; b < 3; ++b) {
      const T* p = rows + i * source.row_pitch + offsets[b] + columns.c;
      x[b] = columns.n >= Vec<T>::size ? Vec<T>::load(p) : Vec<T>::load(p, columns.n);
    }
  }
};

#if defined(__AVX512F__)
constexpr bool kImageTaps = true;
constexpr int kTapRows = 7;  // output rows at once: image sizes like 56, 28, 14 and 7 come in sevens
constexpr int kGroupRows = 4, kGroupResults = 4;  // of several results at once

inline Vec<float> load_lanes(const float* p, uint32_t lanes) {
  return Vec<float>(Vec<float>::Raw(_mm512_maskz_loadu_ps(__mmask16(lanes), p)));
}
inline Vec<double> load_lanes(const double* p, uint32_t lanes) {
  return Vec<double>(Vec<double>::Raw(_mm512_maskz_loadu_pd(__mmask8(lanes), p)));
}
inline Vec<float> load_lanes(const bfloat16* p, uint32_t lanes) {
  // A bfloat16 is the upper half of a float32: one permutation puts all in place, over zeros.
  typedef uint16_t Shorts __attribute__((vector_size(64)));
  const Shorts order = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                        0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const __m512i words = _mm512_maskz_loadu_epi16(__mmask16(lanes), p);
  return Vec<float>(Vec<float>::Raw(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, __m512i(order), words)));
}
inline Vec<float> load_lanes(const float16* p, uint32_t lanes) {
  return Vec<float>(Vec<float>::Raw(_mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(__mmask16(lanes), p))));
}

template <class Stored, int kStep>
struct ImageTaps {
  using T = Compute<Stored>;
  using Pixel = Stored;
  static constexpr int kLanes = Vec<T>::size, kLoads = kStep == 1 ? 3 : 4;
  const Source<T>& source;
  const int64_t* offsets;  // unused: what BandTaps has
  struct Rows {
    const Stored* begin;  // of row 0, which may be beyond the image
    int64_t first, end;   // of those in the image
  };
  struct Columns {
    int64_t begin;  // of the first load
    uint32_t lanes[kLoads];
  };
  // Of stride 2, even positions are those of the first tap, odd ones of the second; then the third's.
  static constexpr int shift(int load) { return kStep == 1 ? load : load / 2 * 2 + load % 2 * kLanes; }

  Rows rows(int64_t row) const {
    const int64_t top = source.top + row * kStep;
    return {static_cast<const Stored*>(source.image.pixels) + top * source.image.width, source.image.first - top,
            source.image.end - top};
  }
  static bool has(const Rows& rows, int i) { return i >= rows.first && i < rows.end; }
  void fetch(int64_t row, int64_t column) const {
    __builtin_prefetch(static_cast<const Stored*>(source.image.pixels) + (source.top + row) * source.image.width +
                       column);
  }
  inline __attribute__((always_inline)) Columns columns(int64_t c, int64_t n) const {
    Columns columns;
    columns.begin = source.left + c * kStep;
    // Bit j: of position begin + j. The loads' lanes are all among the first 64.
    const uint64_t image = bits_below(source.image.width - columns.begin) & ~bits_below(-columns.begin);
    const uint64_t read = bits_below(kStep * n);
#pragma GCC unroll 4
    for (int i = 0; i < kLoads; ++i)
      columns.lanes[i] = uint32_t((image & read << (kStep == 1 ? i : i / 2 * 2)) >> shift(i));
    return columns;
  }
  static uint64_t bits_below(int64_t n) { return _bzhi_u64(~uint64_t(0), uint64_t(max(0, min(n, 64)))); }

  inline __attribute__((always_inline)) void load(const Rows& rows, int i, const Columns& columns, Vec<T>* x) const {
    const Stored* p = rows.begin + i * source.image.width + columns.begin;
#pragma GCC unroll 3
    for (int b = 0; b < 3; ++b) x[b] = load_lanes(p + shift(b), columns.lanes[b]);
    if constexpr (kStep == 2) {
      Vec<T> last = load_lanes(p + shift(3), columns.lanes[3]);
      deinterleave(x[0], x[1]);
      deinterleave(x[2], last);
    }
  }
};
#else
constexpr bool kImageTaps = false;
constexpr int kTapRows = 4;
constexpr int kGroupRows = 2, kGroupResults = 4;
template <class Stored, int kStep>
struct ImageTaps;
#endif

// Calls multiply(r, tap, x) for the products of kRows output rows from `row` on with a source's pixels, each of which
// is loaded once for each column tap; kStep source rows lie between output rows.
template <int kStep, int kRows, class Taps, class Multiply>
inline __attribute__((always_inline)) void for_each_product_3x3(const Taps& taps, int64_t row,
                                                                const typename Taps::Columns& columns,
                                                                const Multiply& multiply) {
  constexpr int kSourceRows = (kRows - 1) * kStep + 3;
  const auto rows = taps.rows(row);
#pragma GCC unroll 15
  for (int i = 0; i < kSourceRows; ++i) {
    if (!taps.has(rows, i)) continue;
    Vec<typename Taps::T> x[3];
    taps.load(rows, i, columns, x);
#pragma GCC unroll 3
    for (int b = 0; b < 3; ++b)
#pragma GCC unroll 7
      for (int r = 0; r < kRows; ++r)
        if (i - r * kStep >= 0 && i - r * kStep < 3) multiply(r, (i - r * kStep) * 3 + b, x[b]);
  }
}

// Source channel `s` of a group: in place, or as a band in `bands`.
template <class T>
Source<T> load_source(const Band& band, bool in_place, const char* channel, DType dtype, const RowRange& range,
                      int64_t s, T* bands, T* widened) {
  const int64_t width = band.columns.source;
  Source<T> source{};
  if (in_place) {
    source.image = {channel, range.first, range.end, width};
    source.top = range.top;
    source.left = -band.columns.pad;
    return source;
  }
  T* const target = bands + s * band.channel_pitch;
  widened += s * band.height * width;
  load_band(band, channel, dtype, range, widened, target);
  source.band = target;
  source.row_pitch = band.row_pitch;
  return source;
}

}  // namespace
}  // namespace fastnn
