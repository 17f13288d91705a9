#include "ops/elementwise/elementwise.h"

#include <algorithm>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/elementwise/geometry.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<ElementwiseArgs> elementwise_unary{"elementwise"};
Kernel<ElementwiseArgs> elementwise_unary_backward{"elementwise_backward"};
Kernel<ElementwiseArgs> elementwise_binary{"elementwise_binary"};
Kernel<ElementwiseArgs> elementwise_where{"where"};

namespace {

// ---------------------------------------------------------------------------------------- unary

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

Tensor unary(const UnaryCall& call, const Tensor& input, Promote promote) {
  const Tensor x = promote == Promote::Float && !input.is_floating() ? to(input, DType::Float32) : input;
  Tensor y = empty_like(x, promote == Promote::Bool ? DType::Bool : x.dtype());
  run_unary(call, x, y, compute_dtype(x.dtype()));
  return promote == Promote::Bool ? y : record_unary(call, x, y);
}

Tensor unary_inplace(const UnaryCall& call, const Tensor& x) {
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

#define FASTNN_DEFINE(name, promote)                                                 \
  Tensor name(const Tensor& x) { return unary({#name, UnaryOp::name}, x, promote); } \
  Tensor name##_(const Tensor& x) {                                                  \
    check<TypeError>(promote != Promote::Float || x.is_floating(),                   \
                     #name                                                           \
                     "_: the result is a float and cannot be "                       \
                     "stored in a tensor of type ",                                  \
                     x.dtype());                                                     \
    return unary_inplace({#name "_", UnaryOp::name}, x);                             \
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

Tensor clamp(const Tensor& x, const Scalar* low, const Scalar* high) {
  return unary(clamp_call("clamp", x, low, high), x, Promote::Keep);
}
Tensor clamp_(const Tensor& x, const Scalar* low, const Scalar* high) {
  return unary_inplace(clamp_call("clamp_", x, low, high), x);
}

// --------------------------------------------------------------------------------------- binary

namespace {

// A 0-d tensor of the CPU may meet any device: there it is a number.
bool is_number(const Tensor& x) { return x.ndim() == 0 && !x.device().is_cuda(); }

Operand seen_from(Device device, const Operand& x) {
  return x.is_tensor() && x.tensor->device() != device ? Operand(item(*x.tensor)) : x;
}

// Where the result lives.
Device common_device(const char* name, const Operand& a, const Operand& b) {
  check<TypeError>(a.is_tensor() || b.is_tensor(), name, ": expected at least one tensor");
  if (!a.is_tensor() || !b.is_tensor()) return (a.is_tensor() ? a : b).tensor->device();
  if (is_number(*a.tensor)) return b.tensor->device();
  if (!is_number(*b.tensor)) check_same_device(name, *a.tensor, *b.tensor);
  return a.tensor->device();
}

Dims result_shape(const char* name, const Operand& a, const Operand& b) {
  if (!a.is_tensor()) return b.tensor->shape();
  if (!b.is_tensor() || a.tensor->shape() == b.tensor->shape()) return a.tensor->shape();
  return broadcast_shapes(name, a.tensor->shape(), b.tensor->shape());
}

// A result in the layout of the first input of its shape, else contiguous.
Tensor make_result(std::initializer_list<Operand> inputs, const Dims& shape, DType dtype, Device device) {
  for (const Operand& x : inputs)
    if (x.is_tensor() && x.tensor->shape() == shape && x.tensor->device() == device)
      return empty_like(*x.tensor, dtype);
  return empty(shape, dtype, device);
}

// Python integers divided by zero raise; tensors of integers do too, where x86 would trap.
void check_divisor(const char* name, BinaryOp op, const Operand& b, DType compute) {
  if (compute != DType::Int64) return;
  if (op != BinaryOp::floor_divide && op != BinaryOp::remainder && op != BinaryOp::fmod) return;
  const bool has_zero = b.is_tensor() ? item(any(eq(*b.tensor, 0))).to_bool() : b.scalar.to_int() == 0;
  check<RuntimeError>(!has_zero, name, ": integer division by zero");
}

enum class Result { Promoted, Float, Compare };

void run_binary(const char* name, BinaryOp op, const Operand& a, const Operand& b, const Tensor& out, DType type) {
  const DType compute = compute_dtype(type);
  check_divisor(name, op, b, compute);
  const Device device = out.device();
  elementwise_binary(device, elementwise_args(int32_t(op), compute, out, {seen_from(device, a), seen_from(device, b)}));
}

DType binary_type(const Operand& a, const Operand& b, Result result) {
  DType type = result_type(a, b);
  if (result == Result::Float && !is_floating(type)) type = DType::Float32;
  return type;
}

Tensor binary(const char* name, BinaryOp op, const Operand& a, const Operand& b, Result result) {
  const Device device = common_device(name, a, b);
  const DType type = binary_type(a, b, result);
  Tensor out = make_result({a, b}, result_shape(name, a, b), result == Result::Compare ? DType::Bool : type, device);
  run_binary(name, op, a, b, out, type);
  return out;
}

void binary_inplace(const char* name, BinaryOp op, const Tensor& a, const Operand& b, Result result) {
  if (b.is_tensor())
    check_inplace(name, a, {*b.tensor});
  else
    check_inplace(name, a, {});
  if (common_device(name, a, b) != a.device()) check_same_device(name, a, *b.tensor);
  const DType type = binary_type(a, b, result);
  check<TypeError>(!is_floating(type) || a.is_floating(), name, ": the result has type ", type,
                   " and cannot be stored in a tensor of type ", a.dtype());
  check<TypeError>(type == DType::Bool || a.dtype() != DType::Bool, name, ": the result has type ", type,
                   " and cannot be stored in a tensor of type bool");
  check(result_shape(name, a, b) == a.shape(), name, ": a tensor of shape ", a.shape(),
        " cannot hold the result of shape ", result_shape(name, a, b));
  // A partial overlap would read what was just written.
  if (b.is_tensor() && overlaps(a, *b.tensor)) {
    const Tensor copy = clone(detach(*b.tensor));
    run_binary(name, op, a, copy, a, type);
  } else {
    run_binary(name, op, a, b, a, type);
  }
}

// What a backward needs of an operand: its value (a tensor or a number), shape and type.
struct SavedOperand {
  explicit SavedOperand(const Operand& x, bool value)
      : number(x.scalar), is_tensor(x.is_tensor()), saved(value && is_tensor ? Saved(*x.tensor) : Saved()) {
    if (!is_tensor) return;
    shape = x.tensor->shape();
    dtype = x.tensor->dtype();
    device = x.tensor->device();
  }
  Scalar number;
  bool is_tensor;
  Dims shape;
  DType dtype = DType::Float32;
  Device device;
  Saved saved;
};

// A gradient reduced to an operand's shape and type, where the operand lives.
Tensor fit(const Tensor& gradient, const SavedOperand& x) {
  const Tensor summed = gradient.shape() == x.shape ? gradient : sum_to(gradient, x.shape);
  return to(to(summed, x.dtype), x.device);
}

const Tensor& tensor_of(const Operand& x) {
  static const Tensor undefined;
  return x.is_tensor() ? *x.tensor : undefined;
}

// The gradients of z = f(a, b) in differentiable operations; `value` reads a saved operand.
void binary_gradients(BinaryOp op, const SavedOperand& sa, const SavedOperand& sb, Backward& g) {
  const Tensor dz = g.grad();
  // A number of the CPU goes to where the gradient is.
  const auto value_of = [&](const SavedOperand& x) {
    const Tensor value = x.is_tensor ? g.get(x.saved) : Tensor();
    return value.defined() ? to(value, dz.device()) : value;
  };
  const Tensor ta = value_of(sa), tb = value_of(sb);
  const Operand a = sa.is_tensor ? Operand(ta) : Operand(sa.number);
  const Operand b = sb.is_tensor ? Operand(tb) : Operand(sb.number);
  auto set = [&](uint32_t input, const SavedOperand& x, auto&& gradient) {
    if (g.needs(input)) g.set(input, fit(gradient(), x));
  };
  switch (op) {
    case BinaryOp::add:
      set(0, sa, [&] { return dz; });
      set(1, sb, [&] { return dz; });
      break;
    case BinaryOp::sub:
      set(0, sa, [&] { return dz; });
      set(1, sb, [&] { return neg(dz); });
      break;
    case BinaryOp::mul:
      set(0, sa, [&] { return mul(dz, b); });
      set(1, sb, [&] { return mul(dz, a); });
      break;
    case BinaryOp::div:
      set(0, sa, [&] { return div(dz, b); });
      set(1, sb, [&] { return neg(mul(dz, div(div(a, b), b))); });
      break;
    case BinaryOp::pow:  // b a^(b-1), 0 where b is 0; a^b log a, 0 where a is 0 and b >= 0
      set(0, sa, [&] {
        if (const double n = sb.number.to_double(); !sb.is_tensor)
          return n == 0 ? mul(dz, 0.0) : mul(dz, mul(pow(a, n - 1), n));
        const Tensor slope = mul(pow(a, sub(tb, 1.0)), b);
        return mul(dz, where(eq(b, 0.0), 0.0, slope));
      });
      set(1, sb, [&] {
        const Tensor log_a = sa.is_tensor ? log(ta) : Tensor();
        const Operand la = sa.is_tensor ? Operand(log_a) : Operand(std::log(sa.number.to_double()));
        const Tensor flat =
            sa.is_tensor ? logical_and(eq(a, 0.0), ge(b, 0.0)) : ge(b, sa.number.to_double() == 0 ? 0.0 : INFINITY);
        return mul(dz, where(flat, 0.0, mul(pow(a, b), la)));
      });
      break;
    case BinaryOp::atan2: {
      const double number = (sa.is_tensor ? sb : sa).number.to_double();
      const Tensor norm = sa.is_tensor && sb.is_tensor ? add(mul(a, a), mul(b, b))
                                                       : add(sa.is_tensor ? mul(a, a) : mul(b, b), number * number);
      set(0, sa, [&] { return mul(dz, div(b, norm)); });
      set(1, sb, [&] { return neg(mul(dz, div(a, norm))); });
      break;
    }
    case BinaryOp::maximum:
    case BinaryOp::minimum: {  // a tie shares the gradient, as in PyTorch
      const bool is_max = op == BinaryOp::maximum;
      const Tensor half = mul(dz, 0.5);
      auto pick = [&](const Operand& x, const Operand& y) {
        return where(eq(x, y), half, where(is_max ? gt(x, y) : lt(x, y), dz, 0.0));
      };
      set(0, sa, [&] { return pick(a, b); });
      set(1, sb, [&] { return pick(b, a); });
      break;
    }
    case BinaryOp::remainder:
    case BinaryOp::fmod:
      set(0, sa, [&] { return dz; });
      // The quotient comes from exact remainders: a rounded a / b may already be the next integer.
      set(1, sb, [&] {
        const Tensor quotient = op == BinaryOp::fmod ? round(div(sub(a, fmod(a, b)), b)) : floor_divide(a, b);
        return neg(mul(dz, quotient));
      });
      break;
    default:  // floor_divide: flat
      set(0, sa, [&] { return mul(dz, 0.0); });
      set(1, sb, [&] { return mul(dz, 0.0); });
  }
}

// Which operands' values the gradients read: x * 2 need not keep x.
struct NeededValues {
  bool a, b;
};
NeededValues needed_values(BinaryOp op, bool grad_a, bool grad_b) {
  switch (op) {
    case BinaryOp::add:
    case BinaryOp::sub:
    case BinaryOp::floor_divide: return {false, false};
    case BinaryOp::mul: return {grad_b, grad_a};
    case BinaryOp::div: return {grad_b, true};
    default: return {true, true};
  }
}

Tensor differentiable_binary(const char* name, BinaryOp op, const Operand& a, const Operand& b, Result result) {
  Tensor z = binary(name, op, a, b, result);
  if (!needs_grad({tensor_of(a), tensor_of(b)}) || !z.is_floating()) return z;
  const NeededValues values = needed_values(op, needs_grad({tensor_of(a)}), needs_grad({tensor_of(b)}));
  return record(
      name, z, {tensor_of(a), tensor_of(b)},
      [op, sa = SavedOperand(a, values.a), sb = SavedOperand(b, values.b)](Backward& g) {
        binary_gradients(op, sa, sb, g);
      },
      Differentiable::Yes);
}

Tensor differentiable_inplace(const char* name, BinaryOp op, const Tensor& a, const Operand& b, Result result) {
  if (!needs_grad({a, tensor_of(b)})) {
    binary_inplace(name, op, a, b, result);
    bump_version(a);
    return a;
  }
  // The operand that is about to change is saved as a copy.
  const bool same = b.is_tensor() && b.tensor->is(a);
  const NeededValues values = needed_values(op, needs_grad({a}), needs_grad({tensor_of(b)}));
  const Tensor before = values.a || (same && values.b) ? clone(detach(a)) : a;
  const SavedOperand sa(before, values.a), sb(same ? Operand(before) : b, values.b);
  binary_inplace(name, op, a, b, result);
  return record_inplace(name, a, {a, tensor_of(b)}, [op, sa, sb](Backward& g) { binary_gradients(op, sa, sb, g); });
}

}  // namespace

#define FASTNN_DEFINE(name, result)                                         \
  Tensor name(const Operand& a, const Operand& b) {                         \
    return differentiable_binary(#name, BinaryOp::name, a, b, result);      \
  }                                                                         \
  Tensor name##_(const Tensor& a, const Operand& b) {                       \
    return differentiable_inplace(#name "_", BinaryOp::name, a, b, result); \
  }
#define FASTNN_DEFINE_BOTH(name, Functor) FASTNN_DEFINE(name, Result::Promoted)
FASTNN_BINARY_BOTH(FASTNN_DEFINE_BOTH)
FASTNN_DEFINE(div, Result::Float)
FASTNN_DEFINE(atan2, Result::Float)
#undef FASTNN_DEFINE_BOTH
#undef FASTNN_DEFINE

#define FASTNN_DEFINE(name, Functor) \
  Tensor name(const Operand& a, const Operand& b) { return binary(#name, BinaryOp::name, a, b, Result::Compare); }
FASTNN_BINARY_COMPARE(FASTNN_DEFINE)
#undef FASTNN_DEFINE

#define FASTNN_DEFINE(name, Functor)                                                                                 \
  Tensor name(const Operand& a, const Operand& b) {                                                                  \
    check<TypeError>(!is_floating(result_type(a, b)), #name ": expected bool or integers, got ", result_type(a, b)); \
    return binary(#name, BinaryOp::name, a, b, Result::Promoted);                                                    \
  }
FASTNN_BINARY_BITS(FASTNN_DEFINE)
#undef FASTNN_DEFINE

// x^n: the exponents that models use have formulas of their own.
Tensor pow(const Operand& a, const Operand& b) {
  if (a.is_tensor() && !b.is_tensor() && is_floating(result_type(a, b))) {
    const Tensor x = a.tensor->is_floating() ? *a.tensor : to(*a.tensor, DType::Float32);
    const double exponent = b.scalar.to_double();
    if (exponent == 2) return square(x);
    if (exponent == 0.5) return sqrt(x);
    if (exponent == -0.5) return rsqrt(x);
    if (exponent == -1) return reciprocal(x);
    return unary({"pow", UnaryOp::pow_scalar, exponent}, x, Promote::Float);
  }
  if (a.is_tensor() && !b.is_tensor())
    check(b.scalar.to_int() >= 0, "pow: integers to a negative power are not integers; convert to float first");
  return differentiable_binary("pow", BinaryOp::pow, a, b, Result::Promoted);
}
Tensor pow_(const Tensor& a, const Operand& b) {
  if (!b.is_tensor() && a.is_floating()) return unary_inplace({"pow_", UnaryOp::pow_scalar, b.scalar.to_double()}, a);
  return differentiable_inplace("pow_", BinaryOp::pow, a, b, Result::Promoted);
}

Tensor lerp(const Tensor& start, const Tensor& end, const Operand& weight) {
  const DType type = start.dtype();
  if (is_reduced_float(type)) return to(lerp(to(start, DType::Float32), to(end, DType::Float32), weight), type);
  return add(start, mul(sub(end, start), weight));
}

// ---------------------------------------------------------------------------------------- where

Tensor where(const Tensor& condition, const Operand& a, const Operand& b) {
  check<TypeError>(condition.dtype() == DType::Bool, "where: expected a bool condition, got ", condition.dtype());
  const DType type = result_type(a, b);
  Dims shape = condition.shape();
  for (const Operand* x : {&a, &b}) {
    if (!x->is_tensor()) continue;
    if (!is_number(*x->tensor)) check_same_device("where", condition, *x->tensor);
    shape = broadcast_shapes("where", shape, x->tensor->shape());
  }
  Tensor out = make_result({condition, a, b}, shape, type, condition.device());
  elementwise_where(out.device(),
                    elementwise_args(0, compute_dtype(type), out,
                                     {condition, seen_from(out.device(), a), seen_from(out.device(), b)}));
  if (!needs_grad({tensor_of(a), tensor_of(b)})) return out;
  return record(
      "where", out, {tensor_of(a), tensor_of(b)},
      [sc = Saved(condition), sa = SavedOperand(a, false), sb = SavedOperand(b, false)](Backward& g) {
        const Tensor dy = g.grad(), c = g.get(sc);
        if (g.needs(0)) g.set(0, fit(where(c, dy, 0.0), sa));
        if (g.needs(1)) g.set(1, fit(where(c, 0.0, dy), sb));
      },
      Differentiable::Yes);
}

}  // namespace fastnn
