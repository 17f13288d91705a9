// Convolution on AMX tiles, weight gradient: per group, for each tap a product along the positions of all images,
//
//   dw[o, c, tap] = sum over positions of dy[o, position] * x[c, position + shift(tap)]
//
// A's rows are filters: dy is packed as [panel of 32 filters][step of 32 positions], at the pitch of x's planes,
// with zeros in the gaps. B's rows are pairs of positions of x (planes_amx.h). A block of sums is one panel of
// filters, one group of 32 channels and one tap. A task takes some panels and groups with all taps, and a part
// of the steps: dy and x of a chunk of steps stay in the second-level cache while all taps pass. Tasks of different
// steps have sums of their own, which are added in order; a task that has all steps stores its sums while they are in
// the cache.
//
// Where one task's sums are (nearly) all of them, tasks share nothing: each prepares its dy and x itself, of a piece of
// an image at a time, which never leaves its core's second-level cache. Else both are prepared once, for all tasks.
// Small images are laid out as patches (patches_amx.h) where that saves more products than it costs.
#include "ops/conv/patches_amx.h"
#include "ops/conv/weight_pass_amx.h"
#include "ops/conv/weight_sums_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kTaskBlocks = 72;                    // of 4 KiB sums: 288 KiB
constexpr int64_t kTasks = 8;                          // wanted, at least
constexpr int64_t kSplitProducts = 2048;               // of 32 x 32 x 32: pay for a split of the steps
constexpr int64_t kGradientBytes = int64_t(12) << 20;  // of packed dy: more images are taken in turns

// Steps of a panel of dy that all taps and groups meet before the next panel: 16 KiB, or of three parts 96 KiB.
template <int P>
constexpr int64_t chunk_steps() {
  return P == 1 ? 8 : 16;
}

// --------------------------------------------------------------------------------------- patches

// Whether patches of all taps cost less than what they save. Costs are in products of 32 x 32 x 32, for each group of
// channels: a square of 16 channels x 32 positions costs two for each part, and when it is gathered 1.6 times that.
template <int P>
bool patches_pay(const ConvArgs& args, const WeightPass& pass) {
  const Planes& planes = pass.x.planes;
  const double rows = double(args.images) * double(pass.x.phases() * planes.rows.length);
  const double elements = double(args.images) * double(args.groups) *
                          (double(args.in_channels) * double(planes.source_plane()) +
                           double(args.out_channels) * double(pass.out_rows * pass.out_columns));
  if (pass.x.folded || elements > INT32_MAX) return false;
  const double squares = rows * double(2 * pass.x.parities * ceil_div(planes.columns.length, kStepK));
  const double steps = double(args.images * pass.image_steps());
  const double patch_steps = double(ceil_div(args.images * pass.out_rows * pass.out_columns, kStepK));
  const double patch_squares = 2 * double(pass.taps()) * patch_steps;
  const double saved = (steps - patch_steps) * double(pass.panels() * pass.taps() * (P * (P + 1) / 2));
  return saved > 2 * P * (1.6 * patch_squares - squares);
}

// As planes, patches are one row of one image, with a phase for every tap.
template <int P>
void lay_out_patches(const ConvArgs& args, WeightPass& pass) {
  const int64_t area = pass.out_rows * pass.out_columns, bytes = area * P * kLineBytes;
  const int64_t n = min(kPlaneBytes / (pass.taps() * pass.groups() * bytes), kGradientBytes / (pass.panels() * bytes));
  pass.patch_images = even_piece(args.images, max(1, n), 1);
  pass.x.unrolled = true;
  pass.x.parities = pass.x.slots = pass.x.images = 1;
  pass.x.planes.rows.phases = pass.row_taps;
  pass.x.planes.columns.phases = pass.column_taps;
  pass.out_rows = pass.x.planes.rows.length = 1;
  pass.out_columns = pass.x.planes.columns.length = ceil_div(pass.patch_images * area, kStepK) * kStepK;
}

// Offsets of positions, of dy and for every tap of x.
struct PatchTables {
  int32_t *dy, *x;

