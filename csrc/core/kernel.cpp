#include "core/kernel.h"

namespace fastnn {

KernelObserver* kernel_observer = nullptr;

namespace {

// What every KernelEntry<Args> looks like with its types erased.
struct RawEntry {
  KernelBase* kernel;
  int64_t slot;
  void (*function)();
};

}  // namespace

// The linker makes these two around the section.
extern "C" {
extern const RawEntry* const __start_fastnn_kernels[] __attribute__((visibility("hidden")));
extern const RawEntry* const __stop_fastnn_kernels[] __attribute__((visibility("hidden")));
}

void load_kernels() {
  for (auto entry = __start_fastnn_kernels; entry != __stop_fastnn_kernels; ++entry)
    (*entry)->kernel->slots[(*entry)->slot] = (*entry)->function;
  const int level = static_cast<int>(cpu_level());
  for (auto entry = __start_fastnn_kernels; entry != __stop_fastnn_kernels; ++entry) {
    KernelBase& kernel = *(*entry)->kernel;
    for (int slot = 0; slot <= level; ++slot)
      if (kernel.slots[slot]) kernel.cpu = kernel.slots[slot];
  }
}

void KernelBase::missing(Device device) const {
  if (!device.is_cuda()) fail<NotImplementedError>(name, ": this build has no CPU kernel");
#ifdef FASTNN_WITH_CUDA
  fail<NotImplementedError>(name, ": there is no CUDA kernel yet; move the tensors to the CPU with .cpu()");
#else
  fail<DeviceError>(name, ": fastnn was built without CUDA");
#endif
}

}  // namespace fastnn
