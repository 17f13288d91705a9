// Checks the device functions of core/cuda_device.h and gemm/mma_cuda.h: each kernel against a plain loop. One
// program for both: compiled by a C++ compiler it shows that the emulation does what the headers say, by nvcc and on
// a GPU that the headers do what the emulation does.
//
//   primitives             prints a line for each check; exit status 1 when one failed
//   primitives MISTAKE     runs the kernel with that mistake in it; the emulation must name it
//
// SASS half_product_kernel: HMMA.16816 LDGSTS LDSM
// SASS tf32_product_kernel: HMMA.1688
#include "checks.h"
#include "core/cuda_device.h"
#include "gemm/mma_cuda.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------ warps and blocks

__global__ void reduce_kernel(const float* in, float* sums, float* largest, int n) {
  __shared__ float partial[kWarp];
  float sum = 0, top = -INFINITY;
  for (int i = thread_in_block(); i < n; i += int(blockDim.x)) {
    sum += in[i];
    top = Max::combine(top, in[i]);
  }
  sums[thread_in_block()] = block_reduce<Sum>(sum, partial);
  largest[thread_in_block()] = block_reduce<Max>(top, partial);
}

void check_reductions() {
  constexpr int n = 1000, threads = 160;
  std::vector<float> values(n);
  float sum = 0, top = -INFINITY;
  for (int i = 0; i < n; ++i) {
    values[size_t(i)] = value_of(i);
    sum += values[size_t(i)];
    top = std::fmax(top, values[size_t(i)]);
  }
  Array<float> in(values), sums(threads), largest(threads);
  launch(reduce_kernel, 1, threads, 0, in.data(), sums.data(), largest.data(), n);
  bool good = true;
  for (float got : sums.read()) good &= got == sum;  // multiples of 1/8: exact in any order
  for (float got : largest.read()) good &= got == top;
  report("block_reduce", good);
}

__global__ void shuffle_kernel(int* out) {
  const int lane = lane_id();
  out[lane] = shuffle(lane, 5);
  out[32 + lane] = shuffle_xor(lane, 9);
  out[64 + lane] = shuffle_down(lane, 3);
  out[96 + lane] = shuffle_up(lane, 3);
  out[128 + lane] = int(warp_ballot(lane % 3 == 0));
  out[160 + lane] = warp_any(lane == 7) + 2 * warp_all(lane < 32) + 4 * warp_all(lane == 7);
  // A part of the warp, while the others do something else.
  out[192 + lane] = lane < 8 ? shuffle_xor(lane, 1, 0xffu) : -lane;
}

void check_shuffles() {
  Array<int> out(224);
  launch(shuffle_kernel, 1, 32, 0, out.data());
  const auto& got = out.read();
  bool good = true;
  for (int i = 0; i < 32; ++i) {
    auto at = [&](int k) { return got[size_t(32 * k + i)]; };
    good &= at(0) == 5 && at(1) == (i ^ 9) && at(2) == (i + 3 < 32 ? i + 3 : i) && at(3) == (i >= 3 ? i - 3 : i);
    good &= at(4) == 0x49249249 && at(5) == 3 && at(6) == (i < 8 ? (i ^ 1) : -i);
  }
  report("shuffles and votes", good);
}

// Warp 0 makes numbers, warp 1 doubles them, by two named barriers.
__global__ void pipeline_kernel(int* out, int steps) {
  __shared__ int slot[kWarp];
  for (int step = 0; step < steps; ++step) {
    if (warp_id() == 0) {
      if (step > 0) named_barrier_sync(2, 64);
      slot[lane_id()] = step * 100 + lane_id();
      named_barrier_arrive(1, 64);
    } else {
      named_barrier_sync(1, 64);
      out[step * kWarp + lane_id()] = 2 * slot[lane_id()];
      if (step + 1 < steps) named_barrier_arrive(2, 64);
    }
  }
}

