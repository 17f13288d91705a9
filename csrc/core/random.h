// Random streams: a Generator hands each operation a stream of its own, named by (seed, offset).
//
// Numbers come from Philox4x32-10 (simd/philox.h), a function of (seed, offset, index): the same for
// any thread count, CPU level and device. Each operation takes one offset.
#pragma once

#include <cstdint>
#include <mutex>

#include "core/tensor.h"
#include "simd/half.h"

namespace fastnn {

struct RandomStream {
  uint64_t seed;
  uint64_t offset;
  // In a CUDA graph, on the device: the seed and the first offset of the replay that runs, from which `offset` counts.
  // CUDA kernels draw from resolved().
  const uint64_t* replay = nullptr;

  FASTNN_HD RandomStream resolved() const {
    if (!replay) return *this;
    return {replay[0], replay[1] + offset, nullptr};
  }
};

class Generator {
 public:
  explicit Generator(uint64_t seed);

  void manual_seed(uint64_t seed);  // and offset 0
  uint64_t seed();                  // a seed from the system's entropy, which it returns
  uint64_t initial_seed() const;
  // Of an operation on `device`. While a CUDA graph is captured only the default generator has one for the GPU.
  RandomStream next_stream(Device device);
  RandomStream next_streams(uint64_t count);  // the first of `count` in a row

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
