// The answers about CUDA in a build without it.
#include "core/check.h"
#include "core/cuda.h"

namespace fastnn {

bool cuda_is_available() { return false; }
std::string cuda_reason() { return "fastnn was built without CUDA"; }
int cuda_device_count() { return 0; }
void cuda_synchronize(int index) { fail<DeviceError>("cuda:", index, ": ", cuda_reason()); }

CudaDeviceScope::CudaDeviceScope(Device device) : before_(0), current_(0) {
  fail<DeviceError>(device, ": ", cuda_reason());
}
CudaDeviceScope::~CudaDeviceScope() = default;

}  // namespace fastnn
