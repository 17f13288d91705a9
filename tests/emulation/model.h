// The GPU that the emulation stands for: an H200 with few multiprocessors, so that persistent kernels loop.
#pragma once

#include <cstddef>

namespace fastnn {
namespace emulation {

constexpr unsigned kProcessorThreads = 2048;
constexpr size_t kProcessorShared = 228 << 10, kReservedShared = 1 << 10;
constexpr size_t kBlockShared = 227 << 10;
constexpr size_t kDefaultShared = 48 << 10;
constexpr unsigned kBlockThreadsLimit = 1024;
constexpr size_t kDeviceBytes = size_t(8) << 30;

struct Model {
  unsigned processors;  // FASTNN_EMULATED_PROCESSORS, 4 unless told
  int capability;       // FASTNN_EMULATED_CAPABILITY, 90 unless told: 80 chooses the kernels for Ampere
  bool late_errors;     // FASTNN_EMULATED_LATE_ERRORS=1: a kernel's fault is an error of the next wait, as on a GPU
};
const Model& model();

}  // namespace emulation
}  // namespace fastnn
