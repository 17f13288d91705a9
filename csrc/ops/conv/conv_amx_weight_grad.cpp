// Convolution on AMX tiles, weight gradient: per group, for each tap a product along the positions of all images,
//
//   dw[o, c, tap] = sum over positions of dy[o, position] * x[c, position + shift(tap)]
//
// A's rows are filters: dy is packed as [panel of 32 filters][step of 32 positions], at the pitch of x's planes,
// with zeros in the gaps. B's rows are pairs of positions of x (planes_amx.h). A block of sums is one panel of
// filters, one group of 32 channels and one tap. A task takes some panels and groups with all taps, and a part
// of the steps: dy and x of a chunk of steps stay in the second-level cache while all taps pass. Tasks of different
// steps have sums of their own, which are added in order; a task that has all steps stores its sums while they are in
// the cache. Small images are laid out as patches (patches_amx.h) where that saves more products than it costs.
#include "ops/conv/patches_amx.h"
#include "ops/conv/weight_sums_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kPackedSteps = 8;                    // of dy, whose tiles stay in the first-level cache
constexpr int64_t kTaskBlocks = 72;                    // of 4 KiB sums: 288 KiB
constexpr int64_t kTasks = 8;                          // wanted, at least
constexpr int64_t kSplitProducts = 2048;               // of 32 x 32 x 32: pay for a split of the steps
constexpr int64_t kGradientBytes = int64_t(12) << 20;  // of packed dy: more images are taken in turns

// Steps of a panel of dy that all taps and groups meet before the next panel: 16 KiB, or of three parts 96 KiB.
template <int P>
constexpr int64_t chunk_steps() {
  return P == 1 ? 8 : 16;
}

struct WeightPass {
  TilePlanes x;
  int64_t row_taps, column_taps;  // column_taps is 1 when they are folded into channels
  const char* dy;                 // of the group's first channel
  DType dtype;
  int64_t filters, all_filters;   // of the group, of all groups
  int64_t out_rows, out_columns;  // of patches 1 and all positions
  int64_t patch_images = 0;       // that are laid out as patches at a time; 0: as planes

