// Attention forward of bfloat16 whose scores have a known bound: no maxima, exponentials in 16-bit integers, and both
// beside tile products. attention_amx.cpp says when.
//
//   |scale q.k| log2 e <= b of a row, by Cauchy and Schwarz: b = |scale| log2 e |q| max |k|
//   P = 2^(S log2 e - b - 1) is in [2^(-2b - 1), 1/2]: it neither overflows nor, for b <= kLargestBound, underflows
//   O = P V / (P 1), the sums by a tile of ones: what is divided is what was multiplied
//
// A unit is 32 query rows against 128 keys, 16 KiB of scores. While the tiles multiply S = Q K^T of the next unit and
// O += P V of the one before, the vector units turn S of a unit into P: a few rows after every four tile products,
// near enough for both to be in flight.
//
// The bits of a bfloat16 below its sign are 128 (127 + n) + 128 (2^f - 1) for 2^(n + f), 0 <= f < 1. A fused
// multiply-add of the score leaves w = 512 (127 + n + f) in 16 bits of a float32, two keys share a lane from there on, and
//
//   P = (w - 512 (1 + f - 2^f)) / 4 = (w - f (1 - f) (153 + 45 f)) / 4
//
// within 0.0050 of 2^(n + f) where rounding it would be within 0.0039; the mean square error is 1.06 times rounding's.
// 12 instructions for 32 scores, which take 256 cycles of tiles for every 32 of them and head_dim 64.
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
  const __m512i w = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_castps_si512(even),
                                            _mm512_slli_epi32(_mm512_castps_si512(odd), 16));
  const __m512i f = _mm512_slli_epi16(w, 7), rest = _mm512_xor_si512(f, all(-1));
  const __m512i slope = _mm512_add_epi16(_mm512_mulhi_epu16(f, all(45)), all(153));
  const __m512i excess = _mm512_mulhi_epu16(_mm512_mulhi_epu16(f, rest), slope);
  return _mm512_srli_epi16(_mm512_sub_epi16(w, excess), 2);
}

inline __mmask32 columns_of(int64_t count) {
  return __mmask32(lane_mask(count)) | __mmask32(lane_mask(count - 16)) << 16;
}

// A row's 32 elements from k on, or zeros where the source has no such row.
inline __attribute__((always_inline)) __m512i load_row(const PackSource& source, int64_t row, int64_t rows, int64_t k,
                                                       __mmask32 columns) {
  const bool inside = row < rows;
  return _mm512_maskz_loadu_epi16(inside ? columns : 0, source.at(inside ? row : 0, k));
}

inline __attribute__((always_inline)) __m512 add_squares(__m512 sums, __m512i words) {
  return _mm512_dpbf16_ps(sums, __m512bh(words), __m512bh(words));
}

// K as tiles of B, the even keys of a panel before its odd ones. Returns the largest |k|, or no finite number.
inline float pack_keys(const PackSource& source, int64_t keys, int64_t depth, TilePanels<1>& panels) {
  panels.steps = ceil_div(depth, kStepK);
  __m512i largest = _mm512_setzero_si512();  // of the squares, as bits: those of NaN are above all others
  char* tile = panels.data;
  for (int64_t key = 0; key < keys; key += kBlock)
    for (int64_t half = 0; half < 2; ++half) {
      __m512 squares = _mm512_setzero_ps();
      for (int64_t step = 0; step < panels.steps; ++step) {
        const __mmask32 columns = columns_of(depth - step * kStepK);
        Vec<float> lanes[16];
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i)
          lanes[i].raw = __m512(load_row(source, key + half + 2 * i, keys, step * kStepK, columns));
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
inline bool pack_queries(const PackSource& source, int64_t rows, int64_t depth, float factor, TilePanels<1>& panels,
                         float* bounds) {
  panels.steps = ceil_div(depth, kStepK);
  __mmask16 small = 0xffff;
  for (int64_t row = 0; row < round_up(rows, kBlock); row += 16) {
    char* tile = panels.data + row / kBlock * panels.steps * kBlockBytes + row % kBlock / 16 * kTileBytes;
    Vec<float> squares[16];
    for (int64_t i = 0; i < 16; ++i) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t step = 0; step < panels.steps; ++step) {
        const __m512i words = load_row(source, row + i, rows, step * kStepK, columns_of(depth - step * kStepK));
        _mm512_store_si512(tile + step * kBlockBytes + i * 64, words);
        sum = add_squares(sum, words);
      }
      squares[i].raw = sum;
    }
    const __m512 bound = _mm512_roundscale_ps(
        _mm512_mul_ps(_mm512_sqrt_ps(row_sums(squares).raw), _mm512_set1_ps(factor)), _MM_FROUND_TO_POS_INF);
    small &= _mm512_cmp_ps_mask(bound, _mm512_set1_ps(kLargestBound), _CMP_LE_OQ);
    _mm512_store_ps(bounds + row, bound);
  }
  return small == 0xffff;
}