  static int64_t bytes(const WeightPass& pass) {
    return pass.patch_images ? (pass.taps() + 1) * pass.out_columns * int64_t(sizeof(int32_t)) : 0;
  }
};

void fill_tables(const ConvArgs& args, const WeightPass& pass, int64_t images, const PatchTables& tables) {
  const ConvAxis &h = args.height, &w = args.width;
  const int64_t in_channels = pass.x.source_channels, in_plane = h.input * w.input, out_plane = h.output * w.output;
  fill_offsets(images, {h.output, 0, 1, h.output}, {w.output, 0, 1, w.output}, pass.all_filters * out_plane,
               args.channels_last ? pass.all_filters : 1, pass.out_columns, tables.dy);
  for (int64_t tap = 0; tap < pass.taps(); ++tap) {
    const int64_t row = tap / w.kernel * h.dilation - h.padding, column = tap % w.kernel * w.dilation - w.padding;
    fill_offsets(images, {h.output, row, h.stride, h.input}, {w.output, column, w.stride, w.input},
                 in_channels * in_plane, args.channels_last ? in_channels : 1, pass.out_columns,
                 tables.x + tap * pass.out_columns);
  }
}

template <int P, class T>
PartRange gather_gradient(const ConvArgs& args, const WeightPass& pass, const int32_t* offsets, char* memory) {
  const int64_t area = args.height.output * args.width.output, stride = args.channels_last ? 1 : area;
  const T* dy = reinterpret_cast<const T*>(pass.dy) + pass.x.first_image * pass.all_filters * area;
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + pass.panels() * pass.panel_bytes<P>());
  parallel_for(pass.panels(), max(1, 4 / pass.image_steps()), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      RangeLanes range;
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t filter = panel * kBlock + half * 16;
        gather_rows<P>(dy + filter * stride, stride, pass.filters - filter, offsets, pass.image_steps(),
                       memory + panel * pass.panel_bytes<P>() + half * kTileBytes, P * kBlockBytes, range);
      }
      ranges[panel] = range.finish();
    }
  });
  PartRange range;
  for (int64_t panel = 0; panel < pass.panels(); ++panel) range.add(ranges[panel]);
  return range;
}

template <int P, class T>
PartRange gather_patches(const WeightPass& pass, const int32_t* offsets, char* memory) {
  const TilePlanes& x = pass.x;
  const int64_t plane = x.planes.source_plane(), stride = x.channels_last ? 1 : plane;
  const T* source = reinterpret_cast<const T*>(x.planes.source) + x.first_image * x.source_channels * plane +
                    x.first_channel * stride;
  const int64_t units = pass.taps() * pass.groups();
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + P * x.part_bytes());
  parallel_for(units, max(1, 8 / pass.image_steps()), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t tap = unit / pass.groups(), group = unit % pass.groups();
      RangeLanes range;
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t channel = group * kStepK + half * 16;
        gather_pairs<P>(source + channel * stride, stride, x.channels() - channel, offsets + tap * pass.out_columns,
                        pass.image_steps(), memory + tap * x.phase_bytes() + (2 * group + half) * x.group_bytes(),
                        x.part_bytes(), range);
      }
      ranges[unit] = range.finish();
    }
  });
  PartRange range;
  for (int64_t unit = 0; unit < units; ++unit) range.add(ranges[unit]);
  return range;
}

// What was seen of both.
struct Prepared {
  PartRange dy, x;

  bool exact() const { return parts_are_exact(dy, x); }
};

// dy and x of `images` images from pass.x.first_image on.
template <int P, class T>
Prepared prepare(const ConvArgs& args, const WeightPass& pass, int64_t images, const PatchTables& tables, char* dy,
                 char* x) {
  if (!pass.patch_images) {
    const PartRange packed = pack_gradient<P, T>(pass, dy);
    return {packed, prepare_planes<P>(pass.x, x)};
  }
  fill_tables(args, pass, images, tables);
  const PartRange gathered = gather_gradient<P, T>(args, pass, tables.dy, dy);
  return {gathered, gather_patches<P, T>(pass, tables.x, x)};
}

// --------------------------------------------------------------------------------------- product

