// The functions of gemm/wgmma_cuda.h on the emulation. The copy engine moves a box as late as it may: loads when every
// thread waits, stores when they are waited for. Products read shared memory and write d when they are waited for.
// Descriptors and swizzles are interpreted on the addresses of shared memory, so a wrong one gives wrong numbers.
#pragma once

#include <cstring>
#include <memory>

#include "core/cuda_device.h"
#include "core/cuda_tensor_map.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------ barriers in shared memory

// The 8 bytes of a barrier.
struct EmulatedBarrier {
  uint64_t count : 20, pending : 20;
  int64_t bytes : 23;  // announced, not yet come
  uint64_t parity : 1;
};
static_assert(sizeof(EmulatedBarrier) == 8, "as large as the real one");

inline EmulatedBarrier* emulated_barrier(uint64_t* barrier, const char* what) {
  if (uintptr_t(barrier) % 8) emulation::fault("%s: the barrier is not aligned to 8 bytes", what);
  auto* state = reinterpret_cast<EmulatedBarrier*>(barrier);
  if (state->count == 0xfffff) emulation::fault("%s: the barrier was not initialised", what);
  return state;
}

inline void emulated_complete(EmulatedBarrier* state) {
  if (state->pending || state->bytes) return;
  state->pending = state->count;
  state->parity ^= 1;
}

inline void emulated_arrive(EmulatedBarrier* state, int64_t bytes, const char* what) {
  if (state->pending == 0) emulation::fault("%s: more arrivals in a phase than the barrier counts", what);
  state->pending -= 1;
  state->bytes += bytes;
  emulated_complete(state);
}

inline void mbarrier_init(uint64_t* barrier, uint32_t count) {
  emulation::shared_address(barrier);  // only there
  if (count == 0 || count >= 0xfffff || uintptr_t(barrier) % 8) emulation::fault("mbarrier.init: count %u", count);
  auto* state = reinterpret_cast<EmulatedBarrier*>(barrier);
  state->count = state->pending = count;
  state->bytes = 0;
  state->parity = 0;
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier) {
  emulated_arrive(emulated_barrier(barrier, "mbarrier.arrive"), 0, "mbarrier.arrive");
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  emulated_arrive(emulated_barrier(barrier, "mbarrier.arrive.expect_tx"), bytes, "mbarrier.arrive.expect_tx");
}
inline void mbarrier_arrive_cluster(uint64_t* barrier, uint32_t rank) {
  mbarrier_arrive(static_cast<uint64_t*>(emulation::cluster_pointer(barrier, rank)));
}

struct EmulatedWait {
  const EmulatedBarrier* state;
  uint32_t parity;
  static bool ready(const void* wait) {
    auto* mine = static_cast<const EmulatedWait*>(wait);
    return mine->state->parity != mine->parity;
  }
};

inline bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  EmulatedWait wait{emulated_barrier(barrier, "mbarrier.try_wait"), parity};
  if (EmulatedWait::ready(&wait)) return true;
  emulation::pause(false, "mbarrier.try_wait");
  return EmulatedWait::ready(&wait);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  if (parity > 1) emulation::fault("mbarrier wait: parity %u", parity);
  EmulatedWait wait{emulated_barrier(barrier, "mbarrier wait"), parity};
  emulation::wait_until(EmulatedWait::ready, &wait, parity ? "mbarrier, parity 1" : "mbarrier, parity 0");
}

inline void async_proxy_fence() {}

// ------------------------------------------------------------------------------ the copy engine

inline void tma_prefetch(const CUtensorMap&) {}

