// 3 x 3 convolutions by Winograd's minimal filtering, where it wins: conv_cpu_winograd.cpp.
#pragma once

#include "ops/conv/conv.h"

namespace fastnn {

#ifdef FASTNN_LEVEL
namespace FASTNN_LEVEL {
// False: the direct convolution is to compute the result.
bool winograd_forward(const ConvArgs& args);
bool winograd_input_grad(const ConvArgs& args);
}  // namespace FASTNN_LEVEL
#endif

}  // namespace fastnn
