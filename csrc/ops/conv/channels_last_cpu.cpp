// Channels-last tensors for kernels of planes: (N, H, W, C) to (N, C, H, W) in scratch, and the result back.
// A read and a write of each tensor, in squares of 32 x 32 that stay in the first-level cache.
#include "ops/conv/channels_last_cpu.h"

#include "core/memory.h"
#include "core/parallel.h"

namespace fastnn {
namespace {

constexpr int64_t kSquare = 32;

template <class T>
void transpose_square(const T* source, int64_t source_row, T* target, int64_t target_row, int64_t rows,
                      int64_t columns) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = 0; r < rows; ++r) target[c * target_row + r] = source[r * source_row + c];
}

// Every image's rows x columns matrix becomes columns x rows.
template <class T>
void transpose_images(const T* source, T* target, int64_t images, int64_t rows, int64_t columns) {
  const int64_t strips = (rows + kSquare - 1) / kSquare;
  parallel_for(images * strips, 1 + (int64_t(1) << 14) / (kSquare * columns), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / strips * rows * columns, row = unit % strips * kSquare;
      const int64_t n = rows - row < kSquare ? rows - row : kSquare;
      for (int64_t column = 0; column < columns; column += kSquare)
        transpose_square(source + image + row * columns + column, columns, target + image + column * rows + row, rows,
                         n, columns - column < kSquare ? columns - column : kSquare);
    }
  });
}

void transpose_images(const void* source, void* target, DType dtype, int64_t images, int64_t rows, int64_t columns) {
  switch (item_size(dtype)) {
    case 2:
      return transpose_images(static_cast<const uint16_t*>(source), static_cast<uint16_t*>(target), images, rows,
                              columns);
    case 4:
      return transpose_images(static_cast<const uint32_t*>(source), static_cast<uint32_t*>(target), images, rows,
                              columns);
    default:
      return transpose_images(static_cast<const uint64_t*>(source), static_cast<uint64_t*>(target), images, rows,
                              columns);
  }
}

}  // namespace

namespace FASTNN_LEVEL {

void conv_through_planes(const ConvArgs& args, ConvPass pass, void (*kernel)(const ConvArgs&)) {
  const int64_t size = int64_t(item_size(args.dtype));
  const int64_t in_pixels = args.height.input * args.width.input, in_channels = args.groups * args.in_channels;
  const int64_t out_pixels = args.height.output * args.width.output, out_channels = args.groups * args.out_channels;
  const int64_t in_bytes = (args.images * in_pixels * in_channels * size + 63) / 64 * 64;
  const int64_t out_bytes = (args.images * out_pixels * out_channels * size + 63) / 64 * 64;
  char* in = static_cast<char*>(thread_scratch(Scratch::Layout, size_t(in_bytes + 2 * out_bytes)));
  char *out = in + in_bytes, *residual = out + out_bytes;
  const auto to_planes = [&](const void* source, char* target, int64_t pixels, int64_t channels) -> const void* {
    if (source) transpose_images(source, target, args.dtype, args.images, pixels, channels);
    return source ? target : nullptr;
  };
  ConvArgs planes = args;
  planes.channels_last = false;
  if (pass != ConvPass::InputGrad) planes.x = to_planes(args.x, in, in_pixels, in_channels);
  if (pass != ConvPass::Forward) planes.dy = to_planes(args.dy, out, out_pixels, out_channels);
  if (pass == ConvPass::Forward) planes.residual = to_planes(args.residual, residual, out_pixels, out_channels);
  if (pass == ConvPass::Forward) planes.out = out;
  if (pass == ConvPass::InputGrad) planes.out = in;
  kernel(planes);
  if (pass == ConvPass::Forward) transpose_images(out, args.out, args.dtype, args.images, out_channels, out_pixels);
  if (pass == ConvPass::InputGrad) transpose_images(in, args.out, args.dtype, args.images, in_channels, in_pixels);
}

}  // namespace FASTNN_LEVEL
}  // namespace fastnn
