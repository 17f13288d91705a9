// CUDA streams and events.
//
// Work of one stream runs in its order; streams run side by side. Each device has a default stream, and each thread a
// current one per device, first the default: kernels and copies run on it. Events order streams and time them.
//
// Default streams keep order with the legacy default stream, on which other libraries work by default; other streams
// do not. Those come from a fixed number made once and handed out in turn, as in PyTorch.
#pragma once

#include <cstdint>

#include "core/device.h"

namespace fastnn {

struct CudaStream {
  Device device;
  void* handle = nullptr;  // cudaStream_t

  bool operator==(const CudaStream& other) const { return device == other.device && handle == other.handle; }
};

CudaStream cuda_new_stream(Device device, int priority);  // a lower number comes first
CudaStream cuda_default_stream(Device device);
CudaStream cuda_current_stream(Device device);
void cuda_set_stream(const CudaStream& stream);  // current one of its device, for the calling thread
bool cuda_query(const CudaStream& stream);       // has it done all that it was asked?
void cuda_synchronize(const CudaStream& stream);
// What `stream` is asked from now on comes behind what `first` has been asked so far. A handle of another library
// will do; 1 and 2 name the legacy and the per-thread default stream.
void cuda_wait_stream(const CudaStream& stream, const CudaStream& first);

// A place in a stream. Made on the device where it is first recorded.
class CudaEvent {
 public:
  explicit CudaEvent(bool timed) : timed_(timed) {}
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void record(const CudaStream& stream);
  void hold(const CudaStream& stream) const;  // what the stream is asked from now on comes behind the event
  bool query() const;                         // reached? True when it was never recorded
  void synchronize() const;
  double elapsed_milliseconds(const CudaEvent& end) const;

 private:
  bool timed_;
  Device device_;
  void* handle_ = nullptr;
};

}  // namespace fastnn
