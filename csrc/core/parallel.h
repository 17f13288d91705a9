// Threads. Everything that wants several calls parallel_for; core/thread_pool.h has the workers.
//
//   parallel_for(n_rows, grain, [&](int64_t begin, int64_t end) { ... rows [begin, end) ... });
//
// [0, n) is cut into chunks of exactly `grain` (the last one shorter), whatever the thread count:
// the body sees the same chunks on 1 thread and on 64, so a reduction that combines per-chunk
// results in chunk order is bit-equal for any thread count. begin / grain is the chunk's number.
//
// One chunk runs serially. A region inside a region runs serially. Several Python threads inside at
// once run serially each, sharing the cores instead of multiplying them. An exception thrown by the
// body is carried out of the region. Workers run in the caller's float mode (flush-to-zero or not).
// The region releases the Python lock and, at chunk boundaries, lets Ctrl-C through: keep a chunk
// below some milliseconds, and above some 20 microseconds to pay for the fork.
#pragma once

#include <cstdint>

namespace fastnn {

using ParallelBody = void (*)(void* context, int64_t begin, int64_t end);
void parallel_run(int64_t n, int64_t grain, ParallelBody body, void* context);

template <class Body>
__attribute__((always_inline)) inline void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  if (n <= grain) return body(int64_t(0), n);
  parallel_run(
      n, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

int num_threads();
void set_num_threads(int n);  // throws ValueError below 1

// Where the number came from: "affinity", "cgroup quota", "OMP_NUM_THREADS", "set_num_threads".
const char* num_threads_source();

// Set by the Python layer: release and retake its lock around a region, and poll for Ctrl-C
// (returns true when an exception is pending). All null in a program without Python.
struct HostHooks {
  void* (*release)() = nullptr;
  void (*retake)(void*) = nullptr;
  bool (*interrupted)() = nullptr;
};
extern HostHooks host_hooks;

// Flush-to-zero for the current thread until the end of the scope; what was before is restored.
class FlushSubnormals {
 public:
  explicit FlushSubnormals(bool enable);
  ~FlushSubnormals();
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  uint64_t saved_;
  bool enabled_;
};

}  // namespace fastnn
