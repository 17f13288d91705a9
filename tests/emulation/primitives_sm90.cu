// Checks gemm/wgmma_cuda.h as primitives.cu checks the rest: a product through the copy engine, barriers and wgmma, for
// every swizzle, both majors, both sources of A; with a mistake in its argument, for the emulation to name.
//
// SASS product_kernel: HGMMA UTMALDG.2D UTMASTG.2D SYNCS
// SASS cluster_kernel: UTMALDG.2D.MULTICAST
#include "checks.h"
#include "core/cuda_device.h"
#include "gemm/wgmma_cuda.h"

namespace fastnn {
namespace {

enum class Mistake { None, Bytes, Parity, Fence, Wait, Stride, StoreWait };

struct ProductArgs {
  const float* a_values;  // of A from registers: rows of k
  int m, n, k;
};

constexpr int kM = 64, kStages = 2, kStageBytes = 128;  // bytes of k in a stage

template <class T>
constexpr int kStageK = kStageBytes / int(sizeof(T));

// One operand in shared memory: `Outer` of m or n by a stage of k, in boxes of `span` bytes of the fast dimension.
template <class T, int Outer, Major M, Swizzle S>
struct Operand {
  static constexpr int span = 16 << int(S), items = span / int(sizeof(T));
  static constexpr int boxes = M == Major::K ? kStageK<T> / items : Outer / items;
  static constexpr int rows = M == Major::K ? Outer : kStageK<T>;
  static constexpr int bytes = Outer * kStageBytes;

  static CUtensorMap map(const T* data, int outer, int k) {
    TensorBox box;
    box.sizes[0] = uint64_t(M == Major::K ? k : outer);
    box.sizes[1] = uint64_t(M == Major::K ? outer : k);
    box.strides[0] = box.sizes[0] * sizeof(T);
    box.box[0] = items;
    box.box[1] = rows;
    box.swizzle = S;
    if constexpr (sizeof(T) == 4)
      return tensor_map(reinterpret_cast<const float*>(data), box);
    else
      return tensor_map(data, box);
  }
  static __device__ void load(unsigned char* tile, const CUtensorMap& map, uint64_t* full, int k) {
    for (int i = 0; i < boxes; ++i)
      tma_load(tile + i * rows * span, map, full, M == Major::K ? k + i * items : i * items, M == Major::K ? 0 : k);
  }
  // Of 32 bytes of k (K-major) or as many k.
  static __device__ uint64_t descriptor(const unsigned char* tile, int step, bool wrong) {
    constexpr int step_k = 32 / int(sizeof(T));
    const uint32_t address = shared_address(tile);
    const uint32_t error = wrong ? 128 : 0;
    if (M == Major::K && S == Swizzle::None)
      return matrix_descriptor(address + step * 2 * rows * 16, rows * 16, 128 + error, S);
    if (M == Major::K)
      return matrix_descriptor(address + step * 32 / span * rows * span + step * 32 % span, 0, 8 * span + error, S);
    if (S == Swizzle::None) return matrix_descriptor(address + step * step_k * 16, 128, rows * 16 + error, S);
    return matrix_descriptor(address + step * step_k * span, rows * span, 8 * span + error, S);
  }
};

// The registers of a step of A: rows from `row` on, k from `first` on; zeros beyond the matrix.
template <class T>
__device__ void load_fragment(uint32_t (&a)[4], const ProductArgs& args, int row, int first) {
  const int t = lane_id() % 4;
  for (int q = 0; q < 4; ++q) {
    const int at_row = row + q % 2 * 8;
    auto value = [&](int k) {
      return at_row < args.m && first + k < args.k ? args.a_values[at_row * args.k + first + k] : 0.0f;
    };
    if constexpr (sizeof(T) == 2)
      a[q] = pack_pair(T{}, value(2 * t + q / 2 * 8), value(2 * t + 1 + q / 2 * 8));
    else
      a[q] = to_tf32(value(t + q / 2 * 4));
  }
}

// c (m x n) = a b. Warps 0 to 3 compute, warp 4 fetches.
template <class T, int N, Major MajorA, Major MajorB, Swizzle S, bool RegistersA, Mistake Made>
__global__ void __launch_bounds__(160, 1)
    product_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                   const __grid_constant__ CUtensorMap map_c, const __grid_constant__ ProductArgs args) {
  using A = Operand<T, kM, MajorA, S>;
  using B = Operand<T, N, MajorB, S>;
  FASTNN_DYNAMIC_SHARED(shared);
  constexpr int stage_bytes = A::bytes + B::bytes;
  float* const tile_c = reinterpret_cast<float*>(shared + kStages * stage_bytes);
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + kStages * stage_bytes + kM * N * 4);
  uint64_t* const empty = full + kStages;
  if (thread_in_block() == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 128);
    }
    mbarrier_init_fence();
  }
  block_sync();
  const int steps = (args.k + kStageK<T> - 1) / kStageK<T>;
  if (warp_id() == 4) {
    if (lane_id() == 0) {
      for (int i = 0; i < steps; ++i) {
        const int stage = i % kStages;
        mbarrier_wait(empty + stage, uint32_t(i / kStages % 2) ^ (Made == Mistake::Parity ? 0 : 1));
        mbarrier_arrive_expect(full + stage, stage_bytes + (Made == Mistake::Bytes ? 16 : 0));
        A::load(shared + stage * stage_bytes, map_a, full + stage, i * kStageK<T>);
        B::load(shared + stage * stage_bytes + A::bytes, map_b, full + stage, i * kStageK<T>);
      }
    }
    return;
  }
  const int lane = lane_id(), row = warp_id() * 16 + lane / 4, t = lane % 4;
  float sums[N / 2];
  for (int i = 0; i < steps; ++i) {
    const int stage = i % kStages;
    const unsigned char* const tile_a = shared + stage * stage_bytes;
    if (Made != Mistake::Wait) mbarrier_wait(full + stage, uint32_t(i / kStages % 2));
    uint32_t a[4][4];  // of each step
    if constexpr (RegistersA)
      for (int step = 0; step < 4; ++step)
        load_fragment<T>(a[step], args, row, i * kStageK<T> + step * 32 / int(sizeof(T)));
    if (Made != Mistake::Fence) wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint64_t b = B::descriptor(tile_a + A::bytes, step, Made == Mistake::Stride);
      const bool accumulate = i > 0 || step > 0;
      if constexpr (RegistersA)
        wgmma<T, N, MajorB>(sums, a[step], b, accumulate);
      else
        wgmma<T, N, MajorA, MajorB>(sums, A::descriptor(tile_a, step, false), b, accumulate);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_use(sums);
    mbarrier_arrive(empty + stage);
  }
  for (int j = 0; j < N / 8; ++j)
    for (int q = 0; q < 4; ++q) tile_c[(row + q / 2 * 8) * N + 8 * j + 2 * t + q % 2] = sums[4 * j + q];
  async_proxy_fence();
  named_barrier_sync(1, 128);
  if (thread_in_block() == 0) {
    tma_store(map_c, tile_c, 0, 0);
    tma_store_commit();
    if (Made != Mistake::StoreWait) tma_store_wait_all();
  }
}