// How blocks of sums and steps are dealt to tasks. Sums lie as [task][panel][group][tap].
struct WeightGrid {
  int64_t panels, groups;              // of a task
  int64_t panel_blocks, group_blocks;  // of the operation
  int64_t splits;                      // of the steps

  int64_t tasks() const { return panel_blocks * group_blocks * splits; }
  int64_t task_floats(const WeightPass& pass) const { return panels * groups * pass.taps() * kSumsPerBlock; }
};

template <int P>
WeightGrid make_grid(const WeightPass& pass, int64_t images) {
  WeightGrid grid{};
  grid.groups = even_piece(pass.groups(), max(1, min(4, kTaskBlocks / pass.taps())), 1);
  grid.panels = even_piece(pass.panels(), max(1, min(8, kTaskBlocks / (pass.taps() * grid.groups))), 1);
  grid.panel_blocks = ceil_div(pass.panels(), grid.panels);
  grid.group_blocks = ceil_div(pass.groups(), grid.groups);
  const int64_t blocks = grid.panel_blocks * grid.group_blocks, steps = images * pass.image_steps();
  const int64_t products = pass.panels() * pass.groups() * pass.taps() * steps * (P * (P + 1) / 2);
  grid.splits = max(1, min(min(ceil_div(kTasks, blocks), products / kSplitProducts), steps / chunk_steps<P>()));
  return grid;
}

// What the tasks share. Tables hold offsets of steps in a panel of dy, and of positions in x.
struct WeightMemory {
  const char *dy, *x;
  float* sums;  // null: a task stores its sums at once
  const int64_t *dy_steps, *x_steps;
};

// What a task takes.
struct TaskBlocks {
  int64_t panel, panel_end, group, group_end;
  int64_t split;
  float* sums;  // [panel][group][tap]

  TaskBlocks(const WeightPass& pass, const WeightGrid& grid, const WeightMemory& memory, int64_t task) {
    const int64_t block = task / grid.splits, floats = grid.task_floats(pass);
    split = task % grid.splits;
    panel = block / grid.group_blocks * grid.panels, group = block % grid.group_blocks * grid.groups;
    panel_end = min(panel + grid.panels, pass.panels()), group_end = min(group + grid.groups, pass.groups());
    sums = memory.sums ? memory.sums + task * floats
                       : static_cast<float*>(thread_scratch(Scratch::GemmSums, size_t(floats) * sizeof(float)));
  }
};

// The sums of a panel and group go to dw.
template <class T>
void store_sums(const WeightPass& pass, const float* sums, int64_t splits, int64_t split_pitch, int64_t panel,
                int64_t group, T* dw) {
  const int64_t filter_pitch = pass.x.channels() * pass.taps();
  store_group(GroupSums<T>{sums, splits, split_pitch, pass.taps(), pass.x.folds(), dw + panel * kBlock * filter_pitch,
                           filter_pitch, min(kBlock, pass.filters - panel * kBlock), group * kStepK,
                           min(kStepK, pass.x.channels() - group * kStepK)});
}

// Some steps of a panel, for all groups and taps of a task.
template <int P>
void multiply_panel(const WeightPass& pass, const WeightGrid& grid, const TaskBlocks& blocks, int64_t panel,
                    const char* dy, const int64_t* dy_steps, const char* x, const int64_t* x_steps, int64_t step,
                    int64_t steps, bool first) {
  const TileStream a{dy, dy_steps, 64, kTileBytes, kBlockBytes};
  float* sums = blocks.sums + (panel - blocks.panel) * grid.groups * pass.taps() * kSumsPerBlock;
  for (int64_t g = blocks.group; g < blocks.group_end; ++g)
    for (int64_t tap = 0; tap < pass.taps(); ++tap, sums += kSumsPerBlock) {
      const TileStream b{x + pass.tap_offset(tap) + 2 * g * pass.x.group_bytes(), x_steps, kLineBytes,
                         pass.x.group_bytes(), pass.x.part_bytes()};
      tile_block<P>(a, b, step, steps, pass.filters - panel * kBlock > 16, pass.x.channels() - g * kStepK > 16, sums,
                    first);
    }
}

