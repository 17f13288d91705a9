// What the weight gradient on AMX tiles reads of x: planes (planes_cpu.h) of bfloat16 parts as pairs of positions,
//
//   [part][parity][phase][half group][image][row][column / 2]  of 16 channels x 2 positions: 64 bytes, a row of B,
//
// k = positions, channels in groups of 32, padded with zeros. Pairs of parity 1 begin at odd positions, for taps whose
// shift is odd. Rows have even lengths, and images whole steps of 32 positions. So any 32 consecutive positions are a
// run of whole cache lines, and a tap is an offset of whole lines. With few channels the column taps become channels
// of their own ("folded": one plane for each channel and column tap, already shifted).
//
// Cost: rows of a channel are copied and split into parts once, and transposed for each parity in squares of 16
// channels x 32 positions, which run on over the rows; NHWC has pairs as they stand.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/pack_amx.h"
#include "ops/conv/conv.h"
#include "ops/conv/planes_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kLineBytes = 64;

struct TilePlanes {
  Planes planes;  // of one group's channels
  bool folded;
  int64_t first_channel;        // of the source: the group's
  int64_t source_channels;      // of all groups
  int64_t first_image, images;  // the images present
  int64_t slots;                // images there is room for
  bool channels_last;
  int64_t parities;  // of pairs
  int64_t column_taps;
  bool unrolled = false;  // every tap has a plane of its own, without shifts (patches_amx.h)

  static int64_t tap_begin(const PlaneAxis& axis, int64_t tap) { return tap * axis.dilation - axis.pad; }

  int64_t column_phases() const { return folded ? 1 : planes.columns.phases; }
  int64_t phases() const { return planes.rows.phases * column_phases(); }
  int64_t folds() const { return folded ? planes.columns.phases : 1; }
  int64_t channels() const { return planes.channels * folds(); }
  int64_t channel_groups() const { return ceil_div(channels(), kStepK); }
  int64_t plane() const { return ceil_div(planes.rows.length * planes.columns.length, kStepK) * kStepK; }
  // Bytes of a half group's pairs: room for tiles that run over the end.
  int64_t group_bytes() const { return (slots * plane() + 2 * kBlock) / 2 * kLineBytes; }
  int64_t phase_bytes() const { return 2 * channel_groups() * group_bytes(); }
  int64_t parity_bytes() const { return phases() * phase_bytes(); }
  int64_t part_bytes() const { return parities * parity_bytes(); }

  // Whether a tap of this column phase begins at odd positions: rows are even.
  bool has_odd_shifts(int64_t column_phase) const {
    for (int64_t tap = column_phase; tap < column_taps; tap += planes.columns.phases)
      if (tap_shift(0, tap) % 2 != 0) return true;
    return false;
  }
  // What tap (row, column) reads for position 0: its phase and its shift in positions.
  int64_t tap_phase(int64_t row, int64_t column) const {
    return row % planes.rows.phases * column_phases() + (folded ? 0 : column % planes.columns.phases);
  }
  int64_t tap_shift(int64_t row, int64_t column) const {
    if (unrolled) return 0;
    const PlaneAxis &r = planes.rows, &c = planes.columns;
    return row * r.dilation / r.step * c.length + (folded ? 0 : column * c.dilation / c.step);
  }
};

// The planes of one group; column taps folded into channels leave planes without shifts.
inline TilePlanes tile_planes(const Planes& planes, int64_t column_taps, int64_t outputs, int64_t group, int64_t groups,
                              bool folded, bool channels_last) {
  TilePlanes result{planes, folded,     group * planes.channels, groups * planes.channels, 0, 0, 1, channels_last,
                    1,      column_taps};
  if (folded) {
    result.planes.columns.phases = column_taps;
    result.planes.columns.length = outputs;
  }
  result.planes.columns.length = ceil_div(result.planes.columns.length, 2) * 2;
  return result;
}

