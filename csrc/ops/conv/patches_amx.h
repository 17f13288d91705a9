// Patches of small images for AMX tiles (im2col): the positions of several images run on without gaps, and what each
// tap reads for them is laid out anew. Planes (planes_amx.h) would leave most of a step of 32 positions to
// padding and row ends there: of 8 images of 2 x 2 pixels they make 8 steps, patches one.
//
// Where positions lie is a table, the same for all channels; channels are gathered by it, whatever their layout.
#pragma once

#include "gemm/pack_amx.h"
#include "ops/conv/planes_amx.h"

namespace fastnn {
namespace {

// Along one axis position i of `count` reads element begin + i * step of `size`; zero outside.
struct PatchAxis {
  int64_t count, begin, step, size;
};

// The offsets in elements of `images` images' positions, -1 for zeros; `length` is the table's.
inline void fill_offsets(int64_t images, const PatchAxis& rows, const PatchAxis& columns, int64_t image_stride,
                         int64_t pixel_stride, int64_t length, int32_t* offsets) {
  const int32_t* end = offsets + length;
  for (int64_t image = 0; image < images; ++image)
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t row = rows.begin + i * rows.step;
      const bool inside = row >= 0 && row < rows.size;
      const int64_t first = image * image_stride + row * columns.size * pixel_stride;
      for (int64_t j = 0; j < columns.count; ++j) {
        const int64_t column = columns.begin + j * columns.step;
        const bool valid = inside && column >= 0 && column < columns.size;
        *offsets++ = valid ? int32_t(first + column * pixel_stride) : -1;
      }
    }
  while (offsets < end) *offsets++ = -1;
}

// 16 elements at `offsets` as float32. 16-bit elements come in the aligned words that hold them.
template <class T>
inline __m512 gather_lanes(const T* base, const int32_t* offsets) {
  const __m512i index = _mm512_loadu_si512(offsets);
  const __mmask16 mask = _mm512_cmpge_epi32_mask(index, _mm512_setzero_si512());
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, base, 4);
  } else {
    const uintptr_t address = reinterpret_cast<uintptr_t>(base);
    const __m512i element = _mm512_add_epi32(index, _mm512_set1_epi32(int(address >> 1 & 1)));
    const __m512i words = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, _mm512_srli_epi32(element, 1),
                                                      reinterpret_cast<const void*>(address & ~uintptr_t(3)), 4);
    const __mmask16 upper = _mm512_test_epi32_mask(element, _mm512_set1_epi32(1));
    return _mm512_castsi512_ps(
        _mm512_mask_and_epi32(_mm512_slli_epi32(words, 16), upper, words, _mm512_set1_epi32(int(0xffff0000))));
  }
}

// The parts of 32 positions of a channel.
template <int P, class T>
inline __attribute__((always_inline)) void gather_along(const T* channel, const int32_t* offsets, __m512i* parts,
                                                        RangeLanes& range) {
  const __m512 low = gather_lanes(channel, offsets), high = gather_lanes(channel, offsets + 16);
  const auto join = [](__m512 a, __m512 b) { return join_upper(a, b); };
  if constexpr (P == 1) {
    parts[0] = join(low, high);
  } else {
    range.add(low), range.add(high);
    split<P>(low, high, parts, join);
  }
}

// 16 rows of A: `channels` of them, the others zeros; a step after another, `step` bytes apart.
template <int P, class T>
void gather_rows(const T* source, int64_t channel_stride, int64_t channels, const int32_t* offsets, int64_t steps,
                 char* target, int64_t step, RangeLanes& range) {
  __m512i parts[P];
  for (int64_t r = 0; r < 16; ++r, source += channel_stride)
    for (int64_t s = 0; s < steps; ++s) {
      if (r < channels) {
        gather_along<P>(source, offsets + s * kStepK, parts, range);
      } else {
        for (int p = 0; p < P; ++p) parts[p] = _mm512_setzero_si512();
      }
      store_parts<P>(target + s * step + r * 64, kBlockBytes, parts);
    }
}

// The same as rows of B: pairs of positions of 16 channels, 16 lines a step.
template <int P, class T>
void gather_pairs(const T* source, int64_t channel_stride, int64_t channels, const int32_t* offsets, int64_t steps,
                  char* target, int64_t part, RangeLanes& range) {
  for (int64_t s = 0; s < steps; ++s, target += 16 * kLineBytes) {
    __m512i squares[P][16];
    for (int64_t c = 0; c < 16; ++c) {
      __m512i parts[P];
      if (c < channels) {
        gather_along<P>(source + c * channel_stride, offsets + s * kStepK, parts, range);
      } else {
        for (int p = 0; p < P; ++p) parts[p] = _mm512_setzero_si512();
      }
      for (int p = 0; p < P; ++p) squares[p][c] = parts[p];
    }
    for (int p = 0; p < P; ++p) {
      transpose_lines(squares[p]);
#pragma GCC unroll 16
      for (int64_t e = 0; e < 16; ++e) _mm512_store_si512(target + p * part + e * kLineBytes, squares[p][e]);
    }
  }
}

}  // namespace
}  // namespace fastnn
