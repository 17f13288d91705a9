// One group of a weight gradient on AMX tiles, and its dy as rows of A:
//
//   [panel of 32 filters][image][step of 32 positions][part] of two tiles of 16 filters x 32 positions,
//
// at the pitch of x's planes, with zeros in the gaps between rows. Rows of NCHW are copied and split into parts; NHWC
// is transposed, pairs of pixels at a time.
#pragma once

#include "ops/conv/planes_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kPackedSteps = 8;  // whose tiles stay in the first-level cache

struct WeightPass {
  TilePlanes x;
  int64_t row_taps, column_taps;  // column_taps is 1 when they are folded into channels
  const char* dy;                 // of the group's first channel
  DType dtype;
  int64_t filters, all_filters;   // of the group, of all groups
  int64_t gradient_plane;         // positions of a filter of dy, in memory
  int64_t out_rows, out_columns;  // of patches 1 and all positions
  int64_t patch_images = 0;       // that are laid out as patches at a time; 0: as planes

  int64_t taps() const { return row_taps * column_taps; }
  int64_t positions() const { return (out_rows - 1) * x.planes.columns.length + out_columns; }
  int64_t image_steps() const { return ceil_div(positions(), kStepK); }
  bool gapless() const { return out_rows == 1 || x.planes.columns.length == out_columns; }
  template <class T>
  const T* gradient(int64_t image, int64_t filter) const {
    return reinterpret_cast<const T*>(dy) + ((x.first_image + image) * all_filters + filter) * gradient_plane;
  }
  // Where a tap's pairs of the first group begin.
  int64_t tap_offset(int64_t tap) const {
    const int64_t row = tap / column_taps, column = tap % column_taps;
    const int64_t shift = x.tap_shift(row, column), parity = x.parities > 1 ? shift % 2 : 0;
    return parity * x.parity_bytes() + x.tap_phase(row, column) * x.phase_bytes() + (shift - parity) / 2 * kLineBytes;
  }
  int64_t panels() const { return ceil_div(filters, kBlock); }
  int64_t groups() const { return x.channel_groups(); }
  template <int P>
  int64_t panel_bytes() const {
    return x.slots * image_steps() * P * kBlockBytes;
  }
};

// --------------------------------------------------------------------------------- packing of dy

// Positions [begin, begin + count) of one filter and image at the pitch of x's planes; zeros between rows.
template <class T>
void load_gapped(const WeightPass& pass, int64_t image, int64_t filter, int64_t begin, int64_t count, T* positions) {
  const int64_t pitch = pass.x.planes.columns.length;
  const T* source = pass.gradient<T>(image, filter);
  int64_t row = begin / pitch, column = begin % pitch;
  for (int64_t i = 0; i < count; ++row, column = 0) {
    const int64_t n = min(pitch - column, count - i);
    copy_adjacent<1>(positions + i, n, 1, source + row * pass.out_columns, 0, 0, row < pass.out_rows, pass.out_columns,
                     column);
    i += n;
  }
}

// The same of 32 bfloat16: each row's elements are loaded into their lanes.
inline __m512i load_gapped_line(const WeightPass& pass, const bfloat16* gradient, int64_t begin) {
  const int64_t pitch = pass.x.planes.columns.length;
  __m512i line = _mm512_setzero_si512();
  int64_t row = begin / pitch, column = begin % pitch;
  for (int64_t lane = 0; lane < kStepK && row < pass.out_rows; lane += pitch - column, column = 0, ++row) {
    const int64_t count = min(kStepK - lane, pass.out_columns - column);
    if (count <= 0) continue;
    const __mmask32 mask = __mmask32(((uint64_t(1) << count) - 1) << lane);
    line = _mm512_mask_loadu_epi16(line, mask, gradient + row * pass.out_columns + column - lane);
  }
  return line;
}

