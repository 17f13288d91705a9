// The matrix engine:  C = activation(alpha * A B  (+ C)  (+ bias)  (+ residual)),  for a batch of matrices.
//
// A is m x k, B is k x n, C is m x n. A and B have any row and column strides (so NN, NT, TN and TT
// are one call) and any batch strides (zero broadcasts); the columns of C are adjacent. Strides count
// elements. C must not overlap A or B.
//
// 16-bit inputs are widened to float32 and accumulated there; C is either of the same dtype or
// float32. An element's sum runs over k in an order fixed by the shape alone: results are bit-equal
// for any number of threads.
//
// The engine is compiled once per CPU level; kernels of other families call the one of their own level.
// Inside a parallel region it runs serially.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/kernel.h"

namespace fastnn {

enum class GemmBias : uint8_t { None, PerRow, PerColumn };

// What may follow a product or a convolution, while its sums are still in cache.
enum class Activation : uint8_t { None, Relu, Gelu, GeluTanh, Silu, Sigmoid, Tanh };

constexpr int kGemmBatchDims = 6;

struct GemmArgs {
  int64_t m, n, k;
  const void* a;
  int64_t a_row, a_column;
  const void* b;
  int64_t b_row, b_column;
  void* c;
  int64_t c_row;

  DType dtype;    // of A and B: float32, float64, bfloat16 or float16
  DType c_dtype;  // the same, or float32
  double alpha = 1;
  bool accumulate = false;  // add to C what it held
  GemmBias bias_kind = GemmBias::None;
  const void* bias = nullptr;      // in C's dtype: m (PerRow) or n (PerColumn) adjacent elements
  const void* residual = nullptr;  // added to C: of its dtype, shape and strides
  Activation activation = Activation::None;
  const void* packed_b = nullptr;  // B as matmul_pack made it from these arguments; one matrix for the whole batch

  int batch_ndim = 0;  // the batch's shape, and the strides of each matrix over it
  int64_t batch_shape[kGemmBatchDims] = {};
  int64_t a_batch[kGemmBatchDims] = {};
  int64_t b_batch[kGemmBatchDims] = {};
  int64_t c_batch[kGemmBatchDims] = {};
};

// Where the matrices of one item of the batch begin.
struct GemmItem {
  const char* a;
  const char* b;
  char* c;
};

// Packs B for many products of these arguments. `bytes` is set to what the packed B takes, 0 where the engine would
// not use one; it is written to `target` unless that is null.
struct GemmPack {
  const GemmArgs* gemm;
  void* target;
  int64_t* bytes;
};
extern Kernel<GemmPack> gemm_pack;  // at the CPU levels that multiply by packed operands

// How exactly float32 products are made where the CPU multiplies bfloat16 tiles: "highest" (the default) with
// float32 accuracy, "high" from two bfloat16 parts (relative error about 2^-16), "medium" from one (2^-8).
// Elsewhere all are float32. As in PyTorch. Throws ValueError for any other word.
void set_float32_matmul_precision(const char* precision);
const char* float32_matmul_precision();

// "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", or "" for none. Throws ValueError for any other word.
Activation parse_activation(const char* op, const char* name);

namespace {

inline int64_t gemm_batch_size(const GemmArgs& args) {
  int64_t size = 1;
  for (int d = 0; d < args.batch_ndim; ++d) size *= args.batch_shape[d];
  return size;
}

// Of one item of the batch, in elements.
struct GemmOffsets {
  int64_t a, b, c;
};

FASTNN_HD inline GemmOffsets gemm_offsets(const GemmArgs& args, int64_t index) {
  GemmOffsets offsets{};
  for (int d = args.batch_ndim - 1; d >= 0; --d) {
    const int64_t i = index % args.batch_shape[d];
    index /= args.batch_shape[d];
    offsets.a += i * args.a_batch[d];
    offsets.b += i * args.b_batch[d];
    offsets.c += i * args.c_batch[d];
  }
  return offsets;
}

inline GemmItem gemm_item(const GemmArgs& args, int64_t index) {
  const GemmOffsets at = gemm_offsets(args, index);
  const int64_t size = int64_t(item_size(args.dtype));
  return {static_cast<const char*>(args.a) + at.a * size, static_cast<const char*>(args.b) + at.b * size,
          static_cast<char*>(args.c) + at.c * int64_t(item_size(args.c_dtype))};
}

}  // namespace

#ifdef FASTNN_LEVEL
namespace FASTNN_LEVEL {
// Floating dtypes only.
void gemm(const GemmArgs& args);
}  // namespace FASTNN_LEVEL
#endif

}  // namespace fastnn
