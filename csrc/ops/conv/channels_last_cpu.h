// Convolutions of channels-last tensors by kernels that know planes only: the tensors are transposed to scratch and
// back.
#pragma once

#include "ops/conv/conv.h"

namespace fastnn {

enum class ConvPass : uint8_t { Forward, InputGrad, WeightGrad };

#ifdef FASTNN_LEVEL
namespace FASTNN_LEVEL {
void conv_through_planes(const ConvArgs& args, ConvPass pass, void (*kernel)(const ConvArgs&));
}  // namespace FASTNN_LEVEL
#endif

}  // namespace fastnn
