// The caching allocator of the CPU's memory; core/stream_allocator.h is that of a GPU's.
//
// Fresh memory costs more than most kernels (a page fault per 4 KiB), so freed blocks are kept in free lists by size
// class (core/blocks.h) and handed out again. When the system has no more, the cache is emptied and the request tried
// once again.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/blocks.h"

namespace fastnn {

class CachingAllocator {
 public:
  // `place` names the memory in messages; `capacity` is all there is of it.
  CachingAllocator(std::string place, int64_t capacity);
  virtual ~CachingAllocator() = default;

  void* allocate(size_t bytes);  // throws MemoryError, before touching memory
  void release(void* block, size_t bytes);
  void empty_cache();
  MemoryStats stats();
  void reset_peak();
  void set_limit(int64_t bytes);
  std::mutex& mutex() { return mutex_; }

 protected:
  virtual void* system_allocate(size_t bytes) = 0;  // null when there is no more
  virtual void system_free(void* block) = 0;

 private:
  const std::string place_;
  const int64_t capacity_;
  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> free_;
  BlockStats stats_;
};

}  // namespace fastnn
