#include "core/derived.h"

#include <pthread.h>

#include <mutex>

namespace fastnn {

namespace {
constexpr int kEntries = 4;  // of a storage: forward and backward forms of one or two operations
std::mutex derived_mutex;

// A fork waits until no thread is inside, so that the child's copy of the mutex is free.
[[maybe_unused]] const int at_fork =
    pthread_atfork([] { derived_mutex.lock(); }, [] { derived_mutex.unlock(); }, [] { derived_mutex.unlock(); });
}  // namespace

struct DerivedEntries {
  struct Entry {
    uint64_t purpose = 0;
    int64_t bytes = 0;
    bool asked = false, ready = false;
    Tensor memory;
  };
  uint32_t version = 0;
  Entry entries[kEntries];
  int next = 0;  // to be replaced
};

void free_derived(DerivedEntries* derived) { delete derived; }

DerivedBlock derived_block(const Tensor& x, uint64_t purpose, int64_t bytes) {
  Storage* storage = x.storage();
  if (x.device().is_cuda() || storage->release || storage->shared.load(std::memory_order_relaxed)) return {};
  purpose = purpose_of(purpose, x.offset(), x.dtype());
  for (int d = 0; d < x.ndim(); ++d) purpose = purpose_of(purpose, x.shape()[d], x.strides()[d]);
  std::lock_guard<std::mutex> lock(derived_mutex);
  if (!storage->derived) storage->derived = new DerivedEntries;
  DerivedEntries& derived = *storage->derived;
  if (derived.version != x.version())
    for (auto& entry : derived.entries) entry = {};
  derived.version = x.version();
  for (auto& entry : derived.entries) {
    if (!entry.asked || entry.purpose != purpose || entry.bytes != bytes) continue;
    if (entry.memory.defined()) return entry.ready ? DerivedBlock{entry.memory, true} : DerivedBlock{};
    entry.memory = empty({bytes}, DType::UInt8);
    return {entry.memory, false};
  }
  auto& entry = derived.entries[derived.next];
  derived.next = (derived.next + 1) % kEntries;
  entry = {purpose, bytes, true, false, {}};
  return {};
}

void mark_ready(const Tensor& x, const DerivedBlock& block) {
  std::lock_guard<std::mutex> lock(derived_mutex);
  if (!x.storage()->derived) return;
  for (auto& entry : x.storage()->derived->entries)
    entry.ready |= entry.memory.defined() && entry.memory.is(block.memory);
}

}  // namespace fastnn
