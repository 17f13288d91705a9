// Matrix products. Operands of any strides; both of one dtype: a float, or an integer (which wraps).
//
//   matmul     1-D . 1-D -> scalar, 2-D . 1-D -> vector, (..., m, k) . (..., k, n) -> (..., m, n), the
//              leading dimensions broadcast
//   mm, bmm    strictly 2-D, 3-D                      mv, dot    strictly 2-D . 1-D, 1-D . 1-D
//   addmm      beta * input + alpha * a b, input broadcasting to (m, n); beta = 0 ignores input
//   baddbmm    the same for 3-D
//   linear     x w^T + b with w (out, in) and b (out,) or undefined
//
// Backward is written in these same products, so it is differentiable. Saved: the operands.
#pragma once

#include "core/kernel.h"
#include "core/tensor.h"
#include "gemm/gemm.h"

namespace fastnn {

extern Kernel<GemmArgs> matmul_forward;

Tensor matmul(const Tensor& a, const Tensor& b);
Tensor mm(const Tensor& a, const Tensor& b);
Tensor bmm(const Tensor& a, const Tensor& b);
Tensor mv(const Tensor& a, const Tensor& b);
Tensor dot(const Tensor& a, const Tensor& b);
Tensor addmm(const Tensor& input, const Tensor& a, const Tensor& b, double beta, double alpha);
Tensor baddbmm(const Tensor& input, const Tensor& a, const Tensor& b, double beta, double alpha);
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias);
// activation(linear(x, weight, bias) + residual) in one pass, without a backward: RuntimeError where a gradient
// would be recorded. The residual has the result's shape, or is undefined.
Tensor fused_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& residual,
                    Activation activation);

}  // namespace fastnn
