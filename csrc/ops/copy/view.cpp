#include "ops/copy/view.h"

#include <algorithm>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/elementwise/elementwise.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

// ---------------------------------------------------------------------------------------- shapes

Dims infer_shape(const char* op, const Dims& shape, int64_t numel) {
  Dims result = shape;
  int unknown = -1;
  Dims known;
  for (int i = 0; i < shape.size(); ++i) {
    if (shape[i] == -1) {
      check(unknown < 0, op, ": only one size may be -1, got ", shape);
      unknown = i;
    } else {
      check(shape[i] >= 0, op, ": expected sizes >= 0 and at most one -1, got ", shape);
      known.push_back(shape[i]);
    }
  }
  const int64_t product = checked_numel(known);
  if (unknown >= 0) {
    check(product > 0 && numel % product == 0, op, ": a tensor of ", numel, " elements does not fit the shape ", shape);
    result[unknown] = numel / product;
  } else {
    check(product == numel, op, ": a tensor of ", numel, " elements does not fit the shape ", shape);
  }
  return result;
}

namespace {

// Strides that show `x` in `shape` without a copy; false when there are none. Each run of axes that
// is contiguous in x must be covered by whole new axes.
bool view_strides(const Tensor& x, const Dims& shape, Dims& strides) {
  strides = contiguous_strides(shape);
  if (x.numel() == 0 || x.is_contiguous()) return true;
  Dims sizes, steps;  // x's axes with ones dropped and contiguous neighbours merged
  for (int i = 0; i < x.ndim(); ++i) {
    if (x.shape()[i] == 1) continue;
    const int last = sizes.size() - 1;
    if (last >= 0 && steps[last] == x.strides()[i] * x.shape()[i]) {
      sizes[last] *= x.shape()[i];
      steps[last] = x.strides()[i];
    } else {
      sizes.push_back(x.shape()[i]);
      steps.push_back(x.strides()[i]);
    }
  }
  int axis = shape.size() - 1;
  for (int run = sizes.size() - 1; run >= 0; --run) {
    int64_t covered = 1;
    while (axis >= 0 && (covered < sizes[run] || shape[axis] == 1)) {
      strides[axis] = steps[run] * covered;
      covered *= shape[axis--];
    }
    if (covered != sizes[run]) return false;
  }
  return true;
}

Tensor record_reshape(const char* name, const Tensor& x, const Dims& shape, const Dims& strides) {
  return record_view(name, alias(x, shape, strides, x.offset()), x,
                     [from = x.shape()](Backward& b) { b.set(0, reshape(b.grad(), from)); });
}

}  // namespace

Tensor view(const Tensor& x, const Dims& wanted) {
  const Dims shape = infer_shape("view", wanted, x.numel());
  Dims strides;
  check<RuntimeError>(view_strides(x, shape, strides), "view: shape ", x.shape(), " with strides ", x.strides(),
                      " cannot be seen as ", shape, " without a copy; use reshape");
  return record_reshape("view", x, shape, strides);
}

Tensor view_as_type(const Tensor& x, DType dtype) {
  check(x.item_size() == item_size(dtype), "view: ", x.dtype(), " and ", dtype, " differ in size");
  no_backward("view", {x});
  const Tensor y = alias(x, x.shape(), x.strides(), x.offset());
  y.impl()->dtype = dtype;
  return y;
}

Tensor reshape(const Tensor& x, const Dims& wanted) {
  const Dims shape = infer_shape("reshape", wanted, x.numel());
  Dims strides;
  if (view_strides(x, shape, strides)) return record_reshape("reshape", x, shape, strides);
  return record_reshape("reshape", contiguous(x), shape, contiguous_strides(shape));
}

Tensor flatten(const Tensor& x, int64_t start, int64_t end) {
  start = normalize_axis("flatten", start, x.ndim());
  end = normalize_axis("flatten", end, x.ndim());
  check(start <= end, "flatten: start_dim ", start, " comes after end_dim ", end);
  if (x.ndim() == 0) return reshape(x, {1});
  if (start == end) return x;
  Dims shape;
  int64_t merged = 1;
  for (int i = 0; i < x.ndim(); ++i) {
    if (i < start || i > end)
      shape.push_back(x.shape()[i]);
    else
      merged *= x.shape()[i];
    if (i == end) shape.push_back(merged);
  }
  return reshape(x, shape);
}

