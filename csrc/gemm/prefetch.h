// Prefetches that stay: GCC removes a loop of __builtin_prefetch alone as an empty one.
#pragma once

namespace fastnn {
namespace {

// The line at p comes into the second-level cache.
inline __attribute__((always_inline)) void prefetch_near(const void* p) {
  __builtin_prefetch(p, 0, 2);
  asm volatile("");
}

// The line at p, soon to be written, comes into the first-level cache.
inline __attribute__((always_inline)) void prefetch_written(const void* p) {
  __builtin_prefetch(p, 1, 3);
  asm volatile("");
}

}  // namespace
}  // namespace fastnn
