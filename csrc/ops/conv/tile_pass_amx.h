// One group of one pass of an AMX convolution (conv_amx.cpp), its tasks, and where the positions of their tiles are.
#pragma once

#include "gemm/store_amx.h"
#include "ops/conv/source_amx.h"

namespace fastnn {
namespace {

// The taps of the results of one column phase.
struct PassTaps {
  const char* filters;
  int64_t steps;
  const int64_t* filter_steps;  // where a step begins in a packed panel
  const int64_t* source_steps;  // and in the source
};

// One group of one pass. Of two column phases the results are stored woven: column 2 * i + f is phase f's i.
struct TilePass {
  TileSource source;
  int64_t m;  // results' channels of the group
  int column_phases;
  PassTaps taps[2];  // of the column phases
  TileOutput out;    // c: the group's first channel of the first image; c_row: elements of a channel
  OutputAxis rows, columns;
  int64_t image_elements;  // of the whole output
  int64_t pixel_elements;  // of all channels, in NHWC

  int64_t panels() const { return ceil_div(m, kBlock); }
};

// A task: some positions with some panels.
struct TileTask {
  SourceRange range;
  int64_t panel, panel_end;
  const char* source;  // prepared

  int64_t positions(const TilePass& pass) const { return (range.rows - 1) * pass.source.row_length + range.columns; }
};

// The tiles of 32 positions of a task: they begin anew with every image, or run on over all of them, whichever
// makes fewer. Those of columns always run on, since they begin where tiles of the source do.
struct TaskTiles {
  int64_t plane, positions, flat_positions, image_tiles, tiles;
  bool flat, direct;

  TaskTiles(const TilePass& pass, const TileTask& task)
      : plane(pass.source.plane),
        positions(task.positions(pass)),
        flat_positions((task.range.images - 1) * plane + positions),
        image_tiles(ceil_div(positions, kBlock)),
        direct(pass.source.direct) {
    flat = !pass.source.lines || ceil_div(flat_positions, kBlock) < task.range.images * image_tiles;
    tiles = flat ? ceil_div(flat_positions, kBlock) : task.range.images * image_tiles;
  }
};

// The positions of a tile, counted over the task's images: [begin, end), 32 at most. Of a direct source the last
// tile begins earlier: what is beyond the end is not fastnn's.
struct TileSpan {
  int64_t begin, end;

  TileSpan(const TaskTiles& tiles, int64_t tile) {
    const int64_t image = tiles.flat ? 0 : tile / tiles.image_tiles;
    const int64_t first = tiles.flat ? tile * kBlock : tile % tiles.image_tiles * kBlock;
    const int64_t valid = tiles.flat ? tiles.flat_positions : tiles.positions;
    end = image * tiles.plane + min(first + kBlock, valid);
    begin = tiles.direct ? max(0, end - kBlock) : image * tiles.plane + first;
  }
};

// Walks over positions: where in the output they are.
struct OutputPosition {
  const TilePass* pass;
  const SourceRange* range;
  int64_t length, plane_rows;
  int64_t image, row, column;

  OutputPosition(const TilePass& p, const TileTask& task, int64_t position)
      : pass(&p), range(&task.range), length(p.source.row_length), plane_rows(p.source.row_count) {
    const int64_t plane = length * plane_rows;
    image = position / plane;
    row = position % plane / length;
    column = position % length;
  }
  bool valid() const { return column < range->columns && row < range->rows; }
  // In elements of one channel.
  int64_t pixel() const {
    return (pass->rows.first + (range->row + row) * pass->rows.step) * pass->columns.size + pass->columns.first +
           (range->column + column) * pass->columns.step;
  }
  void advance(int64_t count) {
    column += count;
    if (column < length) return;
    column = 0;
    if (++row < plane_rows) return;
    row = 0, ++image;
  }
};

}  // namespace
}  // namespace fastnn
