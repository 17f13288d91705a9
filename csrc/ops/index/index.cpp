#include "ops/index/index.h"

#include <algorithm>

#include "core/autograd.h"
#include "core/found.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/index/walk.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<IndexWrapArgs> index_wrap{"index_wrap"};
Kernel<IndexWalkArgs> index_read{"index_read"};
Kernel<IndexWalkArgs> index_write{"index_write"};
Kernel<NonzeroArgs> index_nonzero{"nonzero"};

// ------------------------------------------------------------------------------------------ the walk

namespace {

Dims unravel(int64_t position, const Dims& shape) {
  Dims place = shape;
  for (int axis = shape.size() - 1; axis >= 0; --axis) {
    place[axis] = position % shape[axis];
    position /= shape[axis];
  }
  return place;
}

}  // namespace

void check_index_type(const char* op, const Tensor& x, const Tensor& index) {
  check<TypeError>(is_integral(index.dtype()), op, ": expected an index of an integer type, got ", index.dtype());
  check_same_device(op, x, index);
}

void IndexWalk::add_index(const char* op, const Tensor& index, int64_t dim, bool from_end, const Dims& strides) {
  const Tensor values = contiguous(index);
  Tensor wrapped = empty(index.shape(), DType::Int64, index.device());
  const auto message = [op, values, dim, size = x_shape[dim]](int64_t place) {
    const int64_t bad = item(select(flatten(values, 0, -1), 0, place)).to_int();
    return str(op, ": index ", bad, " at position ", unravel(place, values.shape()),
               " of the index tensor is out of range for dim ", dim, " of size ", size);
  };
  IndexWrapArgs args{values.raw(), values.dtype(), wrapped.data<int64_t>(), values.numel(), x_shape[dim],
                     from_end,     nullptr};
  if (index.device().is_cuda()) {
    // Kernels behind this one read and write at place 0 instead, which must be there.
    if (args.size == 0 && args.n > 0) fail<IndexError>(message(0));
    const Tensor first_bad = empty({}, DType::Int64, index.device());
    args.first_bad = first_bad.data<int64_t>();
    index_wrap(index.device(), args);
    check_none_found(first_bad, message);
  } else {
    int64_t first_bad = -1;
    args.first_bad = &first_bad;
    index_wrap(index.device(), args);
    if (first_bad >= 0) fail<IndexError>(message(first_bad));
  }
  indices.push_back({wrapped, dim, strides});
}

