// Masks: masked_fill, masked_select, nonzero; and one_hot.
#include <algorithm>
#include <utility>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/geometry.h"
#include "ops/index/index.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

namespace {

void check_mask(const char* op, const Tensor& x, const Tensor& mask) {
  check<TypeError>(mask.dtype() == DType::Bool, op, ": expected a bool mask, got ", mask.dtype());
  check_same_device(op, x, mask);
}

// The value as x can hold it.
Scalar fill_value(const char* op, const Tensor& x, const Scalar& value) {
  check<TypeError>(x.is_floating() || value.kind != Scalar::Kind::Float, op,
                   ": a float cannot be stored in a tensor of type ", x.dtype());
  return x.dtype() == DType::Bool ? Scalar(value.to_bool()) : value;
}

}  // namespace

Tensor masked_fill(const Tensor& x, const Tensor& mask, const Scalar& value) {
  check_mask("masked_fill", x, mask);
  return where(mask, fill_value("masked_fill", x, value), x);
}

Tensor masked_fill_(const Tensor& x, const Tensor& mask, const Scalar& value) {
  check_inplace("masked_fill_", x, {});
  check_mask("masked_fill_", x, mask);
  check(broadcast_shapes("masked_fill_", x.shape(), mask.shape()) == x.shape(), "masked_fill_: a mask of shape ",
        mask.shape(), " does not broadcast to ", x.shape());
  const Scalar filled = fill_value("masked_fill_", x, value);
  const Tensor where_mask = overlaps(x, mask) ? clone(mask) : mask;
  if (x.numel())
    elementwise_where(x.device(), elementwise_args(0, compute_dtype(x.dtype()), x, {where_mask, filled, x}));
  return record_inplace(
      "masked_fill_", x, {x}, [saved = Saved(mask)](Backward& b) { b.set(0, where(b.get(saved), 0.0, b.grad())); },
      Differentiable::Yes);
}

Tensor masked_select(const Tensor& x, const Tensor& mask) {
  check_mask("masked_select", x, mask);
  Dims shape = broadcast_shapes("masked_select", x.shape(), mask.shape());
  if (shape.empty()) shape.push_back(1);
  return index(expand_to(x, shape), {expand_to(mask, shape)});
}

namespace {

// (max(ndim, 1), count): a row of coordinates for each axis.
Tensor coordinates(const Tensor& x) {
  const Tensor mask = contiguous(x.dtype() == DType::Bool ? x : ne(x, Scalar(0)));
  const int64_t chunks = (mask.numel() + kNonzeroChunk - 1) / kNonzeroChunk;
  Tensor counts = empty({chunks}, DType::Int64, x.device());
  NonzeroArgs args{};
  args.mask = mask.data<bool>();
  args.ndim = std::max(x.ndim(), 1);
  args.shape[0] = 1;
  std::copy(x.shape().begin(), x.shape().end(), args.shape);
  args.n = mask.numel();
  args.counts = counts.data<int64_t>();
  index_nonzero(x.device(), args);
  const Tensor places_of_chunks = to(counts, Device());  // the counts themselves on the CPU
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    args.total += std::exchange(places_of_chunks.data<int64_t>()[chunk], args.total);
  if (!counts.is(places_of_chunks)) copy_into(counts, places_of_chunks);
  Tensor places = empty({args.ndim, args.total}, DType::Int64, x.device());
  args.coordinates = places.data<int64_t>();
  if (args.total) index_nonzero(x.device(), args);
  return places;
}

}  // namespace

std::vector<Tensor> nonzero_as_tuple(const Tensor& x) { return unbind(coordinates(detach(x)), 0); }

Tensor nonzero(const Tensor& x) {
  const Tensor places = coordinates(detach(x));
  return contiguous(transpose(x.ndim() ? places : narrow(places, 0, 0, 0), 0, 1));
}

Tensor one_hot(const Tensor& ids, int64_t n_classes) {
  check<TypeError>(is_integral(ids.dtype()), "one_hot: expected ids of an integer type, got ", ids.dtype());
  check(n_classes >= -1, "one_hot: expected a number of classes >= 0, or -1 to take it from the ids, got ", n_classes);
  check(n_classes >= 0 || ids.numel() > 0, "one_hot: no ids to take the number of classes from; pass num_classes");
  if (ids.numel()) {
    const int64_t lowest = item(min(ids)).to_int(), highest = item(max(ids)).to_int();
    if (n_classes < 0) n_classes = highest + 1;
    check<IndexError>(lowest >= 0 && highest < n_classes, "one_hot: ids from ", lowest, " to ", highest, " do not fit ",
                      n_classes, " classes");
  }
  const Tensor classes = arange(Scalar(0), Scalar(n_classes), Scalar(1), DType::Int64, ids.device());
  return to(eq(unsqueeze(ids, -1), classes), DType::Int64);
}

}  // namespace fastnn
