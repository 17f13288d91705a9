#include "ops/copy/copy.h"

#include <algorithm>
#include <cstring>

#include "core/autograd.h"
#include "core/cuda.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/elementwise/geometry.h"
#include "ops/index/index.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<CopyArgs> copy_strided{"copy"};

namespace {

// ------------------------------------------------------------------------- same device, raw copies

// The type in which a conversion computes: exact for every pair (int64 to float32 rounds once).
DType cast_compute(DType from, DType to) {
  if (from == DType::Float64 || to == DType::Float64) return DType::Float64;
  return is_floating(from) || is_floating(to) ? DType::Float32 : DType::Int64;
}

void copy_same_type(const Tensor& dst, const Tensor& src) {
  const ElementwiseArgs walk = elementwise_args(0, DType::Float32, dst, {src});
  CopyArgs args{};
  args.dst = dst.raw();
  args.src = src.raw();
  args.item_size = int64_t(dst.item_size());
  args.numel = walk.numel;
  // The kernel wants at least a plane: (1, n) for what merged into one row, (k, n / k) when that row
  // is long enough to share among threads.
  const int pad = std::max(0, 2 - walk.ndim);
  args.ndim = walk.ndim + pad;
  for (int axis = 0; axis < args.ndim; ++axis) {
    args.shape[axis] = axis < pad ? 1 : walk.shape[axis - pad];
    args.dst_strides[axis] = axis < pad ? 0 : walk.out.strides[axis - pad];
    args.src_strides[axis] = axis < pad ? 0 : walk.in[0].strides[axis - pad];
  }
  constexpr int64_t kRow = 16384;
  if (!dst.device().is_cuda() && walk.ndim == 1 && walk.shape[0] >= 2 * kRow) {
    const int64_t rows = walk.shape[0] / kRow, rest = walk.shape[0] % kRow;
    args.shape[0] = rows;
    args.shape[1] = kRow;
    args.dst_strides[0] = kRow * args.dst_strides[1];
    args.src_strides[0] = kRow * args.src_strides[1];
    args.numel = rows * kRow;
    copy_strided(dst.device(), args);
    if (rest == 0) return;
    const int64_t bytes = args.item_size * args.numel;
    args.dst = static_cast<char*>(args.dst) + bytes * args.dst_strides[1];
    args.src = static_cast<const char*>(args.src) + bytes * args.src_strides[1];
    args.shape[0] = 1;
    args.shape[1] = args.numel = rest;
  }
  copy_strided(dst.device(), args);
}

// Between devices: both sides contiguous and of one type, then one transfer.
void copy_across(const Tensor& dst, const Tensor& src, bool non_blocking) {
  GradMode off(false);
  const Tensor from = contiguous(to(expand_to(src, dst.shape()), dst.dtype()));
  if (dst.is_contiguous())
    return cuda_copy(dst.raw(), *dst.storage(), from.raw(), *from.storage(), size_t(dst.numel()) * dst.item_size(),
                     non_blocking);
  Tensor landed = empty(dst.shape(), dst.dtype(), dst.device());
  copy_across(landed, from, non_blocking);
  copy_into(dst, landed);
}

}  // namespace

void copy_into(const Tensor& dst, const Tensor& src, bool non_blocking) {
  check(broadcast_shapes("copy", dst.shape(), src.shape()) == dst.shape(), "copy: a source of shape ", src.shape(),
        " does not broadcast to ", dst.shape());
  if (dst.numel() == 0) return;
  if (dst.device() != src.device()) return copy_across(dst, src, non_blocking);
  const Tensor from = overlaps(dst, src) ? clone(detach(src)) : src;
  if (dst.dtype() == from.dtype()) return copy_same_type(dst, from);
  const DType compute = cast_compute(from.dtype(), dst.dtype());
  elementwise_unary(dst.device(), elementwise_args(int32_t(UnaryOp::copy), compute, dst, {from}));
}

namespace {
Tensor copy_to(const char* op, const Tensor& y, const Tensor& x) {
  copy_into(y, x);
  return record(op, y, {x}, [](Backward& b) { b.set(0, b.grad()); }, Differentiable::Yes);
}
}  // namespace

Tensor contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : copy_to("contiguous", empty(x.shape(), x.dtype(), x.device()), x);
}

Tensor channels_last(const Tensor& x) {
  if (x.is_channels_last()) return x;
  return copy_to("contiguous", empty(x.shape(), x.dtype(), x.device(), MemoryFormat::ChannelsLast), x);
}

Tensor contiguous(const Tensor& x, MemoryFormat format) {
  check(format != MemoryFormat::Preserve || x.is_contiguous(),
        "contiguous: expected contiguous_format or channels_last, got preserve_format");
  return format == MemoryFormat::ChannelsLast ? channels_last(x) : contiguous(x);
}

