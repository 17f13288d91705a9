// The vector units' convolution of few channels, where one instruction rounds to bfloat16.
#include "ops/conv/depthwise_pass_cpu.h"

namespace fastnn {
namespace amx {

bool depthwise_forward(const ConvArgs& args) { return convolve_by_rows(args); }
bool depthwise_input_grad(const ConvArgs& args) { return input_grad_by_rows(args); }

}  // namespace amx
}  // namespace fastnn
