// Random numbers and dropout on CUDA: the CPU's Philox numbers (simd/philox.h), bit for bit but for normal ones, whose
// logarithm, sine and cosine differ in their last bits.
//
// bytes: y once, dropout x and y; arithmetic: 10 rounds of 4 multiplications for a block of 4 words, some 25
// instructions a word: at 8 bytes an element 600 G elements/s have time for 45.
//
// A thread draws one block of words: the numbers 4b to 4b + 3, or 2b and 2b + 1 of those that take two words each.
//
// LOCAL fill_kernel: sine and cosine of normal numbers keep the digits of 2/pi there
#include "ops/random/random.h"

#include "core/cuda_index.h"
#include "simd/element_cuda.h"
#include "simd/philox.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int mantissa_bits(DType dtype) { return dtype == DType::BFloat16 ? 8 : dtype == DType::Float16 ? 11 : 24; }

__device__ inline void draw_block(const RandomStream& stream, int64_t block, uint32_t (&words)[4]) {
  const RandomStream drawn = stream.resolved();
  philox_blocks(drawn.seed, drawn.offset, uint64_t(block), 1, words);
}

// Rounding may reach the open end b: that value becomes a.
template <class T>
__device__ T shift_uniform(const RandomArgs& args, T u) {
  if (args.a == 0 && args.b == 1) return u;
  const T value = scale_shift(u, args.a, args.b - args.a);
  return value < T(args.b) ? value : T(args.a);
}
template <class T>
__device__ T shift_normal(const RandomArgs& args, T z) {
  return args.a == 0 && args.b == 1 ? z : scale_shift(z, args.a, args.b);
}

// What the words of a block become: kCount numbers of type T, from number `first` on.
struct Uniform {
  static constexpr int kCount = 4;
  using T = float;
  static __device__ void draw(const RandomArgs& args, int64_t, const uint32_t (&words)[4], float (&y)[4]) {
    const int bits = mantissa_bits(args.dtype);
#pragma unroll
    for (int j = 0; j < 4; ++j) y[j] = shift_uniform(args, uniform_float(words[j], bits));
  }
};
struct WideUniform {
  static constexpr int kCount = 2;
  using T = double;
  static __device__ void draw(const RandomArgs& args, int64_t, const uint32_t (&words)[4], double (&y)[2]) {
    for (int j = 0; j < 2; ++j) y[j] = shift_uniform(args, uniform_double(join_words(words[2 * j], words[2 * j + 1])));
  }
};
struct Normal {
  static constexpr int kCount = 4;
  using T = float;
  static __device__ void draw(const RandomArgs& args, int64_t, const uint32_t (&words)[4], float (&y)[4]) {
    normal_pair(words[0], words[1], y);
    normal_pair(words[2], words[3], y + 2);
#pragma unroll
    for (float& z : y) z = shift_normal(args, z);
  }
};
struct WideNormal {
  static constexpr int kCount = 2;
  using T = double;
  static __device__ void draw(const RandomArgs& args, int64_t, const uint32_t (&words)[4], double (&y)[2]) {
    normal_pair(join_words(words[0], words[1]), join_words(words[2], words[3]), y);
    for (double& z : y) z = shift_normal(args, z);
  }
};
struct Integer {
  static constexpr int kCount = 2;
  using T = int64_t;
  static __device__ void draw(const RandomArgs& args, int64_t, const uint32_t (&words)[4], int64_t (&y)[2]) {
    for (int j = 0; j < 2; ++j)
      y[j] = int64_t(uint64_t(args.low) + bounded(join_words(words[2 * j], words[2 * j + 1]), args.range));
  }
};
struct Bernoulli {
  static constexpr int kCount = 4;
  using T = float;
  static __device__ void draw(const RandomArgs& args, int64_t first, const uint32_t (&words)[4], float (&y)[4]) {
    for (int j = 0; j < 4; ++j) {
      if (first + j >= args.n) break;
      const double p = args.p ? load_element<double>(args.p, args.p_dtype, first + j) : args.a;
      y[j] = double(words[j]) * 0x1p-32 < p ? 1.0f : 0.0f;
    }
  }
};

template <class Draw>
__global__ void __launch_bounds__(kBlockThreads) fill_kernel(const __grid_constant__ RandomArgs args) {
  const int64_t block = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x, first = block * Draw::kCount;
  if (first >= args.n) return;
  uint32_t words[4];
  typename Draw::T y[Draw::kCount];
  draw_block(args.stream, block, words);
  Draw::draw(args, first, words, y);
#pragma unroll
  for (int j = 0; j < Draw::kCount; ++j)
    if (first + j < args.n) store_element(args.y, args.dtype, first + j, y[j]);
}

template <class Draw>
void fill_with(const RandomArgs& args) {
  launch(fill_kernel<Draw>, unsigned(blocks_for((args.n + Draw::kCount - 1) / Draw::kCount)), kBlockThreads, 0, args);
}

void fill(const RandomArgs& args) {
  const bool wide = args.dtype == DType::Float64;
  switch (args.distribution) {
    case Distribution::Uniform: return wide ? fill_with<WideUniform>(args) : fill_with<Uniform>(args);
    case Distribution::Normal: return wide ? fill_with<WideNormal>(args) : fill_with<Normal>(args);
    case Distribution::Integer: return fill_with<Integer>(args);
    case Distribution::Bernoulli: return fill_with<Bernoulli>(args);
  }
}

// ---------------------------------------------------------------------------------------------- dropout

template <class Stored, int kWidth>
__global__ void __launch_bounds__(kBlockThreads) dropout_kernel(const __grid_constant__ DropoutArgs args) {
  using T = Compute<Stored>;
  const int64_t block = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (4 * block >= args.n) return;
  const Stored* x = static_cast<const Stored*>(args.x);
  Stored* y = static_cast<Stored*>(args.y);
  const T scale = T(args.scale);
  uint32_t words[4];
  draw_block(args.stream, block, words);
#pragma unroll
  for (int j = 0; j < 4; j += kWidth) {
    const int64_t i = 4 * block + j;
    if (i >= args.n) return;
    Pack<T, kWidth> values = load_values<kWidth>(x + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values.at[k] = words[j + k] >= args.threshold ? values.at[k] * scale : T(0);
    store_values<kWidth>(y + i, values);
  }
}

void dropout(const DropoutArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    constexpr int kWidth = sizeof(Stored) == 8 ? 2 : 4;
    const bool packs = args.n % 4 == 0 && is_aligned(args.x, 16) && is_aligned(args.y, 16);
    const auto kernel = packs ? dropout_kernel<Stored, kWidth> : dropout_kernel<Stored, 1>;
    launch(kernel, unsigned(blocks_for((args.n + 3) / 4)), kBlockThreads, 0, args);
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(random_fill, fill)
FASTNN_CUDA_KERNEL(dropout_apply, dropout)

}  // namespace fastnn
