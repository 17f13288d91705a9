// The language of *.cu files for a C++ compiler: the build includes this before each of them. Keywords, the built-in
// variables, and the intrinsics that kernels and core/cuda_device.h use, under CUDA's own names.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_runtime_api.h"
#include "emulation/machine.h"

#define __CUDACC__  // headers for the CPU and CUDA take what they give CUDA
#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__
// All in one section: the emulation fills it with poison before a block and exchanges it between blocks.
#define __shared__ __attribute__((section("fastnn_shared"))) static

#define threadIdx (::fastnn::emulation::running->thread)
#define blockIdx (::fastnn::emulation::running->block)
#define blockDim (::fastnn::emulation::running->block_size)
#define gridDim (::fastnn::emulation::running->grid_size)
constexpr int warpSize = 32;

using std::max;
using std::min;

namespace {

// ------------------------------------------------------------------------------ barriers and fences

inline void __syncthreads() {
  ::fastnn::emulation::barrier_sync(0, ::fastnn::emulation::block_threads(), "__syncthreads");
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::fastnn::emulation::meet_warp(mask, "__syncwarp", nullptr, nullptr);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { ::fastnn::emulation::fault("trap"); }

// ------------------------------------------------------------------------------ shuffles and votes

// What a lane brings to a shuffle, and the value that it leaves with.
struct EmulatedShuffle {
  unsigned char in[8], out[8];
  int source;  // lane to read from
};

inline void emulated_shuffle(void* const* lanes, uint32_t mask) {
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    auto& mine = *static_cast<EmulatedShuffle*>(lanes[i]);
    if (mask >> mine.source & 1)
      memcpy(mine.out, static_cast<EmulatedShuffle*>(lanes[mine.source])->in, sizeof mine.out);
    else
      memset(mine.out, 0xff, sizeof mine.out);  // a lane that does not take part: undefined
  }
}

template <class T>
T emulated_shuffle_from(unsigned mask, T value, int source, const char* what) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  EmulatedShuffle mine{};
  memcpy(mine.in, &value, sizeof value);
  mine.source = source;
  ::fastnn::emulation::meet_warp(mask, what, &mine, emulated_shuffle);
  memcpy(&value, mine.out, sizeof value);
  return value;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = int(::fastnn::emulation::lane());
  return emulated_shuffle_from(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = int(::fastnn::emulation::lane()), other = lane ^ lane_mask;
  return emulated_shuffle_from(mask, value, (other ^ lane) & ~(width - 1) && other > lane ? lane : other & 31,
                               "__shfl_xor_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = int(::fastnn::emulation::lane()), other = lane + int(delta);
  return emulated_shuffle_from(mask, value, (lane & (width - 1)) + int(delta) < width ? other : lane,
                               "__shfl_down_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = int(::fastnn::emulation::lane()), other = lane - int(delta);
  return emulated_shuffle_from(mask, value, (lane & (width - 1)) >= int(delta) ? other : lane, "__shfl_up_sync");
}

struct EmulatedVote {
  bool predicate;
  unsigned ballot;
};

inline void emulated_vote(void* const* lanes, uint32_t mask) {
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1 && static_cast<EmulatedVote*>(lanes[i])->predicate) ballot |= 1u << i;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) static_cast<EmulatedVote*>(lanes[i])->ballot = ballot;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  EmulatedVote mine{predicate != 0, 0};
  ::fastnn::emulation::meet_warp(mask, "__ballot_sync", &mine, emulated_vote);
  return mine.ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// ------------------------------------------------------------------------------ atomics

template <class T>
T atomicAdd(T* address, T value) {
  static_assert(!std::is_floating_point<T>::value, "sums of floats must not depend on the order of threads");
  const T old = *address;
  *address = T(old + value);
  return old;
}
template <class T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <class T>
T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <class T>
T atomicOr(T* address, T value) {
  const T old = *address;
  *address = old | value;
  return old;
}
template <class T>
T atomicAnd(T* address, T value) {
  const T old = *address;
  *address = old & value;
  return old;
}
template <class T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  const unsigned old = *address;
  *address = old >= limit ? 0 : old + 1;
  return old;
}

// ------------------------------------------------------------------------------ loads and stores with hints

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}

// ------------------------------------------------------------------------------ arithmetic

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __float_as_int(float x) {
  int bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline unsigned __float_as_uint(float x) { return unsigned(__float_as_int(x)); }
inline float __int_as_float(int bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(int(bits)); }
inline long long __double_as_longlong(double x) {
  long long bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return int(std::floor(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline long long clock64() { return 0; }

}  // namespace
