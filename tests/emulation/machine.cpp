#include "machine.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "device_memory.h"
#include "model.h"

// Stops one fiber and goes on with another: what a call must keep is pushed, then the stacks are exchanged.
extern "C" void fastnn_emulation_switch(void** stopped, void* next);
asm(R"(
.text
.hidden fastnn_emulation_switch
.globl fastnn_emulation_switch
.type fastnn_emulation_switch, @function
fastnn_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastnn_emulation_switch, .-fastnn_emulation_switch
)");

// Static shared variables of all kernels: the linker makes these two around their section.
extern "C" {
extern unsigned char __start_fastnn_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_fastnn_shared[] __attribute__((weak, visibility("hidden")));
}

namespace fastnn {
namespace emulation {

Thread* running = nullptr;

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

namespace {

constexpr size_t kStackBytes = 256 << 10, kPage = 4096;
constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;

// ------------------------------------------------------------------------------ the machine's state

void* scheduler_stack_pointer = nullptr;
const Shape* shape = nullptr;
const std::function<void()>* body = nullptr;
Block* bound = nullptr;  // whose static shared variables are in place
std::string failure;
bool backwards = false;
std::vector<unsigned char*> free_stacks;

// An access that faulted, noted by the signal handler.
const void* fault_address = nullptr;
const void* fault_place = nullptr;

std::string text(const char* format, va_list arguments) {
  char line[1024];
  vsnprintf(line, sizeof line, format, arguments);
  return line;
}

// The source line of an address in the code, where the module still has its symbols.
std::string source_line(const void* place) {
  Dl_info info;
  if (!place || !dladdr(place, &info)) return "";
  char command[4096];
  const uintptr_t offset = uintptr_t(place) - uintptr_t(info.dli_fbase) - 1;
  snprintf(command, sizeof command, "addr2line -Csie '%s' 0x%zx 2>/dev/null", info.dli_fname, size_t(offset));
  std::string lines;
  if (FILE* pipe = popen(command, "r")) {
    char line[512];
    // The innermost frames are the emulation's own.
    while (fgets(line, sizeof line, pipe)) {
      line[strcspn(line, "\n")] = 0;
      if (strchr(line, '?') || lines.size() > 200) continue;
      lines += lines.empty() ? " at " : " < ";
      lines += line;
    }
    pclose(pipe);
  }
  return lines;
}

std::string thread_name(const Thread& t) {
  char line[128];
  snprintf(line, sizeof line, "block (%u, %u, %u) thread (%u, %u, %u)", t.block.x, t.block.y, t.block.z, t.thread.x,
           t.thread.y, t.thread.z);
  return line;
}

// ------------------------------------------------------------------------------ fibers

void back_to_scheduler() {
  Fiber& fiber = *running->fiber;
  fastnn_emulation_switch(&fiber.stack_pointer, scheduler_stack_pointer);
}

__attribute__((noinline)) void stop(State state, const char* what, const void* place) {
  Fiber& fiber = *running->fiber;
  fiber.state = state;
  fiber.what = what;
  fiber.place = place;
  back_to_scheduler();
}

void fail_from_fiber(std::string message) {
  if (failure.empty()) failure = thread_name(*running) + ": " + std::move(message);
  running->fiber->state = State::Ended;
  back_to_scheduler();
}

void perform_deferred(Block& block) {
  const auto position = backwards ? block.deferred.end() - 1 : block.deferred.begin();
  const auto work = *position;
  block.deferred.erase(position);
  work();
}

void fiber_main() {
  Fiber& fiber = *running->fiber;
  Block& block = *running->in;
  if (&fiber == &block.engine) {
    perform_deferred(block);
    fiber.state = State::Ended;
    back_to_scheduler();
  }
  (*body)();
  if (!fiber.stores.empty() || !fiber.open_stores.empty())
    fault("ended, while the copy engine still reads its shared memory: tma_store_wait<0>()");
  if (!block.products[running->linear / kWarpgroupThreads].idle())
    fault("ended, while wgmma still computes: wgmma_wait<0>()");
  const unsigned in_warp = lane();
  for (const Meeting& meeting : block.meetings[warp()])
    if (meeting.mask >> in_warp & 1)
      fault("ended, while lanes 0x%x of its warp wait for it at %s", meeting.arrived, meeting.what);
  const Barrier& all = block.barriers[0];
  if (all.arrived && all.expected == block.fibers.size())
    fault("ended, while %u threads of its block wait for all at %s", all.arrived, all.what);
  block.ended_lanes[warp()] |= 1u << in_warp;
  fiber.state = State::Ended;
  back_to_scheduler();
}

unsigned char* take_stack() {
  if (!free_stacks.empty()) {
    unsigned char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  void* mapped = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    fprintf(stderr, "emulated CUDA: no memory for the stacks of threads\n");
    abort();
  }
  mprotect(mapped, kPage, PROT_NONE);
  return static_cast<unsigned char*>(mapped);
}

void resume(Fiber& fiber) {
  if (!fiber.stack) {
    fiber.stack = take_stack();
    // As the switch leaves a stopped fiber: six registers, then where to return to; the stack's alignment is that of
    // a function's entry.
    void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(fiber_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
  }
  running = &fiber.thread;
  fiber.state = State::Ready;
  fastnn_emulation_switch(&scheduler_stack_pointer, fiber.stack_pointer);
  running = nullptr;
  if (fiber.state == State::Ended) {
    free_stacks.push_back(fiber.stack);
    fiber.stack = nullptr;
    if (&fiber != &fiber.thread.in->engine) --fiber.thread.in->alive;
  }
}

// ------------------------------------------------------------------------------ faults of memory

struct sigaction before_us[NSIG];
alignas(16) unsigned char emergency_stack[64 << 10];

// Runs in place of the instruction that faulted.
void abandon() {
  running->fiber->state = State::Ended;
  void* unused;
  fastnn_emulation_switch(&unused, scheduler_stack_pointer);
}

void on_fault(int number, siginfo_t* info, void* context) {
  if (running) {
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    fault_address = info->si_addr;
    fault_place = reinterpret_cast<const void*>(registers[REG_RIP] + 1);
    registers[REG_RIP] = reinterpret_cast<greg_t>(abandon);
    registers[REG_RSP] = reinterpret_cast<greg_t>(emergency_stack + sizeof emergency_stack - 8);
    return;
  }
  if (is_device_address(info->si_addr)) {
    static const char message[] = "emulated CUDA: the host touched device memory\n";
    if (write(2, message, sizeof message - 1) < 0) return;
  }
  sigaction(number, &before_us[number], nullptr);  // the instruction runs again, and faults for whoever was before us
}

}  // namespace

void catch_faults() {
  static bool caught = false;
  if (!caught) {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int number : {SIGSEGV, SIGBUS}) sigaction(number, &action, &before_us[number]);
    caught = true;
  }
  stack_t current;
  if (sigaltstack(nullptr, &current) == 0 && (current.ss_flags & SS_DISABLE)) {
    static unsigned char handler_stack[64 << 10];
    current.ss_sp = handler_stack;
    current.ss_size = sizeof handler_stack;
    current.ss_flags = 0;
    sigaltstack(&current, nullptr);
  }
}

namespace {

// ------------------------------------------------------------------------------ shared memory

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

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

size_t static_bytes() { return size_t(__stop_fastnn_shared - __start_fastnn_shared); }

void bind(Block& block) {
  if (bound == &block || static_bytes() == 0) return;
  if (bound) bound->statics.assign(__start_fastnn_shared, __stop_fastnn_shared);
  if (block.statics.empty())
    memset(__start_fastnn_shared, kPoison, static_bytes());
  else
    memcpy(__start_fastnn_shared, block.statics.data(), static_bytes());
  bound = &block;
}

// ------------------------------------------------------------------------------ blocks

dim3 unlinear(size_t i, dim3 size) {
  return dim3(unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y));
}

std::unique_ptr<Block> make_block(size_t linear, SharedPool& pool) {
  auto block = std::make_unique<Block>();
  const unsigned threads = shape->block.x * shape->block.y * shape->block.z;
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
    thread.thread = unlinear(i, shape->block);
    thread.block = unlinear(linear, shape->grid);
    thread.block_size = shape->block;
    thread.grid_size = shape->grid;
    thread.linear = i;
    thread.cluster_rank = unsigned(linear % shape->cluster);
    thread.cluster_size = shape->cluster;
    thread.fiber = &fiber;
    thread.in = block.get();
  }
  block->engine.thread = block->fibers[0].thread;
  block->engine.thread.fiber = &block->engine;
  return block;
}

// An access that faulted ends the launch.
void note_fault(const Thread& thread) {
  if (!fault_place || !failure.empty()) return;
  const unsigned char* dynamic = thread.in->dynamic;
  const ptrdiff_t offset = static_cast<const unsigned char*>(fault_address) - dynamic;
  const bool near = dynamic && offset >= -ptrdiff_t(kPage) && offset < ptrdiff_t(shape->shared_bytes + 2 * kPage);
  failure = thread_name(thread) + ": " +
            (near ? "illegal access at byte " + std::to_string(offset) + " of " + std::to_string(shape->shared_bytes) +
                        " bytes of dynamic shared memory"
                  : describe_address(fault_address)) +
            source_line(fault_place);
}

// Runs every thread that can go on once. Says whether any did something.
bool sweep(Block& block) {
  bool progress = false;
  const size_t n = block.fibers.size();
  for (size_t i = 0; i < n && failure.empty(); ++i) {
    Fiber& fiber = block.fibers[backwards ? n - 1 - i : i];
    if (fiber.state == State::Ended || fiber.state == State::Blocked) continue;
    if (fiber.state == State::Waiting && !fiber.ready(fiber.ready_state)) continue;
    resume(fiber);
    progress |= !(fiber.state == State::Paused && fiber.waited_before);
    note_fault(fiber.thread);
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
  note_fault(block.engine.thread);
}

bool run_deferred(const std::vector<std::unique_ptr<Block>>& resident) {
  for (const auto& block : resident) {
    if (block->deferred.empty()) continue;
    run_engine(*block);
    return true;
  }
  return false;
}

void release(Fiber& fiber) {
  if (fiber.stack) free_stacks.push_back(fiber.stack);
}

std::string run_blocks(const char* kernel) {
  const size_t threads = size_t(shape->block.x) * shape->block.y * shape->block.z;
  const size_t total = size_t(shape->grid.x) * shape->grid.y * shape->grid.z;
  // As many blocks stand side by side as the machine modelled has room for.
  size_t room = model().processors * (kProcessorThreads / threads);
  if (shape->shared_bytes)
    room = std::min(room, model().processors * (kProcessorShared / (shape->shared_bytes + kReservedShared)));
  room = std::max<size_t>(room / shape->cluster, 1) * shape->cluster;
  if (shape->cooperative && total > room)
    return std::string(kernel) + ": a cooperative grid of " + std::to_string(total) + " blocks, but only " +
           std::to_string(room) + " fit the device";
  SharedPool pool{shape->shared_bytes, {}};
  std::vector<std::unique_ptr<Block>> resident;
  size_t started = 0;
  auto admit = [&] {
    auto cluster = std::make_shared<Cluster>();
    const size_t number = started / shape->cluster;
    const size_t first = (backwards ? total / shape->cluster - 1 - number : number) * shape->cluster;
    for (unsigned rank = 0; rank < shape->cluster; ++rank) {
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
    for (size_t i = 0; i < resident.size() && failure.empty();) {
      Block& block = *resident[i];
      bind(block);
      while (failure.empty() && sweep(block)) progress = true;
      if (block.alive == 0 && failure.empty()) {
        while (!block.deferred.empty() && failure.empty()) run_engine(block);
        if (!pool.intact(block.dynamic))
          failure = thread_name(block.fibers[0].thread) + " or another of its block wrote behind its " +
                    std::to_string(shape->shared_bytes) + " bytes of shared memory";
        if (block.dynamic) pool.free.push_back(block.dynamic);
        if (bound == &block) bound = nullptr;
        resident.erase(resident.begin() + ptrdiff_t(i));
      } else {
        ++i;
      }
    }
    if (!failure.empty()) break;
    if (progress || run_deferred(resident)) continue;
    if (started < total && resident.size() + shape->cluster <= room)
      admit();
    else if (!resident.empty())
      failure = deadlock_report(resident);
    if (!failure.empty()) break;
  }
  for (auto& block : resident) {
    for (Fiber& fiber : block->fibers) release(fiber);
    if (block->dynamic) pool.free.push_back(block->dynamic);
  }
  for (unsigned char* memory : pool.free) pool.unmap(memory);
  bound = nullptr;
  return failure;
}

}  // namespace

// ------------------------------------------------------------------------------ what threads call

void fault(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string message = text(format, arguments);
  va_end(arguments);
  fail_from_fiber(message + source_line(__builtin_return_address(0)));
  __builtin_unreachable();
}

unsigned block_threads() { return unsigned(running->in->fibers.size()); }

__attribute__((noinline)) void meet_warp(uint32_t mask, const char* what, void* mine, Combine combine) {
  Block& block = *running->in;
  const unsigned me = lane();
  const void* place = __builtin_return_address(0);
  if (!(mask >> me & 1))
    fault("%s: its own lane %u is not in the mask 0x%x%s", what, me, mask, source_line(place).c_str());
  if (mask & block.ended_lanes[warp()])
    fault("%s: the mask 0x%x names lanes 0x%x, which have ended or do not exist%s", what, mask,
          mask & block.ended_lanes[warp()], source_line(place).c_str());
  auto& meetings = block.meetings[warp()];
  size_t at = 0;
  while (at < meetings.size() && (meetings[at].mask != mask || meetings[at].arrived >> me & 1)) ++at;
  if (at == meetings.size()) meetings.push_back({what, mask, 0, {}});
  Meeting& meeting = meetings[at];
  if (strcmp(meeting.what, what) != 0)
    fault("%s, while other lanes of its mask 0x%x wait at %s%s", what, mask, meeting.what, source_line(place).c_str());
  meeting.lanes[me] = mine;
  meeting.arrived |= 1u << me;
  if (meeting.arrived != mask) return stop(State::Blocked, what, place);
  Meeting complete = meeting;
  meetings.erase(meetings.begin() + ptrdiff_t(at));
  if (combine) combine(complete.lanes, mask);
  const unsigned first = running->linear - me;
  for (unsigned other = 0; other < kWarpThreads; ++other)
    if (other != me && mask >> other & 1) block.fibers[first + other].state = State::Ready;
}

__attribute__((noinline)) void meet_warpgroup(const char* what, void* mine, CombineGroup combine) {
  Block& block = *running->in;
  const unsigned group = running->linear / kWarpgroupThreads, me = running->linear % kWarpgroupThreads;
  const void* place = __builtin_return_address(0);
  if ((group + 1) * kWarpgroupThreads > block.fibers.size())
    fault("%s: its warpgroup has fewer than 128 threads", what);
  for (unsigned i = 0; i < 4; ++i)
    if (block.ended_lanes[4 * group + i]) fault("%s: a thread of its warpgroup has ended", what);
  GroupMeeting& meeting = block.group_meetings[group];
  if (meeting.arrived && strcmp(meeting.what, what) != 0)
    fault("%s, while others of its warpgroup wait at %s%s", what, meeting.what, source_line(place).c_str());
  meeting.what = what;
  meeting.threads[me] = mine;
  if (++meeting.arrived != kWarpgroupThreads) return stop(State::Blocked, what, place);
  meeting.arrived = 0;
  if (combine) combine(meeting.threads);
  for (unsigned other = 0; other < kWarpgroupThreads; ++other)
    if (other != me) block.fibers[group * kWarpgroupThreads + other].state = State::Ready;
}

namespace {
Barrier& arrive(int id, unsigned threads, const char* what) {
  Block& block = *running->in;
  if (id < 0 || id >= kBarriers) fault("%s: barrier %d, but there are %d", what, id, kBarriers);
  if (threads == 0 || threads % kWarpThreads || threads > rounded(block.fibers.size(), kWarpThreads))
    if (threads != block.fibers.size())
      fault("%s: barrier %d of %u threads in a block of %zu", what, id, threads, block.fibers.size());
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived && barrier.expected != threads)
    fault("%s: barrier %d is waited for by %u threads, others came for one of %u", what, id, threads, barrier.expected);
  if (id == 0 && threads == block.fibers.size() && block.alive != threads)
    fault("%s: %zu threads of the block have ended", what, block.fibers.size() - block.alive);
  barrier.expected = threads;
  barrier.what = what;
  ++barrier.arrived;
  return barrier;
}

// Lets the waiters go when the last one has come.
bool complete(Barrier& barrier) {
  if (barrier.arrived < barrier.expected) return false;
  for (Fiber* waiter : barrier.waiters) waiter->state = State::Ready;
  barrier.waiters.clear();
  barrier.arrived = 0;
  return true;
}
}  // namespace

__attribute__((noinline)) void barrier_sync(int id, unsigned threads, const char* what) {
  Barrier& barrier = arrive(id, threads, what);
  if (complete(barrier)) return;
  barrier.waiters.push_back(running->fiber);
  stop(State::Blocked, what, __builtin_return_address(0));
}

void barrier_arrive(int id, unsigned threads) { complete(arrive(id, threads, "barrier arrive")); }

__attribute__((noinline)) void cluster_sync() {
  Cluster& cluster = *running->in->cluster;
  if (++cluster.arrived == cluster.threads) {
    for (Fiber* waiter : cluster.waiters) waiter->state = State::Ready;
    cluster.waiters.clear();
    cluster.arrived = 0;
    return;
  }
  cluster.waiters.push_back(running->fiber);
  stop(State::Blocked, "cluster barrier", __builtin_return_address(0));
}

__attribute__((noinline)) void pause(bool first, const char* what) {
  running->fiber->waited_before = !first;
  stop(State::Paused, what, __builtin_return_address(0));
}

__attribute__((noinline)) void wait_until(bool (*ready)(const void*), const void* state, const char* what) {
  if (ready(state)) return;
  running->fiber->ready = ready;
  running->fiber->ready_state = state;
  stop(State::Waiting, what, __builtin_return_address(0));
}

void defer(std::function<void()> work) { running->in->deferred.push_back(std::move(work)); }

unsigned char* dynamic_shared() { return running->in->dynamic; }
size_t dynamic_shared_bytes() { return shape->shared_bytes; }

uint32_t shared_address(const void* pointer) {
  auto bytes = static_cast<const unsigned char*>(pointer);
  if (bytes >= __start_fastnn_shared && bytes < __stop_fastnn_shared)
    return kStaticWindow + uint32_t(bytes - __start_fastnn_shared);
  const unsigned char* dynamic = running->in->dynamic;
  if (!dynamic || bytes < dynamic || bytes > dynamic + shape->shared_bytes)
    fault("%p is not in the shared memory of this block", pointer);
  return kDynamicWindow + uint32_t(bytes - dynamic);
}

void* shared_pointer(uint32_t address, size_t bytes) {
  if (address >= kStaticWindow && address + bytes <= kStaticWindow + static_bytes())
    return __start_fastnn_shared + (address - kStaticWindow);
  if (address < kDynamicWindow || address + bytes > kDynamicWindow + shape->shared_bytes)
    fault("address 0x%x (%zu bytes) is outside the %zu bytes of dynamic shared memory", address, bytes,
          shape->shared_bytes);
  return running->in->dynamic + (address - kDynamicWindow);
}

void* cluster_pointer(const void* pointer, unsigned rank) {
  const Cluster& cluster = *running->in->cluster;
  if (rank >= cluster.blocks.size()) fault("block %u of a cluster of %zu", rank, cluster.blocks.size());
  auto bytes = static_cast<const unsigned char*>(pointer);
  const unsigned char* dynamic = running->in->dynamic;
  if (!dynamic || bytes < dynamic || bytes >= dynamic + shape->shared_bytes)
    fault("only dynamic shared memory is seen by other blocks of the cluster");
  return cluster.blocks[rank]->dynamic + (bytes - dynamic);
}

void async_copy(void* dst, const void* src, size_t bytes, size_t valid_bytes) {
  if (uintptr_t(dst) % bytes || (valid_bytes && uintptr_t(src) % bytes))
    fault("cp.async of %zu bytes from %p to %p: not aligned", bytes, src, dst);
  auto& copies = running->fiber->copies;
  if (copies.empty()) copies.emplace_back();
  copies.back().push_back({dst, src, bytes, valid_bytes});
}

void async_commit() {
  auto& copies = running->fiber->copies;
  if (copies.empty()) copies.emplace_back();
  copies.emplace_back();
}

void async_wait(int newest_left) {
  auto& copies = running->fiber->copies;
  // The open group is not waited for, except by those who wait for all.
  if (copies.empty()) return;
  while (int(copies.size()) - 1 > newest_left) {
    for (const AsyncCopy& copy : copies.front()) {
      memcpy(copy.dst, copy.src, copy.valid_bytes);
      memset(static_cast<char*>(copy.dst) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
    }
    copies.pop_front();
  }
}

void store_later(std::function<void()> work) { running->fiber->open_stores.push_back(std::move(work)); }

void store_commit() { running->fiber->stores.push_back(std::exchange(running->fiber->open_stores, {})); }

void store_wait(int newest_left) {
  auto& stores = running->fiber->stores;
  while (int(stores.size()) > newest_left) {
    for (const auto& work : stores.front()) work();
    stores.pop_front();
  }
}

Products& products() { return running->in->products[running->linear / kWarpgroupThreads]; }

void Products::issue(std::function<void()> product) {
  if (!fenced) fault("wgmma without wgmma_fence before it");
  open_.push_back(std::move(product));
}

void Products::commit() { groups_.push_back(std::exchange(open_, {})); }

void Products::wait(int newest_left) {
  while (int(groups_.size()) > newest_left) {
    for (const auto& product : groups_.front()) product();
    groups_.pop_front();
  }
  if (newest_left == 0) fenced = false;
}

std::string run_grid(const char* kernel, const Shape& launched, const std::function<void()>& thread_body) {
  catch_faults();
  shape = &launched;
  body = &thread_body;
  failure.clear();
  fault_place = nullptr;
  std::string message = run_blocks(kernel);
  backwards = !backwards;
  return message;
}

}  // namespace emulation
}  // namespace fastnn
