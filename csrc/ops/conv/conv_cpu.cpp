// Convolution on the CPU, forward and input gradient: one matrix product per image and group,
//
//   out[o, pixels] = sum over p = (channel, tap row, tap column) of weight[o, p] * source[pixels + offset(p)]
//
// by the engine's outer tile, which takes B's rows by offset: patches are never written out (im2col).
// The source is used in place when there is no padding, stride or cast, else copied once into planes
// (planes_cpu.h). The gradient of the input is the same product for each residue class of the output
// positions modulo the stride, with the taps of that class in reverse order and channels swapped.
// Parallel over images, groups, bands of rows and, when that is little, blocks of output channels.
#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/epilogue.h"
#include "ops/conv/channels_last_cpu.h"
#include "ops/conv/conv.h"
#include "ops/conv/depthwise_cpu.h"
#include "ops/conv/planes_cpu.h"
#include "ops/conv/winograd_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kTaskWork = int64_t(1) << 20;  // multiply-adds that pay for a task
constexpr int64_t kBandWork = int64_t(1) << 24;  // an image of more is cut into bands of rows
constexpr int64_t kBandPixels = 64;              // at least, in a band
constexpr int64_t kTasks = 8;                    // wanted, at least
constexpr int64_t kDepth = 256;                  // k is summed in blocks that leave the planes in cache

template <class T>
struct Pass {
  int64_t images, groups;
  int64_t m, k;          // output channels of a group; channels * taps
  const T* weights;      // [groups][m][k]
  const T* bias;         // [groups][m] or null
  const char* residual;  // of out's layout, or null; then steps are 1
  Activation activation;
  Planes planes;
  int64_t row_taps, column_taps;
  char* out;
  DType out_dtype;
  OutputAxis rows, columns;

  bool in_place() const {
    const PlaneAxis &r = planes.rows, &c = planes.columns;
    return kMaskedLoads && planes.dtype == dtype_of<T>() && r.step == 1 && c.step == 1 && r.pad == 0 && c.pad == 0 &&
           r.length <= r.source && c.length == c.source;
  }
  bool has_epilogue() const { return residual != nullptr || activation != Activation::None; }
  bool direct_output() const { return out_dtype == dtype_of<T>() && rows.step == 1 && columns.step == 1; }
};

// How a pass is cut into tasks, and what its tasks share.
struct Grid {
  int64_t band_rows, bands;
  int64_t block_channels, blocks;
  int64_t units, units_per_task;
  int64_t pitch;           // elements between planes
  const int64_t* offsets;  // [k]
};

template <class T>
Grid make_grid(const Pass<T>& pass, int64_t* offsets) {
  const int64_t row_work = max(1, pass.m * pass.k * pass.columns.count), work = row_work * pass.rows.count;
  int64_t band_rows = pass.rows.count;
  if (work > kBandWork)
    band_rows = even_piece(band_rows, max(max(1, kBandWork / row_work), ceil_div(kBandPixels, pass.columns.count)), 1);
  const int64_t bands = ceil_div(pass.rows.count, band_rows), parts = pass.images * pass.groups * bands;
  int64_t block_channels = pass.m;
  if (parts < kTasks && band_rows * row_work > 2 * kTaskWork)
    block_channels = even_piece(pass.m, ceil_div(pass.m * parts, kTasks), Tile<T>::kRows);
  const int64_t blocks = ceil_div(pass.m, block_channels);
  const int64_t unit_work = max(1, band_rows * row_work / blocks);
  const PlaneAxis& rows = pass.planes.rows;
  const int64_t plane_rows = pass.in_place() ? rows.source : band_rows + rows.length - pass.rows.count;
  const int64_t pitch = plane_rows * pass.planes.columns.length;
  int64_t* next = offsets;
  for (int64_t channel = 0; channel < pass.planes.channels; ++channel)
    for (int64_t i = 0; i < pass.row_taps; ++i)
      for (int64_t j = 0; j < pass.column_taps; ++j) *next++ = tap_offset(pass.planes, channel, i, j, pitch);
  return {band_rows, bands, block_channels, blocks, parts * blocks, max(1, kTaskWork / unit_work), pitch, offsets};
}

// A run of valid columns of a tile, and where it goes within a channel of the results.
struct Segment {
  int begin, count;
  int64_t target;
};

// The results of a unit: [channels][rows][columns], `channel_pitch` and `row_pitch` elements apart.
template <class T>
struct Results {
  T* data;
  int64_t channel_pitch, row_pitch;
};

