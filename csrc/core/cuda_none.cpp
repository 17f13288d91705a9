// The answers about CUDA in a build without it.
#include "core/check.h"
#include "core/cuda.h"
#include "core/cuda_graph.h"
#include "core/found.h"

namespace fastnn {

namespace {
[[noreturn]] void absent(Device device = {DeviceType::CUDA, 0}) { fail<DeviceError>(device, ": ", cuda_reason()); }
}  // namespace

bool cuda_is_available() { return false; }
std::string cuda_reason() { return "fastnn was built without CUDA"; }
int cuda_device_count() { return 0; }
bool cuda_is_initialized() { return false; }
void cuda_init() { absent(); }
int cuda_current_device() { return 0; }
void cuda_set_device(int) { absent(); }
void cuda_synchronize(Device device) { absent(device); }
CudaProperties cuda_properties(Device device) { absent(device); }

CudaDeviceScope::CudaDeviceScope(Device device) : before_(0), current_(0) { absent(device); }
CudaDeviceScope::~CudaDeviceScope() = default;

void* cuda_allocate(size_t, Device device) { absent(device); }
void cuda_release(void*, Device) {}
void cuda_record_stream(const Storage&, void*) { absent(); }
MemoryStats cuda_memory_stats(Device device) { absent(device); }
void cuda_reset_peak_memory(Device device) { absent(device); }
void cuda_set_cache_limit(Device device, int64_t) { absent(device); }
void cuda_set_memory_fraction(Device device, double) { absent(device); }
void cuda_empty_cache(Device device) { absent(device); }
CudaMemory cuda_memory(Device device) { absent(device); }
Storage* allocate_pinned(size_t) { fail<DeviceError>("pin_memory: ", cuda_reason()); }
Device cuda_device_of(const void*) { absent(); }
void cuda_copy(void*, const Storage& to, const void*, const Storage&, size_t, bool) { absent(to.device); }
void cuda_kernel_done(const char*) {}

CudaStream cuda_new_stream(Device device, int) { absent(device); }
CudaStream cuda_default_stream(Device device) { absent(device); }
CudaStream cuda_current_stream(Device device) { absent(device); }
void cuda_set_stream(const CudaStream&) { absent(); }
bool cuda_query(const CudaStream&) { absent(); }
void cuda_synchronize(const CudaStream&) { absent(); }
void cuda_wait_stream(const CudaStream&, const CudaStream&) { absent(); }

CudaEvent::~CudaEvent() = default;
void CudaEvent::record(const CudaStream&) { absent(); }
void CudaEvent::hold(const CudaStream&) const { absent(); }
bool CudaEvent::query() const { absent(); }
void CudaEvent::synchronize() const { absent(); }
double CudaEvent::elapsed_milliseconds(const CudaEvent&) const { absent(); }

CudaGraph::CudaGraph() { absent(); }
CudaGraph::~CudaGraph() = default;
void CudaGraph::capture_begin(const Pool&) { absent(); }
void CudaGraph::capture_end() { absent(); }
void CudaGraph::replay() { absent(); }
void CudaGraph::reset() { absent(); }
CudaGraph::Pool CudaGraph::pool() const { absent(); }
int64_t CudaGraph::node_count() const { absent(); }

void cuda_check_none_found(const Tensor&, std::function<std::string(int64_t)>) { absent(); }
void cuda_throw_found() {}

bool cuda_is_capturing() { return false; }
void check_not_capturing(const char*) {}
RandomStream captured_random_stream() { absent(); }
StreamAllocator::PoolHandle captured_pool(Device) { return {}; }

}  // namespace fastnn
