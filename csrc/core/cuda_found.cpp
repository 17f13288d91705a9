#include <list>
#include <mutex>

#include "core/cuda_context.h"
#include "core/cuda_graph.h"
#include "core/found.h"

namespace fastnn {
namespace {

constexpr int64_t kOnTheWay = INT64_MIN;  // what a number is until it has arrived

struct Awaited {
  int64_t* place;  // pinned
  std::function<std::string(int64_t)> message;
};

// Never destroyed: calls may come at interpreter exit.
struct AwaitedList {
  std::mutex mutex;
  std::list<Awaited> entries;
};
AwaitedList& awaited() {
  static auto& list = *new AwaitedList;
  return list;
}

int64_t arrived(const Awaited& entry) { return __atomic_load_n(entry.place, __ATOMIC_ACQUIRE); }

// Takes out the entries that answer with -1.
void drop_harmless(std::list<Awaited>& entries) {
  entries.remove_if([](const Awaited& entry) {
    const bool harmless = arrived(entry) == -1;
    if (harmless) pinned_allocator().release(entry.place);
    return harmless;
  });
}

}  // namespace

void cuda_check_none_found(const Tensor& place, std::function<std::string(int64_t)> message) {
  if (cuda_is_capturing()) return;
  const CudaStream stream = cuda_current_stream(place.device());
  auto* number = static_cast<int64_t*>(pinned_allocator().allocate(sizeof(int64_t), nullptr));
  *number = kOnTheWay;
  {
    CudaDeviceScope scope(stream.device);
    check_cuda(cudaMemcpyAsync(number, place.raw(), sizeof(int64_t), cudaMemcpyDeviceToHost, handle_of(stream)),
               "copy");
  }
  {
    AwaitedList& list = awaited();
    std::lock_guard<std::mutex> lock(list.mutex);
    drop_harmless(list.entries);
    list.entries.push_back({number, std::move(message)});
  }
  if (cuda_waits_for_kernels()) cuda_synchronize(stream);
}

void cuda_throw_found() {
  AwaitedList& list = awaited();
  std::list<Awaited> found;
  {
    std::lock_guard<std::mutex> lock(list.mutex);
    if (list.entries.empty()) return;
    drop_harmless(list.entries);
    for (auto entry = list.entries.begin(); entry != list.entries.end();) {
      const auto next = std::next(entry);
      if (arrived(*entry) != kOnTheWay) found.splice(found.end(), list.entries, entry);
      entry = next;
    }
  }
  if (found.empty()) return;
  const Awaited first = found.front();
  const int64_t place = arrived(first);
  for (const Awaited& entry : found) pinned_allocator().release(entry.place);
  fail<IndexError>(first.message(place), " (found by the GPU after the call)");
}

}  // namespace fastnn
