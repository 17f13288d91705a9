// Convolution on the CPU, weight gradient: per group, a matrix product along the pixels of all images,
//
//   dw[o, p = (channel, tap row, tap column)] = sum over pixels of dy[o, pixel] * x[pixel + offset(p)]
//
// by the engine's dot tile, which takes B's columns by offset. Rows of dy are copied at the pitch of
// x's planes (planes_cpu.h), zeros in the gaps. A tile runs over several small images, so that sums
// take in many pixels before their lanes are added up. Images are cut into chunks fixed by the problem;
// their partial gradients are added in order.
#include "core/memory.h"
#include "core/parallel.h"
#include "ops/conv/channels_last_cpu.h"
#include "ops/conv/conv.h"
#include "ops/conv/depthwise_cpu.h"
#include "ops/conv/planes_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kChunkWork = int64_t(1) << 21;  // multiply-adds that pay for a chunk of images
constexpr int64_t kChunks = 64;                   // at most
constexpr int64_t kPartials = int64_t(1) << 22;   // elements of partial gradients, at most
constexpr int64_t kTasks = 8;                     // wanted, at least
constexpr int64_t kBlockWork = int64_t(1) << 29;  // multiply-adds of a block of channels, at most
constexpr int64_t kDepth = 1024;                  // pixels of a tile, of one image or more: its rows stay in cache

template <class T>
struct WeightGrad {
  const ConvArgs& args;
  Planes x, dy;          // dy's planes have x's row length
  int64_t k;             // channels * taps
  int64_t image_pixels;  // of a plane of x and of dy, gaps included
  int64_t stack;         // images of a tile
  const int64_t* offsets;

  int64_t images_per_chunk, chunks;
  int64_t block_channels, blocks;  // of output channels
};

template <class T>
WeightGrad<T> plan(const ConvArgs& args) {
  const ConvAxis &h = args.height, &w = args.width;
  const int64_t k = args.in_channels * h.kernel * w.kernel, outputs = args.groups * args.out_channels * k;
  const PlaneAxis x_rows = plane_axis(h.input, h.stride, h.padding, h.dilation, h.kernel, h.output);
  const PlaneAxis x_columns = plane_axis(w.input, w.stride, w.padding, w.dilation, w.kernel, w.output);
  const Planes x{static_cast<const char*>(args.x), args.dtype, args.in_channels, x_rows, x_columns};
  const Planes dy{static_cast<const char*>(args.dy),
                  args.dtype,
                  args.out_channels,
                  {h.output, 1, 0, 1, 1, x_rows.length},
                  {w.output, 1, 0, 1, 1, x_columns.length}};
  const int64_t image_pixels = x_rows.length * x_columns.length;
  const int64_t image_work = max(1, args.groups * args.out_channels * k * h.output * w.output);

  const int64_t wanted = min(min(kChunks, args.images), max(1, kPartials / outputs));
  const int64_t images_per_chunk = ceil_div(args.images, max(1, min(wanted, image_work * args.images / kChunkWork)));
  const int64_t chunks = ceil_div(args.images, images_per_chunk), parts = chunks * args.groups;
  int64_t block_channels = args.out_channels;
  const int64_t part_work = images_per_chunk * image_work / args.groups;
  const int64_t blocks = max(part_work / kBlockWork, part_work > kChunkWork ? ceil_div(kTasks, parts) : 1);
  if (blocks > 1) block_channels = even_piece(block_channels, ceil_div(block_channels, blocks), Tile<T>::kDotRows);
  return {args,
          x,
          dy,
          k,
          image_pixels,
          max(1, min(images_per_chunk, kDepth / image_pixels)),
          nullptr,
          images_per_chunk,
          chunks,
          block_channels,
          ceil_div(args.out_channels, block_channels)};
}

// grad[channels][k] += dy[channels, pixels] x[pixels, k], over `images` images.
template <class T>
void add_products(const WeightGrad<T>& plan, const T* dy, const T* x, int64_t pitch, int64_t channels, int64_t images,
                  T* grad) {
  constexpr int kRows = Tile<T>::kDotRows, kColumns = Tile<T>::kDotColumns;
  alignas(64) T block[kRows * kColumns];
  const int64_t pixels = (plan.args.height.output - 1) * plan.x.columns.length + plan.args.width.output;
  for (int64_t pixel = 0; pixel < pixels; pixel += kDepth)
    for (int64_t o = 0; o < channels; o += kRows)
      for (int64_t p = 0; p < plan.k; p += kColumns) {
        const int rows = int(min(kRows, channels - o)), columns = int(min(kColumns, plan.k - p));
        FASTNN_LEVEL::gemm_dot_tile(
            DotTile<T>{dy + o * pitch + pixel, pitch, x + pixel, plan.offsets + p, min(kDepth, pixels - pixel), rows,
                       columns, images, plan.image_pixels, plan.image_pixels},
            block);
        for (int r = 0; r < rows; ++r)
          for (int c = 0; c < columns; ++c) grad[(o + r) * plan.k + p + c] += block[r * kColumns + c];
      }
}

