// Rows of any dtype and stride into a compute type (float, double, int64_t), and back.
//
// 16-bit floats and small integers are storage types: a kernel loads a row of a few hundred elements
// into a buffer that stays in L1, computes, and stores. So a formula is instantiated for three types
// instead of ten. How one element converts: simd/element.h.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

constexpr int64_t kRowChunk = 512;  // elements of a buffered row: 4 KiB at most

namespace FASTNN_LEVEL {

// `src` is the first element, `stride` counts elements of `dtype`; 0 repeats one element.
void load_row(float* row, const void* src, DType dtype, int64_t stride, int64_t n);
void load_row(double* row, const void* src, DType dtype, int64_t stride, int64_t n);
void load_row(int64_t* row, const void* src, DType dtype, int64_t stride, int64_t n);
void store_row(void* dst, DType dtype, int64_t stride, const float* row, int64_t n);
void store_row(void* dst, DType dtype, int64_t stride, const double* row, int64_t n);
void store_row(void* dst, DType dtype, int64_t stride, const int64_t* row, int64_t n);

}  // namespace FASTNN_LEVEL
}  // namespace fastnn
