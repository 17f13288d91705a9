// Winograd's minimal filtering F(4 x 4, 3 x 3): float32 convolutions of 3 x 3 taps, stride and dilation 1, and their
// input gradients, in a quarter of the multiplications. A tile of 4 x 4 outputs reads 6 x 6 inputs d; with filter g
//
//   y = A^T [ sum over channels (G g G^T) * (B^T d B) ] A      (* element by element; 6 x 6)
//
// so that for each of the 36 positions there is a matrix product [filters x channels] [channels x tiles].
//
// Interpolation points 0, +-a, +-b and infinity with a = 5/8, b = 3/2. Error over the direct convolution's (Frobenius
// norm, normal data, 64 channels, simulated): 2.7 with these, 3.9 with 0, +-1, 2, -1/2 and 5.8 with the usual 0, +-1,
// +-2. It grows with the number of products in a sum (4.8 at 256), so channels are summed in blocks of kDepth: 2.8 to
// 3.3 measured from 64 to 512 channels. The error is relative to the largest values of a tile, not to each output. An
// infinity or a NaN would fill its whole tile: where a result is not finite the direct convolution computes all
// of them again.
//
// Layout. Tiles are numbered through all images and cut into blocks of at most kBlockTiles. Of a block
//   inputs   [36][panel][channel][kColumns tiles]  what the engine's outer tile reads as B
//   filters  [panel][36][channel][kRows filters]   what it reads as A
//   sums     [36][panel][kRows][kColumns]          of one panel of filters
// Transforms work on a vector of tiles: rows of the image are loaded as they lie and split into the four columns of
// a tile; the fifth and sixth are the next tile's first two, one lane further on.
//
// Cost for a tile: 36 C K multiply-adds instead of 144 C K, and to transform it 144 operations for each input channel
// and 130 for each filter. A task takes a block through all three steps (its inputs in the second-level cache, the
// filters streamed by). When there are few blocks, or one has too many channels for the cache, inputs are transformed
// first, kSplitBlocks at a time, and a task takes a panel of filters, transformed where it is used, over all of these.
// Transformed filters are not kept from call to call: four times the weights, they take as long to read.
#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/epilogue.h"
#include "gemm/pack_cpu.h"
#include "ops/conv/planes_cpu.h"
#include "ops/conv/winograd_cpu.h"
#include "simd/transpose.h"

namespace fastnn {
namespace {

using Lanes = Vec<float>;
constexpr int kLanes = Lanes::size, kRows = Tile<float>::kRows, kColumns = Tile<float>::kColumns;
constexpr int kOutputs = 4, kInputs = 6, kPositions = kInputs * kInputs, kTaps = 9;
constexpr int64_t kRun = kLanes - 1;  // tiles transformed at once: the last one's neighbour is needed too
constexpr int64_t kBlockTiles = 32;
constexpr int64_t kDepth = 64;         // channels in a sum
constexpr int64_t kPitchPadding = 32;  // between positions, lest 36 of them fall into one set of a cache
constexpr int64_t kFewestChannels = 16, kMostChannels = 1024, kFewestTiles = 12;
constexpr int64_t kFewBlocks = 5, kSplitBlocks = 8;
constexpr int64_t kBlockBytes = 5 << 18;                   // of a block's inputs, in the second-level cache
constexpr int64_t kChannelsAhead = 2, kLineElements = 16;  // prefetched
constexpr int64_t kTaskWork = int64_t(1) << 16;            // elements transformed that pay for a task

// The convolution, or the one that its input gradient is: out channels from in channels of source.
struct Filtering {
  int64_t images, in_channels, out_channels;
  const float* source;
  int64_t source_height, source_width;
  int64_t row_pad, column_pad;  // negative: source rows and columns left out
  const float* weights;
  int64_t filter_stride, channel_stride;  // of weights
  bool reversed;                          // taps
  const float* bias;
  const float* residual;
  Activation activation;
  float* out;
  int64_t out_height, out_width;

