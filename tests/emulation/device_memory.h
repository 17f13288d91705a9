// The memory of the emulated device. It lies in this process, but nothing may touch it except kernels and copies: else
// its pages are protected. Every allocation has addresses of its own that never come again, between unmapped pages,
// so an access beyond it or after its release faults.
#pragma once

#include <cstddef>
#include <string>

namespace fastnn {
namespace emulation {

void* allocate_memory(size_t bytes);  // poisoned; null when there is no more
bool free_memory(void* block);        // false: it is none
size_t free_memory_bytes();

bool is_device_address(const void* address);
std::string describe_address(const void* address);
// Whether all of [pointer, pointer + bytes) is in one live allocation.
bool is_allocated(const void* pointer, size_t bytes);

// Opens the memory while it lives.
class MemoryScope {
 public:
  MemoryScope();
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;
};

}  // namespace emulation
}  // namespace fastnn
