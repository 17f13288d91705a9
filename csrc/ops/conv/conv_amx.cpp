// Convolution on AMX tiles, forward and input gradient: per group a product of the filters with the source,
//
//   out[o, position] = sum over steps (32 channels of one tap) of weight[o, step] * source[step, position + shift(tap)]
//
// where positions are columns or rows of the product (source_amx.h). A task takes some images, or a band of the rows of
// one, and prepares their source where it stays: in its core's second-level cache. There each panel of 32 filters meets
// all tiles of 32 positions, over all steps: a block of 32 x 32 sums is stored as it comes out of the tile registers,
// between the products of the next one. The next panel is fetched meanwhile.
// Tiles run on over the row ends; what they compute there is dropped.
//
// How positions are dealt to tasks never changes a sum, and may depend on the number of threads.
//
// The gradient of the input is the same product for each residue class of the positions modulo the stride, with
// the class's taps in reverse and channels swapped; two classes of columns are taken together, and their results woven
// into whole rows. Float64, float16, few channels in or out, and float32 whose parts are not exact are left to the
// vector kernels.
#include "ops/conv/filters_amx.h"
#include "ops/conv/tile_pass_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kSourceBytes = int64_t(768) << 10;  // of a task's prepared source
constexpr int64_t kFilterBytes = int64_t(1) << 20;    // filters that stay in the second-level cache
constexpr int64_t kFilterTiles = 8;                   // of positions that pay for streaming others through it
constexpr int64_t kSpreadSteps = 12;                  // of a block, that pay for storing the one before piece by piece
constexpr int64_t kUnpackedSteps = 18;                // of a panel that are packed at a time: 108 KiB in three parts
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kTaskCycles = 16384;  // pay for a task
constexpr double kMostSourceBytes = double(int64_t(1) << 29);

// ------------------------------------------------------------------------------------- product

// Beside a block's products: the block before is stored, and the next panel fetched.
template <class T>
struct StoreAhead {
  BlockStore<T>* store;
  TileAhead next;

  void operator()(int64_t step, int64_t steps) const {
    next(step, steps);
    store->run_to(steps < kSpreadSteps ? store->pieces() : store->pieces() * (step + 1) / steps);
  }
};

// Sums of a tile of positions x a panel of filters at `filters`, over some steps.
template <int P, class Ahead = TileAhead>
void multiply_tile(const TilePass& pass, const PassTaps& taps, const TileTask& task, const TileSpan& span,
                   const char* filters, int64_t panel, int64_t step, int64_t steps, float* sums,
                   const Ahead& ahead = {}) {
  const bool wide = pass.m - panel * kBlock > 16, tall = span.end - span.begin > 16;
  const int64_t row = pass.source.lines ? pass.source.position_bytes : pass.source.pitch;
  const TileStream f{filters, taps.filter_steps, 64, kTileBytes, kBlockBytes};
  const TileStream p{task.source + span.begin * pass.source.position_bytes, taps.source_steps, row,
                     16 * pass.source.position_bytes, pass.source.part_bytes};
  if (pass.source.lines) return tile_block<P>(p, f, step, steps, tall, wide, sums, step == 0, ahead);
  tile_block<P>(f, p, step, steps, wide, tall, sums, step == 0, ahead);
}

template <int P>
void multiply(const TilePass& pass, const TileTask& task) {
  using T = std::conditional_t<P == 1, bfloat16, float>;
  const TaskTiles tiles(pass, task);
  alignas(64) float sums[2][2 * kSumsPerBlock];
  BlockStore<T> store(pass, task);
  int64_t block = 0;
  _tile_loadconfig(&kTileConfig);
  for (int64_t panel = task.panel; panel < task.panel_end; ++panel)
    for (int64_t tile = 0; tile < tiles.tiles; ++tile, block ^= 1) {
      const TileSpan span(tiles, tile);
      for (int f = 0; f < pass.column_phases; ++f) {
        const PassTaps& taps = pass.taps[f];
        const int64_t panel_bytes = taps.steps * P * kBlockBytes;
        const int64_t lines = panel + 1 < task.panel_end ? panel_bytes / 64 : 0;
        const int64_t begin = lines * tile / tiles.tiles, end = lines * (tile + 1) / tiles.tiles;
        const char* filters = taps.filters + panel * panel_bytes;
        const StoreAhead<T> ahead{&store, {filters + panel_bytes + begin * 64, end - begin}};
        multiply_tile<P>(pass, taps, task, span, filters, panel, 0, taps.steps, sums[block] + f * kSumsPerBlock, ahead);
      }
      store.run_to(store.pieces());
      store.begin(span, panel * kBlock, sums[block]);
    }
  _tile_release();
  store.run_to(store.pieces());
}

