// Attention forward of bfloat16 whose scores have a known bound: no maxima, and exponentials in 16-bit integers.
//
//   |scale q.k| log2 e <= b of a row, by Cauchy and Schwarz: b = |scale| log2 e |q| max |k|, rounded up
//   P = 2^(S log2 e - b - 1) is in [2^(-2b - 1), 1/2]: it neither overflows nor, for b <= kLargestBound, underflows
//   O = P V / (P 1), the sums by a tile of ones: what is divided is what was multiplied
//
// Masked keys get a P of 0. Tasks and blocks are those of attention_amx.cpp; S of 32 rows by 128 keys stays in the
// first-level cache, and is made, turned into P and used before the next 32 rows.
//
// The bits of a bfloat16 below its sign are 128 (127 + n) + 128 (2^f - 1) for 2^(n + f), 0 <= f < 1. A fused
// multiply-add of the score leaves w = 512 (127 + n + f) in the lower 16 bits of a float32, two keys share a lane from
// there on, and
//
//   P = (w - 512 (1 + f - 2^f)) / 4 = (w - f (1 - f) (153 + 45 f)) / 4
//
// within 0.0050 of 2^(n + f) where rounding it would be within 0.0039; the mean square error is 1.06 times that of
// rounding. 12 instructions for 32 scores.
//
// 32 rows by 128 keys of 64 dimensions take 250 ns to multiply by K, 260 for exponentials, 320 by V and 80 to sum up,
// at 3.4 GHz. Tile products and vector instructions share a port: run side by side they take as long as in turns.
#pragma once

#include "ops/attention/tiles_amx.h"

namespace fastnn {
namespace {

constexpr int64_t kRowPanels = 4, kKeyPanels = 4;  // of a block of scores
constexpr int64_t kRows = kRowPanels * kBlock, kKeys = kKeyPanels * kBlock;

// Products of the least P and of values above 2^-20 are normal numbers.
constexpr float kLargestBound = 50;
constexpr float kWords = 512;            // of a power of two
constexpr float kWordsAt = 12582912.0f;  // 1.5 * 2^23: added to an integer, leaves it in the lower bits

struct OnesTile {
  alignas(64) uint16_t words[kTileBytes / 2];
  constexpr OnesTile() : words() {
    for (uint16_t& word : words) word = 0x3f80;
  }
};
constexpr OnesTile kOnes;
constexpr int64_t kOnesSteps[kKeyPanels] = {};

// 2^x for 32 keys, the even ones of which are in `even`; see above for what the lower 16 bits of each lane hold.
inline __attribute__((always_inline)) __m512i exp2_words(__m512 even, __m512 odd) {
  const auto all = [](int value) { return _mm512_set1_epi16(short(value)); };
  const __m512i w =
      _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_castps_si512(even), _mm512_slli_epi32(_mm512_castps_si512(odd), 16));
  const __m512i f = _mm512_slli_epi16(w, 7), rest = _mm512_xor_si512(f, all(-1));
  const __m512i slope = _mm512_add_epi16(_mm512_mulhi_epu16(f, all(45)), all(153));
  const __m512i excess = _mm512_mulhi_epu16(_mm512_mulhi_epu16(f, rest), slope);
  return _mm512_srli_epi16(_mm512_sub_epi16(w, excess), 2);
}

inline __mmask32 columns_of(int64_t count) {
  return __mmask32(lane_mask(count)) | __mmask32(lane_mask(count - 16)) << 16;
}

// Rows of adjacent bfloat16.
struct WordRows {
  const bfloat16* data;
  int64_t row, rows;

  // 32 elements of row r from k on, or zeros where there is no such row.
  inline __attribute__((always_inline)) __m512i load(int64_t r, int64_t k, __mmask32 columns) const {
    const bool inside = r < rows;
    return _mm512_maskz_loadu_epi16(inside ? columns : 0, data + (inside ? r : 0) * row + k);
  }
};

inline __attribute__((always_inline)) __m512 add_squares(__m512 sums, __m512i words) {
  return _mm512_dpbf16_ps(sums, __m512bh(words), __m512bh(words));
}

// K as tiles of B, the even keys of a panel before its odd ones. Returns the largest |k|, or no finite number.
inline float pack_keys(const WordRows& source, int64_t depth, TilePanels<1>& panels) {
  panels.steps = ceil_div(depth, kStepK);
  __m512i largest = _mm512_setzero_si512();  // of the squares, as bits: those of NaN are above all others
  char* tile = panels.data;
  for (int64_t key = 0; key < source.rows; key += kBlock)
    for (int64_t half = 0; half < 2; ++half) {
      __m512 squares = _mm512_setzero_ps();
      for (int64_t step = 0; step < panels.steps; ++step) {
        const __mmask32 columns = columns_of(depth - step * kStepK);
        Vec<float> lanes[16];
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i) lanes[i].raw = __m512(source.load(key + half + 2 * i, step * kStepK, columns));
        transpose(lanes);
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i) {
          lanes[i].store(reinterpret_cast<float*>(tile + step * kBlockBytes + half * kTileBytes + i * 64));
          squares = add_squares(squares, __m512i(lanes[i].raw));
        }
      }
      largest = _mm512_max_epu32(largest, _mm512_castps_si512(squares));
      if (half == 1) tile += panels.steps * kBlockBytes;
    }
  return sqrtf(_mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(int(_mm512_reduce_max_epu32(largest))))));
}

