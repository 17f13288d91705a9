// The filters of a convolution for AMX tiles, forward and input gradient: panels of 32 filters, [panel][step][part]
// of two tiles. Where positions are columns (source_amx.h), filters are rows of A; where they are rows, the filters
// are columns of B: the tiles are transposed.
#pragma once

#include "core/parallel.h"
#include "gemm/pack_amx.h"
#include "ops/conv/planes_cpu.h"

namespace fastnn {
namespace {

struct FilterSource {
  const char* weights;  // the group's
  DType dtype;
  int64_t m;               // results' channels of the group
  int64_t filter_stride;   // elements between the weights of two of them
  const int32_t* offsets;  // [step][32]: of the weights of a step; -1 for none
  int64_t steps;
  bool rows;  // tiles of A

  int64_t panels() const { return ceil_div(m, kBlock); }
};

// 16 elements at `offsets` as float32, zero where an offset is negative. 16-bit elements come in the aligned
// words that hold them.
inline __m512 gather_weights(const char* base, DType dtype, const int32_t* offsets) {
  const __m512i index = _mm512_loadu_si512(offsets);
  const __mmask16 mask = _mm512_cmpge_epi32_mask(index, _mm512_setzero_si512());
  if (dtype == DType::Float32) return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, base, 4);
  const uintptr_t address = reinterpret_cast<uintptr_t>(base);
  const __m512i element = _mm512_add_epi32(index, _mm512_set1_epi32(int(address >> 1 & 1)));
  const __m512i words = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, _mm512_srli_epi32(element, 1),
                                                    reinterpret_cast<const void*>(address & ~uintptr_t(3)), 4);
  const __mmask16 upper = _mm512_test_epi32_mask(element, _mm512_set1_epi32(1));
  const __m512i low = _mm512_slli_epi32(words, 16);
  return _mm512_castsi512_ps(_mm512_mask_and_epi32(low, upper, words, _mm512_set1_epi32(int(0xffff0000))));
}

// One tile for each part: 16 filters from o on, the 32 values of k at `offsets`.
template <int P>
void pack_filter_tile(const FilterSource& source, const int32_t* offsets, int64_t o, char* tile, RangeLanes& range) {
  for (int64_t r = 0; r < 16; ++r) {
    __m512i parts[P];
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    if (o + r < source.m) {
      const char* filter = source.weights + (o + r) * source.filter_stride * int64_t(item_size(source.dtype));
      low = gather_weights(filter, source.dtype, offsets), high = gather_weights(filter, source.dtype, offsets + 16);
    }
    if (P > 1) range.add(low), range.add(high);
    split<P>(low, high, parts, [](__m512 a, __m512 b) { return join_upper(a, b); });
    store_parts<P>(tile + r * 64, kBlockBytes, parts);
  }
  for (int p = 0; p < P && !source.rows; ++p) transpose_tile(tile + p * kBlockBytes);
}

template <int P>
PartRange pack_filter_panel(const FilterSource& source, int64_t panel, char* memory) {
  RangeLanes range;
  for (int64_t step = 0; step < source.steps; ++step, memory += P * kBlockBytes)
    for (int64_t half = 0; half < 2; ++half)
      pack_filter_tile<P>(source, source.offsets + step * kStepK, panel * kBlock + half * 16,
                          memory + half * kTileBytes, range);
  return range.finish();
}

// With the ranges of the panels behind them.
template <int P>
int64_t filters_bytes(int64_t panels, int64_t steps) {
  return ceil_div(panels * (steps * P * kBlockBytes + int64_t(sizeof(PartRange))), 64) * 64;
}

template <int P>
PartRange packed_range(const FilterSource& source, const char* memory) {
  const PartRange* ranges =
      reinterpret_cast<const PartRange*>(memory + source.panels() * source.steps * P * kBlockBytes);
  PartRange range;
  for (int64_t panel = 0; panel < source.panels(); ++panel) range.add(ranges[panel]);
  return range;
}

template <int P>
PartRange pack_filters(const FilterSource& source, char* memory) {
  const int64_t panel_bytes = source.steps * P * kBlockBytes;
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + source.panels() * panel_bytes);
  parallel_for(source.panels(), max(1, 16 / max(1, source.steps)), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      ranges[panel] = pack_filter_panel<P>(source, panel, memory + panel * panel_bytes);
  });
  return packed_range<P>(source, memory);
}

}  // namespace
}  // namespace fastnn
