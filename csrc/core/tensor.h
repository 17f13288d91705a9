// Tensor: an intrusive pointer to a strided view of a Storage. Copying a Tensor copies the pointer.
//
// Metadata lives inline (up to 8 dimensions, no heap); views share storage. Strides and offset
// count elements. What autograd needs beyond a flag hangs off `autograd`, absent on most tensors.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>

#include "core/check.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/memory.h"

namespace fastnn {

constexpr int kMaxDims = 8;

// Sizes, strides or axes: up to eight numbers, inline.
class Dims {
 public:
  Dims() = default;
  Dims(std::initializer_list<int64_t> values);
  Dims(const int64_t* values, int64_t count);
  static Dims filled(int64_t count, int64_t value);

  int size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int64_t& operator[](int64_t i) { return values_[i]; }
  int64_t operator[](int64_t i) const { return values_[i]; }
  const int64_t* data() const { return values_; }
  const int64_t* begin() const { return values_; }
  const int64_t* end() const { return values_ + size_; }
  int64_t* begin() { return values_; }
  int64_t* end() { return values_ + size_; }
  int64_t back() const { return values_[size_ - 1]; }

  void push_back(int64_t value);  // throws ValueError beyond 8
  void insert(int position, int64_t value);
  void erase(int position);
  bool contains(int64_t value) const;
  bool operator==(const Dims& other) const;
  bool operator!=(const Dims& other) const { return !(*this == other); }

 private:
  int64_t values_[kMaxDims] = {};
  int size_ = 0;
};
std::ostream& operator<<(std::ostream& out, const Dims& dims);  // (2, 3), (4,), ()

// The product of the sizes. Throws ValueError for a negative size, MemoryError beyond int64.
int64_t checked_numel(const Dims& shape);
// Row-major strides of a shape.
Dims contiguous_strides(const Dims& shape);
// -1 means the last axis; throws IndexError naming the operation when out of range.
int64_t normalize_axis(const char* op, int64_t axis, int64_t ndim);
// The shape two shapes broadcast to, by numpy's rules. Throws ValueError naming both.
Dims broadcast_shapes(const char* op, const Dims& a, const Dims& b);

// The order of the elements in memory: row-major (N, C, H, W), or of images with the channels last (N, H, W, C).
// Preserve asks for the order of the tensor that the new one is made of.
enum class MemoryFormat : uint8_t { Contiguous, ChannelsLast, Preserve };

class Tensor;
struct AutogradMeta;
void free_autograd_meta(AutogradMeta* meta);

struct TensorImpl {
  std::atomic<int32_t> references{0};
  DType dtype = DType::Float32;
  bool requires_grad = false;  // set on leaves by the user, on results by autograd
  Storage* storage = nullptr;
  int64_t offset = 0;
  int64_t numel = 0;
  Dims shape;
  Dims strides;
  AutogradMeta* autograd = nullptr;
  void* python_object = nullptr;  // the live wrapper, borrowed; owned by the Python layer
};
void free_tensor(TensorImpl* impl);

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(TensorImpl* impl) : impl_(impl) { retain(); }
  Tensor(const Tensor& other) : impl_(other.impl_) { retain(); }
  Tensor(Tensor&& other) noexcept : impl_(other.impl_) { other.impl_ = nullptr; }
  Tensor& operator=(Tensor other) noexcept {
    std::swap(impl_, other.impl_);
    return *this;
  }
  ~Tensor() {
    if (impl_ && impl_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) free_tensor(impl_);
  }

  bool defined() const { return impl_ != nullptr; }
  explicit operator bool() const = delete;
  TensorImpl* impl() const { return impl_; }
  bool is(const Tensor& other) const { return impl_ == other.impl_; }

  const Dims& shape() const { return impl_->shape; }
  const Dims& strides() const { return impl_->strides; }
  int ndim() const { return impl_->shape.size(); }
  int64_t numel() const { return impl_->numel; }
  int64_t size(int64_t axis) const;  // negative axes count from the end
  int64_t stride(int64_t axis) const;
  int64_t offset() const { return impl_->offset; }
  DType dtype() const { return impl_->dtype; }
  Device device() const { return impl_->storage->device; }
  Storage* storage() const { return impl_->storage; }
  bool is_floating() const { return fastnn::is_floating(impl_->dtype); }
  size_t item_size() const { return fastnn::item_size(impl_->dtype); }
  bool is_contiguous() const;
  bool is_channels_last() const;  // 4-D with NHWC strides
  bool is_dense() const;          // some order of the axes is contiguous
  // The format that the strides name, gaps or not. Sizes of 1 have strides too: where they make the elements of both
  // formats lie alike, these tell which was asked for, as in PyTorch.
  MemoryFormat memory_format() const;
  bool overlaps_itself() const;  // some element is reachable by two indices (expanded views)
  uint32_t version() const { return impl_->storage->version.load(std::memory_order_relaxed); }

  // The first element. `raw` is untyped; `data<T>` trusts that T is the dtype.
  void* raw() const {
    return static_cast<char*>(impl_->storage->data) + impl_->offset * int64_t(fastnn::item_size(impl_->dtype));
  }
  template <class T>
  T* data() const {
    return static_cast<T*>(raw());
  }

  bool requires_grad() const { return impl_->requires_grad; }

 private:
  void retain() {
    if (impl_) impl_->references.fetch_add(1, std::memory_order_relaxed);
  }
  TensorImpl* impl_ = nullptr;
};

// Uninitialised, row-major. Throws ValueError for a bad shape, MemoryError for one too large.
Tensor empty(const Dims& shape, DType dtype, Device device = {});
// ChannelsLast is for 4-D shapes; ValueError for others, and for Preserve.
Tensor empty(const Dims& shape, DType dtype, Device device, MemoryFormat format);
// On the CPU, in memory that a GPU copies from and to while the CPU goes on. DeviceError without CUDA.
Tensor empty_pinned(const Dims& shape, DType dtype, MemoryFormat format);
// Same shape, dtype and device; keeps a dense layout (channels_last, transposed) as it is.
Tensor empty_like(const Tensor& x);
Tensor empty_like(const Tensor& x, DType dtype);
// A new view of the same storage; no autograd. The geometry is trusted.
Tensor alias(const Tensor& x, const Dims& shape, const Dims& strides, int64_t offset);
// The same view without history: shares data and version.
Tensor detach(const Tensor& x);
// A tensor over foreign memory; takes over `storage`.
Tensor from_storage(Storage* storage, const Dims& shape, const Dims& strides, DType dtype);
// Throws ValueError when x is read-only or an expanded view: called by every in-place operation.
void check_writable(const char* op, const Tensor& x);
// Throws DeviceError / TypeError naming both when devices / dtypes differ.
void check_same_device(const char* op, const Tensor& a, const Tensor& b);
void check_same_dtype(const char* op, const Tensor& a, const Tensor& b);

}  // namespace fastnn
