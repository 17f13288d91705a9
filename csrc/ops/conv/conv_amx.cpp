// Convolution on AMX tiles, forward and input gradient: per group a product of the source's planes, whose rows
// are positions and whose columns are channels, with the filters,
//
//   out[position, o] = sum over steps (32 channels of one tap) of planes[position + shift(tap), step] * weight[step, o]
//
// The planes of as many images as fit the caches are prepared by all threads (planes_amx.h), the weights are
// packed tap by tap, then blocks of positions x filters are the parallel tasks. Within a chunk of steps (kStepChunk)
// a panel of 32 filters meets all tiles of 32 positions; both stream from the second-level cache, neighbouring taps
// from lines just read, and sums return to memory once a chunk. (36 steps: all nine taps of 128 channels. On
// 3x3 layers of 64 and 128 channels 9 steps measured a fifth slower, 72 and 288 up to 12 %.)
// Tiles begin anew with every image; what they compute beyond a row's end is dropped. Sums for NCHW are
// transposed in squares of 16 x 16 when they are stored.
//
// The gradient of the input is the same product for each residue class of the positions modulo the stride, with
// the class's taps in reverse and channels swapped. Float64, float16, few channels in or out, and float32 whose
// parts are not exact are left to the vector kernels.
#include "ops/conv/tile_pass_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kBlockFilters = 16;  // panels of 32 filters of a task, with kBlockTiles
constexpr int64_t kStepChunk = 36;
constexpr int64_t kUnrolledPlane = 256;  // positions of an image that may have planes for every tap
constexpr int64_t kStreamedBytes = int64_t(1) << 24;
constexpr int64_t kTasks = 8;           // wanted, at least
constexpr int64_t kTaskProducts = 256;  // of 32 x 32 x 32: pay for a task

// ------------------------------------------------------------------------------------- weights

// 16 elements at `offsets` as float32, zero where an offset is negative. 16-bit elements come in the aligned
// words that hold them.
inline __m512 gather_weights(const char* base, DType dtype, const int32_t* offsets) {
  const __m512i index = _mm512_loadu_si512(offsets);
  const __mmask16 mask = _mm512_cmpge_epi32_mask(index, _mm512_setzero_si512());
  if (dtype == DType::Float32) return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, base, 4);
  const uintptr_t address = reinterpret_cast<uintptr_t>(base);
  const __m512i element = _mm512_add_epi32(index, _mm512_set1_epi32(int(address >> 1 & 1)));
  const __m512i words = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, _mm512_srli_epi32(element, 1),
                                                    reinterpret_cast<const void*>(address & ~uintptr_t(3)), 4);
  const __mmask16 upper = _mm512_test_epi32_mask(element, _mm512_set1_epi32(1));
  const __m512i low = _mm512_slli_epi32(words, 16);
  return _mm512_castsi512_ps(_mm512_mask_and_epi32(low, upper, words, _mm512_set1_epi32(int(0xffff0000))));
}

// One tile for each part: 16 filters from o on, the 32 values of k at `offsets`.
template <int P>
void pack_filter_tile(const TilePass& pass, const int32_t* offsets, int64_t o, char* tile, RangeLanes& range) {
  __m512i squares[P][16];
  for (int64_t r = 0; r < 16; ++r) {
    __m512i parts[P];
    const bool valid = o + r < pass.m;
    const char* filter = pass.weights + (valid ? (o + r) * pass.filter_stride * int64_t(item_size(pass.dtype)) : 0);
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    if (valid)
      low = gather_weights(filter, pass.dtype, offsets), high = gather_weights(filter, pass.dtype, offsets + 16);
    if (P > 1) range.add(low), range.add(high);
    split<P>(low, high, parts, [](__m512 a, __m512 b) { return join_upper(a, b); });
    for (int p = 0; p < P; ++p) squares[p][r] = parts[p];
  }
  for (int p = 0; p < P; ++p) {
    transpose_lines(squares[p]);
    for (int q = 0; q < 16; ++q) _mm512_store_si512(tile + p * kBlockBytes + q * 64, squares[p][q]);
  }
}

template <int P>
PartRange pack_filter_panel(const TilePass& pass, int64_t panel, char* memory) {
  RangeLanes range;
  for (int64_t step = 0; step < pass.steps(); ++step, memory += P * kBlockBytes)
    for (int64_t half = 0; half < 2; ++half)
      pack_filter_tile<P>(pass, pass.weight_offsets + step * kStepK, panel * kBlock + half * 16,
                          memory + half * kTileBytes, range);
  return range.finish();
}

// With the ranges of the panels behind them.
template <int P>
int64_t filters_bytes(int64_t panels, int64_t steps) {
  return ceil_div(panels * (steps * P * kBlockBytes + int64_t(sizeof(PartRange))), 64) * 64;
}

template <int P>
PartRange packed_range(const TilePass& pass, const char* memory) {
  const PartRange* ranges = reinterpret_cast<const PartRange*>(memory + pass.panels() * pass.steps() * P * kBlockBytes);
  PartRange range;
  for (int64_t panel = 0; panel < pass.panels(); ++panel) range.add(ranges[panel]);
  return range;
}

template <int P>
PartRange pack_filters(const TilePass& pass, char* memory) {
  const int64_t panel_bytes = pass.steps() * P * kBlockBytes;
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + pass.panels() * panel_bytes);
  parallel_for(pass.panels(), max(1, 16 / max(1, pass.steps())), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      ranges[panel] = pack_filter_panel<P>(pass, panel, memory + panel * panel_bytes);
  });
  return packed_range<P>(pass, memory);
}

// ------------------------------------------------------------------------------------- product

struct TileRange {
  int64_t begin, end;
};

template <int P>
void multiply_block(const TilePass& pass, const char* filters, const char* planes, TileRange panels, TileRange tiles,
                    float* sums) {
  constexpr int64_t kChunk = kStepChunk;
  const int64_t steps = pass.steps(), panel_bytes = steps * P * kBlockBytes;
  const TileScope scope;
  for (int64_t s = 0; s < steps; s += kChunk) {
    const int64_t n = min(kChunk, steps - s);
    const int64_t next_lines = s + kChunk < steps ? min(kChunk, steps - s - kChunk) * P * kBlockBytes / 64 : 0;
    const int64_t lines = ceil_div(next_lines, tiles.end - tiles.begin);  // of the next chunk of weights, a tile
    float* block = sums;
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const TileStream b{filters + panel * panel_bytes, pass.weight_steps, 64, kTileBytes, kBlockBytes};
      for (int64_t tile = tiles.begin; tile < tiles.end; ++tile, block += kSumsPerBlock) {
        const TileSpan span(pass, tile);
        const TileStream a{planes + span.begin * kLineBytes, pass.plane_steps, kLineBytes, kTileBytes,
                           pass.planes.part_bytes()};
        tile_block<P>(a, b, s, n, span.end - span.begin > 16, pass.m - panel * kBlock > 16, block, s == 0,
                      {nullptr, b.base + (s + kChunk) * P * kBlockBytes + (tile - tiles.begin) * lines * 64, 0, lines});
      }
    }
  }
}

template <int P>
void run_block(const TilePass& pass, const char* filters, const char* planes, TileRange panels, TileRange tiles,
               float* sums) {
  const int64_t blocks = (panels.end - panels.begin) * (tiles.end - tiles.begin);
  if (pass.steps() == 0) fill_zero(sums, blocks * kSumsPerBlock);
  multiply_block<P>(pass, filters, planes, panels, tiles, sums);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel, sums += (tiles.end - tiles.begin) * kSumsPerBlock)
    if (pass.out.dtype == DType::Float32) {
      (pass.pixel_elements ? store_pixels<float> : store_tiles<float>)(pass, sums, panel * kBlock, tiles.begin,
                                                                       tiles.end);
    } else {
      (pass.pixel_elements ? store_pixels<bfloat16> : store_tiles<bfloat16>)(pass, sums, panel * kBlock, tiles.begin,
                                                                             tiles.end);
    }
}

template <int P>
void run_images(const TilePass& pass, const char* filters, const char* planes) {
  const int64_t products = pass.panels() * pass.tiles() * pass.steps() * (P * (P + 1) / 2);
  const int64_t wanted = products < kSerialProducts ? 1 : min(kTasks, products / kTaskProducts);
  int64_t panels = even_piece(pass.panels(), kBlockFilters, 1), tiles = even_piece(pass.tiles(), kBlockTiles, 1);
  const auto tasks = [&] { return ceil_div(pass.panels(), panels) * ceil_div(pass.tiles(), tiles); };
  while (tasks() < wanted && panels * tiles > 1) (panels > tiles ? panels : tiles) = ceil_div(max(panels, tiles), 2);
  const int64_t panel_blocks = ceil_div(pass.panels(), panels);
  parallel_for(tasks(), 1, [&](int64_t begin, int64_t end) {
    float* sums =
        static_cast<float*>(thread_scratch(Scratch::GemmA, size_t(panels * tiles * kSumsPerBlock) * sizeof(float)));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task % panel_blocks * panels, j = task / panel_blocks * tiles;
      run_block<P>(pass, filters, planes, {i, min(i + panels, pass.panels())}, {j, min(j + tiles, pass.tiles())}, sums);
    }
  });
}

// --------------------------------------------------------------------------------- whole operation

// What a pass is, before it is laid out in memory. Weight offsets count elements.
struct PassPlan {
  Planes planes;
  int64_t row_taps, column_taps, m;
  int64_t group_weights, filter_stride, channel_stride;  // between groups, results' and source's channels
  int64_t first_tap, row_tap, column_tap;                // offset of tap (0, 0), steps from tap to tap
  OutputAxis rows, columns;

  int64_t step_columns(bool folded) const {
    return folded ? ceil_div(planes.channels * column_taps, kStepK) : ceil_div(planes.channels, kStepK) * column_taps;
  }
  bool folded() const { return 4 * step_columns(true) < 3 * step_columns(false); }
  // Whether planes for every tap save a third of the tiles, for enough filters to pay for them.
  bool unrolls(const TilePlanes& tiles, int64_t images) const {
    if (tiles.folded || m < 2 * kBlock || planes.rows.length * planes.columns.length > kUnrolledPlane) return false;
    const int64_t positions = (rows.count - 1) * planes.columns.length + columns.count;
    const int64_t plain = min(images * ceil_div(positions, kBlock),
                              ceil_div((images - 1) * planes.rows.length * planes.columns.length + positions, kBlock));
    return 3 * ceil_div(images * rows.count * columns.count, kBlock) < 2 * plain;
  }
  // How many times more multiply-adds the tiles make than the convolution has, in percent.
  int64_t waste() const {
    const int64_t taps = max(1, planes.channels * column_taps);
    return 100 * step_columns(folded()) * kStepK / taps * (ceil_div(m, 16) * 16) / max(1, m);
  }
};

inline bool suits_tiles(const ConvArgs& args, const PassPlan& plan) {
  const int64_t weights = args.groups * args.out_channels * args.in_channels * args.height.kernel * args.width.kernel;
  const TilePlanes planes = tile_planes(plan.planes, plan.column_taps, plan.columns.count, 0, args.groups,
                                        plan.folded(), PlaneForm::Lines, args.channels_last);
  if (weights > INT32_MAX || !image_fits(planes)) return false;
  if (args.dtype == DType::Float32) return plan.waste() <= 160;
  return args.dtype == DType::BFloat16 && plan.waste() <= 800;
}

// Where steps begin, and the weights they take.
struct StepTables {
  int64_t* plane_steps;
  int64_t* weight_steps;
  int32_t* weight_offsets;

  static int64_t bytes(int64_t steps) { return ceil_div(steps * (8 + 8 + 4 * kStepK), 64) * 64; }
  StepTables(char* memory, int64_t steps)
      : plane_steps(reinterpret_cast<int64_t*>(memory)),
        weight_steps(plane_steps + steps),
        weight_offsets(reinterpret_cast<int32_t*>(weight_steps + steps)) {}
};

template <int P>
void fill_tables(const PassPlan& plan, const TilePass& pass, const StepTables& tables) {
  const int64_t folds = pass.planes.folds();
  int64_t step = 0;
  for (int64_t group = 0; group < pass.planes.channel_groups(); ++group)
    for (int64_t row = 0; row < pass.row_taps; ++row)
      for (int64_t column = 0; column < pass.column_taps; ++column, ++step) {
        tables.plane_steps[step] = pass.planes.tap_phase(row, column) * pass.planes.phase_bytes() +
                                   group * pass.planes.group_bytes() + pass.planes.tap_shift(row, column) * kLineBytes;
        tables.weight_steps[step] = step * P * kBlockBytes;
        for (int64_t k = 0; k < kStepK; ++k) {
          const int64_t channel = group * kStepK + k, fold = pass.planes.folded ? channel % folds : column;
          const int64_t offset =
              plan.first_tap + row * plan.row_tap + fold * plan.column_tap + channel / folds * plan.channel_stride;
          tables.weight_offsets[step * kStepK + k] = channel < pass.planes.channels() ? int32_t(offset) : -1;
        }
      }
}

// One group. False: the parts of some images are not exact.
template <int P>
bool run_group(const ConvArgs& args, const PassPlan& plan, int64_t group) {
  const bool folded = plan.folded();
  const int64_t size = int64_t(item_size(args.dtype)), channel_elements = plan.rows.size * plan.columns.size;
  const int64_t first = group * plan.m, first_element = args.channels_last ? first : first * channel_elements;
  const auto at = [&](const void* p, int64_t element) {
    return p ? static_cast<const char*>(p) + element * size : nullptr;
  };
  TilePass pass{tile_planes(plan.planes, plan.column_taps, plan.columns.count, group, args.groups, folded,
                            PlaneForm::Lines, args.channels_last),
                plan.row_taps,
                folded ? min(1, plan.column_taps) : plan.column_taps,
                plan.m,
                at(args.weight, group * plan.group_weights),
                args.dtype,
                plan.filter_stride,
                nullptr,
                nullptr,
                nullptr,
                TileOutput{static_cast<char*>(args.out) + first_element * size, args.dtype, channel_elements, 1, false,
                           at(args.bias, first), nullptr, at(args.residual, first_element), args.activation},
                plan.rows,
                plan.columns,
                args.groups * plan.m * channel_elements,
                args.channels_last ? args.groups * plan.m : 0,
                plan.columns.count == plan.planes.columns.length && channel_elements % 16 == 0 &&
                    args.images * args.groups * plan.m * channel_elements * size > kStreamedBytes};
  if (plan.unrolls(pass.planes, args.images))
    unroll(pass.planes, plan.row_taps, plan.column_taps, plan.rows.count, plan.columns.count);
  set_slots<P>(pass.planes, args.images);
  const int64_t steps = pass.steps(), table_bytes = StepTables::bytes(steps);
  const int64_t filter_bytes = filters_bytes<P>(pass.panels(), steps);
  char* memory =
      static_cast<char*>(thread_scratch(Scratch::GemmB, size_t(table_bytes + (args.packed ? 0 : filter_bytes) +
                                                               (steps > 0 ? planes_bytes<P>(pass.planes) : 0))));
  const StepTables tables(memory, steps);
  pass.plane_steps = tables.plane_steps;
  pass.weight_steps = tables.weight_steps;
  pass.weight_offsets = tables.weight_offsets;
  fill_tables<P>(plan, pass, tables);
  const bool kept = args.packed != nullptr;
  char* filters = kept ? static_cast<char*>(args.packed) + group * filter_bytes : memory + table_bytes;
  char* planes = memory + table_bytes + (kept ? 0 : filter_bytes);
  const PartRange weight_range =
      kept && *args.packed_ready ? packed_range<P>(pass, filters) : pack_filters<P>(pass, filters);
  for (int64_t image = 0; image < args.images; image += pass.planes.slots) {
    pass.planes.first_image = image;
    pass.planes.images = min(pass.planes.slots, args.images - image);
    if (steps > 0) {
      const PartRange range = prepare_planes<P>(pass.planes, planes);
      if (P > 1 && !parts_are_exact(range, weight_range)) return false;
    }
    run_images<P>(pass, filters, planes);
  }
  return true;
}

bool run_plan(const ConvArgs& args, const PassPlan& plan) {
  for (int64_t group = 0; group < args.groups; ++group)
    if (!(args.dtype == DType::Float32 ? run_group<3>(args, plan, group) : run_group<1>(args, plan, group)))
      return false;
  if (args.packed) *args.packed_ready = true;
  return true;
}

PassPlan forward_plan(const ConvArgs& args) {
  const ConvAxis &h = args.height, &w = args.width;
  const int64_t taps = h.kernel * w.kernel, filter = args.in_channels * taps;
  return {{static_cast<const char*>(args.x), args.dtype, args.in_channels,
           plane_axis(h.input, h.stride, h.padding, h.dilation, h.kernel, h.output),
           plane_axis(w.input, w.stride, w.padding, w.dilation, w.kernel, w.output)},
          h.kernel,
          w.kernel,
          args.out_channels,
          args.out_channels * filter,
          filter,
          taps,
          0,
          w.kernel,
          1,
          {h.output, 0, 1, h.output},
          {w.output, 0, 1, w.output}};
}

PassPlan input_grad_plan(const ConvArgs& args, int64_t row, int64_t column) {
  const int64_t taps = args.height.kernel * args.width.kernel, filter = args.in_channels * taps;
  const GradPhase rows = grad_phase(args.height, row), columns = grad_phase(args.width, column);
  const bool none = rows.taps == 0 || columns.taps == 0;
  const int64_t width = args.width.kernel;
  return {{static_cast<const char*>(args.dy), args.dtype, args.out_channels, rows.plane, columns.plane},
          none ? 0 : rows.taps,
          none ? 0 : columns.taps,
          args.in_channels,
          args.out_channels * filter,
          taps,
          filter,
          none ? 0 : rows.kernel_index(0) * width + columns.kernel_index(0),
          -rows.period * width,
          -columns.period,
          rows.out,
          columns.out};
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
  const int64_t steps = plan.step_columns(plan.folded()) * plan.row_taps, panels = ceil_div(plan.m, kBlock);
  *request.bytes =
      args.groups * (args.dtype == DType::Float32 ? filters_bytes<3>(panels, steps) : filters_bytes<1>(panels, steps));
}

bool input_grad_by_tiles(const ConvArgs& args) {
  const int64_t row_phases = min(args.height.stride, args.height.input);
  const int64_t column_phases = min(args.width.stride, args.width.input);
  for (int64_t row = 0; row < row_phases; ++row)
    for (int64_t column = 0; column < column_phases; ++column) {
      const PassPlan plan = input_grad_plan(args, row, column);
      if (!suits_tiles(args, plan) || !run_plan(args, plan)) return false;
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
