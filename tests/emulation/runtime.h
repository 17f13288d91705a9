// How a launch reaches the emulation: core/cuda_launch.h calls this in place of the CUDA runtime.
#pragma once

#include <functional>
#include <initializer_list>

#include "machine.h"

namespace fastnn {
namespace emulation {

struct Argument {
  const void* data;
  size_t bytes;
};

// Throws DeviceError unless the launch succeeded. Defined by core/cuda.cpp's checks.
void check_launch(cudaError_t error);
cudaStream_t current_stream();

// Runs thread_body for every thread of the grid, or keeps it while the stream captures.
cudaError_t launch_grid(cudaStream_t stream, const void* kernel, const Shape& shape,
                        std::initializer_list<Argument> arguments, std::function<void()> thread_body);

// The argument with zeros between its members: what lies there by chance is no address.
template <class T>
T without_padding(T argument) {
  __builtin_clear_padding(&argument);
  return argument;
}

template <class... Params>
void launch_with(void (*kernel)(Params...), const Shape& shape, const Params&... arguments) {
  check_launch(launch_grid(current_stream(), reinterpret_cast<const void*>(kernel), shape,
                           {Argument{&arguments, sizeof arguments}...}, [=] { kernel(arguments...); }));
}

template <class... Params>
void launch(void (*kernel)(Params...), const Shape& shape, const Params&... arguments) {
  launch_with(kernel, shape, without_padding(arguments)...);
}

}  // namespace emulation
}  // namespace fastnn
