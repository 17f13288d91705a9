// Hopper (compute capability 9.0a): barriers in shared memory, the copy engine (TMA), and products of a warpgroup.
// Kernels that include this are in *_sm90.cu files.
//
//   product       d (64 x N float) += a (64 x k) b (k x N)      k = 16 for bfloat16 and float16, 8 for TF32
//
// The 128 threads of a warpgroup call together (its first warp has an index divisible by 4). A comes from shared
// memory or registers, B from shared memory. In warp w, lane with g = lane / 4 and t = lane % 4:
//
//   d[4j .. 4j + 3]   rows 16w + g, 16w + g, 16w + g + 8, 16w + g + 8 at columns 8j + 2t, 8j + 2t + 1, and again
//   a[0 .. 3]         as in gemm/mma_cuda.h, of rows 16w to 16w + 15
//
// A tile in shared memory is told by a descriptor; lengths in 16-byte chunks. Its fast dimension is k (K-major: rows
// of A and columns of B lie along k) or m or n (MN-major; not for TF32). With swizzle, S = 2, 4 or 8 chunks:
//
//   K-major, swizzled     8 rows of S chunks are an atom (S x 128 bytes, aligned to that); `stride` from 8 rows to the
//                         next 8, `leading` unused. The next 16 of k are 32 bytes on: add them to the address.
//   K-major, plain        8 rows of one chunk are an atom of 128 bytes; `leading` to the next chunk of k, `stride` to
//                         the next 8 rows.
//   MN-major, swizzled    8 rows of k, each S chunks of m or n, are an atom; `stride` to the next 8 rows of k,
//                         `leading` to the next S chunks of m or n.
//   MN-major, plain       8 rows of k of one chunk of m or n are an atom of 128 bytes; `leading` to the next 8 rows of
//                         k, `stride` to the next chunk of m or n.
//
// The order of a step:  wgmma_fence(); wgmma(...) for each k; wgmma_commit(); wgmma_wait<0>(); wgmma_use(d);
#pragma once

#include "core/cuda_device.h"
#include "core/cuda_tensor_map.h"

namespace fastnn {
namespace {

// A and B of wgmma rounded to 10 bits of mantissa: float bits.
struct tf32 {
  uint32_t bits;
};

enum class Major : uint8_t { K, MN };

// `address` is that of shared memory (shared_address); leading and stride are bytes, multiples of 16.
FASTNN_HD constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t leading, uint32_t stride, Swizzle swizzle) {
  constexpr uint64_t code[] = {0, 3, 2, 1};  // of none, 32, 64, 128 bytes
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t((leading & 0x3ffff) >> 4) << 16 |
         uint64_t((stride & 0x3ffff) >> 4) << 32 | code[int(swizzle)] << 62;
}

// The descriptor of the tile that begins `bytes` later.
FASTNN_HD constexpr uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

// Where byte `offset` of a tile that begins at a multiple of 1024 lies when the tile is swizzled.
FASTNN_HD constexpr uint32_t swizzled(uint32_t offset, Swizzle swizzle) {
  return offset ^ ((offset >> 7 & ((1u << int(swizzle)) - 1)) << 4);
}

}  // namespace
}  // namespace fastnn

#ifdef FASTNN_CUDA_EMULATED
#include "emulation/wgmma.h"
#else

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------ barriers in shared memory

// A barrier completes a phase when `count` arrivals and all bytes announced for it have come; then the next phase
// begins. Phases have parity 0, 1, 0, ... ; waiting for the parity of the phase before the first returns at once.
__device__ inline void mbarrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// After the inits by one thread, before a barrier of the block (or the cluster) that lets the others use them.
__device__ inline void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and announces bytes that the copy engine will bring in this phase.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// At the barrier in the same place in another block of the cluster.
__device__ inline void mbarrier_arrive_cluster(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
__device__ inline bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}
// Until the phase of this parity is complete; a wait that never ends traps.
__device__ inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  if (mbarrier_try_wait(barrier, parity)) return;
  Spin spin;
  while (!mbarrier_try_wait(barrier, parity)) spin.wait("mbarrier");
}