namespace {

// Drops axes of size 1 and merges neighbours that are contiguous in everything.
void simplify(IndexWalkArgs& args) {
  auto move = [&](int to, int from) {
    args.shape[to] = args.shape[from];
    args.x_strides[to] = args.x_strides[from];
    args.other_strides[to] = args.other_strides[from];
    for (int k = 0; k < args.n_indices; ++k) args.index_strides[k][to] = args.index_strides[k][from];
  };
  auto mergeable = [&](int outer, int inner) {
    auto fits = [&](const int64_t* strides) { return strides[outer] == strides[inner] * args.shape[inner]; };
    bool all = fits(args.x_strides) && fits(args.other_strides);
    for (int k = 0; k < args.n_indices; ++k) all &= fits(args.index_strides[k]);
    return all;
  };
  int kept = 0;
  for (int axis = 0; axis < args.ndim; ++axis) {
    if (args.shape[axis] == 1) continue;
    if (kept > 0 && mergeable(kept - 1, axis)) {
      const int64_t outer = args.shape[kept - 1];
      move(kept - 1, axis);
      args.shape[kept - 1] *= outer;
    } else {
      move(kept++, axis);
    }
  }
  if (kept == 0) {  // a single element is a row of one
    move(0, 0);
    args.shape[0] = 1;
    args.x_strides[0] = args.other_strides[0] = 0;
    for (int k = 0; k < args.n_indices; ++k) args.index_strides[k][0] = 0;
  }
  args.ndim = std::max(kept, 1);
}

IndexWalkArgs walk_args(const IndexWalk& walk, const Tensor& x, const Tensor& other) {
  IndexWalkArgs args{};
  args.x = x.raw();
  args.other = other.raw();
  args.item_size = int64_t(x.item_size());
  args.dtype = x.dtype();
  args.ndim = walk.shape.size();
  args.n_indices = int(walk.indices.size());
  for (int axis = 0; axis < args.ndim; ++axis) {
    args.shape[axis] = walk.shape[axis];
    args.x_strides[axis] = walk.x_dim[axis] < 0 ? 0 : x.strides()[walk.x_dim[axis]];
    args.other_strides[axis] = other.strides()[axis];
  }
  for (int k = 0; k < args.n_indices; ++k) {
    const IndexWalk::Index& index = walk.indices[size_t(k)];
    args.index[k] = index.wrapped.data<int64_t>();
    args.step[k] = x.strides()[index.dim];
    std::copy(index.strides.begin(), index.strides.end(), args.index_strides[k]);
  }
  simplify(args);
  return args;
}

// x[...] = or += source, without autograd. The 16-bit floats and small integers add in a wider copy.
void write_into(const Tensor& x, const IndexWalk& walk, const Tensor& source, bool accumulate) {
  const DType wide = accumulate ? compute_dtype(x.dtype()) : x.dtype();
  const Tensor target = to(x, wide);
  Tensor from = expand_to(to(source, wide), walk.shape);
  if (from.storage() == target.storage()) from = clone(from);
  if (checked_numel(walk.shape) == 0) return;
  IndexWalkArgs args = walk_args(walk, target, from);
  args.accumulate = accumulate;
  index_write(x.device(), args);
  if (!target.is(x)) copy_into(x, target);
}

// The gradient of an assignment with respect to what was there: dy, and 0 where it was overwritten.
Tensor zero_places(const IndexWalk& walk, const Tensor& dy) {
  Tensor dx = clone(detach(dy));
  write_into(dx, walk, scalar_tensor(Scalar(0.0), dy.dtype(), dy.device()), false);
  return record(
      "index_put", dx, {dy}, [walk](Backward& b) { b.set(0, zero_places(walk, b.grad())); }, Differentiable::Yes);
}

}  // namespace

Tensor read_places(const char* op, const IndexWalk& walk, const Tensor& x) {
  Tensor y = empty(walk.shape, x.dtype(), x.device());
  if (y.numel()) index_read(x.device(), walk_args(walk, x, y));
  return record(op, y, {x}, [walk, op](Backward& b) { b.set(0, add_places(op, walk, b.grad())); }, Differentiable::Yes);
}

Tensor add_places(const char* op, const IndexWalk& walk, const Tensor& dy) {
  Tensor dx = zeros(walk.x_shape, compute_dtype(dy.dtype()), dy.device());
  {
    GradMode off(false);
    write_into(dx, walk, dy, true);
    dx = to(dx, dy.dtype());
  }
  return record(
      op, dx, {dy}, [walk, op](Backward& b) { b.set(0, read_places(op, walk, b.grad())); }, Differentiable::Yes);
}

Tensor write_places_(const char* op, const Tensor& x, const IndexWalk& walk, const Tensor& value, bool accumulate) {
  check_inplace(op, x, {value});
  check_same_device(op, x, value);
  check<TypeError>(x.is_floating() || !value.is_floating(), op, ": a value of type ", value.dtype(),
                   " cannot be stored in a tensor of type ", x.dtype());
  check(broadcast_shapes(op, walk.shape, value.shape()) == walk.shape, op, ": a value of shape ", value.shape(),
        " does not broadcast to the indexed shape ", walk.shape);
  {
    GradMode off(false);
    write_into(x, walk, value, accumulate);
  }
  return record_inplace(
      op, x, {x, value},
      [walk, op, accumulate, shape = value.shape(), dtype = value.dtype()](Backward& b) {
        const Tensor dy = b.grad();
        if (b.needs(0)) b.set(0, accumulate ? dy : zero_places(walk, dy));
        if (b.needs(1)) b.set(1, to(sum_to(read_places(op, walk, dy), shape), dtype));
      },
      Differentiable::Yes);
}

