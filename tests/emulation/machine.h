// A GPU on the CPU, for tests: every CUDA thread is a fiber, and one fiber runs at a time until it meets others.
//
//   meetings    barriers, shuffles, votes and matrix instructions: fibers stop until all named ones have come; the
//               last computes for all. A thread that is named but has ended, or comes for something else, is an error.
//   waiting     for memory that another thread or a copy engine writes: the fiber is asked again later.
//   deadlock    no fiber can go on: an error that says where every thread stands.
//   poison      shared memory and fresh device memory hold 0xff bytes: NaN as float, -1 as integer.
//   bounds      an access beyond an allocation faults, and the fault is an error that names kernel, block and thread.
//   order       blocks and threads run forwards in one launch and backwards in the next: what is right only in one
//               order shows.
//
// Blocks run one after another. Only when all threads of one wait for something outside it does the next one start
// beside it, so grid-wide waits work as long as the grid fits the machine (kMaxResidentThreads).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace fastnn {
namespace emulation {

constexpr int kWarpThreads = 32;
constexpr int kWarpgroupThreads = 128;

struct Fiber;
struct Block;

// What the running thread is. Kernels read it as threadIdx, blockIdx, blockDim and gridDim.
struct Thread {
  dim3 thread, block, block_size, grid_size;
  unsigned linear = 0;  // within the block
  unsigned cluster_rank = 0, cluster_size = 1;
  Fiber* fiber = nullptr;
  Block* in = nullptr;
};
extern Thread* running;

inline unsigned lane() { return running->linear % kWarpThreads; }
inline unsigned warp() { return running->linear / kWarpThreads; }

// Ends the launch with an error that names the running thread. Never unwinds: kernels own nothing.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fault(const char* format, ...);

// All lanes of `mask` come, each with something of its own; the last one calls combine(lanes, mask), where lanes[i] is
// what lane i brought (null for lanes outside the mask).
using Combine = void (*)(void* const* lanes, uint32_t mask);
void meet_warp(uint32_t mask, const char* what, void* mine, Combine combine);
// The same for the 128 threads of a warpgroup.
using CombineGroup = void (*)(void* const* threads);
void meet_warpgroup(const char* what, void* mine, CombineGroup combine);

// Barrier 0 with all threads is __syncthreads.
void barrier_sync(int id, unsigned threads, const char* what);
void barrier_arrive(int id, unsigned threads);
unsigned block_threads();
// All threads of all blocks of the cluster.
void cluster_sync();

// Lets others run; `first` in a loop of polling tells progress from waiting.
void pause(bool first, const char* what);
// Pauses until ready(state) is true.
void wait_until(bool (*ready)(const void* state), const void* state, const char* what);

// Work of a copy engine: done as late as possible, when every thread of the block waits.
void defer(std::function<void()> work);

unsigned char* dynamic_shared();
size_t dynamic_shared_bytes();
// Addresses of the shared window, as instructions and descriptors hold them: dynamic memory from kDynamicWindow on.
constexpr uint32_t kDynamicWindow = 1024, kStaticWindow = 1 << 20;
uint32_t shared_address(const void* pointer);
void* shared_pointer(uint32_t address, size_t bytes);       // of the running block
void* cluster_pointer(const void* pointer, unsigned rank);  // the same place in another block of the cluster

// The asynchronous copies of a thread: performed when waited for.
void async_copy(void* dst, const void* src, size_t bytes, size_t valid_bytes);
void async_commit();
void async_wait(int newest_left);

// Stores of the copy engine by one thread, in groups: performed when waited for.
void store_later(std::function<void()> work);
void store_commit();
void store_wait(int newest_left);

// Products that the running thread's warpgroup has begun, in groups.
class Products {
 public:
  bool fenced = false;  // since the last wait for all

  void issue(std::function<void()> product);
  void commit();
  void wait(int newest_left);
  bool idle() const { return open_.empty() && groups_.empty(); }

 private:
  std::vector<std::function<void()>> open_;
  std::deque<std::vector<std::function<void()>>> groups_;
};
Products& products();

struct Shape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;
  bool cooperative = false;
};
// From now on a fault of a kernel ends the launch with an error, and one of the host says what it touched.
void catch_faults();
// Runs a whole grid. Returns what went wrong; empty when nothing did.
std::string run_grid(const char* kernel, const Shape& shape, const std::function<void()>& thread_body);

}  // namespace emulation
}  // namespace fastnn
