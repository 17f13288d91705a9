// Tensor cores of Ampere and later, one warp at a time: asynchronous copies into shared memory, loads of fragments,
// products of fragments. All 32 lanes of a warp call together; nothing here checks that on a GPU, the emulation does.
//
//   product          A           B           C, D               of 16-bit types    of TF32
//   d = a b + c      16 x k      k x 8       16 x 8 float       k = 16             k = 8
//
// A lane has g = lane / 4 and t = lane % 4. Of a 16-bit pair the lower column (of B the lower row) is in the low half.
//
//   a[0..3]  16-bit: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 and the column after each
//            TF32:   rows g, g + 8, g, g + 8 at columns t, t, t + 4, t + 4
//   b[0..1]  16-bit: column g at rows 2t, 2t + 8 and the row after each;      TF32: column g at rows t, t + 4
//   c[0..3]  rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1
#pragma once

#include "core/cuda_device.h"

#ifdef FASTNN_CUDA_EMULATED
#include "emulation/mma.h"
#else

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------ asynchronous copies

// Copies Bytes (4, 8 or 16, both sides aligned to it) from device memory to shared memory, or writes zeros when not
// `valid` (then `from` is not read). Complete for this thread after commit and wait, for others after a barrier.
template <int Bytes = 16>
__device__ inline void async_copy(void* to, const void* from, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  const int present = valid ? Bytes : 0;
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(present)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(Bytes),
                 "r"(present)
                 : "memory");
}

// Closes the group of the copies so far.
__device__ inline void async_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the Newest last groups are on their way.
template <int Newest>
__device__ inline void async_copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Newest) : "memory");
}

// ------------------------------------------------------------------------------ fragments

// N = 1, 2 or 4 matrices of 8 rows of 16 bytes. Lane 8m + r gives the address of row r of matrix m (lanes beyond 8N
// are ignored, but must be valid); r[m] gets row g, 32-bit word t. Transposed, of 16-bit elements: column g, rows 2t
// and 2t + 1.
template <int N>
__device__ inline void load_matrix(uint32_t (&r)[N], const void* row) {
  const uint32_t address = shared_address(row);
  if constexpr (N == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
  else if constexpr (N == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

template <int N>
__device__ inline void load_matrix_transposed(uint32_t (&r)[N], const void* row) {
  const uint32_t address = shared_address(row);
  if constexpr (N == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
  else if constexpr (N == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// ------------------------------------------------------------------------------ products

// d += a b; T is bfloat16 or float16.
template <class T>
__device__ inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (__is_same(T, bfloat16))
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b of float bits: the instruction reads 10 bits of mantissa and drops the rest (round before: to_tf32).
__device__ inline void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace
}  // namespace fastnn

#endif
