#include "core/stream_allocator.h"

#include <algorithm>

#include "core/check.h"

namespace fastnn {

namespace {
constexpr size_t kSmallest = 512;  // so that every block starts at a boundary of 256 bytes and more
}

struct StreamAllocator::Pool {
  std::map<std::pair<void*, size_t>, std::vector<void*>> free;  // of (stream, bytes)
};

StreamAllocator::StreamAllocator(std::string place, int64_t capacity)
    : place_(std::move(place)), capacity_(capacity), memory_limit_(capacity), common_(std::make_unique<Pool>()) {
  stats_.cache_limit = capacity;
}

StreamAllocator::~StreamAllocator() = default;

// ------------------------------------------------------------------------------------- handing out

void* StreamAllocator::allocate(size_t bytes, void* stream, const PoolHandle& pool) {
  if (int64_t(bytes) < 0 || int64_t(bytes) > capacity_)
    fail<OutOfMemoryError>("cannot allocate ", bytes, " bytes: ", place_, " has ", capacity_);
  const size_t rounded = std::max(size_class(bytes), kSmallest);
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (captures_ == 0) cache_passed();
  void* data = take(pool ? *pool : *common_, stream, rounded);
  const bool was_cached = data != nullptr;
  if (!was_cached) data = fresh(bytes, rounded);
  live_.emplace(data, Block{data, rounded, stream, pool, {}});
  stats_.hand_out(int64_t(rounded), was_cached);
  return data;
}

void* StreamAllocator::take(Pool& pool, void* stream, size_t bytes) {
  const auto found = pool.free.find({stream, bytes});
  if (found == pool.free.end() || found->second.empty()) return nullptr;
  void* data = found->second.back();
  found->second.pop_back();
  return data;
}

void* StreamAllocator::fresh(size_t requested, size_t bytes) {
  const auto from_system = [&]() -> void* {
    const bool fits = stats_.allocated + stats_.cached + int64_t(bytes) <= memory_limit_;
    return fits ? system_allocate(bytes) : nullptr;
  };
  if (void* data = from_system()) return data;
  if (captures_ == 0 && stats_.cached > 0) {
    ++stats_.retries;
    free_everything();
    if (void* data = from_system()) return data;
  }
  const std::string limit = memory_limit_ < capacity_ ? str(" (limited to ", memory_limit_, ")") : "";
  fail<OutOfMemoryError>("cannot allocate ", requested, " bytes: ", place_, " has ", capacity_, limit,
                         ", of which tensors of fastnn hold ", stats_.allocated, " and its cache ", stats_.cached);
}

// -------------------------------------------------------------------------------------- taking back

void StreamAllocator::release(void* data) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  const auto found = live_.find(data);
  if (found == live_.end()) return;
  Block block = std::move(found->second);
  live_.erase(found);
  stats_.take_back(int64_t(block.bytes));
  cache_or_mark(std::move(block));
}

void StreamAllocator::record_stream(void* data, void* stream) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  const auto found = live_.find(data);
  if (found == live_.end() || found->second.stream == stream) return;
  std::vector<void*>& users = found->second.users;
  if (std::find(users.begin(), users.end(), stream) == users.end()) users.push_back(stream);
}

void StreamAllocator::cache_or_mark(Block block) {
  if (block.users.empty()) return cache(block);
  if (captures_ > 0) return to_be_marked_.push_back(std::move(block));
  Marked entry{std::move(block), {}};
  for (void* stream : entry.block.users)
    if (void* made = mark(stream)) entry.marks.push_back(made);
  marked_.push_back(std::move(entry));
}

void StreamAllocator::cache(const Block& block) {
  if (captures_ == 0 && stats_.has_too_much()) {
    stats_.give_up(int64_t(block.bytes));
    return system_free(block.data);
  }
  (block.pool ? *block.pool : *common_).free[{block.stream, block.bytes}].push_back(block.data);
}

bool StreamAllocator::all_passed(Marked& entry) {
  while (!entry.marks.empty()) {
    if (!passed(entry.marks.back())) return false;
    forget(entry.marks.back());
    entry.marks.pop_back();
  }
  return true;
}

// Up to the first that has to wait: a question to the driver costs as much as an allocation.
void StreamAllocator::cache_passed() {
  while (!marked_.empty() && all_passed(marked_.front())) {
    cache(marked_.front().block);
    marked_.pop_front();
  }
}

// -------------------------------------------------------------------------------- pools and captures

StreamAllocator::PoolHandle StreamAllocator::new_pool() {
  return PoolHandle(new Pool, [this](Pool* pool) { drop_pool(pool); });
}

void StreamAllocator::drop_pool(Pool* pool) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  free_cached(*pool);
  delete pool;
}

void StreamAllocator::begin_capture() {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  ++captures_;
}

void StreamAllocator::end_capture() {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (--captures_ > 0) return;
  for (Block& block : std::exchange(to_be_marked_, {})) cache_or_mark(std::move(block));
}

// ------------------------------------------------------------------------------- the system and limits

void StreamAllocator::free_cached(Pool& pool) {
  for (auto& [key, blocks] : pool.free) {
    for (void* block : blocks) system_free(block);
    stats_.give_up(int64_t(key.second * blocks.size()));
  }
  pool.free.clear();
}

// The marked blocks too. A pool's free blocks stay with it: a graph holds their addresses.
void StreamAllocator::free_everything() {
  for (Marked& entry : marked_)
    for (void* made : entry.marks) wait(made);
  cache_passed();
  free_cached(*common_);
}

void StreamAllocator::empty_cache() {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (captures_ == 0) free_everything();
}

MemoryStats StreamAllocator::stats() {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  return stats_;
}

void StreamAllocator::reset_peak() {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  stats_.reset_peak();
}

void StreamAllocator::set_cache_limit(int64_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  stats_.cache_limit = bytes;
  if (stats_.has_too_much() && captures_ == 0) free_everything();
}

void StreamAllocator::set_memory_limit(int64_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex_);
  memory_limit_ = std::min(bytes, capacity_);
}

}  // namespace fastnn
