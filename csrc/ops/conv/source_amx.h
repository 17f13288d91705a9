// What a convolution on AMX tiles reads, forward and input gradient: the source of a task, padded, split by stride
// phase and into bfloat16 parts, so that a tap is an offset. k = channels, in groups of 32.
//
//   columns   [part][phase][group][position / 16][pair of channels][position % 16] of 2 channels: 4 bytes. 16 pairs
//             are the rows of B, and its columns are positions: two rows of pixels of NCHW are interleaved, nothing is
//             transposed, and sums come out filter by filter as NCHW has them. For a single tap: tiles at shifts
//             would cross cache lines (a 3 x 3 product measured 40 % slower than with lines).
//   lines     [part][phase][group][image][row][column] of 32 channels: 64 bytes a position. Rows of A are positions,
//             and sums come out pixel by pixel. NHWC has them; from NCHW they are transposed, 8 positions of
//             32 channels at a time.
//
// Zeros that every row both begins and ends with are there once: a row's last ones are the next row's first.
//
// With few channels the taps of a row, or all taps, become channels of their own ("folded", always lines): im2col of
// the task's positions, which never leaves the second-level cache. Folded axes have the output's size and no gaps. A
// line's values come from rows of padded pixels with all channels side by side (prepare_folded_amx.h). Lines that
// overlapped, rows of pixels read in place, would cost more: a tile's rows that cross cache lines take 5 to 6 cycles
// each, where a line is copied in 2.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/pack_amx.h"
#include "ops/conv/planes_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kPairBytes = 4;
constexpr int64_t kColumnPositions = 16;  // of a tile of B

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
  int64_t position_bytes = 0;
  int64_t group_bytes = 0, phase_bytes = 0, part_bytes = 0;

  void lay_out() {
    shared = rows.outputs > 1 ? columns.shared_zeros() : 0;
    row_length = band_columns + columns.reach() - shared;
    row_count = band_rows + rows.reach();
    plane = row_count * row_length;
    // With the last row's zeros, and room for tiles that run over the end.
    const int64_t capacity = images * plane + shared + kBlock;
    position_bytes = direct ? all_channels * 2 : kLineBytes;
    group_bytes = direct ? kLineBytes : ceil_div(capacity, kColumnPositions) * kColumnPositions * kLineBytes;
    phase_bytes = groups() * group_bytes;
    part_bytes = phases() * phase_bytes;
  }
  // Rows of pixels that the lines of folded taps of an image are made of, of one part: those under all taps. Behind a
  // row there is room for a register, behind the last one for 32 pixels.
  int64_t pixel_rows(int64_t line_rows) const {
    const int64_t last = rows.folded ? (max(1, rows.taps) - 1) * rows.plane.dilation : rows.plane.step - 1;
    return (line_rows - 1) * rows.plane.step + last + 1;
  }
  int64_t row_pixels() const {
    return (row_length - 1) * columns.plane.step + (max(1, columns.taps) - 1) * columns.plane.dilation + 1;
  }
  int64_t pixel_row_bytes() const { return ceil_div(row_pixels() * channels * 2, 64) * 64 + 64; }
  int64_t pixels_part_bytes() const {
    return folds() > 1 ? pixel_rows(row_count) * pixel_row_bytes() + kBlock * channels * 2 : 0;
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
  // The channel and the taps that value k of a source is of: a pixel's channels are side by side.
  struct Fold {
    int64_t channel, row, column;
  };
  Fold fold(int64_t k) const {
    const int64_t f = k / channels;
    return {k % channels, f / columns.folds(), f % columns.folds()};
  }
};

}  // namespace
}  // namespace fastnn
