// Shared memory and blocks of the emulated device, and the order in which a grid's blocks and threads run.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "machine_parts.h"
#include "model.h"

namespace fastnn {
namespace emulation {
namespace {

constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;

Block* bound = nullptr;  // whose static shared variables are in place

// ------------------------------------------------------------------------------ shared memory

// Dynamic shared memory ends where an unmapped page begins; its start is a multiple of 1024.
struct SharedPool {
  size_t bytes;
  std::vector<unsigned char*> free;

  size_t mapped() const { return rounded(bytes, kPage); }
  unsigned char* take() {
    if (bytes == 0) return nullptr;
    unsigned char* memory = nullptr;
    if (free.empty()) {
      void* pages = mmap(nullptr, mapped() + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      mprotect(static_cast<unsigned char*>(pages) + kPage, mapped(), PROT_READ | PROT_WRITE);
      memory = static_cast<unsigned char*>(pages) + kPage + mapped() - rounded(bytes, 1024);
    } else {
      memory = free.back();
      free.pop_back();
    }
    memset(memory, kPoison, bytes);
    memset(memory + bytes, kCanary, rounded(bytes, 1024) - bytes);
    return memory;
  }
  bool intact(const unsigned char* memory) const {
    for (size_t i = bytes; i < rounded(bytes, 1024); ++i)
      if (memory[i] != kCanary) return false;
    return true;
  }
  void unmap(unsigned char* memory) const {
    munmap(memory + rounded(bytes, 1024) - mapped() - kPage, mapped() + 2 * kPage);
  }
};

void bind(Block& block) {
  if (bound == &block || static_shared_bytes() == 0) return;
  if (bound) bound->statics.assign(__start_fastnn_shared, __stop_fastnn_shared);
  if (block.statics.empty())
    memset(__start_fastnn_shared, kPoison, static_shared_bytes());
  else
    memcpy(__start_fastnn_shared, block.statics.data(), static_shared_bytes());
  bound = &block;
}

// ------------------------------------------------------------------------------ blocks

dim3 unlinear(size_t i, dim3 size) {
  return dim3(unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y));
}

std::unique_ptr<Block> make_block(size_t linear, SharedPool& pool) {
  auto block = std::make_unique<Block>();
  const unsigned threads = launched.shape->block.x * launched.shape->block.y * launched.shape->block.z;
  block->fibers.resize(threads);
  block->alive = threads;
  const unsigned warps = (threads + kWarpThreads - 1) / kWarpThreads;
  block->meetings.resize(warps);
  block->ended_lanes.resize(warps);
  if (threads % kWarpThreads) block->ended_lanes.back() = ~0u << threads % kWarpThreads;
  block->group_meetings.resize((threads + kWarpgroupThreads - 1) / kWarpgroupThreads);
  block->products.resize(block->group_meetings.size());
  block->dynamic = pool.take();
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = block->fibers[i];
    Thread& thread = fiber.thread;
    thread.thread = unlinear(i, launched.shape->block);
    thread.block = unlinear(linear, launched.shape->grid);
    thread.block_size = launched.shape->block;
    thread.grid_size = launched.shape->grid;
    thread.linear = i;
    thread.cluster_rank = unsigned(linear % launched.shape->cluster);
    thread.cluster_size = launched.shape->cluster;
    thread.fiber = &fiber;
    thread.in = block.get();
  }
  block->engine.thread = block->fibers[0].thread;
  block->engine.thread.fiber = &block->engine;
  return block;
}

// Runs every thread that can go on once. Says whether any did something.
bool sweep(Block& block) {
  bool progress = false;
  const size_t n = block.fibers.size();
  for (size_t i = 0; i < n && launched.failure.empty(); ++i) {
    Fiber& fiber = block.fibers[launched.backwards ? n - 1 - i : i];
    if (fiber.state == State::Ended || fiber.state == State::Blocked) continue;
    if (fiber.state == State::Waiting && !fiber.ready(fiber.ready_state)) continue;
    resume(fiber);
    progress |= !(fiber.state == State::Paused && fiber.waited_before);
  }
  return progress;
}

std::string deadlock_report(const std::vector<std::unique_ptr<Block>>& resident) {
  std::string report = "deadlock: no thread can go on";
  std::map<std::string, std::pair<unsigned, std::string>> places;  // how many stand there, and the first of them
  for (const auto& block : resident)
    for (const Fiber& fiber : block->fibers) {
      if (fiber.state == State::Ended) continue;
      auto& place = places[std::string(fiber.what) + "@" + std::to_string(uintptr_t(fiber.place))];
      if (place.first++ == 0)
        place.second = thread_name(fiber.thread) + " waits at " + fiber.what + source_line(fiber.place);
    }
  for (const auto& place : places)
    report += "\n  " + place.second.second +
              (place.second.first > 1 ? " and " + std::to_string(place.second.first - 1) + " more" : "");
  return report;
}

void run_engine(Block& block) {
  bind(block);
  resume(block.engine);
}

bool run_deferred(const std::vector<std::unique_ptr<Block>>& resident) {
  for (const auto& block : resident) {
    if (block->deferred.empty()) continue;
    run_engine(*block);
    return true;
  }
  return false;
}

std::string run_blocks(const char* kernel) {
  const size_t threads = size_t(launched.shape->block.x) * launched.shape->block.y * launched.shape->block.z;
  const size_t total = size_t(launched.shape->grid.x) * launched.shape->grid.y * launched.shape->grid.z;
  // As many blocks stand side by side as the machine modelled has room for.
  size_t room = model().processors * (kProcessorThreads / threads);
  if (launched.shape->shared_bytes)
    room = std::min(room, model().processors * (kProcessorShared / (launched.shape->shared_bytes + kReservedShared)));
  room = std::max<size_t>(room / launched.shape->cluster, 1) * launched.shape->cluster;
  if (launched.shape->cooperative && total > room)
    return std::string(kernel) + ": a cooperative grid of " + std::to_string(total) + " blocks, but only " +
           std::to_string(room) + " fit the device";
  SharedPool pool{launched.shape->shared_bytes, {}};
  std::vector<std::unique_ptr<Block>> resident;
  size_t started = 0;
  auto admit = [&] {
    auto cluster = std::make_shared<Cluster>();
    const size_t number = started / launched.shape->cluster;
    const size_t first =
        (launched.backwards ? total / launched.shape->cluster - 1 - number : number) * launched.shape->cluster;
    for (unsigned rank = 0; rank < launched.shape->cluster; ++rank) {
      resident.push_back(make_block(first + rank, pool));
      cluster->blocks.push_back(resident.back().get());
      cluster->threads += unsigned(threads);
      resident.back()->cluster = cluster;
      ++started;
    }
  };
  while (started < total || !resident.empty()) {
    if (resident.empty()) admit();
    bool progress = false;
    for (size_t i = 0; i < resident.size() && launched.failure.empty();) {
      Block& block = *resident[i];
      bind(block);
      while (launched.failure.empty() && sweep(block)) progress = true;
      if (block.alive == 0 && launched.failure.empty()) {
        while (!block.deferred.empty() && launched.failure.empty()) run_engine(block);
        if (!pool.intact(block.dynamic))
          launched.failure = thread_name(block.fibers[0].thread) + " or another of its block wrote behind its " +
                             std::to_string(launched.shape->shared_bytes) + " bytes of shared memory";
        if (block.dynamic) pool.free.push_back(block.dynamic);
        if (bound == &block) bound = nullptr;
        resident.erase(resident.begin() + ptrdiff_t(i));
      } else {
        ++i;
      }
    }
    if (!launched.failure.empty()) break;
    if (progress || run_deferred(resident)) continue;
    if (started < total && resident.size() + launched.shape->cluster <= room)
      admit();
    else if (!resident.empty())
      launched.failure = deadlock_report(resident);
    if (!launched.failure.empty()) break;
  }
  for (auto& block : resident) {
    for (Fiber& fiber : block->fibers) release(fiber);
    if (block->dynamic) pool.free.push_back(block->dynamic);
  }
  for (unsigned char* memory : pool.free) pool.unmap(memory);
  bound = nullptr;
  return launched.failure;
}

}  // namespace

std::string run_grid(const char* kernel, const Shape& shape, const std::function<void()>& thread_body) {
  catch_faults();
  launched.shape = &shape;
  launched.body = &thread_body;
  launched.failure.clear();
  std::string message = run_blocks(kernel);
  launched.backwards = !launched.backwards;
  return message;
}

}  // namespace emulation
}  // namespace fastnn
