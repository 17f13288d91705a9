#include "core/autograd.h"
#include "core/found.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/loss/loss.h"
#include "ops/reduce/reduce.h"
#include "ops/softmax/softmax.h"

namespace fastnn {

Kernel<CrossEntropyArgs> cross_entropy_forward{"cross_entropy"};
Kernel<CrossEntropyArgs> cross_entropy_backward{"cross_entropy_backward"};
Kernel<CrossEntropyArgs> nll_loss_forward{"nll_loss"};
Kernel<CrossEntropyArgs> nll_loss_backward{"nll_loss_backward"};

Reduction parse_reduction(const char* op, const std::string& text) {
  check(text == "none" || text == "mean" || text == "sum", op, ": expected reduction 'none', 'mean' or 'sum', got '",
        text, "'");
  return text == "none" ? Reduction::None : text == "mean" ? Reduction::Mean : Reduction::Sum;
}

namespace {

// ---------------------------------------------------------------------------- from any layout to rows

int class_axis(const Dims& shape) { return shape.size() == 1 ? 0 : 1; }

Dims label_shape(const Dims& input_shape) {
  Dims shape = input_shape;
  shape.erase(class_axis(input_shape));
  return shape;
}

// (N, C, d1, ...) as (N d1 ..., C).
Tensor class_rows(const Tensor& x) {
  const int64_t classes = x.size(class_axis(x.shape()));
  const Tensor last = x.ndim() > 2 ? movedim(x, {1}, {-1}) : x;
  return reshape(contiguous(last), {classes == 0 ? 0 : x.numel() / classes, classes});
}

// What the labels should have looked like.
std::string label_hint(const Dims& input, const Dims& target) {
  if (input.size() == 3 && target.size() == 1 && target[0] == input[0])
    return "; if the input holds one row per time step, keep the last one: `output[:, -1]`";
  if (input.size() == 3 && target.size() == 2 && target[0] == input[0] && target[1] == input[1])
    return "; the classes come second: use `output.transpose(1, 2)`";
  if (target.size() == 2 && target[1] == 1) return "; use `target.squeeze(1)`";
  return "";
}

void check_label_shape(const char* op, const Dims& input, const Dims& target) {
  const Dims expected = label_shape(input);
  if (expected == target) return;
  if (input.size() == 2 && target.size() == 1)
    fail(op, ": input has ", input[0], " rows, but target has ", target[0], " labels (shapes ", input, " and ", target,
         ")");
  fail(op, ": an input of shape ", input, " expects labels of shape ", expected, ", got ", target,
       label_hint(input, target));
}

void check_input(const char* op, const Tensor& input) {
  check<TypeError>(input.is_floating(), op, ": expected a floating input, got ", input.dtype());
  check(input.ndim() >= 1, op, ": expected an input of shape (N, C), (C,) or (N, C, d1, ...), got ()");
  check(input.size(class_axis(input.shape())) > 0, op, ": expected at least one class, got an input of shape ",
        input.shape());
}

Tensor check_labels(const char* op, const Tensor& input, const Tensor& target) {
  check_same_device(op, input, target);
  check<TypeError>(is_integral(target.dtype()), op, ": class labels must be integers, got ", target.dtype(),
                   " of shape ", target.shape(), " for an input of shape ", input.shape());
  check<TypeError>(target.shape() != input.shape(), op, ": labels of type ", target.dtype(), " have the input's shape ",
                   input.shape(),
                   "; pass class numbers (`target.argmax(1)`), or probabilities as floats (`target.float()`)");
  check_label_shape(op, input.shape(), target.shape());
  return contiguous(to(target, DType::Int64));
}

Tensor check_weight(const char* op, const Tensor& input, const Tensor& weight) {
  if (!weight.defined()) return weight;
  check<RuntimeError>(!needs_grad({weight}), op, ": the weight has no gradient; pass weight.detach()");
  check_same_device(op, input, weight);
  const int64_t classes = input.size(class_axis(input.shape()));
  check(weight.shape() == Dims{classes}, op, ": expected one weight for each of ", classes, " classes, got shape ",
        weight.shape());
  return contiguous(to(weight, compute_dtype(input.dtype())));
}

// ------------------------------------------------------------------------------------ the checked call

struct ClassLoss {
  const char* op;
  const Kernel<CrossEntropyArgs>* forward;
  const Kernel<CrossEntropyArgs>* backward;
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;
  Tensor x, labels, probabilities, weight;  // in rows; all but x may be undefined
};

void* raw_or_null(const Tensor& x) { return x.defined() ? x.raw() : nullptr; }

CrossEntropyArgs class_args(const ClassLoss& call) {
  CrossEntropyArgs args{};
  args.dtype = call.x.dtype();
  args.reduction = call.reduction;
  args.x = call.x.raw();
  args.labels = static_cast<const int64_t*>(raw_or_null(call.labels));
  args.probabilities = raw_or_null(call.probabilities);
  args.weight = raw_or_null(call.weight);
  args.rows = call.x.shape()[0];
  args.classes = call.x.shape()[1];
  args.ignore_index = call.ignore_index;
  args.label_smoothing = call.label_smoothing;
  return args;
}

void check_bad_row(const ClassLoss& call, const Tensor& target, const Tensor& bad_row) {
  check_none_found(
      bad_row, [op = call.op, labels = call.labels, shape = target.shape(), classes = call.x.shape()[1]](int64_t row) {
        Dims position = shape;
        for (int64_t axis = shape.size() - 1, rest = row; axis >= 0; --axis) {
          position[axis] = rest % shape[axis];
          rest /= shape[axis];
        }
        return str(op, ": label ", item(select(labels, 0, row)).to_int(), " at position ", position,
                   " is out of range for ", classes, " classes");
      });
}

// ------------------------------------------------------------------------------------------- gradients

// The class weights T of loss.h, (rows, classes), in differentiable operations.
Tensor class_weights(const ClassLoss& call) {
  const DType dtype = call.x.dtype();
  const int64_t classes = call.x.shape()[1];
  Tensor weights = call.probabilities;
  if (call.labels.defined()) {
    const Tensor numbers = arange(Scalar(0), Scalar(classes), Scalar(1), DType::Int64, call.x.device());
    weights = to(eq(unsqueeze(call.labels, 1), numbers), dtype);
  }
  if (call.label_smoothing > 0)
    weights = add(mul(weights, 1 - call.label_smoothing), call.label_smoothing / double(classes));
  if (call.weight.defined()) weights = mul(weights, to(call.weight, dtype));
  if (call.labels.defined()) weights = mul(weights, ne(unsqueeze(call.labels, 1), double(call.ignore_index)));
  return weights;
}

// The gradient of each row's loss, (rows, 1).
Tensor row_gradient(const ClassLoss& call, const Tensor& dy, const Tensor& total_weight) {
  if (call.reduction == Reduction::None) return unsqueeze(dy, 1);
  return call.reduction == Reduction::Mean ? div(dy, to(total_weight, dy.dtype())) : dy;
}

Tensor input_gradient_ops(const ClassLoss& call, const Tensor& row_grad) {
  const Tensor weights = class_weights(call);
  if (call.forward == &nll_loss_forward) return neg(mul(weights, row_grad));
  return mul(row_grad, sub(mul(softmax(call.x, 1), sum(weights, {1}, true)), weights));
}

Tensor probability_gradient(const ClassLoss& call, const Tensor& row_grad) {
  const Tensor slope = mul(log_softmax(call.x, 1), call.label_smoothing - 1);
  return mul(call.weight.defined() ? mul(slope, to(call.weight, slope.dtype())) : slope, row_grad);
}

Tensor input_gradient_kernel(const ClassLoss& call, const Tensor& grad, const Tensor& stats,
                             const Tensor& total_weight) {
  const Tensor dy = contiguous(grad);
  Tensor dx = empty(call.x.shape(), call.x.dtype(), call.x.device());
  CrossEntropyArgs args = class_args(call);
  args.stats = raw_or_null(stats);
  args.total_weight = total_weight.data<double>();
  args.dy = dy.raw();
  args.dx = dx.raw();
  (*call.backward)(call.x.device(), args);
  return dx;
}

// What a ClassLoss holds, as the tape may keep it.
struct SavedClassLoss {
  explicit SavedClassLoss(ClassLoss c)
      : x(c.x), labels(c.labels), probabilities(c.probabilities), weight(c.weight), call(std::move(c)) {
    call.x = call.labels = call.probabilities = call.weight = Tensor();
  }
  ClassLoss get(Backward& b) const {
    ClassLoss restored = call;
    restored.x = b.get(x);
    restored.labels = b.get(labels);
    restored.probabilities = b.get(probabilities);
    restored.weight = b.get(weight);
    return restored;
  }
  Saved x, labels, probabilities, weight;
  ClassLoss call;
};

Tensor run_class_loss(const ClassLoss& call, const Tensor& target) {
  const Tensor& x = call.x;
  const DType compute = compute_dtype(x.dtype());
  const int64_t rows = x.shape()[0];
  const bool reduced = call.reduction != Reduction::None;
  const Tensor stats = call.forward == &cross_entropy_forward ? empty({rows, 2}, compute, x.device()) : Tensor();
  const Tensor losses = empty({rows}, compute, x.device());
  const Tensor total_weight = empty({}, DType::Float64, x.device());
  const Tensor bad_row = empty({}, DType::Int64, x.device());
  Tensor y = reduced ? empty({}, x.dtype(), x.device()) : losses;
  CrossEntropyArgs args = class_args(call);
  args.stats = raw_or_null(stats);
  args.losses = losses.raw();
  args.total_weight = total_weight.data<double>();
  args.bad_row = bad_row.data<int64_t>();
  args.result = reduced ? y.raw() : nullptr;
  (*call.forward)(x.device(), args);
  if (call.labels.defined()) check_bad_row(call, target, bad_row);
  if (!reduced) y = to(losses, x.dtype());
  if (!needs_grad({x, call.probabilities})) return y;
  return record(
      call.op, y, {x, call.probabilities},
      [saved = SavedClassLoss(call), ss = Saved(stats), sw = Saved(total_weight)](Backward& b) {
        const ClassLoss call = saved.get(b);
        const Tensor total = b.get(sw), row_grad = row_gradient(call, b.grad(), total);
        if (b.needs(0))
          b.set(0, b.create_graph() ? input_gradient_ops(call, row_grad)
                                    : input_gradient_kernel(call, b.grad(), b.get(ss), total));
        if (b.needs(1)) b.set(1, probability_gradient(call, row_grad));
      },
      Differentiable::Yes);
}

// The losses of rows back in the shape of the labels.
Tensor in_label_shape(const Tensor& y, const ClassLoss& call, const Tensor& input) {
  return call.reduction == Reduction::None ? reshape(y, label_shape(input.shape())) : y;
}

Tensor check_probabilities(const char* op, const Tensor& input, const Tensor& target, int64_t ignore_index) {
  check_same_device(op, input, target);
  check<TypeError>(target.shape() == input.shape() || target.shape() != label_shape(input.shape()), op,
                   ": class labels must be integers, got ", target.dtype(), " of shape ", target.shape(),
                   "; use `target.long()`");
  check(target.shape() == input.shape(), op, ": probabilities of shape ", target.shape(),
        " do not match an input of shape ", input.shape());
  check(ignore_index < 0, op, ": ignore_index=", ignore_index, " needs class labels, got probabilities");
  return class_rows(to(target, input.dtype()));
}

}  // namespace

Tensor cross_entropy(const Tensor& input, const Tensor& target, const Tensor& weight, int64_t ignore_index,
                     const std::string& reduction, double label_smoothing) {
  constexpr auto op = "cross_entropy";
  check_input(op, input);
  check(label_smoothing >= 0 && label_smoothing <= 1, op, ": expected label_smoothing in [0, 1], got ",
        label_smoothing);
  ClassLoss call{op,
                 &cross_entropy_forward,
                 &cross_entropy_backward,
                 parse_reduction(op, reduction),
                 ignore_index,
                 label_smoothing,
                 {},
                 {},
                 {},
                 {}};
  if (target.is_floating())
    call.probabilities = check_probabilities(op, input, target, ignore_index);
  else
    call.labels = flatten(check_labels(op, input, target), 0, -1);
  call.weight = check_weight(op, input, weight);
  call.x = class_rows(input);
  return in_label_shape(run_class_loss(call, target), call, input);
}

Tensor nll_loss(const Tensor& input, const Tensor& target, const Tensor& weight, int64_t ignore_index,
                const std::string& reduction) {
  constexpr auto op = "nll_loss";
  check_input(op, input);
  ClassLoss call{op, &nll_loss_forward, &nll_loss_backward, parse_reduction(op, reduction), ignore_index, 0, {}, {}, {},
                 {}};
  call.labels = flatten(check_labels(op, input, target), 0, -1);
  call.weight = check_weight(op, input, weight);
  call.x = class_rows(input);
  return in_label_shape(run_class_loss(call, target), call, input);
}

}  // namespace fastnn