// Shared memory that ordinary stores wrote, before the copy engine or wgmma reads it: each writing thread, then a
// barrier.
__device__ inline void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ------------------------------------------------------------------------------ the copy engine

__device__ inline void tma_prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// One thread copies the box at these coordinates (elements, fastest dimension first) into shared memory; its bytes,
// zeros beyond the tensor among them, count at the barrier. `to` is aligned to 128 bytes, swizzled to 1024.
__device__ inline void tma_load(void* to, const CUtensorMap& map, uint64_t* barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ inline void tma_load(void* to, const CUtensorMap& map, uint64_t* barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ inline void tma_load(void* to, const CUtensorMap& map, uint64_t* barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
__device__ inline void tma_load(void* to, const CUtensorMap& map, uint64_t* barrier, int x, int y, int z, int w,
                                int v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
      : "memory");
}
// Into the same place in every block of the cluster that `blocks` has a bit for, and at the barriers there.
__device__ inline void tma_load_multicast(void* to, const CUtensorMap& map, uint64_t* barrier, uint16_t blocks, int x,
                                          int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, "
      "%5}], [%2], %3;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "h"(blocks), "r"(x), "r"(y)
      : "memory");
}

// One thread copies shared memory into the box; what lies beyond the tensor is left out. Then commit, and wait until
// at most the Newest last groups still read shared memory; tma_store_wait_all also until all is written.
__device__ inline void tma_store(const CUtensorMap& map, const void* from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x), "r"(y)
               : "memory");
}
__device__ inline void tma_store(const CUtensorMap& map, const void* from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ inline void tma_store(const CUtensorMap& map, const void* from, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}
__device__ inline void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int Newest>
__device__ inline void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Newest) : "memory");
}
__device__ inline void tma_store_wait_all() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// ------------------------------------------------------------------------------ clusters and registers

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ inline T* cluster_shared(T* pointer, uint32_t rank) {
  uint64_t there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(pointer), "r"(rank));
  return reinterpret_cast<T*>(there);
}

// One lane of the warp, the same each time; all lanes must call.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// The warpgroup gives registers back, or takes more: a multiple of 8 for each thread.
template <int Registers>
__device__ inline void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

// ------------------------------------------------------------------------------ products of a warpgroup

// Before the first product, and after registers of a or d were written.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most the Newest last groups are computing.
template <int Newest>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Newest) : "memory");
}
// Keeps the compiler from reading d before here: after the wait.
template <int Count>
__device__ inline void wgmma_use(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int N>
struct WarpgroupProduct;

#define FASTNN_R4 "%0, %1, %2, %3"
#define FASTNN_R8 FASTNN_R4 ", %4, %5, %6, %7"
#define FASTNN_R16 FASTNN_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FASTNN_R32 FASTNN_R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTNN_R48 FASTNN_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define FASTNN_R64 FASTNN_R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTNN_R80 FASTNN_R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define FASTNN_R96 FASTNN_R80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FASTNN_R112 \
  FASTNN_R96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define FASTNN_R128 \
  FASTNN_R112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define FASTNN_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FASTNN_D8(i) FASTNN_D4(i), FASTNN_D4(i + 4)
#define FASTNN_D16(i) FASTNN_D8(i), FASTNN_D8(i + 8)
#define FASTNN_D32(i) FASTNN_D16(i), FASTNN_D16(i + 16)
#define FASTNN_D48(i) FASTNN_D32(i), FASTNN_D16(i + 32)
#define FASTNN_D64(i) FASTNN_D32(i), FASTNN_D32(i + 32)
#define FASTNN_D96(i) FASTNN_D64(i), FASTNN_D32(i + 64)
#define FASTNN_D128(i) FASTNN_D64(i), FASTNN_D64(i + 64)

// The numbers p0.. follow those of d: descriptors or a, whether to add, and which operands are MN-major.
#define FASTNN_WGMMA_SHARED(shape, type, registers, operands, p0, p1, p2, transposes)                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p2 ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32." type \
               " {" registers "}, " p0 ", " p1 ", p, 1, 1" transposes ";\n}"                                   \
               : operands                                                                                      \
               : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(MajorA)), "n"(int(MajorB)))