  int64_t tile_rows() const { return ceil_div(out_height, kOutputs); }
  int64_t tile_columns() const { return ceil_div(out_width, kOutputs); }
  int64_t tiles() const { return images * tile_rows() * tile_columns(); }
  int64_t block_tiles() const { return even_piece(tiles(), kBlockTiles, 1); }
  int64_t blocks() const { return ceil_div(tiles(), block_tiles()); }
  int64_t input_pitch(int64_t tiles) const {
    return ceil_div(tiles, kColumns) * in_channels * kColumns + kPitchPadding;
  }
  int64_t input_elements() const { return kPositions * input_pitch(kBlockTiles); }
  bool split() const { return blocks() < kFewBlocks || input_elements() * int64_t(sizeof(float)) > kBlockBytes; }

  int64_t panel_filters() const { return even_piece(out_channels, kRows, 1); }
  int64_t panels() const { return ceil_div(out_channels, panel_filters()); }
  int64_t filter_pitch() const { return in_channels * kRows + kPitchPadding; }
  int64_t panel_elements() const { return kPositions * filter_pitch(); }
};

constexpr int64_t kSumElements = kPositions * kBlockTiles * kRows;

bool suits(const ConvArgs& args) {
  const auto suitable = [](const ConvAxis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
  return args.winograd && args.dtype == DType::Float32 && args.groups == 1 && !args.channels_last &&
         suitable(args.height) && suitable(args.width) && min(args.in_channels, args.out_channels) >= kFewestChannels &&
         max(args.in_channels, args.out_channels) <= kMostChannels;
}

// Enough tiles for each filter, and no less than a third of their outputs are in the image.
bool worthwhile(const Filtering& f) {
  return f.tiles() >= kFewestTiles && 3 * f.images * f.out_height * f.out_width >= kOutputs * kOutputs * f.tiles();
}

Filtering forward_filtering(const ConvArgs& args) {
  const ConvAxis &h = args.height, &w = args.width;
  return {args.images,
          args.in_channels,
          args.out_channels,
          static_cast<const float*>(args.x),
          h.input,
          w.input,
          h.padding,
          w.padding,
          static_cast<const float*>(args.weight),
          args.in_channels * kTaps,
          kTaps,
          false,
          static_cast<const float*>(args.bias),
          static_cast<const float*>(args.residual),
          args.activation,
          static_cast<float*>(args.out),
          h.output,
          w.output};
}

Filtering input_grad_filtering(const ConvArgs& args) {
  const ConvAxis &h = args.height, &w = args.width;
  return {args.images,
          args.out_channels,
          args.in_channels,
          static_cast<const float*>(args.dy),
          h.output,
          w.output,
          2 - h.padding,
          2 - w.padding,
          static_cast<const float*>(args.weight),
          kTaps,
          args.in_channels * kTaps,
          true,
          nullptr,
          nullptr,
          Activation::None,
          static_cast<float*>(args.out),
          h.input,
          w.input};
}

// ---------------------------------------------------------------------------------- transforms

constexpr double kA = 5. / 8, kB = 3. / 2, kA2 = kA * kA, kB2 = kB * kB;

inline __attribute__((always_inline)) Lanes constant(double value) { return Lanes::broadcast(float(value)); }

// One axis of B^T d: six values to six.
inline __attribute__((always_inline)) void transform_input(const Lanes* d, Lanes* v) {
  const Lanes even_a = d[4] - constant(kB2) * d[2], odd_a = constant(kA) * (d[3] - constant(kB2) * d[1]);
  const Lanes even_b = d[4] - constant(kA2) * d[2], odd_b = constant(kB) * (d[3] - constant(kA2) * d[1]);
  v[0] = constant(kA2 * kB2) * d[0] + (d[4] - constant(kA2 + kB2) * d[2]);
  v[1] = even_a + odd_a;
  v[2] = even_a - odd_a;
  v[3] = even_b + odd_b;
  v[4] = even_b - odd_b;
  v[5] = constant(kA2 * kB2) * d[1] + (d[5] - constant(kA2 + kB2) * d[3]);
}

// One axis of G g: three taps to six.
inline __attribute__((always_inline)) void transform_filter(const Lanes* g, Lanes* u) {
  constexpr double kScaleA = 1 / (2 * kA2 * (kA2 - kB2)), kScaleB = 1 / (2 * kB2 * (kB2 - kA2));
  const Lanes even_a = constant(kScaleA) * g[0] + constant(kScaleA * kA2) * g[2], odd_a = constant(kScaleA * kA) * g[1];
  const Lanes even_b = constant(kScaleB) * g[0] + constant(kScaleB * kB2) * g[2], odd_b = constant(kScaleB * kB) * g[1];
  u[0] = constant(1 / (kA2 * kB2)) * g[0];
  u[1] = even_a + odd_a;
  u[2] = even_a - odd_a;
  u[3] = even_b + odd_b;
  u[4] = even_b - odd_b;
  u[5] = g[2];
}

// One axis of A^T m: six values to four outputs.
inline __attribute__((always_inline)) void transform_output(const Lanes* m, Lanes* y) {
  const Lanes even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + (even_a + even_b);
  y[1] = constant(kA) * odd_a + constant(kB) * odd_b;
  y[2] = constant(kA2) * even_a + constant(kB2) * even_b;
  y[3] = m[5] + (constant(kA * kA2) * odd_a + constant(kB * kB2) * odd_b);
}

// ------------------------------------------------------------------------------------- filters

// [36][channel][kRows] of one panel of filters.
void transform_panel(const Filtering& f, int64_t panel, float* target) {
  const int64_t first = panel * f.panel_filters(), filters = min(f.panel_filters(), f.out_channels - first);
  alignas(64) float taps[kTaps * kRows + kPanelPadding];
  for (int64_t c = 0; c < f.in_channels; ++c, target += kRows) {
    pack_transposed<kRows>(f.weights + first * f.filter_stride + c * f.channel_stride, f.filter_stride, kTaps,
                           int(filters), taps);
#pragma GCC unroll 4
    for (int lane = 0; lane < kRows; lane += kLanes) {
      Lanes half[kInputs][3];
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        Lanes g[3], u[kInputs];
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) {
          const int tap = 3 * i + j;
          g[i] = Lanes::load(taps + (f.reversed ? kTaps - 1 - tap : tap) * kRows + lane);
        }
        transform_filter(g, u);
#pragma GCC unroll 6
        for (int i = 0; i < kInputs; ++i) half[i][j] = u[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < kInputs; ++i) {
        Lanes u[kInputs];
        transform_filter(half[i], u);
#pragma GCC unroll 6
        for (int j = 0; j < kInputs; ++j) {
          float* const place = target + (i * kInputs + j) * f.filter_pitch() + lane;
          if (kRows - lane >= kLanes) {
            u[j].store(place);
          } else {
            u[j].store(place, kRows - lane);
          }
        }
      }
    }
  }
}

// -------------------------------------------------------------------------------------- inputs

// Tiles side by side in an image.
struct TileRun {
  int64_t image, row, column, count;
};

// The run that begins with tile number `tile`, of at most `limit`.
inline TileRun run_at(const Filtering& f, int64_t tile, int64_t limit) {
  const int64_t columns = f.tile_columns(), line = tile / columns, column = tile % columns;
  return {line / f.tile_rows(), line % f.tile_rows(), column, min(limit, columns - column)};
}

// Four vectors in a row of the source, zeros outside it.
struct RowLoad {
  int64_t position[kOutputs], count[kOutputs];
  bool shifted[kOutputs];
  LaneNumbers<float>::Type shift;

