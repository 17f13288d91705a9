#include "ops/pool/pool.h"

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/elementwise/elementwise.h"
#include "ops/index/index.h"

namespace fastnn {

Kernel<PoolArgs> max_pool_forward{"max_pool"};
Kernel<PoolArgs> max_pool_backward{"max_pool_backward"};
Kernel<PoolArgs> avg_pool_forward{"avg_pool"};
Kernel<PoolArgs> avg_pool_backward{"avg_pool_backward"};
Kernel<PoolArgs> max_pool_channels_last_forward{"max_pool_channels_last"};
Kernel<PoolArgs> max_pool_channels_last_backward{"max_pool_channels_last_backward"};
Kernel<PoolArgs> avg_pool_channels_last_forward{"avg_pool_channels_last"};
Kernel<PoolArgs> avg_pool_channels_last_backward{"avg_pool_channels_last_backward"};
Kernel<PoolArgs> max_pool_gather{"max_pool_gather"};

namespace {

// ------------------------------------------------------------------------------------------ windows

// A checked call: the windows along the last 1, 2 or 3 axes, and how averages divide.
struct Windows {
  const char* op;
  int n_axes;
  PoolAxis axes[3];  // the last n_axes of them, in the order of the shape
  bool count_include_pad = true;
  int64_t divisor_override = 0;

