// How the sums of an AMX convolution (tile_pass_amx.h) reach the output: bias, residual and activation are applied on
// the way.
//
// A block of sums is 32 filters x 32 positions, or the other way round when the source is lines. NHWC takes lines,
// and a position's filters are stored as they stand. NCHW takes a filter's positions, in the runs that lie within
// output rows, or where rows are adjacent, within images; of lines they are transposed before. Two column phases are
// stored woven.
#pragma once

#include "gemm/pack_amx.h"
#include "gemm/prefetch.h"
#include "gemm/store_amx.h"
#include "ops/conv/interleaved_amx.h"
#include "ops/conv/tile_pass_amx.h"

namespace fastnn {
namespace {

inline void load_bias(const TilePass& pass, int64_t o, int64_t filters, float* bias) {
  if (!pass.out.row_bias) return;
  const char* from = pass.out.row_bias + o * pass.out.size();
  for (int64_t half = 0; half < 2; ++half, from += 16 * pass.out.size()) {
    const __mmask16 mask = lane_mask(filters - 16 * half);
    _mm512_store_ps(bias + 16 * half, pass.out.dtype == DType::Float32 ? load_lanes<float>(from, mask)
                                                                       : load_lanes<bfloat16>(from, mask));
  }
}

// ---------------------------------------------------------------------------------------- NCHW

// Lanes of a tile's positions in `mask` that are adjacent in the output. Lane 0's element is at `offset` of the
// channel, or where rows are adjacent, the first lane's; then `room` says how many elements may be written there.
struct LaneRun {
  __mmask32 mask;
  int64_t offset;
  int64_t room = 0;
};

// Whether an image's rows of a task follow each other in the output without gaps.
inline bool rows_are_adjacent(const TilePass& pass, const SourceRange& range) {
  return pass.columns.step == 1 && (range.rows == 1 || (pass.rows.step == 1 && range.columns == pass.columns.size));
}

struct TileRuns {
  int count = 0;
  LaneRun runs[kBlock];

  TileRuns() { runs[0] = {0, 0}; }
  // The runs of `lanes` positions from `at` on, each within one output row.
  void find(const TilePass& pass, const TileTask& task, OutputPosition at, int64_t lanes) {
    count = 0;
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t run = at.valid() ? min(lanes - lane, task.range.columns - at.column) : 0;
      if (run > 0)
        runs[count++] = {lanes_of(lane, run),
                         (task.range.image + at.image) * pass.image_elements + at.pixel() - lane * pass.columns.step};
      const int64_t rest = at.length - at.column;
      at.advance(rest);
      lane += rest;
    }
  }
  // The same where rows are adjacent: a run for each image. What is written behind its lanes within the image's rows of
  // the task is written again by the next tiles. `at` goes on to the end of the lanes.
  void find_adjacent(const TilePass& pass, const TileTask& task, OutputPosition& at, int64_t lanes) {
    count = 0;
    int64_t image = -1;
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t run = at.valid() ? min(lanes - lane, task.range.columns - at.column) : 0;
      if (run > 0 && at.image == image) {
        runs[count - 1].mask |= lanes_of(lane, run);
      } else if (run > 0) {
        image = at.image;
        runs[count++] = {lanes_of(lane, run), (task.range.image + image) * pass.image_elements + at.pixel(),
                         (task.range.rows - at.row) * task.range.columns - at.column};
      }
      const int64_t rest = min(at.length - at.column, lanes - lane);
      at.advance(rest);
      lane += rest;
    }
  }
  bool whole() const { return count == 1 && runs[0].mask == ~__mmask32(0); }

 private:
  static __mmask32 lanes_of(int64_t lane, int64_t count) { return __mmask32(((uint64_t(1) << count) - 1) << lane); }
};

// 32 words of a filter to every step-th element.
inline void store_words(char* target, int64_t step, __mmask32 mask, __m512i words) {
  if (step == 1) {
    _mm512_mask_storeu_epi16(target, mask, words);
  } else if (step == 2) {
    const uint32_t low = _pdep_u32(mask & 0xffff, 0x55555555), high = _pdep_u32(mask >> 16, 0x55555555);
    _mm512_mask_storeu_epi16(target, low, _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words)));
    _mm512_mask_storeu_epi16(target + 64, high, _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1)));
  } else {
    alignas(64) uint16_t lanes[kBlock];
    _mm512_store_si512(lanes, words);
    for (int64_t lane = 0; lane < kBlock; ++lane)
      if (mask >> lane & 1) reinterpret_cast<uint16_t*>(target)[lane * step] = lanes[lane];
  }
}

