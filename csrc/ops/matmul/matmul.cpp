#include "ops/matmul/matmul.h"

#include <algorithm>

#include "core/autograd.h"
#include "core/derived.h"
#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<GemmArgs> matmul_forward{"matmul", Subnormals::Flush};

namespace {

// ------------------------------------------------------------------------------------- forward

// How a product is written: alpha * a b, into new memory or onto what `out` holds, plus a bias.
struct ProductOptions {
  double alpha = 1;
  Tensor out;          // accumulated into when defined; contiguous, of the result's shape
  Tensor column_bias;  // undefined, or n elements
  Tensor residual;     // undefined, or of the result's shape and strides
  Activation activation = Activation::None;
  bool keep_packed = false;  // b is a weight: packed, it is kept while it does not change
};

Dims leading_dims(const Tensor& x) { return Dims(x.shape().data(), x.ndim() - 2); }

void check_operands(const char* op, const Tensor& a, const Tensor& b) {
  check_same_device(op, a, b);
  check_same_dtype(op, a, b);
  check<TypeError>(a.dtype() != DType::Bool, op, ": not implemented for bool");
  const int64_t columns = a.size(-1), rows = b.size(b.ndim() == 1 ? 0 : -2);
  check(columns == rows, op, ": shapes ", a.shape(), " and ", b.shape(), " cannot be multiplied: ", columns,
        " columns against ", rows, " rows");
}

// The row stride of x seen as one tall matrix, or -1 when its leading dimensions do not fold into rows.
int64_t folded_row_stride(const Tensor& x) {
  int64_t stride = x.stride(-2), rows = x.size(-2);
  for (int d = x.ndim() - 3; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (rows == 1) stride = x.stride(d);
    if (x.stride(d) != stride * rows) return -1;
    rows *= x.size(d);
  }
  return stride;
}

// The stride of batch dimension d (counted over `ndim` of them), zero where x broadcasts.
int64_t batch_stride(const Tensor& x, int d, int ndim) {
  const int own = d - (ndim - (x.ndim() - 2));
  return own < 0 || x.size(own) == 1 ? 0 : x.stride(own);
}

Dims broadcast_batches(const char* op, const Tensor& a, const Tensor& b) {
  const Dims left = leading_dims(a), right = leading_dims(b);
  for (int d = 1; d <= std::min(left.size(), right.size()); ++d) {
    const int64_t m = left[left.size() - d], n = right[right.size() - d];
    check(m == n || m == 1 || n == 1, op, ": the batches of shapes ", a.shape(), " and ", b.shape(),
          " do not broadcast");
  }
  return broadcast_shapes(op, left, right);
}

// b as the engine packs it, or undefined.
Tensor packed_weight(const Tensor& b, const GemmArgs& args) {
  if (!gemm_pack.cpu || b.device().is_cuda()) return Tensor();
  int64_t bytes = 0;
  gemm_pack(b.device(), {&args, nullptr, &bytes});
  if (bytes == 0) return Tensor();
  const DerivedBlock block = derived_block(b, purpose_of('m', args.c_dtype), bytes);
  if (block.to_fill()) {
    gemm_pack(b.device(), {&args, block.data(), &bytes});
    mark_ready(b, block);
  }
  return block.memory;
}

// a (..., m, k) times b (..., k, n); no autograd. The checks on the last two dimensions have been made.
Tensor product(const char* op, const Tensor& a, const Tensor& b, const ProductOptions& options) {
  Dims shape = broadcast_batches(op, a, b);
  const int batch_ndim = shape.size();
  shape.push_back(a.size(-2));
  shape.push_back(b.size(-1));
  Tensor y = options.out.defined() ? options.out : empty(shape, a.dtype(), a.device());
  if (y.numel() == 0) return y;

  GemmArgs args{};
  args.m = a.size(-2), args.n = b.size(-1), args.k = a.size(-1);
  args.a = a.raw(), args.a_row = a.stride(-2), args.a_column = a.stride(-1);
  args.b = b.raw(), args.b_row = b.stride(-2), args.b_column = b.stride(-1);
  args.c = y.raw(), args.c_row = y.stride(-2);
  args.dtype = args.c_dtype = a.dtype();
  args.alpha = options.alpha;
  args.accumulate = options.out.defined();
  if (options.column_bias.defined()) {
    args.bias_kind = GemmBias::PerColumn;
    args.bias = options.column_bias.raw();
  }
  const int64_t folded = b.ndim() == 2 ? folded_row_stride(a) : -1;
  if (folded >= 0) {
    args.m = y.numel() / args.n;
    args.a_row = folded;
  } else {
    args.batch_ndim = batch_ndim;
    for (int d = 0; d < batch_ndim; ++d) {
      args.batch_shape[d] = shape[d];
      args.a_batch[d] = batch_stride(a, d, batch_ndim);
      args.b_batch[d] = batch_stride(b, d, batch_ndim);
      args.c_batch[d] = y.stride(d);
    }
  }
  if (options.residual.defined()) args.residual = options.residual.raw();
  args.activation = options.activation;
  Tensor packed;
  if (options.keep_packed && args.batch_ndim == 0) packed = packed_weight(b, args);
  if (packed.defined()) args.packed_b = packed.raw();
  matmul_forward(a.device(), args);
  return y;
}

// Vectors as matrices: a row on the left, a column on the right.
Tensor as_left(const Tensor& a) { return a.ndim() == 1 ? unsqueeze(a, 0) : a; }
Tensor as_right(const Tensor& b) { return b.ndim() == 1 ? unsqueeze(b, 1) : b; }
// All leading dimensions as rows.
Tensor as_matrix(const Tensor& x) {
  if (x.ndim() == 2) return x;
  return reshape(x, {checked_numel(Dims(x.shape().data(), x.ndim() - 1)), x.size(-1)});
}
Tensor transposed(const Tensor& x) { return transpose(x, -1, -2); }

// ------------------------------------------------------------------------------------ backward

// y = alpha * a b: the gradients from dy, in differentiable products. One matrix on the right of a
// batch takes its gradient as one product over all rows, not as a sum of products.
Tensor left_grad(const Tensor& dy, const Tensor& b, const Tensor& a) {
  return sum_to(matmul(dy, transposed(b)), a.shape());
}

Tensor right_grad(const Tensor& dy, const Tensor& a, const Tensor& b) {
  if (b.ndim() == 2) return matmul(transposed(as_matrix(a)), as_matrix(dy));
  return sum_to(matmul(transposed(a), dy), b.shape());
}

Tensor scaled(const Tensor& x, double factor) { return factor == 1 ? x : mul(x, factor); }

void matmul_backward(Backward& grads, const Tensor& a, const Tensor& b) {
  const Tensor left = as_left(a), right = as_right(b);
  Tensor dy = grads.grad();
  if (b.ndim() == 1) dy = unsqueeze(dy, -1);
  if (a.ndim() == 1) dy = unsqueeze(dy, -2);
  if (grads.needs(0)) grads.set(0, reshape(left_grad(dy, right, left), a.shape()));
  if (grads.needs(1)) grads.set(1, reshape(right_grad(dy, left, right), b.shape()));
}

// The product in all its forms, under the name of the operation that was called.
Tensor multiply(const char* op, const Tensor& a, const Tensor& b) {
  check_operands(op, a, b);
  // Views without history: the node's inputs are a and b themselves.
  const Tensor left = a.ndim() == 1 ? alias(a, {1, a.size(0)}, {0, a.stride(0)}, a.offset()) : a;
  const Tensor right = b.ndim() == 1 ? alias(b, {b.size(0), 1}, {b.stride(0), 0}, b.offset()) : b;
  Tensor y = product(op, left, right, {});
  if (a.ndim() == 1 || b.ndim() == 1) {
    Dims shape = y.shape();
    if (b.ndim() == 1) shape.erase(shape.size() - 1);
    if (a.ndim() == 1) shape.erase(shape.size() - (b.ndim() == 1 ? 1 : 2));
    y = alias(y, shape, contiguous_strides(shape), y.offset());
  }
  return record(
      op, y, {a, b},
      [sa = Saved(a), sb = Saved(b)](Backward& grads) { matmul_backward(grads, grads.get(sa), grads.get(sb)); },
      Differentiable::Yes);
}

// addmm and baddbmm. A vector input with beta 1 is a bias, added in the kernel's epilogue.
Tensor add_product(const char* op, const Tensor& input, const Tensor& a, const Tensor& b, double beta, double alpha) {
  check_same_dtype(op, a, input);
  check_same_device(op, a, input);
  Dims shape = a.shape();
  shape[shape.size() - 1] = b.size(-1);
  check(input.ndim() <= shape.size() && broadcast_shapes(op, input.shape(), shape) == shape, op, ": input of shape ",
        input.shape(), " does not broadcast to the product's shape ", shape);
  ProductOptions options;
  options.alpha = alpha;
  if (beta == 1 && input.ndim() == 1 && input.size(0) == b.size(-1) && input.is_contiguous()) {
    options.column_bias = input;
  } else if (beta != 0) {
    GradMode off(false);
    options.out = empty(shape, a.dtype(), a.device());
    copy_into(options.out, input);
    if (beta != 1) mul_(options.out, a.is_floating() ? Scalar(beta) : Scalar(int64_t(beta)));
  }
  const Tensor y = product(op, a, b, options);
  return record(
      op, y, {input, a, b},
      [sa = Saved(a), sb = Saved(b), input_shape = input.shape(), beta, alpha](Backward& grads) {
        const Tensor dy = grads.grad(), a = grads.get(sa), b = grads.get(sb);
        if (grads.needs(0)) grads.set(0, scaled(sum_to(dy, input_shape), beta));
        if (grads.needs(1)) grads.set(1, scaled(left_grad(dy, b, a), alpha));
        if (grads.needs(2)) grads.set(2, scaled(right_grad(dy, a, b), alpha));
      },
      Differentiable::Yes);
}

void check_bmm(const char* op, const Tensor& a, const Tensor& b) {
  check(a.ndim() == 3 && b.ndim() == 3, op, ": expected two 3-D tensors, got shapes ", a.shape(), " and ", b.shape());
  check_operands(op, a, b);
  check(a.size(0) == b.size(0), op, ": batch sizes differ in shapes ", a.shape(), " and ", b.shape());
}

// x w^T + b by one product; no autograd.
Tensor linear_product(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      ProductOptions options) {
  check(x.ndim() >= 1 && weight.ndim() == 2, op, ": expected an input of at least 1 dimension and a 2-D weight, got ",
        "shapes ", x.shape(), " and ", weight.shape());
  check_same_device(op, x, weight);
  check_same_dtype(op, x, weight);
  check<TypeError>(x.dtype() != DType::Bool, op, ": not implemented for bool");
  check(x.size(-1) == weight.size(1), op, ": input of shape ", x.shape(), " has ", x.size(-1),
        " features, but weight of shape ", weight.shape(), " expects ", weight.size(1));
  if (bias.defined()) {
    check_same_device(op, x, bias);
    check_same_dtype(op, x, bias);
    check(bias.ndim() == 1 && bias.size(0) == weight.size(0), op, ": bias of shape ", bias.shape(),
          " does not match weight of shape ", weight.shape());
    options.column_bias = contiguous(detach(bias));
  }
  options.keep_packed = true;
  const Tensor left = x.ndim() == 1 ? alias(x, {1, x.size(0)}, {0, x.stride(0)}, x.offset()) : x;
  const Tensor right =
      alias(weight, {weight.size(1), weight.size(0)}, {weight.stride(1), weight.stride(0)}, weight.offset());
  const Tensor y = product(op, left, right, options);
  return x.ndim() == 1 ? alias(y, {weight.size(0)}, {1}, y.offset()) : y;
}

}  // namespace