  PoolAxis& axis(int i) { return axes[3 - n_axes + i]; }
};

constexpr PoolAxis kUnpooled = {1, 1, 1, 1, 0, 1};

Windows start(const char* op, const Tensor& x, int n_axes) {
  constexpr const char* shapes[] = {"(N, C, L) or (C, L)", "(N, C, H, W) or (C, H, W)",
                                    "(N, C, D, H, W) or (C, D, H, W)"};
  check<TypeError>(x.is_floating(), op, ": expected a floating tensor, got ", x.dtype());
  check(x.ndim() == n_axes + 1 || x.ndim() == n_axes + 2, op, ": expected an input of shape ", shapes[n_axes - 1],
        ", got ", x.shape());
  return {op, n_axes, {kUnpooled, kUnpooled, kUnpooled}};
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

Windows fixed_windows(const char* op, const Tensor& x, int n_axes, const PoolOptions& options) {
  Windows windows = start(op, x, n_axes);
  for (int i = 0; i < n_axes; ++i) windows.axis(i) = pooled_axis(op, options, x.size(i - n_axes), i, n_axes);
  windows.count_include_pad = options.count_include_pad;
  windows.divisor_override = options.divisor_override;
  return windows;
}

// Equal windows are fixed ones, for which there are faster kernels.
PoolAxis adaptive_axis(int64_t in, int64_t out) {
  if (out > 0 && in % out == 0) return {in, out, in / out, in / out, 0, 1};
  return {in, out, out > 0 ? in / out + 2 : 1, 0, 0, 1};
}

Windows adaptive_windows(const char* op, const Tensor& x, int n_axes, const Dims& output_size) {
  Windows windows = start(op, x, n_axes);
  check(output_size.size() == 1 || output_size.size() == n_axes, op, ": expected 1 or ", n_axes,
        " numbers for output_size, got ", output_size);
  for (int i = 0; i < n_axes; ++i) {
    const int64_t in = x.size(i - n_axes), out = output_size[output_size.size() == 1 ? 0 : i];
    check(out >= 0 && out <= INT32_MAX, op, ": expected 0 <= output_size < 2^31, got ", output_size);
    check(in > 0, op, ": the pooled axes must not be empty, got shape ", x.shape());
    windows.axis(i) = adaptive_axis(in, out);
  }
  return windows;
}

// -------------------------------------------------------------------------------------- one pooling

// A pooling of two axes at most: shapes, layout, and the arguments but for their pointers.
struct Pooling {
  const char* op;
  Dims in_shape, out_shape;
  bool channels_last;
  PoolArgs args;
};

Pooling pooling_of(const Windows& windows, const Tensor& x, const PoolAxis& height, const PoolAxis& width) {
  Pooling pooling{windows.op, x.shape(), x.shape(), false, {}};
  pooling.args.dtype = x.dtype();
  pooling.args.height = height;
  pooling.args.width = width;
  pooling.args.count_include_pad = windows.count_include_pad;
  pooling.args.divisor_override = windows.divisor_override;
  int64_t taps = 0, plane = 0;
  check(!__builtin_mul_overflow(height.in, width.in, &plane) && plane <= INT32_MAX, windows.op,
        ": planes of more than 2^31 - 1 elements are not supported, got shape ", x.shape());
  check(!__builtin_mul_overflow(height.kernel, width.kernel, &taps) && taps <= INT32_MAX, windows.op,
        ": windows of more than 2^31 - 1 elements are not supported, got ", height.kernel, " x ", width.kernel);
  pooling.args.tap_dtype = taps <= 255 ? DType::UInt8 : DType::Int32;
  return pooling;
}

// The product of the sizes of axes [begin, end).
int64_t product(const Dims& shape, int begin, int end) {
  int64_t n = 1;
  for (int i = begin; i < end; ++i) n *= shape[i];
  return n;
}

// Over the last axis, or the last two.
Pooling pool_planes(const Windows& windows, const Tensor& x) {
  Pooling pooling = pooling_of(windows, x, windows.axes[1], windows.axes[2]);
  const int n = x.ndim(), n_axes = windows.n_axes == 1 ? 1 : 2;
  pooling.out_shape[n - 1] = windows.axes[2].out;
  if (n_axes == 2) pooling.out_shape[n - 2] = windows.axes[1].out;
  pooling.channels_last = n_axes == 2 && !x.is_contiguous() && x.is_channels_last();
  pooling.args.planes = pooling.channels_last ? x.shape()[0] : product(x.shape(), 0, n - n_axes);
  pooling.args.channels = pooling.channels_last ? x.shape()[1] : 1;
  return pooling;
}

// Over the third axis from the end.
Pooling pool_depth(const Windows& windows, const Tensor& x) {
  Pooling pooling = pooling_of(windows, x, windows.axes[0], kUnpooled);
  const int axis = x.ndim() - 3;
  pooling.out_shape[axis] = windows.axes[0].out;
  pooling.args.planes = product(x.shape(), 0, axis);
  pooling.args.channels = product(x.shape(), axis + 1, x.ndim());
  return pooling;
}

Tensor empty_result(const Pooling& pooling, const Dims& shape, DType dtype, Device device) {
  if (!pooling.channels_last) return empty(shape, dtype, device);
  const Tensor y = empty({shape[0], shape[2], shape[3], shape[1]}, dtype, device);
  return alias(y, shape, {y.strides()[0], y.strides()[3], y.strides()[1], y.strides()[2]}, 0);
}

Tensor in_layout(const Pooling& pooling, const Tensor& x) {
  return pooling.channels_last ? channels_last(x) : contiguous(x);
}

struct Kernels {
  const Kernel<PoolArgs>&contiguous, &channels_last;
};
const Kernels kMaxForward = {max_pool_forward, max_pool_channels_last_forward};
const Kernels kMaxBackward = {max_pool_backward, max_pool_channels_last_backward};
const Kernels kMaxGather = {max_pool_gather, max_pool_gather};
const Kernels kAvgForward = {avg_pool_forward, avg_pool_channels_last_forward};
const Kernels kAvgBackward = {avg_pool_backward, avg_pool_channels_last_backward};

void run(const Kernels& kernels, const Pooling& pooling, const Tensor& x, const Tensor& y, const Tensor& taps = {},
         const Tensor& indices = {}) {
  PoolArgs args = pooling.args;
  args.x = x.raw();
  args.y = y.raw();
  args.taps = taps.defined() ? taps.raw() : nullptr;
  args.indices = indices.defined() ? indices.data<int64_t>() : nullptr;
  if (x.numel() == 0 || y.numel() == 0) {  // no windows: nothing flows back either
    if (&kernels == &kMaxBackward || &kernels == &kAvgBackward) fill_(x, Scalar(0));
    return;
  }
  (args.channels > 1 ? kernels.channels_last : kernels.contiguous)(x.device(), args);
}

// ------------------------------------------------------------------------------------------ maximum

// The backward spreads dy to the maxima; its own backward gathers from there; and so on.
Tensor max_gather(const Pooling& pooling, const Tensor& x, const Tensor& taps);

Tensor max_spread(const Pooling& pooling, const Tensor& dy, const Tensor& taps) {
  Tensor dx = empty_result(pooling, pooling.in_shape, dy.dtype(), dy.device());
  run(kMaxBackward, pooling, dx, in_layout(pooling, dy), taps);
  return record(
      "max_pool_backward", dx, {dy},
      [pooling, st = Saved(taps)](Backward& b) { b.set(0, max_gather(pooling, b.grad(), b.get(st))); },
      Differentiable::Yes);
}

Tensor max_gather(const Pooling& pooling, const Tensor& x, const Tensor& taps) {
  Tensor y = empty_result(pooling, pooling.out_shape, x.dtype(), x.device());
  run(kMaxGather, pooling, in_layout(pooling, x), y, taps);
  return record(
      "max_pool_gather", y, {x},
      [pooling, st = Saved(taps)](Backward& b) { b.set(0, max_spread(pooling, b.grad(), b.get(st))); },
      Differentiable::Yes);
}

// The backward needs taps, the caller may want indices; neither is computed without need.
std::pair<Tensor, Tensor> max_pool(const Pooling& pooling, const Tensor& x, bool wants_indices) {
  const auto result = [&](DType dtype) { return empty_result(pooling, pooling.out_shape, dtype, x.device()); };
  Tensor y = result(x.dtype()), taps, indices;
  if (needs_grad({x})) taps = result(pooling.args.tap_dtype);
  if (wants_indices) indices = result(DType::Int64);
  run(kMaxForward, pooling, in_layout(pooling, x), y, taps, indices);
  if (taps.defined())
    record(
        pooling.op, y, {x},
        [pooling, st = Saved(taps)](Backward& b) { b.set(0, max_spread(pooling, b.grad(), b.get(st))); },
        Differentiable::Yes);
  return {y, indices};
}

// The maxima of the slices, then along the depth: (depth, row, column) is compared in order, as in one window.
std::pair<Tensor, Tensor> max_pool(const Windows& windows, const Tensor& x, bool wants_indices) {
  const auto [slices, in_slice] = max_pool(pool_planes(windows, x), x, wants_indices);
  if (windows.n_axes < 3) return {slices, in_slice};
  const auto [y, depth] = max_pool(pool_depth(windows, slices), slices, wants_indices);
  if (!wants_indices) return {y, Tensor()};
  const Tensor position = gather(in_slice, x.ndim() - 3, maximum(depth, Scalar(0)));
  const Tensor indices = add(mul(depth, Scalar(x.size(-2) * x.size(-1))), position);
  return {y, where(lt(minimum(depth, position), Scalar(0)), Scalar(-1), indices)};
}

// ------------------------------------------------------------------------------------------ average

Tensor avg_pool(const Pooling& pooling, const Tensor& x);

Tensor avg_spread(const Pooling& pooling, const Tensor& dy) {
  Tensor dx = empty_result(pooling, pooling.in_shape, dy.dtype(), dy.device());
  run(kAvgBackward, pooling, dx, in_layout(pooling, dy));
  return record(
      "avg_pool_backward", dx, {dy}, [pooling](Backward& b) { b.set(0, avg_pool(pooling, b.grad())); },
      Differentiable::Yes);
}

Tensor avg_pool(const Pooling& pooling, const Tensor& x) {
  Tensor y = empty_result(pooling, pooling.out_shape, x.dtype(), x.device());
  run(kAvgForward, pooling, in_layout(pooling, x), y);
  return record(
      pooling.op, y, {x}, [pooling](Backward& b) { b.set(0, avg_spread(pooling, b.grad())); }, Differentiable::Yes);
}

// In 3-D the means of the slices, or their sums for a given divisor, are not rounded to 16 bits.
Tensor avg_pool(const Windows& windows, const Tensor& x) {
  if (windows.n_axes < 3) return avg_pool(pool_planes(windows, x), x);
  Windows slice_windows = windows;
  if (windows.divisor_override) slice_windows.divisor_override = 1;
  const Tensor wide = to(x, compute_dtype(x.dtype()));
  const Tensor slices = avg_pool(pool_planes(slice_windows, wide), wide);
  return to(avg_pool(pool_depth(windows, slices), slices), x.dtype());
}

Windows average_windows(const char* op, const Tensor& x, int n_axes, const PoolOptions& options) {
  check(options.dilation.empty(), op, ": average pooling has no dilation, got ", options.dilation);
  return fixed_windows(op, x, n_axes, options);
}

}  // namespace

#define FASTNN_POOLS(axes)                                                                                      \
  Tensor max_pool##axes##d(const Tensor& x, const PoolOptions& options) {                                       \
    return max_pool(fixed_windows("max_pool" #axes "d", x, axes, options), x, false).first;                     \
  }                                                                                                             \
  std::pair<Tensor, Tensor> max_pool##axes##d_with_indices(const Tensor& x, const PoolOptions& options) {       \
    return max_pool(fixed_windows("max_pool" #axes "d", x, axes, options), x, true);                            \
  }                                                                                                             \
  Tensor avg_pool##axes##d(const Tensor& x, const PoolOptions& options) {                                       \
    return avg_pool(average_windows("avg_pool" #axes "d", x, axes, options), x);                                \
  }                                                                                                             \
  Tensor adaptive_max_pool##axes##d(const Tensor& x, const Dims& output_size) {                                 \
    return max_pool(adaptive_windows("adaptive_max_pool" #axes "d", x, axes, output_size), x, false).first;     \
  }                                                                                                             \
  std::pair<Tensor, Tensor> adaptive_max_pool##axes##d_with_indices(const Tensor& x, const Dims& output_size) { \
    return max_pool(adaptive_windows("adaptive_max_pool" #axes "d", x, axes, output_size), x, true);            \
  }                                                                                                             \
  Tensor adaptive_avg_pool##axes##d(const Tensor& x, const Dims& output_size) {                                 \
    return avg_pool(adaptive_windows("adaptive_avg_pool" #axes "d", x, axes, output_size), x);                  \
  }
FASTNN_POOLS(1)
FASTNN_POOLS(2)
FASTNN_POOLS(3)
#undef FASTNN_POOLS

Tensor min_pool1d(const Tensor& x, const PoolOptions& options) {
  const Windows windows = fixed_windows("min_pool1d", x, 1, options);
  return neg(max_pool(windows, neg(x), false).first);
}
Tensor min_pool2d(const Tensor& x, const PoolOptions& options) {
  const Windows windows = fixed_windows("min_pool2d", x, 2, options);
  return neg(max_pool(windows, neg(x), false).first);
}

}  // namespace fastnn