template <class T>
void store_task(const WeightPass& pass, const WeightGrid& grid, const TaskBlocks& blocks, T* dw) {
  for (int64_t i = blocks.panel; i < blocks.panel_end; ++i)
    for (int64_t g = blocks.group; g < blocks.group_end; ++g)
      store_sums(pass,
                 blocks.sums + ((i - blocks.panel) * grid.groups + g - blocks.group) * pass.taps() * kSumsPerBlock, 1,
                 0, i, g, dw);
}

template <int P, class T>
void run_task(const WeightPass& pass, const WeightGrid& grid, const WeightMemory& memory, int64_t task, bool first,
              T* dw) {
  const TaskBlocks blocks(pass, grid, memory, task);
  const int64_t steps = pass.x.images * pass.image_steps();
  const int64_t begin = steps * blocks.split / grid.splits, end = steps * (blocks.split + 1) / grid.splits;
  if (first && begin == end) fill_zero(blocks.sums, grid.task_floats(pass));
  _tile_loadconfig(&kTileConfig);
  for (int64_t s = begin; s < end; s += chunk_steps<P>())
    for (int64_t i = blocks.panel; i < blocks.panel_end; ++i)
      multiply_panel<P>(pass, grid, blocks, i, memory.dy + i * pass.panel_bytes<P>(), memory.dy_steps, memory.x,
                        memory.x_steps, s, min(chunk_steps<P>(), end - s), first && s == begin);
  _tile_release();
  if (!memory.sums) store_task(pass, grid, blocks, dw);
}

// The sums of all tasks, those of different steps added up.
template <class T>
void store_gradient(const WeightPass& pass, const WeightGrid& grid, const float* sums, T* dw) {
  const int64_t floats = grid.task_floats(pass);
  parallel_for(pass.panels() * pass.groups(), max(1, 32 / pass.taps()), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t panel = unit / pass.groups(), group = unit % pass.groups();
      const int64_t block = panel / grid.panels * grid.group_blocks + group / grid.groups;
      const float* first = sums + block * grid.splits * floats +
                           (panel % grid.panels * grid.groups + group % grid.groups) * pass.taps() * kSumsPerBlock;
      store_sums(pass, first, grid.splits, floats, panel, group, dw);
    }
  });
}

// ---------------------------------------------------------------------------------------- pieces

// Parts of images, each prepared by the task that takes it, where it stays: in its core's second-level cache.
struct WeightPieces {
  WeightGrid grid{};  // without tasks: what tasks share is prepared once more by each of them, which does not pay
  int64_t images;
  int64_t bands, band;  // of an image; rows of a band, columns where there is one row
  bool by_rows;

  int64_t count() const { return images * bands; }
};

constexpr int64_t kPieceBlocks = 144;                 // of 4 KiB sums of a task
constexpr int64_t kPieceBytes = int64_t(1536) << 10;  // of x and sums of a task
constexpr int64_t kPieceSumBytes = int64_t(3) << 20;  // of all tasks, that pay for their splits

WeightPass piece_of(const WeightPass& whole, const WeightPieces& pieces, int64_t number) {
  WeightPass piece = whole;
  const int64_t first = number % pieces.bands * pieces.band;
  const int64_t n = min(pieces.band, (pieces.by_rows ? whole.out_rows : whole.out_columns) - first);
  PlaneAxis &rows = piece.x.planes.rows, &columns = piece.x.planes.columns;
  piece.x.first_image = number / pieces.bands;
  piece.x.images = piece.x.slots = 1;
  if (pieces.by_rows) {
    rows.pad -= first * rows.step, rows.length -= whole.out_rows - n, piece.out_rows = n;
  } else {
    columns.pad -= first * columns.step, piece.out_columns = n;
    columns.length = ceil_div(columns.length - whole.out_columns + n, 2) * 2;
  }
  const int64_t positions = pieces.by_rows ? first * whole.out_columns : first;
  piece.dy += positions * (whole.x.channels_last ? whole.all_filters : 1) * int64_t(item_size(whole.dtype));
  return piece;
}

