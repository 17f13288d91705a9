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

inline int64_t panels_of(int64_t n) { return ceil_div(n, kBlock); }

template <int P>
constexpr int64_t kStepBytes = P * kBlockBytes;

// 2^x: the integer below x apart, a polynomial of the rest. As exact as what becomes of it: bfloat16 for P = 1.
template <int P>
inline __attribute__((always_inline)) __m512 exp2_lanes(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x); 0 for -inf
  const auto step = [&](__m512 p, float coefficient) { return _mm512_fmadd_ps(p, f, _mm512_set1_ps(coefficient)); };
  __m512 p;
  if constexpr (P == 1) {
    p = _mm512_set1_ps(0.07896726f);
    p = step(p, 0.22469315f);
    p = step(p, 0.69632477f);
    p = step(p, 0.99990028f);
  } else {
    p = _mm512_set1_ps(0.00021865785f);
    p = step(p, 0.0012391332f);
    p = step(p, 0.0096841864f);
    p = step(p, 0.055480629f);
    p = step(p, 0.24023046f);
    p = step(p, 0.69314694f);
    p = step(p, 1.0f);
  }
  return _mm512_scalef_ps(p, x);  // times 2^floor(x)
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

// bias_row, for a boolean mask in vectors; up to 15 more numbers are written.
inline void bias_lanes(const AttentionArgs& args, const QueryBlock& block, int64_t r, int64_t key, int64_t n,
                       float* bias) {
  const int64_t* strides = args.mask_strides;
  if (!args.mask || args.mask_dtype != DType::Bool || strides[3] != 1) return bias_row(args, block, r, key, n, bias);
  const bool* mask = static_cast<const bool*>(args.mask) + block.batch * strides[0] + block.head * strides[1] +
                     (block.row + r) * strides[2] + key;
  for (int64_t j = 0; j < n; j += 16) {
    const __m128i bytes = _mm_maskz_loadu_epi8(lane_mask(n - j), mask + j);
    _mm512_store_ps(
        bias + j, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), _mm_test_epi8_mask(bytes, bytes), _mm512_setzero_ps()));
  }
}

// Lanes of a row that runs through blocks: 16 * i and up. `row` comes from block_row of the first block.
inline float* lanes_of(float* row, int64_t i) { return row + i / 2 * kSumsPerBlock + i % 2 * 256; }

// O = sums / total and lse of a block's rows, whose sums of exponentials are relative to 2^highest.
template <class T>
void store_rows(const AttentionArgs& args, const QueryBlock& block, float* sums, const float* totals,
                const float* highest) {
  const int64_t value_panels = panels_of(args.value_dim), at = block.at(args.out_strides);
  float* lse = static_cast<float*>(args.lse) + (block.batch * args.heads + block.head) * args.q_len + block.row;
  for (int64_t r = 0; r < block.rows; ++r) {
    const float total = totals[r];
    const __m512 factor = _mm512_set1_ps(total == 0.0f ? 0.0f : 1.0f / total);
    float* row = block_row(sums + r / kBlock * value_panels * kSumsPerBlock, r % kBlock);
    T* out = static_cast<T*>(args.out) + at + r * args.out_strides.row;
    for (int64_t v = 0; 16 * v < args.value_dim; ++v)
      store_lanes<T>(reinterpret_cast<char*>(out + 16 * v), lane_mask(args.value_dim - 16 * v),
                     _mm512_mul_ps(_mm512_load_ps(lanes_of(row, v)), factor));
    lse[r] = total == 0.0f ? INFINITY : highest[r] * kLn2 + log_(total);
  }
}

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
