// Faults in data that a kernel finds: an index out of range, a label that is no class.
//
// The kernel leaves the first place in an int64, -1 when there is none, and reads or writes nothing out of range. On a
// GPU nobody waits for that: the number travels behind the kernel, and the next call that waits (item(), .cpu(),
// synchronize()) throws. FASTNN_CUDA_SYNC=1 makes the operation itself wait and throw. While a graph is captured
// nothing is checked.
#pragma once

#include <functional>
#include <string>

#include "core/tensor.h"

namespace fastnn {

void cuda_check_none_found(const Tensor& place, std::function<std::string(int64_t)> message);
void cuda_throw_found();  // what has arrived since; called by whatever has waited

// Throws IndexError with message(place) when the one int64 of `place` is not -1.
template <class Message>
void check_none_found(const Tensor& place, Message message) {
  if (place.device().is_cuda()) return cuda_check_none_found(place, message);
  const int64_t found = *place.data<int64_t>();
  if (found >= 0) fail<IndexError>(message(found));
}

}  // namespace fastnn