// Tasks prepare dy once for every block of groups, and x for every block of panels: the grid that does the least of
// that. A square of 32 x 32 costs four products of dy, and eight of x.
template <int P>
WeightPieces make_pieces(const WeightPass& pass, int64_t images) {
  WeightPieces pieces;
  WeightGrid& grid = pieces.grid;
  double least = 0;
  for (int64_t panels = 1; panels <= pass.panels() && panels * pass.taps() <= kPieceBlocks; ++panels) {
    const int64_t groups = min(pass.groups(), kPieceBlocks / (pass.taps() * panels));
    const int64_t panel_blocks = ceil_div(pass.panels(), panels), group_blocks = ceil_div(pass.groups(), groups);
    const double cost = double(group_blocks * pass.panels()) * 4 + double(panel_blocks * pass.groups()) * 8;
    if (grid.panels == 0 || cost < least) least = cost, grid = {panels, groups, panel_blocks, group_blocks, 0};
  }
  const double products = double(pass.panels() * pass.groups() * pass.taps()) * double(P * (P + 1) / 2);
  const int64_t blocks = grid.panel_blocks * grid.group_blocks;
  const double once = double(pass.panels() * 4 + pass.groups() * 8);
  if ((least - once) * P * 16 > products) return pieces;
  pieces.images = images;
  pieces.by_rows = pass.out_rows > 1;
  const int64_t count = pieces.by_rows ? pass.out_rows : pass.out_columns;
  const int64_t bytes = pass.x.parities * pass.x.phases() * grid.groups * pass.x.plane() * kLineBytes * P;
  const int64_t sum_bytes = grid.task_floats(pass) * int64_t(sizeof(float));
  pieces.bands = min(count, ceil_div(bytes, kPieceBytes - sum_bytes));
  pieces.band = ceil_div(count, pieces.bands);
  if (!pieces.by_rows) pieces.band = min(count, ceil_div(pieces.band, kStepK) * kStepK);
  pieces.bands = ceil_div(count, pieces.band);
  const int64_t work = int64_t(products) * images * pass.image_steps();
  const int64_t most = min(min(ceil_div(kTasks, blocks), work / kSplitProducts),
                           min(kPieceSumBytes / (blocks * sum_bytes), pieces.count()));
  for (grid.splits = 1; 2 * grid.splits <= most;) grid.splits *= 2;  // even shares
  return pieces;
}

// x of a task's groups.
template <int P, class T>
void prepare_piece(const WeightPass& piece, const TaskBlocks& blocks, char* x, RangeLanes& range) {
  constexpr int64_t kPositions = 512;  // at a time: they stay in the first-level cache
  const PlaneAxis &rows = piece.x.planes.rows, &columns = piece.x.planes.columns;
  const int64_t n = max(1, kPositions / columns.length);
  for (int64_t phase = 0; phase < piece.x.phases(); ++phase)
    for (int64_t group = blocks.group; group < blocks.group_end; ++group)
      for (int64_t row = 0; row < rows.length; row += n)
        prepare_pair_rows<P, T>(piece.x, {phase, group, 0, row}, min(n, rows.length - row), x, range);
}

// The pieces of a task. `memory` has room for the largest piece of x, and for a chunk of dy.
template <int P, class T>
Prepared run_piece_task(const WeightPass& pass, const WeightPieces& pieces, const WeightMemory& memory, int64_t task,
                        char* x, char* dy, T* dw) {
  const WeightGrid& grid = pieces.grid;
  const TaskBlocks blocks(pass, grid, memory, task);
  const int64_t begin = pieces.count() * blocks.split / grid.splits;
  const int64_t end = pieces.count() * (blocks.split + 1) / grid.splits;
  RangeLanes dy_range, x_range;
  _tile_loadconfig(&kTileConfig);
  for (int64_t number = begin; number < end; ++number) {
    const WeightPass piece = piece_of(pass, pieces, number);
    prepare_piece<P, T>(piece, blocks, x, x_range);
    for (int64_t s = 0, n = 0; s < piece.image_steps(); s += n) {
      n = min(chunk_steps<P>(), piece.image_steps() - s);
      for (int64_t panel = blocks.panel; panel < blocks.panel_end; ++panel) {
        pack_steps<P, T>(piece, panel, 0, s, n, dy, dy_range);
        multiply_panel<P>(piece, grid, blocks, panel, dy - memory.dy_steps[s], memory.dy_steps, x, memory.x_steps, s, n,
                          number == begin && s == 0);
      }
    }
  }
  _tile_release();
  if (!memory.sums) store_task(pass, grid, blocks, dw);
  return {dy_range.finish(), x_range.finish()};
}

