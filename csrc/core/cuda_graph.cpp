#include "core/cuda_graph.h"

#include "core/check.h"
#include "core/cuda.h"
#include "core/cuda_context.h"

namespace fastnn {
namespace {

thread_local CudaGraph* captured = nullptr;

constexpr size_t kRandomBytes = 2 * sizeof(uint64_t);

void put_off_marks(const CudaStream& stream) {
  cuda_context(stream.device).allocator->begin_capture();
  pinned_allocator().begin_capture();
}

void make_marks(const CudaStream& stream) {
  cuda_context(stream.device).allocator->end_capture();
  pinned_allocator().end_capture();
}

}  // namespace

CudaGraph::CudaGraph() { cuda_init(); }

CudaGraph::~CudaGraph() {
  if (!cuda_forked()) reset();
}

void CudaGraph::capture_begin(const Pool& pool) {
  check<RuntimeError>(!captured, "capture_begin: this thread is capturing a graph already");
  check<RuntimeError>(!executable_, "capture_begin: the graph holds a capture; reset() it, or use a new CUDAGraph");
  stream_ = cuda_current_stream({DeviceType::CUDA, int8_t(cuda_current_device())});
  StreamAllocator& allocator = *cuda_context(stream_.device).allocator;
  if (!random_) random_ = static_cast<uint64_t*>(cuda_allocate(kRandomBytes, stream_.device));
  random_streams_ = 0;
  pool_ = pool ? pool : allocator.new_pool();
  put_off_marks(stream_);
  const cudaError_t error = cudaStreamBeginCapture(handle_of(stream_), cudaStreamCaptureModeThreadLocal);
  if (error != cudaSuccess) make_marks(stream_);
  check_cuda(error, "capture_begin");
  captured = this;
}

void CudaGraph::capture_end() {
  check<RuntimeError>(captured == this, "capture_end: this thread is not capturing this graph");
  captured = nullptr;
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(handle_of(stream_), &graph);
  make_marks(stream_);
  check_cuda(error, "capture_end");
  size_t nodes = 0;
  cudaGraphExec_t executable = nullptr;
  error = cudaGraphGetNodes(graph, nullptr, &nodes);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(error, "capture_end");
  executable_ = executable;
  nodes_ = int64_t(nodes);
}

void CudaGraph::replay() {
  check<RuntimeError>(executable_ != nullptr, "replay: the graph holds no finished capture");
  check_not_capturing("replay");
  const CudaStream stream = cuda_current_stream(stream_.device);
  CudaDeviceScope scope(stream.device);
  if (random_streams_ > 0) {
    const RandomStream first = default_generator().next_streams(random_streams_);
    // From pinned memory: it stays until the copy has passed, so that the CPU need not wait.
    uint64_t* staged = static_cast<uint64_t*>(pinned_allocator().allocate(kRandomBytes, nullptr));
    staged[0] = first.seed;
    staged[1] = first.offset;
    pinned_allocator().record_stream(staged, stream.handle);
    const cudaError_t error = cudaMemcpyAsync(random_, staged, kRandomBytes, cudaMemcpyHostToDevice, handle_of(stream));
    pinned_allocator().release(staged);
    check_cuda(error, "replay");
  }
  check_cuda(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), handle_of(stream)), "replay");
}

void CudaGraph::reset() {
  if (captured == this) {  // an error left the capture open
    captured = nullptr;
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(handle_of(stream_), &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    make_marks(stream_);
  }
  if (executable_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
  executable_ = nullptr;
  if (random_) cuda_release(random_, stream_.device);
  random_ = nullptr;
  pool_.reset();
}

CudaGraph::Pool CudaGraph::pool() const {
  check<RuntimeError>(pool_ != nullptr, "pool: the graph has captured nothing yet");
  return pool_;
}

int64_t CudaGraph::node_count() const {
  check<RuntimeError>(executable_ != nullptr, "node_count: the graph holds no finished capture");
  return nodes_;
}

bool cuda_is_capturing() { return captured != nullptr; }

void check_not_capturing(const char* what) {
  check<RuntimeError>(!captured, what,
                      ": the CPU cannot wait for the GPU while a CUDA graph is captured (item(), "
                      "bool(), .cpu(), printing and checks of values read on the host); do it before or after");
}

// What the kernel reads is random_ + its number among the graph's.
RandomStream captured_random_stream() {
  RandomStream stream{};
  stream.offset = captured->random_streams_++;
  stream.replay = captured->random_;
  return stream;
}

StreamAllocator::PoolHandle captured_pool(Device device) {
  return captured && captured->stream_.device == device ? captured->pool_ : nullptr;
}

}  // namespace fastnn