void store(bfloat16& x, float value) { x = to_bfloat16(value); }
void store(float16& x, float value) { x = to_float16(value); }
void store(tf32& x, float value) { x.bits = float_to_bits(value); }

template <class T, int N, Major MajorA, Major MajorB, Swizzle S, bool RegistersA = false, Mistake Made = Mistake::None>
bool product_is_right() {
  constexpr int m = 56, n = N > 8 ? N - 8 : N, k = sizeof(T) == 2 ? 152 : 72;
  std::vector<float> a(m * k), b(size_t(k * n));
  for (size_t i = 0; i < a.size(); ++i) a[i] = value_of(int(i));
  for (size_t i = 0; i < b.size(); ++i) b[i] = value_of(int(i) + 3);
  std::vector<T> stored_a(a.size()), stored_b(b.size());
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < k; ++j)
      store(stored_a[size_t(MajorA == Major::K ? i * k + j : j * m + i)], a[size_t(i * k + j)]);
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < n; ++j)
      store(stored_b[size_t(MajorB == Major::K ? j * k + i : i * n + j)], b[size_t(i * n + j)]);
  Array<T> device_a(stored_a), device_b(stored_b);
  Array<float> values_a(a), c(size_t(m * n));
  TensorBox box_c;
  box_c.sizes[0] = n;
  box_c.sizes[1] = m;
  box_c.strides[0] = n * 4;
  box_c.box[0] = N;
  box_c.box[1] = kM;
  using A = Operand<T, kM, MajorA, S>;
  using B = Operand<T, N, MajorB, S>;
  const size_t shared = kStages * (A::bytes + B::bytes) + kM * N * 4 + 2 * kStages * 8;
  launch(product_kernel<T, N, MajorA, MajorB, S, RegistersA, Made>, 1, 160, shared, A::map(device_a.data(), m, k),
         B::map(device_b.data(), n, k), tensor_map(c.data(), box_c), ProductArgs{values_a.data(), m, n, k});
  bool good = true;
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int q = 0; q < k; ++q) sum += a[size_t(i * k + q)] * b[size_t(q * n + j)];
      good &= c.read()[size_t(i * n + j)] == sum;
    }
  return good;
}