// False: the parts of some images are not exact.
template <int P, class T>
bool run_pieces(const WeightPass& pass, const WeightPieces& pieces, T* dw) {
  const WeightGrid& grid = pieces.grid;
  const WeightPass largest = piece_of(pass, pieces, 0);
  const int64_t tasks = grid.tasks(), steps = largest.image_steps();
  const int64_t table_bytes = ceil_div(steps * 16 + tasks * int64_t(sizeof(Prepared)), 64) * 64;
  const int64_t sum_bytes = grid.splits == 1 ? 0 : tasks * grid.task_floats(pass) * int64_t(sizeof(float));
  char* memory = static_cast<char*>(thread_scratch(Scratch::GemmB, size_t(table_bytes + sum_bytes)));
  int64_t *dy_steps = reinterpret_cast<int64_t*>(memory), *x_steps = dy_steps + steps;
  Prepared* seen = reinterpret_cast<Prepared*>(x_steps + steps);
  for (int64_t s = 0; s < steps; ++s) dy_steps[s] = s * P * kBlockBytes, x_steps[s] = s * kStepK / 2 * kLineBytes;
  float* sums = sum_bytes == 0 ? nullptr : reinterpret_cast<float*>(memory + table_bytes);
  const int64_t x_bytes = P * largest.x.part_bytes(), dy_bytes = chunk_steps<P>() * P * kBlockBytes;
  parallel_for(tasks, 1, [&](int64_t begin, int64_t end) {
    char* x = static_cast<char*>(thread_scratch(Scratch::GemmA, size_t(x_bytes + dy_bytes)));
    for (int64_t task = begin; task < end; ++task)
      seen[task] =
          run_piece_task<P>(pass, pieces, {nullptr, nullptr, sums, dy_steps, x_steps}, task, x, x + x_bytes, dw);
  });
  Prepared parts;
  for (int64_t task = 0; task < tasks; ++task) parts.dy.add(seen[task].dy), parts.x.add(seen[task].x);
  if (P > 1 && !parts.exact()) return false;
  if (sums) store_gradient(pass, grid, sums, dw);
  return true;
}

// --------------------------------------------------------------------------------- whole operation

WeightPass make_pass(const ConvArgs& args, int64_t group) {
  const ConvAxis &h = args.height, &w = args.width;
  const Planes planes{static_cast<const char*>(args.x), args.dtype, args.in_channels,
                      plane_axis(h.input, h.stride, h.padding, h.dilation, h.kernel, h.output),
                      plane_axis(w.input, w.stride, w.padding, w.dilation, w.kernel, w.output)};
  const int64_t plain = ceil_div(args.in_channels, kStepK) * w.kernel;
  const bool folded = 4 * ceil_div(args.in_channels * w.kernel, kStepK) < 3 * plain;
  const int64_t filter_elements = args.channels_last ? 1 : h.output * w.output;
  const int64_t first = group * args.out_channels * filter_elements * int64_t(item_size(args.dtype));
  WeightPass pass{tile_planes(planes, w.kernel, w.output, group, args.groups, folded, args.channels_last),
                  h.kernel,
                  folded ? 1 : w.kernel,
                  static_cast<const char*>(args.dy) + first,
                  args.dtype,
                  args.out_channels,
                  args.groups * args.out_channels,
                  h.output * w.output,
                  h.output,
                  w.output};
  for (int64_t column = 0; column < pass.column_taps; ++column)
    if (pass.x.tap_shift(0, column) % 2 != 0) pass.x.parities = 2;
  return pass;
}

