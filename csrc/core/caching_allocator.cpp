#include "core/caching_allocator.h"

#include <algorithm>

#include "core/check.h"

namespace fastnn {

namespace {
constexpr size_t kSmallest = 64;  // one cache line
}

size_t size_class(size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  const size_t power = size_t(1) << (63 - __builtin_clzll(bytes));
  const size_t step = std::max(power / 4, kSmallest);
  return (bytes + step - 1) / step * step;
}

CachingAllocator::CachingAllocator(std::string place, int64_t capacity)
    : place_(std::move(place)), capacity_(capacity) {
  // A quarter of the memory: enough for a training step's temporaries, bounded for neighbours.
  stats_.cache_limit = capacity / 4;
}

void* CachingAllocator::allocate(size_t bytes) {
  if (int64_t(bytes) < 0 || int64_t(bytes) > capacity_)
    fail<MemoryError>("cannot allocate ", bytes, " bytes: ", place_, " has ", capacity_);
  const size_t rounded = size_class(bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++stats_.allocations;
    stats_.allocated += int64_t(rounded);
    stats_.peak_allocated = std::max(stats_.peak_allocated, stats_.allocated);
    auto& blocks = free_[rounded];
    if (!blocks.empty()) {
      void* block = blocks.back();
      blocks.pop_back();
      stats_.cached -= int64_t(rounded);
      ++stats_.cache_hits;
      return block;
    }
  }
  void* block = system_allocate(rounded);
  const bool retry = !block;
  if (retry) {
    empty_cache();
    block = system_allocate(rounded);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.retries += retry;
  if (!block) {
    stats_.allocated -= int64_t(rounded);
    fail<MemoryError>("cannot allocate ", bytes, " bytes: ", place_, " has ", capacity_, ", of which fastnn holds ",
                      stats_.allocated);
  }
  stats_.peak_reserved = std::max(stats_.peak_reserved, stats_.allocated + stats_.cached);
  return block;
}

void CachingAllocator::release(void* block, size_t bytes) {
  const size_t rounded = size_class(bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.allocated -= int64_t(rounded);
    if (stats_.cached + int64_t(rounded) <= stats_.cache_limit) {
      free_[rounded].push_back(block);
      stats_.cached += int64_t(rounded);
      return;
    }
  }
  system_free(block);
}

void CachingAllocator::empty_cache() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [bytes, blocks] : free_) {
    for (void* block : blocks) system_free(block);
    blocks.clear();
  }
  stats_.cached = 0;
}

MemoryStats CachingAllocator::stats() {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void CachingAllocator::reset_peak() {
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.peak_allocated = stats_.allocated;
  stats_.peak_reserved = stats_.allocated + stats_.cached;
}

void CachingAllocator::set_limit(int64_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.cache_limit = bytes;
    if (stats_.cached <= bytes) return;
  }
  empty_cache();
}

}  // namespace fastnn
