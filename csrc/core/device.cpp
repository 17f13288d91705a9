#include "core/device.h"

#include <cstdlib>
#include <cstring>

#include "core/check.h"

namespace fastnn {

std::ostream& operator<<(std::ostream& out, Device device) {
  if (!device.is_cuda()) return out << "cpu";
  return out << "cuda:" << int(device.index);
}

Device parse_device(const std::string& text) {
  if (text == "cpu") return {};
  if (text == "cuda") return {DeviceType::CUDA, 0};
  if (text.rfind("cuda:", 0) == 0 && text.size() > 5 && text.size() < 8 &&
      text.find_first_not_of("0123456789", 5) == std::string::npos)
    return {DeviceType::CUDA, static_cast<int8_t>(std::stoi(text.substr(5)))};
  fail("device: expected 'cpu', 'cuda' or 'cuda:N', got '", text, "'");
}

const char* cpu_level_name(CpuLevel level) {
  constexpr const char* names[kCpuLevelCount] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(level)];
}

CpuLevel best_cpu_level() {
  // FASTNN_BUILT_LEVEL names the best level that the build compiled.
  CpuLevel built = CpuLevel::Avx512;
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system (xgetbv) whether it saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  const CpuLevel best = avx512 ? CpuLevel::Avx512 : avx2 ? CpuLevel::Avx2 : CpuLevel::Baseline;
#else
  const CpuLevel best = CpuLevel::Baseline;
#endif
  while (std::strcmp(FASTNN_BUILT_LEVEL, cpu_level_name(built)) != 0) built = static_cast<CpuLevel>(int(built) - 1);
  return best < built ? best : built;
}

static CpuLevel choose_level() {
  CpuLevel best = best_cpu_level();
  const char* wanted = std::getenv("FASTNN_CPU");
  if (!wanted || !*wanted) return best;
  for (int i = 0; i < kCpuLevelCount; ++i) {
    auto level = static_cast<CpuLevel>(i);
    if (std::strcmp(wanted, cpu_level_name(level)) != 0) continue;
    check(level <= best, "FASTNN_CPU=", wanted, ": this machine or build supports no more than ", cpu_level_name(best));
    return level;
  }
  fail("FASTNN_CPU=", wanted, ": expected baseline, avx2 or avx512");
}

CpuLevel cpu_level() {
  static const CpuLevel level = choose_level();
  return level;
}

}  // namespace fastnn
