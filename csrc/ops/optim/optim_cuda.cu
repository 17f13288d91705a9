// Optimizer kernels on CUDA: see optim.h and rules.h for the formulas.
//
// bytes: SGD with momentum 20 an element in float32, Adam 28 (170 G elements/s at 4.8 TB/s); arithmetic: 10 to 30
// instructions an element.
//
// One launch for up to 55 tensors: their table is an argument of the kernel, so nothing is copied to the GPU before it,
// and a captured graph holds it. A block takes 4096 elements of a tensor, which it finds by the number of the tensor's
// first block; a thread four at a time. 16-bit floats are computed in float32 and rounded back.
//
// Where the GPU counts steps, a small launch goes first: a thread a tensor counts, and works out its coefficients.
#include <algorithm>

#include "ops/optim/counted.h"
#include "ops/optim/rules.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlockElements = 4096;
constexpr int kEach = 4;  // elements that a thread takes at a time
constexpr int kTensors = 55;

// Chunks that follow each other in memory, as one.
struct OptimTensor {
  OptimChunk memory;
  int first_block;
  bool packs;  // all of it is aligned to four elements
};

struct Tensors {
  OptimTensor at[kTensors];
  int count, blocks;
};
static_assert(sizeof(Tensors) < 4000, "arguments of a kernel: 4 KB with what goes with them");

// The piece of this block: elements [begin, end) of `tensor`.
struct Piece {
  const OptimTensor& tensor;
  int number;  // of the tensor
  int64_t begin, end;
};
__device__ inline Piece piece_of(const Tensors& tensors, int64_t elements) {
  int low = 0, high = tensors.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (tensors.at[middle].first_block <= int(blockIdx.x))
      low = middle;
    else
      high = middle - 1;
  }
  const OptimTensor& tensor = tensors.at[low];
  const int64_t begin = (int(blockIdx.x) - tensor.first_block) * elements;
  return {tensor, low, begin, begin + elements < tensor.memory.n ? begin + elements : tensor.memory.n};
}

// Calls visit(TypeTag<Stored>()) with the type of floats that are computed in T.
template <class T, class Visit>
__device__ void with_stored(DType dtype, const Visit& visit) {
  if constexpr (sizeof(T) == 8)
    visit(TypeTag<double>());
  else if (dtype == DType::Float32)
    visit(TypeTag<float>());
  else if (dtype == DType::BFloat16)
    visit(TypeTag<bfloat16>());
  else
    visit(TypeTag<float16>());
}

// Four neighbouring elements; those past the end are not there.
template <class T>
__device__ void load_four(const Piece& piece, const void* data, int64_t i, T (&x)[kEach]) {
  with_stored<T>(piece.tensor.memory.dtype, [&](auto tag) {
    const auto* from = static_cast<const typename decltype(tag)::type*>(data) + i;
    if (piece.tensor.packs && i + kEach <= piece.end) return load_elements(from, x);
#pragma unroll
    for (int j = 0; j < kEach; ++j) x[j] = i + j < piece.end ? to_compute<T>(from[j]) : T(0);
  });
}

template <class T>
__device__ void store_four(const Piece& piece, void* data, int64_t i, const T (&x)[kEach]) {
  with_stored<T>(piece.tensor.memory.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    Stored* to = static_cast<Stored*>(data) + i;
    if (piece.tensor.packs && i + kEach <= piece.end) return store_elements(to, x, [](T value) { return value; });
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (i + j < piece.end) to[j] = to_stored<Stored>(x[j]);
  });
}

// -------------------------------------------------------------------------------------------- updates

template <class T>
struct Before {
  T sign, shrink, weight_decay;
};

constexpr int kCountThreads = 64;
static_assert(kTensors <= kCountThreads, "a thread a tensor");

__global__ void __launch_bounds__(kCountThreads)
    count_kernel(const __grid_constant__ Tensors tensors, UpdateRule rule, Coefficients given, Coefficients* made) {
  const int number = int(threadIdx.x);
  if (number < tensors.count) made[number] = counted(rule, given, *tensors.at[number].memory.step += 1);
}

