// From tensors to the strided loops of the kernels: broadcasting, and dropping and merging axes.
#pragma once

#include <initializer_list>

#include "ops/elementwise/elementwise.h"

namespace fastnn {

// Fills ElementwiseArgs: inputs broadcast to the output's shape, axes sorted by the output's strides,
// axes of size 1 dropped, neighbours that are contiguous in every operand merged.
ElementwiseArgs elementwise_args(int32_t op, DType compute, const Tensor& out, std::initializer_list<Operand> inputs);

// Do the two share memory in any way but as exactly the same view?
bool overlaps(const Tensor& a, const Tensor& b);

}  // namespace fastnn