// The segments of the tile at `position` of the gapped rows; returns their number.
inline int find_segments(int64_t position, int columns, int64_t plane_columns, int64_t out_columns, int64_t row_pitch,
                         Segment* segments) {
  int count = 0;
  for (int at = 0; at < columns;) {
    const int64_t row = (position + at) / plane_columns, column = (position + at) % plane_columns;
    const int run = int(min(columns - at, plane_columns - column));
    const int valid = int(min(run, out_columns - column));
    if (valid > 0) segments[count++] = {at, valid, row * row_pitch + column};
    at += run;
  }
  return count;
}

template <class T>
void put_segment(const T* block, const Segment& segment, T* target, bool accumulate, T bias) {
  constexpr int kLanes = Vec<T>::size;
  const Vec<T> added = Vec<T>::broadcast(bias);
  for (int e = 0; e < segment.count; e += kLanes) {
    const int count = segment.count - e;
    const Vec<T> sum = Vec<T>::load(block + segment.begin + e);
    if (count >= kLanes) {
      (sum + (accumulate ? Vec<T>::load(target + e) : added)).store(target + e);
    } else {
      (sum + (accumulate ? Vec<T>::load(target + e, count) : added)).store(target + e, count);
    }
  }
}

// What follows the sums, on `n` finished ones whose place in the output is `out`.
template <class T>
void finish_row(const Pass<T>& pass, const char* out, T* row, int64_t n) {
  if (pass.residual) {
    const char* residual = pass.residual + (out - pass.out);
    T added[kRowChunk];
    for (int64_t begin = 0; begin < n; begin += kRowChunk) {
      const int64_t count = min(kRowChunk, n - begin);
      FASTNN_LEVEL::load_row(added, residual + begin * int64_t(item_size(pass.out_dtype)), pass.out_dtype, 1, count);
      for (int64_t i = 0; i < count; ++i) row[begin + i] += added[i];
    }
  }
  if (pass.activation != Activation::None) activate_row(pass.activation, row, n);
}

// Channels [channel, channel_end) of a group for `rows` rows of outputs, from planes.
template <class T>
void multiply(const Pass<T>& pass, const Grid& grid, int64_t group, int64_t channel, int64_t channel_end, int64_t rows,
              const T* planes, const Results<T>& results) {
  constexpr int kRows = Tile<T>::kRows, kColumns = Tile<T>::kColumns, kLanes = Vec<T>::size;
  int64_t plane_columns = pass.planes.columns.length, out_columns = pass.columns.count;
  if (plane_columns == out_columns && results.row_pitch == out_columns)  // no gaps: one long row
    plane_columns = out_columns = rows * out_columns, rows = 1;
  const int64_t positions = (rows - 1) * plane_columns + out_columns;
  const int64_t depth = even_piece(max(1, pass.k), kDepth, 1);
  const int64_t height = even_piece(channel_end - channel, kRows, 1);  // no tile of one row left over
  const bool finishes = pass.has_epilogue() && pass.direct_output();
  alignas(64) T block[kRows * kColumns + kLanes];
  Segment segments[kColumns];
  for (int64_t p = 0; p == 0 || p < pass.k; p += depth)
    for (int64_t position = 0; position < positions; position += kColumns) {
      const int columns = int(min(kColumns, positions - position));
      const int n_segments = find_segments(position, columns, plane_columns, out_columns, results.row_pitch, segments);
      for (int64_t o = channel; o < channel_end; o += height) {
        const int tile_rows = int(min(height, channel_end - o));
        FASTNN_LEVEL::gemm_outer_tile(
            OuterTile<T>{pass.weights + (group * pass.m + o) * pass.k + p, pass.k, 1, planes + position,
                         grid.offsets + p, min(depth, pass.k - p), tile_rows,
                         kMaskedLoads ? columns : int(ceil_div(columns, kLanes) * kLanes)},
            block);
        for (int r = 0; r < tile_rows; ++r) {
          const T bias = pass.bias ? pass.bias[group * pass.m + o + r] : T(0);
          T* target = results.data + (o - channel + r) * results.channel_pitch;
          for (int s = 0; s < n_segments; ++s) {
            T* const out = target + segments[s].target;
            put_segment(block + r * kColumns, segments[s], out, p > 0, bias);
            if (finishes && p + depth >= pass.k)
              finish_row(pass, reinterpret_cast<const char*>(out), out, segments[s].count);
          }
        }
      }
    }
}