Tensor unflatten(const Tensor& x, int64_t axis, const Dims& sizes) {
  axis = normalize_axis("unflatten", axis, x.ndim());
  const Dims inner = infer_shape("unflatten", sizes, x.shape()[axis]);
  Dims shape;
  for (int i = 0; i < x.ndim(); ++i) {
    if (i != axis)
      shape.push_back(x.shape()[i]);
    else
      for (int64_t size : inner) shape.push_back(size);
  }
  return view(x, shape);
}

// ------------------------------------------------------------------------------------------ axes

Tensor permute(const Tensor& x, const Dims& wanted) {
  check(wanted.size() == x.ndim(), "permute: expected ", x.ndim(), " axes for shape ", x.shape(), ", got ", wanted);
  Dims order, shape, strides, inverse = wanted;
  for (int i = 0; i < wanted.size(); ++i) {
    const int64_t axis = normalize_axis("permute", wanted[i], x.ndim());
    check(!order.contains(axis), "permute: axis ", axis, " comes twice in ", wanted);
    order.push_back(axis);
    shape.push_back(x.shape()[axis]);
    strides.push_back(x.strides()[axis]);
    inverse[axis] = i;
  }
  return record_view("permute", alias(x, shape, strides, x.offset()), x,
                     [inverse](Backward& b) { b.set(0, permute(b.grad(), inverse)); });
}

Tensor transpose(const Tensor& x, int64_t axis_a, int64_t axis_b) {
  axis_a = normalize_axis("transpose", axis_a, x.ndim());
  axis_b = normalize_axis("transpose", axis_b, x.ndim());
  Dims shape = x.shape(), strides = x.strides();
  if (x.ndim()) {
    std::swap(shape[axis_a], shape[axis_b]);
    std::swap(strides[axis_a], strides[axis_b]);
  }
  return record_view("transpose", alias(x, shape, strides, x.offset()), x,
                     [axis_a, axis_b](Backward& b) { b.set(0, transpose(b.grad(), axis_a, axis_b)); });
}

Tensor movedim(const Tensor& x, const Dims& from, const Dims& to) {
  check(from.size() == to.size(), "movedim: expected as many sources as destinations, got ", from, " and ", to);
  Dims order = Dims::filled(x.ndim(), -1), taken;
  for (int i = 0; i < from.size(); ++i) {
    const int64_t target = normalize_axis("movedim", to[i], x.ndim());
    const int64_t source = normalize_axis("movedim", from[i], x.ndim());
    check(order[target] < 0 && !taken.contains(source), "movedim: an axis comes twice in ", from, " or ", to);
    order[target] = source;
    taken.push_back(source);
  }
  int64_t next = 0;
  for (int64_t& axis : order) {
    if (axis >= 0) continue;
    while (taken.contains(next)) ++next;
    axis = next++;
  }
  return permute(x, order);
}

Tensor expand(const Tensor& x, const Dims& wanted) {
  const int lead = wanted.size() - x.ndim();
  check(lead >= 0, "expand: shape ", wanted, " has fewer dimensions than ", x.shape());
  Dims shape = wanted, strides = Dims::filled(wanted.size(), 0);
  for (int i = 0; i < wanted.size(); ++i) {
    check(wanted[i] >= 0 || (wanted[i] == -1 && i >= lead), "expand: expected sizes >= 0, got ", wanted);
    if (i < lead) continue;
    const int64_t size = x.shape()[i - lead];
    if (shape[i] == -1) shape[i] = size;
    check(size == shape[i] || size == 1, "expand: size ", size, " at dim ", i - lead, " of shape ", x.shape(),
          " cannot become ", shape[i], "; only 1 expands");
    strides[i] = size == 1 && shape[i] != 1 ? 0 : x.strides()[i - lead];
  }
  return record_view("expand", alias(x, shape, strides, x.offset()), x,
                     [from = x.shape()](Backward& b) { b.set(0, sum_to(b.grad(), from)); });
}

Tensor expand_to(const Tensor& x, const Dims& shape) { return x.shape() == shape ? x : expand(x, shape); }

Tensor squeeze(const Tensor& x) {
  Dims axes;
  for (int i = 0; i < x.ndim(); ++i)
    if (x.shape()[i] == 1) axes.push_back(i);
  return squeeze(x, axes);
}

