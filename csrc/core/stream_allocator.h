// The caching allocator of memory that streams work on: a GPU's own, and the pinned memory that it copies from and to.
//
// A block belongs to the stream that it was allocated for. Freed, it is handed out again to that stream at once: what
// the next user asks of the stream runs behind all that the last one asked. A block that other streams worked on too
// (record_stream) is marked on each of them when it is freed, and waits until the marks have passed. Size classes are
// those of core/blocks.h.
//
// A pool keeps its blocks apart from all others: those of a captured graph, whose every replay writes to the same
// addresses. They return to the system when its last holder and its last live block have gone.
//
// Plain C++: tests/stream_allocator.cpp runs it over a pretended device.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/blocks.h"

namespace fastnn {

class StreamAllocator {
 public:
  struct Pool;
  using PoolHandle = std::shared_ptr<Pool>;  // null: the pool of everyone

  // `place` names the memory in messages; `capacity` is all there is of it. A GPU keeps all that is freed.
  StreamAllocator(std::string place, int64_t capacity);
  virtual ~StreamAllocator();
  StreamAllocator(const StreamAllocator&) = delete;
  StreamAllocator& operator=(const StreamAllocator&) = delete;

  // When there is no more, waits for the marked blocks, empties the cache, tries again and then throws
  // OutOfMemoryError.
  void* allocate(size_t bytes, void* stream, const PoolHandle& pool = {});
  void release(void* block);
  // Work of `stream` uses the block too, up to its release. Blocks that are not the allocator's are ignored.
  void record_stream(void* block, void* stream);

  PoolHandle new_pool();
  // Between these no stream can be marked or waited for (a graph is being captured): what would need it is put off.
  void begin_capture();
  void end_capture();

  void empty_cache();
  MemoryStats stats();
  void reset_peak();
  void set_cache_limit(int64_t bytes);
  void set_memory_limit(int64_t bytes);  // of live and cached blocks together

 protected:
  virtual void* system_allocate(size_t bytes) = 0;  // null when there is no more
  virtual void system_free(void* block) = 0;
  // A mark behind all that the stream has been asked so far; null when that failed: nothing will run any more.
  virtual void* mark(void* stream) = 0;
  virtual bool passed(void* mark) = 0;
  virtual void wait(void* mark) = 0;
  virtual void forget(void* mark) = 0;

 private:
  struct Block {
    void* data;
    size_t bytes;
    void* stream;
    PoolHandle pool;
    std::vector<void*> users;  // other streams
  };
  struct Marked {
    Block block;
    std::vector<void*> marks;
  };

  void* take(Pool& pool, void* stream, size_t bytes);
  void* fresh(size_t requested, size_t bytes);
  void cache(const Block& block);
  void cache_or_mark(Block block);
  bool all_passed(Marked& entry);
  void cache_passed();
  void free_cached(Pool& pool);
  void free_everything();
  void drop_pool(Pool* pool);

  const std::string place_;
  const int64_t capacity_;
  int64_t memory_limit_;
  std::recursive_mutex mutex_;  // the last block of a pool may go while it is held
  std::unordered_map<void*, Block> live_;
  std::unique_ptr<Pool> common_;
  std::deque<Marked> marked_;        // freed, in that order
  std::vector<Block> to_be_marked_;  // freed during a capture
  int captures_ = 0;
  BlockStats stats_;
};

}  // namespace fastnn
