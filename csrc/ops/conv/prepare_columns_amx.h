// A task's source as columns (source_amx.h): two rows of pixels of NCHW are interleaved.
#pragma once

#include "ops/conv/source_amx.h"

namespace fastnn {
namespace {

// Where one channel's rows come from.
template <class T>
struct ChannelRows {
  const T* rows = nullptr;                        // row 0 of the task's first image, at its first column
  int64_t position = 0, column = 0, columns = 0;  // row 0's position; columns inside the source
};

// Those of one phase: a plane apart.
template <class T>
struct PhaseChannels {
  int64_t channels, plane;
  ChannelRows<T> first, none;

  PhaseChannels(const TileSource& source, const SourceRange& range, int64_t phase)
      : channels(source.channels), plane(source.rows.plane.source * source.columns.plane.source) {
    const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
    const int64_t begin = source.columns.begin(phase % source.columns.phases(), 0) + range.column * c.step;
    none.rows = reinterpret_cast<const T*>(source.data);
    first.position = source.rows.begin(phase / source.columns.phases(), 0) + range.row * r.step;
    first.column = source.columns.first_inside(begin, source.row_length);
    first.columns = source.columns.end_inside(begin, source.row_length);
    first.rows = none.rows + range.image * source.image_elements() +
                 (source.first_channel * r.source + first.position) * c.source + begin;
  }
  ChannelRows<T> operator[](int64_t k) const {
    if (k >= channels) return none;
    ChannelRows<T> result = first;
    result.rows += k * plane;
    return result;
  }
};

// 16 elements `step` apart: 16-bit ones zero-extended.
template <class T, int kStep>
inline __attribute__((always_inline)) __m512i load_spaced(const T* p, __mmask16 mask, int64_t step) {
  const uint32_t even = _pdep_u32(mask, 0x55555555);
  if constexpr (sizeof(T) == 4) {
    if constexpr (kStep == 1) return _mm512_maskz_loadu_epi32(mask, p);
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    if constexpr (kStep == 2)
      return _mm512_permutex2var_epi32(_mm512_maskz_loadu_epi32(__mmask16(even), p), index,
                                       _mm512_maskz_loadu_epi32(__mmask16(even >> 16), p + 16));
    const __m512i offsets = _mm512_mullo_epi32(_mm512_srli_epi32(index, 1), _mm512_set1_epi32(int(step)));
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, offsets, p, 4);
  } else {
    if constexpr (kStep == 1) return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    if constexpr (kStep == 2) return _mm512_maskz_loadu_epi16(even, p);
    alignas(64) uint32_t lanes[16] = {};
    for (int64_t i = 0; i < 16; ++i)
      if (mask >> i & 1) lanes[i] = p[i * step].bits;
    return _mm512_load_si512(lanes);
  }
}

template <int P, class T, int kStep>
inline __attribute__((always_inline)) void load_pair(const T* even, const T* odd, __mmask16 even_mask,
                                                     __mmask16 odd_mask, int64_t step, __m512i* parts,
                                                     RangeLanes& range) {
  const __m512i low = load_spaced<T, kStep>(even, even_mask, step), high = load_spaced<T, kStep>(odd, odd_mask, step);
  if constexpr (sizeof(T) == 2) {
    parts[0] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  } else {
    const __m512 x = _mm512_castsi512_ps(low), y = _mm512_castsi512_ps(high);
    if (P > 1) range.add(x), range.add(y);
    split<P>(x, y, parts, [](__m512 a, __m512 b) { return pair_upper(a, b); });
  }
}

inline __mmask16 lanes_between(int64_t begin, int64_t end) { return lane_mask(end) & ~lane_mask(begin); }

// Lanes of 16 positions from `position` on, to the tiles that have a line of these for a pair of channels.
inline __attribute__((always_inline)) void store_column(char* pair, int64_t position, __mmask16 mask, __m512i lanes) {
  const int64_t first = position % kColumnPositions;
  char* const line = pair + position / kColumnPositions * (kStepK / 2 * kLineBytes);
  if (first == 0 && mask == 0xffff) return _mm512_store_si512(line, lanes);
  const __mmask16 here = lane_mask(kColumnPositions - first);
  _mm512_mask_storeu_epi32(line + first * kPairBytes, mask & here, lanes);
  _mm512_mask_storeu_epi32(line + kStepK / 2 * kLineBytes - (kColumnPositions - first) * kPairBytes, mask & ~here,
                           lanes);
}

// All rows of two channels.
template <int P, class T, int kStep>
void store_pair(const TileSource& source, const SourceRange& range, const ChannelRows<T>& even,
                const ChannelRows<T>& odd, char* target, int64_t rows, RangeLanes& lanes) {
  const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
  const int64_t length = source.row_length, part = source.part_bytes, row_step = r.step * c.source;
  const int64_t ahead = 2 * r.source * c.source;  // the same of the next two channels
  const int64_t full = max(even.column, odd.column), full_end = min(even.columns, odd.columns) - 15;
  int64_t begin = 0;
  for (int64_t image = 0; image < range.images; ++image)
    for (int64_t row = 0; row < rows; ++row, begin += length) {
      const int64_t even_position = even.position + row * r.step, odd_position = odd.position + row * r.step;
      const bool even_inside = even_position >= 0 && even_position < r.source;
      const bool odd_inside = odd_position >= 0 && odd_position < r.source;
      const int64_t offset = image * source.image_elements() + row * row_step;
      const T *even_row = even.rows + offset, *odd_row = odd.rows + offset;
      const auto store = [&](int64_t i, __mmask16 even_mask, __mmask16 odd_mask) {
        __m512i parts[P];
        load_pair<P, T, kStep>(even_row + i * c.step, odd_row + i * c.step, even_mask, odd_mask, c.step, parts, lanes);
        for (int p = 0; p < P; ++p) store_column(target + p * part, begin + i, lane_mask(length - i), parts[p]);
      };
      for (int64_t i = 0; i < length; i += 16) {
        for (; even_inside && odd_inside && i >= full && i < full_end; i += 16) {
          _mm_prefetch(reinterpret_cast<const char*>(even_row + i * c.step + ahead), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(odd_row + i * c.step + ahead), _MM_HINT_T0);
          __m512i parts[P];
          load_pair<P, T, kStep>(even_row + i * c.step, odd_row + i * c.step, 0xffff, 0xffff, c.step, parts, lanes);
          for (int p = 0; p < P; ++p) store_column(target + p * part, begin + i, 0xffff, parts[p]);
        }
        if (i < length)
          store(i, even_inside ? lanes_between(even.column - i, even.columns - i) : __mmask16(0),
                odd_inside ? lanes_between(odd.column - i, odd.columns - i) : __mmask16(0));
      }
    }
}

template <int P, class T>
void store_columns(const TileSource& source, const SourceRange& range, char* memory, RangeLanes& lanes) {
  const int64_t rows = range.rows + source.rows.reach(), step = source.columns.plane.step;
  for (int64_t phase = 0; phase < source.phases(); ++phase) {
    const PhaseChannels<T> channels(source, range, phase);
    for (int64_t k = 0; k < source.groups() * kStepK; k += 2) {
      char* target =
          memory + phase * source.phase_bytes + k / kStepK * source.group_bytes + k % kStepK / 2 * kLineBytes;
      const ChannelRows<T> even = channels[k], odd = channels[k + 1];
      const auto store = step == 1 ? store_pair<P, T, 1> : step == 2 ? store_pair<P, T, 2> : store_pair<P, T, 0>;
      store(source, range, even, odd, target, rows, lanes);
    }
  }
}

}  // namespace
}  // namespace fastnn
