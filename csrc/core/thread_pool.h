// The worker threads under parallel_for.
//
// The calling thread posts a job and starts on it at once; workers that come in time help. A worker
// that comes late, because the system runs something else on its core, finds the job closed: nobody
// waits for it. So the work of slot 0 alone must be able to finish the whole job, and the other
// slots take from it what they can.
//
// Workers start with the first job that wants them, as many as the system gives, and never end: after
// a job they spin for a moment, then sleep. The process may exit over them at any time.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastnn {

// In a loop that waits awake: leaves the core's resources to its other thread.
inline void pause_core() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kMaxThreads = 1024;

using TeamWork = void (*)(void* context, int slot);  // throws nothing

// Calls work(context, 0) on this thread and, meanwhile, work(context, slot) on those workers among
// slots 1 to team - 1 that come while it runs; returns when all calls have. One thread at a time.
// `spin`: there is a core for each thread of the team, so that waiting awake takes from nobody.
// Throws RuntimeError in a child that was forked by the work itself: it has no workers.
void run_team(int team, bool spin, TeamWork work, void* context);

// For a forked child, where the workers are gone.
void abandon_team();

}  // namespace fastnn