// Calls move(shared byte, device byte or null, bytes) for the 16-byte chunks of a box. The fastest dimension is dense.
template <class Move>
void emulated_box(const CUtensorMap& map, unsigned char* shared, const int64_t (&at)[5], Move move) {
  const uint32_t row_bytes = map.box[0] * map.item_size;
  uint32_t rows = 1;
  for (int d = 1; d < map.rank; ++d) rows *= map.box[d];
  const uint32_t chunk_items = 16 / map.item_size;
  for (uint32_t row = 0; row < rows; ++row) {
    uint32_t rest = row;
    bool inside = true;
    unsigned char* start = map.data;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t index = at[d] + rest % map.box[d];
      rest /= map.box[d];
      inside &= index >= 0 && index < int64_t(map.sizes[d]);
      start += index * int64_t(map.strides[d]);
    }
    for (uint32_t byte = 0; byte < row_bytes; byte += 16) {
      uint32_t offset = row * row_bytes + byte;
      offset ^= (offset >> 7 & ((1u << map.swizzle) - 1)) << 4;
      for (uint32_t item = 0; item < chunk_items; ++item) {
        const int64_t index = at[0] + byte / map.item_size + item;
        const bool there = inside && index >= 0 && index < int64_t(map.sizes[0]);
        move(shared + offset + item * map.item_size, there ? start + index * map.item_size : nullptr, map.item_size);
      }
    }
  }
}

inline uint32_t emulated_box_bytes(const CUtensorMap& map) {
  uint32_t bytes = map.item_size;
  for (int d = 0; d < map.rank; ++d) bytes *= map.box[d];
  return bytes;
}

inline void emulated_check_box(const CUtensorMap& map, const void* shared, int coordinates, const char* what) {
  if (map.valid != 1) emulation::fault("%s: not a tensor map (is it a __grid_constant__ parameter?)", what);
  if (map.rank != coordinates)
    emulation::fault("%s: %d coordinates for a tensor map of %d", what, coordinates, map.rank);
  const uint32_t unit = map.swizzle ? 128u << map.swizzle : 128u;
  const uint32_t address = emulation::shared_address(shared);
  if (address % unit) emulation::fault("%s: shared address 0x%x is not a multiple of %u", what, address, unit);
  emulation::shared_pointer(address, emulated_box_bytes(map));
}

template <class... Coordinates>
void emulated_load(void* to, const CUtensorMap& map, uint64_t* barrier, Coordinates... coordinates) {
  const int64_t at[5] = {coordinates...};
  auto* state = emulated_barrier(barrier, "TMA load");
  emulation::defer([map, to, state, at0 = at[0], at1 = at[1], at2 = at[2], at3 = at[3], at4 = at[4]] {
    emulated_box(map, static_cast<unsigned char*>(to), {at0, at1, at2, at3, at4},
                 [](unsigned char* shared, const unsigned char* device, uint32_t bytes) {
                   if (device)
                     memcpy(shared, device, bytes);
                   else
                     memset(shared, 0, bytes);
                 });
    state->bytes -= emulated_box_bytes(map);
    emulated_complete(state);
  });
}

template <class... Coordinates>
void tma_load(void* to, const CUtensorMap& map, uint64_t* barrier, Coordinates... coordinates) {
  emulated_check_box(map, to, sizeof...(coordinates), "TMA load");
  emulated_load(to, map, barrier, coordinates...);
}
inline void tma_load_multicast(void* to, const CUtensorMap& map, uint64_t* barrier, uint16_t blocks, int x, int y) {
  emulated_check_box(map, to, 2, "TMA multicast");
  for (uint32_t rank = 0; rank < 16; ++rank)
    if (blocks >> rank & 1)
      emulated_load(emulation::cluster_pointer(to, rank), map,
                    static_cast<uint64_t*>(emulation::cluster_pointer(barrier, rank)), x, y);
}

template <class... Coordinates>
void tma_store(const CUtensorMap& map, const void* from, Coordinates... coordinates) {
  emulated_check_box(map, from, sizeof...(coordinates), "TMA store");
  const int64_t at[5] = {coordinates...};
  emulation::store_later([map, from, at0 = at[0], at1 = at[1], at2 = at[2], at3 = at[3], at4 = at[4]] {
    emulated_box(map, static_cast<unsigned char*>(const_cast<void*>(from)), {at0, at1, at2, at3, at4},
                 [](const unsigned char* shared, unsigned char* device, uint32_t bytes) {
                   if (device) memcpy(device, shared, bytes);
                 });
  });
}
inline void tma_store_commit() { emulation::store_commit(); }
template <int Newest>
void tma_store_wait() {
  emulation::store_wait(Newest);
}
inline void tma_store_wait_all() { emulation::store_wait(0); }

