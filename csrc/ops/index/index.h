// Reading and writing by index tensors: embedding, gather, scatter, index_select, masks, x[...].
//
//   read    out[p] = x[offset(p)]                p runs over the walk's shape
//   write   x[offset(p)] = or += source[p]       offset(p) = sum_axis p[axis] * x_stride[axis]
//                                                          + sum_k index_k[p] * x_stride of k's dim
//
// Index tensors are of any integer type; a value out of range is an IndexError with its position, the
// dim and the size. In x[...] negative values count from the end. Where a write meets a place several
// times, the last assignment wins and additions are made in the order of p: bit-equal for any thread
// count.
#pragma once

#include <optional>
#include <vector>

#include "core/kernel.h"
#include "core/scalar.h"

namespace fastnn {

// wrapped[i] = index[i], plus size where it is negative and from_end (on a GPU 0 where it is out of range); *first_bad
// = the first i out of range, or -1.
struct IndexWrapArgs {
  const void* index;  // contiguous, any integer type
  DType dtype;
  int64_t* wrapped;
  int64_t n;
  int64_t size;
  bool from_end;
  int64_t* first_bad;
};
extern Kernel<IndexWrapArgs> index_wrap;

// Walk axes come outermost first. An axis with a non-zero x_stride runs along a dim of x that no index
// tensor addresses: positions that differ there never meet.
struct IndexWalkArgs {
  void* x;
  void* other;  // what is read into, or written from
  int ndim;
  int64_t shape[kMaxDims];
  int64_t x_strides[kMaxDims];  // elements
  int64_t other_strides[kMaxDims];
  int n_indices;
  const int64_t* index[kMaxDims];  // wrapped
  int64_t index_strides[kMaxDims][kMaxDims];
  int64_t step[kMaxDims];  // x's stride of the dim that index k addresses
  int64_t item_size;       // of both
  bool accumulate;         // write: add in `dtype` (float32, float64 or int64) instead of assigning
  DType dtype;
};
extern Kernel<IndexWalkArgs> index_read;
extern Kernel<IndexWalkArgs> index_write;

// Coordinates of the set elements of a contiguous mask. First call (coordinates null): counts[chunk] of
// kNonzeroChunk elements each. Second call: counts holds each chunk's first place, and `coordinates` is
// (ndim, total).
constexpr int64_t kNonzeroChunk = 32768;
struct NonzeroArgs {
  const bool* mask;
  int ndim;  // at least 1
  int64_t shape[kMaxDims];
  int64_t n;
  int64_t* counts;
  int64_t* coordinates;
  int64_t total;
};
extern Kernel<NonzeroArgs> index_nonzero;

// ids of any shape S -> (S..., D). The row padding_idx gets no gradient.
Tensor embedding(const Tensor& ids, const Tensor& weight, std::optional<int64_t> padding_idx = {});
Tensor index_select(const Tensor& x, int64_t axis, const Tensor& index);
// out[i, j, k] = x[i, index[i, j, k], k] for axis 1; index has x's dimensions and is no larger off the axis.
Tensor gather(const Tensor& x, int64_t axis, const Tensor& index);
// gather with x and index broadcast against each other off the axis; no axis: of the flattened x.
Tensor take_along_dim(const Tensor& x, const Tensor& index, std::optional<int64_t> axis);
// x[i, index[i, j, k], k] = or += source[i, j, k]; source is a tensor at least as large as index, or a number.
Tensor scatter(const Tensor& x, int64_t axis, const Tensor& index, const Operand& source);
Tensor scatter_(const Tensor& x, int64_t axis, const Tensor& index, const Operand& source);
Tensor scatter_add(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source);
Tensor scatter_add_(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source);
// x.select(axis, index[i]) += source.select(axis, i)
Tensor index_add(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source);
Tensor index_add_(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source);

Tensor one_hot(const Tensor& ids, int64_t n_classes = -1);  // int64; -1: the largest id + 1
Tensor masked_fill(const Tensor& x, const Tensor& mask, const Scalar& value);
Tensor masked_fill_(const Tensor& x, const Tensor& mask, const Scalar& value);
Tensor masked_select(const Tensor& x, const Tensor& mask);
Tensor nonzero(const Tensor& x);                        // (count, ndim) int64
std::vector<Tensor> nonzero_as_tuple(const Tensor& x);  // ndim tensors of (count,)

// x[indices]: one entry per leading dim, an undefined one keeps its dim whole, a bool mask covers as
// many dims as it has. Index tensors broadcast; the result has their shape where they stood, or first
// when something stands between them.
Tensor index(const Tensor& x, const std::vector<Tensor>& indices);
// x[indices] = value, or += with accumulate; value broadcasts.
Tensor index_put(const Tensor& x, const std::vector<Tensor>& indices, const Tensor& value, bool accumulate = false);
Tensor index_put_(const Tensor& x, const std::vector<Tensor>& indices, const Tensor& value, bool accumulate = false);

}  // namespace fastnn