// A row of planes to prepare: where its positions come from.
struct PlaneRow {
  int64_t phase, group, image, row;
};

// Elements begin, begin + step, ... of a row of `size` elements `stride` apart; zeros outside it.
template <class T>
inline void copy_elements(T* target, int64_t length, const T* row, int64_t size, int64_t stride, int64_t begin,
                          int64_t step) {
  const int64_t first = row == nullptr ? length : min(length, begin < 0 ? ceil_div(-begin, step) : 0);
  const int64_t end = row == nullptr || begin >= size ? first : max(first, min(length, ceil_div(size - begin, step)));
  for (int64_t i = 0; i < first; ++i) target[i] = T{};
  const T* source = row + (begin + first * step) * stride;
  int64_t i = first;
  if (step * stride == 2) {  // even elements of two registers; the last odd one may not exist
    if constexpr (sizeof(T) == 4) {
      const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      for (; i + 16 <= end; i += 16, source += 32)
        _mm512_storeu_ps(target + i, _mm512_permutex2var_ps(_mm512_loadu_ps(source), even,
                                                            _mm512_maskz_loadu_ps(0x7fff, source + 16)));
    } else {
      for (; i + 16 <= end; i += 16, source += 32)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i),
                            _mm512_cvtepi32_epi16(_mm512_maskz_loadu_epi16(0x7fffffff, source)));
    }
  }
  for (; i < end; ++i, source += step * stride) target[i] = *source;
  for (i = end; i < length; ++i) target[i] = T{};
}

inline void transpose_lines(__m512i* lines) {
  Vec<float> square[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) square[i] = Vec<float>(Vec<float>::Raw(_mm512_castsi512_ps(lines[i])));
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) lines[i] = _mm512_castps_si512(__m512(square[i].raw));
}

template <int P>
void zero_lines(char* target, int64_t part, int64_t count) {
  for (int p = 0; p < P; ++p) memset(target + p * part, 0, size_t(count * kLineBytes));
}

// A row of planes in NHWC: column i of [first, end) is the pixel at pixels + i * stride; the others are zeros.
template <class T>
struct PixelRow {
  const T* pixels;
  int64_t stride, first, end;
  int64_t channels;  // valid ones, from the group's first on

  PixelRow(const TilePlanes& tiles, const PlaneRow& at) {
    const PlaneAxis &r = tiles.planes.rows, &c = tiles.planes.columns;
    const int64_t position = tiles.planes.rows.phase_begin(at.phase / tiles.column_phases()) + at.row * r.step;
    const int64_t begin = tiles.planes.columns.phase_begin(at.phase % tiles.column_phases());
    const bool inside = position >= 0 && position < r.source;
    first = inside ? min(c.length, begin < 0 ? ceil_div(-begin, c.step) : 0) : c.length;
    end = begin >= c.source ? first : max(first, min(c.length, ceil_div(c.source - begin, c.step)));
    stride = c.step * tiles.source_channels;
    channels = tiles.channels() - at.group * kStepK;
    pixels = reinterpret_cast<const T*>(tiles.planes.source) +
             (((tiles.first_image + at.image) * r.source + position) * c.source + begin) * tiles.source_channels +
             tiles.first_channel + at.group * kStepK;
  }
  bool valid(int64_t column) const { return column >= first && column < end; }
  const char* at(int64_t column) const { return reinterpret_cast<const char*>(pixels + column * stride); }
};

// In bytes, with the ranges of the rows.
template <int P>
int64_t planes_bytes(const TilePlanes& tiles) {
  const int64_t n_ranges = tiles.phases() * tiles.channel_groups() * tiles.slots * tiles.planes.rows.length;
  return P * tiles.part_bytes() + n_ranges * int64_t(sizeof(PartRange));
}

constexpr int64_t kPlaneBytes = int64_t(12) << 20;  // of prepared planes: more images are taken in turns

constexpr double kImageBytes = double(int64_t(1) << 29);

