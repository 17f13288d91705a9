#include "core/tensor.h"

#include <algorithm>
#include <cstring>

#include "core/autograd.h"
#include "core/cuda.h"

namespace fastnn {

// ---------------------------------------------------------------------------------------- Dims

Dims::Dims(std::initializer_list<int64_t> values) : Dims(values.begin(), int64_t(values.size())) {}

Dims::Dims(const int64_t* values, int64_t count) {
  check(count <= kMaxDims, "a tensor has at most ", kMaxDims, " dimensions, got ", count);
  std::copy(values, values + count, values_);
  size_ = int(count);
}

Dims Dims::filled(int64_t count, int64_t value) {
  Dims dims;
  for (int64_t i = 0; i < count; ++i) dims.push_back(value);
  return dims;
}

void Dims::push_back(int64_t value) {
  check(size_ < kMaxDims, "a tensor has at most ", kMaxDims, " dimensions");
  values_[size_++] = value;
}

void Dims::insert(int position, int64_t value) {
  push_back(value);
  std::rotate(values_ + position, values_ + size_ - 1, values_ + size_);
}

void Dims::erase(int position) {
  std::copy(values_ + position + 1, values_ + size_, values_ + position);
  --size_;
}

bool Dims::contains(int64_t value) const { return std::find(begin(), end(), value) != end(); }

bool Dims::operator==(const Dims& other) const {
  return size_ == other.size_ && std::equal(begin(), end(), other.begin());
}

std::ostream& operator<<(std::ostream& out, const Dims& dims) {
  out << '(';
  for (int i = 0; i < dims.size(); ++i) out << (i ? ", " : "") << dims[i];
  return out << (dims.size() == 1 ? ",)" : ")");
}

int64_t checked_numel(const Dims& shape) {
  int64_t numel = 1;
  bool overflow = false, zero = false;
  for (int64_t size : shape) {
    check(size >= 0, "expected sizes >= 0, got shape ", shape);
    zero |= size == 0;
    overflow |= __builtin_mul_overflow(numel, std::max<int64_t>(size, 1), &numel);
  }
  if (zero) return 0;
  check<MemoryError>(!overflow, "shape ", shape, " holds more elements than a 64-bit integer counts");
  return numel;
}

Dims contiguous_strides(const Dims& shape) {
  Dims strides = shape;
  int64_t step = 1;
  for (int i = shape.size() - 1; i >= 0; --i) {
    strides[i] = step;
    // Unsigned: an empty tensor may name sizes whose product overflows, and its strides are unused.
    step = int64_t(uint64_t(step) * uint64_t(std::max<int64_t>(shape[i], 1)));
  }
  return strides;
}

int64_t normalize_axis(const char* op, int64_t axis, int64_t ndim) {
  const int64_t range = std::max<int64_t>(ndim, 1);  // a scalar accepts 0 and -1
  check<IndexError>(axis >= -range && axis < range, op, ": dim ", axis, " is out of range for ", ndim,
                    " dimensions (expected ", -range, " to ", range - 1, ")");
  return axis < 0 ? axis + range : axis;
}

Dims broadcast_shapes(const char* op, const Dims& a, const Dims& b) {
  const int ndim = std::max(a.size(), b.size());
  Dims shape = Dims::filled(ndim, 1);
  for (int i = 1; i <= ndim; ++i) {
    const int64_t from_a = i <= a.size() ? a[a.size() - i] : 1;
    const int64_t from_b = i <= b.size() ? b[b.size() - i] : 1;
    check(from_a == from_b || from_a == 1 || from_b == 1, op, ": shapes ", a, " and ", b, " do not broadcast: sizes ",
          from_a, " and ", from_b, " differ at dim ", ndim - i, " and neither is 1");
    shape[ndim - i] = from_a == 1 ? from_b : from_a;
  }
  return shape;
}

// -------------------------------------------------------------------------------------- Tensor

void free_tensor(TensorImpl* impl) {
  if (impl->autograd) free_autograd_meta(impl->autograd);
  if (impl->storage->references.fetch_sub(1, std::memory_order_acq_rel) == 1) free_storage(impl->storage);
  delete impl;
}

namespace {

Tensor make_tensor(Storage* storage, const Dims& shape, const Dims& strides, int64_t offset, DType dtype,
                   int64_t numel) {
  auto* impl = new TensorImpl;
  storage->references.fetch_add(1, std::memory_order_relaxed);
  impl->storage = storage;
  impl->dtype = dtype;
  impl->offset = offset;
  impl->numel = numel;
  impl->shape = shape;
  impl->strides = strides;
  return Tensor(impl);
}

size_t size_in_bytes(const Dims& shape, int64_t numel, DType dtype) {
  int64_t bytes = 0;
  check<MemoryError>(!__builtin_mul_overflow(numel, int64_t(item_size(dtype)), &bytes), "a tensor of shape ", shape,
                     " and type ", dtype, " needs more bytes than a 64-bit integer counts");
  return size_t(bytes);
}

Tensor empty_strided(const Dims& shape, const Dims& strides, int64_t numel, DType dtype, Device device) {
  return make_tensor(allocate_storage(size_in_bytes(shape, numel, dtype), device), shape, strides, 0, dtype, numel);
}

Dims strides_of(const Dims& shape, MemoryFormat format) {
  if (format == MemoryFormat::Contiguous) return contiguous_strides(shape);
  check(format == MemoryFormat::ChannelsLast, "empty: preserve_format needs a tensor to take the format from");
  check(shape.size() == 4, "channels_last: expected 4 dimensions, got shape ", shape);
  const Dims pixels = contiguous_strides({shape[0], shape[2], shape[3], shape[1]});
  return {pixels[0], pixels[3], pixels[1], pixels[2]};
}

constexpr int kChannelsLast[] = {1, 3, 2, 0};  // the axes of an image, the fastest first

}  // namespace

int64_t Tensor::size(int64_t axis) const { return shape()[normalize_axis("size", axis, ndim())]; }
int64_t Tensor::stride(int64_t axis) const { return strides()[normalize_axis("stride", axis, ndim())]; }

bool Tensor::is_contiguous() const {
  if (numel() == 0) return true;
  int64_t step = 1;
  for (int i = ndim() - 1; i >= 0; --i) {
    if (shape()[i] != 1 && strides()[i] != step) return false;
    step *= shape()[i];
  }
  return true;
}

bool Tensor::is_channels_last() const {
  if (ndim() != 4) return false;
  int64_t step = 1;
  for (int axis : kChannelsLast) {
    if (shape()[axis] != 1 && strides()[axis] != step) return false;
    step *= shape()[axis];
  }
  return true;
}

bool Tensor::is_dense() const {
  if (is_contiguous()) return true;
  Dims order;
  for (int i = 0; i < ndim(); ++i)
    if (shape()[i] != 1) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides()[a] < strides()[b]; });
  int64_t step = 1;
  for (int64_t axis : order) {
    if (strides()[axis] != step) return false;
    step *= shape()[axis];
  }
  return true;
}

