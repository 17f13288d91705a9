// The inside of machine.h, shared by its parts: fibers.cpp stops and resumes threads and notes their faults, grid.cpp
// has shared memory and runs the blocks of a grid, meetings.cpp is what threads call to meet, wait and copy.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"

// Static shared variables of all kernels: the linker makes these two around their section.
extern "C" {
extern unsigned char __start_fastnn_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_fastnn_shared[] __attribute__((weak, visibility("hidden")));
}

namespace fastnn {
namespace emulation {

constexpr size_t kPage = 4096;

struct AsyncCopy {
  void* dst;
  const void* src;
  size_t bytes, valid_bytes;
};

enum class State : uint8_t { Ready, Blocked, Waiting, Paused, Ended };

struct Fiber {
  Thread thread;
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;
  State state = State::Ready;
  bool waited_before = false;   // Paused: nothing happened since the last pause
  const char* what = "";        // where it stopped, in words
  const void* place = nullptr;  // and in the code
  bool (*ready)(const void*) = nullptr;
  const void* ready_state = nullptr;
  std::deque<std::vector<AsyncCopy>> copies;  // groups, the last one still open
  std::vector<std::function<void()>> open_stores;
  std::deque<std::vector<std::function<void()>>> stores;
};

struct Meeting {
  const char* what;
  uint32_t mask, arrived;
  void* lanes[kWarpThreads];
};

struct GroupMeeting {
  const char* what = nullptr;
  unsigned arrived = 0;
  void* threads[kWarpgroupThreads];
};

struct Barrier {
  unsigned expected = 0, arrived = 0;
  const char* what = "";
  std::vector<Fiber*> waiters;
};

struct Cluster {
  std::vector<Block*> blocks;
  unsigned arrived = 0, threads = 0;
  std::vector<Fiber*> waiters;
};

constexpr int kBarriers = 16;

struct Block {
  std::vector<Fiber> fibers;
  std::vector<std::vector<Meeting>> meetings;  // of each warp
  std::vector<uint32_t> ended_lanes;           // of each warp
  std::vector<GroupMeeting> group_meetings;    // of each warpgroup
  std::vector<Products> products;              // of each warpgroup
  Barrier barriers[kBarriers];
  unsigned alive = 0;
  unsigned char* dynamic = nullptr;
  std::vector<unsigned char> statics;  // while another block is in their place
  std::deque<std::function<void()>> deferred;
  Fiber engine;  // performs them
  std::shared_ptr<Cluster> cluster;
};

// The launch that runs.
struct Launch {
  const Shape* shape = nullptr;
  const std::function<void()>* body = nullptr;
  std::string failure;     // the first; empty while there is none
  bool backwards = false;  // the order of threads and blocks
};
extern Launch launched;

inline size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }
inline size_t static_shared_bytes() { return size_t(__stop_fastnn_shared - __start_fastnn_shared); }

// ---- fibers.cpp
// Of the running fiber: until it is made ready, and resumed.
void stop(State state, const char* what, const void* place);
// Goes on with a fiber until it stops or ends; notes the access by which it faulted.
void resume(Fiber& fiber);
void release(Fiber& fiber);  // one that will not go on
std::string thread_name(const Thread& thread);
// The source line of an address in the code, where the module still has its symbols.
std::string source_line(const void* place);

}  // namespace emulation
}  // namespace fastnn
