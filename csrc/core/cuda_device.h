// Device functions that kernels share: warps, blocks, vectors of 16 bytes, waiting between blocks. Inline PTX for them
// stands here (that of tensor cores in gemm/mma_cuda.h and gemm/wgmma_cuda.h) and nowhere else, so the emulation of
// tests/emulation can put its own functions in their place.
//
// Sums run in a fixed order: a result is the same bits every time.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/half.h"

// Dynamic shared memory of the block, from an address that is a multiple of 1024:  FASTNN_DYNAMIC_SHARED(tiles);
#ifdef FASTNN_CUDA_EMULATED
#define FASTNN_DYNAMIC_SHARED(name) unsigned char* const name = ::fastnn::emulation::dynamic_shared()
#else
#define FASTNN_DYNAMIC_SHARED(name)                                \
  extern __shared__ __align__(1024) unsigned char fastnn_shared[]; \
  unsigned char* const name = fastnn_shared
#endif

namespace fastnn {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// ------------------------------------------------------------------------------ where a thread is

__device__ inline int thread_in_block() {
  return int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}
__device__ inline int lane_id() { return thread_in_block() % kWarp; }
__device__ inline int warp_id() { return thread_in_block() / kWarp; }

// The address of shared memory as instructions take it.
#ifdef FASTNN_CUDA_EMULATED
inline uint32_t shared_address(const void* pointer) { return emulation::shared_address(pointer); }
#else
__device__ inline uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }
#endif

// ------------------------------------------------------------------------------ warps

// T: an arithmetic type of 4 or 8 bytes.
template <class T>
__device__ inline T shuffle(T value, int lane, unsigned mask = kFullWarp) {
  return __shfl_sync(mask, value, lane);
}
template <class T>
__device__ inline T shuffle_xor(T value, int lane_mask, unsigned mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, lane_mask);
}
template <class T>
__device__ inline T shuffle_down(T value, int delta, unsigned mask = kFullWarp) {
  return __shfl_down_sync(mask, value, unsigned(delta));
}
template <class T>
__device__ inline T shuffle_up(T value, int delta, unsigned mask = kFullWarp) {
  return __shfl_up_sync(mask, value, unsigned(delta));
}
__device__ inline unsigned warp_ballot(bool predicate, unsigned mask = kFullWarp) {
  return __ballot_sync(mask, predicate);
}
__device__ inline bool warp_any(bool predicate, unsigned mask = kFullWarp) { return __any_sync(mask, predicate) != 0; }
__device__ inline bool warp_all(bool predicate, unsigned mask = kFullWarp) { return __all_sync(mask, predicate) != 0; }
__device__ inline void warp_sync(unsigned mask = kFullWarp) { __syncwarp(mask); }

// ------------------------------------------------------------------------------ blocks

__device__ inline void block_sync() { __syncthreads(); }

// Barriers 1 to 15 for some of a block's warps; `threads` is a multiple of 32. Those that only arrive do not wait.
#ifdef FASTNN_CUDA_EMULATED
inline void named_barrier_sync(int id, int threads) { emulation::barrier_sync(id, unsigned(threads), "named barrier"); }
inline void named_barrier_arrive(int id, int threads) { emulation::barrier_arrive(id, unsigned(threads)); }
#else
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
#endif

// ------------------------------------------------------------------------------ reductions

struct Sum {
  template <class T>
  static __device__ T identity() {
    return T(0);
  }
  template <class T>
  static __device__ T combine(T a, T b) {
    return a + b;
  }
};

// NaN wins, as in the reductions of the CPU.
struct Max {
  template <class T>
  static __device__ T identity() {
    return T(-INFINITY);
  }
  template <class T>
  static __device__ T combine(T a, T b) {
    return a > b || a != a ? a : b;
  }
};

struct Min {
  template <class T>
  static __device__ T identity() {
    return T(INFINITY);
  }
  template <class T>
  static __device__ T combine(T a, T b) {
    return a < b || a != a ? a : b;
  }
};

// Over groups of `Width` neighbouring lanes; every lane of a group gets the same bits.
template <class Op, int Width = kWarp, class T>
__device__ inline T warp_reduce(T value) {
#pragma unroll
  for (int step = Width / 2; step > 0; step /= 2) value = Op::combine(value, shuffle_xor(value, step));
  return value;
}

