// What a convolution on AMX tiles reads, forward and input gradient: the source of a task, padded, split by stride
// phase and into bfloat16 parts, so that a tap is an offset. k = channels, in groups of 32.
//
//   columns   [part][phase][group][pair of channels][image][row][column] of 2 channels: 4 bytes a position. 16 pairs
//             are the rows of B, and its columns are positions: two rows of pixels of NCHW are interleaved, nothing is
//             transposed, and sums come out filter by filter as NCHW has them. For taps at whole tiles from each
//             other: tiles at other shifts cross cache lines (a 3 x 3 product measured 40 % slower than with lines).
//   lines     [part][phase][group][image][row][column] of 32 channels: 64 bytes a position. Rows of A are positions,
//             and sums come out pixel by pixel. NHWC has them; from NCHW they are transposed, 8 positions of
//             32 channels at a time.
//
// Zeros that every row both begins and ends with are there once: a row's last ones are the next row's first.
//
// With few channels the taps of a row, or all taps, become channels of their own ("folded"): im2col of the task's
// positions, which never leaves the second-level cache. Folded axes have the output's size and no gaps.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/pack_amx.h"
#include "ops/conv/planes_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kPairBytes = 4;

// One axis of the source, and how taps walk along it.
struct SourceAxis {
  PlaneAxis plane;
  int64_t taps, outputs;
  bool folded = false;

  int64_t folds() const { return folded ? taps : 1; }
  int64_t tap_steps() const { return folded ? min(1, taps) : taps; }
  int64_t phases() const { return folded ? 1 : plane.phases; }
  int64_t phase(int64_t tap) const { return folded ? 0 : tap % plane.phases; }
  int64_t shift(int64_t tap) const { return folded ? 0 : tap * plane.dilation / plane.step; }
  int64_t reach() const { return shift(max(1, taps) - 1); }
  // The source position of element 0.
  int64_t begin(int64_t phase, int64_t fold) const {
    return folded ? fold * plane.dilation - plane.pad : plane.phase_begin(phase);
  }
  // Elements [first, end) of `length` from `begin` on lie inside the source.
  int64_t first_inside(int64_t begin, int64_t length) const {
    return begin < 0 ? min(length, ceil_div(-begin, plane.step)) : 0;
  }
  int64_t end_inside(int64_t begin, int64_t length) const {
    const int64_t end = begin < plane.source ? ceil_div(plane.source - begin, plane.step) : 0;
    return max(first_inside(begin, length), min(length, end));
  }
  // How many zeros all phases both begin and end with.
  int64_t shared_zeros() const {
    const int64_t length = outputs + reach();
    int64_t zeros = reach();
    for (int64_t f = 0; f < phases() && !folded; ++f) {
      const int64_t at = plane.phase_begin(f);
      zeros = min(zeros, min(first_inside(at, length), length - end_inside(at, length)));
    }
    return zeros;
  }
  // One element for one, without padding.
  bool plain() const { return taps == 1 && plane.step == 1 && plane.pad == 0 && outputs == plane.source; }
};

// A part of the positions: some images, or a band of rows (of columns, where there is one row) of one.
struct SourceRange {
  int64_t image, images;
  int64_t row, rows;        // of the output
  int64_t column, columns;  // of the output
};

// The source of one group.
struct TileSource {
  const char* data;
  DType dtype;
  int64_t channels, first_channel, all_channels;  // of the group, the group's first, of all groups
  bool pixels;                                    // NHWC
  bool lines;                                     // NHWC has no columns
  SourceAxis rows, columns;
  int64_t images, band_rows, band_columns;  // of a task, at most: outputs
  bool direct = false;                      // NHWC as it stands in memory is lines already

  // How a task's source lies in memory: from lay_out(). Bytes, lengths in positions.
  int64_t shared = 0;  // zeros that a row has in common with the next one
  int64_t row_length = 0, row_count = 0, plane = 0;
  int64_t position_bytes = 0, pitch = 0;  // pitch: from a pair of channels to the next
  int64_t group_bytes = 0, phase_bytes = 0, part_bytes = 0;

