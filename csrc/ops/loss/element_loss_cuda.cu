// Elementwise losses on CUDA: element_functors.h has the formulas.
//
// bytes: every operand once, and one result or gradient; arithmetic: 2 to ~60 operations an element, which memory hides
// up to some 20 (bce takes two logarithms). A thread takes packs of 16 bytes; a block's sum goes to its own place, and
// these are added up in their order.
#include "ops/loss/element_functors.h"
#include "ops/loss/loss.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int kPacks = 4;  // that a thread takes
template <class Stored>
constexpr int64_t kBlockElements = int64_t(kPacks) * kBlockThreads * kPackOf16<Stored>;

// visit(functor) of the loss; the whole grid goes the same way.
template <class Visit>
__device__ void with_loss(ElementLoss loss, const Visit& visit) {
#define FASTNN_CASE(name, Functor) \
  case ElementLoss::name: return visit(Functor());
  switch (loss) { FASTNN_ELEMENT_LOSSES(FASTNN_CASE) }
#undef FASTNN_CASE
}

// The operands of a pack.
template <class Stored>
struct Operands {
  static constexpr int kWidth = kPackOf16<Stored>;
  using T = Compute<Stored>;
  Pack<T, kWidth> x, t, a{}, w{};

  __device__ Operands(const ElementLossArgs& args, int64_t at, int64_t count, bool packs) {
    const auto load = [&](const void* data) {
      return load_some<kWidth>(static_cast<const Stored*>(data) + at, count, packs);
    };
    x = load(args.input);
    t = load(args.target);
    if (args.a) a = load(args.a);
    if (args.weight) w = load(args.weight);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (!args.a) a.at[i] = T(args.a_number);
      if (!args.weight) w.at[i] = T(1);
    }
  }
};

// visit(at, count) for the packs of this thread.
template <class Stored, class Visit>
__device__ void for_packs(int64_t n, const Visit& visit) {
  constexpr int kWidth = kPackOf16<Stored>;
  const int64_t first = blockIdx.x * kBlockElements<Stored> + int64_t(threadIdx.x) * kWidth;
  for (int pack = 0; pack < kPacks; ++pack) {
    const int64_t at = first + int64_t(pack) * kBlockThreads * kWidth;
    if (at < n) visit(at, n - at);
  }
}

// ------------------------------------------------------------------------------------------ forward

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    losses(const __grid_constant__ ElementLossArgs args, double* partial_sums, bool packs) {
  __shared__ double partial[kWarp];
  double sum = 0;
  for_packs<Stored>(args.n, [&](int64_t at, int64_t count) {
    const Operands<Stored> in(args, at, count, packs);
    Pack<Compute<Stored>, kPackOf16<Stored>> values{};
    with_loss(args.loss, [&](auto loss) {
#pragma unroll
      for (int i = 0; i < kPackOf16<Stored>; ++i)
        values.at[i] = decltype(loss)::value(in.x.at[i], in.t.at[i], in.a.at[i]) * in.w.at[i];
    });
    if (args.values) return store_some(static_cast<Stored*>(args.values) + at, values, count, packs);
    Compute<Stored> of_pack = 0;
#pragma unroll
    for (int i = 0; i < kPackOf16<Stored>; ++i)
      if (i < count) of_pack += values.at[i];
    sum += double(of_pack);
  });
  if (args.values) return;
  sum = block_reduce<Sum>(sum, partial);
  if (threadIdx.x == 0) partial_sums[blockIdx.x] = sum;
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    add_sums(const double* partial_sums, int64_t n, double scale, Stored* result) {
  __shared__ double partial[kWarp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kBlockThreads) sum += partial_sums[i];
  sum = block_reduce<Sum>(sum, partial);
  if (threadIdx.x == 0) *result = to_stored<Stored>(sum * scale);
}

// ----------------------------------------------------------------------------------------- backward

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads) gradients(const __grid_constant__ ElementLossArgs args, bool packs) {
  using T = Compute<Stored>;
  using Values = Pack<T, kPackOf16<Stored>>;
  const T whole = args.dy_per_element ? T(0) : T(to_compute<double>(*static_cast<const Stored*>(args.dy)) * args.scale);
  for_packs<Stored>(args.n, [&](int64_t at, int64_t count) {
    Operands<Stored> in(args, at, count, packs);
    Values dy{};
    if (args.dy_per_element) dy = load_some<kPackOf16<Stored>>(static_cast<const Stored*>(args.dy) + at, count, packs);
#pragma unroll
    for (int i = 0; i < kPackOf16<Stored>; ++i) in.w.at[i] *= args.dy_per_element ? dy.at[i] : whole;
    Values d_input{}, d_target{};
    with_loss(args.loss, [&](auto loss) {
      using F = decltype(loss);
#pragma unroll
      for (int i = 0; i < kPackOf16<Stored>; ++i) {
        if (args.d_input) d_input.at[i] = F::d_input(in.x.at[i], in.t.at[i], in.a.at[i]) * in.w.at[i];
        if (args.d_target) d_target.at[i] = F::d_target(in.x.at[i], in.t.at[i], in.a.at[i]) * in.w.at[i];
      }
    });
    if (args.d_input) store_some(static_cast<Stored*>(args.d_input) + at, d_input, count, packs);
    if (args.d_target) store_some(static_cast<Stored*>(args.d_target) + at, d_target, count, packs);
  });
}

// ----------------------------------------------------------------------------------------- launchers

bool all_aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers)
    if (!is_aligned(pointer, 16)) return false;
  return true;
}

template <class Stored>
unsigned grid_of(int64_t n) {
  return unsigned((n + kBlockElements<Stored> - 1) / kBlockElements<Stored>);
}

void forward(const ElementLossArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    const bool packs = all_aligned({args.input, args.target, args.weight, args.a, args.values});
    const unsigned blocks = grid_of<Stored>(args.n);
    const CudaScratch sums(args.result ? blocks * sizeof(double) : 0);
    launch(losses<Stored>, blocks, kBlockThreads, 0, args, sums.as<double>(), packs);
    if (args.result)
      launch(add_sums<Stored>, 1, kBlockThreads, 0, sums.as<double>(), int64_t(blocks), args.scale,
             static_cast<Stored*>(args.result));
  });
}

void backward(const ElementLossArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    const bool packs = all_aligned({args.input, args.target, args.weight, args.a, args.d_input, args.d_target}) &&
                       (!args.dy_per_element || is_aligned(args.dy, 16));
    launch(gradients<Stored>, grid_of<Stored>(args.n), kBlockThreads, 0, args, packs);
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(element_loss_forward, forward)
FASTNN_CUDA_KERNEL(element_loss_backward, backward)

}  // namespace fastnn