// ----------------------------------------------------------------------------------- along one axis

namespace {

// index[i] replaces the coordinate of `axis`; the other axes are x's own.
IndexWalk select_walk(const char* op, const Tensor& x, int64_t axis, const Tensor& index) {
  check_index_type(op, x, index);
  check(index.ndim() <= 1, op, ": expected an index of at most 1 dimension, got shape ", index.shape());
  IndexWalk walk;
  walk.x_shape = walk.shape = x.shape();
  for (int i = 0; i < x.ndim(); ++i) walk.x_dim.push_back(i == axis ? -1 : i);
  walk.shape[axis] = index.numel();
  Dims strides = Dims::filled(x.ndim(), 0);
  strides[axis] = 1;
  walk.add_index(op, index, axis, false, strides);
  return walk;
}

// index[i, j, ...] replaces the coordinate of `axis`; index has all axes.
IndexWalk gather_walk(const char* op, const Tensor& x, int64_t axis, const Tensor& index) {
  check_index_type(op, x, index);
  check(index.ndim() == x.ndim(), op, ": expected an index of ", x.ndim(), " dimensions, as shape ", x.shape(),
        " has, got shape ", index.shape());
  IndexWalk walk;
  walk.x_shape = x.shape();
  walk.shape = index.shape();
  for (int i = 0; i < x.ndim(); ++i) {
    check(i == axis || index.shape()[i] <= x.shape()[i], op, ": an index of shape ", index.shape(),
          " reaches beyond shape ", x.shape(), " in dim ", i, " (dim ", axis, " is the indexed one)");
    walk.x_dim.push_back(i == axis ? -1 : i);
  }
  walk.add_index(op, index, axis, false, contiguous_strides(index.shape()));
  return walk;
}

Tensor at_least_1d(const Tensor& x) { return x.ndim() ? x : reshape(x, {1}); }

}  // namespace

Tensor embedding(const Tensor& ids, const Tensor& weight, std::optional<int64_t> padding_idx) {
  check(weight.ndim() == 2, "embedding: expected a weight of 2 dimensions, got shape ", weight.shape());
  check_index_type("embedding", weight, ids);
  const int64_t n_rows = weight.shape()[0];
  check(!padding_idx || (*padding_idx >= -n_rows && *padding_idx < n_rows), "embedding: padding_idx ",
        padding_idx.value_or(0), " is out of range for a table of ", n_rows, " rows");
  IndexWalk walk;
  walk.x_shape = weight.shape();
  walk.shape = ids.shape();
  walk.shape.push_back(weight.shape()[1]);
  walk.x_dim = Dims::filled(ids.ndim(), -1);
  walk.x_dim.push_back(1);
  Dims strides = contiguous_strides(ids.shape());
  strides.push_back(0);
  walk.add_index("embedding", ids, 0, false, strides);
  if (!padding_idx || !needs_grad({weight})) return read_places("embedding", walk, weight);
  // The padding row's gradient is cut at the result.
  const int64_t padding = *padding_idx < 0 ? *padding_idx + n_rows : *padding_idx;
  const Tensor kept = unsqueeze(ne(ids, Scalar(padding)), -1);
  const Tensor y = read_places("embedding", walk, weight);
  return where(kept, y, detach(y));
}

Tensor index_select(const Tensor& x, int64_t axis, const Tensor& index) {
  axis = normalize_axis("index_select", axis, x.ndim());
  if (x.ndim() == 0) {
    const Tensor y = index_select(reshape(x, {1}), 0, index);
    check(y.numel() == 1, "index_select: a 0-d tensor takes one index, got ", index.shape());
    return reshape(y, {});
  }
  return read_places("index_select", select_walk("index_select", x, axis, index), x);
}

