// Matrix products on CUDA: floats go to the engine (gemm/gemm_cuda.h); integers, which no hot path multiplies, take
// one thread for each element of C.
#include "core/cuda_index.h"
#include "gemm/gemm_cuda.h"
#include "ops/matmul/matmul.h"

namespace fastnn {
namespace {

// Sums wrap: unsigned arithmetic, which does not tell signed types from others.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    multiply_integers(const __grid_constant__ GemmArgs args, int64_t count, uint64_t alpha) {
  const int64_t index = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= count) return;
  const int64_t row = index / args.n % args.m, column = index % args.n;
  const GemmOffsets at = gemm_offsets(args, index / args.n / args.m);
  const T* a = static_cast<const T*>(args.a) + at.a + row * args.a_row;
  const T* b = static_cast<const T*>(args.b) + at.b + column * args.b_column;
  T& c = static_cast<T*>(args.c)[at.c + row * args.c_row + column];
  uint64_t sum = 0;
  for (int64_t k = 0; k < args.k; ++k) sum += uint64_t(a[k * args.a_column]) * uint64_t(b[k * args.b_row]);
  sum *= alpha;
  if (args.accumulate) sum += uint64_t(c);
  if (args.bias_kind == GemmBias::PerColumn) sum += uint64_t(static_cast<const T*>(args.bias)[column]);
  c = T(sum);
}

template <class T>
void integers(const GemmArgs& args) {
  const int64_t count = gemm_batch_size(args) * args.m * args.n;
  launch(multiply_integers<T>, unsigned(blocks_for(count)), kBlockThreads, 0, args, count,
         uint64_t(int64_t(args.alpha)));
}

void forward(const GemmArgs& args) {
  switch (args.dtype) {
    case DType::UInt8:
    case DType::Int8: return integers<uint8_t>(args);
    case DType::Int16: return integers<uint16_t>(args);
    case DType::Int32: return integers<uint32_t>(args);
    case DType::Int64: return integers<uint64_t>(args);
    default: return cuda_gemm(args);
  }
}

}  // namespace

FASTNN_CUDA_KERNEL(matmul_forward, forward)

}  // namespace fastnn
