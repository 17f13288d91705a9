// Work in steps that depend on each other: each is shared by the threads, which meet after it.
#pragma once

#include <cstdint>

namespace fastnn {

// Steps in order, each of n_pieces that run side by side: body(step, piece) is called when all pieces of the step
// before have ended, and sees what they wrote. A thread keeps its piece from step to step, and so its data in its
// core's caches; it takes over those of threads that do not come. Its pieces should be as many as the threads, and
// take some microseconds: between steps threads wait awake.
using StepBody = void (*)(void* context, int64_t step, int64_t piece);
void steps_run(int64_t n_steps, int64_t n_pieces, StepBody body, void* context);

template <class Body>
__attribute__((always_inline)) inline void parallel_steps(int64_t n_steps, int64_t n_pieces, const Body& body) {
  if (n_pieces > 1)
    return steps_run(
        n_steps, n_pieces,
        [](void* context, int64_t step, int64_t piece) { (*static_cast<const Body*>(context))(step, piece); },
        const_cast<void*>(static_cast<const void*>(&body)));
  for (int64_t step = 0; step < n_steps; ++step) body(step, 0);
}

}  // namespace fastnn
