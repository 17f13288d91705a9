// From a block of 32 x 32 sums (tile_amx.h) to C, with what follows the product.
#pragma once

#include "gemm/epilogue.h"
#include "gemm/pack_amx.h"

namespace fastnn {
namespace {

// C in float32, bfloat16 or float16; its biases and residual are of the same dtype.
struct TileOutput {
  char* c;
  DType dtype;
  int64_t c_row;  // elements
  float alpha;
  bool accumulate;
  const char* row_bias;
  const char* column_bias;
  const char* residual;
  Activation activation;

  int64_t size() const { return int64_t(item_size(dtype)); }
  bool plain() const {
    return alpha == 1 && !accumulate && !row_bias && !column_bias && !residual && activation == Activation::None;
  }
};

inline TileOutput tile_output(const GemmArgs& args, const GemmItem& item) {
  const char* bias = static_cast<const char*>(args.bias);
  const char* residual = static_cast<const char*>(args.residual);
  return {item.c,
          args.c_dtype,
          args.c_row,
          float(args.alpha),
          args.accumulate,
          args.bias_kind == GemmBias::PerRow ? bias : nullptr,
          args.bias_kind == GemmBias::PerColumn ? bias : nullptr,
          residual ? residual + (item.c - static_cast<const char*>(args.c)) : nullptr,
          args.activation};
}

// Columns 16 * half + ... of row r, before the activation.
template <class T>
inline __m512 finish_lanes(const TileOutput& out, __m512 x, int64_t row, int64_t column, __mmask16 mask) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t at = (row * out.c_row + column) * kSize;
  x = _mm512_mul_ps(x, _mm512_set1_ps(out.alpha));
  if (out.accumulate) x = _mm512_add_ps(x, load_lanes<T>(out.c + at, mask));
  if (out.row_bias)
    x = _mm512_add_ps(x, _mm512_broadcastss_ps(_mm512_castps512_ps128(load_lanes<T>(out.row_bias + row * kSize, 1))));
  if (out.column_bias) x = _mm512_add_ps(x, load_lanes<T>(out.column_bias + column * kSize, mask));
  if (out.residual) x = _mm512_add_ps(x, load_lanes<T>(out.residual + at, mask));
  return x;
}

// The block's first `rows` x `columns` sums, made ready in place.
template <class T>
__attribute__((noinline)) void finish_block(const TileOutput& out, float* sums, int64_t row, int64_t column,
                                            int64_t rows, int64_t columns) {
  for (int64_t half = 0; half < 2 && 16 * half < columns; ++half) {
    const __mmask16 mask = lane_mask(columns - 16 * half);
    for (int64_t r = 0; r < rows; ++r) {
      float* lanes = block_row(sums, r) + 256 * half;
      _mm512_store_ps(lanes, finish_lanes<T>(out, _mm512_load_ps(lanes), row + r, column + 16 * half, mask));
    }
  }
  if (out.activation != Activation::None) activate_row(out.activation, sums, kSumsPerBlock);
}

template <class T>
void store_block_of(const TileOutput& out, float* sums, int64_t row, int64_t column, int64_t rows, int64_t columns) {
  if (!out.plain()) finish_block<T>(out, sums, row, column, rows, columns);
  const __mmask16 low = lane_mask(columns), high = lane_mask(columns - 16);
  char* c = out.c + (row * out.c_row + column) * int64_t(sizeof(T));
  for (int64_t r = 0; r < rows; ++r, c += out.c_row * int64_t(sizeof(T))) {
    const float* lanes = block_row(sums, r);
    store_lanes<T>(c, low, _mm512_load_ps(lanes));
    if (high) store_lanes<T>(c + 16 * sizeof(T), high, _mm512_load_ps(lanes + 256));
  }
}

// The block's first `rows` x `columns` sums go to C at (row, column).
inline void store_block(const TileOutput& out, float* sums, int64_t row, int64_t column, int64_t rows,
                        int64_t columns) {
  if (out.dtype == DType::Float32) return store_block_of<float>(out, sums, row, column, rows, columns);
  if (out.dtype == DType::BFloat16) return store_block_of<bfloat16>(out, sums, row, column, rows, columns);
  store_block_of<float16>(out, sums, row, column, rows, columns);
}

// The block's transpose, in place.
inline void transpose_block(float* sums) {
  for (int64_t tile = 0; tile < 4; ++tile) transpose_tile(reinterpret_cast<char*>(sums + tile * 256));
  for (int64_t i = 256; i < 512; ++i) {
    const float upper = sums[i];
    sums[i] = sums[i + 256];
    sums[i + 256] = upper;
  }
}

}  // namespace
}  // namespace fastnn