  RowLoad(int64_t begin, int64_t width) {
    for (int i = 0; i < kLanes; ++i) {
      const int64_t lane = i - (-begin) % kLanes;
      shift[i] = begin < 0 && lane < 0 ? kLanes : int(lane);
    }
    for (int j = 0; j < kOutputs; ++j, begin += kLanes) {
      position[j] = max(0, begin);
      count[j] = max(0, min(width, begin + kLanes) - position[j]);
      shifted[j] = begin < 0 && begin > -kLanes;
    }
  }
  inline __attribute__((always_inline)) Lanes load(const float* row, int j) const {
    const Lanes x = Lanes::load(row + position[j], count[j]);
    return shifted[j] ? shuffle(x, Lanes::zero(), shift) : x;
  }
};

inline __attribute__((always_inline)) Lanes next_lanes(Lanes x) {
  LaneNumbers<float>::Type next;
  for (int i = 0; i < kLanes; ++i) next[i] = i + 1;
  return shuffle(x, x, next);
}

// Channels [channel, channel_end) of a run; `target` is the run's first tile in channel 0 of position 0.
void transform_run(const Filtering& f, const TileRun& run, int64_t channel, int64_t channel_end, float* target,
                   int64_t position_pitch) {
  const RowLoad load(run.column * kOutputs - f.column_pad, f.source_width);
  const int64_t height = f.source_height, width = f.source_width, count = run.count;
  const int64_t top = run.row * kOutputs - f.row_pad, plane_size = height * width;
  const int64_t begin = max(0, top) * width + max(0, run.column * kOutputs - f.column_pad);
  const int64_t end = min(plane_size, begin + (kInputs - 1) * width + (count * kOutputs + 2));
  for (int64_t c = channel; c < channel_end; ++c) {
    const float* plane = f.source + (run.image * f.in_channels + c) * plane_size;
    Lanes half[kInputs][kInputs];
    for (int64_t i = begin; i < end; i += kLineElements) __builtin_prefetch(plane + kChannelsAhead * plane_size + i);
    for (int i = 0; i < kInputs; ++i) {
      const int64_t row = top + i;
      Lanes d[kInputs];
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j)
        d[j] = row >= 0 && row < height ? load.load(plane + row * width, j) : Lanes::zero();
      deinterleave(d[0], d[1]);
      deinterleave(d[2], d[3]);
      deinterleave(d[0], d[2]);
      deinterleave(d[1], d[3]);
      d[4] = next_lanes(d[0]);
      d[5] = next_lanes(d[1]);
      transform_input(d, half[i]);
    }
    for (int j = 0; j < kInputs; ++j) {
      Lanes d[kInputs], v[kInputs];
#pragma GCC unroll 6
      for (int i = 0; i < kInputs; ++i) d[i] = half[i][j];
      transform_input(d, v);
#pragma GCC unroll 6
      for (int i = 0; i < kInputs; ++i) v[i].store(target + (i * kInputs + j) * position_pitch + c * kColumns, count);
    }
  }
}

inline int64_t tiles_of_block(const Filtering& f, int64_t block) {
  return min(f.block_tiles(), f.tiles() - block * f.block_tiles());
}

void transform_inputs(const Filtering& f, int64_t block, int64_t channel, int64_t channel_end, float* inputs) {
  const int64_t first = block * f.block_tiles(), tiles = tiles_of_block(f, block), pitch = f.input_pitch(tiles);
  for (int64_t tile = 0; tile < tiles;) {
    const int64_t column = tile % kColumns;
    const TileRun run = run_at(f, first + tile, min(kRun, min(kColumns - column, tiles - tile)));
    transform_run(f, run, channel, channel_end, inputs + tile / kColumns * f.in_channels * kColumns + column, pitch);
    tile += run.count;
  }
}

// ------------------------------------------------------------------------------------ products

// sums[36][tile panel][kRows][kColumns] of one panel of filters.
void multiply(const Filtering& f, const float* inputs, int64_t tiles, const float* filters, int64_t n_filters,
              float* sums) {
  const int64_t depth = even_piece(f.in_channels, kDepth, 1), tile_panels = ceil_div(tiles, kColumns);
  int64_t offsets[kDepth];
  for (int64_t p = 0; p < depth; ++p) offsets[p] = p * kColumns;
  alignas(64) float block[kRows * kColumns];
  for (int64_t position = 0; position < kPositions;
       ++position, inputs += f.input_pitch(tiles), filters += f.filter_pitch())
    for (int64_t panel = 0; panel < tile_panels; ++panel, sums += kRows * kColumns)
      for (int64_t c = 0; c < f.in_channels; c += depth) {
        const int64_t columns = min(kColumns, tiles - panel * kColumns);
        float* const result = c == 0 ? sums : block;
        FASTNN_LEVEL::gemm_outer_tile(
            OuterTile<float>{filters + c * kRows, 1, kRows, inputs + (panel * f.in_channels + c) * kColumns, offsets,
                             min(depth, f.in_channels - c), int(n_filters),
                             int(kMaskedLoads ? columns : ceil_div(columns, kLanes) * kLanes)},
            result);
        if (c > 0)
          for (int64_t i = 0; i < n_filters * kColumns; i += kLanes)
            (Lanes::load(sums + i) + Lanes::load(block + i)).store(sums + i);
      }
}

// ------------------------------------------------------------------------------------- outputs

// The pixels of kColumns tiles, as [4 rows][tile][4 columns].
inline void transform_outputs(const float* sums, int64_t position_pitch, float* pixels) {
#pragma GCC unroll 2
  for (int lane = 0; lane < kColumns; lane += kLanes) {
    Lanes half[kOutputs][kInputs];
#pragma GCC unroll 6
    for (int j = 0; j < kInputs; ++j) {
      Lanes m[kInputs], y[kOutputs];
#pragma GCC unroll 6
      for (int i = 0; i < kInputs; ++i) m[i] = Lanes::load(sums + (i * kInputs + j) * position_pitch + lane);
      transform_output(m, y);
#pragma GCC unroll 4
      for (int i = 0; i < kOutputs; ++i) half[i][j] = y[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < kOutputs; ++i) {
      Lanes y[kOutputs];
      transform_output(half[i], y);
      interleave(y[0], y[2]);
      interleave(y[1], y[3]);
      interleave(y[0], y[1]);
      interleave(y[2], y[3]);
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) y[j].store(pixels + (i * kColumns + lane) * kOutputs + j * kLanes);
    }
  }
}

// activation(pixels + bias + residual), `n` of a row; what is not finite before the activation makes `tally` a NaN.
inline void put_row(const Filtering& f, const float* pixels, Lanes bias, float* out, int64_t n, Lanes& tally) {
  const float* const residual = f.residual ? f.residual + (out - f.out) : nullptr;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i;
    Lanes y = (count >= kLanes ? Lanes::load(pixels + i) : Lanes::load(pixels + i, count)) + bias;
    if (residual) y += count >= kLanes ? Lanes::load(residual + i) : Lanes::load(residual + i, count);
    if (count >= kLanes) {
      y.store(out + i);
    } else {
      y.store(out + i, count);
    }
    tally += y * Lanes::zero();
  }
  if (f.activation != Activation::None) activate_row(f.activation, out, n);
}

