// Copies: between strides, between types, and of pieces (cat, stack, pad, flip, roll, repeat).
#pragma once

#include <vector>

#include "core/kernel.h"
#include "core/scalar.h"

namespace fastnn {

// dst[i] = src[i] over `shape`, elements of `item_size` bytes copied as they are. Strides count
// elements; source strides may be 0 or negative. The two do not overlap.
struct CopyArgs {
  void* dst;
  const void* src;
  int64_t item_size;  // 1, 2, 4 or 8
  int ndim;
  int64_t numel;
  int64_t shape[kMaxDims];
  int64_t dst_strides[kMaxDims];
  int64_t src_strides[kMaxDims];
};
extern Kernel<CopyArgs> copy_strided;

Tensor contiguous(const Tensor& x);     // x itself when it is row-major
Tensor channels_last(const Tensor& x);  // x itself when its channels are last; ValueError unless it is 4-D
Tensor contiguous(const Tensor& x, MemoryFormat format);
// A copy: in x's dense layout unless another format is asked for.
Tensor clone(const Tensor& x, MemoryFormat format = MemoryFormat::Preserve);
// x itself when its strides name that format already.
Tensor to(const Tensor& x, MemoryFormat format);
Tensor to(const Tensor& x, DType dtype);  // x itself when the type is the same
// Copies between pinned memory of the CPU and a GPU may be `non_blocking`: the CPU goes on meanwhile.
Tensor to(const Tensor& x, Device device, bool non_blocking = false);
Tensor pin_memory(const Tensor& x);                                               // x itself when it is pinned
void copy_into(const Tensor& dst, const Tensor& src, bool non_blocking = false);  // broadcasts, converts; no autograd
Tensor copy_(const Tensor& dst, const Tensor& src, bool non_blocking = false);    // the same, recorded
void fill_into(const Tensor& x, Scalar value);                                    // no autograd, no version
Tensor fill_(const Tensor& x, Scalar value);
Scalar item(const Tensor& x);  // the value of a one-element tensor

Tensor cat(const std::vector<Tensor>& xs, int64_t axis);
Tensor stack(const std::vector<Tensor>& xs, int64_t axis);
// amounts: (before, after) pairs from the last axis backwards, as in torch.nn.functional.pad; mode
// "constant", "reflect", "replicate" or "circular". Negative amounts of a constant pad crop.
Tensor pad(const Tensor& x, const Dims& amounts, const std::string& mode, double value);
Tensor flip(const Tensor& x, const Dims& axes);
Tensor roll(const Tensor& x, const Dims& shifts, const Dims& axes);  // no axes: the flattened tensor
Tensor repeat(const Tensor& x, const Dims& counts);
Tensor repeat_interleave(const Tensor& x, int64_t count, int64_t axis);
Tensor tril(const Tensor& x, int64_t diagonal);
Tensor triu(const Tensor& x, int64_t diagonal);

}  // namespace fastnn