bool suits_tiles(const ConvArgs& args) {
  if (args.dtype != DType::Float32 && args.dtype != DType::BFloat16) return false;
  const WeightPass pass = make_pass(args, 0);
  const int64_t taps = args.height.kernel * args.width.kernel;
  if (args.in_channels * taps > INT32_MAX || !image_fits(pass.x)) return false;
  const int64_t made = pass.groups() * kStepK * pass.taps() * (ceil_div(args.out_channels, 16) * 16);
  const int64_t waste = 100 * made / (args.in_channels * taps * args.out_channels);
  if (args.dtype == DType::BFloat16) return waste <= 800;
  return waste <= 160 && (!pass.x.folded || args.out_channels >= kBlock);  // folding copies x for every column tap
}

// One group. False: the parts of some images are not exact.
template <int P, class T>
bool run_group(const ConvArgs& args, int64_t group) {
  WeightPass pass = make_pass(args, group);
  const int64_t kernel = args.height.kernel * args.width.kernel;
  T* dw = static_cast<T*>(args.out) + group * args.out_channels * args.in_channels * kernel;
  if (patches_pay<P>(args, pass)) {
    lay_out_patches<P>(args, pass);
  } else {
    const WeightPieces pieces = make_pieces<P>(pass, args.images);
    if (pieces.grid.tasks() > 0) return run_pieces<P>(pass, pieces, dw);
    set_slots<P>(pass.x, args.images);
    pass.x.slots = max(1, min(pass.x.slots, kGradientBytes * pass.x.slots / gradient_bytes<P>(pass)));
  }
  const int64_t turn = pass.patch_images ? pass.patch_images : pass.x.slots;  // images at a time
  const WeightGrid grid = make_grid<P>(pass, pass.patch_images ? 1 : args.images);
  const bool at_once = grid.splits == 1 && turn >= args.images;
  const int64_t max_steps = pass.x.slots * pass.image_steps();
  const int64_t table_bytes = ceil_div(max_steps * 16 + PatchTables::bytes(pass), 64) * 64;
  const int64_t sum_bytes = at_once ? 0 : grid.tasks() * grid.task_floats(pass) * int64_t(sizeof(float));
  char* memory = static_cast<char*>(thread_scratch(
      Scratch::GemmB, size_t(table_bytes + sum_bytes + gradient_bytes<P>(pass) + planes_bytes<P>(pass.x))));
  int64_t *dy_steps = reinterpret_cast<int64_t*>(memory), *x_steps = dy_steps + max_steps;
  for (int64_t s = 0; s < max_steps; ++s) {
    dy_steps[s] = s * P * kBlockBytes;
    x_steps[s] = (s / pass.image_steps() * pass.x.plane() + s % pass.image_steps() * kStepK) / 2 * kLineBytes;
  }
  int32_t* offsets = reinterpret_cast<int32_t*>(x_steps + max_steps);
  float* sums = at_once ? nullptr : reinterpret_cast<float*>(memory + table_bytes);
  char *dy = memory + table_bytes + sum_bytes, *x = dy + gradient_bytes<P>(pass);
  for (int64_t image = 0; image < args.images; image += turn) {
    const int64_t images = min(turn, args.images - image);
    pass.x.first_image = image;
    if (!pass.patch_images) pass.x.images = images;
    const Prepared parts = prepare<P, T>(args, pass, images, {offsets, offsets + pass.out_columns}, dy, x);
    if (P > 1 && !parts.exact()) return false;
    parallel_for(grid.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        run_task<P>(pass, grid, {dy, x, sums, dy_steps, x_steps}, task, image == 0, dw);
    });
  }
  if (sums) store_gradient(pass, grid, sums, dw);
  return true;
}

bool run_groups(const ConvArgs& args) {
  for (int64_t group = 0; group < args.groups; ++group)
    if (!(args.dtype == DType::Float32 ? run_group<3, float>(args, group) : run_group<1, bfloat16>(args, group)))
      return false;
  return true;
}

void weight_grad(const ConvArgs& given) {
  const ConvArgs args = with_long_rows(given);
  if (!suits_tiles(args) || !run_groups(args)) call_level(conv_weight_grad, CpuLevel::Avx512, given);
}

}  // namespace

FASTNN_AMX_KERNEL(conv_weight_grad, weight_grad)

}  // namespace fastnn
