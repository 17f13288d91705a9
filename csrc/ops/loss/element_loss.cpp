#include <algorithm>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/loss/loss.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<ElementLossArgs> element_loss_forward{"element_loss"};
Kernel<ElementLossArgs> element_loss_backward{"element_loss_backward"};

namespace {

struct ElementCall {
  const char* op;
  ElementLoss loss;
  Reduction reduction;
  double a;      // the parameter, where no tensor holds it
  double scale;  // 1 / divisor of the mean
};

// x and t in one type and contiguous; w and a like x, or undefined.
struct Operands {
  Tensor x, t, w, a;
};

ElementLossArgs loss_args(const ElementCall& call, const Operands& in) {
  ElementLossArgs args{};
  args.loss = call.loss;
  args.dtype = in.x.dtype();
  args.n = in.x.numel();
  args.input = in.x.raw();
  args.target = in.t.raw();
  args.weight = in.w.defined() ? in.w.raw() : nullptr;
  args.a = in.a.defined() ? in.a.raw() : nullptr;
  args.a_number = call.a;
  args.scale = call.scale;
  return args;
}

// ------------------------------------------------------------------------------------------- gradients

void gradients_kernel(const ElementCall& call, const Operands& in, Backward& b) {
  const Tensor dy = contiguous(b.grad());
  ElementLossArgs args = loss_args(call, in);
  args.dy = dy.raw();
  args.dy_per_element = call.reduction == Reduction::None;
  const Tensor d_input = b.needs(0) ? empty(in.x.shape(), in.x.dtype(), in.x.device()) : Tensor();
  const Tensor d_target = b.needs(1) ? empty(in.x.shape(), in.x.dtype(), in.x.device()) : Tensor();
  args.d_input = d_input.defined() ? d_input.raw() : nullptr;
  args.d_target = d_target.defined() ? d_target.raw() : nullptr;
  element_loss_backward(in.x.device(), args);
  b.set(0, d_input);
  b.set(1, d_target);
}

Tensor clamped(const Tensor& x, double low, double high) {
  const Scalar lowest(low), highest(high);
  return clamp(x, &lowest, &highest);
}

// The functors' derivatives in differentiable operations, for create_graph=True.
Tensor input_slope(const ElementCall& call, const Operands& in) {
  const Tensor &x = in.x, &t = in.t;
  switch (call.loss) {
    case ElementLoss::mse: return mul(sub(x, t), 2.0);
    case ElementLoss::l1: return sign(sub(x, t));
    case ElementLoss::smooth_l1: return call.a == 0 ? sign(sub(x, t)) : clamped(div(sub(x, t), call.a), -1, 1);
    case ElementLoss::huber: return clamped(sub(x, t), -call.a, call.a);
    case ElementLoss::bce: return div(sub(x, t), clamped(mul(x, sub(1.0, x)), 1e-12, INFINITY));
    case ElementLoss::bce_with_logits: {
      const Tensor positive = in.a.defined() ? mul(t, in.a) : t;
      return sub(mul(add(sub(positive, t), 1.0), sigmoid(x)), positive);
    }
    case ElementLoss::kl_div: return neg(t);
    case ElementLoss::kl_div_log: return neg(exp(t));
  }
  __builtin_unreachable();
}

Tensor target_slope(const ElementCall& call, const Operands& in) {
  const Tensor &x = in.x, &t = in.t;
  switch (call.loss) {
    case ElementLoss::bce: return sub(clamped(log1p(neg(x)), -100, INFINITY), clamped(log(x), -100, INFINITY));
    case ElementLoss::bce_with_logits:
      return in.a.defined() ? sub(mul(sub(in.a, 1.0), softplus(neg(x), 1, 20)), x) : neg(x);
    case ElementLoss::kl_div: return sub(add(log(t), 1.0), x);
    case ElementLoss::kl_div_log: return mul(exp(t), add(sub(t, x), 1.0));
    default: return neg(input_slope(call, in));
  }
}

void gradients_ops(const ElementCall& call, const Operands& in, Backward& b) {
  const Tensor dy = call.reduction == Reduction::None ? b.grad() : mul(b.grad(), call.scale);
  const Tensor weighted = in.w.defined() ? mul(in.w, dy) : dy;
  if (b.needs(0)) b.set(0, mul(input_slope(call, in), weighted));
  if (b.needs(1)) b.set(1, mul(target_slope(call, in), weighted));
}

// ------------------------------------------------------------------------------------- checks and call

// A weight spread over the input's shape.
Tensor spread(const char* op, const char* name, const Tensor& weight, const Tensor& x) {
  if (!weight.defined()) return weight;
  check<RuntimeError>(!needs_grad({weight}), op, ": the ", name, " has no gradient; pass ", name, ".detach()");
  check_same_device(op, x, weight);
  check(broadcast_shapes(op, weight.shape(), x.shape()) == x.shape(), op, ": ", name, " of shape ", weight.shape(),
        " does not broadcast to the input's shape ", x.shape());
  return contiguous(expand_to(to(weight, x.dtype()), x.shape()));
}

Operands checked_operands(const char* op, const Tensor& input, const Tensor& target) {
  check_same_device(op, input, target);
  check(input.shape() == target.shape(), op, ": input of shape ", input.shape(), " and target of shape ",
        target.shape(), " must have the same shape (they are not broadcast)");
  const DType dtype = promote(input.dtype(), target.dtype());
  check<TypeError>(is_floating(dtype), op, ": expected floating tensors, got ", input.dtype(), " and ", target.dtype());
  return {contiguous(to(input, dtype)), contiguous(to(target, dtype)), {}, {}};
}

Tensor run_loss(const ElementCall& call, const Operands& in) {
  const bool reduced = call.reduction != Reduction::None;
  Tensor y = empty(reduced ? Dims{} : in.x.shape(), in.x.dtype(), in.x.device());
  const int64_t chunks = (in.x.numel() + kElementLossGrain - 1) / kElementLossGrain;
  const Tensor partial_sums = empty({chunks}, DType::Float64, in.x.device());
  ElementLossArgs args = loss_args(call, in);
  args.partial_sums = partial_sums.data<double>();
  (reduced ? args.result : args.values) = y.raw();
  element_loss_forward(in.x.device(), args);
  return record(
      call.op, y, {in.x, in.t},
      [call, sx = Saved(in.x), st = Saved(in.t), sw = Saved(in.w), sa = Saved(in.a)](Backward& b) {
        const Operands saved{b.get(sx), b.get(st), b.get(sw), b.get(sa)};
        b.create_graph() ? gradients_ops(call, saved, b) : gradients_kernel(call, saved, b);
      },
      Differentiable::Yes);
}

ElementCall element_call(const char* op, ElementLoss loss, const Tensor& input, const std::string& reduction,
                         double a = 1) {
  const Reduction how = parse_reduction(op, reduction);
  return {op, loss, how, a, how == Reduction::Mean ? 1 / double(input.numel()) : 1};
}

}  // namespace