// ------------------------------------------------------------------------------ clusters and registers

inline uint32_t cluster_rank() { return emulation::running->cluster_rank; }
inline void cluster_sync() { emulation::cluster_sync(); }
template <class T>
T* cluster_shared(T* pointer, uint32_t rank) {
  return static_cast<T*>(emulation::cluster_pointer(pointer, rank));
}

inline bool elect_one() {
  emulation::meet_warp(kFullWarp, "elect.sync", nullptr, nullptr);
  return emulation::lane() == 0;
}

template <int Registers>
void registers_decrease() {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256, "a multiple of 8 from 24 to 256");
  emulation::meet_warpgroup("setmaxnreg.dec", nullptr, nullptr);
}
template <int Registers>
void registers_increase() {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256, "a multiple of 8 from 24 to 256");
  emulation::meet_warpgroup("setmaxnreg.inc", nullptr, nullptr);
}

// ------------------------------------------------------------------------------ products of a warpgroup

inline void wgmma_fence() {
  emulation::meet_warpgroup("wgmma.fence", nullptr, [](void* const*) { emulation::products().fenced = true; });
}
inline void wgmma_commit() {
  emulation::meet_warpgroup("wgmma.commit_group", nullptr, [](void* const*) { emulation::products().commit(); });
}
template <int Newest>
void wgmma_wait() {
  emulation::meet_warpgroup("wgmma.wait_group", nullptr, [](void* const*) { emulation::products().wait(Newest); });
}
template <int Count>
void wgmma_use(float (&)[Count]) {}

// One operand as its descriptor tells: element(outer, k), where outer counts m or n.
template <class T>
class EmulatedTile {
 public:
  EmulatedTile(uint64_t descriptor, Major major)
      : start_(uint32_t(descriptor & 0x3fff) << 4),
        leading_(uint32_t(descriptor >> 16 & 0x3fff) << 4),
        stride_(uint32_t(descriptor >> 32 & 0x3fff) << 4),
        swizzle_((4 - uint32_t(descriptor >> 62)) % 4),
        major_(major) {
    if (descriptor >> 49 & 7) emulation::fault("wgmma: a descriptor with a base offset; align tiles to 1024 bytes");
  }
  float element(uint32_t outer, uint32_t k) const {
    constexpr uint32_t kItems = 16 / sizeof(T);  // of a chunk
    const bool k_major = major_ == Major::K;
    const uint32_t fast = k_major ? k : outer, slow = k_major ? outer : k;
    const uint32_t chunk = fast / kItems, chunks = 1u << swizzle_;  // chunks of a row of an atom
    uint32_t address = start_ + fast % kItems * sizeof(T) + slow % 8 * chunks * 16;
    if (swizzle_)
      address += chunk % chunks * 16 + chunk / chunks * leading_ + slow / 8 * stride_;
    else
      address += k_major ? chunk * leading_ + slow / 8 * stride_ : chunk * stride_ + slow / 8 * leading_;
    if (swizzle_ && k_major && chunk >= chunks) emulation::fault("wgmma: a K-major row longer than its swizzle");
    address ^= (address >> 7 & ((1u << swizzle_) - 1)) << 4;
    T value;
    memcpy(&value, emulation::shared_pointer(address, sizeof value), sizeof value);
    return emulated_operand(value);
  }

 private:
  static float emulated_operand(bfloat16 x) { return to_float(x); }
  static float emulated_operand(float16 x) { return to_float(x); }
  static float emulated_operand(tf32 x) { return bits_to_float(x.bits & 0xffffe000u); }

  uint32_t start_, leading_, stride_, swizzle_;
  Major major_;
};

