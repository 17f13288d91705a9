// What an AMX convolution is to do (conv_amx.cpp): the passes of a forward call and of an input gradient, in which form
// their source costs least, whether tiles suit them, and how their positions and panels are dealt to tasks.
#pragma once

#include "ops/conv/prepare_amx.h"
#include "ops/conv/tile_pass_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kSourceBytes = int64_t(768) << 10;  // of a task's prepared source
constexpr int64_t kFilterBytes = int64_t(1) << 20;    // filters that stay in the second-level cache
constexpr int64_t kFilterTiles = 8;                   // of positions that pay for streaming others through it
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kTaskCycles = 16384;  // pay for a task
constexpr double kMostSourceBytes = double(int64_t(1) << 29);

// What a pass is, before it is laid out in memory. Weight offsets count elements.
struct PassPlan {
  const char* source;
  int64_t channels;  // of a group
  SourceAxis source_rows, source_columns;
  int64_t m;
  int64_t group_weights, filter_stride, channel_stride;  // between groups, results' and source's channels
  int64_t row_tap, column_tap;                           // steps from tap to tap
  OutputAxis rows, columns;
  // Of each column phase: the offset of its tap (0, 0), and its taps, from `shift` on, of the columns' taps.
  struct ColumnPhase {
    int64_t first_tap, shift, taps;
  };
  ColumnPhase phase[2];
  int column_phases = 1;

  int64_t column_steps(int f) const { return column_phases == 1 ? source_columns.tap_steps() : phase[f].taps; }
};

inline int64_t parts_of_conv(const ConvArgs& args) { return args.dtype == DType::Float32 ? 3 : 1; }

// Cycles of an image's products and of preparing its source: 64 for a product of 32 x 32 x 32, and what a line (pixel)
// of the source was measured to take.
struct PassCost {
  double product, source;

  PassCost(const TileSource& source_, int64_t m, int64_t parts)
      : product(double(source_.steps()) * double(tiles(source_)) * step(m, parts)),
        source(double(source_.plane) * double(source_.phases()) * position(source_, parts)) {}
  double total() const { return product + source; }
  static int64_t tiles(const TileSource& source) {
    return ceil_div((source.band_rows - 1) * source.row_length + source.band_columns, kBlock);
  }

 private:
  // 32 positions and 32 of k. Their two tiles take 36 cycles from the second-level cache, which is more than 16
  // filters' products.
  static double step(int64_t m, int64_t parts) {
    constexpr double kTilePair = 36;
    const int64_t halves = ceil_div(m, 16);
    const double loads = double(parts) * (double(ceil_div(m, kBlock)) * kTilePair + double(8 * halves));
    const double products = double(halves * 32 * (parts * (parts + 1) / 2));
    return products > loads ? products : loads;
  }
  // A position of the source.
  static double position(const TileSource& source, int64_t parts) {
    if (source.folds() > 1) return folded_position(source, parts);
    const bool whole = source.k() % kStepK == 0;
    const double line = parts > 1 ? 16 : source.pixels ? 3 : whole ? 4 : 10;
    return double(source.groups()) * line;
  }
  // Of folded taps: runs of its lines, and pixels, of which each row serves all positions that it is under.
  static double folded_position(const TileSource& source, int64_t parts) {
    const int64_t runs = source.groups() + source.rows.folds() - 1;
    const double pixels = double(source.columns.plane.step * (source.rows.folded ? source.rows.plane.step : 1));
    return double(parts) * (2 * double(runs) + 3 * pixels * double(ceil_div(source.channels, 8)));
  }
};

// Tiles of columns at any shift would cross cache lines: then lines, although NCHW has to be transposed for them.
inline bool takes_lines(const ConvArgs& args, const PassPlan& plan) {
  return args.channels_last || plan.source_columns.taps > 1 || plan.source_rows.taps > 1;
}

inline TileSource whole_source(const ConvArgs& args, const PassPlan& plan, int64_t group) {
  TileSource source{plan.source,
                    args.dtype,
                    plan.channels,
                    group * plan.channels,
                    args.groups * plan.channels,
                    args.channels_last,
                    takes_lines(args, plan),
                    plan.source_rows,
                    plan.source_columns,
                    1,
                    plan.rows.count,
                    plan.columns.count};
  source.lay_out();
  return source;
}