// The same where no other task reads the filters: some steps of a panel are packed, and meet all tiles in the cache.
template <int P>
void multiply_unpacked(const TilePass& pass, const TileTask& task, const FilterSource& source, PartRange* ranges) {
  using T = std::conditional_t<P == 1, bfloat16, float>;
  const int64_t chunk = max(1, kUnpackedSteps / source.taps) * source.taps, step_bytes = P * kBlockBytes;
  const TaskTiles tiles(pass, task);
  const int64_t sum_bytes = tiles.tiles * kSumsPerBlock * int64_t(sizeof(float));
  char* memory = static_cast<char*>(thread_scratch(Scratch::GemmSums, size_t(sum_bytes + source.steps * step_bytes)));
  float* sums = reinterpret_cast<float*>(memory);
  char* filters = memory + sum_bytes;
  BlockStore<T> store(pass, task);
  _tile_loadconfig(&kTileConfig);
  for (int64_t panel = task.panel; panel < task.panel_end; ++panel) {
    RangeLanes range;
    for (int64_t step = 0; step < source.steps; step += chunk) {
      const int64_t n = min(chunk, source.steps - step);
      pack_filter_steps<P>(source, panel, step, n, filters + step * step_bytes, range);
      for (int64_t tile = 0; tile < tiles.tiles; ++tile)
        multiply_tile<P>(pass, pass.taps[0], task, TileSpan(tiles, tile), filters, panel, step, n,
                         sums + tile * kSumsPerBlock);
    }
    ranges[panel] = range.finish();
    for (int64_t tile = 0; tile < tiles.tiles; ++tile) {
      store.begin(TileSpan(tiles, tile), panel * kBlock, sums + tile * kSumsPerBlock);
      store.run_to(store.pieces());
    }
  }
  _tile_release();
}

// --------------------------------------------------------------------------------- whole operation

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

// Cycles of an image's products and of preparing its source: 64 for a product of 32 x 32 x 32, and what a line of
// the source was measured to take.
struct PassCost {
  double product, source;

  PassCost(const TileSource& source_, int64_t m, int64_t parts)
      : product(double(source_.steps()) * double(tiles(source_)) * double(ceil_div(m, 16)) * 32 *
                double(parts * (parts + 1) / 2)),
        source(double(source_.plane) * double(source_.phases() * source_.groups()) *
               double(parts > 1                               ? 16
                      : source_.pixels && source_.folds() > 1 ? 24
                      : source_.pixels                        ? 3
                                                              : 4)) {}
  double total() const { return product + source; }
  static int64_t tiles(const TileSource& source) {
    return ceil_div((source.band_rows - 1) * source.row_length + source.band_columns, kBlock);
  }
};

// Tiles of columns at any shift would cross cache lines: then lines, although NCHW has to be transposed for them.
inline bool takes_lines(const ConvArgs& args, const PassPlan& plan) {
  return args.channels_last || plan.source_columns.tap_steps() > 1 ||
         (plan.source_rows.tap_steps() > 1 && !plan.source_columns.folded);
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
  double least = 0;
  int best = 0;
  for (int folds = 0; folds < 3; ++folds) {
    plan.source_rows.folded = folds == 2, plan.source_columns.folded = folds >= 1;
    const double cost = PassCost(whole_source(args, plan, 0), plan.m, parts_of_conv(args)).total();
    if (folds == 0 || cost < least) least = cost, best = folds;
  }
  plan.source_rows.folded = best == 2, plan.source_columns.folded = best >= 1;
}

inline bool suits_tiles(const ConvArgs& args, const PassPlan& plan) {
  const int64_t weights = args.groups * args.out_channels * args.in_channels * args.height.kernel * args.width.kernel;
  if (weights > INT32_MAX || (args.dtype != DType::Float32 && args.dtype != DType::BFloat16)) return false;
  TileSource source = whole_source(args, plan, 0);
  // How many times more multiply-adds the tiles make than the convolution has, in percent.
  const int64_t taps = max(1, plan.channels * plan.source_rows.taps * plan.source_columns.taps);
  const int64_t waste = 100 * source.steps() * kStepK / taps * (ceil_div(plan.m, 16) * 16) / max(1, plan.m);
  if (waste > (args.dtype == DType::Float32 ? 160 : 800)) return false;
  (source.rows.outputs > 1 ? source.band_rows : source.band_columns) = 1;
  source.lay_out();
  return double(source.row_count) * double(source.row_length) * double(source.phases() * source.groups()) * kLineBytes *
             3 <=
         kMostSourceBytes;
}

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

// Where steps begin, and the weights they take.
struct StepTables {
  int64_t* source_steps;
  int64_t* filter_steps;
  int32_t* weight_offsets;

