// GPUs: what they are, their streams, events and graphs. fastnn.cuda gives these PyTorch's names.
#include "core/cuda.h"

#include "core/cuda_graph.h"
#include "core/cuda_stream.h"
#include "core/found.h"
#include "python/bindings.h"

namespace py = pybind11;
using py::arg;

namespace fastnn::python {
namespace {

// None means the current device.
Device device_or_current(const DeviceArg& device) {
  const Device found = device.given ? device.value : Device{DeviceType::CUDA, int8_t(cuda_current_device())};
  check(found.is_cuda(), "expected a CUDA device, got '", found, "'");
  return found;
}

const CudaStream& stream_or_current(const CudaStream* stream, CudaStream& current) {
  if (stream) return *stream;
  return current = cuda_current_stream(device_or_current({}));
}

void bind_devices(py::module_& m) {
  py::class_<CudaProperties>(m, "CudaDeviceProperties", "What a GPU is; sizes in bytes.")
      .def_readonly("name", &CudaProperties::name)
      .def_readonly("major", &CudaProperties::major)
      .def_readonly("minor", &CudaProperties::minor)
      .def_readonly("total_memory", &CudaProperties::total_memory)
      .def_readonly("L2_cache_size", &CudaProperties::l2_cache_size)
      .def_readonly("shared_memory_per_multiprocessor", &CudaProperties::shared_memory_per_multiprocessor)
      .def_readonly("shared_memory_per_block_optin", &CudaProperties::shared_memory_per_block)
      .def_readonly("multi_processor_count", &CudaProperties::multi_processor_count)
      .def_readonly("max_threads_per_multi_processor", &CudaProperties::max_threads_per_multi_processor)
      .def_readonly("warp_size", &CudaProperties::warp_size)
      .def("__repr__", [](const CudaProperties& self) {
        return str("CudaDeviceProperties(name='", self.name, "', major=", self.major, ", minor=", self.minor,
                   ", total_memory=", self.total_memory, ", multi_processor_count=", self.multi_processor_count, ")");
      });
  const auto device = arg("device") = py::none();
  m.def("cuda_is_available", cuda_is_available);
  m.def("cuda_unavailable_reason", cuda_reason);
  m.def("cuda_device_count", cuda_device_count);
  m.def("cuda_is_emulated", [] {
#ifdef FASTNN_CUDA_EMULATED
    return true;
#else
    return false;
#endif
  });
  m.def("cuda_is_initialized", cuda_is_initialized);
  m.def("cuda_init", cuda_init);
  m.def("cuda_current_device", cuda_current_device);
  m.def("cuda_set_device", [](const DeviceArg& where) { cuda_set_device(device_or_current(where).index); }, device);
  m.def("cuda_synchronize", [](const DeviceArg& where) { cuda_synchronize(device_or_current(where)); }, device);
  m.def("cuda_properties", [](const DeviceArg& where) { return cuda_properties(device_or_current(where)); }, device);
  m.def(
      "cuda_memory",
      [](const DeviceArg& where) {
        const CudaMemory memory = cuda_memory(device_or_current(where));
        return std::pair(memory.free, memory.total);
      },
      device, "Bytes that are free, and all, for all processes.");
  m.def(
      "cuda_set_memory_fraction",
      [](double fraction, const DeviceArg& where) { cuda_set_memory_fraction(device_or_current(where), fraction); },
      arg("fraction"), device);
}

void bind_streams(py::module_& m, py::class_<CudaStream>& stream, py::class_<CudaEvent>& event) {
  stream
      .def(py::init([](const DeviceArg& device, int priority) {
             return cuda_new_stream(device_or_current(device), priority);
           }),
           arg("device") = py::none(), arg("priority") = 0)
      .def_property_readonly("device", [](const CudaStream& self) { return self.device; })
      .def_property_readonly("cuda_stream",
                             [](const CudaStream& self) { return reinterpret_cast<uintptr_t>(self.handle); })
      .def(
          "query", [](const CudaStream& self) { return cuda_query(self); }, "Has it done all that it was asked?")
      .def(
          "synchronize", [](const CudaStream& self) { cuda_synchronize(self); },
          "Waits until it has done all that it was asked.")
      .def(
          "wait_stream", [](const CudaStream& self, const CudaStream& first) { cuda_wait_stream(self, first); },
          arg("stream"), "What this stream is asked from now on comes behind what the other has been asked so far.")
      .def(
          "wait_event", [](const CudaStream& self, const CudaEvent& place) { place.hold(self); }, arg("event"),
          "What this stream is asked from now on comes behind the event.")
      .def(
          "record_event",
          [](const CudaStream& self, py::object place) {
            if (place.is_none()) place = py::cast(std::make_unique<CudaEvent>(false));
            place.cast<CudaEvent&>().record(self);
            return place;
          },
          arg("event") = py::none(), "Records the event, or a new one, and returns it.")
      .def("__eq__", [](const CudaStream& self, const CudaStream& other) { return self == other; })
      .def("__eq__", [](const CudaStream&, py::handle) { return false; })
      .def("__hash__", [](const CudaStream& self) { return reinterpret_cast<intptr_t>(self.handle); })
      .def("__repr__", [](const CudaStream& self) {
        return str("<fastnn.cuda.Stream device=", self.device, " cuda_stream=", self.handle, ">");
      });
  event
      .def(py::init([](bool timed, bool, bool) { return std::make_unique<CudaEvent>(timed); }),
           arg("enable_timing") = false, arg("blocking") = false, arg("interprocess") = false)
      .def(
          "record",
          [](CudaEvent& self, const CudaStream* where) {
            CudaStream current;
            self.record(stream_or_current(where, current));
          },
          arg("stream") = py::none())
      .def(
          "wait",
          [](const CudaEvent& self, const CudaStream* where) {
            CudaStream current;
            self.hold(stream_or_current(where, current));
          },
          arg("stream") = py::none(), "What the stream is asked from now on comes behind the event.")
      .def("query", &CudaEvent::query, "Has it been reached?")
      .def("synchronize", &CudaEvent::synchronize, "Waits until it has been reached.")
      .def("elapsed_time", &CudaEvent::elapsed_milliseconds, arg("end_event"),
           "Milliseconds from this event to the other.");
  m.def(
      "cuda_current_stream", [](const DeviceArg& device) { return cuda_current_stream(device_or_current(device)); },
      arg("device") = py::none());
  m.def(
      "cuda_default_stream", [](const DeviceArg& device) { return cuda_default_stream(device_or_current(device)); },
      arg("device") = py::none());
  m.def(
      "cuda_external_stream",
      [](uintptr_t handle, const DeviceArg& device) {
        check(handle != 0, "ExternalStream: expected the address of a stream; 1 names the legacy default stream");
        const CudaStream own = cuda_default_stream(device_or_current(device));  // opens the device, or says why not
        return CudaStream{own.device, reinterpret_cast<void*>(handle)};
      },
      arg("stream_ptr"), arg("device") = py::none());
  m.def("cuda_set_stream", cuda_set_stream, arg("stream"));
}

struct GraphPool {
  CudaGraph::Pool pool;
};

void bind_graphs(py::module_& m) {
  py::class_<GraphPool>(m, "CudaGraphPool", "The memory of a captured graph, which another may share.");
  py::class_<CudaGraph>(m, "CUDAGraph", "Work of a GPU, recorded once and replayed as one.")
      .def(py::init<>())
      .def(
          "capture_begin",
          [](CudaGraph& self, const GraphPool* pool) { self.capture_begin(pool ? pool->pool : CudaGraph::Pool()); },
          arg("pool") = py::none(),
          "From here to ``capture_end`` the work of this thread's current stream is recorded, not done.")
      .def("capture_end", &CudaGraph::capture_end)
      .def("replay", &CudaGraph::replay, "Does the recorded work again, on the current stream.")
      .def("reset", &CudaGraph::reset, "Forgets the recorded work and gives its memory back.")
      .def("pool", [](const CudaGraph& self) { return GraphPool{self.pool()}; })
      .def("node_count", &CudaGraph::node_count, "How many kernels, copies and fills a replay runs.");
  m.def("cuda_is_capturing", cuda_is_capturing);
}

}  // namespace

void bind_cuda(py::module_& m) {
  bind_devices(m);
  py::class_<CudaStream> stream(m, "Stream", "Work of a GPU that runs in order, beside that of other streams.");
  py::class_<CudaEvent> event(m, "Event", "A place in a stream, to wait for and to time.");
  bind_streams(m, stream, event);
  bind_graphs(m);
  // For tests: what an operation does with the place of a fault that its kernel found.
  m.def("_check_none_found", [](const Tensor& place) {
    check_none_found(place, [](int64_t found) { return str("a fault at place ", found); });
  });
}

}  // namespace fastnn::python
