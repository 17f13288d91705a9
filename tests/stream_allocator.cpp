// Runs core/stream_allocator.h over a pretended device, whose streams do their work when the test says so.
// Prints nothing and returns 0 when all holds.
#include "core/stream_allocator.h"

#include <cstdio>
#include <cstdlib>
#include <set>

#include "core/check.h"

using namespace fastnn;

#define EXPECT(condition)                                                    \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::printf("line %d: expected %s\n", __LINE__, #condition);           \
      std::exit(1);                                                          \
    }                                                                        \
  } while (false)

namespace {

constexpr int64_t kMiB = 1 << 20;

class PretendedDevice : public StreamAllocator {
 public:
  explicit PretendedDevice(int64_t capacity) : StreamAllocator("cuda:7", capacity), left_(capacity) {}

  int frees = 0, waits = 0;
  std::set<void*> open_marks;  // not passed yet
  void finish_all() { open_marks.clear(); }

 protected:
  void* system_allocate(size_t bytes) override {
    if (int64_t(bytes) > left_) return nullptr;
    left_ -= int64_t(bytes);
    next_ += bytes;
    sizes_[reinterpret_cast<void*>(next_ - bytes)] = bytes;
    return reinterpret_cast<void*>(next_ - bytes);
  }
  void system_free(void* block) override {
    left_ += int64_t(sizes_.at(block));
    sizes_.erase(block);
    ++frees;
  }
  void* mark(void*) override {
    void* made = reinterpret_cast<void*>(++marks_);
    open_marks.insert(made);
    return made;
  }
  bool passed(void* mark) override { return open_marks.count(mark) == 0; }
  void wait(void* mark) override {
    ++waits;
    open_marks.erase(mark);
  }
  void forget(void*) override {}

 private:
  int64_t left_;
  size_t next_ = size_t(1) << 40;
  uintptr_t marks_ = 0;
  std::map<void*, size_t> sizes_;
};

void* const kA = reinterpret_cast<void*>(0xA0);
void* const kB = reinterpret_cast<void*>(0xB0);
void* const kC = reinterpret_cast<void*>(0xC0);

void a_stream_reuses_its_block_at_once() {
  PretendedDevice device(64 * kMiB);
  void* first = device.allocate(kMiB, kA);
  device.release(first);
  EXPECT(device.allocate(kMiB, kA) == first);
  EXPECT(device.stats().cache_hits == 1 && device.stats().allocated == kMiB && device.stats().cached == 0);
  device.release(first);
  EXPECT(device.allocate(kMiB, kB) != first);  // another stream does not
}

void a_block_of_several_streams_waits_for_their_marks() {
  PretendedDevice device(64 * kMiB);
  void* shared = device.allocate(kMiB, kA);
  device.record_stream(shared, kB);
  device.record_stream(shared, kC);
  device.record_stream(shared, kA);  // its own: nothing to wait for
  device.release(shared);
  EXPECT(device.open_marks.size() == 2);
  EXPECT(device.allocate(kMiB, kA) != shared);
  device.open_marks.erase(device.open_marks.begin());
  EXPECT(device.allocate(kMiB, kA) != shared);  // one of two is not enough
  device.finish_all();
  EXPECT(device.allocate(kMiB, kA) == shared);
}

void memory_that_runs_out_is_waited_for_then_freed_then_an_error() {
  PretendedDevice device(8 * kMiB);
  void* cached = device.allocate(2 * kMiB, kA);
  void* shared = device.allocate(2 * kMiB, kA);
  device.record_stream(shared, kB);
  device.release(cached);
  device.release(shared);
  void* large = device.allocate(8 * kMiB, kA);  // fits only when both have gone back
  EXPECT(device.waits == 1 && device.frees == 2 && device.stats().retries == 1);
  bool raised = false;
  try {
    device.allocate(kMiB, kA);
  } catch (const OutOfMemoryError& error) {
    raised = std::string(error.what()).find("cuda:7") != std::string::npos;
  }
  EXPECT(raised);
  EXPECT(device.stats().allocated == 8 * kMiB && device.stats().peak_reserved == 8 * kMiB);
  device.release(large);
  EXPECT(device.allocate(8 * kMiB, kA) == large);  // goes on after the error
}

void limits_bound_what_is_held() {
  PretendedDevice device(64 * kMiB);
  device.set_memory_limit(4 * kMiB);
  void* first = device.allocate(3 * kMiB, kA);
  bool raised = false;
  try {
    device.allocate(2 * kMiB, kA);
  } catch (const OutOfMemoryError&) {
    raised = true;
  }
  EXPECT(raised);
  device.set_cache_limit(0);
  device.release(first);
  EXPECT(device.frees == 1 && device.stats().cached == 0);
}

void a_pool_keeps_its_blocks_to_itself() {
  PretendedDevice device(64 * kMiB);
  auto pool = device.new_pool();
  void* live = device.allocate(kMiB, kA, pool);
  void* freed = device.allocate(2 * kMiB, kA, pool);
  device.release(freed);
  EXPECT(device.allocate(2 * kMiB, kA) != freed);
  EXPECT(device.allocate(2 * kMiB, kA, pool) == freed);
  device.release(freed);
  device.empty_cache();
  EXPECT(device.frees == 0);  // a graph holds the addresses
  pool.reset();
  EXPECT(device.frees == 0);  // and so does a live tensor
  device.release(live);
  EXPECT(device.frees == 2);
}

void a_capture_puts_marks_off() {
  PretendedDevice device(64 * kMiB);
  void* shared = device.allocate(kMiB, kA);
  device.record_stream(shared, kB);
  device.begin_capture();
  device.release(shared);
  EXPECT(device.open_marks.empty());
  EXPECT(device.allocate(kMiB, kA) != shared);
  device.end_capture();
  EXPECT(device.open_marks.size() == 1);
  device.finish_all();
  EXPECT(device.allocate(kMiB, kA) == shared);
}

void the_last_block_of_a_pool_may_wait_for_a_mark() {
  PretendedDevice device(64 * kMiB);
  auto pool = device.new_pool();
  void* block = device.allocate(kMiB, kA, pool);
  device.record_stream(block, kB);
  pool.reset();
  device.release(block);
  device.finish_all();
  device.allocate(kMiB, kA);
  EXPECT(device.frees == 1 && device.stats().cached == 0);
}

void strangers_and_absurd_sizes_do_no_harm() {
  PretendedDevice device(64 * kMiB);
  device.release(kA);
  device.record_stream(kA, kB);
  for (size_t bytes : {size_t(1) << 45, ~size_t(0)}) {
    bool raised = false;
    try {
      device.allocate(bytes, kA);
    } catch (const OutOfMemoryError&) {
      raised = true;
    }
    EXPECT(raised);
  }
  EXPECT(device.allocate(0, kA) != nullptr);
}

}  // namespace

int main() {
  a_stream_reuses_its_block_at_once();
  a_block_of_several_streams_waits_for_their_marks();
  memory_that_runs_out_is_waited_for_then_freed_then_an_error();
  limits_bound_what_is_held();
  a_pool_keeps_its_blocks_to_itself();
  a_capture_puts_marks_off();
  the_last_block_of_a_pool_may_wait_for_a_mark();
  strangers_and_absurd_sizes_do_no_harm();
}
