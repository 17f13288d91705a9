// A block of an AMX convolution in bfloat16, whose products are made while the block before is stored, unrolled: of an
// operation without residual, with no activation or a relu, whose sums lie in one run of the output
// (block_store_amx.h).
//
// The store comes in eight pieces (four of 16 filters): one, two, four or eight beside each of the first steps. Of 9
// steps products and tile stores alone take 222 ns a block; with the pieces as code between products it is 259 ns, and
// with a call for each piece, whose shape was found at run time, it was 440.
#pragma once

#include "gemm/pack_amx.h"
#include "gemm/prefetch.h"
#include "gemm/tile_amx.h"

namespace fastnn {
namespace {

// What is fetched into the second-level cache meanwhile.
struct StepFetch {
  const char* lines;
  int64_t per_step;

  void operator()(int64_t step) const {
    for (int64_t line = 0; line < per_step; ++line) prefetch_near(lines + (step * per_step + line) * 64);
  }
};

// The block before: the sums of 32 (16) filters and 32 positions, to one run of adjacent elements of each filter.
struct BlockTarget {
  const float* sums;
  const float* bias;
  float least;  // of results: 0 under a relu
  char* target;
  int64_t filter_bytes;  // from filter to filter
  __mmask32 mask;        // of the positions that are results: 32 elements are written whatever their number
  int64_t filters;       // that are results
  char* nowhere;         // 64 bytes, for the others

  char* row(int64_t filter) const { return filter < filters ? target + filter * filter_bytes : nowhere; }
};

struct InterleavedStore : BlockTarget {
  __m512i words[2][8];  // of positions x filters: 16 filters, transposed

  explicit InterleavedStore(const BlockTarget& target) : BlockTarget(target) {}
};

alignas(64) constexpr int64_t kLowEights[8] = {0, 1, 8, 9, 4, 5, 12, 13};
alignas(64) constexpr int64_t kHighEights[8] = {2, 3, 10, 11, 6, 7, 14, 15};

// Positions 8 half ... and 16 + 8 half ... of the 16 filters whose sums these are: in quarters, what filters e and
// e + 8 have of them.
inline __attribute__((always_inline)) void round_positions(const float* lanes, const float* biases, float least_value,
                                                           __m512i* words) {
  const __m512 bias = _mm512_load_ps(biases), least = _mm512_set1_ps(least_value);
  // The second operand where one is NaN.
  const auto sum = [&](const float* p) { return _mm512_max_ps(least, _mm512_add_ps(_mm512_load_ps(p), bias)); };
  __m512i rows[8];
#pragma GCC unroll 8
  for (int64_t i = 0; i < 8; ++i)
    rows[i] = __m512i(_mm512_cvtne2ps_pbh(sum(lanes + 512 + i * 16), sum(lanes + i * 16)));
  transpose_eights(rows, words);
}

// The 32 positions of filter e of eight.
inline __attribute__((always_inline)) __m512i join_eights(const __m512i (&words)[2][8], int64_t e,
                                                          const int64_t (&eights)[8]) {
  return _mm512_permutex2var_epi64(words[0][e], _mm512_load_si512(eights), words[1][e]);
}

// Sums of filters x positions, or of positions x filters, all of which are results, or with gaps between rows.
enum class BlockForm { Filters, Positions, GappedPositions };

// Of sums of positions x filters: of every 16 filters two pieces round and transpose 16 positions each, and two store
// 8 filters each. Of filters x positions, which leave nothing out, each piece stores 4 filters.
template <BlockForm kForm>
inline __attribute__((always_inline)) void store_piece(InterleavedStore& store, int64_t piece) {
  if constexpr (kForm != BlockForm::Filters) {
    const int64_t first = piece / 4 * 16, part = piece % 4;
    if (part < 2)
      return round_positions(store.sums + first * 16 + 128 * part, store.bias + first, store.least, store.words[part]);
    const int64_t eight = part - 2;
#pragma GCC unroll 8
    for (int64_t e = 0; e < 8; ++e) {
      __m512i words = join_eights(store.words, e, eight == 0 ? kLowEights : kHighEights);
      if constexpr (kForm == BlockForm::GappedPositions) words = _mm512_maskz_compress_epi16(store.mask, words);
      _mm512_storeu_si512(store.row(first + 8 * eight + e), words);
    }
  } else {
    const __m512 least = _mm512_set1_ps(store.least);
#pragma GCC unroll 4
    for (int64_t f = piece * 4; f < piece * 4 + 4; ++f) {
      const float* lanes = store.sums + f / 16 * 512 + f % 16 * 16;
      const __m512 bias = _mm512_set1_ps(store.bias[f]);
      const __m512 x = _mm512_max_ps(least, _mm512_add_ps(_mm512_load_ps(lanes), bias));
      const __m512 y = _mm512_max_ps(least, _mm512_add_ps(_mm512_load_ps(lanes + 256), bias));
      _mm512_storeu_si512(store.row(f), __m512i(_mm512_cvtne2ps_pbh(y, x)));
    }
  }
}

// One step, with pieces [piece, piece + kPieces) of the store between its products. kWide: 32 filters, else 16.
template <BlockForm kForm, bool kWide, int kPieces>
inline __attribute__((always_inline)) void interleaved_step(const TileStream& a, const TileStream& b, int64_t step,
                                                            InterleavedStore& store, int64_t piece) {
  constexpr bool kLines = kForm != BlockForm::Filters;
  // Of the four gaps of a step all have 1/4 of the pieces, of two pieces every other one has one.
  const auto gap = [&](int64_t index) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int64_t i = (kPieces * index + 3) / 4; i < (kPieces * (index + 1) + 3) / 4; ++i)
      store_piece<kForm>(store, piece + i);
  };
  const char *pa = a.base + a.steps[step], *pb = b.base + b.steps[step];
  gap(0);
  _tile_loadd(4, pa, 64);
  // Columns of pixels are read once a panel: they leave the first-level cache to the filters.
  if constexpr (kLines)
    _tile_loadd(6, pb, 64);
  else
    _tile_stream_loadd(6, pb, 64);
  if constexpr (kLines || kWide) _tile_loadd(5, pa + kTileBytes, 64);
  _tile_dpbf16ps(0, 4, 6);
  gap(1);
  if constexpr (!kLines) _tile_stream_loadd(7, pb + kTileBytes, 64);
  if constexpr (kLines && kWide) _tile_loadd(7, pb + kTileBytes, 64);
  if constexpr (kLines || kWide) _tile_dpbf16ps(2, 5, 6);
  gap(2);
  if constexpr (!kLines || kWide) _tile_dpbf16ps(1, 4, 7);
  gap(3);
  if constexpr (kWide) _tile_dpbf16ps(3, 5, 7);
}