// Folds no taps, those of a row, or all, whichever costs least.
inline void choose_folds(const ConvArgs& args, PassPlan& plan) {
  constexpr int kForms = 3;
  double least = 0;
  int best = 0;
  const auto choose = [&](int form) {
    plan.source_rows.folded = form == 2;
    plan.source_columns.folded = form >= 1;
  };
  for (int form = 0; form < kForms; ++form) {
    choose(form);
    const double cost = PassCost(whole_source(args, plan, 0), plan.m, parts_of_conv(args)).total();
    if (form == 0 || cost < least) least = cost, best = form;
  }
  choose(best);
}

// Few channels on small images take the vector units as long as the tiles, which have the source to prepare. With more
// channels the products decide, and tiles share their blocks of positions among small images.
inline bool vectors_lose(const TileSource& source, const PassPlan& plan) {
  if (plan.channels > kStepK) return true;
  constexpr double kVectorRate = 22, kTileShare = 0.8;  // multiply-adds a cycle; of the modelled cycles
  const double outputs = double(source.rows.outputs) * double(source.columns.outputs);
  const double taps = double(plan.channels) * double(source.rows.taps) * double(source.columns.taps);
  return PassCost(source, plan.m, 3).total() <= kTileShare * outputs * double(plan.m) * taps / kVectorRate;
}

inline bool suits_tiles(const ConvArgs& args, const PassPlan& plan) {
  const int64_t weights = args.groups * args.out_channels * args.in_channels * args.height.kernel * args.width.kernel;
  if (weights > INT32_MAX || (args.dtype != DType::Float32 && args.dtype != DType::BFloat16)) return false;
  TileSource source = whole_source(args, plan, 0);
  // How many times more multiply-adds the tiles make than the convolution has, in percent.
  const int64_t taps = max(1, plan.channels * plan.source_rows.taps * plan.source_columns.taps);
  const int64_t waste = 100 * source.steps() * kStepK / taps * (ceil_div(plan.m, 16) * 16) / max(1, plan.m);
  // Groups of few channels are a pass each.
  if (waste > (args.dtype == DType::Float32 ? 160 : args.groups > 1 ? 400 : 800)) return false;
  if (args.dtype == DType::Float32 && !vectors_lose(source, plan)) return false;
  (source.rows.outputs > 1 ? source.band_rows : source.band_columns) = 1;
  source.lay_out();
  return double(source.row_count) * double(source.row_length) * double(source.phases() * source.groups()) * kLineBytes *
             3 <=
         kMostSourceBytes;
}

// -------------------------------------------------------------------------------------------------------------- passes

inline SourceAxis forward_axis(const ConvAxis& axis) {
  return {plane_axis(axis.input, axis.stride, axis.padding, axis.dilation, axis.kernel, axis.output), axis.kernel,
          axis.output};
}

inline PassPlan forward_plan(const ConvArgs& args) {
  const ConvAxis &h = args.height, &w = args.width;
  const int64_t taps = h.kernel * w.kernel, filter = args.in_channels * taps;
  PassPlan plan{static_cast<const char*>(args.x),
                args.in_channels,
                forward_axis(h),
                forward_axis(w),
                args.out_channels,
                args.out_channels * filter,
                filter,
                taps,
                w.kernel,
                1,
                {h.output, 0, 1, h.output},
                {w.output, 0, 1, w.output},
                {{0, 0, w.kernel}}};
  choose_folds(args, plan);
  return plan;
}

inline PassPlan input_grad_plan(const ConvArgs& args, int64_t row, int64_t column) {
  const int64_t taps = args.height.kernel * args.width.kernel, filter = args.in_channels * taps;
  const GradPhase rows = grad_phase(args.height, row), columns = grad_phase(args.width, column);
  const bool none = rows.taps == 0 || columns.taps == 0;
  const int64_t width = args.width.kernel;
  PassPlan plan{static_cast<const char*>(args.dy),
                args.out_channels,
                {rows.plane, none ? 0 : rows.taps, rows.out.count},
                {columns.plane, none ? 0 : columns.taps, columns.out.count},
                args.in_channels,
                args.out_channels * filter,
                taps,
                filter,
                -rows.period * width,
                -columns.period,
                rows.out,
                columns.out,
                {{none ? 0 : rows.kernel_index(0) * width + columns.kernel_index(0), 0, columns.taps}}};
  choose_folds(args, plan);
  return plan;
}