// 32 lanes of a filter to every step-th element.
template <class T>
inline void store_run(const TilePass& pass, char* target, __mmask32 mask, __m512 x, __m512 y) {
  const int64_t step = pass.columns.step;
  const uint32_t low = _pdep_u32(mask & 0xffff, 0x55555555), high = _pdep_u32(mask >> 16, 0x55555555);
  if constexpr (sizeof(T) == 4) {
    if (step == 1) {
      _mm512_mask_storeu_ps(target, __mmask16(mask), x);
      _mm512_mask_storeu_ps(target + 64, __mmask16(mask >> 16), y);
    } else if (step == 2) {
      const __m512i first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
      const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
      _mm512_mask_storeu_ps(target, __mmask16(low), _mm512_permutexvar_ps(first, x));
      _mm512_mask_storeu_ps(target + 64, __mmask16(low >> 16), _mm512_permutexvar_ps(second, x));
      _mm512_mask_storeu_ps(target + 128, __mmask16(high), _mm512_permutexvar_ps(first, y));
      _mm512_mask_storeu_ps(target + 192, __mmask16(high >> 16), _mm512_permutexvar_ps(second, y));
    } else {
      alignas(64) float lanes[kBlock];
      _mm512_store_ps(lanes, x), _mm512_store_ps(lanes + 16, y);
      for (int64_t lane = 0; lane < kBlock; ++lane)
        if (mask >> lane & 1) reinterpret_cast<float*>(target)[lane * step] = lanes[lane];
    }
  } else {
    store_words(target, step, mask, __m512i(_mm512_cvtne2ps_pbh(y, x)));
  }
}

// The lanes of two registers in turns.
inline __m512i weave_words(__m512i even, __m512i odd, int64_t half) {
  alignas(64) static constexpr uint16_t kTurns[2][32] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  return _mm512_permutex2var_epi16(even, _mm512_load_si512(kTurns[half]), odd);
}

// Twice every bit.
inline uint64_t weave_mask(uint32_t mask) { return _pdep_u64(mask, 0x5555555555555555) * 3; }

// 64 words of a filter: 32 of each column phase.
inline void store_woven_words(char* target, __mmask32 mask, __m512i even, __m512i odd) {
  const uint64_t woven = weave_mask(mask);
  _mm512_mask_storeu_epi16(target, __mmask32(woven), weave_words(even, odd, 0));
  _mm512_mask_storeu_epi16(target + 64, __mmask32(woven >> 32), weave_words(even, odd, 1));
}

// The same from sums.
template <class T>
inline void store_woven(char* target, __mmask32 mask, __m512 even_x, __m512 even_y, __m512 odd_x, __m512 odd_y) {
  if constexpr (sizeof(T) == 2) {
    store_woven_words(target, mask, __m512i(_mm512_cvtne2ps_pbh(even_y, even_x)),
                      __m512i(_mm512_cvtne2ps_pbh(odd_y, odd_x)));
  } else {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const uint64_t woven = weave_mask(mask);
    _mm512_mask_storeu_ps(target, __mmask16(woven), _mm512_permutex2var_ps(even_x, low, odd_x));
    _mm512_mask_storeu_ps(target + 64, __mmask16(woven >> 16), _mm512_permutex2var_ps(even_x, high, odd_x));
    _mm512_mask_storeu_ps(target + 128, __mmask16(woven >> 32), _mm512_permutex2var_ps(even_y, low, odd_y));
    _mm512_mask_storeu_ps(target + 192, __mmask16(woven >> 48), _mm512_permutex2var_ps(even_y, high, odd_y));
  }
}

// The lanes of a run of adjacent rows: one store whatever the gaps between them, and no mask where there is room.
inline void store_adjacent_words(char* target, const LaneRun& run, __m512i words) {
  words = _mm512_maskz_compress_epi16(run.mask, words);
  if (run.room >= kBlock) {
    _mm512_storeu_si512(target, words);
  } else {
    _mm512_mask_storeu_epi16(target, _bzhi_u32(~0u, uint32_t(_mm_popcnt_u32(run.mask))), words);
  }
}

template <class T>
inline void store_adjacent(char* target, const LaneRun& run, __m512 x, __m512 y) {
  if constexpr (sizeof(T) == 2) {
    store_adjacent_words(target, run, __m512i(_mm512_cvtne2ps_pbh(y, x)));
  } else {
    const int64_t first = _mm_popcnt_u32(run.mask & 0xffff), second = _mm_popcnt_u32(run.mask >> 16);
    _mm512_mask_storeu_ps(target, lane_mask(first), _mm512_maskz_compress_ps(__mmask16(run.mask), x));
    _mm512_mask_storeu_ps(target + first * 4, lane_mask(second),
                          _mm512_maskz_compress_ps(__mmask16(run.mask >> 16), y));
  }
}