void check_named_barriers() {
  constexpr int steps = 5;
  Array<int> out(size_t(steps * kWarp));
  launch(pipeline_kernel, 1, 64, 0, out.data(), steps);
  bool good = true;
  for (int i = 0; i < steps * kWarp; ++i) good &= out.read()[size_t(i)] == 2 * (i / kWarp * 100 + i % kWarp);
  report("named barriers", good);
}

// Every block waits for the one after it: all must run at the same time.
__global__ void chain_kernel(unsigned* flags, unsigned* out) {
  const unsigned next = blockIdx.x + 1;
  if (threadIdx.x == 0) {
    unsigned value = 1;
    if (next < gridDim.x) {
      Spin spin;
      while ((value = load_acquire(flags + next)) == 0) spin.wait("the next block's flag");
      ++value;
    }
    out[blockIdx.x] = value;
    store_release(flags + blockIdx.x, value);
  }
  block_sync();
}

void check_blocks_wait() {
  constexpr unsigned blocks = 12;
  Array<unsigned> flags(blocks), out(blocks);
  launch(chain_kernel, LaunchShape{blocks, 64, 0, 1, true}, flags.data(), out.data());
  bool good = true;
  for (unsigned i = 0; i < blocks; ++i) good &= out.read()[i] == blocks - i;
  report("blocks that wait for blocks", good);
}

// ------------------------------------------------------------------------------ tensor cores

// c (16 x 8) = a (16 x k, rows) b (k x 8): T of 16 bits. B lies as rows of n (K, N): loaded transposed; or as
// columns (N, K).
template <class T, bool BTransposed>
__global__ void half_product_kernel(const T* a, const T* b, float* c, int k_size) {
  FASTNN_DYNAMIC_SHARED(shared);
  constexpr int kRow = 16;  // elements of a row of k: 32 bytes
  T* const tile_a = reinterpret_cast<T*>(shared);
  T* const tile_b = tile_a + 16 * kRow;
  const int lane = lane_id(), g = lane / 4, t = lane % 4;
  float sums[4] = {};
  for (int k = 0; k < k_size; k += 16) {
    // 32 lanes copy 16 rows of two times 16 bytes; half of them 8 rows of B, or 16 of 16 bytes.
    async_copy(tile_a + lane / 2 * kRow + lane % 2 * 8, a + lane / 2 * k_size + k + lane % 2 * 8);
    if (lane < 16) {
      if (BTransposed)
        async_copy(tile_b + lane / 2 * kRow + lane % 2 * 8, b + lane / 2 * k_size + k + lane % 2 * 8);
      else
        async_copy(tile_b + lane * 8, b + (k + lane) * 8);
    }
    async_copy_commit();
    async_copy_wait<0>();
    warp_sync();
    uint32_t fragment_a[4], fragment_b[2];
    load_matrix(fragment_a, tile_a + lane % 16 * kRow + lane / 16 * 8);
    if (BTransposed)
      load_matrix(fragment_b, tile_b + lane % 8 * kRow + lane / 8 % 2 * 8);
    else
      load_matrix_transposed(fragment_b, tile_b + lane % 16 * 8);
    mma_16x8x16<T>(sums, fragment_a, fragment_b);
    warp_sync();
  }
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

float stored(float16 x) { return to_float(x); }
float stored(bfloat16 x) { return to_float(x); }
void store(float16& x, float value) { x = to_float16(value); }
void store(bfloat16& x, float value) { x = to_bfloat16(value); }

template <class T, bool BTransposed>
void check_half_product(const char* name) {
  constexpr int k_size = 48;
  std::vector<T> a(16 * k_size), b(8 * k_size);
  for (size_t i = 0; i < a.size(); ++i) store(a[i], value_of(int(i)));
  for (size_t i = 0; i < b.size(); ++i) store(b[i], value_of(int(i) + 3));
  Array<T> device_a(a), device_b(b);
  Array<float> c(128);
  launch(half_product_kernel<T, BTransposed>, 1, 32, 1024, device_a.data(), device_b.data(), c.data(), k_size);
  bool good = true;
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = 0;
      for (int k = 0; k < k_size; ++k)
        sum +=
            stored(a[size_t(row * k_size + k)]) * stored(b[size_t(BTransposed ? column * k_size + k : k * 8 + column)]);
      good &= c.read()[size_t(row * 8 + column)] == sum;
    }
  report(name, good);
}