// Both column phases of stride 2 from one source, if it is NCHW; woven, they are stored once. Else column_phases is 1.
inline PassPlan paired_plan(const ConvArgs& args, int64_t row) {
  PassPlan plan = input_grad_plan(args, row, 0);
  const PassPlan odd = input_grad_plan(args, row, 1);
  const auto suits = [&](const PassPlan& phase) {
    return phase.source_columns.taps > 0 && phase.source_columns.plane.dilation == 1 && !phase.source_columns.folded &&
           !phase.source_rows.folded && suits_tiles(args, phase);
  };
  if (args.channels_last || plan.columns.count != odd.columns.count || !suits(plan) || !suits(odd)) return plan;
  const int64_t pad = max(plan.source_columns.plane.pad, odd.source_columns.plane.pad);
  plan.column_phases = 2;
  plan.phase[1] = odd.phase[0];
  plan.phase[0].shift = pad - plan.source_columns.plane.pad;
  plan.phase[1].shift = pad - odd.source_columns.plane.pad;
  plan.source_columns.taps = max(plan.phase[0].shift + plan.phase[0].taps, plan.phase[1].shift + plan.phase[1].taps);
  plan.source_columns.plane =
      plane_axis(args.width.output, 1, pad, 1, plan.source_columns.taps, plan.source_columns.outputs);
  return plan;
}

// --------------------------------------------------------------------------------------------------------------- tasks

// How the positions and panels are dealt to tasks.
struct TaskGrid {
  int64_t images, bands, band, panels;  // of a task; bands of an image, rows (columns) of a band
  int64_t image_blocks, panel_blocks;
  bool by_rows;

  TaskGrid(const TileSource& source, const ConvArgs& args, int64_t m) : by_rows(source.rows.outputs > 1) {
    const int64_t parts = parts_of_conv(args), n_panels = ceil_div(m, kBlock), threads = num_threads();
    const PassCost cost(source, m, parts);
    // Of all images: the room behind the last is there once.
    TileSource pair = source;
    pair.images = 2;
    pair.lay_out();
    const double bytes = double(parts) * (double(source.part_bytes) +
                                          double(args.images - 1) * double(pair.part_bytes - source.part_bytes));
    int64_t pieces = max(1, int64_t(double(args.images) * cost.total() / kTaskCycles));
    const int64_t workers = min(threads, pieces);
    if (n_panels * source.steps() * parts * kBlockBytes > kFilterBytes)
      pieces = max(1, min(pieces, args.images * PassCost::tiles(source) / kFilterTiles));
    pieces = max(int64_t(bytes / kSourceBytes) + 1, min(pieces, workers == 1 ? 1 : kTasksPerThread * workers));
    const int64_t count = by_rows ? source.rows.outputs : source.columns.outputs;
    images = max(1, args.images / pieces);
    bands = pieces <= args.images ? 1 : min(count, ceil_div(pieces, args.images));
    band = ceil_div(count, bands);
    if (!by_rows) band = min(count, ceil_div(band, kBlock) * kBlock);
    bands = ceil_div(count, band);
    image_blocks = ceil_div(args.images, images);
    const int64_t splits = min(n_panels, ceil_div(workers, image_blocks * bands));
    panels = ceil_div(n_panels, splits);
    panel_blocks = ceil_div(n_panels, panels);
  }
  int64_t tasks() const { return image_blocks * bands * panel_blocks; }
  TileTask task(const TileSource& source, int64_t all_images, int64_t m, int64_t number) const {
    const int64_t panel = number % panel_blocks * panels, piece = number / panel_blocks;
    const int64_t image = piece / bands * images, first = piece % bands * band;
    const int64_t n = min(band, (by_rows ? source.rows.outputs : source.columns.outputs) - first);
    const SourceRange range{image,
                            min(images, all_images - image),
                            by_rows ? first : 0,
                            by_rows ? n : source.rows.outputs,
                            by_rows ? 0 : first,
                            by_rows ? source.columns.outputs : n};
    return {range, panel, min(panel + panels, ceil_div(m, kBlock)), nullptr};
  }
};

// NHWC under a 1 x 1 kernel has lines of 32 channels as it stands. Tiles may not run over its end.
inline bool is_direct(const TileSource& source, const TaskGrid& grid, int64_t images) {
  const int64_t last = min(grid.images, images - (grid.image_blocks - 1) * grid.images) *
                       (source.columns.outputs - (grid.bands - 1) * grid.band);
  return source.pixels && source.dtype == DType::BFloat16 && source.channels % kStepK == 0 && source.rows.plain() &&
         source.columns.plain() && source.rows.outputs == 1 && last >= kBlock;
}

}  // namespace
}  // namespace fastnn
