// Kernel slots: the only dispatch. A kernel is a plain function of a plain struct of pointers, sizes
// and strides. Each has one slot per CPU level and one for CUDA; the baseline fills its slot, better
// levels fill theirs, and the best filled slot at or below the level in use is called.
//
//   conv.h          extern Kernel<Conv2dArgs> conv2d_forward;
//   conv.cpp        Kernel<Conv2dArgs> conv2d_forward{"conv2d"};
//                   ... conv2d_forward(device, args);
//   conv_cpu.cpp    namespace { void forward(const Conv2dArgs& args) { ... } }
//                   FASTNN_CPU_KERNEL(conv2d_forward, forward)
//   conv_cuda.cu    FASTNN_CUDA_KERNEL(conv2d_forward, forward_cuda)
//
// Registration is data, not code: each entry is a constant, found through the section "fastnn_kernels",
// which the core walks once at start. No static constructor of an AVX-512 object ever runs on a CPU that
// lacks AVX-512.
#pragma once

#include <cstdint>

#include "core/check.h"
#include "core/device.h"
#include "core/parallel.h"

namespace fastnn {

constexpr int kCudaSlot = kCpuLevelCount;
constexpr int kSlotCount = kCpuLevelCount + 1;

// Matrix kernels (matmul, convolution, recurrent, attention) run with subnormals flushed to zero;
// elementwise ones keep them.
enum class Subnormals : uint8_t { Keep, Flush };

struct KernelBase {
  const char* name;
  Subnormals subnormals;
  void (*slots[kSlotCount])();  // as registered
  void (*cpu)();                // the chosen CPU slot

  constexpr KernelBase(const char* kernel_name, Subnormals mode)
      : name(kernel_name), subnormals(mode), slots{}, cpu(nullptr) {}
  [[noreturn]] void missing(Device device) const;
};

// Called around every kernel when set: the profiler's entry.
struct KernelObserver {
  void (*before)(const KernelBase& kernel, Device device) = nullptr;
  void (*after)(const KernelBase& kernel, Device device) = nullptr;
};
extern KernelObserver* kernel_observer;

template <class Args>
struct Kernel : KernelBase {
  using Function = void (*)(const Args&);
  constexpr explicit Kernel(const char* kernel_name, Subnormals mode = Subnormals::Keep)
      : KernelBase(kernel_name, mode) {}

  void operator()(Device device, const Args& args) const {
    auto function = reinterpret_cast<Function>(device.is_cuda() ? slots[kCudaSlot] : cpu);
    if (__builtin_expect(!function, 0)) missing(device);
    if (__builtin_expect(kernel_observer != nullptr, 0)) kernel_observer->before(*this, device);
    if (device.is_cuda()) {
      CudaDeviceScope scope(device);
      function(args);
      cuda_kernel_done(name);
    } else if (subnormals == Subnormals::Flush) {
      FlushSubnormals scope(true);
      function(args);
    } else {
      function(args);
    }
    if (__builtin_expect(kernel_observer != nullptr, 0)) kernel_observer->after(*this, device);
  }
};

// The function of a lower CPU level: for kernels that leave a part of their arguments to it.
template <class Args>
inline __attribute__((always_inline)) void call_level(const Kernel<Args>& kernel, CpuLevel level, const Args& args) {
  reinterpret_cast<typename Kernel<Args>::Function>(kernel.slots[static_cast<int>(level)])(args);
}

template <class Args>
struct KernelEntry {
  Kernel<Args>* kernel;
  int64_t slot;
  void (*function)(const Args&);
};

// Fills the slots from the section and chooses the CPU slots. Called once, before any kernel.
void load_kernels();

#define FASTNN_JOIN_(a, b) a##b
#define FASTNN_JOIN(a, b) FASTNN_JOIN_(a, b)
// The section holds pointers to the entries: pointers stand side by side, while structs may be padded.
#define FASTNN_REGISTER_KERNEL(kernel, slot, function)                                                            \
  namespace {                                                                                                     \
  constexpr auto FASTNN_JOIN(kernel, _entry) = ::fastnn::make_kernel_entry(&kernel, slot, function);              \
  __attribute__((section("fastnn_kernels"),                                                                       \
                 used)) constexpr const void* FASTNN_JOIN(kernel, _entry_pointer) = &FASTNN_JOIN(kernel, _entry); \
  }
#define FASTNN_CUDA_KERNEL(kernel, function) FASTNN_REGISTER_KERNEL(kernel, ::fastnn::kCudaSlot, function)

template <class Args>
constexpr __attribute__((always_inline)) KernelEntry<Args> make_kernel_entry(Kernel<Args>* kernel, int64_t slot,
                                                                             void (*function)(const Args&)) {
  return {kernel, slot, function};
}

// FASTNN_LEVEL is defined by the build for *_cpu.cpp files: baseline, avx2 or avx512. *_amx.cpp files are
// compiled once, at avx512, and register with FASTNN_AMX_KERNEL.
#ifdef FASTNN_LEVEL
#define FASTNN_LEVEL_baseline ::fastnn::CpuLevel::Baseline
#define FASTNN_LEVEL_avx2 ::fastnn::CpuLevel::Avx2
#define FASTNN_LEVEL_avx512 ::fastnn::CpuLevel::Avx512
#define FASTNN_CPU_KERNEL(kernel, function) \
  FASTNN_REGISTER_KERNEL(kernel, static_cast<int64_t>(FASTNN_JOIN(FASTNN_LEVEL_, FASTNN_LEVEL)), function)
#define FASTNN_AMX_KERNEL(kernel, function) \
  FASTNN_REGISTER_KERNEL(kernel, static_cast<int64_t>(::fastnn::CpuLevel::Amx), function)
#endif

}  // namespace fastnn
