// Storage: a reference-counted block of memory from its device's caching allocator.
//
// CPU blocks are 64-byte aligned; those of 2 MiB and more ask for huge pages.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/device.h"

namespace fastnn {

struct DerivedEntries;
void free_derived(DerivedEntries* derived);

struct Storage {
  std::atomic<int32_t> references{0};
  std::atomic<uint32_t> version{0};  // counts in-place writes: autograd checks it
  void* data = nullptr;
  size_t bytes = 0;
  Device device;
  bool read_only = false;
  bool pinned = false;                // a GPU copies from and to it while the CPU goes on
  std::atomic<bool> shared{false};    // others know its address, and may write without counting a version
  DerivedEntries* derived = nullptr;  // core/derived.h
  // Foreign memory: called with `owner` instead of returning the block to the allocator.
  void (*release)(void* owner) = nullptr;
  void* owner = nullptr;
};

Storage* allocate_storage(size_t bytes, Device device);  // throws MemoryError, before touching memory
Storage* wrap_storage(void* data, size_t bytes, Device device, bool read_only, void (*release)(void*), void* owner);
void free_storage(Storage* storage);

struct MemoryStats {
  int64_t allocated = 0;       // bytes in live storages (rounded to their classes)
  int64_t peak_allocated = 0;  // highest value of `allocated`
  int64_t cached = 0;          // bytes waiting in free lists
  int64_t peak_reserved = 0;   // highest value of `allocated + cached`
  int64_t cache_limit = 0;     // upper bound of `cached`: above it freed blocks go to the system
  int64_t allocations = 0;     // blocks handed out
  int64_t cache_hits = 0;      // of these, how many came from a free list
  int64_t retries = 0;         // how often the cache was emptied to serve a request
};
MemoryStats memory_stats(Device device);
void reset_peak_memory(Device device);
void set_cache_limit(Device device, int64_t bytes);
void empty_cache(Device device);

// Per-thread scratch of at least `bytes`, 64-byte aligned, valid until the same thread asks for the
// same slot again. Slots keep an operation's scratch apart from that of the engine it calls.
enum class Scratch : uint8_t { GemmA, GemmB, GemmSums, GemmPartials, Operation, OperationShared, Layout, Count };
void* thread_scratch(Scratch slot, size_t bytes);

}  // namespace fastnn