Tensor gather(const Tensor& x, int64_t axis, const Tensor& index) {
  axis = normalize_axis("gather", axis, x.ndim());
  if (x.ndim() == 0 || index.ndim() == 0)
    return reshape(gather(at_least_1d(x), axis, at_least_1d(index)), index.shape());
  return read_places("gather", gather_walk("gather", x, axis, index), x);
}

Tensor take_along_dim(const Tensor& x, const Tensor& index, std::optional<int64_t> axis) {
  if (!axis) return gather(flatten(x, 0, -1), 0, flatten(index, 0, -1));
  const int64_t dim = normalize_axis("take_along_dim", *axis, x.ndim());
  check(x.ndim() == index.ndim() && x.ndim() > 0, "take_along_dim: expected an index of ", x.ndim(),
        " dimensions, got shape ", index.shape());
  Dims x_shape = x.shape(), index_shape = index.shape();
  x_shape[dim] = index_shape[dim] = 1;
  x_shape = index_shape = broadcast_shapes("take_along_dim", x_shape, index_shape);
  x_shape[dim] = x.shape()[dim];
  index_shape[dim] = index.shape()[dim];
  return gather(expand_to(x, x_shape), dim, expand_to(index, index_shape));
}

namespace {

// The part of a scatter's source that the index covers.
Tensor cover(const char* op, const Tensor& source, const Tensor& index) {
  check(source.ndim() == index.ndim(), op, ": expected a source of ", index.ndim(), " dimensions, got shape ",
        source.shape());
  Tensor part = source;
  for (int i = 0; i < index.ndim(); ++i) {
    check(index.shape()[i] <= source.shape()[i], op, ": an index of shape ", index.shape(),
          " is larger than the source of shape ", source.shape(), " in dim ", i);
    part = narrow(part, i, 0, index.shape()[i]);
  }
  return part;
}

Tensor scatter_into(const char* op, const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source,
                    bool accumulate) {
  axis = normalize_axis(op, axis, x.ndim());
  if (x.ndim() == 0) {
    scatter_into(op, view(x, {1}), 0, at_least_1d(index), source.ndim() ? source : at_least_1d(source), accumulate);
    return x;
  }
  if (index.numel() == 0) return x;
  return write_places_(op, x, gather_walk(op, x, axis, index), source, accumulate);
}

Tensor source_tensor(const char* op, const Tensor& x, const Tensor& index, const Operand& source) {
  if (!source.is_tensor()) {
    check<TypeError>(x.is_floating() || source.scalar.kind != Scalar::Kind::Float, op,
                     ": a float cannot be stored in a tensor of type ", x.dtype());
    return scalar_tensor(source.scalar, x.dtype(), x.device());
  }
  check_same_dtype(op, x, *source.tensor);
  return cover(op, *source.tensor, index);
}

}  // namespace

Tensor scatter_(const Tensor& x, int64_t axis, const Tensor& index, const Operand& source) {
  return scatter_into("scatter_", x, axis, index, source_tensor("scatter_", x, index, source), false);
}
Tensor scatter(const Tensor& x, int64_t axis, const Tensor& index, const Operand& source) {
  return scatter_(clone(x), axis, index, source);
}
Tensor scatter_add_(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source) {
  return scatter_into("scatter_add_", x, axis, index, source_tensor("scatter_add_", x, index, source), true);
}
Tensor scatter_add(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source) {
  return scatter_add_(clone(x), axis, index, source);
}

Tensor index_add_(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source) {
  axis = normalize_axis("index_add_", axis, x.ndim());
  check(x.ndim() > 0, "index_add_: expected at least 1 dimension");
  check_same_dtype("index_add_", x, source);
  const IndexWalk walk = select_walk("index_add_", x, axis, index);
  check(source.shape() == walk.shape, "index_add_: expected a source of shape ", walk.shape, ", got ", source.shape());
  return write_places_("index_add_", x, walk, source, true);
}
Tensor index_add(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source) {
  return index_add_(clone(x), axis, index, source);
}

