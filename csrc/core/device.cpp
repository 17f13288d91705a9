#include "core/device.h"

#include <cstdlib>
#include <cstring>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/check.h"
#include "core/cuda.h"

namespace fastnn {

std::ostream& operator<<(std::ostream& out, Device device) {
  if (!device.is_cuda()) return out << "cpu";
  return out << "cuda:" << int(device.index);
}

Device parse_device(const std::string& text) {
  if (text == "cpu") return {};
  if (text == "cuda") return {DeviceType::CUDA, static_cast<int8_t>(cuda_current_device())};
  if (text.rfind("cuda:", 0) == 0 && text.size() > 5 && text.size() < 8 &&
      text.find_first_not_of("0123456789", 5) == std::string::npos)
    return {DeviceType::CUDA, static_cast<int8_t>(std::stoi(text.substr(5)))};
  fail("device: expected 'cpu', 'cuda' or 'cuda:N', got '", text, "'");
}

const char* cpu_level_name(CpuLevel level) {
  constexpr const char* names[kCpuLevelCount] = {"baseline", "avx2", "avx512", "amx"};
  return names[static_cast<int>(level)];
}

#if defined(__x86_64__)
namespace {

// The tile registers: the CPU has them with bfloat16, and Linux, asked once, lets this process use them.
bool amx_granted() {
#if defined(__linux__)
  constexpr unsigned kTile = 1u << 24, kBfloat16 = 1u << 22;  // cpuid 7.0, edx
  constexpr unsigned kConversions = 1u << 5;                  // cpuid 7.1, eax: AVX512_BF16
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (kTile | kBfloat16)) != (kTile | kBfloat16))
    return false;
  if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !(eax & kConversions)) return false;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace
#endif

CpuLevel best_cpu_level() {
  // FASTNN_BUILT_LEVEL names the best level that the build compiled.
  CpuLevel built = CpuLevel::Amx;
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system (xgetbv) whether it saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  const CpuLevel vectors = avx512 ? CpuLevel::Avx512 : avx2 ? CpuLevel::Avx2 : CpuLevel::Baseline;
  const bool amx = avx512 && __builtin_cpu_supports("avx512vbmi2") && amx_granted();
  const CpuLevel best = amx ? CpuLevel::Amx : vectors;
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
  fail("FASTNN_CPU=", wanted, ": expected baseline, avx2, avx512 or amx");
}

CpuLevel cpu_level() {
  static const CpuLevel level = choose_level();
  return level;
}

}  // namespace fastnn