// `made` has the coefficients of each tensor; null: `common` is the rule of all.
template <class T, class Rule>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const __grid_constant__ Tensors tensors, Rule common, Before<T> before, const Coefficients* made) {
  const Piece piece = piece_of(tensors, kBlockElements);
  const Rule rule = made ? Rule(made[piece.number].at) : common;
  const OptimChunk& memory = piece.tensor.memory;
  for (int64_t i = piece.begin + threadIdx.x * kEach; i < piece.end; i += kThreads * kEach) {
    T p[kEach], grad[kEach], a[kEach], b[kEach], c[kEach];
    load_four(piece, memory.param, i, p);
    load_four(piece, memory.grad, i, grad);
    if constexpr (Rule::kStates > 0) load_four(piece, memory.state[0], i, a);
    if constexpr (Rule::kStates > 1) load_four(piece, memory.state[1], i, b);
    if constexpr (Rule::kStates > 2) load_four(piece, memory.state[2], i, c);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const T old = before.shrink * p[j];
      const T g = before.sign * grad[j] + before.weight_decay * old;
      if constexpr (Rule::kStates == 0)
        p[j] = rule(old, g);
      else if constexpr (Rule::kStates == 1)
        p[j] = rule(old, g, a[j]);
      else if constexpr (Rule::kStates == 2)
        p[j] = rule(old, g, a[j], b[j]);
      else
        p[j] = rule(old, g, a[j], b[j], c[j]);
    }
    store_four(piece, memory.param, i, p);
    if constexpr (Rule::kStates > 0) store_four(piece, memory.state[0], i, a);
    if constexpr (Rule::kStates > 1) store_four(piece, memory.state[1], i, b);
    if constexpr (Rule::kStates > 2) store_four(piece, memory.state[2], i, c);
  }
}

// ---------------------------------------------------------------------------------- norms and clipping

// partials[block] of pieces as long as a chunk.
template <class T>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const __grid_constant__ Tensors tensors, double p, double* partials) {
  __shared__ double shared[kWarp];
  const Piece piece = piece_of(tensors, kOptimChunk);
  double joined = 0;
  for (int64_t i = piece.begin + threadIdx.x * kEach; i < piece.end; i += kThreads * kEach) {
    T x[kEach];
    load_four(piece, piece.tensor.memory.grad, i, x);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const double size = fabs_(double(x[j]));
      if (p == INFINITY)
        joined = Max::combine(joined, size);
      else
        joined += p == 2 ? size * size : p == 1 ? size : pow_(size, p);
    }
  }
  joined = p == INFINITY ? block_reduce<Max>(joined, shared) : block_reduce<Sum>(joined, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = joined;
}

// One block, in a fixed order.
__global__ void __launch_bounds__(kThreads) total_kernel(const double* partials, int64_t n, double p, double* norm) {
  __shared__ double shared[kWarp];
  double total = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) total = join_partials(p, total, partials[i]);
  total = p == INFINITY ? block_reduce<Max>(total, shared) : block_reduce<Sum>(total, shared);
  if (threadIdx.x == 0) *norm = norm_of_total(p, total);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    clip_kernel(const __grid_constant__ Tensors tensors, double max_norm, const double* norm) {
  const double clipped = clip_factor(max_norm, *norm);
  if (clipped == 1) return;
  const T factor = T(clipped);
  const Piece piece = piece_of(tensors, kBlockElements);
  for (int64_t i = piece.begin + threadIdx.x * kEach; i < piece.end; i += kThreads * kEach) {
    T x[kEach];
    load_four(piece, piece.tensor.memory.param, i, x);
#pragma unroll
    for (T& value : x) value *= factor;
    store_four(piece, piece.tensor.memory.param, i, x);
  }
}

// -------------------------------------------------------------------------------------------- launchers

