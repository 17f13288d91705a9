// Convolution as a matrix product whose left operand is gathered from an image (implicit GEMM): index mathematics,
// which a compiler tests without a GPU (tests/test_cuda_host.py).
//
//                    rows                columns          summed over          gathered     beside it
//   forward          pixels of y         channels of y    taps, channels of x  x            weights
//   input gradient   pixels of dx        channels of x    taps, channels of y  dy           weights
//   weight gradient  taps, channels of x channels of y    pixels of y          x            dy
//
// A row and a step of the sum each have a Place; the element that they gather together lies at the sum of both, and is
// zero where their rows or columns of the image add up to one outside it. So a kernel decomposes an index once for a
// row and once for a step, not for an element.
//
// The input gradient is taken in phases: positions of dx that are equal modulo the stride use the same taps, and read
// dy as a convolution of stride 1 does. Taps come before channels in the sum.
#pragma once

#include <cstdint>

#include "ops/conv/conv.h"
#include "simd/half.h"

namespace fastnn {

// One spatial axis of a product: with tap j, position i of the result reads position base + i * stride + j * delta.
struct GatherAxis {
  int64_t count, first, step;         // results, at positions first + i * step of their image
  int64_t taps, tap_first, tap_step;  // taps, tap_first + j * tap_step of the kernel's
  int64_t base, stride, delta;
};

FASTNN_HD constexpr GatherAxis forward_axis(const ConvAxis& axis) {
  return {axis.output, 0, 1, axis.kernel, 0, 1, -axis.padding, axis.stride, axis.dilation};
}

FASTNN_HD constexpr int64_t phases_of(const ConvAxis& axis) {
  return axis.stride < axis.input ? axis.stride : axis.input;
}

FASTNN_HD constexpr int64_t common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// Position h of dx takes the taps r with (h + padding - r * dilation) divisible by the stride.
FASTNN_HD constexpr GatherAxis input_grad_axis(const ConvAxis& axis, int64_t phase) {
  const int64_t tap_step = axis.stride / common_divisor(axis.stride, axis.dilation);
  int64_t first = 0;
  while (first < tap_step && first < axis.kernel && (phase + axis.padding - first * axis.dilation) % axis.stride != 0)
    ++first;
  const bool any = first < tap_step && first < axis.kernel;
  return {(axis.input - phase + axis.stride - 1) / axis.stride,
          phase,
          axis.stride,
          any ? (axis.kernel - 1 - first) / tap_step + 1 : 0,
          first,
          tap_step,
          any ? (phase + axis.padding - first * axis.dilation) / axis.stride : 0,
          1,
          -(tap_step * axis.dilation / axis.stride)};
}

// Elements between neighbours of an image.
struct ImageStrides {
  int64_t image, channel, row, column;
};

FASTNN_HD constexpr ImageStrides image_strides(int64_t channels, int64_t height, int64_t width, bool channels_last) {
  if (channels_last) return {channels * height * width, 1, width * channels, channels};
  return {channels * height * width, height * width, width, 1};
}

// Coordinates are below kFarAway in magnitude; those of a row or step that is not there are -kFarAway.
constexpr int kFarAway = 1 << 30;

struct Place {
  int64_t offset;   // in the gathered image
  int row, column;  // of it
  int64_t beside;   // of a pixel: its offset in the other image; of a tap: its row of the packed weights
};

// What a launch multiplies. Weights come packed (pack_weights), as rows of taps and channels.
struct ConvProduct {
  int64_t images, groups;
  int64_t channels;      // of a group of the gathered image, as they lie in memory
  int64_t columns;       // of a group of the product
  int64_t column_pitch;  // between packed rows of weights
  ConvAxis height, width;
  bool transposed;                      // the input gradient
  int64_t source_height, source_width;  // of the gathered image
  ImageStrides source, other;           // `other`: of the result, or for the weight gradient of dy
  int64_t source_group, other_group;    // between groups of channels of each
  const void* gathered;
  const void* beside;  // packed weights, or dy
  int64_t row_phases, column_phases, row_tiles, column_tiles;
  int splits;           // parts of the sum, added up afterwards in their order
  int64_t split_depth;  // steps of each
  void* partials;       // where `splits` > 1, and always of the weight gradient
  // forward: the result and what follows the sums
  void* result;
  const void* bias;
  const void* residual;
  Activation activation;
};

struct ConvTile {
  GatherAxis rows, columns;
  int64_t group, row, column;  // the tile's first row and column of the product
  int split;
  int64_t m, begin, end;  // rows of the product; this part of the sum