// A tile, and where all of its positions go, if that is one run of adjacent rows (LaneRun) with room for 32 elements.
struct PlacedTile {
  TileSpan span;
  int64_t offset;
  uint32_t mask, single;
};

// The sums of a block on their way to the output, in small pieces: between the next block's products, which leave the
// vector units idle.
template <class T>
class BlockStore {
 public:
  BlockStore(const TilePass& pass, const TileTask& task)
      : pass_(pass),
        task_(task),
        at_(pass, task, 0),
        relu_(pass.out.activation == Activation::Relu),
        in_place_(!pass.source.pixels && (pass.out.residual || (pass.out.activation != Activation::None && !relu_))),
        adjacent_(!in_place_ && rows_are_adjacent(pass, task.range)) {}

  // Whether blocks may be stored as interleaved ones (interleaved_amx.h).
  bool interleaves() const {
    return kSize == 2 && adjacent_ && pass_.column_phases == 1 && !pass_.source.pixels && pass_.taps[0].steps > 0;
  }
  // The least result.
  float least() const { return relu_ ? 0 : -__builtin_inff(); }
  // All tiles of the task.
  void place(const TaskTiles& tiles, PlacedTile* placed) {
    OutputPosition at(pass_, task_, 0);
    int64_t position = 0;
    for (int64_t tile = 0; tile < tiles.tiles; ++tile) {
      const TileSpan span(tiles, tile);
      if (span.begin != position) at = OutputPosition(pass_, task_, span.begin);
      runs_.find_adjacent(pass_, task_, at, span.end - span.begin);
      const LaneRun& run = runs_.runs[0];
      PlacedTile& to = placed[tile];
      to.span = span, to.offset = run.offset, to.mask = run.mask;
      to.single = runs_.count == 1 && run.room >= kBlock && (transposed() || runs_.whole());
      position = span.end;
    }
  }
  // The sums of panel o / 32, of one column phase after the other; they stay until the last piece is stored.
  void begin(const TileSpan& span, int64_t o, float* sums) {
    if (o != o_) load_bias(pass_, o, min(kBlock, pass_.m - o), bias_);
    sums_ = sums, o_ = o, filters_ = min(kBlock, pass_.m - o), piece_ = due_ = 0;
    at_ = OutputPosition(pass_, task_, span.begin);
    positions_ = span.end - span.begin;
    pieces_ = pass_.source.pixels ? ceil_div(positions_, kPiecePixels)
              : rounded()         ? ceil_div(filters_, 16) * kRoundedPieces
                                  : transposes() + ceil_div(filters_, kPieceFilters);
    if (pass_.source.pixels) return;
    OutputPosition at = at_;
    adjacent_ ? runs_.find_adjacent(pass_, task_, at, positions_) : runs_.find(pass_, task_, at, positions_);
  }
  // What is due with one of `steps` steps of the next block.
  void run_beside(int64_t steps) {
    for (due_ += pieces_; due_ >= steps && piece_ < pieces_; due_ -= steps) run_piece();
  }
  void finish() {
    while (piece_ < pieces_) run_piece();
  }

 private:
  static constexpr int64_t kSize = sizeof(T);
  static constexpr int64_t kPieceFilters = kSize == 2 ? 16 : 4, kPiecePixels = 8;
  static constexpr int64_t kRoundedPieces = 4;  // of 16 filters

  void run_piece() {
    const int64_t piece = piece_++;
    if (pass_.source.pixels) return store_pixels(piece * kPiecePixels);
    if constexpr (kSize == 2) {
      if (rounded()) return store_rounded(piece / kRoundedPieces * 16, piece % kRoundedPieces);
    }
    if (piece < transposes()) return transpose_tile(reinterpret_cast<char*>(sums_ + piece * 256));
    store_filters((piece - transposes()) * kPieceFilters);
  }

