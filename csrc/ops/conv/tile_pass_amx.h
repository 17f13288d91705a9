// One group of one pass of an AMX convolution (conv_amx.cpp), and how its sums reach the output.
//
// Sums come as blocks of 32 positions x 32 filters. For NHWC a position's filters are stored as they stand; for NCHW
// squares of 16 x 16 are transposed, and filter by filter the runs of positions within output rows are stored, so
// that memory is written along rows. Bias, residual and activation are applied on the way.
#pragma once

#include "gemm/store_amx.h"
#include "ops/conv/planes_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kBlockTiles = 8;  // tiles of 32 positions whose sums are stored together

// One group of one pass.
struct TilePass {
  TilePlanes planes;
  int64_t row_taps, column_taps;  // column_taps is 1 when they are folded into channels
  int64_t m;                      // results' channels of the group
  const int64_t* weight_steps;    // where a step begins in a packed panel
  const int64_t* plane_steps;     // and in the planes
  TileOutput out;                 // c: the group's first channel of the first image; c_row: elements of a channel
  OutputAxis rows, columns;
  int64_t image_elements;  // of the whole output
  int64_t pixel_elements;  // of all channels, in NHWC; 0 in NCHW
  bool streamed;           // the output is larger than the caches: it need not be read before it is written

  int64_t steps() const { return planes.channel_groups() * row_taps * column_taps; }
  int64_t positions() const { return (rows.count - 1) * planes.planes.columns.length + columns.count; }
  // Tiles begin anew with every image, or run on over all of them, whichever makes fewer.
  int64_t image_tiles() const { return ceil_div(positions(), kBlock); }
  int64_t flat_positions() const { return (planes.images - 1) * planes.plane() + positions(); }
  bool flat() const { return ceil_div(flat_positions(), kBlock) < planes.images * image_tiles(); }
  int64_t tiles() const { return flat() ? ceil_div(flat_positions(), kBlock) : planes.images * image_tiles(); }
  int64_t panels() const { return ceil_div(m, kBlock); }
};

// The positions of a tile, counted over all images: [begin, end), 32 at most.
struct TileSpan {
  int64_t begin, end;

  TileSpan(const TilePass& pass, int64_t tile) {
    const int64_t image = pass.flat() ? 0 : tile / pass.image_tiles();
    const int64_t first = pass.flat() ? tile * kBlock : tile % pass.image_tiles() * kBlock;
    const int64_t valid = pass.flat() ? pass.flat_positions() : pass.positions();
    begin = image * pass.planes.plane() + first;
    end = begin + min(kBlock, valid - first);
  }
};

// A run of 16 lanes within one output row: those in `mask`; lane 0's element is at `offset` of the channel.
struct LaneRun {
  __mmask16 mask;
  int64_t offset;
};

// The runs of the lanes from `position` to `end`, 16 at most; returns their number.
inline int lane_runs(const TilePass& pass, int64_t position, int64_t end, LaneRun* runs) {
  const int64_t length = pass.planes.planes.columns.length, plane = pass.planes.plane();
  const int64_t lanes = min(16, end - position);
  int count = 0;
  for (int64_t at = 0; at < lanes;) {
    const int64_t image = (position + at) / plane, rest = (position + at) % plane;
    const int64_t row = rest / length, column = rest % length;
    const int64_t run_end = min(lanes, at + pass.columns.count - column);
    if (run_end > at && row < pass.rows.count) {
      const int64_t target = (pass.rows.first + row * pass.rows.step) * pass.columns.size + pass.columns.first +
                             (column - at) * pass.columns.step;
      runs[count++] = {__mmask16((1u << run_end) - (1u << at)),
                       (pass.planes.first_image + image) * pass.image_elements + target};
    }
    at += length - column;
  }
  return count;
}

// 16 adjacent elements.
template <class T>
inline void store_full(const TilePass& pass, char* target, __m512 x) {
  if constexpr (sizeof(T) == 4) {
    if (pass.streamed && reinterpret_cast<uintptr_t>(target) % 64 == 0)
      return _mm512_stream_ps(reinterpret_cast<float*>(target), x);
    _mm512_storeu_ps(target, x);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), __m256i(_mm512_cvtneps_pbh(x)));
  }
}

template <class T>
inline void store_run(const TilePass& pass, char* channel, const LaneRun& run, __m512 x) {
  char* target = channel + run.offset * int64_t(sizeof(T));
  if (pass.columns.step == 1)
    return run.mask == 0xffff ? store_full<T>(pass, target, x) : store_lanes<T>(target, run.mask, x);
  const int step = int(pass.columns.step);
  if constexpr (sizeof(T) == 4) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_mask_i32scatter_ps(target, run.mask, _mm512_mullo_epi32(lanes, _mm512_set1_epi32(step)), x, 4);
  } else {
    alignas(32) T lanes[16];
    store_lanes<T>(reinterpret_cast<char*>(lanes), 0xffff, x);
    for (int lane = 0; lane < 16; ++lane)
      if (run.mask >> lane & 1) reinterpret_cast<T*>(target)[lane * step] = lanes[lane];
  }
}

