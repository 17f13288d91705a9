// The filters of a convolution for AMX tiles, forward and input gradient: panels of 32 filters, [panel][step][part] of
// two tiles. Where positions are columns of a product, filters are rows of A ([16 filters][32 k]); where positions are
// rows, filters are columns of B ([16 pairs of k][16 filters][2]): the tiles are transposed.
//
// Rows of weights are read once, along memory: those of 16 filters are transposed in squares into lines of 16 filters,
// [channel][element of the kernel], which stay in the first-level cache for a group of channels. A row of B is then two
// lines, split into parts. Cost for 16 weights: four shuffles, a store, a load, half of a split. (Gathering the
// weights of every tap took three times as long.)
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/pack_amx.h"
#include "ops/conv/planes_cpu.h"

namespace fastnn {
namespace {

// A step is 32 of k, (channel, folded taps), under one tap. Strides and offsets count elements: the kernel of (filter,
// channel) lies at filter * filter_stride + channel * channel_stride.
struct FilterSource {
  const char* weights;  // the group's
  DType dtype;
  int64_t m;  // results' channels of the group
  int64_t filter_stride, channel_stride, kernel;
  const int32_t* offsets;  // [step][32]: of the weights of a step; -1 for none, which come last
  int64_t steps;
  int64_t taps;  // consecutive steps of the same channels
  bool rows;     // tiles of A

  int64_t panels() const { return ceil_div(m, kBlock); }
};

constexpr int64_t kFilterLanes = 16;

// lines[e][r] = element e of row r, for `count` elements. Writes whole squares: up to 15 lines more. What is `ahead`
// elements further on is fetched meanwhile: the rows are more streams than the hardware follows.
template <class T>
void transpose_rows(const T* source, int64_t stride, int64_t rows, int64_t count, int64_t ahead, float* lines) {
  const auto load = [](const T* p, __mmask16 mask) { return load_lanes<T>(reinterpret_cast<const char*>(p), mask); };
  if (stride == 1) {  // the rows are adjacent: what they have of an element is a line as it stands
    for (int64_t e = 0; e < count; ++e) _mm512_store_ps(lines + e * kFilterLanes, load(source + e, lane_mask(rows)));
    return;
  }
  for (int64_t e = 0; e < count; e += kFilterLanes) {
    const __mmask16 mask = lane_mask(count - e);
    Vec<float> square[kFilterLanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kFilterLanes; ++r) {
      _mm_prefetch(reinterpret_cast<const char*>(source + r * stride + e + ahead), _MM_HINT_T0);
      square[r] = Vec<float>(Vec<float>::Raw(load(source + r * stride + e, r < rows ? mask : __mmask16(0))));
    }
    transpose(square);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kFilterLanes; ++i) square[i].store(lines + (e + i) * kFilterLanes);
  }
}

// The lines of 16 filters from `filter` on, of some channels.
template <class T>
void load_filter_lines(const FilterSource& source, int64_t filter, int64_t channel, int64_t channels, float* lines) {
  const T* weights =
      reinterpret_cast<const T*>(source.weights) + filter * source.filter_stride + channel * source.channel_stride;
  const int64_t rows = min(kFilterLanes, source.m - filter), ahead = kStepK * source.channel_stride;
  if (source.channel_stride == source.kernel)
    return transpose_rows(weights, source.filter_stride, rows, channels * source.kernel, ahead, lines);
  for (int64_t c = 0; c < channels; ++c)
    transpose_rows(weights + c * source.channel_stride, source.filter_stride, rows, source.kernel, ahead,
                   lines + c * source.kernel * kFilterLanes);
}

// One tile for each part: k's line is at lines + line_of[k] + offsets[k] lines.
template <int P>
void pack_filter_tile(const float* lines, const int32_t* offsets, const int64_t* line_of, int64_t depth, bool rows,
                      char* tile, RangeLanes& range) {
  const auto line = [&](int64_t k) {
    return k < depth ? _mm512_load_ps(lines + (line_of[k] + offsets[k]) * kFilterLanes) : _mm512_setzero_ps();
  };
  for (int64_t k = 0; k < kStepK; k += 2) {
    const __m512 even = line(k), odd = line(k + 1);
    __m512i parts[P];
    if constexpr (P == 1) {
      parts[0] = pair_upper(even, odd);
    } else {
      range.add(even), range.add(odd);
      split<P>(even, odd, parts, [](__m512 a, __m512 b) { return pair_upper(a, b); });
    }
    store_parts<P>(tile + k / 2 * 64, kBlockBytes, parts);
  }
  for (int p = 0; p < P && rows; ++p) transpose_tile(tile + p * kBlockBytes);
}

// The tiles of 16 filters for `source.taps` steps from `step` on.
template <int P>
void pack_filter_taps(const FilterSource& source, int64_t filter, int64_t step, char* tiles, RangeLanes& range) {
  const int32_t* offsets = source.offsets + step * kStepK;
  int64_t depth = 0, channel_of[kStepK], line_of[kStepK], first = INT64_MAX, last = 0;
  for (; depth < kStepK && offsets[depth] >= 0; ++depth) {
    channel_of[depth] = offsets[depth] / source.channel_stride;
    first = min(first, channel_of[depth]), last = max(last, channel_of[depth]);
  }
  for (int64_t k = 0; k < depth; ++k)
    line_of[k] = (channel_of[k] - first) * source.kernel - channel_of[k] * source.channel_stride;
  const int64_t channels = last - first + 1;
  float* lines = static_cast<float*>(thread_scratch(
      Scratch::Operation, size_t((channels * source.kernel + kFilterLanes) * kFilterLanes) * sizeof(float)));
  (source.dtype == DType::Float32 ? load_filter_lines<float> : load_filter_lines<bfloat16>)(source, filter, first,
                                                                                            channels, lines);
  for (int64_t tap = 0; tap < source.taps; ++tap, offsets += kStepK, tiles += P * kBlockBytes)
    pack_filter_tile<P>(lines, offsets, line_of, depth, source.rows, tiles, range);
}

// Some steps of a panel: those of whole groups of channels.
template <int P>
void pack_filter_steps(const FilterSource& source, int64_t panel, int64_t step, int64_t steps, char* memory,
                       RangeLanes& range) {
  for (const int64_t end = step + steps; step < end; step += source.taps, memory += source.taps * P * kBlockBytes)
    for (int64_t half = 0; half < 2; ++half)
      pack_filter_taps<P>(source, panel * kBlock + half * kFilterLanes, step, memory + half * kTileBytes, range);
}

template <int P>
PartRange pack_filter_panel(const FilterSource& source, int64_t panel, char* memory) {
  RangeLanes range;
  pack_filter_steps<P>(source, panel, 0, source.steps, memory, range);
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
