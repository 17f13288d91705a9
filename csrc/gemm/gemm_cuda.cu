// The matrix engine on CUDA: which kernel takes a product, and the sum over the parts of k.
//
// sum_partials reads every part and writes C once: (splits * 4 + item size) bytes an element; parts are made only where
// C is small beside the operands.
#include "gemm/gemm_cuda.h"

#include "gemm/epilogue_cuda.h"
#include "gemm/gemm_amx.h"

namespace fastnn {
namespace {

constexpr int kThreads = 256;

// A thread takes a pack of a row.
template <class Stored>
__global__ void __launch_bounds__(kThreads)
    sum_partials_kernel(const __grid_constant__ GemmArgs args, const __grid_constant__ GemmGrid grid) {
  using Sum = SumOf<Stored>;
  constexpr int kWidth = kStored<Sum>;
  const int64_t packs = (args.n + kWidth - 1) / kWidth, index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= grid.items * args.m * packs) return;
  const int64_t line = index / packs, column = index % packs * kWidth;
  const int present = int(args.n - column < kWidth ? args.n - column : kWidth);
  const Sum* part = static_cast<const Sum*>(grid.partials) + line * args.n + column;
  Pack<Sum, kWidth> sums{};
  for (int split = 0; split < grid.splits; ++split, part += grid.items * args.m * args.n)
    add_elements(sums, part, present);
  const GemmItem item = device_item<Stored>(args, line / args.m);
  Epilogue<Stored, kWidth>{args, item}.store(sums, line % args.m, column, present);
}

// The same product with strides that tell most: those along a dimension of one element mean nothing and are made to
// fit, and dimensions of the batch that lie one behind the other in all operands become one.
GemmArgs normalized(GemmArgs args) {
  if (args.m == 1) args.a_row = 0;
  if (args.n == 1) args.b_column = 0;
  if (args.k == 1) {
    args.a_column = args.a_row == 1 ? 0 : 1;
    args.b_row = args.b_column == 1 ? 0 : 1;
  }
  int ndim = 0;
  for (int d = 0; d < args.batch_ndim; ++d) {
    const int64_t size = args.batch_shape[d];
    if (size == 1) continue;
    const auto follows = [&](const int64_t* batch) { return batch[ndim - 1] == batch[d] * size; };
    if (ndim > 0 && follows(args.a_batch) && follows(args.b_batch) && follows(args.c_batch)) {
      args.batch_shape[ndim - 1] *= size;
      ndim -= 1;
    } else {
      args.batch_shape[ndim] = size;
    }
    args.a_batch[ndim] = args.a_batch[d];
    args.b_batch[ndim] = args.b_batch[d];
    args.c_batch[ndim] = args.c_batch[d];
    ndim += 1;
  }
  if (ndim == 0) args.a_batch[0] = args.b_batch[0] = args.c_batch[0] = 0;
  args.batch_ndim = ndim;
  return args;
}

}  // namespace

namespace gemm_cuda {

Gpu gpu() {
  int device = 0, processors = 0, major = 0, minor = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  return {processors, 10 * major + minor};
}

void sum_partials(const GemmArgs& args, const GemmGrid& grid) {
  const auto launch_of = [&](auto kernel, int64_t width) {
    const int64_t packs = grid.items * args.m * ((args.n + width - 1) / width);
    launch(kernel, unsigned((packs + kThreads - 1) / kThreads), kThreads, 0, args, grid);
  };
  switch (args.dtype) {
    case DType::Float64: return launch_of(sum_partials_kernel<double>, kStored<double>);
    case DType::Float32: return launch_of(sum_partials_kernel<float>, kStored<float>);
    case DType::BFloat16: return launch_of(sum_partials_kernel<bfloat16>, kStored<float>);
    default: return launch_of(sum_partials_kernel<float16>, kStored<float>);
  }
}

}  // namespace gemm_cuda

void cuda_gemm(const GemmArgs& given) {
  if (given.m == 0 || given.n == 0 || gemm_batch_size(given) == 0) return;
  const GemmArgs args = normalized(given);
  if (gemm_cuda::skinny_suits(args)) return gemm_cuda::skinny(args);
  const bool tf32 = args.dtype == DType::Float32 && float32_parts < 3;
  if (!tf32 && !is_reduced_float(args.dtype)) return gemm_cuda::simt(args);
  const bool hopper = gemm_cuda::gpu().capability == 90;  // wgmma is 9.0's alone
  hopper&& gemm_cuda::sm90_suits(args) ? gemm_cuda::sm90(args) : gemm_cuda::mma(args);
}

}  // namespace fastnn
