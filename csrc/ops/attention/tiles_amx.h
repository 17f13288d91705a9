// What attention's AMX kernels share: exponentials, and registers of results cut into tiles of the next product.
//
// An operand of a product is packed as in gemm/pack_amx.h, panels of 32 rows or columns, a step of 32 of its depth
// after the other; sums come as blocks of 32 x 32 (gemm/tile_amx.h).
#pragma once

#include "gemm/pack_amx.h"
#include "ops/attention/rows_cpu.h"

namespace fastnn {
namespace {

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

template <int P>
constexpr int64_t kStepBytes = P * kBlockBytes;

// 2^x: the nearest integer apart, a polynomial of the rest. As exact as what becomes of it: bfloat16 for P = 1.
template <int P>
inline __attribute__((always_inline)) __m512 exp2_lanes(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // NaN stays
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  const auto step = [&](__m512 p, float coefficient) { return _mm512_fmadd_ps(p, f, _mm512_set1_ps(coefficient)); };
  __m512 p;
  if constexpr (P == 1) {
    p = _mm512_set1_ps(0.055838283f);
    p = step(p, 0.24263948f);
    p = step(p, 0.69313675f);
    p = step(p, 0.99992454f);
  } else {
    p = _mm512_set1_ps(0.000154614449f);
    p = step(p, 0.0013400428f);
    p = step(p, 0.00961805694f);
    p = step(p, 0.0555032715f);
    p = step(p, 0.240226507f);
    p = step(p, 0.693147182f);
    p = step(p, 1.0f);
  }
  return _mm512_scalef_ps(p, n);
}

// 32 adjacent elements of one row, as the parts of one row of a tile of A.
template <int P>
inline __attribute__((always_inline)) void store_along(__m512 low, __m512 high, char* tile) {
  __m512i parts[P];
  if constexpr (P == 1) {
    parts[0] = __m512i(_mm512_cvtne2ps_pbh(high, low));
  } else {
    split<P>(low, high, parts, [](__m512 a, __m512 b) { return join_upper(a, b); });
  }
  store_parts<P>(tile, kBlockBytes, parts);
}

// 16 adjacent elements of two rows, as the parts of one row of a tile of B.
template <int P>
inline __attribute__((always_inline)) void store_across(__m512 even, __m512 odd, char* tile) {
  __m512i parts[P];
  if constexpr (P == 1) {
    const __m512i low = _mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(even)));
    const __m512i high = _mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(odd)));
    parts[0] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  } else {
    split<P>(even, odd, parts, [](__m512 a, __m512 b) { return pair_upper(a, b); });
  }
  store_parts<P>(tile, kBlockBytes, parts);
}

// Panels of one packed operand.
template <int P>
struct TilePanels {
  char* data;
  int64_t steps;  // of the depth

  static int64_t bytes(int64_t outer, int64_t depth) {
    return ceil_div(outer, kBlock) * ceil_div(depth, kStepK) * kStepBytes<P>;
  }
  const char* at(int64_t panel, int64_t step) const { return data + (panel * steps + step) * kStepBytes<P>; }

  PartRange pack(const PackSource& source, int64_t outer, int64_t depth, TileForm form) {
    steps = ceil_div(depth, kStepK);
    return pack_panels<P>(source, 0, outer, 0, depth, {data, steps * kStepBytes<P>, form});
  }
};

// Lanes of a row that runs through blocks: 16 * i and up. `row` comes from block_row of the first block.
inline float* lanes_of(float* row, int64_t i) { return row + i / 2 * kSumsPerBlock + i % 2 * 256; }

// A step after the other, whole panels.
template <int P>
struct StepTable {
  int64_t* offsets;

  void fill(int64_t steps) {
    for (int64_t s = 0; s < steps; ++s) offsets[s] = s * kStepBytes<P>;
  }
  TileStream stream(const char* data) const { return {data, offsets, 64, kTileBytes, kBlockBytes}; }
};

// Whether no part of numbers of this range is flushed that matters beside factors of about 1.
inline bool parts_are_exact(const PartRange& range) {
  PartRange one;
  one.largest = one.smallest = 0x3f800000;
  one.smallest -= PartRange::kSmallestNormal;
  return parts_are_exact(range, one);
}

inline bool suits_tiles(const AttentionArgs& args) {
  return args.dtype != DType::Float64 && args.q_len >= 16 && args.kv_len >= 16 && args.head_dim >= 16 &&
         args.value_dim >= 16;
}

inline PackSource head_source(const void* data, DType dtype, int64_t at, int64_t row) {
  return {element<char>(data, dtype, at), dtype, row, 1};
}
// The same matrix, its columns as the outer index.
inline PackSource transposed(const PackSource& source) {
  return {source.data, source.dtype, source.depth_stride, source.outer_stride};
}

}  // namespace
}  // namespace fastnn
