// y = f(x): its derivative as one kernel, and in differentiable operations for create_graph=True.
#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/elementwise/elementwise.h"
#include "ops/elementwise/geometry.h"

namespace fastnn {

Kernel<ElementwiseArgs> elementwise_unary{"elementwise"};
Kernel<ElementwiseArgs> elementwise_unary_backward{"elementwise_backward"};

namespace {

// The functor's `saves`, by op.
Saves saves_of(UnaryOp op) {
#define FASTNN_CASE(name, Functor) \
  case UnaryOp::name: return Functor::saves;
  switch (op) {
    FASTNN_UNARY_BOTH(FASTNN_CASE)
    FASTNN_UNARY_FLOAT(FASTNN_CASE)
    FASTNN_UNARY_ROUND(FASTNN_CASE)
    FASTNN_UNARY_PARAMS(FASTNN_CASE)
    default: return Saves::Input;
  }
#undef FASTNN_CASE
}

struct UnaryCall {
  const char* name;
  UnaryOp op;
  double a = 0, b = 0;
};

void run_unary(const UnaryCall& call, const Tensor& x, const Tensor& y, DType compute) {
  ElementwiseArgs args = elementwise_args(int32_t(call.op), compute, y, {x});
  args.params[0] = call.a;
  args.params[1] = call.b;
  elementwise_unary(x.device(), args);
}

Tensor unary_grad_kernel(const UnaryCall& call, const Tensor& saved, const Tensor& dy) {
  Tensor dx = empty_like(dy);
  ElementwiseArgs args = elementwise_args(int32_t(call.op), compute_dtype(dy.dtype()), dx, {saved, dy});
  args.params[0] = call.a;
  args.params[1] = call.b;
  elementwise_unary_backward(dy.device(), args);
  return dx;
}

// The derivative in differentiable operations, for create_graph=True; undefined where there is none.
Tensor unary_grad_ops(const UnaryCall& call, const Tensor& s, const Tensor& dy) {
  switch (call.op) {
    case UnaryOp::neg: return neg(dy);
    case UnaryOp::abs: return mul(dy, sign(s));
    case UnaryOp::square: return mul(mul(dy, s), 2.0);
    case UnaryOp::relu: return mul(dy, gt(s, 0.0));
    case UnaryOp::sqrt: return mul(div(dy, s), 0.5);
    case UnaryOp::rsqrt: return mul(mul(dy, mul(s, square(s))), -0.5);
    case UnaryOp::reciprocal: return neg(mul(dy, square(s)));
    case UnaryOp::exp: return mul(dy, s);
    case UnaryOp::expm1: return mul(dy, add(s, 1.0));
    case UnaryOp::log: return div(dy, s);
    case UnaryOp::log1p: return div(dy, add(s, 1.0));
    case UnaryOp::sin: return mul(dy, cos(s));
    case UnaryOp::cos: return neg(mul(dy, sin(s)));
    case UnaryOp::tanh: return mul(dy, sub(1.0, square(s)));
    case UnaryOp::sigmoid: return mul(dy, mul(s, sub(1.0, s)));
    case UnaryOp::erf: return mul(mul(dy, exp(neg(square(s)))), 1.1283791670955126);
    case UnaryOp::softplus: return mul(dy, sigmoid(mul(s, call.a)));
    case UnaryOp::silu: {
      const Tensor sigma = sigmoid(s);
      return mul(dy, mul(sigma, add(mul(s, sub(1.0, sigma)), 1.0)));
    }
    case UnaryOp::pow_scalar: return mul(dy, mul(pow(s, call.a - 1.0), call.a));
    case UnaryOp::clamp: return mul(dy, logical_and(ge(s, call.a), le(s, call.b)));
    default: return Tensor();
  }
}

template <class SavedTensor>
void unary_backward(const UnaryCall& call, const SavedTensor& saved, Backward& b) {
  const Tensor s = b.get(saved);
  if (!b.create_graph()) return b.set(0, unary_grad_kernel(call, s, b.grad()));
  Tensor dx = unary_grad_ops(call, s, b.grad());
  check<RuntimeError>(dx.defined(), call.name, ": has no second derivative (create_graph=True)");
  b.set(0, dx);
}

Tensor record_unary(const UnaryCall& call, const Tensor& x, const Tensor& y) {
  if (!needs_grad({x})) return y;
  switch (saves_of(call.op)) {
    case Saves::Output:
      return record(
          call.name, y, {x}, [call, sy = SavedOutput(y)](Backward& b) { unary_backward(call, sy, b); },
          Differentiable::Yes);
    default:
      return record(
          call.name, y, {x}, [call, sx = Saved(x)](Backward& b) { unary_backward(call, sx, b); }, Differentiable::Yes);
  }
}

enum class Promote { Keep, Float, Bool };

void check_sign(const UnaryCall& call, const Tensor& x) {
  check<TypeError>(call.op != UnaryOp::neg || x.dtype() != DType::Bool, call.name,
                   ": a bool tensor has no negative; use ~ or logical_not, or convert it");
}

Tensor unary(const UnaryCall& call, const Tensor& input, Promote promote) {
  check_sign(call, input);
  const Tensor x = promote == Promote::Float && !input.is_floating() ? to(input, DType::Float32) : input;
  Tensor y = empty_like(x, promote == Promote::Bool ? DType::Bool : x.dtype());
  run_unary(call, x, y, compute_dtype(x.dtype()));
  return promote == Promote::Bool ? y : record_unary(call, x, y);
}

Tensor unary_inplace(const UnaryCall& call, const Tensor& x) {
  check_sign(call, x);
  check_inplace(call.name, x, {});
  check<TypeError>(x.is_floating() || compute_dtype(x.dtype()) == DType::Int64, call.name, ": unsupported type ",
                   x.dtype());
  if (!needs_grad({x})) {
    run_unary(call, x, x, compute_dtype(x.dtype()));
    bump_version(x);
    return x;
  }
  const bool saves_output = saves_of(call.op) == Saves::Output;
  const Tensor before = saves_output ? Tensor() : clone(detach(x));
  run_unary(call, x, x, compute_dtype(x.dtype()));
  bump_version(x);
  auto backward = [call, before, after = saves_output ? SavedOutput(x) : SavedOutput()](Backward& b) {
    const Tensor s = before.defined() ? before : b.get(after);
    b.set(0, unary_grad_kernel(call, s, b.grad()));
  };
  connect_inplace(NodePtr(new LambdaNode<decltype(backward)>(call.name, Differentiable::No, backward)), x, {x});
  return x;
}

}  // namespace

#define FASTNN_DEFINE(name, promote)                                                                         \
  Tensor name(const Tensor& x) { return unary({#name, UnaryOp::name}, x, promote); }                         \
  Tensor name##_(const Tensor& x) {                                                                          \
    check<TypeError>(promote != Promote::Float || x.is_floating(),                                           \
                     #name "_: the result is a float and cannot be stored in a tensor of type ", x.dtype()); \
    return unary_inplace({#name "_", UnaryOp::name}, x);                                                     \
  }
#define FASTNN_DEFINE_BOTH(name, Functor) FASTNN_DEFINE(name, Promote::Keep)
#define FASTNN_DEFINE_FLOAT(name, Functor) FASTNN_DEFINE(name, Promote::Float)
#define FASTNN_DEFINE_ROUND(name, Functor)                                               \
  Tensor name(const Tensor& x) {                                                         \
    return x.is_floating() ? unary({#name, UnaryOp::name}, x, Promote::Keep) : clone(x); \
  }                                                                                      \
  Tensor name##_(const Tensor& x) { return x.is_floating() ? unary_inplace({#name "_", UnaryOp::name}, x) : x; }
FASTNN_UNARY_BOTH(FASTNN_DEFINE_BOTH)
FASTNN_UNARY_FLOAT(FASTNN_DEFINE_FLOAT)
FASTNN_UNARY_ROUND(FASTNN_DEFINE_ROUND)
#undef FASTNN_DEFINE_BOTH
#undef FASTNN_DEFINE_FLOAT
#undef FASTNN_DEFINE_ROUND
#undef FASTNN_DEFINE

Tensor logical_not(const Tensor& x) { return unary({"logical_not", UnaryOp::logical_not}, x, Promote::Bool); }

// Integers are never NaN or infinite.
#define FASTNN_DEFINE(name, of_integers)                                                    \
  Tensor name(const Tensor& x) {                                                            \
    return x.is_floating() ? unary({#name, UnaryOp::name}, x, Promote::Bool) : of_integers; \
  }
FASTNN_DEFINE(isnan, ne(x, x))
FASTNN_DEFINE(isinf, ne(x, x))
FASTNN_DEFINE(isfinite, eq(x, x))
#undef FASTNN_DEFINE

Tensor bitwise_not(const Tensor& x) {
  check<TypeError>(!x.is_floating(), "bitwise_not: expected bool or integers, got ", x.dtype());
  return x.dtype() == DType::Bool ? logical_not(x) : unary({"bitwise_not", UnaryOp::bitwise_not}, x, Promote::Keep);
}

Tensor leaky_relu(const Tensor& x, double negative_slope) {
  return unary({"leaky_relu", UnaryOp::leaky_relu, negative_slope}, x, Promote::Float);
}
Tensor elu(const Tensor& x, double alpha) { return unary({"elu", UnaryOp::elu, alpha}, x, Promote::Float); }
Tensor celu(const Tensor& x, double alpha) {
  check(alpha != 0, "celu: expected alpha != 0");
  return unary({"celu", UnaryOp::celu, alpha}, x, Promote::Float);
}
Tensor gelu(const Tensor& x, const std::string& approximate) {
  check(approximate == "none" || approximate == "tanh", "gelu: expected approximate 'none' or 'tanh', got '",
        approximate, "'");
  return unary({"gelu", approximate == "none" ? UnaryOp::gelu : UnaryOp::gelu_tanh}, x, Promote::Float);
}
Tensor softplus(const Tensor& x, double beta, double threshold) {
  return unary({"softplus", UnaryOp::softplus, beta, threshold}, x, Promote::Float);
}

Tensor pow_scalar(const Tensor& x, double exponent) {
  return unary({"pow", UnaryOp::pow_scalar, exponent}, x, Promote::Float);
}
Tensor pow_scalar_(const Tensor& x, double exponent) {
  return unary_inplace({"pow_", UnaryOp::pow_scalar, exponent}, x);
}

namespace {

UnaryCall clamp_call(const char* name, const Tensor& x, const Scalar* low, const Scalar* high) {
  check(low || high, name, ": expected min or max, got neither");
  for (const Scalar* bound : {low, high})
    check<TypeError>(!bound || bound->kind != Scalar::Kind::Float || x.is_floating(), name,
                     ": a float bound needs a float tensor, got ", x.dtype());
  // Beyond 2^63 a double bound is unbounded for integers; params are converted to the compute type.
  const double lowest = x.is_floating() ? -INFINITY : -9223372036854775808.0;
  const double highest = x.is_floating() ? INFINITY : 9223372036854774784.0;
  return {name, UnaryOp::clamp, low ? low->to_double() : lowest, high ? high->to_double() : highest};
}

}  // namespace

// A bound that is NaN makes all of the result NaN, as in PyTorch.
Tensor clamp(const Tensor& x, const Scalar* low, const Scalar* high) {
  const UnaryCall call = clamp_call("clamp", x, low, high);
  return std::isnan(call.a) || std::isnan(call.b) ? mul(x, NAN) : unary(call, x, Promote::Keep);
}
Tensor clamp_(const Tensor& x, const Scalar* low, const Scalar* high) {
  const UnaryCall call = clamp_call("clamp_", x, low, high);
  return std::isnan(call.a) || std::isnan(call.b) ? mul_(x, NAN) : unary_inplace(call, x);
}

}  // namespace fastnn
