#include "core/random.h"

#include <cstring>
#include <random>

#include "core/cuda_graph.h"

namespace fastnn {
namespace {

uint64_t entropy() {
  std::random_device device;
  return uint64_t(device()) << 32 | device();
}

constexpr int64_t kStateBytes = 16;

uint64_t read_little_endian(const uint8_t* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

void write_little_endian(uint64_t value, uint8_t* bytes) {
  for (int i = 0; i < 8; ++i, value >>= 8) bytes[i] = uint8_t(value);
}

}  // namespace

Generator::Generator(uint64_t seed) : next_{seed, 0, nullptr} {}

void Generator::manual_seed(uint64_t seed) {
  std::lock_guard<std::mutex> lock(mutex_);
  next_ = {seed, 0, nullptr};
}

uint64_t Generator::seed() {
  const uint64_t fresh = entropy();
  manual_seed(fresh);
  return fresh;
}

uint64_t Generator::initial_seed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return next_.seed;
}

RandomStream Generator::next_stream(Device device) {
  if (device.is_cuda() && cuda_is_capturing()) {
    check<RuntimeError>(this == &default_generator(),
                        "random: while a CUDA graph is captured, numbers come from the default generator only");
    return captured_random_stream();
  }
  return next_streams(1);
}

RandomStream Generator::next_streams(uint64_t count) {
  std::lock_guard<std::mutex> lock(mutex_);
  const RandomStream stream = next_;
  next_.offset += count;
  return stream;
}

Tensor Generator::get_state() const {
  Tensor state = empty({kStateBytes}, DType::UInt8);
  std::lock_guard<std::mutex> lock(mutex_);
  write_little_endian(next_.seed, state.data<uint8_t>());
  write_little_endian(next_.offset, state.data<uint8_t>() + 8);
  return state;
}

void Generator::set_state(const Tensor& state) {
  check<TypeError>(state.dtype() == DType::UInt8, "set_state: expected a uint8 tensor, got ", state.dtype());
  check(state.shape() == Dims{kStateBytes} && state.is_contiguous() && !state.device().is_cuda(),
        "set_state: expected ", kStateBytes, " contiguous bytes on the CPU, got shape ", state.shape());
  std::lock_guard<std::mutex> lock(mutex_);
  next_ = {read_little_endian(state.data<uint8_t>()), read_little_endian(state.data<uint8_t>() + 8), nullptr};
}

Generator& default_generator() {
  static Generator generator(entropy());
  return generator;
}

void manual_seed(uint64_t seed) { default_generator().manual_seed(seed); }

}  // namespace fastnn