  void lay_out() {
    shared = rows.outputs > 1 ? columns.shared_zeros() : 0;
    row_length = band_columns + columns.reach() - shared;
    // Taps along rows are whole tiles of columns apart.
    if (!lines && rows.tap_steps() > 1) row_length = ceil_div(row_length, 16) * 16;
    row_count = band_rows + rows.reach();
    plane = row_count * row_length;
    // With the last row's zeros, and room for tiles that run over the end.
    const int64_t capacity = images * plane + shared + kBlock;
    position_bytes = direct ? all_channels * 2 : lines ? kLineBytes : kPairBytes;
    // An odd number of cache lines, so that 16 rows of a tile lie in 16 different sets.
    pitch = ceil_div(capacity * kPairBytes, 64) / 2 * 128 + 64;
    group_bytes = direct ? kLineBytes : lines ? capacity * kLineBytes : kStepK / 2 * pitch;
    phase_bytes = groups() * group_bytes;
    part_bytes = phases() * phase_bytes;
  }
  int64_t folds() const { return rows.folds() * columns.folds(); }
  int64_t k() const { return channels * folds(); }
  int64_t groups() const { return ceil_div(k(), kStepK); }
  int64_t steps() const { return groups() * rows.tap_steps() * columns.tap_steps(); }
  int64_t phases() const { return rows.phases() * columns.phases(); }
  int64_t image_elements() const { return all_channels * rows.plane.source * columns.plane.source; }

  // Where a step finds its tiles.
  int64_t step_offset(int64_t group, int64_t row_tap, int64_t column_tap) const {
    return (rows.phase(row_tap) * columns.phases() + columns.phase(column_tap)) * phase_bytes + group * group_bytes +
           (rows.shift(row_tap) * row_length + columns.shift(column_tap)) * position_bytes;
  }
  // The channel and the taps that value k of a folded source is of. NHWC has a pixel's channels side by side.
  struct Fold {
    int64_t channel, row, column;
  };
  Fold fold(int64_t k) const {
    const int64_t f = pixels ? k / channels : k % folds();
    return {pixels ? k % channels : k / folds(), f / columns.folds(), f % columns.folds()};
  }
};

inline void transpose_pairs(__m512i* lines) {
  Vec<float> square[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) square[i] = Vec<float>(Vec<float>::Raw(_mm512_castsi512_ps(lines[i])));
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) lines[i] = _mm512_castps_si512(__m512(square[i].raw));
}

// ------------------------------------------------------------------------------------ columns

// Where one channel's rows come from.
template <class T>
struct ChannelRows {
  const T* rows;                      // row 0 of the task's first image, at its first column
  int64_t position, column, columns;  // row 0's position; columns inside the source

  ChannelRows() {}
  ChannelRows(const TileSource& source, const SourceRange& range, int64_t phase, int64_t k) {
    if (k >= source.k()) {
      rows = reinterpret_cast<const T*>(source.data), position = column = columns = 0;
      return;
    }
    const TileSource::Fold fold = source.fold(k);
    const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
    const int64_t length = source.row_length;
    const int64_t begin = source.columns.begin(phase % source.columns.phases(), fold.column) + range.column * c.step;
    position = source.rows.begin(phase / source.columns.phases(), fold.row) + range.row * r.step;
    column = source.columns.first_inside(begin, length);
    columns = source.columns.end_inside(begin, length);
    rows = reinterpret_cast<const T*>(source.data) + range.image * source.image_elements() +
           ((source.first_channel + fold.channel) * r.source + position) * c.source + begin;
  }
};

// Those of one phase: unfolded, a plane apart.
template <class T>
struct PhaseChannels {
  const TileSource& source;
  const SourceRange& range;
  int64_t phase;
  ChannelRows<T> first, none;

