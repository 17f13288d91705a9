// A task's source as lines of folded taps (source_amx.h), in two turns: rows of padded pixels, which have all channels
// of the group side by side, and of these the lines. Their values are adjacent from a row's first tap to its last, so
// that a line is a few runs of pixels' rows, the same for every position: a masked load for each of them.
//
// Pixels of NHWC are copied. Those of NCHW are transposed, 32 of them at a time: eight channels take 24 shuffles and 32
// stores of 16 bytes; few channels are gathered from their registers, with a shuffle for each pair of them in each
// register of pixels. Each value is split into parts once, not once for every tap.
//
// Cost: 2 to 5 cycles for each line and run (more where lines leave the first-level cache), and 3 to 5 for eight
// channels of a pixel.
#pragma once

#include "ops/conv/source_amx.h"

namespace fastnn {
namespace {

// -------------------------------------------------------------------------------------------------------- pixels' rows

// The parts of the first `count` of 32 elements.
template <int P, class T>
inline __attribute__((always_inline)) void load_values(const T* values, __mmask32 mask, __m512i* parts,
                                                       RangeLanes& range) {
  load_along<P, T>(reinterpret_cast<const char*>(values), __mmask16(mask), __mmask16(mask >> 16), parts, range);
}

inline __mmask32 first_lanes(int64_t count) { return _bzhi_u32(~0u, uint32_t(max(0, min(kBlock, count)))); }

// Adjacent values; what is written beyond them, up to 64 bytes in all, is written again or nobody's.
template <int P, class T>
void copy_values(const T* values, int64_t count, char* target, int64_t part, RangeLanes& range) {
  for (int64_t i = 0; i < count; i += kBlock) {
    __m512i parts[P];
    load_values<P>(values + i, first_lanes(count - i), parts, range);
    for (int p = 0; p < P; ++p) _mm512_storeu_si512(target + p * part + i * 2, parts[p]);
  }
}

constexpr int64_t kFewChannels = 6;

// Where the values of 32 pixels come from, of few channels: which words of a pair of channels' registers, for each
// register of pixels.
struct PixelOrder {
  static constexpr int64_t kPairs = kFewChannels / 2;
  alignas(64) uint16_t words[kFewChannels][kPairs][kBlock] = {};
  __mmask32 lanes[kFewChannels][kPairs] = {};