// Rounds and spreads dense results [channels][rows][columns] to their places in the output.
template <class T>
void deliver(const Pass<T>& pass, T* results, int64_t channels, int64_t rows, char* out) {
  const int64_t size = int64_t(item_size(pass.out_dtype));
  const int64_t row_step = pass.rows.step * pass.columns.size, columns = pass.columns.count;
  for (int64_t c = 0; c < channels; ++c, out += pass.rows.size * pass.columns.size * size) {
    if (pass.has_epilogue()) finish_row(pass, out, results, rows * columns);
    if (columns == 1) {
      FASTNN_LEVEL::store_row(out, pass.out_dtype, row_step, results, rows);
      results += rows;
      continue;
    }
    for (int64_t r = 0; r < rows; ++r, results += columns)
      FASTNN_LEVEL::store_row(out + r * row_step * size, pass.out_dtype, pass.columns.step, results, columns);
  }
}

template <class T>
void run_unit(const Pass<T>& pass, const Grid& grid, int64_t unit) {
  const int64_t channel = unit % grid.blocks * grid.block_channels, rest = unit / grid.blocks;
  const int64_t channel_end = min(channel + grid.block_channels, pass.m);
  const int64_t row = rest % grid.bands * grid.band_rows, image_group = rest / grid.bands;
  const int64_t rows = min(grid.band_rows, pass.rows.count - row), halo = pass.planes.rows.length - pass.rows.count;
  const int64_t channels = channel_end - channel, group = image_group % pass.groups;

  const int64_t plane_elements =
      pass.in_place() ? 0 : ceil_div(pass.planes.plane_count() * grid.pitch, 16) * 16 + Tile<T>::kColumns;
  const int64_t result_elements = pass.direct_output() ? 0 : channels * rows * pass.columns.count;
  T* scratch =
      static_cast<T*>(thread_scratch(Scratch::Operation, size_t(plane_elements + result_elements) * sizeof(T)));
  const T* planes = scratch;
  const int64_t first_channel = image_group * pass.planes.channels;
  if (pass.in_place()) {
    planes = reinterpret_cast<const T*>(pass.planes.source_channel(first_channel)) + row * pass.planes.columns.length;
  } else if (pass.k > 0) {
    copy_planes(pass.planes, first_channel, row, row + rows + halo, scratch, grid.pitch);
  }

  const int64_t out_plane = pass.rows.size * pass.columns.size;
  char* out = pass.out + ((image_group * pass.m + channel) * out_plane +
                          (pass.rows.first + row * pass.rows.step) * pass.columns.size + pass.columns.first) *
                             int64_t(item_size(pass.out_dtype));
  if (pass.direct_output())
    return multiply(pass, grid, group, channel, channel_end, rows, planes,
                    Results<T>{reinterpret_cast<T*>(out), out_plane, pass.columns.size});
  T* results = scratch + plane_elements;
  multiply(pass, grid, group, channel, channel_end, rows, planes,
           Results<T>{results, rows * pass.columns.count, pass.columns.count});
  deliver(pass, results, channels, rows, out);
}

template <class T>
void run_pass(const Pass<T>& pass, int64_t* offsets) {
  const Grid grid = make_grid(pass, offsets);
  parallel_for(grid.units, grid.units_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) run_unit(pass, grid, unit);
  });
}

// What the calling thread prepares for all tasks: `count` elements of T after `n_offsets` offsets.
template <class T>
struct Shared {
  int64_t* offsets;
  T* elements;

  Shared(int64_t n_offsets, int64_t count) {
    const int64_t offset_bytes = ceil_div(n_offsets * 8, 64) * 64;
    char* memory =
        static_cast<char*>(thread_scratch(Scratch::OperationShared, size_t(offset_bytes + count * int64_t(sizeof(T)))));
    offsets = reinterpret_cast<int64_t*>(memory);
    elements = reinterpret_cast<T*>(memory + offset_bytes);
  }
};

// ------------------------------------------------------------------------------------- forward