  PhaseChannels(const TileSource& source_, const SourceRange& range_, int64_t phase_)
      : source(source_),
        range(range_),
        phase(phase_),
        first(source, range, phase, 0),
        none(source, range, phase, source.k()) {}
  ChannelRows<T> operator[](int64_t k) const {
    if (source.folds() > 1) return ChannelRows<T>(source, range, phase, k);
    if (k >= source.channels) return none;
    ChannelRows<T> result = first;
    result.rows += k * source.rows.plane.source * source.columns.plane.source;
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

// All rows of two channels.
template <int P, class T, int kStep>
void store_pair(const TileSource& source, const SourceRange& range, const ChannelRows<T>& even,
                const ChannelRows<T>& odd, char* target, int64_t rows, RangeLanes& lanes) {
  const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
  const int64_t length = source.row_length, part = source.part_bytes, row_step = r.step * c.source;
  const int64_t full = max(even.column, odd.column), full_end = min(even.columns, odd.columns) - 15;
  for (int64_t image = 0; image < range.images; ++image)
    for (int64_t row = 0; row < rows; ++row, target += length * kPairBytes) {
      const int64_t even_position = even.position + row * r.step, odd_position = odd.position + row * r.step;
      const bool even_inside = even_position >= 0 && even_position < r.source;
      const bool odd_inside = odd_position >= 0 && odd_position < r.source;
      const int64_t offset = image * source.image_elements() + row * row_step;
      const T *even_row = even.rows + offset, *odd_row = odd.rows + offset;
      const auto store = [&](int64_t i, __mmask16 even_mask, __mmask16 odd_mask) {
        __m512i parts[P];
        load_pair<P, T, kStep>(even_row + i * c.step, odd_row + i * c.step, even_mask, odd_mask, c.step, parts, lanes);
        for (int p = 0; p < P; ++p)
          _mm512_mask_storeu_epi32(target + p * part + i * kPairBytes, lane_mask(length - i), parts[p]);
      };
      for (int64_t i = 0; i < length; i += 16) {
        for (; even_inside && odd_inside && i >= full && i < full_end; i += 16) {
          __m512i parts[P];
          load_pair<P, T, kStep>(even_row + i * c.step, odd_row + i * c.step, 0xffff, 0xffff, c.step, parts, lanes);
          for (int p = 0; p < P; ++p) _mm512_storeu_si512(target + p * part + i * kPairBytes, parts[p]);
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
      char* target = memory + phase * source.phase_bytes + k / 2 * source.pitch;
      const ChannelRows<T> even = channels[k], odd = channels[k + 1];
      const auto store = step == 1 ? store_pair<P, T, 1> : step == 2 ? store_pair<P, T, 2> : store_pair<P, T, 0>;
      store(source, range, even, odd, target, rows, lanes);
    }
  }
}

// -------------------------------------------------------------------------------------- lines

// From NCHW: squares of 16 pairs of channels x 16 positions are transposed.
template <int P, class T, int kStep>
void store_squares(const TileSource& source, const SourceRange& range, int64_t phase, int64_t group, char* target,
                   RangeLanes& lanes) {
  const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
  const int64_t length = source.row_length, part = source.part_bytes, rows = range.rows + source.rows.reach();
  const PhaseChannels<T> phase_channels(source, range, phase);
  ChannelRows<T> channels[kStepK];
  for (int64_t k = 0; k < kStepK; ++k) channels[k] = phase_channels[group * kStepK + k];
  for (int64_t line = 0; line < range.images * rows; ++line) {
    const int64_t row = line % rows, offset = line / rows * source.image_elements() + row * r.step * c.source;
    for (int64_t i = 0; i < length; i += 16) {
      __m512i squares[P][16];
      const auto mask = [&](const ChannelRows<T>& channel) {
        const int64_t position = channel.position + row * r.step;
        return position >= 0 && position < r.source ? lanes_between(channel.column - i, channel.columns - i)
                                                    : __mmask16(0);
      };
      for (int64_t q = 0; q < 16; ++q) {
        __m512i parts[P];
        const ChannelRows<T>&even = channels[2 * q], &odd = channels[2 * q + 1];
        load_pair<P, T, kStep>(even.rows + offset + i * c.step, odd.rows + offset + i * c.step, mask(even), mask(odd),
                               c.step, parts, lanes);
        for (int p = 0; p < P; ++p) squares[p][q] = parts[p];
      }
      for (int p = 0; p < P; ++p) {
        char* square = target + p * part + (line * length + i) * kLineBytes;
        transpose_pairs(squares[p]);
        for (int64_t e = 0; e < min(16, length - i); ++e) _mm512_store_si512(square + e * kLineBytes, squares[p][e]);
      }
    }
  }
}

// Squares of 8 x 8 words, one in each quarter of 8 registers, are transposed.
inline __attribute__((always_inline)) void transpose_eights(const __m512i* rows, __m512i* columns) {
  __m512i x[8], y[8];
#pragma GCC unroll 4
  for (int k = 0; k < 8; k += 2)
    y[k] = _mm512_unpacklo_epi16(rows[k], rows[k + 1]), y[k + 1] = _mm512_unpackhi_epi16(rows[k], rows[k + 1]);
#pragma GCC unroll 2
  for (int k = 0; k < 8; k += 4)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      x[k + 2 * h] = _mm512_unpacklo_epi32(y[k + h], y[k + h + 2]);
      x[k + 2 * h + 1] = _mm512_unpackhi_epi32(y[k + h], y[k + h + 2]);
    }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    columns[2 * k] = _mm512_unpacklo_epi64(x[k], x[k + 4]);
    columns[2 * k + 1] = _mm512_unpackhi_epi64(x[k], x[k + 4]);
  }
}

// Lines of 8 adjacent pixels of 32 channels of 16 bits `plane` elements apart.
inline __attribute__((always_inline)) void load_octet(const bfloat16* pixels, int64_t plane, __m512i* lines) {
  __m512i rows[8];
#pragma GCC unroll 8
  for (int64_t k = 0; k < 8; ++k) {
    const auto eight = [&](int64_t channel) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels + channel * plane));
    };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(eight(k)), eight(k + 8), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(eight(k + 16)), eight(k + 24), 1);
    rows[k] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  transpose_eights(rows, lines);
}