// Planes of one image beyond kImageBytes are left to the vector kernels, which go by bands of rows.
inline bool image_fits(const TilePlanes& tiles) {
  constexpr double kMostParts = 3, kMostParities = 2;
  return double(tiles.phases()) * double(tiles.channel_groups()) * double(tiles.plane()) * kLineBytes * kMostParts *
             kMostParities <=
         kImageBytes;
}

// Room for as many images as the caches hold.
template <int P>
void set_slots(TilePlanes& tiles, int64_t images) {
  tiles.slots = 1;
  tiles.slots = max(1, min(images, kPlaneBytes / max(1, planes_bytes<P>(tiles))));
}

// Of rows of adjacent elements, begin, begin + kStep, ...: `length` of them, zeros beyond `size`, and for rows outside
// [first, end). Row i goes to target + i * length. Columns are taken one after the other, so that masks are made once.
template <int kStep, class T>
inline void copy_adjacent(T* target, int64_t length, int64_t n_rows, const T* rows, int64_t row_step, int64_t first,
                          int64_t end, int64_t size, int64_t begin) {
  const auto below = [](int64_t n) { return n >= 32 ? ~0u : (1u << max(0, n)) - 1; };
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  for (int64_t i = 0; i < length; i += 32 / kStep) {
    const int64_t at = begin + i * kStep;
    const uint32_t inside = below(size - at) & ~below(-at), stored = below(length - i);
    const T* source = rows + first * row_step + at;
    for (int64_t row = 0; row < n_rows; ++row) {
      const bool valid = row >= first && row < end;
      T* to = target + row * length + i;
      if constexpr (sizeof(T) == 4) {
        const __m512 low = _mm512_maskz_loadu_ps(__mmask16(valid ? inside : 0), source);
        const __m512 high = _mm512_maskz_loadu_ps(__mmask16(valid ? inside >> 16 : 0), source + 16);
        if constexpr (kStep == 2) {
          _mm512_mask_storeu_ps(to, __mmask16(stored), _mm512_permutex2var_ps(low, even, high));
        } else {
          _mm512_mask_storeu_ps(to, __mmask16(stored), low);
          _mm512_mask_storeu_ps(to + 16, __mmask16(stored >> 16), high);
        }
      } else {
        const __m512i x = _mm512_maskz_loadu_epi16(valid ? inside : 0, source);
        if constexpr (kStep == 2) {
          _mm256_mask_storeu_epi16(to, __mmask16(stored), _mm512_cvtepi32_epi16(x));
        } else {
          _mm512_mask_storeu_epi16(to, stored, x);
        }
      }
      if (valid) source += row_step;
    }
  }
}

// `n_rows` rows of 16 channels from `at` on, run on: position i of channel c is flat[c * pitch + i].
template <class T>
void copy_channels(const TilePlanes& tiles, const PlaneRow& at, int64_t n_rows, int64_t half, T* flat, int64_t pitch) {
  const PlaneAxis &r = tiles.planes.rows, &c = tiles.planes.columns;
  const int64_t folds = tiles.folds(), plane = tiles.planes.source_plane();
  const int64_t stride = tiles.channels_last ? tiles.source_channels : 1,
                channel_stride = tiles.channels_last ? 1 : plane;
  const T* image = reinterpret_cast<const T*>(tiles.planes.source) +
                   (tiles.first_image + at.image) * tiles.source_channels * plane +
                   tiles.first_channel * channel_stride;
  const int64_t top = tiles.planes.rows.phase_begin(at.phase / tiles.column_phases()) + at.row * r.step;
  const int64_t first_row = top < 0 ? min(n_rows, ceil_div(-top, r.step)) : 0;
  const int64_t end_row = top < r.source ? max(first_row, min(n_rows, ceil_div(r.source - top, r.step))) : first_row;
  const int64_t first = at.group * kStepK + half * 16;
  for (int64_t k = first; k < min(first + 16, tiles.channels()); ++k, flat += pitch) {
    const T* channel = image + k / folds * channel_stride;
    const int64_t begin = tiles.folded ? tiles.tap_begin(c, k % folds)
                                       : tiles.planes.columns.phase_begin(at.phase % tiles.column_phases());
    if (stride == 1 && c.step <= 2) {
      (c.step == 1 ? copy_adjacent<1, T> : copy_adjacent<2, T>)(flat, c.length, n_rows, channel + top * c.source,
                                                                r.step * c.source, first_row, end_row, c.source, begin);
      continue;
    }
    for (int64_t i = 0; i < n_rows; ++i)
      copy_elements(flat + i * c.length, c.length,
                    i >= first_row && i < end_row ? channel + (top + i * r.step) * c.source * stride : nullptr,
                    c.source, stride, begin, c.step);
  }
}

