#include "device_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <map>

#include "model.h"

namespace fastnn {
namespace emulation {
namespace {

constexpr size_t kPage = 4096, kAlignment = 256;
constexpr size_t kAddresses = size_t(4) << 40;
constexpr size_t kPoisoned = 16 << 20;  // of a larger allocation, this much: it would take long
constexpr unsigned char kPoison = 0xff;

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Allocation {
  unsigned char* pages;  // where its pages begin
  size_t bytes;
  size_t mapped() const { return rounded(bytes, kPage); }
};

struct Memory {
  unsigned char* begin;
  size_t next = kPage;  // addresses given out so far
  size_t used = 0;
  int open = 0;
  std::map<const unsigned char*, Allocation> live;  // by its first byte
  std::map<const unsigned char*, size_t> freed;     // sizes of those that were, for messages

  Memory() {
    void* reserved = mmap(nullptr, kAddresses, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    begin = reserved == MAP_FAILED ? nullptr : static_cast<unsigned char*>(reserved);
  }
  void protect(int protection) {
    for (const auto& entry : live) mprotect(entry.second.pages, entry.second.mapped(), protection);
  }
};

// Never destroyed: tensors may outlive static destructors.
Memory& memory() {
  static auto& only = *new Memory;
  return only;
}

}  // namespace

void* allocate_memory(size_t bytes) {
  Memory& all = memory();
  Allocation block{all.begin + all.next, bytes ? bytes : 1};
  if (!all.begin || all.used + block.mapped() > kDeviceBytes || all.next + block.mapped() + kPage > kAddresses)
    return nullptr;
  // It ends where its pages end, as far as the alignment that CUDA promises allows.
  unsigned char* first = block.pages + block.mapped() - rounded(block.bytes, kAlignment);
  mprotect(block.pages, block.mapped(), PROT_READ | PROT_WRITE);
  memset(first, kPoison, block.bytes < kPoisoned ? block.bytes : kPoisoned);
  if (!all.open) mprotect(block.pages, block.mapped(), PROT_NONE);
  all.next += block.mapped() + kPage;
  all.used += block.mapped();
  all.live[first] = block;
  return first;
}

bool free_memory(void* address) {
  Memory& all = memory();
  const auto found = all.live.find(static_cast<unsigned char*>(address));
  if (found == all.live.end()) return false;
  const Allocation block = found->second;
  madvise(block.pages, block.mapped(), MADV_DONTNEED);
  mprotect(block.pages, block.mapped(), PROT_NONE);
  all.used -= block.mapped();
  all.freed[found->first] = block.bytes;
  all.live.erase(found);
  return true;
}

size_t free_memory_bytes() { return kDeviceBytes - memory().used; }

bool is_device_address(const void* address) {
  auto byte = static_cast<const unsigned char*>(address);
  return memory().begin && byte >= memory().begin && byte < memory().begin + kAddresses;
}

bool is_allocated(const void* pointer, size_t bytes) {
  auto first = static_cast<const unsigned char*>(pointer);
  auto after = memory().live.upper_bound(first);
  if (after == memory().live.begin()) return false;
  const auto& block = *--after;
  return first + bytes <= block.first + block.second.bytes;
}

std::string describe_address(const void* address) {
  auto byte = static_cast<const unsigned char*>(address);
  std::string text = "illegal access";
  if (!is_device_address(address)) {
    char hex[40];
    snprintf(hex, sizeof hex, " of address %p", address);
    return text + hex + " (outside device and shared memory, or the stack of a thread overflowed)";
  }
  const unsigned char* start = nullptr;
  size_t bytes = 0;
  bool live = false;
  auto nearest = [&](const unsigned char* block, size_t size, bool is_live) {
    if (block > start) start = block, bytes = size, live = is_live;
  };
  auto after = memory().live.upper_bound(byte);
  if (after != memory().live.begin()) --after, nearest(after->first, after->second.bytes, true);
  auto freed = memory().freed.upper_bound(byte);
  if (freed != memory().freed.begin()) --freed, nearest(freed->first, freed->second, false);
  if (!start) return text + " before all device memory";
  return text + " at byte " + std::to_string(byte - start) + " of an allocation of " + std::to_string(bytes) +
         (live ? " bytes" : " bytes that was released");
}

MemoryScope::MemoryScope() {
  if (memory().open++ == 0) memory().protect(PROT_READ | PROT_WRITE);
}

MemoryScope::~MemoryScope() {
  if (--memory().open == 0) memory().protect(PROT_NONE);
}

}  // namespace emulation
}  // namespace fastnn