template <class T>
void forward_typed(const ConvArgs& args) {
  const ConvAxis &h = args.height, &w = args.width;
  const int64_t filters = args.groups * args.out_channels, k = args.in_channels * h.kernel * w.kernel;
  const bool cast = args.dtype != dtype_of<T>();
  const Shared<T> shared(k, cast ? filters * k + filters : 0);
  const T* weights = static_cast<const T*>(args.weight);
  const T* bias = static_cast<const T*>(args.bias);
  if (cast) {
    T* widened_bias = shared.elements + filters * k;
    FASTNN_LEVEL::load_row(shared.elements, args.weight, args.dtype, 1, filters * k);
    if (args.bias) FASTNN_LEVEL::load_row(widened_bias, args.bias, args.dtype, 1, filters);
    weights = shared.elements;
    bias = args.bias ? widened_bias : nullptr;
  }
  const Planes planes{static_cast<const char*>(args.x), args.dtype, args.in_channels,
                      plane_axis(h.input, h.stride, h.padding, h.dilation, h.kernel, h.output),
                      plane_axis(w.input, w.stride, w.padding, w.dilation, w.kernel, w.output)};
  run_pass(Pass<T>{args.images,
                   args.groups,
                   args.out_channels,
                   k,
                   weights,
                   bias,
                   static_cast<const char*>(args.residual),
                   args.activation,
                   planes,
                   h.kernel,
                   w.kernel,
                   static_cast<char*>(args.out),
                   args.dtype,
                   {h.output, 0, 1, h.output},
                   {w.output, 0, 1, w.output}},
           shared.offsets);
}

// ---------------------------------------------------------------------------------- input grad

// weight[o, i, taps of the phase] for one input channel, as [o][taps in reverse].
template <class T>
void gather_taps(const ConvArgs& args, const GradPhase& rows, const GradPhase& columns, int64_t group, int64_t i,
                 T* out) {
  constexpr int64_t kRun = 256;
  T run[kRun];
  const int64_t taps = rows.taps * columns.taps, kernel = args.height.kernel * args.width.kernel;
  const int64_t filter = args.in_channels * kernel;
  for (int64_t a = 0; a < rows.taps; ++a)
    for (int64_t b = 0; b < columns.taps; ++b)
      for (int64_t first = 0; first < args.out_channels; first += kRun) {
        const int64_t count = min(kRun, args.out_channels - first);
        const int64_t index = (group * args.out_channels + first) * filter + i * kernel +
                              rows.kernel_index(a) * args.width.kernel + columns.kernel_index(b);
        FASTNN_LEVEL::load_row(run, static_cast<const char*>(args.weight) + index * int64_t(item_size(args.dtype)),
                               args.dtype, filter, count);
        for (int64_t o = 0; o < count; ++o) out[(first + o) * taps + a * columns.taps + b] = run[o];
      }
}

// The same for all input channels, [group][i][o, taps]: the weights of the pass.
template <class T>
void swap_channels(const ConvArgs& args, const GradPhase& rows, const GradPhase& columns, T* out) {
  const int64_t k = args.out_channels * rows.taps * columns.taps;
  parallel_for(args.groups * args.in_channels, max(1, 65536 / max(1, k)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      gather_taps(args, rows, columns, row / args.in_channels, row % args.in_channels, out + row * k);
  });
}

template <class T>
void input_grad_phase(const ConvArgs& args, const GradPhase& rows, const GradPhase& columns) {
  const int64_t k = args.out_channels * rows.taps * columns.taps;
  const Shared<T> shared(k, args.groups * args.in_channels * k);
  swap_channels(args, rows, columns, shared.elements);
  const Planes planes{static_cast<const char*>(args.dy), args.dtype, args.out_channels, rows.plane, columns.plane};
  run_pass(Pass<T>{args.images, args.groups, args.in_channels, k, shared.elements, nullptr, nullptr, Activation::None,
                   planes, rows.taps, columns.taps, static_cast<char*>(args.out), args.dtype, rows.out, columns.out},
           shared.offsets);
}

template <class T>
void input_grad_typed(const ConvArgs& args) {
  const ConvAxis &h = args.height, &w = args.width;
  for (int64_t row = 0; row < min(h.stride, h.input); ++row)
    for (int64_t column = 0; column < min(w.stride, w.input); ++column)
      input_grad_phase<T>(args, grad_phase(h, row), grad_phase(w, column));
}

void forward(const ConvArgs& args) {
  if (args.channels_last) return FASTNN_LEVEL::conv_through_planes(args, ConvPass::Forward, forward);
  if (FASTNN_LEVEL::depthwise_forward(args) || FASTNN_LEVEL::winograd_forward(args)) return;
  return args.dtype == DType::Float64 ? forward_typed<double>(args) : forward_typed<float>(args);
}
void input_grad(const ConvArgs& args) {
  if (args.channels_last) return FASTNN_LEVEL::conv_through_planes(args, ConvPass::InputGrad, input_grad);
  if (FASTNN_LEVEL::depthwise_input_grad(args) || FASTNN_LEVEL::winograd_input_grad(args)) return;
  return args.dtype == DType::Float64 ? input_grad_typed<double>(args) : input_grad_typed<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(conv_forward, forward)
FASTNN_CPU_KERNEL(conv_input_grad, input_grad)

}  // namespace fastnn