Tensor squeeze(const Tensor& x, const Dims& axes) {
  Dims dropped, shape, strides;
  for (int64_t axis : axes) dropped.push_back(normalize_axis("squeeze", axis, x.ndim()));
  for (int i = 0; i < x.ndim(); ++i) {
    if (dropped.contains(i) && x.shape()[i] == 1) continue;
    shape.push_back(x.shape()[i]);
    strides.push_back(x.strides()[i]);
  }
  return record_reshape("squeeze", x, shape, strides);
}

Tensor unsqueeze(const Tensor& x, int64_t axis) {
  axis = normalize_axis("unsqueeze", axis, x.ndim() + 1);
  Dims shape = x.shape(), strides = x.strides();
  shape.insert(int(axis), 1);
  strides.insert(int(axis), axis < x.ndim() ? x.strides()[axis] * std::max<int64_t>(x.shape()[axis], 1) : 1);
  return record_reshape("unsqueeze", x, shape, strides);
}

// ---------------------------------------------------------------------------------------- windows

namespace {

// A view of part of x: its gradient is placed into zeros.
template <class Narrow>
Tensor record_part(const char* name, const Tensor& x, const Dims& shape, const Dims& strides, int64_t offset,
                   Narrow narrow_again) {
  return record_view(name, alias(x, shape, strides, offset), x, [from = x.shape(), narrow_again](Backward& b) {
    const Tensor dy = b.grad();
    Tensor dx = zeros(from, dy.dtype(), dy.device());
    copy_(narrow_again(dx), dy);
    b.set(0, dx);
  });
}

}  // namespace

Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t stop, int64_t step) {
  check(x.ndim() > 0, "slice: a 0-d tensor cannot be sliced");
  axis = normalize_axis("slice", axis, x.ndim());
  check(step > 0, "slice: expected a step > 0, got ", step, "; use flip for a reversed order");
  const int64_t size = x.shape()[axis];
  auto clip = [size](int64_t i) { return std::clamp<int64_t>(i < 0 ? i + size : i, 0, size); };
  start = clip(start);
  stop = std::max(clip(stop), start);
  Dims shape = x.shape(), strides = x.strides();
  shape[axis] = (stop - start) / step + ((stop - start) % step != 0);
  strides[axis] = shape[axis] > 1 ? strides[axis] * step : strides[axis];
  const int64_t offset = x.offset() + (shape[axis] ? start * x.strides()[axis] : 0);
  return record_part("slice", x, shape, strides, offset,
                     [axis, start, stop, step](const Tensor& dx) { return slice(dx, axis, start, stop, step); });
}

Tensor narrow(const Tensor& x, int64_t axis, int64_t start, int64_t length) {
  check<IndexError>(x.ndim() > 0, "narrow: a 0-d tensor has no axis");
  axis = normalize_axis("narrow", axis, x.ndim());
  const int64_t size = x.shape()[axis];
  check<IndexError>(start >= -size && start <= size, "narrow: start ", start, " is out of range for size ", size);
  if (start < 0) start += size;
  check(length >= 0 && length <= size - start, "narrow: start ", start, " and length ", length, " reach beyond size ",
        size);
  return slice(x, axis, start, start + length, 1);
}

Tensor select(const Tensor& x, int64_t axis, int64_t index) {
  check<IndexError>(x.ndim() > 0, "index: a 0-d tensor cannot be indexed; use .item()");
  axis = normalize_axis("select", axis, x.ndim());
  const int64_t size = x.shape()[axis];
  check<IndexError>(index >= -size && index < size, "index ", index, " is out of range for dim ", axis, " of size ",
                    size);
  if (index < 0) index += size;
  Dims shape = x.shape(), strides = x.strides();
  const int64_t offset = x.offset() + index * strides[axis];
  shape.erase(int(axis));
  strides.erase(int(axis));
  return record_part("select", x, shape, strides, offset,
                     [axis, index](const Tensor& dx) { return select(dx, axis, index); });
}