// Q as tiles of A, and the bound of each row, |q| times a factor, as a whole number. False where one is too large.
inline bool pack_queries(const WordRows& source, int64_t depth, float factor, TilePanels<1>& panels, float* bounds) {
  panels.steps = ceil_div(depth, kStepK);
  __mmask16 small = 0xffff;
  for (int64_t row = 0; row < round_up(source.rows, kBlock); row += 16) {
    char* tile = panels.data + row / kBlock * panels.steps * kBlockBytes + row % kBlock / 16 * kTileBytes;
    Vec<float> squares[16] = {};
    for (int64_t step = 0; step < panels.steps; ++step, tile += kBlockBytes) {
      const __mmask32 columns = columns_of(depth - step * kStepK);
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) {
        const __m512i words = source.load(row + i, step * kStepK, columns);
        _mm512_store_si512(tile + i * 64, words);
        squares[i].raw = add_squares(squares[i].raw, words);
      }
    }
    const __m512 bound = _mm512_roundscale_ps(
        _mm512_mul_ps(_mm512_sqrt_ps(row_sums(squares).raw), _mm512_set1_ps(factor)), _MM_FROUND_TO_POS_INF);
    small &= _mm512_cmp_ps_mask(bound, _mm512_set1_ps(kLargestBound), _CMP_LE_OQ);
    _mm512_store_ps(bounds + row, bound);
  }
  return small == 0xffff;
}

struct BoundedWorkspace {
  TilePanels<1> keys, queries, probabilities;  // of all keys; of a block of rows; of 32 rows of a block of scores
  StepTable<1> table;
  float *scores, *out, *sums, *bounds, *totals;
  float largest_key;

  void carve(const AttentionArgs& args, Carver& memory) {
    keys.data = memory.take<char>(TilePanels<1>::bytes(args.kv_len, args.head_dim));
    queries.data = memory.take<char>(TilePanels<1>::bytes(kRows, args.head_dim));
    probabilities = {memory.take<char>(TilePanels<1>::bytes(kBlock, kKeys)), kKeyPanels};
    scores = memory.take<float>(kKeyPanels * kSumsPerBlock);
    out = memory.take<float>(kRowPanels * panels_of(args.value_dim) * kSumsPerBlock);
    sums = memory.take<float>(kRowPanels * kSumsPerBlock);
    bounds = memory.take<float>(kRows);
    totals = memory.take<float>(kRows);
  }
};

// 32 query rows of a block against n keys.
struct Unit {
  int64_t panel, rows, key, n;

  int64_t key_panels() const { return panels_of(n); }
  bool tall() const { return rows > 16; }
};

// S = Q K^T. Where 32 rows of Q fit into four tiles they stay there, and what is stored waits for no product.
inline void multiply_keys(const Unit& unit, const BoundedWorkspace& work) {
  const char* q = work.queries.at(unit.panel, 0);
  if (work.queries.steps != 2) {
    for (int64_t j = 0; j < unit.key_panels(); ++j)
      tile_block<1>(work.table.stream(q), work.table.stream(work.keys.at(unit.key / kBlock + j, 0)), 0,
                    work.queries.steps, unit.tall(), true, work.scores + j * kSumsPerBlock, true);
    return;
  }
  _tile_loadd(4, q, 64);
  _tile_loadd(5, q + kTileBytes, 64);
  _tile_loadd(6, q + 2 * kTileBytes, 64);
  _tile_loadd(7, q + 3 * kTileBytes, 64);
  const char* k = work.keys.at(unit.key / kBlock, 0);
  float *scores = work.scores, *before = nullptr;
  for (int64_t half = 0; half < 2 * unit.key_panels(); ++half) {
    _tile_zero(0);
    _tile_loadd(2, k, 64);
    _tile_dpbf16ps(0, 4, 2);
    _tile_loadd(3, k + kBlockBytes, 64);
    _tile_dpbf16ps(0, 6, 3);
    if (before) _tile_stored(1, before, 64);
    _tile_zero(1);
    _tile_dpbf16ps(1, 5, 2);
    _tile_dpbf16ps(1, 7, 3);
    _tile_stored(0, scores, 64);
    before = scores + 512;
    k += half % 2 ? 2 * kBlockBytes - kTileBytes : kTileBytes;
    scores += half % 2 ? kSumsPerBlock - 256 : 256;
  }
  _tile_stored(1, before, 64);
}

