// Random streams: a Generator hands each operation a stream of its own, named by (seed, offset).
//
// Numbers come from Philox4x32-10 (simd/philox.h), a function of (seed, offset, index): the same for
// any thread count, CPU level and device. Each operation takes one offset.
#pragma once

#include <cstdint>
#include <mutex>

#include "core/tensor.h"

namespace fastnn {

struct RandomStream {
  uint64_t seed;
  uint64_t offset;
};

class Generator {
 public:
  explicit Generator(uint64_t seed);

  void manual_seed(uint64_t seed);  // and offset 0
  uint64_t seed();                  // a seed from the system's entropy, which it returns
  uint64_t initial_seed() const;
  RandomStream next_stream();

  // Seed and offset as 16 bytes, little-endian. set_state throws on anything else.
  Tensor get_state() const;
  void set_state(const Tensor& state);

 private:
  mutable std::mutex mutex_;
  RandomStream next_;
};

Generator& default_generator();  // seeded from the system's entropy at first use
void manual_seed(uint64_t seed);

}  // namespace fastnn