// ---------------------------------------------------------------------------------- operations

Tensor matmul(const Tensor& a, const Tensor& b) {
  check(a.ndim() >= 1 && b.ndim() >= 1, "matmul: expected operands of at least 1 dimension, got shapes ", a.shape(),
        " and ", b.shape());
  return multiply("matmul", a, b);
}

Tensor mm(const Tensor& a, const Tensor& b) {
  check(a.ndim() == 2 && b.ndim() == 2, "mm: expected two 2-D tensors, got shapes ", a.shape(), " and ", b.shape());
  return multiply("mm", a, b);
}

Tensor bmm(const Tensor& a, const Tensor& b) {
  check_bmm("bmm", a, b);
  return multiply("bmm", a, b);
}

Tensor mv(const Tensor& a, const Tensor& b) {
  check(a.ndim() == 2 && b.ndim() == 1, "mv: expected a 2-D and a 1-D tensor, got shapes ", a.shape(), " and ",
        b.shape());
  return multiply("mv", a, b);
}

Tensor dot(const Tensor& a, const Tensor& b) {
  check(a.ndim() == 1 && b.ndim() == 1, "dot: expected two 1-D tensors, got shapes ", a.shape(), " and ", b.shape());
  return multiply("dot", a, b);
}

Tensor addmm(const Tensor& input, const Tensor& a, const Tensor& b, double beta, double alpha) {
  check(a.ndim() == 2 && b.ndim() == 2, "addmm: expected two 2-D tensors, got shapes ", a.shape(), " and ", b.shape());
  check_operands("addmm", a, b);
  return add_product("addmm", input, a, b, beta, alpha);
}