  static int64_t bytes(int64_t steps) { return ceil_div(steps * (8 + 8 + 4 * kStepK), 64) * 64; }
  StepTables(char* memory, int64_t steps)
      : source_steps(reinterpret_cast<int64_t*>(memory)),
        filter_steps(source_steps + steps),
        weight_offsets(reinterpret_cast<int32_t*>(filter_steps + steps)) {}
};

template <int P>
void fill_tables(const PassPlan& plan, const TileSource& source, int phase, const StepTables& tables) {
  const PassPlan::ColumnPhase& columns = plan.phase[phase];
  int64_t step = 0;
  for (int64_t group = 0; group < source.groups(); ++group)
    for (int64_t row = 0; row < source.rows.tap_steps(); ++row)
      for (int64_t column = 0; column < plan.column_steps(phase); ++column, ++step) {
        tables.source_steps[step] = source.step_offset(group, row, columns.shift + column);
        tables.filter_steps[step] = step * P * kBlockBytes;
        for (int64_t k = 0; k < kStepK; ++k) {
          const int64_t at = group * kStepK + k;
          const TileSource::Fold fold = source.fold(at);
          const int64_t offset = columns.first_tap + (row + fold.row) * plan.row_tap +
                                 (column + fold.column) * plan.column_tap + fold.channel * plan.channel_stride;
          tables.weight_offsets[step * kStepK + k] = at < source.k() ? int32_t(offset) : -1;
        }
      }
}

// The filters are packed at pass.filters, in range `packed`, or `unpacked`.
template <int P>
bool run_tasks(TilePass& pass, const ConvArgs& args, const TaskGrid& grid, const PartRange& packed,
               const FilterSource* unpacked) {
  const int64_t tasks = grid.tasks(), steps = pass.taps[0].steps, panels = unpacked ? pass.panels() : 0;
  const int64_t source_bytes = steps == 0 || pass.source.direct ? 0 : P * pass.source.part_bytes;
  PartRange* ranges =
      static_cast<PartRange*>(thread_scratch(Scratch::OperationShared, size_t(tasks + panels) * sizeof(PartRange)));
  PartRange* panel_ranges = ranges + tasks;
  parallel_for(tasks, 1, [&](int64_t begin, int64_t end) {
    char* memory = static_cast<char*>(thread_scratch(Scratch::GemmA, size_t(source_bytes)));
    for (int64_t number = begin; number < end; ++number) {
      TileTask task = grid.task(pass.source, args.images, pass.m, number);
      ranges[number] = PartRange();
      if (pass.source.direct) {
        const int64_t position = task.range.image * pass.source.columns.outputs + task.range.column;
        task.source = pass.source.data + (position * pass.source.all_channels + pass.source.first_channel) * int64_t(2);
      } else if (steps > 0) {
        ranges[number] = prepare_source<P>(pass.source, task.range, memory);
        if (P > 1 && !unpacked && !parts_are_exact(ranges[number], packed)) continue;
        task.source = memory;
      }
      if (unpacked) {
        multiply_unpacked<P>(pass, task, *unpacked, panel_ranges);
      } else {
        multiply<P>(pass, task);
      }
    }
  });
  PartRange source, weights = packed;
  for (int64_t number = 0; number < tasks; ++number) source.add(ranges[number]);
  for (int64_t panel = 0; panel < panels; ++panel) weights.add(panel_ranges[panel]);
  return P == 1 || parts_are_exact(source, weights);
}

