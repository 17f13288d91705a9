// Where a tensor lives, and which instruction-set level the CPU kernels run at.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

namespace fastnn {

enum class DeviceType : uint8_t { CPU, CUDA };

struct Device {
  DeviceType type = DeviceType::CPU;
  int8_t index = 0;

  bool is_cuda() const { return type == DeviceType::CUDA; }
  bool operator==(Device other) const { return type == other.type && index == other.index; }
  bool operator!=(Device other) const { return !(*this == other); }
};

std::ostream& operator<<(std::ostream& out, Device device);

// "cpu", "cuda" (the thread's current one) or "cuda:1". Throws ValueError for anything else.
Device parse_device(const std::string& text);

// Makes a GPU the calling thread's current one; the end of the scope brings back the one before.
class CudaDeviceScope {
 public:
  explicit CudaDeviceScope(Device device);
  ~CudaDeviceScope();
  CudaDeviceScope(const CudaDeviceScope&) = delete;
  CudaDeviceScope& operator=(const CudaDeviceScope&) = delete;

 private:
  int before_;
  int current_;
};

// Called behind every kernel on a GPU. With FASTNN_CUDA_SYNC=1 it waits, so that an error names its operation.
void cuda_kernel_done(const char* kernel);

// Instruction-set levels, worst first. Each *_cpu.cpp file is compiled once per level up to Avx512; Amx adds
// the *_amx.cpp files (matrix tiles of bfloat16) on top of those.
enum class CpuLevel : uint8_t { Baseline, Avx2, Avx512, Amx };
constexpr int kCpuLevelCount = 4;
const char* cpu_level_name(CpuLevel level);

// The best level that this CPU and its operating system support and this build holds.
CpuLevel best_cpu_level();

// The level in use: the best one, or the lower one that FASTNN_CPU names. Throws ValueError when
// FASTNN_CPU names an unknown level or one that the machine lacks.
CpuLevel cpu_level();

}  // namespace fastnn
