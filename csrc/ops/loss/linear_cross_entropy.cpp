// The loss of a classifier's last layer without its logits: a chunk of rows at a time, logits, then losses, then, in
// the place of the logits, their gradient, which goes into those of the operands. Hsu et al. 2024 (Liger kernel).
#include <algorithm>

#include "core/autograd.h"
#include "core/found.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/loss/loss.h"
#include "ops/matmul/matmul.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

namespace {

constexpr auto op = "linear_cross_entropy";
constexpr int64_t kChunkLogits = int64_t(1) << 23;
constexpr int64_t kMinChunkRows = 256;  // fewer leave the matrix product short of rows

struct Call {
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;
  int64_t chunk;
};

struct Operands {
  Tensor x, weight, bias, labels;  // (N, H), (C, H), (C,) or undefined, (N,); without history
};

// Gradients that are not wanted are undefined. Those of weight and bias are added up in the compute type.
struct Gradients {
  Tensor dx, dweight, dbias;
};

Gradients wanted_gradients(const Operands& of, bool dx, bool dweight, bool dbias) {
  const DType compute = compute_dtype(of.x.dtype());
  const auto sums = [&](bool wanted, const Dims& shape) {
    return wanted ? zeros(shape, compute, of.x.device()) : Tensor();
  };
  return {dx ? empty(of.x.shape(), of.x.dtype(), of.x.device()) : Tensor(), sums(dweight, of.weight.shape()),
          sums(dbias, {of.weight.size(0)})};
}

bool any(const Gradients& gradients) {
  return gradients.dx.defined() || gradients.dweight.defined() || gradients.dbias.defined();
}

void add_chunk(const Operands& of, const Gradients& gradients, int64_t first, const Tensor& x, const Tensor& dlogits) {
  if (gradients.dx.defined()) copy_into(narrow(gradients.dx, 0, first, x.size(0)), mm(dlogits, of.weight));
  if (gradients.dweight.defined()) {
    const Tensor product = mm(transpose(dlogits, 0, 1), x);
    copy_into(gradients.dweight, add(gradients.dweight, to(product, gradients.dweight.dtype())));
  }
  if (gradients.dbias.defined())
    copy_into(gradients.dbias, add(gradients.dbias, sum(to(dlogits, gradients.dbias.dtype()), {0})));
}

// The rows' losses (N) in the compute type; adds the gradients of their sum, or of their sum weighted by dy (N).
// `total_weight`, a float64 where the operands are, is what the mean divides by.
Tensor run(const Call& call, const Operands& of, const Gradients& gradients, const Tensor& dy,
           const Tensor& total_weight) {
  const DType dtype = of.x.dtype(), compute = compute_dtype(dtype);
  const int64_t rows = of.x.size(0), classes = of.weight.size(0);
  const Tensor losses = empty({rows}, compute, of.x.device()), one = ones({}, dtype, of.x.device());
  fill_into(total_weight, Scalar(0));
  const Tensor chunk_weight = empty_like(total_weight), bad_row = empty({}, DType::Int64, of.x.device());
  for (int64_t first = 0; first < rows; first += call.chunk) {
    const int64_t count = std::min(call.chunk, rows - first);
    const Tensor x = narrow(of.x, 0, first, count), logits = linear(x, of.weight, of.bias);
    const Tensor stats = empty({count, 2}, compute, of.x.device());
    CrossEntropyArgs args{};
    args.dtype = dtype;
    args.reduction = dy.defined() ? Reduction::None : Reduction::Sum;
    args.x = logits.raw();
    args.labels = of.labels.data<int64_t>() + first;
    args.rows = count;
    args.classes = classes;
    args.ignore_index = call.ignore_index;
    args.label_smoothing = call.label_smoothing;
    args.stats = stats.raw();
    args.losses = narrow(losses, 0, first, count).raw();
    args.total_weight = chunk_weight.data<double>();
    args.bad_row = bad_row.data<int64_t>();
    cross_entropy_forward(of.x.device(), args);
    check_none_found(bad_row, [labels = of.labels, first, classes](int64_t row) {
      return str(op, ": label ", item(select(labels, 0, first + row)).to_int(), " at row ", first + row,
                 " is out of range for ", classes, " classes");
    });
    copy_into(total_weight, add(total_weight, chunk_weight));
    if (!any(gradients)) continue;
    args.dy = dy.defined() ? narrow(dy, 0, first, count).raw() : one.raw();
    args.dx = logits.raw();
    cross_entropy_backward(of.x.device(), args);
    add_chunk(of, gradients, first, x, logits);
  }
  return losses;
}

void check_arguments(const Tensor& input, const Tensor& weight, const Tensor& target, const Tensor& bias,
                     double label_smoothing, int64_t chunk) {
  check<TypeError>(input.is_floating(), op, ": expected a floating input, got ", input.dtype());
  check(input.ndim() >= 1 && weight.ndim() == 2 && weight.size(1) == input.size(-1), op,
        ": expected an input (..., H) ", "and a weight (C, H), got shapes ", input.shape(), " and ", weight.shape());
  check(weight.size(0) > 0, op, ": expected at least one class, got a weight of shape ", weight.shape());
  check_same_device(op, input, weight);
  check_same_dtype(op, input, weight);
  check_same_device(op, input, target);
  check<TypeError>(is_integral(target.dtype()), op, ": class labels must be integers, got ", target.dtype());
  Dims rows = input.shape();
  rows.erase(rows.size() - 1);
  check(target.shape() == rows, op, ": an input of shape ", input.shape(), " expects labels of shape ", rows, ", got ",
        target.shape());
  if (bias.defined()) {
    check_same_device(op, input, bias);
    check_same_dtype(op, input, bias);
    check(bias.shape() == Dims{weight.size(0)}, op, ": bias of shape ", bias.shape(), " does not match the ",
          weight.size(0), " classes of a weight of shape ", weight.shape());
  }
  check(label_smoothing >= 0 && label_smoothing <= 1, op, ": expected label_smoothing in [0, 1], got ",
        label_smoothing);
  check(chunk >= 0, op, ": chunk must not be negative, got ", chunk);
}

// factor times the gradients, in the operands' shapes and dtypes.
void set_scaled(Backward& b, const Gradients& gradients, const Tensor& factor, const Dims& input_shape, DType dtype) {
  const auto scaled = [&](const Tensor& gradient) { return to(mul(gradient, to(factor, gradient.dtype())), dtype); };
  if (b.needs(0)) b.set(0, reshape(scaled(gradients.dx), input_shape));
  if (b.needs(1)) b.set(1, scaled(gradients.dweight));
  if (b.needs(2)) b.set(2, scaled(gradients.dbias));
}

}  // namespace