// One chunk of images, group and block of channels.
template <class T>
void run_part(const WeightGrad<T>& plan, int64_t part, T* partials) {
  const ConvArgs& args = plan.args;
  const int64_t channel = part % plan.blocks * plan.block_channels, rest = part / plan.blocks;
  const int64_t channels = min(plan.block_channels, args.out_channels - channel);
  const int64_t group = rest % args.groups, chunk = rest / args.groups;
  T* grad = partials + ((chunk * args.groups + group) * args.out_channels + channel) * plan.k;
  fill_zero(grad, channels * plan.k);

  const int64_t pitch = plan.stack * plan.image_pixels, x_elements = plan.x.plane_count() * pitch;
  T* x =
      static_cast<T*>(thread_scratch(Scratch::Operation, size_t(x_elements + plan.block_channels * pitch) * sizeof(T)));
  T* dy = x + x_elements;
  Planes dy_block = plan.dy;
  dy_block.channels = channels;
  const int64_t end = min(args.images, (chunk + 1) * plan.images_per_chunk);
  for (int64_t image = chunk * plan.images_per_chunk; image < end; image += plan.stack) {
    const int64_t stacked = min(plan.stack, end - image);
    for (int64_t s = 0; s < stacked; ++s) {
      const int64_t image_group = (image + s) * args.groups + group;
      copy_planes(plan.x, image_group * args.in_channels, 0, plan.x.rows.length, x + s * plan.image_pixels, pitch);
      copy_planes(dy_block, image_group * args.out_channels + channel, 0, plan.dy.rows.length,
                  dy + s * plan.image_pixels, pitch);
    }
    add_products(plan, dy, x, pitch, channels, stacked, grad);
  }
}

template <class T>
void weight_grad_typed(const ConvArgs& args) {
  WeightGrad<T> plan = fastnn::plan<T>(args);
  const int64_t outputs = args.groups * args.out_channels * plan.k;
  const bool in_place = plan.chunks == 1 && args.dtype == dtype_of<T>();
  const int64_t offset_bytes = ceil_div(plan.k * 8, 64) * 64, partial_elements = in_place ? 0 : plan.chunks * outputs;
  char* shared = static_cast<char*>(
      thread_scratch(Scratch::OperationShared, size_t(offset_bytes + partial_elements * int64_t(sizeof(T)))));
  int64_t* offsets = reinterpret_cast<int64_t*>(shared);
  T* partials = in_place ? static_cast<T*>(args.out) : reinterpret_cast<T*>(shared + offset_bytes);
  int64_t* next = offsets;
  for (int64_t channel = 0; channel < args.in_channels; ++channel)
    for (int64_t i = 0; i < args.height.kernel; ++i)
      for (int64_t j = 0; j < args.width.kernel; ++j)
        *next++ = tap_offset(plan.x, channel, i, j, plan.stack * plan.image_pixels);
  plan.offsets = offsets;
  parallel_for(plan.chunks * args.groups * plan.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) run_part(plan, part, partials);
  });
  if (in_place) return;
  parallel_for(outputs, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 1; chunk < plan.chunks; ++chunk)
      for (int64_t i = begin; i < end; ++i) partials[i] += partials[chunk * outputs + i];
    FASTNN_LEVEL::store_row(static_cast<char*>(args.out) + begin * int64_t(item_size(args.dtype)), args.dtype, 1,
                            partials + begin, end - begin);
  });
}

void weight_grad(const ConvArgs& args) {
  if (args.channels_last) return FASTNN_LEVEL::conv_through_planes(args, ConvPass::WeightGrad, weight_grad);
  if (FASTNN_LEVEL::depthwise_weight_grad(args)) return;
  return args.dtype == DType::Float64 ? weight_grad_typed<double>(args) : weight_grad_typed<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(conv_weight_grad, weight_grad)

}  // namespace fastnn