// One group. False: the parts of some images are not exact.
template <int P>
bool run_group(const ConvArgs& args, const PassPlan& plan, int64_t group) {
  const int64_t size = int64_t(item_size(args.dtype)), channel_elements = plan.rows.size * plan.columns.size;
  const int64_t first = group * plan.m, first_element = args.channels_last ? first : first * channel_elements;
  const auto at = [&](const void* p, int64_t element) {
    return p ? static_cast<const char*>(p) + element * size : nullptr;
  };
  TileSource source = whole_source(args, plan, group);
  const TaskGrid grid(source, args, plan.m);
  source.images = grid.images;
  (grid.by_rows ? source.band_rows : source.band_columns) = grid.band;
  source.direct = is_direct(source, grid, args.images);
  source.lay_out();
  const int64_t panels = ceil_div(plan.m, kBlock), kernel = args.height.kernel * args.width.kernel;
  const auto steps_of = [&](int f) { return source.groups() * source.rows.tap_steps() * plan.column_steps(f); };
  const auto table_bytes = [&](int f) { return StepTables::bytes(steps_of(f)); };
  const bool kept = args.packed != nullptr, paired = plan.column_phases == 2;
  const bool unpacked = !kept && !paired && steps_of(0) > 0 && grid.image_blocks * grid.bands == 1;
  int64_t bytes = 0;
  for (int f = 0; f < plan.column_phases; ++f)
    bytes += table_bytes(f) + (kept || unpacked ? 0 : filters_bytes<P>(panels, steps_of(f)));
  char* memory = static_cast<char*>(thread_scratch(Scratch::GemmB, size_t(bytes)));
  TilePass pass{source,
                plan.m,
                plan.column_phases,
                {},
                TileOutput{static_cast<char*>(args.out) + first_element * size, args.dtype, channel_elements, 1, false,
                           at(args.bias, first), nullptr, at(args.residual, first_element), args.activation},
                plan.rows,
                plan.columns,
                args.groups * plan.m * channel_elements,
                args.groups * plan.m};
  FilterSource weights;
  PartRange weight_range;
  for (int f = 0; f < plan.column_phases; ++f) {
    const int64_t steps = steps_of(f), filter_bytes = filters_bytes<P>(panels, steps);
    const StepTables tables(memory, steps);
    memory += table_bytes(f);
    fill_tables<P>(plan, source, f, tables);
    weights = {at(args.weight, group * plan.group_weights),
               args.dtype,
               plan.m,
               plan.filter_stride,
               plan.channel_stride,
               kernel,
               tables.weight_offsets,
               steps,
               source.rows.tap_steps() * plan.column_steps(f),
               !source.lines};
    char* filters = kept ? static_cast<char*>(args.packed) + group * filter_bytes : memory;
    if (!unpacked)
      weight_range.add(kept && *args.packed_ready ? packed_range<P>(weights, filters)
                                                  : pack_filters<P>(weights, filters));
    if (!kept && !unpacked) memory += filter_bytes;
    pass.taps[f] = {filters, steps, tables.filter_steps, tables.source_steps};
  }
  return run_tasks<P>(pass, args, grid, weight_range, unpacked ? &weights : nullptr);
}

bool run_plan(const ConvArgs& args, const PassPlan& plan) {
  for (int64_t group = 0; group < args.groups; ++group)
    if (!(args.dtype == DType::Float32 ? run_group<3>(args, plan, group) : run_group<1>(args, plan, group)))
      return false;
  if (args.packed) *args.packed_ready = true;
  return true;
}

SourceAxis forward_axis(const ConvAxis& axis) {
  return {plane_axis(axis.input, axis.stride, axis.padding, axis.dilation, axis.kernel, axis.output), axis.kernel,
          axis.output};
}

PassPlan forward_plan(const ConvArgs& args) {
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

PassPlan input_grad_plan(const ConvArgs& args, int64_t row, int64_t column) {
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
PassPlan paired_plan(const ConvArgs& args, int64_t row) {
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

// The vector units' direct convolution: of what tiles do not suit, and of what they could not do exactly.
void convolve_directly(const Kernel<ConvArgs>& kernel, ConvArgs args) {
  args.winograd = false;
  call_level(kernel, CpuLevel::Avx512, args);
}

void forward(const ConvArgs& given) {
  const ConvArgs args = with_long_rows(given);
  const PassPlan plan = forward_plan(args);
  if (!suits_tiles(args, plan) || !run_plan(args, plan)) convolve_directly(conv_forward, given);
}

void packing(const ConvPacking& request) {
  const ConvArgs args = with_long_rows(*request.conv);
  const PassPlan plan = forward_plan(args);
  *request.bytes = 0;
  if (!suits_tiles(args, plan)) return;
  const int64_t steps = whole_source(args, plan, 0).steps(), panels = ceil_div(plan.m, kBlock);
  *request.bytes =
      args.groups * (args.dtype == DType::Float32 ? filters_bytes<3>(panels, steps) : filters_bytes<1>(panels, steps));
  *request.form = (plan.source_rows.folded ? 4 : 0) + (plan.source_columns.folded ? 2 : 0) + args.channels_last;
}

bool input_grad_by_tiles(const ConvArgs& args) {
  const int64_t row_phases = min(args.height.stride, args.height.input);
  const int64_t column_phases = min(args.width.stride, args.width.input);
  for (int64_t row = 0; row < row_phases; ++row) {
    if (column_phases == 2) {
      const PassPlan plan = paired_plan(args, row);
      if (plan.column_phases == 2) {
        if (!run_plan(args, plan)) return false;
        continue;
      }
    }
    for (int64_t column = 0; column < column_phases; ++column) {
      const PassPlan plan = input_grad_plan(args, row, column);
      if (!suits_tiles(args, plan) || !run_plan(args, plan)) return false;
    }
  }
  return true;
}

void input_grad(const ConvArgs& args) {
  if (!input_grad_by_tiles(with_long_rows(args))) convolve_directly(conv_input_grad, args);
}

}  // namespace

FASTNN_AMX_KERNEL(conv_forward, forward)
FASTNN_AMX_KERNEL(conv_packing, packing)
FASTNN_AMX_KERNEL(conv_input_grad, input_grad)

}  // namespace fastnn