Tensor linear_cross_entropy(const Tensor& input, const Tensor& weight, const Tensor& target, const Tensor& bias,
                            int64_t ignore_index, const std::string& reduction, double label_smoothing, int64_t chunk) {
  check_arguments(input, weight, target, bias, label_smoothing, chunk);
  const int64_t classes = weight.size(0), rows = target.numel();
  const int64_t default_chunk = std::max(kMinChunkRows, kChunkLogits / classes);
  const Call call{parse_reduction(op, reduction), ignore_index, label_smoothing, chunk ? chunk : default_chunk};
  const bool reduced = call.reduction != Reduction::None, recorded = needs_grad({input, weight, bias});
  const Dims shape = input.shape();
  const DType dtype = input.dtype();

  const Operands of{contiguous(reshape(detach(input), {rows, input.size(-1)})), detach(weight),
                    bias.defined() ? detach(bias) : bias, contiguous(flatten(to(target, DType::Int64), 0, -1))};
  Gradients gradients;
  if (reduced && recorded)
    gradients = wanted_gradients(of, needs_grad({input}), needs_grad({weight}), bias.defined() && needs_grad({bias}));
  const Tensor total_weight = empty({}, DType::Float64, input.device());
  const Tensor losses = run(call, of, gradients, Tensor(), total_weight);
  if (!reduced) {
    return record(op, to(reshape(losses, target.shape()), dtype), {input, weight, bias},
                  [call, shape, dtype, sx = Saved(input), sw = Saved(weight), sb = Saved(bias),
                   sl = Saved(of.labels)](Backward& b) {
                    const Tensor bias = b.get(sb);
                    const Tensor labels = b.get(sl);
                    const Operands of{contiguous(reshape(detach(b.get(sx)), {labels.numel(), shape.back()})),
                                      detach(b.get(sw)), bias.defined() ? detach(bias) : bias, labels};
                    const Gradients found = wanted_gradients(of, b.needs(0), b.needs(1), b.needs(2));
                    const Tensor unused = empty({}, DType::Float64, of.x.device());
                    run(call, of, found, contiguous(flatten(b.grad(), 0, -1)), unused);
                    set_scaled(b, found, ones({}, dtype, of.x.device()), shape, dtype);
                  });
  }
  const Tensor divisor = call.reduction == Reduction::Mean ? total_weight : ones_like(total_weight);
  const Tensor y = to(div(sum(to(losses, DType::Float64)), divisor), dtype);
  return record(op, y, {input, weight, bias},
                [shape, dtype, sd = Saved(divisor), sx = Saved(gradients.dx), sw = Saved(gradients.dweight),
                 sb = Saved(gradients.dbias)](Backward& b) {
                  const Tensor factor = div(b.grad(), to(b.get(sd), b.grad().dtype()));
                  set_scaled(b, {b.get(sx), b.get(sw), b.get(sb)}, factor, shape, dtype);
                });
}

}  // namespace fastnn
