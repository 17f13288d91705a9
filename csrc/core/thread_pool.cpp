#include "core/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include "core/check.h"

namespace fastnn {
namespace {

using Clock = std::chrono::steady_clock;
// A worker that sleeps takes 35 us to come, so it stays awake over what Python does between operations.
constexpr auto kSpinTime = std::chrono::milliseconds(1);
// Between two looks at the clock this much is lost only when the system gave the core to somebody else.
// Spinning on would cost the thread the time that it needs for work, so for a while it only sleeps.
constexpr auto kLostTime = std::chrono::microseconds(200);
constexpr auto kBusyTime = std::chrono::milliseconds(50);
constexpr int kPausesPerClockRead = 16;

// Where one thread waits until ready(), which some other thread makes true and then calls wake().
// All accesses here and those of ready() are sequentially consistent: either the sleeper sees what
// was made true, or wake() sees the sleeper.
class alignas(64) Parking {
 public:
  template <class Ready>
  void wait(bool spin, Ready ready) {
    if (!spin || !spin_until(ready)) sleep_until(ready);
  }

  void wake() {
    if (asleep_ && asleep_.exchange(0)) syscall(SYS_futex, &asleep_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }

 private:
  // False when it takes too long or others want the core.
  template <class Ready>
  bool spin_until(Ready ready) {
    auto now = Clock::now();
    if (now < busy_until_) return false;
    for (const auto end = now + kSpinTime; now < end;) {
      for (int i = 0; i < kPausesPerClockRead; ++i, pause_core())
        if (ready()) return true;
      const auto before = now;
      now = Clock::now();
      if (now - before > kLostTime) {
        busy_until_ = now + kBusyTime;
        return false;
      }
    }
    return false;
  }

  template <class Ready>
  void sleep_until(Ready ready) {
    while (!ready()) {
      asleep_ = 1;
      if (!ready()) syscall(SYS_futex, &asleep_, FUTEX_WAIT_PRIVATE, 1, nullptr, nullptr, 0);
      asleep_ = 0;
    }
  }

  std::atomic<uint32_t> asleep_{0};
  Clock::time_point busy_until_{};  // of the thread that waits here
};

// One word says who may enter and who is inside: the number of the job (high 32 bits), the size of
// its team or 0 once it is closed (16 bits), the workers inside (low 16 bits). A worker enters by
// adding itself to exactly the word that it found open.
alignas(64) std::atomic<uint64_t> gate{0};
constexpr uint64_t kTeamMask = 0xFFFF0000;

uint64_t job_number(uint64_t state) { return state >> 32; }
int team_size(uint64_t state) { return int((state & kTeamMask) >> 16); }
int workers_inside(uint64_t state) { return int(state & 0xFFFF); }

// Read only by who is inside; written only when nobody is.
struct Job {
  TeamWork work;
  void* context;
  bool spin;
};
Job job;
std::atomic<int> caller_core{-1};

Parking parkings[kMaxThreads];  // of the caller at 0, of each worker at its slot
int n_started = 0;              // workers; owned, with n_startable, by the calling thread
int n_startable = kMaxThreads - 1;

// Each thread of a team wakes two more, so that the caller gets to work at once.
void wake_next(int slot, int team) {
  for (int next = 2 * slot + 1; next <= 2 * slot + 2 && next < team; ++next) parkings[next].wake();
}

// A worker that was woken on the core of the caller holds it up: it lets the caller go first, and by
// then the system has usually given it another core.
bool shares_caller_core() {
  if (sched_getcpu() != caller_core) return false;
  sched_yield();
  return sched_getcpu() == caller_core;
}

[[noreturn]] void serve(int slot) {
  uint64_t last = 0, state = 0;
  bool spin = true;
  for (;;) {
    parkings[slot].wait(spin && !shares_caller_core(), [&] {
      state = gate;
      return job_number(state) != last && team_size(state) > slot;
    });
    wake_next(slot, team_size(state));
    if (!gate.compare_exchange_weak(state, state + 1)) continue;
    last = job_number(state);
    spin = job.spin;
    job.work(job.context, slot);
    const uint64_t left = gate.fetch_sub(1) - 1;
    if (team_size(left) == 0 && workers_inside(left) == 0) parkings[0].wake();
  }
}

// A thread that cannot be started (a low process limit) is not tried again.
void start_workers(int wanted) {
  while (n_started < wanted && n_started < n_startable) {
    auto main = [](void* slot) -> void* { serve(int(reinterpret_cast<intptr_t>(slot))); };
    pthread_t thread;
    if (pthread_create(&thread, nullptr, main, reinterpret_cast<void*>(intptr_t(n_started + 1))) != 0) {
      n_startable = n_started;
      return;
    }
    pthread_detach(thread);
    ++n_started;
  }
}

}  // namespace

void run_team(int team, bool spin, TeamWork work, void* context) {
  job = {work, context, spin};
  caller_core = sched_getcpu();
  const uint64_t number = uint32_t(job_number(gate) + 1);
  gate = number << 32 | uint64_t(team) << 16;
  wake_next(0, team);
  start_workers(team - 1);
  work(context, 0);
  const uint64_t closed = gate.fetch_and(~kTeamMask);
  check<RuntimeError>(job_number(closed) == number, "a process forked inside an operation cannot finish it");
  parkings[0].wait(spin, [] { return workers_inside(gate) == 0; });
}

void abandon_team() { gate = (job_number(gate) + 1) << 32; }

}  // namespace fastnn