  explicit PixelOrder(int64_t channels) {
    for (int64_t value = 0; value < channels * kBlock && channels <= kFewChannels; ++value) {
      const int64_t row = value / kBlock, lane = value % kBlock, channel = value % channels;
      words[row][channel / 2][lane] = uint16_t(channel % 2 * kBlock + value / channels);
      lanes[row][channel / 2] |= __mmask32(1) << lane;
    }
  }
};

// 32 pixels of few channels `plane` elements apart, of which those in `mask` are inside. All are written.
template <int P, class T>
void gather_pixels(const PixelOrder& order, const T* values, int64_t plane, int64_t channels, __mmask32 mask,
                   char* target, int64_t part, RangeLanes& range) {
  __m512i rows[P][kFewChannels];
  for (int64_t c = 0; c < channels; ++c) {
    __m512i parts[P];
    load_values<P>(values + c * plane, mask, parts, range);
    for (int p = 0; p < P; ++p) rows[p][c] = parts[p];
  }
  for (int p = 0; p < P; ++p)
    for (int64_t row = 0; row < channels; ++row) {
      __m512i pixels = _mm512_setzero_si512();
      for (int64_t c = 0; c < channels; c += 2) {
        const __m512i words = _mm512_load_si512(order.words[row][c / 2]), odd = rows[p][min(c + 1, channels - 1)];
        pixels =
            _mm512_or_si512(pixels, _mm512_maskz_permutex2var_epi16(order.lanes[row][c / 2], rows[p][c], words, odd));
      }
      _mm512_storeu_si512(target + p * part + row * kLineBytes, pixels);
    }
}

// 32 pixels of `channels` channels `plane` elements apart, of which those in `mask` are inside. A pixel is written in
// whole eights, the last ones first: what they write beyond the pixel is written again.
template <int P, class T>
void transpose_pixels(const T* values, int64_t plane, int64_t channels, __mmask32 mask, int64_t pixels, char* target,
                      int64_t part, RangeLanes& range) {
  alignas(64) __m512i eights[8];
  for (int64_t octet = (channels - 1) / 8 * 8; octet >= 0; octet -= 8) {
    __m512i rows[P][8];
#pragma GCC unroll 8
    for (int64_t e = 0; e < 8; ++e) {
      __m512i parts[P];
      for (int p = 0; p < P; ++p) parts[p] = _mm512_setzero_si512();
      if (octet + e < channels) load_values<P>(values + (octet + e) * plane, mask, parts, range);
      for (int p = 0; p < P; ++p) rows[p][e] = parts[p];
    }
    for (int p = 0; p < P; ++p) {
      transpose_eights(rows[p], eights);
      char* to = target + p * part + octet * 2;
      for (int64_t pixel = 0; pixel < pixels; ++pixel, to += channels * 2)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                         reinterpret_cast<const __m128i*>(&eights[pixel % 8])[pixel / 8]);
    }
  }
}

// Row `position` of the source from column `column` on, with zeros around it.
template <int P, class T>
void store_pixel_row(const TileSource& source, const PixelOrder& order, const T* image, int64_t position,
                     int64_t column, char* target, RangeLanes& range) {
  const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
  const int64_t pixels = source.row_pixels(), pixel = source.channels * 2, part = source.pixels_part_bytes();
  const bool inside = position >= 0 && position < r.source;
  const int64_t first = inside ? max(0, min(pixels, -column)) : pixels;
  const int64_t end = inside ? max(first, min(pixels, c.source - column)) : pixels;
  for (int p = 0; p < P; ++p) memset(target + p * part, 0, size_t(first * pixel));
  if (!source.pixels && source.channels > 1) {
    const T* row = image + (source.first_channel * r.source + position) * c.source + column;
    const int64_t plane = r.source * c.source;
    for (int64_t i = first; i < end; i += kBlock) {
      const __mmask32 mask = first_lanes(end - i);
      char* to = target + i * pixel;
      if (source.channels <= kFewChannels) {
        gather_pixels<P>(order, row + i, plane, source.channels, mask, to, part, range);
      } else {
        transpose_pixels<P>(row + i, plane, source.channels, mask, min(kBlock, end - i), to, part, range);
      }
    }
  } else {
    const T* row = source.pixels ? image + (position * c.source + column) * source.all_channels + source.first_channel
                                 : image + (source.first_channel * r.source + position) * c.source + column;
    const int64_t stride = source.pixels ? source.all_channels : 1, run = stride == source.channels ? end - first : 1;
    for (int64_t i = first; i < end; i += run)
      copy_values<P>(row + i * stride, run * source.channels, target + i * pixel, part, range);
  }
  for (int p = 0; p < P; ++p) memset(target + p * part + end * pixel, 0, size_t((pixels - end) * pixel));
}

// --------------------------------------------------------------------------------------------------------------- lines

// Values of a line that are adjacent in a row of pixels.
struct LineRun {
  __mmask32 mask;
  int64_t row;     // of pixels, from the line's first
  int64_t offset;  // bytes from the line's first pixel, less those of the lanes before
};

struct LineRuns {
  int64_t count = 0;
  LineRun runs[kStepK];