MemoryFormat Tensor::memory_format() const {
  if (ndim() != 4 || numel() == 0 || strides()[1] == 0) return MemoryFormat::Contiguous;
  int64_t least = 0;
  for (int axis : kChannelsLast) {
    // The second: of (N, 1, 1, 1) nothing tells the formats apart.
    if (strides()[axis] < least || (axis == 0 && least == strides()[1])) return MemoryFormat::Contiguous;
    least = strides()[axis] * shape()[axis];
  }
  return MemoryFormat::ChannelsLast;
}

bool Tensor::overlaps_itself() const {
  if (numel() < 2 || is_contiguous()) return false;
  // Sorted by stride, each axis must step over everything that the smaller ones reach.
  Dims order;
  for (int i = 0; i < ndim(); ++i)
    if (shape()[i] != 1) order.push_back(i);
  auto reach = [&](int64_t axis) { return std::abs(strides()[axis]); };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return reach(a) < reach(b); });
  int64_t extent = 0;
  for (int64_t axis : order) {
    if (reach(axis) <= extent) return true;
    extent += reach(axis) * (shape()[axis] - 1);
  }
  return false;
}

Tensor empty(const Dims& shape, DType dtype, Device device) {
  return empty_strided(shape, contiguous_strides(shape), checked_numel(shape), dtype, device);
}

Tensor empty(const Dims& shape, DType dtype, Device device, MemoryFormat format) {
  return empty_strided(shape, strides_of(shape, format), checked_numel(shape), dtype, device);
}

Tensor empty_pinned(const Dims& shape, DType dtype, MemoryFormat format) {
  const Dims strides = strides_of(shape, format);
  const int64_t numel = checked_numel(shape);
  return make_tensor(allocate_pinned(size_in_bytes(shape, numel, dtype)), shape, strides, 0, dtype, numel);
}

Tensor empty_like(const Tensor& x) { return empty_like(x, x.dtype()); }

Tensor empty_like(const Tensor& x, DType dtype) {
  const MemoryFormat format = x.memory_format();
  if (format == MemoryFormat::ChannelsLast || x.is_contiguous() || !x.is_dense())
    return empty(x.shape(), dtype, x.device(), format);
  return empty_strided(x.shape(), x.strides(), x.numel(), dtype, x.device());
}

Tensor alias(const Tensor& x, const Dims& shape, const Dims& strides, int64_t offset) {
  return make_tensor(x.storage(), shape, strides, offset, x.dtype(), checked_numel(shape));
}

Tensor detach(const Tensor& x) { return alias(x, x.shape(), x.strides(), x.offset()); }

Tensor from_storage(Storage* storage, const Dims& shape, const Dims& strides, DType dtype) {
  return make_tensor(storage, shape, strides, 0, dtype, checked_numel(shape));
}

void check_writable(const char* op, const Tensor& x) {
  check(!x.storage()->read_only, op, ": the tensor shares read-only memory; write to a copy (x.clone()) instead");
  check(!x.overlaps_itself(), op, ": a tensor of shape ", x.shape(), " and strides ", x.strides(),
        " has several indices for one element and cannot be written in place; write to x.clone() instead");
}

void check_same_device(const char* op, const Tensor& a, const Tensor& b) {
  check<DeviceError>(a.device() == b.device(), op, ": expected tensors on one device, got one of shape ", a.shape(),
                     " on ", a.device(), " and one of shape ", b.shape(), " on ", b.device(), "; move one with .to()");
}

void check_same_dtype(const char* op, const Tensor& a, const Tensor& b) {
  check<TypeError>(a.dtype() == b.dtype(), op, ": expected tensors of one dtype, got ", a.dtype(), " and ", b.dtype());
}

}  // namespace fastnn
