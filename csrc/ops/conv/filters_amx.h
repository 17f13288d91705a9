// A convolution's weights for AMX tiles: packed as B, in panels of 32 filters, [step][part][half] tiles of 16 pairs
// of k x 16 filters. A step is 32 source channels under one tap; steps go by groups of channels, then taps. "Filters"
// are the results' channels: those of y for the forward pass, of x for the gradient of the input.
//
// Rows of weights are read once, along memory: 16 of them are transposed in squares into lines of 16 filters,
// [channel][element of the kernel], which stay in the first-level cache for a group of channels. A row of a tile
// is then two lines, split into parts. Cost for 16 weights: four shuffles, a store, a load, half of a split. (Gathering
// each tap's weights with their stride took three times as long.)
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "gemm/pack_amx.h"
#include "ops/conv/planes_cpu.h"

namespace fastnn {
namespace {

// Strides count elements. Element (filter, channel, e) lies at filter * stride + channel * channel_stride + e, and
// tap (row, column) is element first_tap + row * row_tap + column * column_tap of `kernel`.
struct Filters {
  const char* weights;
  DType dtype;
  int64_t count, stride;
  int64_t channels, channel_stride, kernel;
  int64_t row_taps, column_taps;
  int64_t first_tap, row_tap, column_tap;
  bool folded;  // column taps are channels of their own (planes_amx.h)

  int64_t folds() const { return folded ? column_taps : 1; }
  int64_t depth() const { return channels * folds(); }
  int64_t groups() const { return ceil_div(depth(), kStepK); }
  int64_t taps() const { return folded ? row_taps : row_taps * column_taps; }  // of a group: its steps
  int64_t steps() const { return groups() * taps(); }
  int64_t panels() const { return ceil_div(count, kBlock); }
  template <int P>
  int64_t panel_bytes() const {
    return steps() * P * kBlockBytes;
  }
  // With the ranges of the panels behind them.
  template <int P>
  int64_t bytes() const {
    return ceil_div(panels() * (panel_bytes<P>() + int64_t(sizeof(PartRange))), 64) * 64;
  }
};

constexpr int64_t kLanes = 16;

// lines[e][r] = element e of row r, for `count` elements.
template <class T>
void transpose_rows(const T* source, int64_t stride, int64_t rows, int64_t count, float* lines) {
  if (stride == 1) {  // the rows are adjacent: what they have of an element is a line as it stands
    for (int64_t e = 0; e < count; ++e)
      _mm512_store_ps(lines + e * kLanes, load_lanes<T>(reinterpret_cast<const char*>(source + e), lane_mask(rows)));
    return;
  }
  for (int64_t e = 0; e < count; e += kLanes) {
    const __mmask16 mask = lane_mask(count - e);
    Vec<float> square[kLanes];
    for (int64_t r = 0; r < kLanes; ++r)
      square[r] = Vec<float>(
          Vec<float>::Raw(r < rows ? load_lanes<T>(reinterpret_cast<const char*>(source + r * stride + e), mask)
                                   : _mm512_setzero_ps()));
    transpose(square);
    for (int64_t i = 0; i < min(kLanes, count - e); ++i) square[i].store(lines + (e + i) * kLanes);
  }
}

// The lines of 16 filters from `filter` on, of some channels.
template <class T>
void load_filter_lines(const Filters& filters, int64_t filter, int64_t channel, int64_t channels, float* lines) {
  const T* source =
      reinterpret_cast<const T*>(filters.weights) + filter * filters.stride + channel * filters.channel_stride;
  const int64_t rows = min(kLanes, filters.count - filter);
  if (filters.channel_stride == filters.kernel)
    return transpose_rows(source, filters.stride, rows, channels * filters.kernel, lines);
  for (int64_t c = 0; c < channels; ++c)
    transpose_rows(source + c * filters.channel_stride, filters.stride, rows, filters.kernel,
                   lines + c * filters.kernel * kLanes);
}

// The tiles of 16 filters of a panel for one group of channels, a step after another.
template <int P>
void pack_filter_group(const Filters& filters, int64_t filter, int64_t group, char* tiles, RangeLanes& range) {
  const int64_t folds = filters.folds(), first = group * kStepK / folds;
  const int64_t depth = min(kStepK, filters.depth() - group * kStepK);
  const int64_t channels = (group * kStepK + depth - 1) / folds + 1 - first;
  float* lines = static_cast<float*>(
      thread_scratch(Scratch::Operation, size_t(channels * filters.kernel * kLanes) * sizeof(float)));
  (filters.dtype == DType::Float32 ? load_filter_lines<float> : load_filter_lines<bfloat16>)(filters, filter, first,
                                                                                             channels, lines);
  const float* line_of[kStepK];  // of tap (0, 0)
  for (int64_t k = 0; k < depth; ++k) {
    const int64_t channel = (group * kStepK + k) / folds, fold = (group * kStepK + k) % folds;
    line_of[k] = lines + ((channel - first) * filters.kernel + filters.first_tap + fold * filters.column_tap) * kLanes;
  }
  for (int64_t tap = 0; tap < filters.taps(); ++tap, tiles += P * kBlockBytes) {
    const int64_t columns = filters.folded ? 1 : filters.column_taps;
    const int64_t offset = (tap / columns * filters.row_tap + tap % columns * filters.column_tap) * kLanes;
    for (int64_t k = 0; k < kStepK; k += 2) {
      const __m512 even = k < depth ? _mm512_load_ps(line_of[k] + offset) : _mm512_setzero_ps();
      const __m512 odd = k + 1 < depth ? _mm512_load_ps(line_of[k + 1] + offset) : _mm512_setzero_ps();
      __m512i parts[P];
      if constexpr (P == 1) {
        parts[0] = pair_upper(even, odd);
      } else {
        range.add(even), range.add(odd);
        split<P>(even, odd, parts, [](__m512 a, __m512 b) { return pair_upper(a, b); });
      }
      store_parts<P>(tiles + k / 2 * 64, kBlockBytes, parts);
    }
  }
}

template <int P>
PartRange pack_filter_panel(const Filters& filters, int64_t panel, char* memory) {
  RangeLanes range;
  for (int64_t group = 0; group < filters.groups(); ++group, memory += filters.taps() * P * kBlockBytes)
    for (int64_t half = 0; half < 2; ++half)
      pack_filter_group<P>(filters, panel * kBlock + half * kLanes, group, memory + half * kTileBytes, range);
  return range.finish();
}

// The range of packed filters.
template <int P>
PartRange packed_range(const Filters& filters, const char* memory) {
  const PartRange* ranges = reinterpret_cast<const PartRange*>(memory + filters.panels() * filters.panel_bytes<P>());
  PartRange range;
  for (int64_t panel = 0; panel < filters.panels(); ++panel) range.add(ranges[panel]);
  return range;
}

template <int P>
PartRange pack_filters(const Filters& filters, char* memory) {
  const int64_t panel_bytes = filters.panel_bytes<P>();
  PartRange* ranges = reinterpret_cast<PartRange*>(memory + filters.panels() * panel_bytes);
  parallel_for(filters.panels(), max(1, 16 / max(1, filters.steps())), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      ranges[panel] = pack_filter_panel<P>(filters, panel, memory + panel * panel_bytes);
  });
  return packed_range<P>(filters, memory);
}

}  // namespace
}  // namespace fastnn
