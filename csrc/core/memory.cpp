#include "core/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "core/caching_allocator.h"
#include "core/check.h"
#include "core/cuda.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace fastnn {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kHugeScratch = size_t(1) << 17;  // scratch of this size takes whole huge pages: kernels walk it often

// A sanitizer sees blocks, not what is in use of them: the first `bytes` of a block of `capacity` are.
void mark_used([[maybe_unused]] void* block, [[maybe_unused]] size_t bytes, [[maybe_unused]] size_t capacity) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(block) + bytes, capacity - bytes);
#endif
}

// The memory this process may use: physical, or the cgroup's limit when lower.
int64_t system_memory() {
  static const int64_t bytes = [] {
    int64_t physical = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
      if (FILE* file = std::fopen(path, "r")) {
        long long limit = 0;
        if (std::fscanf(file, "%lld", &limit) == 1 && limit > 0) physical = std::min<int64_t>(physical, limit);
        std::fclose(file);
      }
    }
    return physical;
  }();
  return bytes;
}

void* page_allocate(size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, bytes >= kHugePage ? kHugePage : kAlignment, bytes) != 0) return nullptr;
#ifdef MADV_HUGEPAGE
  if (bytes >= kHugePage) madvise(block, bytes, MADV_HUGEPAGE);
#endif
  return block;
}

class CpuAllocator : public CachingAllocator {
 public:
  CpuAllocator() : CachingAllocator("the machine", system_memory()) {}

 protected:
  void* system_allocate(size_t bytes) override { return page_allocate(bytes); }
  void system_free(void* block) override { std::free(block); }
};

// Never destroyed: tensors may outlive static destructors at interpreter exit.
CpuAllocator& cpu_allocator() {
  static CpuAllocator* allocator = [] {
    auto* made = new CpuAllocator;
    static CpuAllocator* for_fork = made;
    // A fork while another thread allocates must not leave the child with a locked mutex.
    pthread_atfork([] { for_fork->mutex().lock(); }, [] { for_fork->mutex().unlock(); },
                   [] { for_fork->mutex().unlock(); });
    return made;
  }();
  return *allocator;
}

void* cpu_allocate(size_t bytes) {
  void* block = cpu_allocator().allocate(bytes);
  mark_used(block, bytes, size_class(bytes));
  return block;
}

void cpu_release(void* block, size_t bytes) {
  mark_used(block, 0, size_class(bytes));
  cpu_allocator().release(block, bytes);
}

struct ThreadScratch {
  void* blocks[int(Scratch::Count)] = {};
  size_t sizes[int(Scratch::Count)] = {};
  ~ThreadScratch() {
    for (void* block : blocks) std::free(block);
  }
};

}  // namespace

Storage* allocate_storage(size_t bytes, Device device) {
  void* data = device.is_cuda() ? cuda_allocate(bytes, device) : cpu_allocate(bytes);
  auto* storage = new Storage;
  storage->data = data;
  storage->bytes = bytes;
  storage->device = device;
  return storage;
}

Storage* wrap_storage(void* data, size_t bytes, Device device, bool read_only, void (*release)(void*), void* owner) {
  auto* storage = new Storage;
  storage->data = data;
  storage->bytes = bytes;
  storage->device = device;
  storage->read_only = read_only;
  storage->release = release;
  storage->owner = owner;
  return storage;
}

void free_storage(Storage* storage) {
  if (storage->derived) free_derived(storage->derived);
  if (storage->release) {
    storage->release(storage->owner);
  } else if (storage->device.is_cuda()) {
    cuda_release(storage->data, storage->device);
  } else {
    cpu_release(storage->data, storage->bytes);
  }
  delete storage;
}

MemoryStats memory_stats(Device device) {
  return device.is_cuda() ? cuda_memory_stats(device) : cpu_allocator().stats();
}

void reset_peak_memory(Device device) {
  return device.is_cuda() ? cuda_reset_peak_memory(device) : cpu_allocator().reset_peak();
}

void set_cache_limit(Device device, int64_t bytes) {
  check(bytes >= 0, "set_cache_limit: expected a number of bytes >= 0, got ", bytes);
  return device.is_cuda() ? cuda_set_cache_limit(device, bytes) : cpu_allocator().set_limit(bytes);
}

void empty_cache(Device device) { return device.is_cuda() ? cuda_empty_cache(device) : cpu_allocator().empty_cache(); }

void* thread_scratch(Scratch slot, size_t bytes) {
  thread_local ThreadScratch scratch;
  const int i = int(slot);
  if (scratch.sizes[i] < bytes) {
    std::free(scratch.blocks[i]);
    scratch.sizes[i] = 0;
    size_t rounded = size_class(bytes + (bytes >> 2));
    if (rounded >= kHugeScratch) rounded = (rounded + kHugePage - 1) / kHugePage * kHugePage;
    scratch.blocks[i] = page_allocate(rounded);
    if (!scratch.blocks[i]) fail<MemoryError>("cannot allocate ", bytes, " bytes of scratch");
    scratch.sizes[i] = rounded;
  }
  mark_used(scratch.blocks[i], bytes, scratch.sizes[i]);
  return scratch.blocks[i];
}

}  // namespace fastnn