// What a thread brings: its part of d, its registers of a or the descriptor, the descriptor of b.
struct EmulatedWgmma {
  float* d;
  uint32_t registers[4];
  uint64_t a, b;
  bool accumulate;
};

template <class T, int N, bool Registers, Major MajorA, Major MajorB>
struct EmulatedWgmmaWork {
  static constexpr int kK = 32 / int(sizeof(T));
  EmulatedWgmma threads[128];

  // The registers of a as rows.
  void unpack(float (&a)[64][kK]) const {
    for (int i = 0; i < 128; ++i) {
      const int row = i / 32 * 16 + i % 32 / 4, t = i % 4;
      for (int k = 0; k < 4; ++k)
        for (int half = 0; half < 4 / int(sizeof(T)); ++half) {
          const uint32_t bits = threads[i].registers[k];
          float& to =
              sizeof(T) == 2 ? a[row + 8 * (k % 2)][2 * t + 8 * (k / 2) + half] : a[row + 8 * (k % 2)][t + 4 * (k / 2)];
          if constexpr (sizeof(T) == 2)
            to = to_float(T{uint16_t(bits >> (16 * half))});
          else
            to = bits_to_float(bits & 0xffffe000u);
        }
    }
  }
  void operator()() const {
    float a[64][kK], b[kK][N];
    if constexpr (Registers) {
      unpack(a);
    } else {
      const EmulatedTile<T> tile(threads[0].a, MajorA);
      for (int m = 0; m < 64; ++m)
        for (int k = 0; k < kK; ++k) a[m][k] = tile.element(uint32_t(m), uint32_t(k));
    }
    const EmulatedTile<T> tile(threads[0].b, MajorB);
    for (int k = 0; k < kK; ++k)
      for (int n = 0; n < N; ++n) b[k][n] = tile.element(uint32_t(n), uint32_t(k));
    for (int m = 0; m < 64; ++m) {
      double sums[N] = {};
      for (int k = 0; k < kK; ++k)
        for (int n = 0; n < N; ++n) sums[n] += double(a[m][k]) * double(b[k][n]);
      for (int n = 0; n < N; ++n) {
        const int thread = m / 16 * 32 + m % 8 * 4 + n % 8 / 2;
        float& d = threads[thread].d[n / 8 * 4 + m % 16 / 8 * 2 + n % 2];
        d = float((threads[0].accumulate ? double(d) : 0.0) + sums[n]);
      }
    }
  }
};

template <class T, int N, bool Registers, Major MajorA, Major MajorB>
void emulated_wgmma(void* const* threads) {
  auto work = std::make_shared<EmulatedWgmmaWork<T, N, Registers, MajorA, MajorB>>();
  for (int i = 0; i < 128; ++i) {
    auto& mine = work->threads[i] = *static_cast<const EmulatedWgmma*>(threads[i]);
    const auto& first = work->threads[0];
    if (mine.a != first.a || mine.b != first.b || mine.accumulate != first.accumulate)
      emulation::fault("wgmma: thread %d of the warpgroup has another descriptor than thread 0", i);
  }
  emulation::products().issue([work] { (*work)(); });
}

template <class T, int N, Major MajorA = Major::K, Major MajorB = Major::K>
void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(sizeof(T) == 2 || (MajorA == Major::K && MajorB == Major::K), "TF32 wants both operands K-major");
  EmulatedWgmma mine{d, {}, a, b, accumulate};
  emulation::meet_warpgroup("wgmma", &mine, emulated_wgmma<T, N, false, MajorA, MajorB>);
}
template <class T, int N, Major MajorB = Major::K>
void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(sizeof(T) == 2 || MajorB == Major::K, "TF32 wants both operands K-major");
  EmulatedWgmma mine{d, {a[0], a[1], a[2], a[3]}, 0, b, accumulate};
  emulation::meet_warpgroup("wgmma", &mine, emulated_wgmma<T, N, true, Major::K, MajorB>);
}

}  // namespace
}  // namespace fastnn