Tensor baddbmm(const Tensor& input, const Tensor& a, const Tensor& b, double beta, double alpha) {
  check_bmm("baddbmm", a, b);
  return add_product("baddbmm", input, a, b, beta, alpha);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Tensor y = linear_product("linear", x, weight, bias, {});
  return record(
      "linear", y, {x, weight, bias},
      [sx = Saved(x), sw = Saved(weight)](Backward& grads) {
        const Tensor dy = grads.grad(), x = grads.get(sx), weight = grads.get(sw);
        if (grads.needs(0)) grads.set(0, matmul(dy, weight));
        if (!grads.needs(1) && !grads.needs(2)) return;
        const Tensor rows = as_matrix(dy);
        if (grads.needs(1)) grads.set(1, mm(transposed(rows), as_matrix(x)));
        if (grads.needs(2)) grads.set(2, sum(rows, {0}, false));
      },
      Differentiable::Yes);
}

Tensor fused_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& residual,
                    Activation activation) {
  check<RuntimeError>(
      !needs_grad({x, weight, bias, residual}),
      "fused_linear: an operand requires grad, and the fused form has no backward; call it under no_grad");
  check<TypeError>(x.is_floating(), "fused_linear: not implemented for ", x.dtype());
  ProductOptions options;
  options.activation = activation;
  if (residual.defined()) {
    check_same_device("fused_linear", x, residual);
    check_same_dtype("fused_linear", x, residual);
    Dims shape = x.shape();
    shape[shape.size() - 1] = weight.size(0);
    check(residual.shape() == shape, "fused_linear: residual of shape ", residual.shape(),
          " does not match the result's ", shape);
    options.residual = contiguous(detach(residual));
  }
  return linear_product("fused_linear", x, weight, bias, options);
}

}  // namespace fastnn