#define FASTNN_WGMMA_REGISTERS(shape, type, registers, operands, p0, p1, p2, p3, p4, p5, transposes)           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p5 ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32." type \
               " {" registers "}, {" p0 ", " p1 ", " p2 ", " p3 "}, " p4 ", p, 1, 1" transposes ";\n}"         \
               : operands                                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(MajorB)))

#define FASTNN_WGMMA(N, count, p0, p1, p2, p3, p4, p5, p6)                                                            \
  template <>                                                                                                         \
  struct WarpgroupProduct<N> {                                                                                        \
    template <class T, Major MajorA, Major MajorB>                                                                    \
    static __device__ __forceinline__ void shared(float (&d)[count], uint64_t a, uint64_t b, bool accumulate) {       \
      if constexpr (__is_same(T, bfloat16))                                                                           \
        FASTNN_WGMMA_SHARED("m64n" #N "k16", "bf16.bf16", FASTNN_R##count, FASTNN_D##count(0), p0, p1, p2,            \
                            ", " p3 ", " p4);                                                                         \
      else if constexpr (__is_same(T, float16))                                                                       \
        FASTNN_WGMMA_SHARED("m64n" #N "k16", "f16.f16", FASTNN_R##count, FASTNN_D##count(0), p0, p1, p2,              \
                            ", " p3 ", " p4);                                                                         \
      else                                                                                                            \
        FASTNN_WGMMA_SHARED("m64n" #N "k8", "tf32.tf32", FASTNN_R##count, FASTNN_D##count(0), p0, p1, p2, "");        \
    }                                                                                                                 \
    template <class T, Major MajorB>                                                                                  \
    static __device__ __forceinline__ void registers(float (&d)[count], const uint32_t (&a)[4], uint64_t b,           \
                                                     bool accumulate) {                                               \
      if constexpr (__is_same(T, bfloat16))                                                                           \
        FASTNN_WGMMA_REGISTERS("m64n" #N "k16", "bf16.bf16", FASTNN_R##count, FASTNN_D##count(0), p0, p1, p2, p3, p4, \
                               p5, ", " p6);                                                                          \
      else if constexpr (__is_same(T, float16))                                                                       \
        FASTNN_WGMMA_REGISTERS("m64n" #N "k16", "f16.f16", FASTNN_R##count, FASTNN_D##count(0), p0, p1, p2, p3, p4,   \
                               p5, ", " p6);                                                                          \
      else                                                                                                            \
        FASTNN_WGMMA_REGISTERS("m64n" #N "k8", "tf32.tf32", FASTNN_R##count, FASTNN_D##count(0), p0, p1, p2, p3, p4,  \
                               p5, "");                                                                               \
    }                                                                                                                 \
  };
FASTNN_WGMMA(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
FASTNN_WGMMA(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
FASTNN_WGMMA(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
FASTNN_WGMMA(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
FASTNN_WGMMA(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
FASTNN_WGMMA(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
FASTNN_WGMMA(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
FASTNN_WGMMA(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
#undef FASTNN_WGMMA
#undef FASTNN_WGMMA_SHARED
#undef FASTNN_WGMMA_REGISTERS

// d = a b, plus d when `accumulate`. T: bfloat16, float16 or tf32; N: 8, 16, 32, 64, 96, 128, 192 or 256.
template <class T, int N, Major MajorA = Major::K, Major MajorB = Major::K>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(sizeof(T) == 2 || (MajorA == Major::K && MajorB == Major::K), "TF32 wants both operands K-major");
  WarpgroupProduct<N>::template shared<T, MajorA, MajorB>(d, a, b, accumulate);
}
template <class T, int N, Major MajorB = Major::K>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(sizeof(T) == 2 || MajorB == Major::K, "TF32 wants both operands K-major");
  WarpgroupProduct<N>::template registers<T, MajorB>(d, a, b, accumulate);
}

}  // namespace
}  // namespace fastnn

#endif
