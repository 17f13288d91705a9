// Packing for AMX: operands as tiles of bfloat16 parts (tile_amx.h).
//
// A panel is 32 rows of A or 32 columns of B ("outer") over all of k, padded with zeros: [step][part][half] tiles
// of 1 KiB. A's tiles are [16 outer][32 k], B's are [16 pairs of k][16 outer][2]: each other's transposes in
// units of 32 bits, so the two ways to read a source (k adjacent, or outer adjacent) serve both. Cost: about 12
// instructions for 32 float32 in three parts; transposing adds 4 shuffles a register.
//
// Parts of float32 are exact only while none of them is subnormal and no product of two parts is: the
// magnitudes seen are recorded (PartRange), and products of operands out of range are left to the vector kernels, as
// are those with infinities and NaNs, whose lower parts do not exist.
#pragma once

#include <immintrin.h>

#include "core/dtype.h"
#include "gemm/gemm_amx.h"
#include "gemm/tile_amx.h"
#include "simd/convert.h"
#include "simd/transpose.h"

namespace fastnn {
namespace {

// How many parts the elements of a matrix product are cut into.
inline int parts_of(DType dtype) {
  if (dtype == DType::BFloat16) return 1;
  return dtype == DType::Float16 ? 2 : float32_parts;
}

// Float32 products that are faster on vector units: those with a k this short, padded to a whole step in six products,
// and those with so few columns that the tiles multiply more zeros than sums, while A is in the wrong order to be
// streamed.
inline bool vectors_suit(const GemmArgs& args) {
  constexpr int64_t kShortDepth = 24;
  if (args.dtype != DType::Float32 || float32_parts != 3) return false;
  return args.k <= kShortDepth || (args.n <= kFewColumns && args.a_row == 1 && args.a_column != 1);
}

// Of products of parts; less is for vector units, whose rows two threads share more evenly than panels of 32. The items
// of a batch are shared whole.
inline int64_t least_parts_work(const GemmArgs& args) {
  return args.batch_ndim > 0 ? int64_t(64) * 64 * 64 : int64_t(112) * 112 * 112;
}

// The largest magnitude and the smallest that is not zero, as bits; subnormals count as zeros.
struct PartRange {
  static constexpr uint32_t kSmallestNormal = 0x00800000;
  uint32_t largest = 0;
  uint32_t smallest = ~0u;  // less kSmallestNormal; ~0 when there is none

  void add(const PartRange& other) {
    largest = other.largest > largest ? other.largest : largest;
    smallest = other.smallest < smallest ? other.smallest : smallest;
  }
  int largest_exponent() const { return int(largest >> 23) - 127; }
  int smallest_exponent() const { return smallest >= 0x7f800000 ? 127 : int((smallest + kSmallestNormal) >> 23) - 127; }
};

// No part and no product of parts that matters is flushed, and no partial sum overflows that would not in float32.
inline bool parts_are_exact(const PartRange& a, const PartRange& b) {
  constexpr int kLeastExponent = -100, kLargestExponent = 100;
  return a.largest_exponent() <= kLargestExponent && b.largest_exponent() <= kLargestExponent &&
         a.largest_exponent() + b.largest_exponent() <= kLargestExponent && a.smallest_exponent() >= kLeastExponent &&
         b.smallest_exponent() >= kLeastExponent && a.smallest_exponent() + b.smallest_exponent() >= kLeastExponent;
}

// The same, a register at a time.
struct RangeLanes {
  __m512i largest = _mm512_setzero_si512(), smallest = _mm512_set1_epi32(-1);

  void add(__m512 x) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    largest = _mm512_max_epu32(largest, magnitude);
    smallest =
        _mm512_min_epu32(smallest, _mm512_sub_epi32(magnitude, _mm512_set1_epi32(int(PartRange::kSmallestNormal))));
  }
  PartRange finish() const {
    PartRange range;
    range.largest = _mm512_reduce_max_epu32(largest);
    range.smallest = _mm512_reduce_min_epu32(smallest);
    return range;
  }
};

// Where packed elements come from: element (outer, k) lies at outer * outer_stride + k * depth_stride.
struct PackSource {
  const char* data;
  DType dtype;  // float32, bfloat16 or float16
  int64_t outer_stride, depth_stride;

  const char* at(int64_t outer, int64_t k) const {
    return data + (outer * outer_stride + k * depth_stride) * int64_t(item_size(dtype));
  }
};

inline __mmask16 lane_mask(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << (count > 0 ? count : 0)) - 1);
}

