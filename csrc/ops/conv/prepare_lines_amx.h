// A task's source as lines (source_amx.h): pixels of NHWC are copied, and NCHW is transposed.
#pragma once

#include "ops/conv/prepare_columns_amx.h"

namespace fastnn {
namespace {

inline void transpose_pairs(__m512i* lines) {
  Vec<float> square[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) square[i] = Vec<float>(Vec<float>::Raw(_mm512_castsi512_ps(lines[i])));
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) lines[i] = _mm512_castps_si512(__m512(square[i].raw));
}

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
  const bool octets = P == 1 && source.columns.plane.source >= 8 && step <= 2 && column_phases == step;
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

// A row of lines of one group.
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
    __m512i parts[P];
    load_along<P, T>(reinterpret_cast<const char*>(pixel + i * stride), lane_mask(channels), lane_mask(channels - 16),
                     parts, range);
    store_parts<P>(target + i * kLineBytes, part, parts);
  }
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

}  // namespace
}  // namespace fastnn