// 32 query rows of a block against the block of keys from `key` on, of which they reach n.
struct Unit {
  int64_t panel, key, n, slot;  // slot: of two, by turns
  bool masked;                  // some row does not reach some key of a whole panel

  int64_t key_panels() const { return panels_of(n); }
};

struct BoundedWorkspace {
  TilePanels<1> keys, queries, probabilities;
  StepTable<1> table;
  float *scores, *out, *sums, *bounds, *totals;
  float largest_key;

  void carve(const AttentionArgs& args, Carver& memory) {
    keys.data = memory.take<char>(TilePanels<1>::bytes(args.kv_len, args.head_dim));
    queries.data = memory.take<char>(TilePanels<1>::bytes(kRows, args.head_dim));
    probabilities = {memory.take<char>(TilePanels<1>::bytes(2 * kBlock, kKeys)), kKeyPanels};
    scores = memory.take<float>(2 * kKeyPanels * kSumsPerBlock);
    out = memory.take<float>(kRowPanels * panels_of(args.value_dim) * kSumsPerBlock);
    sums = memory.take<float>(kRowPanels * kSumsPerBlock);
    bounds = memory.take<float>(kRows);
    totals = memory.take<float>(kRows);
  }
};

// What the vector units do beside tile products: the scores of a unit become probabilities, some rows at a time.
class Exponentials {
 public:
  Exponentials(const AttentionArgs& args, const QueryBlock& block, const BoundedWorkspace& work)
      : args_(args), block_(block), work_(work) {}

  // In about `turns` turns.
  void begin(const Unit& unit, int64_t turns) {
    unit_ = unit;
    rows_ = min(kBlock, block_.rows - unit.panel * kBlock);
    height_ = rows_ > 16 ? kBlock : 16;
    done_ = 0, end_ = height_ * unit.key_panels();
    share_ = ceil_div(end_, max(1, turns));
  }
  inline __attribute__((always_inline)) void advance(int64_t count) {
    const int64_t stop = min(end_, done_ + count);
    while (done_ < stop) {
      const int64_t key_panel = done_ / height_, r = done_ % height_, n = min(stop - done_, height_ - r);
      unit_.masked ? convert<true>(key_panel, r, n) : convert<false>(key_panel, r, n);
      done_ += n;
    }
  }
  void turn() { advance(share_); }
  void finish() { advance(end_); }

 private:
  // Rows r .. r + n - 1 of a panel of keys.
  template <bool kMasked>
  inline __attribute__((always_inline)) void convert(int64_t key_panel, int64_t r, int64_t n) {
    const float* scores = work_.scores + (unit_.slot * kKeyPanels + key_panel) * kSumsPerBlock;
    const float* bounds = work_.bounds + unit_.panel * kBlock;
    char* tile = work_.probabilities.data + (unit_.slot * kKeyPanels + key_panel) * kBlockBytes;
    const __m512 scale = _mm512_set1_ps(float(args_.scale) * kLog2e * kWords);
    const __m512 zero = _mm512_set1_ps(kWordsAt + kWords * 126 + 1);  // 1 more makes up for what is cut off
    for (; n > 0; --n, ++r) {
      const float* row = scores + r / 16 * 512 + r % 16 * 16;
      const __m512 shift = _mm512_fnmadd_ps(_mm512_set1_ps(bounds[r]), _mm512_set1_ps(kWords), zero);
      __m512i p = exp2_words(_mm512_fmadd_ps(_mm512_load_ps(row), scale, shift),
                             _mm512_fmadd_ps(_mm512_load_ps(row + 256), scale, shift));
      if (kMasked) p = _mm512_maskz_mov_epi16(reached(key_panel, r), p);
      _mm512_store_si512(tile + r * 64, p);
    }
  }
  // Which keys of a panel take part in row r.
  __mmask32 reached(int64_t key_panel, int64_t r) const {
    const int64_t row = block_.row + unit_.panel * kBlock + min(r, rows_ - 1), key = unit_.key + key_panel * kBlock;
    const int64_t end = args_.causal ? min(args_.kv_len, row + 1) : args_.kv_len;
    const __mmask32 keys = columns_of(end - key);
    if (!args_.mask) return keys;
    const int64_t* strides = args_.mask_strides;
    const __m256i bytes = _mm256_maskz_loadu_epi8(
        keys, static_cast<const bool*>(args_.mask) + block_.batch * strides[0] + block_.head * strides[1] +
                  row * strides[2] + key);
    return _mm256_test_epi8_mask(bytes, bytes);
  }