// Over the block, of at most 1024 threads and a multiple of 32; every thread gets the same bits. `partial` is shared
// memory of 32 values; it may be used again at once.
template <class Op, class T>
__device__ inline T block_reduce(T value, T* partial) {
  value = warp_reduce<Op>(value);
  const int warps = int(blockDim.x * blockDim.y * blockDim.z) / kWarp;
  if (warps == 1) return value;
  if (lane_id() == 0) partial[warp_id()] = value;
  block_sync();
  value = warp_reduce<Op>(lane_id() < warps ? partial[lane_id()] : Op::template identity<T>());
  block_sync();
  return value;
}

// ------------------------------------------------------------------------------ vectors

// N elements that move as one: 16 bytes where sizeof(T) * N is 16.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <class T>
constexpr int kPackOf16 = 16 / int(sizeof(T));

// `from` is aligned to the pack.
template <int N, class T>
__device__ inline Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T>
__device__ inline void store_pack(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Of memory that is read or written once: it does not stay in the caches. 16 bytes.
template <int N, class T>
__device__ inline Pack<T, N> load_streaming(const T* from) {
  static_assert(sizeof(Pack<T, N>) == 16, "streaming loads move 16 bytes");
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
  Pack<T, N> pack;
  memcpy(&pack, &bits, sizeof pack);
  return pack;
}
template <int N, class T>
__device__ inline void store_streaming(T* to, const Pack<T, N>& pack) {
  static_assert(sizeof(Pack<T, N>) == 16, "streaming stores move 16 bytes");
  uint4 bits;
  memcpy(&bits, &pack, sizeof pack);
  __stcs(reinterpret_cast<uint4*>(to), bits);
}

FASTNN_HD inline bool is_aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % unsigned(bytes) == 0;
}

// ------------------------------------------------------------------------------ between blocks

// A flag that a thread of another block writes after its data, and that is read before them.
#ifdef FASTNN_CUDA_EMULATED
inline unsigned load_acquire(const unsigned* flag) { return *flag; }
inline void store_release(unsigned* flag, unsigned value) { *flag = value; }
inline unsigned add_release(unsigned* counter, unsigned value) { return atomicAdd(counter, value); }
#else
__device__ inline unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
// Returns the value before.
__device__ inline unsigned add_release(unsigned* counter, unsigned value) {
  unsigned before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
  return before;
}
#endif

// A wait that cannot hang the GPU: one that lasts longer than any kernel does ends it with an error.
//   Spin spin;
//   while (load_acquire(flag) != expected) spin.wait("flag");
class Spin {
 public:
#ifdef FASTNN_CUDA_EMULATED
  void wait(const char* what) {
    emulation::pause(first_, what);
    first_ = false;
  }

 private:
  bool first_ = true;
#else
  __device__ Spin() { start_ = clock64(); }
  __device__ void wait(const char*) {
    if (clock64() - start_ > kLimit) __trap();
  }

 private:
  static constexpr long long kLimit = 4LL * 1000 * 1000 * 1000;  // clock cycles: about two seconds
  long long start_;
#endif
};

// ------------------------------------------------------------------------------ arithmetic of one instruction

// Two floats rounded to 16 bits, `low` in the low half; float rounded to TF32 (in the bits of a float). About 2^x: two
// units in the last place, flushes subnormals.
#ifdef FASTNN_CUDA_EMULATED
inline uint32_t pack_pair(bfloat16, float low, float high) {
  return uint32_t(to_bfloat16(low).bits) | uint32_t(to_bfloat16(high).bits) << 16;
}
inline uint32_t pack_pair(float16, float low, float high) {
  return uint32_t(to_float16(low).bits) | uint32_t(to_float16(high).bits) << 16;
}
inline uint32_t to_tf32(float x) {
  const uint32_t bits = float_to_bits(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float tanh_fast(float x) { return std::tanh(x); }
#else
__device__ inline uint32_t pack_pair(bfloat16, float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ inline uint32_t pack_pair(float16, float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ inline uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

}  // namespace
}  // namespace fastnn