// 32 channels of 16 bits without taps among them, from NCHW: pixels 8 at a time, which are of the column phases in
// turn. `target` is the group's in column phase 0.
template <int kStep>
void store_octets(const TileSource& source, const SourceRange& range, int64_t row_phase, int64_t group, char* target) {
  const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
  const int64_t length = source.row_length, rows = range.rows + source.rows.reach();
  const int64_t plane = r.source * c.source, phases = source.columns.phases();
  int64_t begin[kStep], first[kStep], end[kStep], low = c.source, high = 0;
  for (int64_t f = 0; f < phases; ++f) {
    begin[f] = source.columns.begin(f, 0) + range.column * c.step;
    first[f] = source.columns.first_inside(begin[f], length);
    end[f] = source.columns.end_inside(begin[f], length);
    if (end[f] > first[f]) {
      low = min(low, begin[f] + first[f] * kStep);
      high = max(high, begin[f] + (end[f] - 1) * kStep + 1);
    }
  }
  // Whole octets, inside the row: the last one may overlap the one before.
  const int64_t last = max(0, min(high, c.source) - 8);
  const bfloat16* data = reinterpret_cast<const bfloat16*>(source.data) + range.image * source.image_elements() +
                         (source.first_channel + group * kStepK) * plane;
  for (int64_t line = 0; line < range.images * rows; ++line, target += length * kLineBytes) {
    const int64_t position = source.rows.begin(row_phase, 0) + (range.row + line % rows) * r.step;
    const bool inside = position >= 0 && position < r.source;
    for (int64_t f = 0; f < phases; ++f) {
      char* row = target + f * source.phase_bytes;
      memset(row, 0, size_t((inside ? first[f] : length) * kLineBytes));
      if (inside) memset(row + end[f] * kLineBytes, 0, size_t((length - end[f]) * kLineBytes));
    }
    if (!inside) continue;
    const bfloat16* pixels = data + line / rows * source.image_elements() + position * c.source;
    for (int64_t x = low; x < high; x += 8) {
      const int64_t octet = min(x, last);
      __m512i lines[8];
      load_octet(pixels + octet, plane, lines);
#pragma GCC unroll 8
      for (int64_t e = 0; e < 8; ++e) {
        const int64_t f = kStep == 1 ? 0 : (octet + e - begin[0]) & 1, i = (octet + e - begin[f]) / kStep;
        if (i >= first[f] && i < end[f]) _mm512_store_si512(target + f * source.phase_bytes + i * kLineBytes, lines[e]);
      }
    }
  }
}