// ------------------------------------------------------------------------------- several axes: x[...]

namespace {

// Masks become the index tensors of their set positions; (dim, index) pairs in order.
std::vector<std::pair<int64_t, Tensor>> address(const char* op, const Tensor& x, const std::vector<Tensor>& indices) {
  std::vector<std::pair<int64_t, Tensor>> result;
  int64_t dim = 0;
  for (const Tensor& index : indices) {
    const bool mask = index.defined() && index.dtype() == DType::Bool;
    const int64_t covers = mask ? index.ndim() : 1;
    check<IndexError>(dim + covers <= x.ndim(), op, ": too many indices for shape ", x.shape());
    if (!index.defined()) {
      ++dim;
      continue;
    }
    if (!mask) {
      check_index_type(op, x, index);
      result.emplace_back(dim++, index);
      continue;
    }
    check<IndexError>(index.ndim() > 0, op, ": a 0-d mask selects no dim of shape ", x.shape(),
                      "; use x[None] and a mask of 1 dimension");
    check_same_device(op, x, index);
    for (int i = 0; i < index.ndim(); ++i)
      check<IndexError>(index.shape()[i] == x.shape()[dim + i], op, ": a mask of shape ", index.shape(),
                        " does not fit shape ", x.shape(), " at dim ", dim + i);
    for (const Tensor& coordinate : nonzero_as_tuple(index)) result.emplace_back(dim++, coordinate);
  }
  check<IndexError>(!result.empty(), op, ": expected at least one index tensor");
  return result;
}

IndexWalk advanced_walk(const char* op, const Tensor& x, const std::vector<Tensor>& indices) {
  const auto addressed = address(op, x, indices);
  Dims common;
  for (const auto& [dim, index] : addressed) common = broadcast_shapes(op, common, index.shape());
  const int64_t first = addressed.front().first, last = addressed.back().first;
  const bool adjacent = last - first + 1 == int64_t(addressed.size());
  // The dims of the index tensors stand where the first of them stood, or first of all.
  const int64_t place = adjacent ? first : 0;
  IndexWalk walk;
  walk.x_shape = x.shape();
  auto insert_common = [&] {
    for (int64_t size : common) {
      walk.shape.push_back(size);
      walk.x_dim.push_back(-1);
    }
  };
  size_t next = 0;
  if (place == 0) insert_common();
  for (int64_t dim = 0; dim < x.ndim(); ++dim) {
    if (dim == place && place > 0) insert_common();
    if (next < addressed.size() && addressed[next].first == dim) {
      ++next;
    } else {
      walk.shape.push_back(x.shape()[dim]);
      walk.x_dim.push_back(dim);
    }
  }
  for (const auto& [dim, index] : addressed) {
    Dims strides = Dims::filled(walk.shape.size(), 0);
    const Dims own = contiguous_strides(index.shape());
    const int64_t lead = place + common.size() - index.ndim();
    for (int i = 0; i < index.ndim(); ++i) strides[lead + i] = index.shape()[i] == 1 ? 0 : own[i];
    walk.add_index(op, index, dim, true, strides);
  }
  return walk;
}

}  // namespace

Tensor index(const Tensor& x, const std::vector<Tensor>& indices) {
  return read_places("index", advanced_walk("index", x, indices), x);
}
Tensor index_put_(const Tensor& x, const std::vector<Tensor>& indices, const Tensor& value, bool accumulate) {
  return write_places_("index_put_", x, advanced_walk("index_put_", x, indices), value, accumulate);
}
Tensor index_put(const Tensor& x, const std::vector<Tensor>& indices, const Tensor& value, bool accumulate) {
  return index_put_(clone(x), indices, value, accumulate);
}

}  // namespace fastnn