__global__ void tf32_product_kernel(const float* a, const float* b, float* c) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  uint32_t fragment_a[4], fragment_b[2];
  for (int i = 0; i < 4; ++i) fragment_a[i] = to_tf32(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) fragment_b[i] = to_tf32(b[(t + i * 4) * 8 + g]);
  float sums[4] = {};
  mma_16x8x8_tf32(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

void check_tf32_product() {
  std::vector<float> a(128), b(64);
  for (size_t i = 0; i < a.size(); ++i) a[i] = value_of(int(i));
  for (size_t i = 0; i < b.size(); ++i) b[i] = value_of(int(i) + 5);
  Array<float> device_a(a), device_b(b), c(128);
  launch(tf32_product_kernel, 1, 32, 0, device_a.data(), device_b.data(), c.data());
  bool good = true;
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = 0;
      for (int k = 0; k < 8; ++k) sum += a[size_t(row * 8 + k)] * b[size_t(k * 8 + column)];
      good &= c.read()[size_t(row * 8 + column)] == sum;
    }
  report("mma tf32", good);
}

__global__ void convert_kernel(const float* in, uint32_t* out, int n) {
  const int i = thread_in_block();
  if (i >= n) return;
  out[5 * i] = pack_pair(bfloat16{}, in[i], -in[i]);
  out[5 * i + 1] = pack_pair(float16{}, in[i], -in[i]);
  out[5 * i + 2] = to_tf32(in[i]);
  out[5 * i + 3] = uint32_t(to_bfloat16(in[i]).bits) | uint32_t(to_float16(in[i]).bits) << 16;
  out[5 * i + 4] = float_to_bits(to_float(to_float16(in[i])));
}

void check_conversions() {
  std::vector<float> in = {0.0f, 1.0f, 1.00390625f, 1.01171875f, 3.1415927f, 65519.0f, 65520.0f, 1e-6f, 6e-8f, 1e30f};
  Array<float> device_in(in);
  Array<uint32_t> out(5 * in.size());
  launch(convert_kernel, 1, 32, 0, device_in.data(), out.data(), int(in.size()));
  bool good = true;
  for (size_t i = 0; i < in.size(); ++i) {
    const uint32_t bf16 = to_bfloat16(in[i]).bits, f16 = to_float16(in[i]).bits;
    const uint32_t minus_bf16 = to_bfloat16(-in[i]).bits, minus_f16 = to_float16(-in[i]).bits;
    auto got = [&](size_t k) { return out.read()[5 * i + k]; };
    good &= got(0) == (bf16 | minus_bf16 << 16) && got(1) == (f16 | minus_f16 << 16);
    good &= got(2) == ((float_to_bits(in[i]) + 0x1000u) & ~0x1fffu);
    good &= got(3) == (bf16 | f16 << 16) && got(4) == float_to_bits(to_float(to_float16(in[i])));
  }
  report("conversions", good);
}

// ------------------------------------------------------------------------------ mistakes

