// The functions of gemm/mma_cuda.h on the emulation: the last lane of a warp that comes moves the data of all 32 as
// the instruction does. Products are summed in float64 and rounded once, which is closer than a GPU comes.
#pragma once

#include <cstring>

#include "core/cuda_device.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------ asynchronous copies

template <int Bytes = 16>
void async_copy(void* to, const void* from, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  emulation::shared_address(to);  // only there
  emulation::async_copy(to, from, Bytes, valid ? Bytes : 0);
}
inline void async_copy_commit() { emulation::async_commit(); }
template <int Newest>
void async_copy_wait() {
  emulation::async_wait(Newest);
}

// ------------------------------------------------------------------------------ fragments

struct EmulatedMatrixLoad {
  const unsigned char* row;
  uint32_t* r;
};

template <int N, bool Transposed>
void emulated_load_matrix(void* const* lanes, uint32_t) {
  auto row = [&](int matrix, int index) { return static_cast<EmulatedMatrixLoad*>(lanes[8 * matrix + index])->row; };
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < N; ++matrix) {
      const int g = lane / 4, t = lane % 4;
      uint16_t pair[2];
      for (int k = 0; k < 2; ++k)
        memcpy(&pair[k], Transposed ? row(matrix, 2 * t + k) + 2 * g : row(matrix, g) + 2 * (2 * t + k), 2);
      static_cast<EmulatedMatrixLoad*>(lanes[lane])->r[matrix] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
    }
}

template <int N, bool Transposed>
void emulated_load(uint32_t (&r)[N], const void* row, const char* what) {
  if (emulation::shared_address(row) % 16) emulation::fault("%s: a row at %p is not aligned to 16 bytes", what, row);
  EmulatedMatrixLoad mine{static_cast<const unsigned char*>(row), r};
  emulation::meet_warp(kFullWarp, what, &mine, emulated_load_matrix<N, Transposed>);
}

template <int N>
void load_matrix(uint32_t (&r)[N], const void* row) {
  emulated_load<N, false>(r, row, "ldmatrix");
}
template <int N>
void load_matrix_transposed(uint32_t (&r)[N], const void* row) {
  emulated_load<N, true>(r, row, "ldmatrix.trans");
}

// ------------------------------------------------------------------------------ products

struct EmulatedProduct {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// The 16 x K and K x 8 matrices in float, from all lanes; then the product into all lanes.
template <int K, class ElementA, class ElementB>
void emulated_product(void* const* lanes, ElementA element_a, ElementB element_b) {
  float a[16][K], b[K][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<EmulatedProduct*>(lanes[lane]);
    element_a(mine.a, lane / 4, lane % 4, a);
    element_b(mine.b, lane / 4, lane % 4, b);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int k = 0; k < 4; ++k) {
      const int row = lane / 4 + 8 * (k / 2), column = 2 * (lane % 4) + k % 2;
      float& d = static_cast<EmulatedProduct*>(lanes[lane])->d[k];
      double sum = d;
      for (int i = 0; i < K; ++i) sum += double(a[row][i]) * double(b[i][column]);
      d = float(sum);
    }
}

template <class T>
float emulated_half(uint32_t pair, int which) {
  return to_float(T{uint16_t(pair >> (16 * which))});
}

template <class T>
void emulated_mma_16x8x16(void* const* lanes, uint32_t) {
  emulated_product<16>(
      lanes,
      [](const uint32_t* a, int g, int t, float (*out)[16]) {
        for (int k = 0; k < 4; ++k)
          for (int half = 0; half < 2; ++half)
            out[g + 8 * (k % 2)][2 * t + 8 * (k / 2) + half] = emulated_half<T>(a[k], half);
      },
      [](const uint32_t* b, int g, int t, float (*out)[8]) {
        for (int k = 0; k < 2; ++k)
          for (int half = 0; half < 2; ++half) out[2 * t + 8 * k + half][g] = emulated_half<T>(b[k], half);
      });
}

inline float emulated_tf32(uint32_t bits) { return bits_to_float(bits & 0xffffe000u); }

inline void emulated_mma_16x8x8(void* const* lanes, uint32_t) {
  emulated_product<8>(
      lanes,
      [](const uint32_t* a, int g, int t, float (*out)[8]) {
        for (int k = 0; k < 4; ++k) out[g + 8 * (k % 2)][t + 4 * (k / 2)] = emulated_tf32(a[k]);
      },
      [](const uint32_t* b, int g, int t, float (*out)[8]) {
        for (int k = 0; k < 2; ++k) out[t + 4 * k][g] = emulated_tf32(b[k]);
      });
}

template <class T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  EmulatedProduct mine{d, a, b};
  emulation::meet_warp(kFullWarp, "mma.sync", &mine, emulated_mma_16x8x16<T>);
}
inline void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  EmulatedProduct mine{d, a, b};
  emulation::meet_warp(kFullWarp, "mma.sync tf32", &mine, emulated_mma_16x8x8);
}

}  // namespace
}  // namespace fastnn
