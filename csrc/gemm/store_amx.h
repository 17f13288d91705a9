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

// Adjacent blocks of sums, their first `rows` x `columns` in all, made ready in place.
template <class T>
__attribute__((noinline)) void finish_blocks(const TileOutput& out, float* sums, int64_t row, int64_t column,
                                             int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; c += 16) {
    const __mmask16 mask = lane_mask(columns - c);
    float* half = sums + c / kBlock * kSumsPerBlock + c % kBlock / 16 * 256;
    for (int64_t r = 0; r < rows; ++r) {
      float* lanes = block_row(half, r);
      _mm512_store_ps(lanes, finish_lanes<T>(out, _mm512_load_ps(lanes), row + r, column + c, mask));
    }
  }
  if (out.activation != Activation::None)
    activate_row(out.activation, sums, (columns + kBlock - 1) / kBlock * kSumsPerBlock);
}

// 32 columns. Masked stores of 16-bit elements take half as long again as whole ones.
template <class T>
inline void store_whole(char* c, __m512 low, __m512 high) {
  if constexpr (sizeof(T) == 4) {
    _mm512_storeu_ps(c, low);
    _mm512_storeu_ps(c + 64, high);
  } else if (dtype_of<T>() == DType::BFloat16) {
    _mm512_storeu_si512(c, __m512i(_mm512_cvtne2ps_pbh(high, low)));
  } else {
    constexpr int kRounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c), _mm512_cvtps_ph(low, kRounding));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + 32), _mm512_cvtps_ph(high, kRounding));
  }
}

// The rows [begin, end) of sums that are finished.
template <class T>
inline void store_rows_of(const TileOutput& out, float* sums, int64_t row, int64_t column, int64_t begin, int64_t end,
                          int64_t columns) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t whole = columns / kBlock, rest = columns % kBlock;
  const __mmask16 low = lane_mask(rest), high = lane_mask(rest - 16);
  for (int64_t r = begin; r < end; ++r) {
    char* c = out.c + ((row + r) * out.c_row + column) * kSize;
    const float* lanes = block_row(sums, r);
    for (int64_t block = 0; block < whole; ++block, c += kBlock * kSize, lanes += kSumsPerBlock)
      store_whole<T>(c, _mm512_load_ps(lanes), _mm512_load_ps(lanes + 256));
    if (low) store_lanes<T>(c, low, _mm512_load_ps(lanes));
    if (high) store_lanes<T>(c + 16 * kSize, high, _mm512_load_ps(lanes + 256));
  }
}

// Adjacent blocks of sums, each of 32 columns, are made ready for C at (row, column), where the first `rows` x
// `columns` of them go: `store_rows` stores rows [begin, end) of these.
inline void finish_sums(const TileOutput& out, float* sums, int64_t row, int64_t column, int64_t rows,
                        int64_t columns) {
  if (out.plain()) return;
  if (out.dtype == DType::Float32) return finish_blocks<float>(out, sums, row, column, rows, columns);
  if (out.dtype == DType::BFloat16) return finish_blocks<bfloat16>(out, sums, row, column, rows, columns);
  finish_blocks<float16>(out, sums, row, column, rows, columns);
}

inline void store_rows(const TileOutput& out, float* sums, int64_t row, int64_t column, int64_t begin, int64_t end,
                       int64_t columns) {
  if (out.dtype == DType::Float32) return store_rows_of<float>(out, sums, row, column, begin, end, columns);
  if (out.dtype == DType::BFloat16) return store_rows_of<bfloat16>(out, sums, row, column, begin, end, columns);
  store_rows_of<float16>(out, sums, row, column, begin, end, columns);
}

// Both, along C's rows, since memory is fast along lines.
inline void store_blocks(const TileOutput& out, float* sums, int64_t row, int64_t column, int64_t rows,
                         int64_t columns) {
  finish_sums(out, sums, row, column, rows, columns);
  store_rows(out, sums, row, column, 0, rows, columns);
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
