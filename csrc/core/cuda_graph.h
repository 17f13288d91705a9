// CUDA graphs: the work that a stream is asked between begin and end is recorded instead of run, and replayed as one.
//
// A replay runs the same kernels on the same addresses: its inputs are tensors that the caller overwrites, its outputs
// those that the capture returned. Memory allocated while capturing comes from a pool that lives as long as the graph
// and its tensors. What the host computes (shapes, numbers, `if`) is fixed at the capture; reading a tensor on the host
// raises. Random numbers differ between replays: kernels take seed and offset from device memory that each replay
// fills (RandomStream::replay), as if its operations had been called one by one.
#pragma once

#include "core/cuda_stream.h"
#include "core/random.h"
#include "core/stream_allocator.h"

namespace fastnn {

class CudaGraph {
 public:
  using Pool = StreamAllocator::PoolHandle;

  CudaGraph();
  ~CudaGraph();
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  // From the calling thread's current stream; `pool` shares the memory of a graph that never runs at the same time.
  void capture_begin(const Pool& pool = {});
  void capture_end();
  void replay();  // on the current stream
  void reset();
  Pool pool() const;
  int64_t node_count() const;  // kernels, copies and fills of a replay

 private:
  friend RandomStream captured_random_stream();
  friend StreamAllocator::PoolHandle captured_pool(Device device);

  CudaStream stream_;
  void* executable_ = nullptr;  // cudaGraphExec_t
  int64_t nodes_ = 0;
  Pool pool_;
  uint64_t* random_ = nullptr;  // on the device: seed and first offset of a replay
  uint64_t random_streams_ = 0;
};

bool cuda_is_capturing();                                  // is the calling thread capturing a graph?
void check_not_capturing(const char* what);                // throws RuntimeError when it is
RandomStream captured_random_stream();                     // of the graph that is captured
StreamAllocator::PoolHandle captured_pool(Device device);  // null when nothing is captured there

}  // namespace fastnn