// The runs of 16 positions of a tile.
struct HalfTile {
  int n_runs;
  LaneRun runs[16];
};

template <class T>
inline __m512 finish_lanes(const TilePass& pass, __m512 x, float bias, const HalfTile& half, int64_t channel_offset) {
  x = _mm512_add_ps(x, _mm512_set1_ps(bias));
  if (pass.out.residual)
    for (int i = 0; i < half.n_runs; ++i)
      x = _mm512_mask_add_ps(
          x, half.runs[i].mask, x,
          load_lanes<T>(pass.out.residual + (channel_offset + half.runs[i].offset) * int64_t(sizeof(T)),
                        half.runs[i].mask));
  if (pass.out.activation == Activation::None) return x;
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, x);
  activate_row(pass.out.activation, lanes, 16);
  return _mm512_load_ps(lanes);
}

// The sums [tile] of 32 filters from o on: filter by filter, so that memory is written along rows.
template <class T>
void store_tiles(const TilePass& pass, float* sums, int64_t o, int64_t tile, int64_t tile_end) {
  HalfTile halves[2 * kBlockTiles];
  const int64_t n_halves = 2 * (tile_end - tile);
  for (int64_t h = 0; h < n_halves; ++h) {
    const TileSpan span(pass, tile + h / 2);
    halves[h].n_runs = lane_runs(pass, span.begin + h % 2 * 16, span.end, halves[h].runs);
    transpose_tile(reinterpret_cast<char*>(sums + 512 * h));
    if (pass.m - o > 16) transpose_tile(reinterpret_cast<char*>(sums + 512 * h + 256));
  }
  const bool relu = pass.out.activation == Activation::Relu;
  const bool simple = !pass.out.residual && (relu || pass.out.activation == Activation::None) && pass.columns.step == 1;
  for (int64_t f = 0; f < min(kBlock, pass.m - o); ++f) {
    const float bias =
        pass.out.row_bias ? _mm512_cvtss_f32(load_lanes<T>(pass.out.row_bias + (o + f) * int64_t(sizeof(T)), 1)) : 0;
    for (int64_t h = 0; h < n_halves; ++h) {
      const int64_t offset = (o + f) * pass.out.c_row;
      if (simple && halves[h].n_runs == 1 && halves[h].runs[0].mask == 0xffff) {
        __m512 x = _mm512_add_ps(_mm512_load_ps(sums + 512 * h + f / 16 * 256 + f % 16 * 16), _mm512_set1_ps(bias));
        if (relu) x = _mm512_max_ps(_mm512_setzero_ps(), x);  // the second operand where one is NaN
        store_full<T>(pass, pass.out.c + (offset + halves[h].runs[0].offset) * int64_t(sizeof(T)), x);
        continue;
      }
      const __m512 x =
          finish_lanes<T>(pass, _mm512_load_ps(sums + 512 * h + f / 16 * 256 + f % 16 * 16), bias, halves[h], offset);
      for (int i = 0; i < halves[h].n_runs; ++i)
        store_run<T>(pass, pass.out.c + offset * int64_t(sizeof(T)), halves[h].runs[i], x);
    }
  }
}

// The same for NHWC, where the filters of a position are adjacent.
template <class T>
void store_pixels(const TilePass& pass, float* sums, int64_t o, int64_t tile, int64_t tile_end) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t length = pass.planes.planes.columns.length, plane = pass.planes.plane();
  const int64_t filters = min(kBlock, pass.m - o);
  const __mmask16 masks[2] = {lane_mask(filters), lane_mask(filters - 16)};
  __m512 bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int half = 0; half < 2 && pass.out.row_bias; ++half)
    bias[half] = load_lanes<T>(pass.out.row_bias + (o + 16 * half) * kSize, masks[half]);
  for (; tile < tile_end; ++tile, sums += kSumsPerBlock) {
    const TileSpan span(pass, tile);
    for (int64_t r = 0; r < span.end - span.begin; ++r) {
      const int64_t image = pass.planes.first_image + (span.begin + r) / plane, rest = (span.begin + r) % plane;
      const int64_t row = rest / length, column = rest % length;
      if (column >= pass.columns.count || row >= pass.rows.count) continue;
      const int64_t pixel = (image * pass.rows.size + pass.rows.first + row * pass.rows.step) * pass.columns.size +
                            pass.columns.first + column * pass.columns.step;
      const int64_t at = (pixel * pass.pixel_elements + o) * kSize;
      float* lanes = block_row(sums, r);
      for (int half = 0; half < 2; ++half) {
        __m512 x = _mm512_add_ps(_mm512_load_ps(lanes + 256 * half), bias[half]);
        if (pass.out.residual)
          x = _mm512_add_ps(x, load_lanes<T>(pass.out.residual + at + 16 * half * kSize, masks[half]));
        if (pass.out.activation != Activation::None) {
          _mm512_store_ps(lanes + 256 * half, x);
          activate_row(pass.out.activation, lanes + 256 * half, 16);
          x = _mm512_load_ps(lanes + 256 * half);
        }
        store_lanes<T>(pass.out.c + at + 16 * half * kSize, masks[half], x);
      }
    }
  }
}

}  // namespace
}  // namespace fastnn