__global__ void poison_kernel(float* out) {
  __shared__ float tile[64];
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void early_exit_kernel(int*) {
  if (threadIdx.x == 3) return;
  block_sync();
}
__global__ void lane_exit_kernel(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = shuffle_xor(int(threadIdx.x), 1);
}
__global__ void divergent_kernel(int* out) {
  if (threadIdx.x < 16)
    out[threadIdx.x] = shuffle_xor(int(threadIdx.x), 1);
  else
    out[threadIdx.x] = int(warp_ballot(true));
}
__global__ void deadlock_kernel(int*) {
  if (warp_id() == 0)
    named_barrier_sync(1, 64);
  else
    named_barrier_sync(2, 64);
}
__global__ void spin_kernel(int* flag) {
  Spin spin;
  while (load_acquire(reinterpret_cast<unsigned*>(flag)) == 0) spin.wait("a flag that nobody sets");
}
__global__ void beyond_kernel(int* out) { out[threadIdx.x + 64] = 1; }
__global__ void beyond_shared_kernel(int*) {
  FASTNN_DYNAMIC_SHARED(shared);
  shared[1000 + threadIdx.x] = 1;
}
__global__ void far_beyond_shared_kernel(int*) {
  FASTNN_DYNAMIC_SHARED(shared);
  shared[1024 + threadIdx.x] = 1;
}
__global__ void no_wait_kernel(const int* in, int* out) {
  FASTNN_DYNAMIC_SHARED(shared);
  int* const tile = reinterpret_cast<int*>(shared);
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x);
  async_copy_commit();
  out[threadIdx.x] = tile[threadIdx.x];
}

void make_mistake(const std::string& name) {
  Array<int> some(64);
  Array<float> floats(64);
  int on_host[64];
  if (name == "poison") {
    launch(poison_kernel, 1, 64, 0, floats.data());
    for (float got : floats.read()) check(!std::isnan(got), "read poison: NaN");
  } else if (name == "early exit") {
    launch(early_exit_kernel, 1, 64, 0, some.data());
  } else if (name == "lane exit") {
    launch(lane_exit_kernel, 1, 64, 0, some.data());
  } else if (name == "divergent") {
    launch(divergent_kernel, 1, 32, 0, some.data());
  } else if (name == "deadlock") {
    launch(deadlock_kernel, 1, 64, 0, some.data());
  } else if (name == "spin") {
    launch(spin_kernel, 1, 64, 0, some.data());
  } else if (name == "beyond") {
    launch(beyond_kernel, 1, 64, 0, some.data());
  } else if (name == "released") {
    int* released;
    {
      Array<int> gone(64);
      released = gone.data();
    }
    launch(beyond_kernel, 1, 64, 0, released - 64);
  } else if (name == "beyond shared") {
    launch(beyond_shared_kernel, 1, 64, 1001, some.data());
  } else if (name == "far beyond shared") {
    launch(far_beyond_shared_kernel, 1, 64, 1000, some.data());
  } else if (name == "no wait") {
    launch(no_wait_kernel, 1, 64, 256, some.data(), some.data());
    for (int got : some.read()) check(got != -1, "read poison: -1");
  } else if (name == "host pointer") {
    launch(beyond_kernel, 1, 64, 0, on_host);
  } else if (name == "device pointer") {
    printf("%d\n", some.data()[0]);
  } else if (name == "too many threads") {
    launch(beyond_kernel, 1, 2048, 0, some.data());
  } else if (name == "too much shared memory") {
    launch(beyond_kernel, 1, 64, 240 << 10, some.data());
  } else if (name == "cooperative") {
    launch(spin_kernel, LaunchShape{4096, 1024, 0, 1, true}, some.data());
  }
}

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
    for (int round = 0; round < 2; ++round) {  // the emulation runs threads in another order
      check_reductions();
      check_shuffles();
      check_named_barriers();
      check_blocks_wait();
      check_half_product<bfloat16, true>("mma bfloat16, B as columns");
      check_half_product<bfloat16, false>("mma bfloat16, B as rows");
      check_half_product<float16, true>("mma float16, B as columns");
      check_tf32_product();
      check_conversions();
    }
  } catch (const Error& error) {
    printf("error: %s\n", error.what());
    return 1;
  }
  return failures != 0;
}