template <class T>
inline __m512 load_lanes(const char* p, __mmask16 mask) {
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_loadu_ps(mask, p);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(mask, p);
    if (dtype_of<T>() == DType::Float16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
}

template <class T>
inline void store_lanes(char* p, __mmask16 mask, __m512 x) {
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, mask, x);
  } else if (dtype_of<T>() == DType::Float16) {
    _mm256_mask_storeu_epi16(p, mask, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else {
    _mm256_mask_storeu_epi16(p, mask, __m256i(_mm512_cvtneps_pbh(x)));
  }
}

inline __m512 upper_bits(__m512 x) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(int(0xffff0000))));
}

// Bits 16..31 of every lane of `first`, then of `second`: 32 bfloat16 in order.
inline __m512i join_upper(__m512 first, __m512 second) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(_mm512_castps_si512(first), _mm512_load_si512(kOdd), _mm512_castps_si512(second));
}

// Bits 16..31 of `even` and `odd` side by side in every lane.
inline __m512i pair_upper(__m512 even, __m512 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
  return _mm512_or_si512(low, _mm512_castps_si512(upper_bits(odd)));
}

// P registers of bfloat16 parts of two registers of float32, combined by `join` (a float32's part is in its upper
// bits). Three parts are cut, which is exact; fewer are rounded.
template <int P, class Join>
inline __attribute__((always_inline)) void split(__m512 x, __m512 y, __m512i* parts, const Join& join) {
  if constexpr (P == 3) {
    parts[0] = join(x, y);
    x = _mm512_sub_ps(x, upper_bits(x)), y = _mm512_sub_ps(y, upper_bits(y));
    parts[1] = join(x, y);
    parts[2] = join(_mm512_sub_ps(x, upper_bits(x)), _mm512_sub_ps(y, upper_bits(y)));
  } else {
    const auto rounded = [](__m512 v) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(v))), 16));
    };
    const __m512 high_x = rounded(x), high_y = rounded(y);
    parts[0] = join(high_x, high_y);
    if (P == 2) parts[1] = join(rounded(_mm512_sub_ps(x, high_x)), rounded(_mm512_sub_ps(y, high_y)));
  }
}

// The parts of 32 adjacent elements: k .. k + 31 of one outer index.
template <int P, class T>
inline __attribute__((always_inline)) void load_along(const char* p, __mmask16 low, __mmask16 high, __m512i* parts,
                                                      RangeLanes& range) {
  if constexpr (P == 1 && dtype_of<T>() == DType::BFloat16) {
    parts[0] = _mm512_maskz_loadu_epi16(__mmask32(low) | __mmask32(high) << 16, p);
  } else {
    const __m512 x = load_lanes<T>(p, low), y = load_lanes<T>(p + 16 * sizeof(T), high);
    if (P > 1) range.add(x), range.add(y);
    split<P>(x, y, parts, [](__m512 a, __m512 b) { return join_upper(a, b); });
  }
}

// The parts of two rows of 16 adjacent elements, side by side: k and k + 1 of 16 outer indices.
template <int P, class T>
inline __attribute__((always_inline)) void load_across(const char* even, const char* odd, __mmask16 even_mask,
                                                       __mmask16 odd_mask, __m512i* parts, RangeLanes& range) {
  if constexpr (P == 1 && dtype_of<T>() == DType::BFloat16) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even_mask, even));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd_mask, odd));
    parts[0] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  } else {
    const __m512 x = load_lanes<T>(even, even_mask), y = load_lanes<T>(odd, odd_mask);
    if (P > 1) range.add(x), range.add(y);
    split<P>(x, y, parts, [](__m512 a, __m512 b) { return pair_upper(a, b); });
  }
}

template <int P>
inline __attribute__((always_inline)) void store_parts(char* tile, int64_t part, const __m512i* parts) {
#pragma GCC unroll 3
  for (int p = 0; p < P; ++p) _mm512_store_si512(tile + p * part, parts[p]);
}

inline void transpose_tile(char* tile) {
  Vec<float> rows[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) rows[r] = Vec<float>::load(reinterpret_cast<float*>(tile) + 16 * r);
  transpose(rows);
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) rows[r].store(reinterpret_cast<float*>(tile) + 16 * r);
}

