// The vector units' convolution of few channels in bfloat16, which one instruction rounds here.
#include "ops/conv/depthwise_pass_cpu.h"

namespace fastnn {
namespace {

bool suits(const ConvArgs& args) { return args.dtype == DType::BFloat16 && !args.channels_last; }

}  // namespace

namespace amx {

bool depthwise_forward(const ConvArgs& args) {
  return suits(args) && convolve_by_rows<Compiled::BFloat16InPlace>(args);
}
bool depthwise_input_grad(const ConvArgs& args) {
  return suits(args) && input_grad_by_rows<Compiled::BFloat16InPlace>(args);
}

}  // namespace amx
}  // namespace fastnn
