#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/check.h"
#include "core/steps.h"
#include "core/thread_pool.h"

namespace fastnn {

HostHooks host_hooks;

namespace {

constexpr auto kPollInterval = std::chrono::milliseconds(40);

struct ThreadCount {
  std::atomic<int> value;
  const char* source;
  int cores;  // that the affinity allows
};

int affinity_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// CPUs that the container's quota pays for, or 0 when there is no quota.
int quota_count() {
  double quota = 0, period = 0;
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = 0;
    std::fclose(file);
  } else if (FILE* v1 = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
    if (std::fscanf(v1, "%lf", &quota) != 1) quota = 0;
    std::fclose(v1);
    if (FILE* v1_period = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
      if (std::fscanf(v1_period, "%lf", &period) != 1) period = 0;
      std::fclose(v1_period);
    }
  }
  if (quota <= 0 || period <= 0) return 0;
  return std::max(1, int(std::ceil(quota / period)));
}

// OMP_NUM_THREADS, or 0 when unset. A value that is no positive number is reported and ignored.
int environment_count() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  if (!text || !*text) return 0;
  char* end = nullptr;
  long n = std::strtol(text, &end, 10);
  if (n >= 1 && (*end == '\0' || *end == ',')) return int(std::min<long>(n, kMaxThreads));
  std::fprintf(stderr, "fastnn: OMP_NUM_THREADS='%s' is not a positive number; ignored\n", text);
  return 0;
}

ThreadCount& thread_count() {
  static ThreadCount count{};
  static std::once_flag once;
  std::call_once(once, [] {
    int n = count.cores = affinity_count();
    count.source = "affinity";
    if (int quota = quota_count(); quota && quota < n) n = quota, count.source = "cgroup quota";
    if (int wanted = environment_count(); wanted && wanted <= n) n = wanted, count.source = "OMP_NUM_THREADS";
    count.value = n;
  });
  return count;
}

std::atomic<int> callers{0};            // threads now inside parallel_run
std::atomic<bool> forked_child{false};  // it has no workers
thread_local bool inside_region = false;

struct Caller {
  Caller() : alone(callers.fetch_add(1) == 0) {}
  ~Caller() { callers.fetch_sub(1); }
  bool alone;
};

struct HostLock {
  HostLock() : state(host_hooks.release ? host_hooks.release() : nullptr) {}
  ~HostLock() {
    if (state) host_hooks.retake(state);
  }
  void* state;
};

#if defined(__x86_64__)
uint64_t float_mode() { return _mm_getcsr(); }
void set_float_mode(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
constexpr uint64_t kFlushBits = 0x8040;  // flush-to-zero and denormals-are-zero
#elif defined(__aarch64__)
uint64_t float_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
constexpr uint64_t kFlushBits = uint64_t(1) << 24;
#else
uint64_t float_mode() { return 0; }
void set_float_mode(uint64_t) {}
constexpr uint64_t kFlushBits = 0;
#endif

// Lets Ctrl-C stop a long operation: asked on the calling thread after every chunk, it looks every 40 ms.
class Interrupts {
 public:
  bool pending() {
    if (!host_hooks.interrupted) return false;
    const auto now = std::chrono::steady_clock::now();
    if (now - looked_ < kPollInterval) return false;
    looked_ = now;
    return host_hooks.interrupted();
  }

 private:
  std::chrono::steady_clock::time_point looked_ = std::chrono::steady_clock::now();
};

struct InsideRegion {
  InsideRegion() { inside_region = true; }
  ~InsideRegion() { inside_region = false; }
};

// How many chunks of its run each thread has dealt out; there is one region of several threads at a time.
struct alignas(64) Cursor {
  std::atomic<int64_t> next;
};
Cursor cursors[kMaxThreads];

// One region: the chunks, dealt to threads as equal runs; who finishes early takes from the others.
class Region {
 public:
  Region(int64_t n, int64_t grain, ParallelBody body, void* context)
      : n_(n), grain_(grain), chunks_((n + grain - 1) / grain), body_(body), context_(context) {}

  int64_t chunks() const { return chunks_; }

  void run_chunk(int64_t chunk) const {
    const int64_t begin = chunk * grain_;
    body_(context_, begin, std::min(begin + grain_, n_));
  }

  void run_nested() const {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) run_chunk(chunk);
  }

  void run_serial() {
    InsideRegion inside;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      run_chunk(chunk);
      if (interrupts_.pending()) throw PythonError();
    }
  }

  void run_parallel(int threads, bool spin) {
    threads_ = threads;
    mode_ = float_mode();
    for (int thread = 0; thread < threads; ++thread) cursors[thread].next.store(0, std::memory_order_relaxed);
    run_team(threads, spin, [](void* region, int thread) { static_cast<Region*>(region)->take_part(thread); }, this);
    if (error_) std::rethrow_exception(error_);
    if (interrupted_) throw PythonError();
  }

 private:
  int64_t run_begin(int thread) const { return chunks_ * thread / threads_; }

  void take_part(int thread) {
    InsideRegion inside;
    const uint64_t saved_mode = float_mode();
    set_float_mode(mode_);
    try {
      for (int i = 0; i < threads_ && !stop_.load(std::memory_order_relaxed); ++i)
        drain((thread + i) % threads_, thread == 0);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      stop_ = true;
    }
    set_float_mode(saved_mode);
  }

  void drain(int victim, bool polls) {
    const int64_t first = run_begin(victim), count = run_begin(victim + 1) - first;
    for (;;) {
      const int64_t taken = cursors[victim].next.fetch_add(1, std::memory_order_relaxed);
      if (taken >= count || stop_.load(std::memory_order_relaxed)) return;
      run_chunk(first + taken);
      if (polls && interrupts_.pending()) interrupted_ = stop_ = true;
    }
  }

  const int64_t n_, grain_, chunks_;
  const ParallelBody body_;
  void* const context_;
  int threads_ = 1;
  uint64_t mode_ = 0;
  Interrupts interrupts_;
  bool interrupted_ = false;
  std::atomic<bool> stop_{false};
  std::exception_ptr error_;
  std::mutex error_mutex_;
};