// Filters [first, first + n_filters) of a block; false if a result is not finite.
bool write_outputs(const Filtering& f, int64_t block, const float* sums, int64_t first, int64_t n_filters) {
  const int64_t first_tile = block * f.block_tiles(), tiles = tiles_of_block(f, block);
  const int64_t pitch = ceil_div(tiles, kColumns) * kRows * kColumns;
  alignas(64) float pixels[kOutputs * kColumns * kOutputs];
  Lanes tally = Lanes::zero();
  for (int64_t panel = 0; panel * kColumns < tiles; ++panel)
    for (int64_t k = 0; k < n_filters; ++k) {
      transform_outputs(sums + (panel * kRows + k) * kColumns, pitch, pixels);
      const Lanes bias = Lanes::broadcast(f.bias ? f.bias[first + k] : 0);
      const int64_t count = min(kColumns, tiles - panel * kColumns);
      for (int64_t tile = 0; tile < count;) {
        const TileRun run = run_at(f, first_tile + panel * kColumns + tile, count - tile);
        const int64_t row = run.row * kOutputs, column = run.column * kOutputs;
        const int64_t n = min(run.count * kOutputs, f.out_width - column);
        float* const out =
            f.out + ((run.image * f.out_channels + first + k) * f.out_height + row) * f.out_width + column;
        for (int64_t i = 0; i < min(kOutputs, f.out_height - row); ++i)
          put_row(f, pixels + (i * kColumns + tile) * kOutputs, bias, out + i * f.out_width, n, tally);
        tile += run.count;
      }
    }
  float lanes[kLanes];
  tally.store(lanes);
  bool finite = true;
  for (int i = 0; i < kLanes; ++i) finite &= lanes[i] == 0;
  return finite;
}