// Squares of 8 x 8 words, one in each quarter of 8 registers, are transposed.
inline __attribute__((always_inline)) void transpose_eights(const __m512i* rows, __m512i* columns) {
  __m512i x[8], y[8];
#pragma GCC unroll 4
  for (int k = 0; k < 8; k += 2)
    y[k] = _mm512_unpacklo_epi16(rows[k], rows[k + 1]), y[k + 1] = _mm512_unpackhi_epi16(rows[k], rows[k + 1]);
#pragma GCC unroll 2
  for (int k = 0; k < 8; k += 4)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      x[k + 2 * h] = _mm512_unpacklo_epi32(y[k + h], y[k + h + 2]);
      x[k + 2 * h + 1] = _mm512_unpackhi_epi32(y[k + h], y[k + h + 2]);
    }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    columns[2 * k] = _mm512_unpacklo_epi64(x[k], x[k + 4]);
    columns[2 * k + 1] = _mm512_unpackhi_epi64(x[k], x[k + 4]);
  }
}

enum class TileForm : uint8_t { Rows, Pairs };  // of A, of B

// Where packed panels go: panel p at data + p * panel_bytes.
struct PackTarget {
  char* data;
  int64_t panel_bytes;
  TileForm form;
};

constexpr int64_t kPackDepth = 256;  // of k packed at a time: what is transposed afterwards is still in cache

// 32 adjacent elements of one outer index after the other; `row` bytes between outer indices.
template <int P, class T>
void pack_along(const char* source, int64_t row, int64_t count, int64_t depth, const PackTarget& target,
                RangeLanes& range) {
  constexpr int64_t kStepBytes = P * kBlockBytes;
  __m512i parts[P];
  for (int64_t r = 0; r < (count + kBlock - 1) / kBlock * kBlock; ++r, source += row) {
    char* tile = target.data + r / kBlock * target.panel_bytes + r % kBlock / 16 * kTileBytes + r % 16 * 64;
    const char* elements = source;
    const int64_t valid = r < count ? depth : 0;
    int64_t k = 0;
    for (; k + kStepK <= valid; k += kStepK, tile += kStepBytes, elements += kStepK * int64_t(sizeof(T))) {
      load_along<P, T>(elements, 0xffff, 0xffff, parts, range);
      store_parts<P>(tile, kBlockBytes, parts);
    }
    for (; k < depth; k += kStepK, tile += kStepBytes) {
      load_along<P, T>(elements, lane_mask(valid - k), lane_mask(valid - k - 16), parts, range);
      store_parts<P>(tile, kBlockBytes, parts);
    }
  }
}

// 16 adjacent outer indices of k and k + 1 at a time, along whole rows; `row` bytes between values of k.
template <int P, class T>
void pack_across(const char* source, int64_t row, int64_t count, int64_t depth, const PackTarget& target,
                 RangeLanes& range) {
  __m512i parts[P];
  for (int64_t k = 0; k < (depth + kStepK - 1) / kStepK * kStepK; k += 2, source += 2 * row) {
    char* tile = target.data + k / kStepK * P * kBlockBytes + k % kStepK / 2 * 64;
    const bool even = k < depth, odd = k + 1 < depth;
    const char* elements = source;
    for (int64_t r = 0; r < count; r += kBlock, tile += target.panel_bytes)
#pragma GCC unroll 2
      for (int64_t half = 0; half < 2; ++half, elements += 16 * int64_t(sizeof(T))) {
        const __mmask16 mask = lane_mask(count - r - 16 * half);
        load_across<P, T>(elements, elements + row, even ? mask : __mmask16(0), odd ? mask : __mmask16(0), parts,
                          range);
        store_parts<P>(tile + half * kTileBytes, kBlockBytes, parts);
      }
  }
}

// A source of neither order is made adjacent along k first, a step at a time.
template <int P>
void pack_gathered(const PackSource& source, int64_t outer, int64_t count, int64_t k, int64_t depth,
                   const PackTarget& target, RangeLanes& range) {
  float block[kBlock * kStepK];
  for (int64_t r = 0; r < count; r += kBlock)
    for (int64_t s = 0; s < depth; s += kStepK) {
      const int64_t n = count - r < kBlock ? count - r : kBlock, steps = depth - s < kStepK ? depth - s : kStepK;
      for (int64_t i = 0; i < n; ++i)
        FASTNN_LEVEL::load_row(block + i * kStepK, source.at(outer + r + i, k + s), source.dtype, source.depth_stride,
                               steps);
      char* panel = target.data + r / kBlock * target.panel_bytes + s / kStepK * P * kBlockBytes;
      pack_along<P, float>(reinterpret_cast<const char*>(block), kStepK * 4, n, steps, {panel, 0, target.form}, range);
    }
}