Tensor clone(const Tensor& x, MemoryFormat format) {
  return copy_to("clone",
                 format == MemoryFormat::Preserve ? empty_like(x) : empty(x.shape(), x.dtype(), x.device(), format), x);
}

Tensor to(const Tensor& x, MemoryFormat format) {
  return format == MemoryFormat::Preserve || format == x.memory_format() ? x : clone(x, format);
}

Tensor to(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Tensor y = empty_like(x, dtype);
  copy_into(y, x);
  if (!is_floating(dtype)) return y;
  return record("to", y, {x}, [from = x.dtype()](Backward& b) { b.set(0, to(b.grad(), from)); }, Differentiable::Yes);
}

Tensor to(const Tensor& x, Device device, bool non_blocking) {
  if (x.device() == device) return x;
  const MemoryFormat format = x.memory_format();
  // A copy to the CPU goes on without it only into pinned memory.
  const bool pins = non_blocking && !device.is_cuda();
  const Tensor y = pins ? empty_pinned(x.shape(), x.dtype(), format) : empty(x.shape(), x.dtype(), device, format);
  copy_into(y, x, non_blocking);
  return record("to", y, {x}, [from = x.device()](Backward& b) { b.set(0, to(b.grad(), from)); }, Differentiable::Yes);
}

Tensor pin_memory(const Tensor& x) {
  if (x.storage()->pinned) return x;
  check<DeviceError>(!x.device().is_cuda(), "pin_memory: expected a tensor on the CPU, got one on ", x.device());
  return copy_to("pin_memory", empty_pinned(x.shape(), x.dtype(), x.memory_format()), x);
}

Tensor copy_(const Tensor& dst, const Tensor& src, bool non_blocking) {
  check_inplace("copy_", dst, {src});
  copy_into(dst, src, non_blocking);
  return record_inplace("copy_", dst, {dst, src},
                        [shape = src.shape(), dtype = src.dtype(), device = src.device()](Backward& b) {
                          if (b.needs(0)) b.set(0, zeros_like(b.grad()));
                          if (b.needs(1)) b.set(1, to(to(sum_to(b.grad(), shape), dtype), device));
                        });
}

void fill_into(const Tensor& x, Scalar value) {
  if (x.numel() == 0) return;
  const Scalar stored = x.dtype() == DType::Bool ? Scalar(value.to_bool()) : value;
  elementwise_unary(x.device(),
                    elementwise_args(int32_t(UnaryOp::copy), compute_dtype(x.dtype()), x, {Operand(stored)}));
}

Tensor fill_(const Tensor& x, Scalar value) {
  check_inplace("fill_", x, {});
  fill_into(x, value);
  return record_inplace("fill_", x, {x}, [](Backward& b) { b.set(0, zeros_like(b.grad())); });
}

Scalar item(const Tensor& x) {
  check(x.numel() == 1, "item: expected a tensor of one element, got shape ", x.shape());
  const bool integral = !x.is_floating();
  const Tensor here = x.device().is_cuda() ? to(detach(x), Device()) : x;
  Tensor host = empty(x.shape(), integral ? DType::Int64 : DType::Float64);
  copy_into(host, here);
  if (x.dtype() == DType::Bool) return Scalar(*host.data<int64_t>() != 0);
  return integral ? Scalar(*host.data<int64_t>()) : Scalar(*host.data<double>());
}

// -------------------------------------------------------------------------------- joining tensors

