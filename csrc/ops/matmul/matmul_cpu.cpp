// Matrix products on the CPU: floats go to the engine; integers, which no hot path multiplies, take
// three plain loops. C's row is the innermost loop, so its additions vectorise when B's rows are contiguous.
#include "core/parallel.h"
#include "ops/matmul/matmul.h"

namespace fastnn {
namespace {

// Sums wrap: unsigned arithmetic, which C++ defines.
template <class T, class Unsigned>
void multiply_integers(const GemmArgs& args) {
  const Unsigned alpha = Unsigned(int64_t(args.alpha));
  parallel_for(gemm_batch_size(args) * args.m, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const GemmItem item = gemm_item(args, row / args.m);
      const T* a = reinterpret_cast<const T*>(item.a) + row % args.m * args.a_row;
      const T* b = reinterpret_cast<const T*>(item.b);
      T* c = reinterpret_cast<T*>(item.c) + row % args.m * args.c_row;
      const T* bias = args.bias_kind == GemmBias::PerColumn ? static_cast<const T*>(args.bias) : nullptr;
      for (int64_t j = 0; j < args.n; ++j)
        c[j] = T(Unsigned(args.accumulate ? c[j] : T(0)) + Unsigned(bias ? bias[j] : T(0)));
      for (int64_t p = 0; p < args.k; ++p) {
        const Unsigned scaled = Unsigned(alpha * Unsigned(a[p * args.a_column]));
        for (int64_t j = 0; j < args.n; ++j)
          c[j] = T(Unsigned(c[j]) + Unsigned(scaled * Unsigned(b[p * args.b_row + j * args.b_column])));
      }
    }
  });
}

void forward(const GemmArgs& args) {
  switch (args.dtype) {
    case DType::UInt8: return multiply_integers<uint8_t, uint32_t>(args);
    case DType::Int8: return multiply_integers<int8_t, uint32_t>(args);
    case DType::Int16: return multiply_integers<int16_t, uint32_t>(args);
    case DType::Int32: return multiply_integers<int32_t, uint32_t>(args);
    case DType::Int64: return multiply_integers<int64_t, uint64_t>(args);
    default: return FASTNN_LEVEL::gemm(args);
  }
}

}  // namespace

FASTNN_CPU_KERNEL(matmul_forward, forward)

}  // namespace fastnn
