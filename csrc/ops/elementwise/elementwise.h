// Elementwise operations: y = f(x), z = f(x, y), where; with broadcasting and PyTorch's promotion.
//
// Formulas and derivatives: simd/functors.h. Inputs of any stride; the result is contiguous, or dense
// in the layout of the one input that has its shape. In-place forms end in `_`. An input that overlaps
// the output without being the same view is copied first.
#pragma once

#include "core/kernel.h"
#include "core/scalar.h"
#include "simd/functors.h"

namespace fastnn {

enum class UnaryOp : int32_t {
#define FASTNN_ENUM(name, Functor) name,
  FASTNN_UNARY_BOTH(FASTNN_ENUM) FASTNN_UNARY_FLOAT(FASTNN_ENUM) FASTNN_UNARY_ROUND(FASTNN_ENUM)
      FASTNN_UNARY_TEST(FASTNN_ENUM) FASTNN_UNARY_PARAMS(FASTNN_ENUM) clamp,
  bitwise_not,
  copy
};
enum class BinaryOp : int32_t {
  FASTNN_BINARY_BOTH(FASTNN_ENUM) FASTNN_BINARY_FLOAT(FASTNN_ENUM) FASTNN_BINARY_COMPARE(FASTNN_ENUM)
      FASTNN_BINARY_BITS(FASTNN_ENUM)
#undef FASTNN_ENUM
};

// One operand of a strided loop. A number has data == nullptr.
struct StridedOperand {
  void* data;
  DType dtype;
  int64_t strides[kMaxDims];  // elements; 0 repeats
  double real;
  int64_t integer;
};

// out[i] = f(in[0][i], ...) over `shape`, computed in `compute` (float32, float64 or int64).
// Operands: elementwise_unary 1, _unary_backward 2 (saved tensor, dy), _binary 2, _where 3
// (condition, a, b). `out` may be one of the inputs exactly, and overlaps none otherwise.
struct ElementwiseArgs {
  int32_t op;
  DType compute;
  int ndim;
  int n_inputs;
  int64_t numel;
  int64_t shape[kMaxDims];
  StridedOperand in[3];
  StridedOperand out;
  double params[2];
};
extern Kernel<ElementwiseArgs> elementwise_unary;
extern Kernel<ElementwiseArgs> elementwise_unary_backward;
extern Kernel<ElementwiseArgs> elementwise_binary;
extern Kernel<ElementwiseArgs> elementwise_where;

#define FASTNN_DECLARE(name, Functor) \
  Tensor name(const Tensor& x);       \
  Tensor name##_(const Tensor& x);
FASTNN_UNARY_BOTH(FASTNN_DECLARE)
FASTNN_UNARY_FLOAT(FASTNN_DECLARE)
FASTNN_UNARY_ROUND(FASTNN_DECLARE)
#undef FASTNN_DECLARE
#define FASTNN_DECLARE(name, Functor) Tensor name(const Tensor& x);
FASTNN_UNARY_TEST(FASTNN_DECLARE)
#undef FASTNN_DECLARE
Tensor bitwise_not(const Tensor& x);

Tensor leaky_relu(const Tensor& x, double negative_slope);
Tensor elu(const Tensor& x, double alpha);
Tensor celu(const Tensor& x, double alpha);
Tensor gelu(const Tensor& x, const std::string& approximate);  // "none" (exact, erf) or "tanh"
Tensor softplus(const Tensor& x, double beta, double threshold);
Tensor pow_scalar(const Tensor& x, double exponent);  // pow of a number; of a float type
Tensor pow_scalar_(const Tensor& x, double exponent);
Tensor clamp(const Tensor& x, const Scalar* low, const Scalar* high);  // null: unbounded
Tensor clamp_(const Tensor& x, const Scalar* low, const Scalar* high);

// Arithmetic. `div` of integers gives float32; floor_divide and remainder of an integer by zero throw.
#define FASTNN_DECLARE(name, Functor)              \
  Tensor name(const Operand& a, const Operand& b); \
  Tensor name##_(const Tensor& a, const Operand& b);
FASTNN_BINARY_BOTH(FASTNN_DECLARE)
FASTNN_BINARY_FLOAT(FASTNN_DECLARE)
#undef FASTNN_DECLARE
#define FASTNN_DECLARE(name, Functor) Tensor name(const Operand& a, const Operand& b);
FASTNN_BINARY_COMPARE(FASTNN_DECLARE)
FASTNN_BINARY_BITS(FASTNN_DECLARE)
#undef FASTNN_DECLARE

Tensor lerp(const Tensor& start, const Tensor& end, const Operand& weight);  // start + weight (end - start)
Tensor where(const Tensor& condition, const Operand& a, const Operand& b);

}  // namespace fastnn
