// z = f(x, y) with broadcasting and promotion, and where; their gradients in differentiable operations.
#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/elementwise/elementwise.h"
#include "ops/elementwise/geometry.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<ElementwiseArgs> elementwise_binary{"elementwise_binary"};
Kernel<ElementwiseArgs> elementwise_where{"where"};

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

void check_difference(const char* name, BinaryOp op, DType type) {
  check<TypeError>(op != BinaryOp::sub || type != DType::Bool, name,
                   ": bool tensors have no difference; use ^ or logical_xor, or convert them");
}

Tensor binary(const char* name, BinaryOp op, const Operand& a, const Operand& b, Result result) {
  const Device device = common_device(name, a, b);
  const DType type = binary_type(a, b, result);
  check_difference(name, op, type);
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
  check_difference(name, op, type);
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

// a^b by a: b a^(b-1), and 0 where b is 0.
Tensor pow_base_gradient(const Tensor& dz, const Operand& a, const Operand& b) {
  if (!b.is_tensor()) {
    const double n = b.scalar.to_double();
    return n == 0 ? mul(dz, 0.0) : mul(dz, mul(pow(a, n - 1), n));
  }
  return mul(dz, where(eq(b, 0.0), 0.0, mul(pow(a, sub(b, 1.0)), b)));
}

// a^b by b: a^b log a, and 0 where a is 0 and b >= 0.
Tensor pow_exponent_gradient(const Tensor& dz, const Operand& a, const Operand& b) {
  if (!a.is_tensor()) {
    const double base = a.scalar.to_double();
    const Tensor flat = ge(b, base == 0 ? 0.0 : INFINITY);
    return mul(dz, where(flat, 0.0, mul(pow(a, b), std::log(base))));
  }
  const Tensor flat = logical_and(eq(a, 0.0), ge(b, 0.0));
  return mul(dz, where(flat, 0.0, mul(pow(a, b), log(*a.tensor))));
}

Tensor sum_of_squares(const Operand& a, const Operand& b) {
  if (a.is_tensor() && b.is_tensor()) return add(mul(a, a), mul(b, b));
  const Operand& x = a.is_tensor() ? a : b;
  const double number = (a.is_tensor() ? b : a).scalar.to_double();
  return add(mul(x, x), number * number);
}

// The larger or smaller of a and b, by a. A tie shares the gradient, as in PyTorch.
Tensor extreme_gradient(BinaryOp op, const Tensor& dz, const Tensor& half, const Operand& a, const Operand& b) {
  return where(eq(a, b), half, where(op == BinaryOp::maximum ? gt(a, b) : lt(a, b), dz, 0.0));
}

// The whole number that remainder and fmod subtract b times. It comes from exact remainders: a rounded
// a / b may already be the next one.
Tensor quotient(BinaryOp op, const Operand& a, const Operand& b) {
  return op == BinaryOp::fmod ? round(div(sub(a, fmod(a, b)), b)) : floor_divide(a, b);
}

// The gradients of z = f(a, b) in differentiable operations.
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
  const auto set = [&](auto&& gradient_of_a, auto&& gradient_of_b) {
    if (g.needs(0)) g.set(0, fit(gradient_of_a(), sa));
    if (g.needs(1)) g.set(1, fit(gradient_of_b(), sb));
  };
  switch (op) {
    case BinaryOp::add: return set([&] { return dz; }, [&] { return dz; });
    case BinaryOp::sub: return set([&] { return dz; }, [&] { return neg(dz); });
    case BinaryOp::mul: return set([&] { return mul(dz, b); }, [&] { return mul(dz, a); });
    case BinaryOp::div: return set([&] { return div(dz, b); }, [&] { return neg(mul(dz, div(div(a, b), b))); });
    case BinaryOp::pow:
      return set([&] { return pow_base_gradient(dz, a, b); }, [&] { return pow_exponent_gradient(dz, a, b); });
    case BinaryOp::atan2: {
      const Tensor norm = sum_of_squares(a, b);
      return set([&] { return mul(dz, div(b, norm)); }, [&] { return neg(mul(dz, div(a, norm))); });
    }
    case BinaryOp::maximum:
    case BinaryOp::minimum: {
      const Tensor half = mul(dz, 0.5);
      return set([&] { return extreme_gradient(op, dz, half, a, b); },
                 [&] { return extreme_gradient(op, dz, half, b, a); });
    }
    case BinaryOp::remainder:
    case BinaryOp::fmod: return set([&] { return dz; }, [&] { return neg(mul(dz, quotient(op, a, b))); });
    default:  // floor_divide: flat
      return set([&] { return mul(dz, 0.0); }, [&] { return mul(dz, 0.0); });
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
    return pow_scalar(x, exponent);
  }
  if (a.is_tensor() && !b.is_tensor())
    check(b.scalar.to_int() >= 0, "pow: integers to a negative power are not integers; convert to float first");
  return differentiable_binary("pow", BinaryOp::pow, a, b, Result::Promoted);
}
Tensor pow_(const Tensor& a, const Operand& b) {
  if (!b.is_tensor() && a.is_floating()) return pow_scalar_(a, b.scalar.to_double());
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