// The parts of `count` positions of 16 channels: bfloat16 [part][channel][pitch], zeros from `count` on.
template <int P>
void split_channels(const float* flat, int64_t pitch, int64_t channels, int64_t count, bfloat16* parts_of,
                    RangeLanes& range) {
  for (int64_t c = 0; c < 16; ++c)
    for (int64_t i = 0; i < pitch; i += kStepK) {
      __m512i parts[P];
      const int64_t valid = c < channels ? count - i : 0;
      load_along<P, float>(reinterpret_cast<const char*>(flat + c * pitch + i), lane_mask(valid), lane_mask(valid - 16),
                           parts, range);
      store_parts<P>(reinterpret_cast<char*>(parts_of + c * pitch + i), 16 * pitch * int64_t(sizeof(bfloat16)), parts);
    }
}

// The same of bfloat16, which are their parts as they stand.
inline void fill_channels(bfloat16* flat, int64_t pitch, int64_t channels, int64_t count) {
  for (int64_t c = 0; c < 16; ++c) {
    const int64_t valid = c < channels ? count : 0;
    memset(static_cast<void*>(flat + c * pitch + valid), 0, size_t(pitch - valid) * sizeof(bfloat16));
  }
}

// Pairs of `count` positions: squares of 16 channels x 16 pairs are transposed. The pair at the end of parity 1 takes
// a zero for the next row's first position, which no tap of that parity uses.
inline void store_pairs(const bfloat16* part, int64_t pitch, int64_t count, int64_t parity, char* target) {
  for (int64_t i = parity; i < count + parity; i += kStepK, target += 16 * kLineBytes) {
    __m512i square[16];
    const int64_t lines = (count + parity - i + 1) / 2;
#pragma GCC unroll 16
    for (int64_t c = 0; c < 16; ++c) square[c] = _mm512_loadu_si512(part + c * pitch + i);
    transpose_lines(square);
#pragma GCC unroll 16
    for (int64_t e = 0; e < 16; ++e)
      if (e < lines) _mm512_store_si512(target + e * kLineBytes, square[e]);
  }
}

// The same from NHWC, where two pixels are 16 pairs as they stand.
template <int P, class T>
void store_pixel_pairs(const PixelRow<T>& row, int64_t half, int64_t parity, int64_t length, char* target, int64_t part,
                       RangeLanes& range) {
  const __mmask16 mask = lane_mask(row.channels - 16 * half), none = 0;
  __m512i parts[P];
  for (int64_t i = parity; i < length + parity; i += 2, target += kLineBytes) {
    const char *even = row.at(i) + 16 * half * int64_t(sizeof(T)),
               *odd = row.at(i + 1) + 16 * half * int64_t(sizeof(T));
    load_across<P, T>(even, odd, row.valid(i) ? mask : none, row.valid(i + 1) ? mask : none, parts, range);
    store_parts<P>(target, part, parts);
  }
}