  // Whether a tile's positions are adjacent in the output, as all tiles' are.
  bool whole_run() const {
    return pass_.columns.step == 1 && pass_.source.row_length == task_.range.columns && runs_.whole();
  }
  // Whether sums are rounded before they are transposed: half as much to do.
  bool rounded() const { return kSize == 2 && !in_place_ && transposed(); }
  int64_t transposes() const { return transposed() ? 4 * pass_.column_phases : 0; }
  bool transposed() const { return pass_.source.lines && !pass_.source.pixels; }
  int64_t pixel_offset(const OutputPosition& at) const {
    return ((task_.range.image + at.image) * pass_.image_elements + o_ + at.pixel() * pass_.pixel_elements) * kSize;
  }
  // The first and the second 16 positions of a filter.
  float* lanes_of(int64_t f, int64_t half) const {
    const int64_t filters = f / 16, row = f % 16 * 16;
    return sums_ + (transposed() ? 512 * half + 256 * filters : 512 * filters + 256 * half) + row;
  }

  // Residual and activation, where there are more than a bias and a relu to apply.
  __attribute__((noinline)) void finish_filters() {
    for (int64_t f = 0; f < filters_; ++f)
      for (int64_t half = 0; half < 2; ++half) {
        float* lanes = lanes_of(f, half);
        __m512 x = _mm512_add_ps(_mm512_load_ps(lanes), _mm512_set1_ps(bias_[f]));
        for (int i = 0; i < runs_.count && pass_.out.residual; ++i) {
          const __mmask16 mask = __mmask16(runs_.runs[i].mask >> (16 * half));
          const int64_t at = (o_ + f) * pass_.out.c_row + runs_.runs[i].offset + 16 * half * pass_.columns.step;
          x = _mm512_mask_add_ps(x, mask, x, load_lanes<T>(pass_.out.residual + at * kSize, mask));
        }
        _mm512_store_ps(lanes, x);
      }
    if (pass_.out.activation != Activation::None) activate_row(pass_.out.activation, sums_, kSumsPerBlock);
  }

  // Where the next block of `count` filters goes: a line of every channel is more streams than the hardware follows.
  void fetch_next(int64_t f, int64_t count) const {
    const int64_t channel_bytes = pass_.out.c_row * kSize;
    const char* next = pass_.out.c + (o_ + f) * channel_bytes + (runs_.runs[0].offset + kBlock) * kSize;
    for (int64_t e = 0; e < count && runs_.count > 0; ++e, next += channel_bytes)
      for (int64_t line = 0; line < kSize / 2; ++line) prefetch_written(next + line * 64);
  }

  void store_filters(int64_t begin) {
    if (in_place_ && begin == 0) finish_filters();
    if (adjacent_ && (kSize == 2 || !whole_run())) fetch_next(begin, min(kPieceFilters, filters_ - begin));
    const bool plain = !in_place_, relu = plain && relu_, whole = whole_run();
    const int64_t channel_bytes = pass_.out.c_row * kSize, half = lanes_of(0, 1) - lanes_of(0, 0);
    char* channel = pass_.out.c + (o_ + begin) * channel_bytes;
    char* const run = channel + runs_.runs[0].offset * kSize;
    for (int64_t f = begin; f < min(begin + kPieceFilters, filters_); ++f, channel += channel_bytes) {
      const float* lanes = lanes_of(f, 0);
      __m512 x = _mm512_load_ps(lanes), y = _mm512_load_ps(lanes + half);
      if (plain) x = _mm512_add_ps(x, _mm512_set1_ps(bias_[f])), y = _mm512_add_ps(y, _mm512_set1_ps(bias_[f]));
      // The second operand where one is NaN.
      if (relu) x = _mm512_max_ps(_mm512_setzero_ps(), x), y = _mm512_max_ps(_mm512_setzero_ps(), y);
      if (pass_.column_phases == 2) {
        const __m512 odd_x = _mm512_load_ps(lanes + kSumsPerBlock),
                     odd_y = _mm512_load_ps(lanes + kSumsPerBlock + half);
        for (int i = 0; i < runs_.count; ++i)
          store_woven<T>(channel + runs_.runs[i].offset * kSize, runs_.runs[i].mask, x, y, odd_x, odd_y);
        continue;
      }
      if (whole) {
        store_whole<T>(run + (f - begin) * channel_bytes, x, y);
      } else if (adjacent_) {
        for (int i = 0; i < runs_.count; ++i)
          store_adjacent<T>(channel + runs_.runs[i].offset * kSize, runs_.runs[i], x, y);
      } else {
        for (int i = 0; i < runs_.count; ++i)
          store_run<T>(pass_, channel + runs_.runs[i].offset * kSize, runs_.runs[i].mask, x, y);
      }
    }
  }