constexpr int kWaitsAwake = 2000;  // then the core is offered to others after each look

// The steps of parallel_steps. Whoever claims a piece has found the step before complete, so that only pieces that
// run are waited for: any number of threads, down to the calling one alone, finishes.
class Steps {
 public:
  Steps(int64_t n_steps, int64_t n_pieces, StepBody body, void* context)
      : n_steps_(n_steps), n_pieces_(n_pieces), body_(body), context_(context), claimed_(size_t(n_pieces)) {}

  void take_part(int64_t own) {
    try {
      for (int64_t step = done_.load(std::memory_order_acquire) / n_pieces_; step < n_steps_ && wait_for(step); ++step)
        for (int64_t i = 0; i < n_pieces_; ++i) run_piece(step, (own + i) % n_pieces_);
    } catch (...) {
      failed_ = true;
      throw;
    }
  }

 private:
  struct alignas(64) Claimed {
    std::atomic<int64_t> steps{0};  // of one piece
  };

  void run_piece(int64_t step, int64_t piece) {
    int64_t expected = step;
    std::atomic<int64_t>& claimed = claimed_[size_t(piece)].steps;
    if (claimed.load(std::memory_order_relaxed) != step || !claimed.compare_exchange_strong(expected, step + 1)) return;
    body_(context_, step, piece);
    done_.fetch_add(1, std::memory_order_acq_rel);
  }

  // False when a piece has failed.
  bool wait_for(int64_t step) {
    for (int64_t looks = 0; done_.load(std::memory_order_acquire) < step * n_pieces_; ++looks) {
      if (failed_.load(std::memory_order_relaxed)) return false;
      looks < kWaitsAwake ? pause_core() : void(sched_yield());
    }
    return true;
  }

  const int64_t n_steps_, n_pieces_;
  const StepBody body_;
  void* const context_;
  std::vector<Claimed> claimed_;
  alignas(64) std::atomic<int64_t> done_{0};  // pieces, of all steps
  std::atomic<bool> failed_{false};
};

}  // namespace

void steps_run(int64_t n_steps, int64_t n_pieces, StepBody body, void* context) {
  Steps steps(n_steps, n_pieces, body, context);
  parallel_for(n_pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t own = begin; own < end; ++own) steps.take_part(own);
  });
}

void parallel_run(int64_t n, int64_t grain, ParallelBody body, void* context) {
  static const int at_fork = pthread_atfork(nullptr, nullptr, [] {
    forked_child = true;
    callers = 0;
    abandon_team();
  });
  (void)at_fork;
  Region region(n, grain, body, context);
  if (inside_region) return region.run_nested();
  HostLock unlocked;
  Caller caller;
  const int threads = caller.alone && !forked_child ? int(std::min<int64_t>(num_threads(), region.chunks())) : 1;
  if (threads == 1) return region.run_serial();
  region.run_parallel(threads, threads <= thread_count().cores);
}

int num_threads() { return thread_count().value.load(std::memory_order_relaxed); }

const char* num_threads_source() { return forked_child ? "forked child" : thread_count().source; }

void set_num_threads(int n) {
  check(n >= 1 && n <= kMaxThreads, "set_num_threads: expected 1 to ", kMaxThreads, " threads, got ", n);
  thread_count().source = "set_num_threads";
  thread_count().value = n;
}

FlushSubnormals::FlushSubnormals(bool enable) : saved_(0), enabled_(enable) {
  if (!enabled_) return;
  saved_ = float_mode();
  if ((saved_ & kFlushBits) == kFlushBits) {
    enabled_ = false;
    return;
  }
  set_float_mode(saved_ | kFlushBits);
}

FlushSubnormals::~FlushSubnormals() {
  if (enabled_) set_float_mode(saved_);
}

}  // namespace fastnn