// `n_rows` rows of a plane.
template <int P, class T>
void prepare_pair_rows(const TilePlanes& tiles, const PlaneRow& at, int64_t n_rows, char* memory, RangeLanes& range) {
  const int64_t length = tiles.planes.columns.length, part = tiles.part_bytes();
  const bool by_pixels = tiles.channels_last && !tiles.folded;
  const int64_t pitch = ceil_div(n_rows * length, 32) * 32 + 32;
  constexpr bool kWhole = sizeof(T) == sizeof(bfloat16);
  T* flat = static_cast<T*>(
      thread_scratch(Scratch::Operation, size_t(16 * pitch) * (sizeof(T) + (kWhole ? 0 : P * sizeof(bfloat16)))));
  bfloat16* parts = reinterpret_cast<bfloat16*>(flat + (kWhole ? 0 : 16 * pitch));
  for (int64_t half = 0; half < 2; ++half) {
    if (!by_pixels) {
      copy_channels(tiles, at, n_rows, half, flat, pitch);
      const int64_t channels = tiles.channels() - at.group * kStepK - half * 16;
      if constexpr (kWhole) {
        fill_channels(flat, pitch, channels, n_rows * length);
      } else {
        split_channels<P>(flat, pitch, channels, n_rows * length, parts, range);
      }
    }
    for (int64_t parity = 0; parity < tiles.parities; ++parity) {
      if (parity == 1 && !tiles.has_odd_shifts(at.phase % tiles.column_phases())) continue;
      char* target = memory + parity * tiles.parity_bytes() + at.phase * tiles.phase_bytes() +
                     (2 * at.group + half) * tiles.group_bytes() +
                     (at.image * tiles.plane() + at.row * length) / 2 * kLineBytes;
      if (!by_pixels) {
        for (int p = 0; p < P; ++p)
          store_pairs(parts + p * 16 * pitch, pitch, n_rows * length, parity, target + p * part);
      } else {
        for (int64_t i = 0; i < n_rows; ++i) {
          const PixelRow<T> pixels(tiles, {at.phase, at.group, at.image, at.row + i});
          store_pixel_pairs<P, T>(pixels, half, parity, length, target + i * length / 2 * kLineBytes, part, range);
        }
      }
      if (at.row + n_rows < tiles.planes.rows.length) continue;
      // What steps read beyond the last row is multiplied by zeros: it must be finite.
      const int64_t rest = tiles.plane() - tiles.planes.rows.length * length;
      const int64_t end = at.image + 1 == tiles.images ? rest + 2 * kBlock : rest;
      zero_lines<P>(target + n_rows * length / 2 * kLineBytes, part, end / 2);
    }
  }
}

// The rows of all present images, in parallel.
template <int P, class T>
PartRange prepare_planes_of(const TilePlanes& tiles, char* memory) {
  constexpr int64_t kGrain = int64_t(1) << 9;  // lines of a task
  const int64_t rows = tiles.planes.rows.length, n = tiles.phases() * tiles.channel_groups() * tiles.images * rows;
  const int64_t grain = max(1, kGrain / tiles.planes.columns.length);
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + P * tiles.part_bytes());
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    RangeLanes range;
    for (int64_t unit = begin, n_rows = 0; unit < end; unit += n_rows) {
      const int64_t image = unit / rows % tiles.images, group = unit / rows / tiles.images;
      const PlaneRow at{group / tiles.channel_groups(), group % tiles.channel_groups(), image, unit % rows};
      n_rows = min(rows - at.row, end - unit);
      prepare_pair_rows<P, T>(tiles, at, n_rows, memory, range);
    }
    ranges[begin / grain] = range.finish();
  });
  PartRange range;
  for (int64_t chunk = 0; chunk < ceil_div(n, grain); ++chunk) range.add(ranges[chunk]);
  return range;
}

template <int P>
PartRange prepare_planes(const TilePlanes& tiles, char* memory) {
  return tiles.planes.dtype == DType::Float32 ? prepare_planes_of<P, float>(tiles, memory)
                                              : prepare_planes_of<P, bfloat16>(tiles, memory);
}

}  // namespace
}  // namespace fastnn
