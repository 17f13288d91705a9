// A task's source, prepared: as columns, as lines (source_amx.h), or packed.
//
// Packed pixels have all their channels side by side (and folded rows of taps, each a channel), and no gaps: 32
// values from a position on are a row of A under 32 / channels taps, read in place. Against lines of folded columns
// that is a line per position less to write for every 32 values; but rows of tiles cross cache lines, which takes 5 to
// 6 cycles for each row where 0.5 do (of 32 bytes a position every other one). It pays with few channels, whose folds
// are many.
//
// Cost: eight values of 32 pixels are loaded and transposed at a time, 24 shuffles and 32 stores of 16 bytes.
#pragma once

#include "ops/conv/prepare_columns_amx.h"
#include "ops/conv/prepare_lines_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kPackedValues = 64;  // of a pixel, at most

// Where the values of a row of pixels come from; null outside the image.
template <class T>
struct PackedRow {
  const T* values[kPackedValues];
  int64_t count;

  PackedRow(const TileSource& source, const SourceRange& range, int64_t image, int64_t phase, int64_t row)
      : count(source.pixel_values()) {
    const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
    const T* first = reinterpret_cast<const T*>(source.data) + (range.image + image) * source.image_elements();
    for (int64_t k = 0; k < count; ++k) {
      const TileSource::Fold fold = source.fold(k);
      const int64_t position = source.rows.begin(phase, fold.row) + (range.row + row) * r.step;
      const bool inside = position >= 0 && position < r.source;
      values[k] = inside ? first + ((source.first_channel + fold.channel) * r.source + position) * c.source : nullptr;
    }
  }
};

// The parts of 32 columns of one value.
template <int P, class T>
inline __attribute__((always_inline)) void load_columns(const T* values, __mmask32 mask, __m512i* parts,
                                                        RangeLanes& range) {
  if constexpr (sizeof(T) == 2) {
    parts[0] = _mm512_maskz_loadu_epi16(mask, values);
    range.add_words(parts[0]);
  } else {
    const __m512 x = _mm512_maskz_loadu_ps(__mmask16(mask), values);
    const __m512 y = _mm512_maskz_loadu_ps(__mmask16(mask >> 16), values + 16);
    range.add(x), range.add(y);
    split<P>(x, y, parts, [](__m512 a, __m512 b) { return join_upper(a, b); });
  }
}

// 32 pixels, of which the columns in `mask` from `column` on are inside: eight values at a time are transposed. A pixel
// is written in whole eights, and the next one over what is beyond.
template <int P, class T>
void store_packed_pixels(const PackedRow<T>& row, int64_t column, __mmask32 mask, int64_t pixels, int64_t part,
                         char* target, RangeLanes& range) {
  alignas(64) __m512i eights[P][kPackedValues / 8][8];
  const int64_t octets = ceil_div(row.count, 8), pixel_bytes = row.count * 2;
  for (int64_t octet = 0; octet < octets; ++octet) {
    __m512i rows[P][8];
#pragma GCC unroll 8
    for (int64_t e = 0; e < 8; ++e) {
      const T* values = octet * 8 + e < row.count ? row.values[octet * 8 + e] : nullptr;
      __m512i parts[P];
      for (int p = 0; p < P; ++p) parts[p] = _mm512_setzero_si512();
      if (values) load_columns<P>(values + column, mask, parts, range);
      for (int p = 0; p < P; ++p) rows[p][e] = parts[p];
    }
    for (int p = 0; p < P; ++p) transpose_eights(rows[p], eights[p][octet]);
  }
  for (int p = 0; p < P; ++p) {
    char* to = target + p * part;
    for (int64_t pixel = 0; pixel < pixels; ++pixel, to += pixel_bytes)
      for (int64_t octet = 0; octet < octets; ++octet)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + octet * 16),
                         reinterpret_cast<const __m128i*>(&eights[p][octet][pixel % 8])[pixel / 8]);
  }
}

template <int P, class T>
void store_packed(const TileSource& source, const SourceRange& range, char* memory, RangeLanes& lanes) {
  const PlaneAxis& c = source.columns.plane;
  const int64_t rows = range.rows + source.rows.reach(), pixels = source.row_length * c.step;
  const int64_t pixel_bytes = source.pixel_values() * 2, first = range.column * c.step + source.columns.begin(0, 0);
  for (int64_t phase = 0; phase < source.phases(); ++phase) {
    char* target = memory + phase * source.phase_bytes;
    for (int64_t line = 0; line < range.images * rows; ++line) {
      const PackedRow<T> row(source, range, line / rows, phase, line % rows);
      for (int64_t pixel = 0; pixel < pixels; pixel += kBlock) {
        const int64_t column = first + pixel, n = min(kBlock, pixels - pixel);
        const __mmask32 mask = _bzhi_u32(~0u, uint32_t(max(0, min(kBlock, c.source - column)))) &
                               ~_bzhi_u32(~0u, uint32_t(max(0, min(kBlock, -column))));
        store_packed_pixels<P>(row, column, mask, n, source.part_bytes, target + pixel * pixel_bytes, lanes);
      }
      target += pixels * pixel_bytes;
    }
    // What tiles read beyond the last row.
    for (int p = 0; p < P; ++p)
      memset(target + p * source.part_bytes, 0, size_t(source.packed_rest() * source.position_bytes));
  }
}

template <int P, class T>
PartRange prepare_source_of(const TileSource& source, const SourceRange& range, char* memory) {
  RangeLanes lanes;
  if (source.packed) {
    store_packed<P, T>(source, range, memory, lanes);
    return lanes.finish();
  }
  (source.pixels  ? store_lines<P, T>
   : source.lines ? store_transposed<P, T>
                  : store_columns<P, T>)(source, range, memory, lanes);
  if (source.lines) zero_end<P>(source, range, memory);
  return lanes.finish();
}

template <int P>
PartRange prepare_source(const TileSource& source, const SourceRange& range, char* memory) {
  if constexpr (P == 1) {
    return prepare_source_of<1, bfloat16>(source, range, memory);
  } else {
    return prepare_source_of<P, float>(source, range, memory);
  }
}

}  // namespace
}  // namespace fastnn