  int64_t taps() const { return row_taps * column_taps; }
  int64_t positions() const { return (out_rows - 1) * x.planes.columns.length + out_columns; }
  int64_t image_steps() const { return ceil_div(positions(), kStepK); }
  bool gapless() const { return out_rows == 1 || x.planes.columns.length == out_columns; }
  template <class T>
  const T* gradient(int64_t image, int64_t filter) const {
    return reinterpret_cast<const T*>(dy) + ((x.first_image + image) * all_filters + filter) * out_rows * out_columns;
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
    copy_adjacent<1>(positions + i, n, source + row * pass.out_columns, row < pass.out_rows ? pass.out_columns : 0,
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
                    (pass.x.first_image + image) * pass.out_rows * pass.out_columns * pass.all_filters + filter;
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

template <int P, class T>
PartRange pack_gradient(const WeightPass& pass, char* memory) {
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + pass.panels() * pass.panel_bytes<P>());
  const int64_t n = pass.panels() * pass.x.images, steps = pass.image_steps();
  parallel_for(n, max(1, 16 / steps), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t panel = unit / pass.x.images, image = unit % pass.x.images;
      char* target = memory + panel * pass.panel_bytes<P>() + image * steps * P * kBlockBytes;
      RangeLanes range;
      for (int64_t s = 0; s < steps; s += kPackedSteps) {
        const int64_t step_end = min(steps, s + kPackedSteps);
        if (!pass.x.channels_last)
          pack_rows<P, T>(pass, panel, image, s, step_end - s, target + s * P * kBlockBytes, range);
        for (int64_t i = s; i < step_end && pass.x.channels_last; ++i)
          for (int64_t half = 0; half < 2; ++half)
            pack_pixels<P, T>(pass, image, panel * kBlock + half * 16, i * kStepK,
                              target + i * P * kBlockBytes + half * kTileBytes, range);
      }
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

// dy and x of `images` images from pass.x.first_image on. False: their parts are not exact.
template <int P, class T>
bool prepare(const ConvArgs& args, const WeightPass& pass, int64_t images, const PatchTables& tables, char* dy,
             char* x) {
  PartRange dy_range, x_range;
  if (pass.patch_images) {
    fill_tables(args, pass, images, tables);
    dy_range = gather_gradient<P, T>(args, pass, tables.dy, dy);
    x_range = gather_patches<P, T>(pass, tables.x, x);
  } else {
    dy_range = pack_gradient<P, T>(pass, dy);
    x_range = prepare_planes<P>(pass.x, x);
  }
  return P == 1 || parts_are_exact(dy_range, x_range);
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

// The sums of a panel and group go to dw.
template <class T>
void store_sums(const WeightPass& pass, const float* sums, int64_t splits, int64_t split_pitch, int64_t panel,
                int64_t group, T* dw) {
  const int64_t filter_pitch = pass.x.channels() * pass.taps();
  store_group(GroupSums<T>{sums, splits, split_pitch, pass.taps(), pass.x.folds(), dw + panel * kBlock * filter_pitch,
                           filter_pitch, min(kBlock, pass.filters - panel * kBlock), group * kStepK,
                           min(kStepK, pass.x.channels() - group * kStepK)});
}

template <int P, class T>
void run_task(const WeightPass& pass, const WeightGrid& grid, const WeightMemory& memory, int64_t task, bool first,
              T* dw) {
  const int64_t split = task % grid.splits, block = task / grid.splits;
  const int64_t panel = block / grid.group_blocks * grid.panels, group = block % grid.group_blocks * grid.groups;
  const int64_t panel_end = min(panel + grid.panels, pass.panels()),
                group_end = min(group + grid.groups, pass.groups());
  const int64_t steps = pass.x.images * pass.image_steps();
  const int64_t begin = steps * split / grid.splits, end = steps * (split + 1) / grid.splits;
  const int64_t floats = grid.task_floats(pass);
  float* sums = memory.sums ? memory.sums + task * floats
                            : static_cast<float*>(thread_scratch(Scratch::GemmSums, size_t(floats) * sizeof(float)));
  if (first && begin == end) fill_zero(sums, floats);
  _tile_loadconfig(&kTileConfig);
  for (int64_t s = begin; s < end; s += chunk_steps<P>())
    for (int64_t i = panel; i < panel_end; ++i)
      for (int64_t g = group; g < group_end; ++g)
        for (int64_t tap = 0; tap < pass.taps(); ++tap) {
          const TileStream a{memory.dy + i * pass.panel_bytes<P>(), memory.dy_steps, 64, kTileBytes, kBlockBytes};
          const TileStream b{memory.x + pass.tap_offset(tap) + 2 * g * pass.x.group_bytes(), memory.x_steps, kLineBytes,
                             pass.x.group_bytes(), pass.x.part_bytes()};
          float* target = sums + (((i - panel) * grid.groups + g - group) * pass.taps() + tap) * kSumsPerBlock;
          tile_block<P>(a, b, s, min(chunk_steps<P>(), end - s), pass.filters - i * kBlock > 16,
                        pass.x.channels() - g * kStepK > 16, target, first && s == begin);
        }
  _tile_release();
  if (memory.sums) return;
  for (int64_t i = panel; i < panel_end; ++i)
    for (int64_t g = group; g < group_end; ++g)
      store_sums(pass, sums + ((i - panel) * grid.groups + g - group) * pass.taps() * kSumsPerBlock, 1, 0, i, g, dw);
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
  if (patches_pay<P>(args, pass)) {
    lay_out_patches<P>(args, pass);
  } else {
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
  const int64_t kernel = args.height.kernel * args.width.kernel;
  T* dw = static_cast<T*>(args.out) + group * args.out_channels * args.in_channels * kernel;
  for (int64_t image = 0; image < args.images; image += turn) {
    const int64_t images = min(turn, args.images - image);
    pass.x.first_image = image;
    if (!pass.patch_images) pass.x.images = images;
    if (!prepare<P, T>(args, pass, images, {offsets, offsets + pass.out_columns}, dy, x)) return false;
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