  const AttentionArgs& args_;
  const QueryBlock& block_;
  const BoundedWorkspace& work_;
  Unit unit_{};
  int64_t rows_ = 0, height_ = 0, done_ = 0, end_ = 0, share_ = 0;
};

struct Beside {
  Exponentials* exponentials;
  inline __attribute__((always_inline)) void operator()(int64_t, int64_t) const { exponentials->turn(); }
};

inline bool suits_bounds(const AttentionArgs& args) {
  const bool masks = !args.mask || (args.mask_dtype == DType::Bool && args.mask_strides[3] == 1);
  return args.dtype == DType::BFloat16 && args.drop_threshold == 0 && masks;
}

// The units of a query block, panel after panel of each block of keys; those without keys are left out.
class Units {
 public:
  Units(const AttentionArgs& args, const QueryBlock& block) : args_(args), block_(block) {}

  // False after the last one.
  bool next(Unit& unit) {
    const int64_t reached = reached_keys(args_, block_), panels = panels_of(block_.rows);
    for (;; ++panel_) {
      if (panel_ == panels) panel_ = 0, key_ += kKeys;
      if (key_ >= reached) return false;
      const int64_t first = block_.row + panel_ * kBlock, last = block_.row + min(block_.rows, (panel_ + 1) * kBlock);
      const int64_t n = min(kKeys, (args_.causal ? min(reached, last) : reached) - key_);
      if (n <= 0) continue;
      unit = {panel_++, key_, n, turn_++ % 2, args_.mask || n % kBlock != 0 || (args_.causal && key_ + n > first + 1)};
      return true;
    }
  }

 private:
  const AttentionArgs& args_;
  const QueryBlock& block_;
  int64_t panel_ = 0, key_ = 0, turn_ = 0;
};

// False where scores may be too large.
inline bool attend_bounded(const AttentionArgs& args, const QueryBlock& block, const TilePanels<1>& values,
                           BoundedWorkspace& work) {
  constexpr float kRoundings = 1.001f;
  const PackSource source = head_source(args.q, args.dtype, block.at(args.q_strides), args.q_strides.row);
  const float factor = fabsf(float(args.scale)) * kLog2e * kRoundings * work.largest_key;
  if (!pack_queries(source, block.rows, args.head_dim, factor, work.queries, work.bounds)) return false;
  const int64_t value_panels = panels_of(args.value_dim), dim_steps = work.queries.steps;
  Exponentials exponentials(args, block, work);
  const Beside beside{&exponentials};
  const auto is_tall = [&](const Unit& unit) { return block.rows - unit.panel * kBlock > 16; };
  const auto multiply_keys = [&](const Unit& unit) {
    for (int64_t j = 0; j < unit.key_panels(); ++j)
      tile_block<1>(work.table.stream(work.queries.at(unit.panel, 0)),
                    work.table.stream(work.keys.at(unit.key / kBlock + j, 0)), 0, dim_steps, is_tall(unit), true,
                    work.scores + (unit.slot * kKeyPanels + j) * kSumsPerBlock, true, beside);
  };
  const auto multiply_values = [&](const Unit& unit) {
    const TileStream probabilities = work.table.stream(work.probabilities.at(unit.slot, 0));
    for (int64_t j = 0; j < value_panels; ++j)
      tile_block<1>(probabilities, work.table.stream(values.at(j, unit.key / kBlock)), 0, unit.key_panels(),
                    is_tall(unit), args.value_dim - j * kBlock > 16,
                    work.out + (unit.panel * value_panels + j) * kSumsPerBlock, unit.key == 0, beside);
    tile_block<1>(probabilities, {reinterpret_cast<const char*>(kOnes.words), kOnesSteps, 64, 0, 0}, 0,
                  unit.key_panels(), is_tall(unit), false, work.sums + unit.panel * kSumsPerBlock, unit.key == 0,
                  beside);
  };
  Units units(args, block);
  Unit before, unit, after;
  bool is_first = true;
  for (bool more = units.next(unit); more; is_first = false) {
    if (is_first) multiply_keys(unit);
    more = units.next(after);
    exponentials.begin(unit, (more ? after.key_panels() * dim_steps : 0) +
                                 (is_first ? 0 : before.key_panels() * (value_panels + 1)));
    if (!is_first) multiply_values(before);
    if (more) multiply_keys(after);
    exponentials.finish();
    before = unit, unit = after;
  }
  if (!is_first) multiply_values(before);
  for (int64_t r = 0; r < block.rows; ++r) {
    work.totals[r] = is_first ? 0 : block_row(work.sums + r / kBlock * kSumsPerBlock, r % kBlock)[0];
    work.bounds[r] += 1;
  }
  store_rows<bfloat16>(args, block, work.out, work.totals, work.bounds);
  return true;
}

}  // namespace
}  // namespace fastnn
