// Reading and writing by index tensors: embedding, gather, scatter, index_select, masks.
#pragma once

#include "core/kernel.h"
#include "core/scalar.h"

namespace fastnn {

Tensor index_select(const Tensor& x, int64_t axis, const Tensor& index);

}  // namespace fastnn
