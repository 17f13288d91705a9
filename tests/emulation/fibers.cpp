// Threads of the emulated device as fibers: how one stops and another goes on, and what becomes of one that faults.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device_memory.h"
#include "machine_parts.h"

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

namespace fastnn {
namespace emulation {

Thread* running = nullptr;
Launch launched;

namespace {

constexpr size_t kStackBytes = 256 << 10;

void* scheduler_stack_pointer = nullptr;
std::vector<unsigned char*> free_stacks;

// An access that faulted, noted by the signal handler.
const void* fault_address = nullptr;
const void* fault_place = nullptr;

}  // namespace

// ------------------------------------------------------------------------------ words

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

namespace {
void back_to_scheduler() {
  Fiber& fiber = *running->fiber;
  fastnn_emulation_switch(&fiber.stack_pointer, scheduler_stack_pointer);
}

}  // namespace

__attribute__((noinline)) void stop(State state, const char* what, const void* place) {
  Fiber& fiber = *running->fiber;
  fiber.state = state;
  fiber.what = what;
  fiber.place = place;
  back_to_scheduler();
}

namespace {

void fail_from_fiber(std::string message) {
  if (launched.failure.empty()) launched.failure = thread_name(*running) + ": " + std::move(message);
  running->fiber->state = State::Ended;
  back_to_scheduler();
}

void perform_deferred(Block& block) {
  const auto position = launched.backwards ? block.deferred.end() - 1 : block.deferred.begin();
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
  (*launched.body)();
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

// An access that faulted ends the launch.
void note_fault(const Thread& thread) {
  const void* const place = std::exchange(fault_place, nullptr);
  if (!place || !launched.failure.empty()) return;
  const unsigned char* dynamic = thread.in->dynamic;
  const ptrdiff_t offset = static_cast<const unsigned char*>(fault_address) - dynamic;
  const bool near =
      dynamic && offset >= -ptrdiff_t(kPage) && offset < ptrdiff_t(launched.shape->shared_bytes + 2 * kPage);
  launched.failure = thread_name(thread) + ": " +
                     (near ? "illegal access at byte " + std::to_string(offset) + " of " +
                                 std::to_string(launched.shape->shared_bytes) + " bytes of dynamic shared memory"
                           : describe_address(fault_address)) +
                     source_line(place);
}

}  // namespace

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
  note_fault(fiber.thread);
}

void release(Fiber& fiber) {
  if (fiber.stack) free_stacks.push_back(fiber.stack);
}

// ------------------------------------------------------------------------------ faults of memory

namespace {

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

void fault(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char message[1024];
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  fail_from_fiber(message + source_line(__builtin_return_address(0)));
  __builtin_unreachable();
}

}  // namespace emulation
}  // namespace fastnn