// Which keys of a panel take part in a row.
inline __mmask32 reached(const AttentionArgs& args, const QueryBlock& block, int64_t r, int64_t key) {
  const int64_t row = block.row + r;
  const __mmask32 keys = columns_of((args.causal ? min(args.kv_len, row + 1) : args.kv_len) - key);
  if (!args.mask) return keys;
  const int64_t* strides = args.mask_strides;
  const bool* mask =
      static_cast<const bool*>(args.mask) + block.batch * strides[0] + block.head * strides[1] + row * strides[2] + key;
  const __m256i bytes = _mm256_maskz_loadu_epi8(keys, mask);
  return _mm256_test_epi8_mask(bytes, bytes);
}

// S becomes P. kMasked: not all keys of whole panels take part.
template <bool kMasked>
void exponentials(const AttentionArgs& args, const QueryBlock& block, const Unit& unit, const BoundedWorkspace& work) {
  const __m512 scale = _mm512_set1_ps(float(args.scale) * kLog2e * kWords), words = _mm512_set1_ps(kWords);
  const __m512 zero = _mm512_set1_ps(kWordsAt + kWords * 126 + 1);  // 1 more makes up for what is cut off
  const int64_t key_panels = unit.key_panels();
  for (int64_t r = 0; r < unit.rows; ++r) {
    const int64_t row = unit.panel * kBlock + r;
    const float* scores = block_row(work.scores, r);
    char* tile = work.probabilities.data + r * 64;
    const __m512 shift = _mm512_fnmadd_ps(_mm512_set1_ps(work.bounds[row]), words, zero);
    for (int64_t j = 0; j < key_panels; ++j, scores += kSumsPerBlock, tile += kBlockBytes) {
      __m512i p = exp2_words(_mm512_fmadd_ps(_mm512_load_ps(scores), scale, shift),
                             _mm512_fmadd_ps(_mm512_load_ps(scores + 256), scale, shift));
      if (kMasked) p = _mm512_maskz_mov_epi16(reached(args, block, row, unit.key + j * kBlock), p);
      _mm512_store_si512(tile, p);
    }
  }
}

// O += P V, and the sums of P.
inline void multiply_values(const AttentionArgs& args, const Unit& unit, const TilePanels<1>& values,
                            const BoundedWorkspace& work) {
  const int64_t value_panels = panels_of(args.value_dim), key_panels = unit.key_panels();
  const TileStream probabilities = work.table.stream(work.probabilities.data);
  const TileStream ones{reinterpret_cast<const char*>(kOnes.words), kOnesSteps, 64, 0, 0};
  for (int64_t j = 0; j < value_panels; ++j)
    tile_block<1>(probabilities, work.table.stream(values.at(j, unit.key / kBlock)), 0, key_panels, unit.tall(),
                  args.value_dim - j * kBlock > 16, work.out + (unit.panel * value_panels + j) * kSumsPerBlock,
                  unit.key == 0);
  tile_block<1>(probabilities, ones, 0, key_panels, unit.tall(), false, work.sums + unit.panel * kSumsPerBlock,
                unit.key == 0);
}

inline bool suits_bounds(const AttentionArgs& args) {
  const bool plain_mask = !args.mask || (args.mask_dtype == DType::Bool && args.mask_strides[3] == 1);
  return args.dtype == DType::BFloat16 && args.drop_threshold == 0 && plain_mask;
}

// False where scores may be too large.
inline bool attend_bounded(const AttentionArgs& args, const QueryBlock& block, const TilePanels<1>& values,
                           BoundedWorkspace& work) {
  constexpr float kRoundings = 1.001f;
  const float factor = fabsf(float(args.scale)) * kLog2e * kRoundings * work.largest_key;
  const WordRows rows{static_cast<const bfloat16*>(args.q) + block.at(args.q_strides), args.q_strides.row, block.rows};
  if (!pack_queries(rows, args.head_dim, factor, work.queries, work.bounds)) return false;
  const int64_t reach = reached_keys(args, block);
  for (int64_t key = 0; key < reach; key += kKeys)
    for (int64_t panel = 0; panel < panels_of(block.rows); ++panel) {
      const int64_t rows = min(kBlock, block.rows - panel * kBlock), row = block.row + panel * kBlock;
      const Unit unit{panel, rows, key, min(kKeys, (args.causal ? min(reach, row + rows) : reach) - key)};
      if (unit.n <= 0) continue;
      multiply_keys(unit, work);
      if (args.mask || unit.n % kBlock != 0 || (args.causal && key + unit.n > row + 1)) {
        exponentials<true>(args, block, unit, work);
      } else {
        exponentials<false>(args, block, unit, work);
      }
      multiply_values(args, unit, values, work);
    }
  for (int64_t r = 0; r < block.rows; ++r) {
    work.totals[r] = reach > 0 ? block_row(work.sums + r / kBlock * kSumsPerBlock, r % kBlock)[0] : 0;
    work.bounds[r] += 1;
  }
  store_rows<bfloat16>(args, block, work.out, work.totals, work.bounds);
  return true;
}

}  // namespace
}  // namespace fastnn