Tensor mse_loss(const Tensor& input, const Tensor& target, const std::string& reduction) {
  const Operands operands = checked_operands("mse_loss", input, target);
  return run_loss(element_call("mse_loss", ElementLoss::mse, input, reduction), operands);
}

Tensor l1_loss(const Tensor& input, const Tensor& target, const std::string& reduction) {
  const Operands operands = checked_operands("l1_loss", input, target);
  return run_loss(element_call("l1_loss", ElementLoss::l1, input, reduction), operands);
}

Tensor smooth_l1_loss(const Tensor& input, const Tensor& target, const std::string& reduction, double beta) {
  check(beta >= 0, "smooth_l1_loss: expected beta >= 0, got ", beta);
  const Operands operands = checked_operands("smooth_l1_loss", input, target);
  return run_loss(element_call("smooth_l1_loss", ElementLoss::smooth_l1, input, reduction, beta), operands);
}

Tensor huber_loss(const Tensor& input, const Tensor& target, const std::string& reduction, double delta) {
  check(delta > 0, "huber_loss: expected delta > 0, got ", delta);
  const Operands operands = checked_operands("huber_loss", input, target);
  return run_loss(element_call("huber_loss", ElementLoss::huber, input, reduction, delta), operands);
}

namespace {

void check_probabilities(const char* op, const char* name, const Tensor& values, const char* advice) {
  if (values.numel() == 0) return;
  const double lowest = item(amin(detach(values))).to_double(), highest = item(amax(detach(values))).to_double();
  check(lowest >= 0 && highest <= 1, op, ": the ", name, " must hold probabilities in [0, 1], got values from ", lowest,
        " to ", highest, advice);
}

}  // namespace

Tensor binary_cross_entropy(const Tensor& input, const Tensor& target, const Tensor& weight,
                            const std::string& reduction) {
  constexpr auto op = "binary_cross_entropy";
  Operands operands = checked_operands(op, input, target);
  operands.w = spread(op, "weight", weight, operands.x);
  check_probabilities(op, "input", input, "; for logits use binary_cross_entropy_with_logits");
  check_probabilities(op, "target", target, "");
  return run_loss(element_call(op, ElementLoss::bce, input, reduction), operands);
}

Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target, const Tensor& weight,
                                        const std::string& reduction, const Tensor& pos_weight) {
  constexpr auto op = "binary_cross_entropy_with_logits";
  Operands operands = checked_operands(op, input, target);
  operands.w = spread(op, "weight", weight, operands.x);
  operands.a = spread(op, "pos_weight", pos_weight, operands.x);
  return run_loss(element_call(op, ElementLoss::bce_with_logits, input, reduction), operands);
}

Tensor kl_div(const Tensor& input, const Tensor& target, const std::string& reduction, bool log_target) {
  const Operands operands = checked_operands("kl_div", input, target);
  const bool by_batch = reduction == "batchmean";
  const ElementLoss loss = log_target ? ElementLoss::kl_div_log : ElementLoss::kl_div;
  ElementCall call = element_call("kl_div", loss, input, by_batch ? "sum" : reduction);
  if (by_batch) call.scale = 1 / double(input.ndim() ? input.size(0) : 1);
  return run_loss(call, operands);
}

}  // namespace fastnn