Tensor cat(const std::vector<Tensor>& xs, int64_t axis) {
  check(!xs.empty(), "cat: expected at least one tensor");
  axis = normalize_axis("cat", axis, xs[0].ndim());
  Dims shape = xs[0].shape();
  check(!shape.empty(), "cat: 0-d tensors cannot be joined; use stack");
  DType dtype = xs[0].dtype();
  shape[axis] = 0;
  for (const Tensor& x : xs) {
    Dims rest = x.shape();
    check(rest.size() == shape.size(), "cat: shapes ", xs[0].shape(), " and ", x.shape(), " differ in dimensions");
    const int64_t size = rest[axis];
    rest[axis] = shape[axis];
    check(rest == shape, "cat: shapes ", xs[0].shape(), " and ", x.shape(), " differ outside dim ", axis);
    check_same_device("cat", xs[0], x);
    shape[axis] += size;
    dtype = promote(dtype, x.dtype());
  }
  const bool last = std::all_of(xs.begin(), xs.end(),
                                [](const Tensor& x) { return x.memory_format() == MemoryFormat::ChannelsLast; });
  Tensor y = empty(shape, dtype, xs[0].device(), last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  std::vector<int64_t> sizes;
  std::vector<DType> dtypes;
  std::vector<TensorRef> inputs;
  int64_t start = 0;
  for (const Tensor& x : xs) {
    const int64_t size = x.shape()[axis];
    copy_into(narrow(y, axis, start, size), x);
    start += size;
    sizes.push_back(size);
    dtypes.push_back(x.dtype());
    inputs.push_back(x);
  }
  return record(
      "cat", y, inputs,
      [sizes, dtypes, axis](Backward& b) {
        int64_t first = 0;
        for (uint32_t i = 0; i < sizes.size(); ++i) {
          if (b.needs(i)) b.set(i, to(narrow(b.grad(), axis, first, sizes[i]), dtypes[i]));
          first += sizes[i];
        }
      },
      Differentiable::Yes);
}

Tensor stack(const std::vector<Tensor>& xs, int64_t axis) {
  check(!xs.empty(), "stack: expected at least one tensor");
  std::vector<Tensor> wide;
  for (const Tensor& x : xs) {
    check(x.shape() == xs[0].shape(), "stack: expected tensors of one shape, got ", xs[0].shape(), " and ", x.shape());
    wide.push_back(unsqueeze(x, normalize_axis("stack", axis, x.ndim() + 1)));
  }
  return cat(wide, normalize_axis("stack", axis, xs[0].ndim() + 1));
}

Tensor repeat(const Tensor& x, const Dims& counts) {
  const int lead = counts.size() - x.ndim();
  check(lead >= 0, "repeat: expected at least ", x.ndim(), " counts for shape ", x.shape(), ", got ", counts);
  check(2 * counts.size() <= kMaxDims, "repeat: at most ", kMaxDims / 2, " dimensions, got ", counts);
  Dims interleaved, tiled, result;
  for (int i = 0; i < counts.size(); ++i) {
    check(counts[i] >= 0, "repeat: expected counts >= 0, got ", counts);
    const int64_t size = i < lead ? 1 : x.shape()[i - lead];
    interleaved.push_back(1);
    interleaved.push_back(size);
    tiled.push_back(counts[i]);
    tiled.push_back(size);
    result.push_back(checked_numel({counts[i], size}));
  }
  return reshape(expand(reshape(x, interleaved), tiled), result);
}

Tensor repeat_interleave(const Tensor& x, int64_t count, int64_t axis) {
  check(count >= 0, "repeat_interleave: expected a count >= 0, got ", count);
  axis = normalize_axis("repeat_interleave", axis, x.ndim());
  const Tensor wide = unsqueeze(x, axis + 1);
  Dims shape = wide.shape();
  shape[axis + 1] = count;
  return flatten(expand(wide, shape), axis, axis + 1);
}

// ---------------------------------------------------------------------------------------- borders

namespace {

// Where position i of a padded axis comes from, in [0, size).
int64_t border_source(const std::string& mode, int64_t i, int64_t size) {
  if (mode == "replicate") return std::clamp<int64_t>(i, 0, size - 1);
  if (mode == "circular") return ((i % size) + size) % size;
  return i < 0 ? -i : (i >= size ? 2 * (size - 1) - i : i);  // reflect
}

Tensor pad_axis(const Tensor& x, int64_t axis, int64_t before, int64_t after, const std::string& mode) {
  const int64_t size = x.shape()[axis];
  const int64_t limit = mode == "reflect" ? size - 1 : mode == "circular" ? size : INT64_MAX;
  check(size > 0 && before >= 0 && after >= 0 && before <= limit && after <= limit, "pad: amounts (", before, ", ",
        after, ") are out of range for mode '", mode, "' on dim ", axis, " of size ", size);
  const int64_t total = checked_numel({before + size + after});
  Tensor source = empty({total}, DType::Int64);
  for (int64_t i = 0; i < total; ++i) source.data<int64_t>()[i] = border_source(mode, i - before, size);
  return index_select(x, axis, to(source, x.device()));
}

Tensor pad_constant(const Tensor& x, const Dims& before, const Dims& after, double value) {
  Dims shape = x.shape();
  Tensor inner = x;
  for (int axis = 0; axis < x.ndim(); ++axis) {
    int64_t grown = 0;
    check(!__builtin_add_overflow(shape[axis], before[axis], &grown) &&
              !__builtin_add_overflow(grown, after[axis], &grown) && grown >= 0,
          "pad: amounts (", before[axis], ", ", after[axis], ") leave no valid size of dim ", axis, " of shape ",
          x.shape());
    if (before[axis] < 0 || after[axis] < 0)
      inner =
          slice(inner, axis, std::max<int64_t>(0, -before[axis]), shape[axis] - std::max<int64_t>(0, -after[axis]), 1);
    shape[axis] = grown;
  }
  // Along one axis: the window begins and ends here.
  auto first = [before](int axis) { return std::max<int64_t>(0, before[axis]); };
  auto past = [after, shape](int axis) {
    return std::max<int64_t>(0, shape[axis] - std::max<int64_t>(0, after[axis]));
  };
  auto window = [first, past, n = shape.size()](Tensor whole) {
    for (int axis = 0; axis < n; ++axis) whole = slice(whole, axis, first(axis), past(axis), 1);
    return whole;
  };
  Tensor y = empty(shape, x.dtype(), x.device(), x.memory_format()), rest = y;
  for (int axis = 0; axis < shape.size(); ++axis) {
    fill_into(slice(rest, axis, 0, first(axis), 1), Scalar(value));
    fill_into(slice(rest, axis, past(axis), shape[axis], 1), Scalar(value));
    rest = slice(rest, axis, first(axis), past(axis), 1);
  }
  copy_into(rest, inner);
  return record("pad", y, {inner}, [window](Backward& b) { b.set(0, window(b.grad())); }, Differentiable::Yes);
}

}  // namespace

Tensor pad(const Tensor& x, const Dims& amounts, const std::string& mode, double value) {
  check(mode == "constant" || mode == "reflect" || mode == "replicate" || mode == "circular",
        "pad: expected mode 'constant', 'reflect', 'replicate' or 'circular', got '", mode, "'");
  check(amounts.size() % 2 == 0 && amounts.size() / 2 <= x.ndim(), "pad: expected (before, after) pairs for at most ",
        x.ndim(), " dimensions, got ", amounts);
  Dims before = Dims::filled(x.ndim(), 0), after = before;
  for (int pair = 0; pair < amounts.size() / 2; ++pair) {
    before[x.ndim() - 1 - pair] = amounts[2 * pair];
    after[x.ndim() - 1 - pair] = amounts[2 * pair + 1];
  }
  if (mode == "constant") return pad_constant(x, before, after, value);
  Tensor y = x;
  for (int axis = 0; axis < x.ndim(); ++axis)
    if (before[axis] || after[axis]) y = pad_axis(y, axis, before[axis], after[axis], mode);
  return y;
}

Tensor flip(const Tensor& x, const Dims& axes) {
  Dims strides = x.strides();
  int64_t offset = x.offset();
  Dims done;
  for (int64_t wanted : axes) {
    const int64_t axis = normalize_axis("flip", wanted, x.ndim());
    check(!done.contains(axis), "flip: axis ", axis, " comes twice in ", axes);
    done.push_back(axis);
    if (x.ndim() == 0 || x.numel() == 0) continue;
    offset += strides[axis] * (x.shape()[axis] - 1);
    strides[axis] = -strides[axis];
  }
  Tensor y = empty_like(x);
  copy_into(y, alias(x, x.shape(), strides, offset));
  return record("flip", y, {x}, [axes](Backward& b) { b.set(0, flip(b.grad(), axes)); }, Differentiable::Yes);
}

Tensor roll(const Tensor& x, const Dims& shifts, const Dims& axes) {
  if (axes.empty()) {
    check(shifts.size() == 1, "roll: expected one shift when no dims are given, got ", shifts);
    return reshape(roll(flatten(x, 0, -1), shifts, {0}), x.shape());
  }
  check(shifts.size() == axes.size(), "roll: expected as many shifts as dims, got ", shifts, " and ", axes);
  Tensor y = x;
  for (int i = 0; i < axes.size(); ++i) {
    const int64_t size = y.size(axes[i]);
    if (size == 0) continue;
    const int64_t cut = ((-shifts[i]) % size + size) % size;
    if (cut) y = cat({narrow(y, axes[i], cut, size - cut), narrow(y, axes[i], 0, cut)}, axes[i]);
  }
  return y;
}

// -------------------------------------------------------------------------------------- triangles

namespace {

// column - row as a (rows, columns) tensor of int64.
Tensor diagonal_numbers(const Tensor& x) {
  check(x.ndim() >= 2, "tril/triu: expected at least 2 dimensions, got shape ", x.shape());
  auto count = [&](int64_t n) { return arange(Scalar(0), Scalar(n), Scalar(1), DType::Int64, x.device()); };
  return sub(unsqueeze(count(x.size(-1)), 0), unsqueeze(count(x.size(-2)), 1));
}

}  // namespace

Tensor tril(const Tensor& x, int64_t diagonal) {
  return where(expand(le(diagonal_numbers(x), Scalar(diagonal)), x.shape()), x, Scalar(false));
}

Tensor triu(const Tensor& x, int64_t diagonal) {
  return where(expand(ge(diagonal_numbers(x), Scalar(diagonal)), x.shape()), x, Scalar(false));
}

}  // namespace fastnn