Tensor diagonal(const Tensor& x, int64_t offset, int64_t axis_a, int64_t axis_b) {
  check(x.ndim() >= 2, "diagonal: expected at least 2 dimensions, got shape ", x.shape());
  axis_a = normalize_axis("diagonal", axis_a, x.ndim());
  axis_b = normalize_axis("diagonal", axis_b, x.ndim());
  check(axis_a != axis_b, "diagonal: expected two different axes, got ", axis_a, " twice");
  const int64_t rows = x.shape()[axis_a], columns = x.shape()[axis_b];
  // Saturate: an offset near +-2^63 leaves nothing, and must not overflow.
  const int64_t skip_rows = offset < 0 ? std::min(rows, offset < -rows ? rows : -offset) : 0;
  const int64_t skip_columns = offset > 0 ? std::min(columns, offset) : 0;
  const int64_t length = std::max<int64_t>(0, std::min(rows - skip_rows, columns - skip_columns));
  Dims shape, strides;
  for (int i = 0; i < x.ndim(); ++i) {
    if (i == axis_a || i == axis_b) continue;
    shape.push_back(x.shape()[i]);
    strides.push_back(x.strides()[i]);
  }
  shape.push_back(length);
  strides.push_back(x.strides()[axis_a] + x.strides()[axis_b]);
  const int64_t first = length ? skip_rows * x.strides()[axis_a] + skip_columns * x.strides()[axis_b] : 0;
  return record_part("diagonal", x, shape, strides, x.offset() + first,
                     [offset, axis_a, axis_b](const Tensor& dx) { return diagonal(dx, offset, axis_a, axis_b); });
}

std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int64_t axis) {
  axis = normalize_axis("split", axis, x.ndim());
  int64_t total = 0;
  for (int64_t size : sizes) {
    check(size >= 0 && size <= x.size(axis), "split: expected sizes from 0 to ", x.size(axis), ", got ", size);
    total += size;
  }
  check(total == x.size(axis), "split: the sizes add up to ", total, ", but dim ", axis, " has size ", x.size(axis));
  std::vector<Tensor> parts;
  int64_t start = 0;
  for (int64_t size : sizes) {
    parts.push_back(narrow(x, axis, start, size));
    start += size;
  }
  return parts;
}

std::vector<Tensor> split_size(const Tensor& x, int64_t size, int64_t axis) {
  check(x.ndim() > 0, "split: a 0-d tensor cannot be split");
  axis = normalize_axis("split", axis, x.ndim());
  check(size > 0, "split: expected a size > 0, got ", size);
  const int64_t total = x.shape()[axis];
  std::vector<int64_t> sizes;
  for (int64_t start = 0; start < total; start += size) sizes.push_back(std::min(size, total - start));
  if (sizes.empty()) sizes.push_back(0);
  return split(x, sizes, axis);
}

constexpr int64_t kMostEmptyChunks = 1 << 16;

std::vector<Tensor> chunk(const Tensor& x, int64_t chunks, int64_t axis) {
  check(chunks > 0, "chunk: expected at least 1 chunk, got ", chunks);
  const int64_t total = x.size(axis);
  if (total == 0) {  // there are always as many as were asked for
    check(chunks <= kMostEmptyChunks, "chunk: ", chunks, " chunks of an axis of size 0 are too many");
    return split(x, std::vector<int64_t>(size_t(chunks), 0), axis);
  }
  return split_size(x, total / chunks + (total % chunks != 0), axis);
}

std::vector<Tensor> unbind(const Tensor& x, int64_t axis) {
  check(x.ndim() > 0, "unbind: a 0-d tensor cannot be unbound");
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < x.size(axis); ++i) parts.push_back(select(x, axis, i));
  return parts;
}

Tensor unfold(const Tensor& x, int64_t axis, int64_t size, int64_t step) {
  check(x.ndim() > 0, "unfold: expected at least 1 dimension");
  axis = normalize_axis("unfold", axis, x.ndim());
  check(size >= 0 && size <= x.shape()[axis], "unfold: windows of ", size, " do not fit dim ", axis, " of size ",
        x.shape()[axis]);
  check(step > 0, "unfold: expected a step > 0, got ", step);
  Dims shape = x.shape(), strides = x.strides();
  shape[axis] = (x.shape()[axis] - size) / step + 1;
  strides[axis] *= step;
  shape.push_back(size);
  strides.push_back(x.strides()[axis]);
  Tensor y = alias(x, shape, strides, x.offset());
  return record("unfold", y, {x}, [axis, step, from = x.shape()](Backward& b) {
    // Windows overlap, so they are added one by one.
    const Tensor dy = b.grad();
    Tensor dx = zeros(from, dy.dtype(), dy.device());
    const int64_t windows = dy.shape()[axis], size = dy.shape().back();
    for (int64_t i = 0; i < windows; ++i)
      add_(narrow(dx, axis, i * step, size), movedim(select(dy, axis, i), {-1}, {axis}));
    b.set(0, dx);
  });
}

}  // namespace fastnn
