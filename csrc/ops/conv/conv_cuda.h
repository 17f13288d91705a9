// The kernels of convolution on CUDA, each for what it suits, and what they share on the host.
#pragma once

#include "core/cuda_launch.h"
#include "ops/conv/conv.h"
#include "ops/conv/gather_cuda.h"

namespace fastnn {
namespace conv_cuda {

enum class Pass : uint8_t { Forward, InputGrad, WeightGrad };

// The product of a pass over images as they are in memory; no tiles and parts as yet.
ConvProduct product_of(const ConvArgs& args, Pass pass);

// Cuts the product into tiles, and the sum into parts where there are few tiles; steps of a part are a multiple of
// `unit`.
void cut(ConvProduct& product, bool weight_grad, int tile_rows, int tile_columns, int64_t unit);

// Cuts the sum over pixels into parts of at least `least`, to have some blocks for every multiprocessor.
void cut_pixels(ConvProduct& product, int64_t blocks, int64_t least);

// Packed weights: [group][term][column], or for kAlongTerms [group][column][term]; terms are taps of `channels`, of
// which those beyond the weights' are zero, as are columns beyond them.
struct PackedShape {
  int64_t groups, taps, channels, columns;
  bool along_terms;
  FASTNN_HD constexpr int64_t elements() const { return groups * taps * channels * columns; }
};
void pack_weights(const ConvArgs& args, Pass pass, const PackedShape& shape, void* to);

// x, or y, with its channels last and those of each group padded with zeros.
void pack_image(const ConvArgs& args, const void* image, bool is_y, int64_t padded, void* to);

// y or dx from the partials of all parts; dw from those of a product whose groups have `channels` and `columns`.
void sum_results(const ConvArgs& args, const ConvProduct& product, int64_t elements);
void sum_weight_grad(const ConvArgs& args, const ConvProduct& product);

void simt(const ConvArgs& args, Pass pass);  // float32 and float64

void mma(const ConvArgs& args, Pass pass);  // 16-bit, and float32 as TF32

// Few channels a group: depthwise convolutions, first layers.
bool direct_suits(const ConvArgs& args, Pass pass, bool tensor_cores);
void direct(const ConvArgs& args, Pass pass);

}  // namespace conv_cuda
}  // namespace fastnn
