// The two layouts that normalizations of (N, C, ...) take as they are: row-major, and with the channels last.
#pragma once

#include "core/tensor.h"

namespace fastnn {

// Of any rank: (N, ..., C) in memory.
bool has_channels_last(const Tensor& x);

// x without history, row-major or with its channels last.
Tensor dense(const Tensor& x);

// The same with the strides of `model`, which is dense.
Tensor dense_like(const Tensor& x, const Tensor& model);

}  // namespace fastnn