  LineRuns(const TileSource& source, int64_t group) {
    const int64_t begin = group * kStepK, end = min(begin + kStepK, source.k());
    const int64_t row_dilation = source.rows.plane.dilation, dilation = source.columns.plane.dilation;
    for (int64_t at = begin; at < end;) {
      const TileSource::Fold fold = source.fold(at);
      const int64_t taps = dilation == 1 ? source.columns.folds() - fold.column : 1;
      const int64_t n = min(end - at, taps * source.channels - fold.channel), lane = at - begin;
      runs[count++] = {__mmask32(((uint64_t(1) << n) - 1) << lane), fold.row * row_dilation,
                       (fold.column * dilation * source.channels + fold.channel - lane) * 2};
      at += n;
    }
  }
};

// A row of lines of `kRuns` runs (0: of any number), `step` bytes apart in the rows of pixels.
template <int kRuns>
void store_run_lines(const LineRuns& runs, const char* pixels, int64_t row_bytes, int64_t step, int64_t lines,
                     char* target) {
  constexpr int kMost = kRuns > 0 ? kRuns : int(kStepK);
  const int count = kRuns > 0 ? kRuns : int(runs.count);
  const char* from[kMost];
  __mmask32 masks[kMost];
#pragma GCC unroll 6
  for (int i = 0; i < count; ++i) {
    from[i] = pixels + runs.runs[i].row * row_bytes + runs.runs[i].offset;
    masks[i] = runs.runs[i].mask;
  }
  for (int64_t line = 0; line < lines; ++line) {
    __m512i values = _mm512_maskz_loadu_epi16(masks[0], from[0] + line * step);
#pragma GCC unroll 6
    for (int i = 1; i < count; ++i) values = _mm512_mask_loadu_epi16(values, masks[i], from[i] + line * step);
    _mm512_store_si512(target + line * kLineBytes, values);
  }
}

inline void store_folded_lines(const LineRuns& runs, const char* pixels, int64_t row_bytes, int64_t step, int64_t lines,
                               char* target) {
  constexpr int64_t kMostRuns = 6;  // of a line of one channel under 5 x 5 taps five
  constexpr decltype(&store_run_lines<0>) kStores[kMostRuns + 1] = {
      store_run_lines<0>, store_run_lines<1>, store_run_lines<2>, store_run_lines<3>,
      store_run_lines<4>, store_run_lines<5>, store_run_lines<6>};
  const auto store = kStores[runs.count <= kMostRuns ? runs.count : 0];
  store(runs, pixels, row_bytes, step, lines, target);
}

// The pixels' rows of one image at a time are at `pixels`.
template <int P, class T>
void store_folded(const TileSource& source, const SourceRange& range, char* memory, char* pixels, RangeLanes& lanes) {
  const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
  const int64_t rows = range.rows + source.rows.reach(), length = source.row_length, groups = source.groups();
  const int64_t row_bytes = source.pixel_row_bytes(), part = source.pixels_part_bytes();
  const PixelOrder order(source.channels);
  const int64_t first_row = range.row * r.step - r.pad, first_column = range.column * c.step - c.pad;
  for (int64_t image = 0; image < range.images; ++image) {
    const T* data = reinterpret_cast<const T*>(source.data) + (range.image + image) * source.image_elements();
    for (int64_t row = 0; row < source.pixel_rows(rows); ++row)
      store_pixel_row<P>(source, order, data, first_row + row, first_column, pixels + row * row_bytes, lanes);
    for (int64_t group = 0; group < groups; ++group) {
      const LineRuns runs(source, group);
      for (int64_t phase = 0; phase < source.phases(); ++phase) {
        char* target = memory + phase * source.phase_bytes + group * source.group_bytes;
        for (int64_t row = 0; row < rows; ++row) {
          const char* from = pixels + (row * r.step + source.rows.begin(phase, 0) + r.pad) * row_bytes;
          char* to = target + (image * rows + row) * length * kLineBytes;
          for (int p = 0; p < P; ++p)
            store_folded_lines(runs, from + p * part, row_bytes, c.step * source.channels * 2, length,
                               to + p * source.part_bytes);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastnn
