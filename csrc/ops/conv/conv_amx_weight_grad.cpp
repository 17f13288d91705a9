// Convolution on AMX tiles, weight gradient: per group, for each tap a product along the positions of all images,
//
//   dw[o, c, tap] = sum over positions of dy[o, position] * x[c, position + shift(tap)]
//
// A's rows are filters: dy is packed as [panel of 32 filters][step of 32 positions], at the pitch of x's planes,
// with zeros in the gaps. B's rows are pairs of positions of x (planes_amx.h). A block of sums is one panel of
// filters, one group of 32 channels and one tap. A task takes some panels and groups with all taps, and a part
// of the steps: dy and x of a chunk of steps stay in the second-level cache while all taps pass. Tasks of different
// steps have sums of their own, which are added in order.
#include "ops/conv/planes_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kChunk = 16;                         // steps; of one panel and three parts 96 KiB
constexpr int64_t kTaskBlocks = 72;                    // of 4 KiB sums: 288 KiB
constexpr int64_t kTasks = 8;                          // wanted, at least
constexpr int64_t kSplitProducts = 2048;               // of 32 x 32 x 32: pay for a split of the steps
constexpr int64_t kGradientBytes = int64_t(12) << 20;  // of packed dy: more images are taken in turns

struct WeightPass {
  TilePlanes x;
  int64_t row_taps, column_taps;  // column_taps is 1 when they are folded into channels
  const char* dy;                 // of the group's first channel
  DType dtype;
  int64_t filters, all_filters;  // of the group, of all groups
  int64_t out_rows, out_columns;

  int64_t taps() const { return row_taps * column_taps; }
  int64_t positions() const { return (out_rows - 1) * x.planes.columns.length + out_columns; }
  int64_t image_steps() const { return ceil_div(positions(), kStepK); }
  int64_t panels() const { return ceil_div(filters, kBlock); }
  int64_t groups() const { return x.channel_groups(); }
  template <int P>
  int64_t panel_bytes() const {
    return x.slots * image_steps() * P * kBlockBytes;
  }
};

// --------------------------------------------------------------------------------- packing of dy

// Rows of one filter and image at the pitch of x's planes; zeros between them.
template <class T>
void load_gapped(const WeightPass& pass, int64_t image, int64_t filter, T* plane) {
  const int64_t pitch = pass.x.planes.columns.length, area = pass.out_rows * pass.out_columns;
  const T* source =
      reinterpret_cast<const T*>(pass.dy) + ((pass.x.first_image + image) * pass.all_filters + filter) * area;
  for (int64_t i = 0; i < pass.out_rows; ++i, plane += pitch, source += pass.out_columns) {
    const int64_t gap = i + 1 < pass.out_rows ? pitch - pass.out_columns : 0;
    memcpy(plane, source, size_t(pass.out_columns) * sizeof(T));
    for (int64_t e = 0; e < gap; ++e) plane[pass.out_columns + e] = T{};
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
PartRange pack_gradient_of(const WeightPass& pass, char* memory, PartRange* ranges) {
  const int64_t n = pass.panels() * pass.x.images, steps = pass.image_steps();
  parallel_for(n, max(1, 16 / steps), [&](int64_t begin, int64_t end) {
    T* plane = static_cast<T*>(thread_scratch(Scratch::Operation, size_t(steps * kStepK) * sizeof(T)));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t panel = unit / pass.x.images, image = unit % pass.x.images;
      char* target = memory + panel * pass.panel_bytes<P>() + image * steps * P * kBlockBytes;
      RangeLanes range;
      if (pass.x.channels_last) {
        for (int64_t s = 0; s < 2 * steps; ++s)
          pack_pixels<P, T>(pass, image, panel * kBlock + s % 2 * 16, s / 2 * kStepK,
                            target + s / 2 * P * kBlockBytes + s % 2 * kTileBytes, range);
        ranges[unit] = range.finish();
        continue;
      }
      __m512i parts[P];
      for (int64_t r = 0; r < kBlock; ++r, target += r == 16 ? kTileBytes - 15 * 64 : 64) {
        const int64_t filter = panel * kBlock + r, valid = filter < pass.filters ? pass.positions() : 0;
        if (valid) load_gapped(pass, image, filter, plane);
        for (int64_t s = 0; s < steps; ++s) {
          const int64_t rest = valid - s * kStepK;
          load_along<P, T>(reinterpret_cast<const char*>(plane + s * kStepK), lane_mask(rest), lane_mask(rest - 16),
                           parts, range);
          store_parts<P>(target + s * P * kBlockBytes, kBlockBytes, parts);
        }
      }
      ranges[unit] = range.finish();
    }
  });
  PartRange range;
  for (int64_t unit = 0; unit < n; ++unit) range.add(ranges[unit]);
  return range;
}

template <int P>
PartRange pack_gradient(const WeightPass& pass, char* memory) {
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + pass.panels() * pass.panel_bytes<P>());
  return pass.dtype == DType::Float32 ? pack_gradient_of<P, float>(pass, memory, ranges)
                                      : pack_gradient_of<P, bfloat16>(pass, memory, ranges);
}

template <int P>
int64_t gradient_bytes(const WeightPass& pass) {
  const int64_t n_ranges = pass.panels() * pass.x.slots;
  return ceil_div(pass.panels() * pass.panel_bytes<P>() + n_ranges * int64_t(sizeof(PartRange)), 64) * 64;
}

// --------------------------------------------------------------------------------------- product

// How blocks of sums and steps are dealt to tasks. Sums lie as [task][panel][group][tap].
struct WeightGrid {
  int64_t panels, groups;              // of a task
  int64_t panel_blocks, group_blocks;  // of the operation
  int64_t splits;                      // of the steps

  int64_t tasks() const { return panel_blocks * group_blocks * splits; }
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
  grid.splits = max(1, min(min(ceil_div(kTasks, blocks), products / kSplitProducts), steps / kChunk));
  return grid;
}

// What the tasks share. Tables hold offsets of steps in a panel of dy, and of positions in x.
struct WeightMemory {
  const char *dy, *x;
  float* sums;
  const int64_t *dy_steps, *x_steps;
};

template <int P>
void run_task(const WeightPass& pass, const WeightGrid& grid, const WeightMemory& memory, int64_t task, bool first) {
  const int64_t split = task % grid.splits, block = task / grid.splits;
  const int64_t panel = block / grid.group_blocks * grid.panels, group = block % grid.group_blocks * grid.groups;
  const int64_t panel_end = min(panel + grid.panels, pass.panels()),
                group_end = min(group + grid.groups, pass.groups());
  const int64_t steps = pass.x.images * pass.image_steps();
  const int64_t begin = steps * split / grid.splits, end = steps * (split + 1) / grid.splits;
  float* sums = memory.sums + task * grid.panels * grid.groups * pass.taps() * kSumsPerBlock;
  if (first && begin == end) fill_zero(sums, grid.panels * grid.groups * pass.taps() * kSumsPerBlock);
  const TileScope scope;
  for (int64_t s = begin; s < end; s += kChunk)
    for (int64_t g = group; g < group_end; ++g)
      for (int64_t tap = 0; tap < pass.taps(); ++tap) {
        const int64_t row = tap / pass.column_taps, column = tap % pass.column_taps;
        const int64_t shift = pass.x.tap_shift(row, column), parity = pass.x.parities > 1 ? shift % 2 : 0;
        const TileStream b{memory.x + parity * pass.x.parity_bytes() +
                               pass.x.tap_phase(row, column) * pass.x.phase_bytes() + 2 * g * pass.x.group_bytes() +
                               (shift - parity) / 2 * kLineBytes,
                           memory.x_steps, kLineBytes, pass.x.group_bytes(), pass.x.part_bytes()};
        for (int64_t i = panel; i < panel_end; ++i) {
          const TileStream a{memory.dy + i * pass.panel_bytes<P>(), memory.dy_steps, 64, kTileBytes, kBlockBytes};
          float* target = sums + (((i - panel) * grid.groups + g - group) * pass.taps() + tap) * kSumsPerBlock;
          tile_block<P>(a, b, s, min(kChunk, end - s), pass.filters - i * kBlock > 16,
                        pass.x.channels() - g * kStepK > 16, target, first && s == begin);
        }
      }
}

// --------------------------------------------------------------------------------------- results

// Adds up the splits of one panel, group and tap, and scatters rows of channels into dw.
template <class T>
void store_tap(const WeightPass& pass, const WeightGrid& grid, const float* sums, int64_t split_pitch, int64_t panel,
               int64_t group, int64_t tap, int64_t kernel, T* dw) {
  alignas(64) int32_t offsets[kStepK];
  const int64_t folds = pass.x.folds();
  for (int64_t k = 0; k < kStepK; ++k) {
    const int64_t channel = group * kStepK + k, fold = channel % folds;
    const int64_t row = tap / pass.column_taps, column = pass.x.folded ? fold : tap % pass.column_taps;
    const int64_t row_pitch = pass.x.folded ? folds : pass.column_taps;
    offsets[k] = int32_t(channel / folds * kernel + row * row_pitch + column);
  }
  const int64_t channels = min(kStepK, pass.x.channels() - group * kStepK);
  const int64_t filter = pass.x.planes.channels * kernel;
  for (int64_t r = 0; r < min(kBlock, pass.filters - panel * kBlock); ++r)
    for (int64_t half = 0; half < 2 && 16 * half < channels; ++half) {
      const float* lanes = sums + r / 16 * 512 + half * 256 + r % 16 * 16;
      __m512 x = _mm512_load_ps(lanes);
      for (int64_t split = 1; split < grid.splits; ++split)
        x = _mm512_add_ps(x, _mm512_load_ps(lanes + split * split_pitch));
      const __mmask16 mask = lane_mask(channels - 16 * half);
      T* target = dw + (panel * kBlock + r) * filter;
      if constexpr (sizeof(T) == 4) {
        _mm512_mask_i32scatter_ps(target, mask, _mm512_load_si512(offsets + 16 * half), x, 4);
      } else {
        alignas(64) float values[16];
        _mm512_store_ps(values, x);
        for (int64_t c = 0; c < min(16, channels - 16 * half); ++c)
          target[offsets[16 * half + c]] = to_bfloat16(values[c]);
      }
    }
}

template <class T>
void store_gradient(const WeightPass& pass, const WeightGrid& grid, const float* sums, int64_t kernel, T* dw) {
  const int64_t block_floats = grid.panels * grid.groups * pass.taps() * kSumsPerBlock;
  parallel_for(pass.panels() * pass.groups(), max(1, 32 / pass.taps()), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t panel = unit / pass.groups(), group = unit % pass.groups();
      const int64_t block = panel / grid.panels * grid.group_blocks + group / grid.groups;
      const float* tile = sums + block * grid.splits * block_floats +
                          (panel % grid.panels * grid.groups + group % grid.groups) * pass.taps() * kSumsPerBlock;
      for (int64_t tap = 0; tap < pass.taps(); ++tap)
        store_tap(pass, grid, tile + tap * kSumsPerBlock, block_floats, panel, group, tap, kernel, dw);
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
  WeightPass pass{
      tile_planes(planes, w.kernel, w.output, group, args.groups, folded, PlaneForm::Pairs, args.channels_last),
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
template <int P>
bool run_group(const ConvArgs& args, int64_t group) {
  WeightPass pass = make_pass(args, group);
  set_slots<P>(pass.x, args.images);
  pass.x.slots = max(1, min(pass.x.slots, kGradientBytes * pass.x.slots / gradient_bytes<P>(pass)));
  const WeightGrid grid = make_grid<P>(pass, args.images);
  const int64_t max_steps = pass.x.slots * pass.image_steps(), table_bytes = ceil_div(max_steps * 16, 64) * 64;
  const int64_t sum_bytes =
      grid.tasks() * grid.panels * grid.groups * pass.taps() * kSumsPerBlock * int64_t(sizeof(float));
  char* memory = static_cast<char*>(thread_scratch(
      Scratch::GemmB, size_t(table_bytes + sum_bytes + gradient_bytes<P>(pass) + planes_bytes<P>(pass.x))));
  int64_t *dy_steps = reinterpret_cast<int64_t*>(memory), *x_steps = dy_steps + max_steps;
  for (int64_t s = 0; s < max_steps; ++s) {
    dy_steps[s] = s * P * kBlockBytes;
    x_steps[s] = (s / pass.image_steps() * pass.x.plane() + s % pass.image_steps() * kStepK) / 2 * kLineBytes;
  }
  float* sums = reinterpret_cast<float*>(memory + table_bytes);
  char *dy = memory + table_bytes + sum_bytes, *x = dy + gradient_bytes<P>(pass);
  for (int64_t image = 0; image < args.images; image += pass.x.slots) {
    pass.x.first_image = image;
    pass.x.images = min(pass.x.slots, args.images - image);
    const PartRange dy_range = pack_gradient<P>(pass, dy), x_range = prepare_planes<P>(pass.x, x);
    if (P > 1 && !parts_are_exact(dy_range, x_range)) return false;
    parallel_for(grid.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        run_task<P>(pass, grid, {dy, x, sums, dy_steps, x_steps}, task, image == 0);
    });
  }
  const int64_t kernel = args.height.kernel * args.width.kernel,
                first = group * args.out_channels * args.in_channels * kernel;
  if constexpr (P == 3) {
    store_gradient(pass, grid, sums, kernel, static_cast<float*>(args.out) + first);
  } else {
    store_gradient(pass, grid, sums, kernel, static_cast<bfloat16*>(args.out) + first);
  }
  return true;
}

bool run_groups(const ConvArgs& args) {
  for (int64_t group = 0; group < args.groups; ++group)
    if (!(args.dtype == DType::Float32 ? run_group<3>(args, group) : run_group<1>(args, group))) return false;
  return true;
}

void weight_grad(const ConvArgs& given) {
  const ConvArgs args = with_long_rows(given);
  if (!suits_tiles(args) || !run_groups(args)) call_level(conv_weight_grad, CpuLevel::Avx512, given);
}

}  // namespace

FASTNN_AMX_KERNEL(conv_weight_grad, weight_grad)

}  // namespace fastnn
