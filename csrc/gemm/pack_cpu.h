// Packing: a strip of a matrix, `kWidth` wide and `depth` deep, rewritten as [depth][kWidth] in the
// type the micro-kernel computes in, padded with zeros to the full width. Included by gemm_cpu.cpp and
// conv_cpu_winograd.cpp.
//
// The strip's element (p, w) is source[p * depth_stride + w * width_stride]: panels of A have w = row,
// panels of B have w = column, so one function packs both, transposed or not. 16-bit floats are
// widened a few rows at a time. Cost: a read and a write per element; transposing adds log2(lanes)
// shuffles per vector. Whole vectors are stored, so where kWidth is no multiple of the vector up to one
// vector beyond a row is overwritten: by what is packed next, or in the padding (kPanelPadding elements)
// that buffers end in.
#pragma once

#include "core/dtype.h"
#include "simd/convert.h"
#include "simd/transpose.h"
#include "simd/vec.h"

namespace fastnn {
namespace {

constexpr int64_t kPanelPadding = 16;

constexpr int clamp(int64_t x, int low, int high) { return x < low ? low : x > high ? high : int(x); }

// Contiguous rows: of several panels at once, `panel_size` apart, since memory is fast along whole rows.
template <int kWidth, class T>
void pack_rows(const T* source, int64_t depth_stride, int64_t depth, int64_t width, T* panels, int64_t panel_size) {
  constexpr int kLanes = Vec<T>::size;
  for (int64_t p = 0; p < depth; ++p, source += depth_stride) {
    T* panel = panels + p * kWidth;
    for (int64_t first = 0; first < width; first += kWidth, panel += panel_size)
#pragma GCC unroll 4
      for (int w = 0; w < kWidth; w += kLanes) {
        const int count = clamp(width - first - w, 0, kLanes);
        const T* x = source + first + w;
        (count == kLanes ? Vec<T>::load(x) : Vec<T>::load(x, count)).store(panel + w);
      }
  }
}

template <int kWidth, class T>
void pack_transposed(const T* source, int64_t width_stride, int64_t depth, int width, T* panel) {
  constexpr int kLanes = Vec<T>::size, kGroups = (kWidth + kLanes - 1) / kLanes;
  for (int64_t p = 0; p < depth; p += kLanes) {
    const int count = clamp(depth - p, 0, kLanes);
    Vec<T> block[kGroups][kLanes];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const int w = g * kLanes + i;
        const T* row = source + w * width_stride + p;
        block[g][i] = w >= kWidth || w >= width ? Vec<T>::zero()
                      : count == kLanes         ? Vec<T>::load(row)
                                                : Vec<T>::load(row, count);
      }
      transpose(block[g]);
    }
    for (int i = 0; i < count; ++i, panel += kWidth)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) block[g][i].store(panel + g * kLanes);
  }
}

template <int kWidth, class T>
void pack_strided(const T* source, int64_t depth_stride, int64_t width_stride, int64_t depth, int width, T* panel) {
  for (int64_t p = 0; p < depth; ++p, source += depth_stride, panel += kWidth)
    for (int w = 0; w < kWidth; ++w) panel[w] = w < width ? source[w * width_stride] : T(0);
}

template <int kWidth>
void pack_widened(const char* source, DType dtype, int64_t depth_stride, int64_t width_stride, int64_t depth, int width,
                  float* panel) {
  const int64_t size = int64_t(item_size(dtype));
  if (width_stride == 1) {
    for (int64_t p = 0; p < depth; ++p, panel += kWidth) {
      FASTNN_LEVEL::load_row(panel, source + p * depth_stride * size, dtype, 1, width);
      for (int w = width; w < kWidth; ++w) panel[w] = 0;
    }
    return;
  }
  constexpr int64_t kRun = 64;
  float strip[kWidth * kRun];
  for (int64_t p = 0; p < depth; p += kRun) {
    const int64_t run = clamp(depth - p, 0, kRun);
    for (int w = 0; w < width; ++w)
      FASTNN_LEVEL::load_row(strip + w * kRun, source + (p * depth_stride + w * width_stride) * size, dtype,
                             depth_stride, run);
    pack_transposed<kWidth>(strip, kRun, run, width, panel + p * kWidth);
  }
}

// Packs `width` rows or columns into panels of kWidth, `panel_size` elements apart.
template <int kWidth, class T>
void pack_panels(const char* source, DType dtype, int64_t depth_stride, int64_t width_stride, int64_t depth,
                 int64_t width, T* panels, int64_t panel_size) {
  const bool widened = dtype != dtype_of<T>();
  const T* elements = reinterpret_cast<const T*>(source);
  if (kWidth % Vec<T>::size == 0 && !widened && width_stride == 1)  // nothing is overwritten
    return pack_rows<kWidth>(elements, depth_stride, depth, width, panels, panel_size);
  for (int64_t first = 0; first < width; first += kWidth, panels += panel_size) {
    const int count = clamp(width - first, 0, kWidth);
    if constexpr (sizeof(T) == 4) {
      if (widened) {
        pack_widened<kWidth>(source + first * width_stride * int64_t(item_size(dtype)), dtype, depth_stride,
                             width_stride, depth, count, panels);
        continue;
      }
    }
    if (width_stride == 1) {
      pack_rows<kWidth>(elements + first, depth_stride, depth, count, panels, panel_size);
    } else if (depth_stride == 1) {
      pack_transposed<kWidth>(elements + first * width_stride, width_stride, depth, count, panels);
    } else {
      pack_strided<kWidth>(elements + first * width_stride, depth_stride, width_stride, depth, count, panels);
    }
  }
}

}  // namespace
}  // namespace fastnn