template <int P, class T>
void store_transposed(const TileSource& source, const SourceRange& range, char* memory, RangeLanes& lanes) {
  const int64_t step = source.columns.plane.step, column_phases = source.columns.phases();
  const bool octets =
      P == 1 && !source.columns.folded && source.columns.plane.source >= 8 && step <= 2 && column_phases == step;
  for (int64_t phase = 0; phase < source.phases(); ++phase)
    for (int64_t group = 0; group < source.groups(); ++group) {
      char* target = memory + phase * source.phase_bytes + group * source.group_bytes;
      if (octets && (group + 1) * kStepK <= source.channels) {
        if (phase % column_phases == 0)
          (step == 1 ? store_octets<1> : store_octets<2>)(source, range, phase / column_phases, group, target);
      } else {
        const auto store = step == 1   ? store_squares<P, T, 1>
                           : step == 2 ? store_squares<P, T, 2>
                                       : store_squares<P, T, 0>;
        store(source, range, phase, group, target, lanes);
      }
    }
}

// 32 values of a line, of which a run of `count` from lane `lane` on is at p.
template <class T>
struct LineLanes {
  __m512i first = _mm512_setzero_si512(), second = _mm512_setzero_si512();

  void add(const T* p, int64_t lane, int64_t count) {
    const T* origin = p - lane;
    if constexpr (sizeof(T) == 2) {
      const __mmask32 mask = __mmask32(((uint64_t(1) << count) - 1) << lane);
      first = _mm512_mask_loadu_epi16(first, mask, origin);
    } else {
      const uint32_t mask = uint32_t(((uint64_t(1) << count) - 1) << lane);
      first = _mm512_mask_loadu_epi32(first, __mmask16(mask), origin);
      second = _mm512_mask_loadu_epi32(second, __mmask16(mask >> 16), origin + 16);
    }
  }
  template <int P>
  void store(char* target, int64_t part, RangeLanes& range) const {
    if constexpr (sizeof(T) == 2) {
      _mm512_store_si512(target, first);
    } else {
      __m512i parts[P];
      const __m512 x = _mm512_castsi512_ps(first), y = _mm512_castsi512_ps(second);
      if (P > 1) range.add(x), range.add(y);
      split<P>(x, y, parts, [](__m512 a, __m512 b) { return join_upper(a, b); });
      store_parts<P>(target, part, parts);
    }
  }
};

// A row of lines of one group of an unfolded source.
template <int P, class T>
void store_line_row(const TileSource& source, const T* row, bool inside, int64_t begin, int64_t channels, char* target,
                    RangeLanes& range) {
  const int64_t length = source.row_length, part = source.part_bytes;
  const int64_t first = inside ? source.columns.first_inside(begin, length) : length;
  const int64_t end = inside ? source.columns.end_inside(begin, length) : length;
  const int64_t stride = source.columns.plane.step * source.all_channels;
  const T* pixel = row + begin * source.all_channels;
  for (int p = 0; p < P; ++p) {
    memset(target + p * part, 0, size_t(first * kLineBytes));
    memset(target + p * part + end * kLineBytes, 0, size_t((length - end) * kLineBytes));
  }
  for (int64_t i = first; i < end; ++i) {
    LineLanes<T> line;
    line.add(pixel + i * stride, 0, min(kStepK, channels));
    line.template store<P>(target + i * kLineBytes, part, range);
  }
}

