// Views: other shapes and strides over the same storage. No data moves; the backward of each is
// another view, or a copy into zeros.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace fastnn {

// One size may be -1. `view` throws when the strides do not allow it, `reshape` copies then.
Tensor view(const Tensor& x, const Dims& shape);
Tensor reshape(const Tensor& x, const Dims& shape);
// The same bytes as elements of another type of the same size. Has no gradient.
Tensor view_as_type(const Tensor& x, DType dtype);
Tensor flatten(const Tensor& x, int64_t start, int64_t end);
Tensor unflatten(const Tensor& x, int64_t axis, const Dims& sizes);
Tensor permute(const Tensor& x, const Dims& order);
Tensor transpose(const Tensor& x, int64_t axis_a, int64_t axis_b);
Tensor movedim(const Tensor& x, const Dims& from, const Dims& to);
Tensor expand(const Tensor& x, const Dims& shape);  // -1 keeps a size
Tensor expand_to(const Tensor& x, const Dims& shape);
Tensor squeeze(const Tensor& x);
Tensor squeeze(const Tensor& x, const Dims& axes);
Tensor unsqueeze(const Tensor& x, int64_t axis);
Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t stop, int64_t step);  // Python's clipping rules
Tensor narrow(const Tensor& x, int64_t axis, int64_t start, int64_t length);
Tensor select(const Tensor& x, int64_t axis, int64_t index);
Tensor diagonal(const Tensor& x, int64_t offset, int64_t axis_a, int64_t axis_b);
std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int64_t axis);
std::vector<Tensor> split_size(const Tensor& x, int64_t size, int64_t axis);
std::vector<Tensor> chunk(const Tensor& x, int64_t chunks, int64_t axis);
std::vector<Tensor> unbind(const Tensor& x, int64_t axis);
// Windows of `size` every `step` along an axis, as a new last axis.
Tensor unfold(const Tensor& x, int64_t axis, int64_t size, int64_t step);
// The shape with its -1 filled in for `numel` elements.
Dims infer_shape(const char* op, const Dims& shape, int64_t numel);

}  // namespace fastnn
