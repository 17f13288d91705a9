#include "core/cuda_stream.h"

#include <mutex>

#include "core/check.h"
#include "core/cuda_context.h"
#include "core/cuda_graph.h"
#include "core/found.h"
#include "core/parallel.h"

namespace fastnn {
namespace {

constexpr int kStreamsPerDevice = 32;  // for each of the two priorities

thread_local void* current_streams[kMaxCudaDevices] = {};  // null: the default stream

cudaEvent_t make_event(Device device, unsigned flags) {
  CudaDeviceScope scope(device);
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, flags), "cudaEventCreate");
  return event;
}

// Waits, while other Python threads run on.
template <class Wait>
void wait(const char* what, Wait call) {
  check_not_capturing(what);
  void* lock = host_hooks.release ? host_hooks.release() : nullptr;
  const cudaError_t error = call();
  if (lock) host_hooks.retake(lock);
  check_cuda(error, what);
  cuda_throw_found();
}

bool is_done(cudaError_t error, const char* what) {
  if (error == cudaErrorNotReady) {
    cudaGetLastError();  // an answer, not an error: it must not appear at the next call
    return false;
  }
  check_cuda(error, what);
  return true;
}

}  // namespace

// ---------------------------------------------------------------------------------------- streams

CudaStream cuda_new_stream(Device device, int priority) {
  static std::mutex mutex;
  static cudaStream_t streams[kMaxCudaDevices][2][kStreamsPerDevice] = {};
  static int next[kMaxCudaDevices][2] = {};
  cuda_context(device);
  const int level = priority < 0 ? 1 : 0;
  std::lock_guard<std::mutex> lock(mutex);
  int& turn = next[device.index][level];
  cudaStream_t& stream = streams[device.index][level][turn];
  turn = (turn + 1) % kStreamsPerDevice;
  if (!stream) {
    CudaDeviceScope scope(device);
    check_cuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, -level), "cudaStreamCreate");
  }
  return {device, stream};
}

CudaStream cuda_default_stream(Device device) { return cuda_context(device).default_stream; }

CudaStream cuda_current_stream(Device device) {
  const CudaStream& first = cuda_context(device).default_stream;
  void* current = current_streams[device.index];
  return current ? CudaStream{device, current} : first;
}

void cuda_set_stream(const CudaStream& stream) {
  cuda_context(stream.device);
  current_streams[stream.device.index] = stream.handle;
}

cudaStream_t cuda_stream() {
  int index = 0;
  check_cuda(cudaGetDevice(&index), "cudaGetDevice");
  if (void* current = current_streams[index]) return static_cast<cudaStream_t>(current);
  return handle_of(cuda_context({DeviceType::CUDA, int8_t(index)}).default_stream);
}

bool cuda_query(const CudaStream& stream) { return is_done(cudaStreamQuery(handle_of(stream)), "query"); }

void cuda_synchronize(const CudaStream& stream) {
  wait("synchronize", [&] { return cudaStreamSynchronize(handle_of(stream)); });
}

void cuda_wait_stream(const CudaStream& stream, const CudaStream& first) {
  if (stream == first) return;
  CudaEvent place(/*timed=*/false);
  place.record(first);
  place.hold(stream);
}

// ----------------------------------------------------------------------------------------- events

CudaEvent::~CudaEvent() {
  if (handle_ && !cuda_forked()) cudaEventDestroy(static_cast<cudaEvent_t>(handle_));
}

void CudaEvent::record(const CudaStream& stream) {
  cuda_context(stream.device);
  check(!handle_ || device_ == stream.device, "event: it was recorded on ", device_,
        " and cannot be recorded on a stream of ", stream.device);
  if (!handle_) {
    handle_ = make_event(stream.device, timed_ ? cudaEventDefault : cudaEventDisableTiming);
    device_ = stream.device;
  }
  CudaDeviceScope scope(device_);
  check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(handle_), handle_of(stream)), "event");
}

void CudaEvent::hold(const CudaStream& stream) const {
  if (!handle_) return;
  CudaDeviceScope scope(stream.device);
  check_cuda(cudaStreamWaitEvent(handle_of(stream), static_cast<cudaEvent_t>(handle_), 0), "wait_event");
}

bool CudaEvent::query() const {
  return !handle_ || is_done(cudaEventQuery(static_cast<cudaEvent_t>(handle_)), "query");
}

void CudaEvent::synchronize() const {
  if (handle_) wait("synchronize", [&] { return cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)); });
}

double CudaEvent::elapsed_milliseconds(const CudaEvent& end) const {
  check(timed_ && end.timed_, "elapsed_time: both events need enable_timing=True");
  check<RuntimeError>(handle_ && end.handle_, "elapsed_time: both events must have been recorded");
  check<RuntimeError>(query() && end.query(),
                      "elapsed_time: an event has not been reached yet; call its synchronize() first");
  float milliseconds = 0;
  check_cuda(
      cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(handle_), static_cast<cudaEvent_t>(end.handle_)),
      "elapsed_time");
  return milliseconds;
}

}  // namespace fastnn