template <int P, class T>
PartRange pack_panels_of(const PackSource& source, int64_t outer, int64_t count, int64_t k, int64_t depth,
                         PackTarget target) {
  const bool along = source.depth_stride == 1, gathered = !along && source.outer_stride != 1;
  RangeLanes range;
  for (const int64_t end = k + depth; k < end; k += kPackDepth) {
    const int64_t n = end - k < kPackDepth ? end - k : kPackDepth, steps = (n + kStepK - 1) / kStepK;
    if (gathered) {
      pack_gathered<P>(source, outer, count, k, n, target, range);
    } else if (along) {
      pack_along<P, T>(source.at(outer, k), source.outer_stride * int64_t(sizeof(T)), count, n, target, range);
    } else {
      pack_across<P, T>(source.at(outer, k), source.depth_stride * int64_t(sizeof(T)), count, n, target, range);
    }
    if ((along || gathered) == (target.form == TileForm::Pairs))
      for (int64_t panel = 0; panel < (count + kBlock - 1) / kBlock; ++panel)
        for (int64_t tile = 0; tile < steps * P * 2; ++tile)
          transpose_tile(target.data + panel * target.panel_bytes + tile * kTileBytes);
    target.data += steps * P * kBlockBytes;
  }
  return range.finish();
}

// Two rows of 32 bfloat16 side by side: k and k + 1 of 32 outer indices.
inline __attribute__((always_inline)) void pair_rows(const char* even, const char* odd, char* tile) {
  alignas(64) static constexpr int64_t kLow[8] = {0, 1, 8, 9, 2, 3, 10, 11}, kHigh[8] = {4, 5, 12, 13, 6, 7, 14, 15};
  const __m512i x = _mm512_loadu_si512(even), y = _mm512_loadu_si512(odd);
  const __m512i low = _mm512_unpacklo_epi16(x, y), high = _mm512_unpackhi_epi16(x, y);
  _mm512_store_si512(tile, _mm512_permutex2var_epi64(low, _mm512_load_si512(kLow), high));
  _mm512_store_si512(tile + kTileBytes, _mm512_permutex2var_epi64(low, _mm512_load_si512(kHigh), high));
}

// One whole step of a whole panel: `row` bytes between outer indices, or between values of k, whichever are not
// adjacent.
template <int P, class T>
PartRange pack_step(const char* source, int64_t row, bool along, TileForm form, char* tile) {
  RangeLanes range;
  __m512i parts[P];
  if (along) {
#pragma GCC unroll 4
    for (int64_t r = 0; r < kBlock; ++r, source += row) {
      load_along<P, T>(source, 0xffff, 0xffff, parts, range);
      store_parts<P>(tile + r * 64, kBlockBytes, parts);
    }
  } else if constexpr (P == 1 && dtype_of<T>() == DType::BFloat16) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < kStepK; k += 2, source += 2 * row) pair_rows(source, source + row, tile + k * 32);
  } else {
    for (int64_t k = 0; k < kStepK; k += 2, source += 2 * row)
#pragma GCC unroll 2
      for (int64_t half = 0; half < 2; ++half) {
        const char* even = source + half * 16 * int64_t(sizeof(T));
        load_across<P, T>(even, even + row, 0xffff, 0xffff, parts, range);
        store_parts<P>(tile + k * 32 + half * kTileBytes, kBlockBytes, parts);
      }
  }
  if (along == (form == TileForm::Pairs))
    for (int64_t i = 0; i < 2 * P; ++i) transpose_tile(tile + i * kTileBytes);
  return range.finish();
}

// One outer index of a panel of rows, its k adjacent: to the same row of each step's tiles.
template <int P, class T>
PartRange pack_row(const char* source, int64_t depth, char* row) {
  RangeLanes range;
  __m512i parts[P];
  int64_t k = 0;
  for (; k + kStepK <= depth; k += kStepK, row += P * kBlockBytes) {
    load_along<P, T>(source + k * int64_t(sizeof(T)), 0xffff, 0xffff, parts, range);
    store_parts<P>(row, kBlockBytes, parts);
  }
  if (k < depth) {
    load_along<P, T>(source + k * int64_t(sizeof(T)), lane_mask(depth - k), lane_mask(depth - k - 16), parts, range);
    store_parts<P>(row, kBlockBytes, parts);
  }
  return range.finish();
}

// The panels of `count` outer indices from `outer` on, `depth` of k from `k` on.
template <int P>
PartRange pack_panels(const PackSource& source, int64_t outer, int64_t count, int64_t k, int64_t depth,
                      const PackTarget& target) {
  if (source.dtype == DType::BFloat16) return pack_panels_of<P, bfloat16>(source, outer, count, k, depth, target);
  if (source.dtype == DType::Float16) return pack_panels_of<P, float16>(source, outer, count, k, depth, target);
  return pack_panels_of<P, float>(source, outer, count, k, depth, target);
}

}  // namespace
}  // namespace fastnn