// --------------------------------------------------------------------------------------- tasks

bool filter_panel(const Filtering& f, int64_t block, int64_t panel, const float* inputs, const float* filters,
                  float* sums) {
  const int64_t first = panel * f.panel_filters(), n_filters = min(f.panel_filters(), f.out_channels - first);
  multiply(f, inputs, tiles_of_block(f, block), filters, n_filters, sums);
  return write_outputs(f, block, sums, first, n_filters);
}

void transform_filters(const Filtering& f, float* filters) {
  parallel_for(f.panels(), ceil_div(kTaskWork, f.panel_elements()), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) transform_panel(f, panel, filters + panel * f.panel_elements());
  });
}

// A task is a block of tiles.
void filter_blocks(const Filtering& f, const float* filters, bool* finite) {
  parallel_for(f.blocks(), 1, [&](int64_t begin, int64_t end) {
    float* const inputs = static_cast<float*>(
        thread_scratch(Scratch::Operation, size_t(f.input_elements() + kSumElements) * sizeof(float)));
    for (int64_t block = begin; block < end; ++block) {
      transform_inputs(f, block, 0, f.in_channels, inputs);
      for (int64_t panel = 0; panel < f.panels(); ++panel)
        if (!filter_panel(f, block, panel, inputs, filters + panel * f.panel_elements(), inputs + f.input_elements()))
          __atomic_store_n(finite, false, __ATOMIC_RELAXED);
    }
  });
}

