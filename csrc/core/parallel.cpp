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
#ifdef FASTNN_OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/check.h"

namespace fastnn {

HostHooks host_hooks;

namespace {

constexpr int kMaxThreads = 1024;
constexpr auto kPollInterval = std::chrono::milliseconds(40);

struct ThreadCount {
  std::atomic<int> value;
  const char* source;
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
    int n = affinity_count();
    count.source = "affinity";
    if (int quota = quota_count(); quota && quota < n) n = quota, count.source = "cgroup quota";
    if (int wanted = environment_count(); wanted && wanted <= n) n = wanted, count.source = "OMP_NUM_THREADS";
    count.value = n;
  });
  return count;
}

std::atomic<int> callers{0};            // threads now inside parallel_run
std::atomic<bool> forked_child{false};  // libgomp's pool did not survive the fork
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

// One region: the chunks, dealt to threads as equal runs; who finishes early takes from the others.
class Region {
 public:
  Region(int64_t n, int64_t grain, ParallelBody body, void* context, int threads)
      : n_(n),
        grain_(grain),
        chunks_((n + grain - 1) / grain),
        body_(body),
        context_(context),
        threads_(threads),
        mode_(float_mode()),
        cursors_(static_cast<size_t>(threads)) {}

  void run_all() {
#ifdef FASTNN_OPENMP
    if (threads_ > 1) {
#pragma omp parallel num_threads(threads_)
      {
        run(omp_get_thread_num());
      }
    } else {
      run(0);
    }
#else
    run(0);
#endif
    if (error_) std::rethrow_exception(error_);
    if (interrupted_) throw PythonError();
  }

 private:
  struct alignas(64) Cursor {
    std::atomic<int64_t> next{0};
  };

  int64_t run_begin(int thread) const { return chunks_ * thread / threads_; }

  void run(int thread) {
    const uint64_t saved_mode = float_mode();
    const bool saved_inside = inside_region;
    set_float_mode(mode_);
    inside_region = true;
    try {
      for (int i = 0; i < threads_ && !stop_.load(std::memory_order_relaxed); ++i)
        drain((thread + i) % threads_, thread == 0);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      stop_ = true;
    }
    inside_region = saved_inside;
    set_float_mode(saved_mode);
  }

  void drain(int victim, bool polls) {
    const int64_t first = run_begin(victim), count = run_begin(victim + 1) - first;
    for (;;) {
      const int64_t taken = cursors_[victim].next.fetch_add(1, std::memory_order_relaxed);
      if (taken >= count || stop_.load(std::memory_order_relaxed)) return;
      const int64_t begin = (first + taken) * grain_;
      body_(context_, begin, std::min(begin + grain_, n_));
      if (polls) poll();
    }
  }

  // On the calling thread alone, every 40 ms: lets Ctrl-C stop a long operation.
  void poll() {
    if (!host_hooks.interrupted) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - polled_ < kPollInterval) return;
    polled_ = now;
    if (host_hooks.interrupted()) {
      interrupted_ = true;
      stop_ = true;
    }
  }

  const int64_t n_, grain_, chunks_;
  const ParallelBody body_;
  void* const context_;
  const int threads_;
  const uint64_t mode_;
  std::vector<Cursor> cursors_;
  std::atomic<bool> stop_{false};
  bool interrupted_ = false;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  std::chrono::steady_clock::time_point polled_ = std::chrono::steady_clock::now();
};

// libgomp ends the process when it cannot start a thread (a low process limit). So the first region
// of a size asks the system itself, and settles for what it gives.
int startable_threads(int wanted) {
  static std::mutex mutex;
  static int proven = 1, ceiling = kMaxThreads;
  std::lock_guard<std::mutex> lock(mutex);
  if (wanted <= proven) return wanted;
  std::vector<pthread_t> started;
  std::atomic<bool> open{false};
  for (int i = 1; i < std::min(wanted, ceiling); ++i) {
    pthread_t thread;
    auto wait = [](void* flag) -> void* {
      while (!static_cast<std::atomic<bool>*>(flag)->load()) sched_yield();
      return nullptr;
    };
    if (pthread_create(&thread, nullptr, wait, &open) != 0) break;
    started.push_back(thread);
  }
  open = true;
  for (pthread_t thread : started) pthread_join(thread, nullptr);
  proven = int(started.size()) + 1;
  if (proven < wanted) ceiling = proven;
  return proven;
}

}  // namespace

void parallel_run(int64_t n, int64_t grain, ParallelBody body, void* context) {
  static const int at_fork = pthread_atfork(nullptr, nullptr, [] {
    forked_child = true;
    callers = 0;
  });
  (void)at_fork;
  if (inside_region) {  // nested: the same chunks, in order, on this thread
    for (int64_t begin = 0; begin < n; begin += grain) body(context, begin, std::min(begin + grain, n));
    return;
  }
  const int64_t chunks = (n + grain - 1) / grain;
  HostLock unlocked;
  Caller caller;
  int threads = caller.alone && !forked_child ? num_threads() : 1;
  if (threads > 1) threads = startable_threads(int(std::min<int64_t>(threads, chunks)));
  Region(n, grain, body, context, threads).run_all();
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