  FASTNN_HD constexpr int64_t taps() const { return rows.taps * columns.taps; }
};

FASTNN_HD constexpr int64_t product_blocks(const ConvProduct& p) {
  return p.row_tiles * p.column_tiles * p.row_phases * p.column_phases * p.groups * p.splits;
}

// Blocks at work at the same time share rows of the gathered image in L2. May lie outside of the product: row >= m.
template <bool kWeightGrad>
FASTNN_HD constexpr ConvTile tile_at(const ConvProduct& p, int64_t block, int tile_rows, int tile_columns) {
  const int64_t column_tile = block % p.column_tiles;
  block /= p.column_tiles;
  const int64_t row_tile = block % p.row_tiles;
  block /= p.row_tiles;
  const int64_t column_phase = block % p.column_phases;
  block /= p.column_phases;
  const int64_t row_phase = block % p.row_phases;
  block /= p.row_phases;
  const GatherAxis rows = p.transposed ? input_grad_axis(p.height, row_phase) : forward_axis(p.height);
  const GatherAxis columns = p.transposed ? input_grad_axis(p.width, column_phase) : forward_axis(p.width);
  const int64_t pixels = p.images * rows.count * columns.count, terms = rows.taps * columns.taps * p.channels;
  const int64_t depth = kWeightGrad ? pixels : terms, split = block / p.groups;
  const int64_t begin = split * p.split_depth;
  return {rows,
          columns,
          block % p.groups,
          row_tile * tile_rows,
          column_tile * tile_columns,
          int(split),
          kWeightGrad ? terms : pixels,
          begin,
          depth - begin < p.split_depth ? depth : begin + p.split_depth};
}

struct Quotient {
  int64_t quotient, rest;
};
// Of numbers that are not negative: in 32 bits where they fit, an eighth of the instructions.
FASTNN_HD constexpr Quotient divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    const uint32_t quotient = uint32_t(a) / uint32_t(b);
    return {quotient, int64_t(uint32_t(a) - quotient * uint32_t(b))};
  }
  return {a / b, a % b};
}

FASTNN_HD constexpr Place pixel_place(const ConvProduct& p, const ConvTile& tile, int64_t pixel, int64_t end) {
  if (pixel >= end) return {0, -kFarAway, 0, 0};
  const Quotient line = divide(pixel, tile.columns.count), image = divide(line.quotient, tile.rows.count);
  const int64_t row = tile.rows.base + image.rest * tile.rows.stride;
  const int64_t column = tile.columns.base + line.rest * tile.columns.stride;
  const int64_t other_row = tile.rows.first + image.rest * tile.rows.step;
  const int64_t other_column = tile.columns.first + line.rest * tile.columns.step;
  return {image.quotient * p.source.image + row * p.source.row + column * p.source.column, int(row), int(column),
          image.quotient * p.other.image + other_row * p.other.row + other_column * p.other.column};
}

FASTNN_HD constexpr Place tap_place(const ConvProduct& p, const ConvTile& tile, int64_t term, int64_t end) {
  if (term >= end) return {0, -kFarAway, 0, 0};
  const Quotient tap = divide(term, p.channels), row = divide(tap.quotient, tile.columns.taps);
  const int64_t down = row.quotient * tile.rows.delta, across = row.rest * tile.columns.delta;
  const int64_t kernel_tap = (tile.rows.tap_first + row.quotient * tile.rows.tap_step) * p.width.kernel +
                             tile.columns.tap_first + row.rest * tile.columns.tap_step;
  return {down * p.source.row + across * p.source.column + tap.rest * p.source.channel, int(down), int(across),
          kernel_tap * p.channels + tap.rest};
}

// Is what they gather together in the image?
FASTNN_HD constexpr bool is_inside(const ConvProduct& p, const Place& a, const Place& b) {
  const int row = a.row + b.row, column = a.column + b.column;
  return row >= 0 && row < p.source_height && column >= 0 && column < p.source_width;
}

}  // namespace fastnn