// A task is a panel of filters.
void filter_panels(const Filtering& f, int64_t first_block, int64_t n_blocks, float* inputs, bool* finite) {
  const int64_t channels = max(1, kTaskWork / (n_blocks * kPositions * kBlockTiles));
  parallel_for(f.in_channels, channels, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < n_blocks; ++i)
      transform_inputs(f, first_block + i, begin, end, inputs + i * f.input_elements());
  });
  parallel_for(f.panels(), 1, [&](int64_t begin, int64_t end) {
    float* const filters = static_cast<float*>(
        thread_scratch(Scratch::Operation, size_t(f.panel_elements() + kSumElements) * sizeof(float)));
    for (int64_t panel = begin; panel < end; ++panel) {
      transform_panel(f, panel, filters);
      for (int64_t i = 0; i < n_blocks; ++i)
        if (!filter_panel(f, first_block + i, panel, inputs + i * f.input_elements(), filters,
                          filters + f.panel_elements()))
          __atomic_store_n(finite, false, __ATOMIC_RELAXED);
    }
  });
}

float* shared_elements(int64_t count) {
  return static_cast<float*>(thread_scratch(Scratch::OperationShared, size_t(count) * sizeof(float)));
}

bool filter(const Filtering& f) {
  if (!worthwhile(f)) return false;
  bool finite = true;
  if (f.split()) {
    const int64_t at_once = min(f.blocks(), kSplitBlocks);
    float* const inputs = shared_elements(at_once * f.input_elements());
    for (int64_t block = 0; block < f.blocks(); block += at_once)
      filter_panels(f, block, min(at_once, f.blocks() - block), inputs, &finite);
  } else {
    float* const filters = shared_elements(f.panels() * f.panel_elements());
    transform_filters(f, filters);
    filter_blocks(f, filters, &finite);
  }
  return finite;
}

}  // namespace

namespace FASTNN_LEVEL {

bool winograd_forward(const ConvArgs& args) { return suits(args) && filter(forward_filtering(args)); }

bool winograd_input_grad(const ConvArgs& args) { return suits(args) && filter(input_grad_filtering(args)); }

}  // namespace FASTNN_LEVEL

}  // namespace fastnn
