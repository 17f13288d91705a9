#include "core/caching_allocator.h"

#include "core/check.h"

namespace fastnn {

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
    auto& blocks = free_[rounded];
    if (!blocks.empty()) {
      void* block = blocks.back();
      blocks.pop_back();
      stats_.hand_out(int64_t(rounded), true);
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
  if (!block)
    fail<MemoryError>("cannot allocate ", bytes, " bytes: ", place_, " has ", capacity_, ", of which fastnn holds ",
                      stats_.allocated);
  stats_.hand_out(int64_t(rounded), false);
  return block;
}

void CachingAllocator::release(void* block, size_t bytes) {
  const size_t rounded = size_class(bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.take_back(int64_t(rounded));
    if (!stats_.has_too_much()) return free_[rounded].push_back(block);
    stats_.give_up(int64_t(rounded));
  }
  system_free(block);
}

void CachingAllocator::empty_cache() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [bytes, blocks] : free_) {
    for (void* block : blocks) system_free(block);
    stats_.give_up(int64_t(bytes * blocks.size()));
    blocks.clear();
  }
}

MemoryStats CachingAllocator::stats() {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void CachingAllocator::reset_peak() {
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.reset_peak();
}

void CachingAllocator::set_limit(int64_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.cache_limit = bytes;
    if (!stats_.has_too_much()) return;
  }
  empty_cache();
}

}  // namespace fastnn
