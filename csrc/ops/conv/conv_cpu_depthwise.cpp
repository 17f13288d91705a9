#include "ops/conv/depthwise_pass_cpu.h"

namespace fastnn {
namespace FASTNN_LEVEL {

bool depthwise_forward(const ConvArgs& args) { return convolve_by_rows<Compiled::All>(args); }
bool depthwise_input_grad(const ConvArgs& args) { return input_grad_by_rows<Compiled::All>(args); }

}  // namespace FASTNN_LEVEL
}  // namespace fastnn