// Some steps of one filter and image after the other: memory is written tile by tile.
template <int P, class T>
void pack_rows(const WeightPass& pass, int64_t panel, int64_t image, int64_t step, int64_t steps, char* target,
               RangeLanes& range) {
  constexpr bool kLines = sizeof(T) == sizeof(bfloat16);
  const bool copied = !pass.gapless() && !kLines;
  T* copies = static_cast<T*>(thread_scratch(Scratch::Operation, size_t(steps + 1) * kStepK * sizeof(T)));
  __m512i parts[P];
  const int64_t rows = min(kBlock, ceil_div(pass.filters - panel * kBlock, 16) * 16);  // of the tiles that are read
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t filter = panel * kBlock + r, rest = filter < pass.filters ? pass.positions() - step * kStepK : 0;
    const T* positions = copies;
    if (rest > 0 && pass.gapless()) positions = pass.gradient<T>(image, filter) + step * kStepK;
    if (rest > 0 && copied) load_gapped(pass, image, filter, step * kStepK, steps * kStepK, copies);
    char* lines = target + r / 16 * kTileBytes + r % 16 * 64;
    if constexpr (kLines) {
      if (rest > 0 && !pass.gapless()) {
        for (int64_t s = 0; s < steps; ++s, lines += kBlockBytes)
          _mm512_store_si512(lines, load_gapped_line(pass, pass.gradient<T>(image, filter), (step + s) * kStepK));
        continue;
      }
    }
    for (int64_t s = 0; s < steps; ++s, lines += P * kBlockBytes) {
      load_along<P, T>(reinterpret_cast<const char*>(positions + s * kStepK), lane_mask(rest - s * kStepK),
                       lane_mask(rest - s * kStepK - 16), parts, range);
      store_parts<P>(lines, kBlockBytes, parts);
    }
  }
}

// One step of 32 positions of 16 filters from NHWC: pairs of pixels, transposed.
template <int P, class T>
void pack_pixels(const WeightPass& pass, int64_t image, int64_t filter, int64_t position, char* tile,
                 RangeLanes& range) {
  const int64_t pitch = pass.x.planes.columns.length;
  const __mmask16 mask = lane_mask(pass.filters - filter);
  const T* pixels = reinterpret_cast<const T*>(pass.dy) +
                    (pass.x.first_image + image) * pass.gradient_plane * pass.all_filters + filter;
  __m512i squares[P][16];
  for (int64_t q = 0; q < 16; ++q) {
    const char* pixel[2] = {};
    __mmask16 masks[2] = {};
    for (int64_t e = 0; e < 2; ++e) {
      const int64_t row = (position + 2 * q + e) / pitch, column = (position + 2 * q + e) % pitch;
      if (row >= pass.out_rows || column >= pass.out_columns) continue;
      pixel[e] = reinterpret_cast<const char*>(pixels + (row * pass.out_columns + column) * pass.all_filters);
      masks[e] = mask;
    }
    __m512i parts[P];
    load_across<P, T>(pixel[0], pixel[1], masks[0], masks[1], parts, range);
    for (int p = 0; p < P; ++p) squares[p][q] = parts[p];
  }
  for (int p = 0; p < P; ++p) {
    transpose_lines(squares[p]);
    for (int r = 0; r < 16; ++r) _mm512_store_si512(tile + p * kBlockBytes + r * 64, squares[p][r]);
  }
}

// Some steps of a panel and an image.
template <int P, class T>
void pack_steps(const WeightPass& pass, int64_t panel, int64_t image, int64_t step, int64_t steps, char* target,
                RangeLanes& range) {
  if (!pass.x.channels_last) return pack_rows<P, T>(pass, panel, image, step, steps, target, range);
  for (int64_t i = 0; i < steps; ++i)
    for (int64_t half = 0; half < 2; ++half)
      pack_pixels<P, T>(pass, image, panel * kBlock + half * 16, (step + i) * kStepK,
                        target + i * P * kBlockBytes + half * kTileBytes, range);
}

template <int P, class T>
PartRange pack_gradient(const WeightPass& pass, char* memory) {
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + pass.panels() * pass.panel_bytes<P>());
  const int64_t n = pass.panels() * pass.x.images, steps = pass.image_steps();
  parallel_for(n, max(1, 16 / steps), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t panel = unit / pass.x.images, image = unit % pass.x.images;
      char* target = memory + panel * pass.panel_bytes<P>() + image * steps * P * kBlockBytes;
      RangeLanes range;
      for (int64_t s = 0; s < steps; s += kPackedSteps)
        pack_steps<P, T>(pass, panel, image, s, min(kPackedSteps, steps - s), target + s * P * kBlockBytes, range);
      ranges[unit] = range.finish();
    }
  });
  PartRange range;
  for (int64_t unit = 0; unit < n; ++unit) range.add(ranges[unit]);
  return range;
}

template <int P>
int64_t gradient_bytes(const WeightPass& pass) {
  const int64_t n_ranges = pass.panels() * pass.x.slots;
  return ceil_div(pass.panels() * pass.panel_bytes<P>() + n_ranges * int64_t(sizeof(PartRange)), 64) * 64;
}

}  // namespace
}  // namespace fastnn
