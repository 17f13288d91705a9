// Convolution on AMX tiles, forward and input gradient: per group a product of the filters with the source,
//
//   out[o, position] = sum over steps (32 channels of one tap) of weight[o, step] * source[step, position + shift(tap)]
//
// where positions are columns or rows of the product (source_amx.h). A task takes some images, or a band of the rows of
// one, and prepares their source where it stays: in its core's second-level cache. There each panel of 32 filters meets
// all tiles of 32 positions, over all steps: a block of 32 x 32 sums is stored as it comes out of the tile registers,
// between the products of the next one (of bfloat16 block_pipeline_amx.h); of one part, the next panel is fetched
// meanwhile.
// Tiles run on over the row ends; what they compute there is dropped.
//
// How positions are dealt to tasks never changes a sum, and may depend on the number of threads.
//
// The gradient of the input is the same product for each residue class of the positions modulo the stride, with
// the class's taps in reverse and channels swapped; two classes of columns are taken together, and their results woven
// into whole rows. Float64, float16, few channels in or out, and float32 whose parts are not exact are left to the
// vector kernels.
#include "ops/conv/block_pipeline_amx.h"
#include "ops/conv/depthwise_cpu.h"
#include "ops/conv/filters_amx.h"
#include "ops/conv/pass_plan_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kUnpackedSteps = 18;  // of a panel that are packed at a time: 108 KiB in three parts

// ------------------------------------------------------------------------------------- product

// Beside a block's products: the block before is stored, and lines of the next panel are fetched into the second-level
// cache.
template <class T>
struct StoreAhead {
  BlockStore<T>* store;
  StepFetch fetch;

  void operator()(int64_t step, int64_t steps) const {
    fetch(step);
    store->run_beside(steps);
  }
};

// Sums of a tile of positions x a panel of filters at `filters`, over some steps.
template <int P, class Ahead = NothingBeside>
void multiply_tile(const TilePass& pass, const PassTaps& taps, const TileTask& task, const TileSpan& span,
                   const char* filters, int64_t panel, int64_t step, int64_t steps, float* sums,
                   const Ahead& ahead = {}) {
  const bool wide = pass.m - panel * kBlock > 16, tall = span.end - span.begin > 16;
  const TileStream f = filter_stream(taps, filters), p = source_stream(pass, taps, task, span.begin);
  if (pass.source.lines) return tile_block<P>(p, f, step, steps, tall, wide, sums, step == 0, ahead);
  tile_block<P>(f, p, step, steps, wide, tall, sums, step == 0, ahead);
}

template <int P>
void multiply(const TilePass& pass, const TileTask& task) {
  using T = std::conditional_t<P == 1, bfloat16, float>;
  const TaskTiles tiles(pass, task);
  alignas(64) float sums[2][2 * kSumsPerBlock];
  BlockStore<T> store(pass, task);
  if (P == 1 && store.interleaves()) return BlockPipeline(pass, task).run();
  _tile_loadconfig(&kTileConfig);
  int64_t block = 0;
  for (int64_t panel = task.panel; panel < task.panel_end; ++panel)
    for (int64_t tile = 0; tile < tiles.tiles; ++tile, block ^= 1) {
      const TileSpan span(tiles, tile);
      for (int f = 0; f < pass.column_phases; ++f) {
        const PassTaps& taps = pass.taps[f];
        // Of three parts products take so long that fetching beside them costs more than it saves.
        const StepFetch fetch =
            P == 1 ? PanelFetch(taps, task, panel, tiles.tiles).beside(tile) : StepFetch{nullptr, 0};
        multiply_tile<P>(pass, taps, task, span, taps.filters + panel * taps.steps * P * kBlockBytes, panel, 0,
                         taps.steps, sums[block] + f * kSumsPerBlock, StoreAhead<T>{&store, fetch});
      }
      store.finish();
      store.begin(span, panel * kBlock, sums[block]);
    }
  _tile_release();
  store.finish();
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
      store.finish();
    }
  }
  _tile_release();
}

// --------------------------------------------------------------------------------- whole operation

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
  const int64_t source_bytes = steps == 0 || pass.source.direct ? 0 : prepared_bytes<P>(pass.source);
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

// The vector units' direct convolution: of what tiles do not suit, and of what they could not do exactly.
void convolve_directly(const Kernel<ConvArgs>& kernel, bool (*depthwise)(const ConvArgs&), ConvArgs args) {
  args.winograd = false;
  if (!depthwise(args)) call_level(kernel, CpuLevel::Avx512, args);
}

void forward(const ConvArgs& given) {
  const ConvArgs args = with_long_rows(given);
  const PassPlan plan = forward_plan(args);
  if (!suits_tiles(args, plan) || !run_plan(args, plan)) convolve_directly(conv_forward, amx::depthwise_forward, given);
}

void packing(const ConvPacking& request) {
  const ConvArgs args = with_long_rows(*request.conv);
  const PassPlan plan = forward_plan(args);
  *request.bytes = 0;
  if (!suits_tiles(args, plan)) return;
  const TileSource whole = whole_source(args, plan, 0);
  const int64_t steps = whole.steps(), panels = ceil_div(plan.m, kBlock);
  *request.bytes =
      args.groups * (args.dtype == DType::Float32 ? filters_bytes<3>(panels, steps) : filters_bytes<1>(panels, steps));
  *request.form = (plan.source_rows.folded ? 4 : 0) + (plan.source_columns.folded ? 2 : 0) + whole.lines;
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
  if (!input_grad_by_tiles(with_long_rows(args))) convolve_directly(conv_input_grad, amx::depthwise_input_grad, args);
}

}  // namespace

FASTNN_AMX_KERNEL(conv_forward, forward)
FASTNN_AMX_KERNEL(conv_packing, packing)
FASTNN_AMX_KERNEL(conv_input_grad, input_grad)

}  // namespace fastnn
