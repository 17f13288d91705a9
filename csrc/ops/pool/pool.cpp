#include "ops/pool/pool.h"

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/elementwise/elementwise.h"

namespace fastnn {

Kernel<PoolArgs> max_pool_forward{"max_pool"};
Kernel<PoolArgs> max_pool_backward{"max_pool_backward"};
Kernel<PoolArgs> max_pool_gather{"max_pool_gather"};
Kernel<PoolArgs> avg_pool_forward{"avg_pool"};
Kernel<PoolArgs> avg_pool_backward{"avg_pool_backward"};

namespace {

// --------------------------------------------------------------------------------- shapes and checks

// A checked call: the shapes, and the arguments but for their pointers.
struct Pooling {
  const char* op;
  Dims in_shape, out_shape;
  PoolArgs args;
};

constexpr PoolAxis kUnpooled = {1, 1, 1, 1, 0, 1};  // the height of a 1-D pooling

Pooling start_pooling(const char* op, const Tensor& x, int n_axes) {
  check<TypeError>(x.is_floating(), op, ": expected a floating tensor, got ", x.dtype());
  check(x.ndim() == n_axes + 1 || x.ndim() == n_axes + 2, op, ": expected an input of shape ",
        n_axes == 1 ? "(N, C, L) or (C, L)" : "(N, C, H, W) or (C, H, W)", ", got ", x.shape());
  Pooling pooling{op, x.shape(), x.shape(), {}};
  pooling.args.dtype = x.dtype();
  pooling.args.index_dtype = DType::Int32;
  pooling.args.planes = 1;
  for (int axis = 0; axis < x.ndim() - n_axes; ++axis) pooling.args.planes *= x.shape()[axis];
  pooling.args.height = kUnpooled;
  return pooling;
}

// One window over the whole axis.
bool is_global(const PoolAxis& axis) {
  return axis.out == 1 && axis.kernel == axis.in && axis.padding == 0 && axis.dilation == 1;
}

// Takes over the sizes along the pooled axes.
void finish_pooling(Pooling& pooling, const PoolAxis* axes, int n_axes) {
  if (n_axes == 2) pooling.args.height = axes[0];
  pooling.args.width = axes[n_axes - 1];
  for (int i = 0; i < n_axes; ++i) pooling.out_shape[pooling.out_shape.size() - n_axes + i] = axes[i].out;
  int64_t plane = 0;
  check(!__builtin_mul_overflow(pooling.args.height.in, pooling.args.width.in, &plane) && plane <= INT32_MAX,
        pooling.op, ": planes of more than 2^31 - 1 elements are not supported, got shape ", pooling.in_shape);
  if (is_global(pooling.args.height) && is_global(pooling.args.width)) {  // one row of contiguous values
    pooling.args.height = kUnpooled;
    pooling.args.width = {plane, 1, plane, plane, 0, 1};
  }
}

// The i-th of one number for all axes or one per axis; `missing` when there is none.
int64_t option(const char* op, const char* name, const Dims& values, int i, int n_axes, int64_t missing,
               int64_t lowest) {
  check(values.size() <= 1 || values.size() == n_axes, op, ": expected 1 or ", n_axes, " numbers for ", name, ", got ",
        values);
  const int64_t value = values.empty() ? missing : values[values.size() == 1 ? 0 : i];
  check(value >= lowest && value <= INT32_MAX, op, ": expected ", lowest, " <= ", name, " < 2^31, got ", value);
  return value;
}

// Options are below 2^31, so nothing here overflows.
PoolAxis pooled_axis(const char* op, const PoolOptions& options, int64_t in, int i, int n_axes) {
  check(!options.kernel.empty(), op, ": expected a kernel size");
  PoolAxis axis{};
  axis.in = in;
  axis.kernel = option(op, "kernel_size", options.kernel, i, n_axes, 1, 1);
  axis.stride = option(op, "stride", options.stride, i, n_axes, axis.kernel, 1);
  axis.padding = option(op, "padding", options.padding, i, n_axes, 0, 0);
  axis.dilation = option(op, "dilation", options.dilation, i, n_axes, 1, 1);
  check(axis.padding <= axis.kernel / 2, op,
        ": padding must be at most half the kernel size, got padding=", axis.padding, " and kernel_size=", axis.kernel);
  const int64_t reach = axis.dilation * (axis.kernel - 1) + 1;
  const int64_t room = in + 2 * axis.padding - reach;
  const int64_t rounding = options.ceil_mode ? axis.stride - 1 : 0;
  axis.out = (room + rounding >= 0 ? room + rounding : room + rounding - axis.stride + 1) / axis.stride + 1;
  // The last window must start inside the input or its left padding.
  if (options.ceil_mode && (axis.out - 1) * axis.stride >= in + axis.padding) --axis.out;
  check(axis.out > 0 && in > 0, op, ": the output size would be ", axis.out, " for an input of ", in,
        ", kernel_size=", axis.kernel, ", stride=", axis.stride, ", padding=", axis.padding,
        ", dilation=", axis.dilation);
  return axis;
}

Pooling plan(const char* op, const Tensor& x, int n_axes, const PoolOptions& options) {
  Pooling pooling = start_pooling(op, x, n_axes);
  PoolAxis axes[2];
  for (int i = 0; i < n_axes; ++i) axes[i] = pooled_axis(op, options, x.size(i - n_axes), i, n_axes);
  finish_pooling(pooling, axes, n_axes);
  pooling.args.count_include_pad = options.count_include_pad;
  pooling.args.divisor_override = options.divisor_override;
  return pooling;
}

// Equal windows are fixed ones, for which there are faster kernels.
PoolAxis adaptive_axis(int64_t in, int64_t out) {
  if (out > 0 && in % out == 0) return {in, out, in / out, in / out, 0, 1};
  return {in, out, 0, 0, 0, 1};
}

Pooling plan_adaptive(const char* op, const Tensor& x, int n_axes, const Dims& output_size) {
  Pooling pooling = start_pooling(op, x, n_axes);
  check(output_size.size() == 1 || output_size.size() == n_axes, op, ": expected 1 or ", n_axes,
        " numbers for output_size, got ", output_size);
  PoolAxis axes[2];
  for (int i = 0; i < n_axes; ++i) {
    const int64_t in = x.size(i - n_axes), out = output_size[output_size.size() == 1 ? 0 : i];
    check(out >= 0 && out <= INT32_MAX, op, ": expected 0 <= output_size < 2^31, got ", output_size);
    check(in > 0, op, ": the pooled axes must not be empty, got shape ", x.shape());
    axes[i] = adaptive_axis(in, out);
  }
  finish_pooling(pooling, axes, n_axes);
  return pooling;
}

void run(const Kernel<PoolArgs>& kernel, const Pooling& pooling, const Tensor& x, const Tensor& y,
         const Tensor& indices) {
  PoolArgs args = pooling.args;
  args.x = x.raw();
  args.y = y.raw();
  if (indices.defined()) {
    args.indices = indices.raw();
    args.index_dtype = indices.dtype();
  }
  kernel(x.device(), args);
}

// ------------------------------------------------------------------------------------------ maximum

// The backward spreads dy to the maxima; its own backward gathers from there; and so on.
Tensor max_gather(const Pooling& pooling, const Tensor& x, const Tensor& indices);

Tensor max_spread(const Pooling& pooling, const Tensor& dy, const Tensor& indices) {
  Tensor dx = empty(pooling.in_shape, dy.dtype(), dy.device());
  run(max_pool_backward, pooling, dx, contiguous(dy), indices);
  return record(
      "max_pool_backward", dx, {dy},
      [pooling, si = Saved(indices)](Backward& b) { b.set(0, max_gather(pooling, b.grad(), b.get(si))); },
      Differentiable::Yes);
}

Tensor max_gather(const Pooling& pooling, const Tensor& x, const Tensor& indices) {
  Tensor y = empty(pooling.out_shape, x.dtype(), x.device());
  run(max_pool_gather, pooling, contiguous(x), y, indices);
  return record(
      "max_pool_gather", y, {x},
      [pooling, si = Saved(indices)](Backward& b) { b.set(0, max_spread(pooling, b.grad(), b.get(si))); },
      Differentiable::Yes);
}

// Indices are int64 when the caller wants them, int32 for the backward alone, else not computed.
std::pair<Tensor, Tensor> max_pool(const Pooling& pooling, const Tensor& x, bool wants_indices) {
  Tensor y = empty(pooling.out_shape, x.dtype(), x.device());
  Tensor indices;
  if (wants_indices || needs_grad({x}))
    indices = empty(pooling.out_shape, wants_indices ? DType::Int64 : DType::Int32, x.device());
  run(max_pool_forward, pooling, contiguous(x), y, indices);
  if (needs_grad({x}))
    record(
        pooling.op, y, {x},
        [pooling, si = Saved(indices)](Backward& b) { b.set(0, max_spread(pooling, b.grad(), b.get(si))); },
        Differentiable::Yes);
  return {y, indices};
}

// ------------------------------------------------------------------------------------------ average

Tensor avg_pool(const Pooling& pooling, const Tensor& x);

Tensor avg_spread(const Pooling& pooling, const Tensor& dy) {
  Tensor dx = empty(pooling.in_shape, dy.dtype(), dy.device());
  run(avg_pool_backward, pooling, dx, contiguous(dy), Tensor());
  return record(
      "avg_pool_backward", dx, {dy}, [pooling](Backward& b) { b.set(0, avg_pool(pooling, b.grad())); },
      Differentiable::Yes);
}

Tensor avg_pool(const Pooling& pooling, const Tensor& x) {
  Tensor y = empty(pooling.out_shape, x.dtype(), x.device());
  run(avg_pool_forward, pooling, contiguous(x), y, Tensor());
  return record(
      pooling.op, y, {x}, [pooling](Backward& b) { b.set(0, avg_spread(pooling, b.grad())); }, Differentiable::Yes);
}

Pooling plan_average(const char* op, const Tensor& x, int n_axes, const PoolOptions& options) {
  check(options.dilation.empty(), op, ": average pooling has no dilation, got ", options.dilation);
  return plan(op, x, n_axes, options);
}

}  // namespace

Tensor max_pool1d(const Tensor& x, const PoolOptions& options) {
  return max_pool(plan("max_pool1d", x, 1, options), x, false).first;
}
Tensor max_pool2d(const Tensor& x, const PoolOptions& options) {
  return max_pool(plan("max_pool2d", x, 2, options), x, false).first;
}
std::pair<Tensor, Tensor> max_pool1d_with_indices(const Tensor& x, const PoolOptions& options) {
  return max_pool(plan("max_pool1d", x, 1, options), x, true);
}
std::pair<Tensor, Tensor> max_pool2d_with_indices(const Tensor& x, const PoolOptions& options) {
  return max_pool(plan("max_pool2d", x, 2, options), x, true);
}

Tensor min_pool1d(const Tensor& x, const PoolOptions& options) {
  const Pooling pooling = plan("min_pool1d", x, 1, options);
  return neg(max_pool(pooling, neg(x), false).first);
}
Tensor min_pool2d(const Tensor& x, const PoolOptions& options) {
  const Pooling pooling = plan("min_pool2d", x, 2, options);
  return neg(max_pool(pooling, neg(x), false).first);
}

Tensor avg_pool1d(const Tensor& x, const PoolOptions& options) {
  return avg_pool(plan_average("avg_pool1d", x, 1, options), x);
}
Tensor avg_pool2d(const Tensor& x, const PoolOptions& options) {
  return avg_pool(plan_average("avg_pool2d", x, 2, options), x);
}

Tensor adaptive_avg_pool1d(const Tensor& x, const Dims& output_size) {
  return avg_pool(plan_adaptive("adaptive_avg_pool1d", x, 1, output_size), x);
}
Tensor adaptive_avg_pool2d(const Tensor& x, const Dims& output_size) {
  return avg_pool(plan_adaptive("adaptive_avg_pool2d", x, 2, output_size), x);
}
Tensor adaptive_max_pool1d(const Tensor& x, const Dims& output_size) {
  return max_pool(plan_adaptive("adaptive_max_pool1d", x, 1, output_size), x, false).first;
}
Tensor adaptive_max_pool2d(const Tensor& x, const Dims& output_size) {
  return max_pool(plan_adaptive("adaptive_max_pool2d", x, 2, output_size), x, false).first;
}
std::pair<Tensor, Tensor> adaptive_max_pool1d_with_indices(const Tensor& x, const Dims& output_size) {
  return max_pool(plan_adaptive("adaptive_max_pool1d", x, 1, output_size), x, true);
}
std::pair<Tensor, Tensor> adaptive_max_pool2d_with_indices(const Tensor& x, const Dims& output_size) {
  return max_pool(plan_adaptive("adaptive_max_pool2d", x, 2, output_size), x, true);
}

}  // namespace fastnn