bool continues(const OptimChunk& before, const OptimChunk& chunk) {
  const int64_t bytes = before.n * int64_t(item_size(before.dtype));
  auto follows = [&](const void* a, const void* b) { return a ? static_cast<const char*>(a) + bytes == b : !b; };
  return chunk.dtype == before.dtype && before.n % kOptimChunk == 0 && chunk.step == before.step &&
         follows(before.param, chunk.param) && follows(before.grad, chunk.grad) &&
         follows(before.state[0], chunk.state[0]) && follows(before.state[1], chunk.state[1]) &&
         follows(before.state[2], chunk.state[2]);
}

bool fits_packs(const OptimChunk& chunk) {
  const int bytes = kEach * int(item_size(chunk.dtype));
  return is_aligned(chunk.param, bytes) && is_aligned(chunk.grad, bytes) && is_aligned(chunk.state[0], bytes) &&
         is_aligned(chunk.state[1], bytes) && is_aligned(chunk.state[2], bytes);
}

// Calls run(tensors, first_chunk, tag) for as many tensors of one compute type as a launch takes, `elements` a block.
template <class Run>
void for_tensors(const OptimTable& table, int64_t elements, const Run& run) {
  for (int64_t at = 0; at < table.n_chunks;) {
    const int64_t first_chunk = at;
    const bool wide = table.chunks[at].dtype == DType::Float64;
    Tensors tensors{};
    while (at < table.n_chunks && (table.chunks[at].dtype == DType::Float64) == wide && tensors.count < kTensors) {
      OptimTensor& tensor = tensors.at[tensors.count++];
      tensor = {table.chunks[at], tensors.blocks, fits_packs(table.chunks[at])};
      for (++at; at < table.n_chunks && continues(tensor.memory, table.chunks[at]); ++at)
        tensor.memory.n += table.chunks[at].n;
      tensors.blocks += int((tensor.memory.n + elements - 1) / elements);
    }
    if (wide)
      run(tensors, first_chunk, TypeTag<double>());
    else
      run(tensors, first_chunk, TypeTag<float>());
  }
}

void update(const UpdateArgs& args) {
  for_tensors(args.table, kBlockElements, [&](const Tensors& tensors, int64_t, auto tag) {
    using T = typename decltype(tag)::type;
    const Before<T> before{T(args.sign), T(args.shrink), T(args.weight_decay)};
    const bool counts = tensors.at[0].memory.step != nullptr;
    const CudaScratch made(counts ? size_t(tensors.count) * sizeof(Coefficients) : 0);
    if (counts)
      launch(count_kernel, 1, kCountThreads, 0, tensors, args.rule, args.coefficients, made.as<Coefficients>());
    with_rule<T>(args.rule, args.coefficients.at, [&](const auto& rule) {
      launch(update_kernel<T, std::decay_t<decltype(rule)>>, unsigned(tensors.blocks), kThreads, 0, tensors, rule,
             before, made.as<Coefficients>());
    });
  });
}

void grad_norm(const GradNormArgs& args) {
  for_tensors(args.table, kOptimChunk, [&](const Tensors& tensors, int64_t first_chunk, auto tag) {
    using T = typename decltype(tag)::type;
    launch(norm_kernel<T>, unsigned(tensors.blocks), kThreads, 0, tensors, args.p, args.partials + first_chunk);
  });
  launch(total_kernel, 1, kThreads, 0, args.partials, args.table.n_chunks, args.p, args.norm);
}

void clip(const ClipArgs& args) {
  for_tensors(args.table, kBlockElements, [&](const Tensors& tensors, int64_t, auto tag) {
    using T = typename decltype(tag)::type;
    launch(clip_kernel<T>, unsigned(tensors.blocks), kThreads, 0, tensors, args.max_norm, args.norm);
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(optim_update, update)
FASTNN_CUDA_KERNEL(optim_grad_norm, grad_norm)
FASTNN_CUDA_KERNEL(optim_clip, clip)

}  // namespace fastnn