template <bool kFirst, bool kSecond>
inline __attribute__((always_inline)) void begin_sums(const float* sums, bool zero) {
  if (zero) {
    _tile_zero(0);
    if constexpr (kFirst) _tile_zero(1);
    if constexpr (kSecond) _tile_zero(2);
    if constexpr (kFirst && kSecond) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    if constexpr (kFirst) _tile_loadd(1, sums + 256, 64);
    if constexpr (kSecond) _tile_loadd(2, sums + 512, 64);
    if constexpr (kFirst && kSecond) _tile_loadd(3, sums + 768, 64);
  }
}

// sums = A B over steps [begin, end), or of later ones sums +=, beside the store of the block before, of as many
// filters: 32 (kWide) or 16. kPieces: beside a step, while there are any; 0 for no store.
template <BlockForm kForm, bool kWide, int kPieces>
inline __attribute__((always_inline)) void interleaved_product(const TileStream& a, const TileStream& b, int64_t begin,
                                                               int64_t end, float* sums, const BlockTarget& before,
                                                               const StepFetch& fetch) {
  constexpr bool kLines = kForm != BlockForm::Filters;
  constexpr bool kFirst = !kLines || kWide, kSecond = kLines || kWide;  // of the tiles beside tile 0
  constexpr int64_t kSteps = kPieces == 0 ? 0 : (kWide ? 8 : 4) / kPieces;
  InterleavedStore store(before);
  begin_sums<kFirst, kSecond>(sums, begin == 0);
  int64_t step = begin;
#pragma GCC unroll 8
  for (int64_t s = 0; s < kSteps; ++s, ++step) {
    fetch(step);
    interleaved_step<kForm, kWide, kPieces>(a, b, step, store, s * kPieces);
  }
  for (; step < end; ++step) {
    fetch(step);
    interleaved_step<kForm, kWide, 0>(a, b, step, store, 0);
  }
  _tile_stored(0, sums, 64);
  if constexpr (kFirst) _tile_stored(1, sums + 256, 64);
  if constexpr (kSecond) _tile_stored(2, sums + 512, 64);
  if constexpr (kFirst && kSecond) _tile_stored(3, sums + 768, 64);
}

}  // namespace
}  // namespace fastnn