  // 16 filters of positions x filters, from f on: two pieces transpose 16 positions each, two store 8 filters each.
  void store_rounded(int64_t f, int64_t piece) {
    if (piece >= 2) return store_eight(f + 8 * (piece - 2), piece == 2 ? kLowEights : kHighEights);
    if (piece == 0) fetch_next(f, min(16, filters_ - f));
    for (int phase = 0; phase < pass_.column_phases; ++phase)
      round_positions(sums_ + phase * kSumsPerBlock + f / 16 * 256 + 128 * piece, bias_ + f, least(),
                      words_[phase][piece]);
  }

  // The 32 positions of 8 filters.
  void store_eight(int64_t f, const int64_t (&eights)[8]) const {
    const auto row = [&](int64_t phase, int64_t e) { return join_eights(words_[phase], e, eights); };
    const int64_t n = min(8, filters_ - f), channel_bytes = pass_.out.c_row * kSize;
    char* const channel = pass_.out.c + (o_ + f) * channel_bytes;
    if (whole_run()) {
      char* target = channel + runs_.runs[0].offset * kSize;
      for (int64_t e = 0; e < n; ++e, target += channel_bytes) _mm512_storeu_si512(target, row(0, e));
      return;
    }
    for (int i = 0; i < runs_.count; ++i) {
      const LaneRun run = runs_.runs[i];
      char* target = channel + run.offset * kSize;
      if (adjacent_) {
        for (int64_t e = 0; e < n; ++e, target += channel_bytes) store_adjacent_words(target, run, row(0, e));
      } else if (pass_.column_phases == 2) {
        for (int64_t e = 0; e < n; ++e, target += channel_bytes)
          store_woven_words(target, run.mask, row(0, e), row(1, e));
      } else {
        for (int64_t e = 0; e < n; ++e, target += channel_bytes)
          store_words(target, pass_.columns.step, run.mask, row(0, e));
      }
    }
  }

  // kPiecePixels of them from `begin` on, where at_ is.
  void store_pixels(int64_t begin) {
    const uint32_t mask = uint32_t((uint64_t(1) << filters_) - 1);
    const __mmask16 low = __mmask16(mask), high = __mmask16(mask >> 16);
    const __m512 low_bias = _mm512_load_ps(bias_), high_bias = _mm512_load_ps(bias_ + 16);
    const bool relu = relu_, general = !relu && pass_.out.activation != Activation::None;
    const char* residual = pass_.out.residual;
    OutputPosition at = at_;
    for (int64_t r = begin; r < min(begin + kPiecePixels, positions_); at.advance(1), ++r) {
      if (!at.valid()) continue;
      const int64_t offset = pixel_offset(at);
      const float* lanes = block_row(sums_, r);
      __m512 x = _mm512_add_ps(_mm512_load_ps(lanes), low_bias);
      __m512 y = _mm512_add_ps(_mm512_load_ps(lanes + 256), high_bias);
      if (residual) {
        x = _mm512_add_ps(x, load_lanes<T>(residual + offset, low));
        y = _mm512_add_ps(y, load_lanes<T>(residual + offset + 16 * kSize, high));
      }
      if (relu) x = _mm512_max_ps(_mm512_setzero_ps(), x), y = _mm512_max_ps(_mm512_setzero_ps(), y);
      if (general) activate_pixel(x, y);
      char* target = pass_.out.c + offset;
      if constexpr (kSize == 4) {
        _mm512_mask_storeu_ps(target, low, x);
        _mm512_mask_storeu_ps(target + 64, high, y);
      } else if (mask == ~0u) {
        store_whole<T>(target, x, y);
      } else {
        _mm512_mask_storeu_epi16(target, mask, __m512i(_mm512_cvtne2ps_pbh(y, x)));
      }
    }
    at_ = at;
  }

  __attribute__((noinline)) void activate_pixel(__m512& x, __m512& y) const {
    alignas(64) float values[kBlock];
    _mm512_store_ps(values, x), _mm512_store_ps(values + 16, y);
    activate_row(pass_.out.activation, values, kBlock);
    x = _mm512_load_ps(values), y = _mm512_load_ps(values + 16);
  }

  const TilePass& pass_;
  const TileTask& task_;
  alignas(64) float bias_[kBlock] = {};
  float* sums_ = nullptr;
  int64_t o_ = -1, filters_ = 0, positions_ = 0;
  int64_t piece_ = 0, pieces_ = 0, due_ = 0;  // due_: of the pieces, in steps
  OutputPosition at_;
  TileRuns runs_;
  __m512i words_[2][2][8];  // of each column phase: 16 filters, transposed
  const bool relu_, in_place_, adjacent_;
};

}  // namespace
}  // namespace fastnn