// A line of a folded source: values [k, k + 32) are runs of channels of pixels.
template <int P, class T>
void store_folded_line(const TileSource& source, const T* image, int64_t row_begin, int64_t row_phase, int64_t column,
                       int64_t k, char* target, RangeLanes& range) {
  const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
  const int64_t end = min(k + kStepK, source.k());
  LineLanes<T> line;
  for (int64_t at = k; at < end;) {
    const TileSource::Fold fold = source.fold(at);
    // Columns of adjacent taps are adjacent, and so are their channels: a run goes on to the end of the row's taps.
    const int64_t taps =
        c.dilation == 1 && source.all_channels == source.channels ? source.columns.folds() : fold.column + 1;
    const int64_t run = min(end - at, (taps - fold.column) * source.channels - fold.channel);
    const int64_t row = row_begin + source.rows.begin(row_phase, fold.row);
    if (row >= 0 && row < r.source) {
      // Elements of the row that the run would read, and those of them that exist.
      const int64_t pixel = column + source.columns.begin(0, fold.column);
      const int64_t element = pixel * source.all_channels + fold.channel;
      const int64_t lowest = max(0, -element);
      const int64_t highest = min(run, c.source * source.all_channels - element);
      if (highest > lowest)
        line.add(image + row * c.source * source.all_channels + element + lowest, at - k + lowest, highest - lowest);
    }
    at += run;
  }
  line.template store<P>(target, source.part_bytes, range);
}

template <int P, class T>
void store_lines(const TileSource& source, const SourceRange& range, char* memory, RangeLanes& lanes) {
  const PlaneAxis &r = source.rows.plane, &c = source.columns.plane;
  const int64_t rows = range.rows + source.rows.reach(), length = source.row_length;
  const T* data = reinterpret_cast<const T*>(source.data) + source.first_channel;
  for (int64_t phase = 0; phase < source.phases(); ++phase)
    for (int64_t group = 0; group < source.groups(); ++group) {
      char* target = memory + phase * source.phase_bytes + group * source.group_bytes;
      const int64_t column_phase = phase % source.columns.phases(), row_phase = phase / source.columns.phases();
      for (int64_t i = 0; i < range.images * rows; ++i, target += length * kLineBytes) {
        const T* image = data + (range.image + i / rows) * source.image_elements();
        const int64_t row = (range.row + i % rows) * r.step, column = range.column * c.step;
        if (source.columns.folded) {
          for (int64_t e = 0; e < length; ++e)
            store_folded_line<P, T>(source, image, row, row_phase, column + e * c.step, group * kStepK,
                                    target + e * kLineBytes, lanes);
          continue;
        }
        const int64_t position = row + source.rows.begin(row_phase, 0);
        const bool inside = position >= 0 && position < r.source;
        const T* pixels = image + position * c.source * source.all_channels + group * kStepK;
        store_line_row<P, T>(source, pixels, inside, column + source.columns.begin(column_phase, 0),
                             source.channels - group * kStepK, target, lanes);
      }
    }
}

// What the taps of the last row's last positions read beyond it.
template <int P>
void zero_end(const TileSource& source, const SourceRange& range, char* memory) {
  const int64_t positions = range.images * (range.rows + source.rows.reach()) * source.row_length;
  for (int p = 0; p < P; ++p)
    for (int64_t group = 0; group < source.phases() * source.groups(); ++group)
      memset(memory + p * source.part_bytes + group * source.group_bytes + positions * kLineBytes, 0,
             size_t(source.shared * kLineBytes));
}

template <int P, class T>
PartRange prepare_source_of(const TileSource& source, const SourceRange& range, char* memory) {
  RangeLanes lanes;
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
