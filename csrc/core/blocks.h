// What the caching allocators of all devices share: the sizes of blocks, and what is counted of them.
#pragma once

#include <algorithm>
#include <cstddef>

#include "core/memory.h"

namespace fastnn {

// 1, 1.25, 1.5 and 1.75 times a power of two, in whole cache lines: at most 25 % waste.
inline size_t size_class(size_t bytes) {
  constexpr size_t kLine = 64;
  if (bytes <= kLine) return kLine;
  const size_t power = size_t(1) << (63 - __builtin_clzll(bytes));
  const size_t step = std::max(power / 4, kLine);
  return (bytes + step - 1) / step * step;
}

// A block is handed out, fresh from the system or from the cache; taken back, into the cache; given up, to the system.
struct BlockStats : MemoryStats {
  void hand_out(int64_t bytes, bool was_cached) {
    ++allocations;
    allocated += bytes;
    if (was_cached) {
      cached -= bytes;
      ++cache_hits;
    }
    peak_allocated = std::max(peak_allocated, allocated);
    peak_reserved = std::max(peak_reserved, allocated + cached);
  }
  void take_back(int64_t bytes) {
    allocated -= bytes;
    cached += bytes;
  }
  void give_up(int64_t bytes) { cached -= bytes; }
  bool has_too_much() const { return cached > cache_limit; }
  void reset_peak() {
    peak_allocated = allocated;
    peak_reserved = allocated + cached;
  }
};

}  // namespace fastnn