template <class T, Swizzle S>
void check_majors(const char* name) {
  report(name, product_is_right<T, 64, Major::K, Major::K, S>() && product_is_right<T, 64, Major::MN, Major::K, S>() &&
                   product_is_right<T, 128, Major::K, Major::MN, S>() &&
                   product_is_right<T, 64, Major::MN, Major::MN, S>());
}

// ------------------------------------------------------------------------------ clusters

// Every block gives its number to the next one of its cluster; block 0 fetches one tile for all.
__global__ void cluster_kernel(const __grid_constant__ CUtensorMap map, float* out) {
  FASTNN_DYNAMIC_SHARED(shared);
  float* const tile = reinterpret_cast<float*>(shared);  // 8 rows of 32
  float* const from_neighbour = tile + 8 * 32;
  uint64_t* const full = reinterpret_cast<uint64_t*>(from_neighbour + 32);
  const uint32_t rank = cluster_rank();
  if (thread_in_block() == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
  }
  cluster_sync();
  if (thread_in_block() == 0) {
    mbarrier_arrive_expect(full, 8 * 32 * 4);
    *cluster_shared(from_neighbour, (rank + 1) % 2) = float(rank);
  }
  cluster_sync();
  if (rank == 0 && thread_in_block() == 0) tma_load_multicast(tile, map, full, 3, 0, 8);
  mbarrier_wait(full, 0);
  for (int row = 0; row < 8; ++row)
    out[(blockIdx.x * 8 + row) * 32 + lane_id()] = tile[row * 32 + lane_id()] + *from_neighbour;
  cluster_sync();
}

void check_cluster() {
  std::vector<float> values(16 * 32);
  for (size_t i = 0; i < values.size(); ++i) values[i] = value_of(int(i));
  Array<float> in(values), out(4 * 8 * 32);
  TensorBox box;
  box.sizes[0] = 32;
  box.sizes[1] = 16;
  box.strides[0] = 128;
  box.box[0] = 32;
  box.box[1] = 8;
  launch(cluster_kernel, LaunchShape{4, 32, 8 * 32 * 4 + 128 + 8, 2}, tensor_map(in.data(), box), out.data());
  bool good = true;
  for (int block = 0; block < 4; ++block)
    for (int i = 0; i < 256; ++i)
      good &= out.read()[size_t(block * 256 + i)] == values[size_t(256 + i)] + float(1 - block % 2);
  report("clusters", good);
}

#ifdef FASTNN_CUDA_EMULATED
template <Mistake Made>
void make() {
  check(product_is_right<bfloat16, 64, Major::K, Major::K, Swizzle::Bytes128, false, Made>(), "wrong numbers");
}
void make_mistake(const std::string& name) {
  if (name == "bytes") make<Mistake::Bytes>();
  if (name == "parity") make<Mistake::Parity>();
  if (name == "fence") make<Mistake::Fence>();
  if (name == "wait") make<Mistake::Wait>();
  if (name == "stride") make<Mistake::Stride>();
  if (name == "store wait") make<Mistake::StoreWait>();
}
#else
void make_mistake(const std::string&) {}
#endif

}  // namespace
}  // namespace fastnn

int main(int argc, char** argv) {
  using namespace fastnn;
  try {
    if (argc > 1) {
      make_mistake(argv[1]);
      printf("not noticed\n");
      return 0;
    }
    for (int round = 0; round < 2; ++round) {
      check_majors<bfloat16, Swizzle::Bytes128>("wgmma bfloat16, 128-byte swizzle");
      check_majors<bfloat16, Swizzle::Bytes64>("wgmma bfloat16, 64-byte swizzle");
      check_majors<float16, Swizzle::Bytes32>("wgmma float16, 32-byte swizzle");
      check_majors<bfloat16, Swizzle::None>("wgmma bfloat16, no swizzle");
      report("wgmma tf32", product_is_right<tf32, 64, Major::K, Major::K, Swizzle::Bytes128>());
      report("wgmma, A in registers", product_is_right<bfloat16, 128, Major::K, Major::MN, Swizzle::Bytes128, true>() &&
                                          product_is_right<tf32, 32, Major::K, Major::K, Swizzle::Bytes128, true>());
      report("wgmma, wide and narrow", product_is_right<bfloat16, 256, Major::K, Major::K, Swizzle::Bytes128>() &&
                                           product_is_right<bfloat16, 8, Major::K, Major::K, Swizzle::Bytes128>());
      check_cluster();
    }
  } catch (const Error& error) {
    printf("error: %s\n", error.what());
    return 1;
  }
  return failures != 0;
}
