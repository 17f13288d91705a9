// Devices, threads, memory, random state and configuration.
#include <cxxabi.h>
#include <unistd.h>

#include "core/parallel.h"
#include "core/random.h"
#include "python/bindings.h"

namespace py = pybind11;
using py::arg;

namespace fastnn::python {
namespace {

// Once the interpreter is on its way out, it ends any other thread that asks for its lock by unwinding the
// stack, which no destructor survives. So such a thread stops here, until the process has gone.
template <class Take>
auto take_python_lock(Take take) {
  try {
    return take();
  } catch (const abi::__forced_unwind&) {
    for (;;) pause();
  }
}

// Around a long region other Python threads may run; Ctrl-C is looked for on the main thread.
void install_host_hooks() {
  host_hooks.release = [] { return PyGILState_Check() ? static_cast<void*>(PyEval_SaveThread()) : nullptr; };
  host_hooks.retake = [](void* state) {
    take_python_lock([=] { PyEval_RestoreThread(static_cast<PyThreadState*>(state)); });
  };
  host_hooks.interrupted = [] {
    const PyGILState_STATE state = take_python_lock(PyGILState_Ensure);
    const bool pending = PyErr_CheckSignals() != 0;
    PyGILState_Release(state);
    return pending;
  };
}

void bind_devices(py::module_& m) {
  py::class_<Device>(m, "device", "Where a tensor lives: 'cpu' or 'cuda:N'.")
      .def(py::init([](const std::string& type, int index) { return parse_device(str(type, ":", index)); }),
           arg("type"), arg("index"))
      .def(py::init([](const DeviceArg& device) { return device.value; }), arg("device"))
      .def_property_readonly("type", [](const Device& self) { return self.is_cuda() ? "cuda" : "cpu"; })
      .def_property_readonly("index",
                             [](const Device& self) -> py::object {
                               return self.is_cuda() ? py::object(py::int_(self.index)) : py::object(py::none());
                             })
      .def("__eq__", [](const Device& self, const Device& other) { return self == other; })
      .def("__eq__", [](const Device&, py::handle) { return false; })
      .def("__hash__", [](const Device& self) { return int(self.type) * 256 + self.index; })
      .def("__str__", [](const Device& self) { return str(self); })
      .def("__repr__", [](const Device& self) {
        return self.is_cuda() ? str("device(type='cuda', index=", int(self.index), ")") : str("device(type='cpu')");
      });
}

py::dict stats_dict(const MemoryStats& stats) {
  py::dict result;
  result["allocated"] = stats.allocated;
  result["peak_allocated"] = stats.peak_allocated;
  result["cached"] = stats.cached;
  result["reserved"] = stats.allocated + stats.cached;
  result["peak_reserved"] = stats.peak_reserved;
  result["cache_limit"] = stats.cache_limit;
  result["allocations"] = stats.allocations;
  result["cache_hits"] = stats.cache_hits;
  result["retries"] = stats.retries;
  return result;
}

void bind_memory(py::module_& m) {
  const auto device = arg("device") = py::none();
  m.def(
      "memory_stats", [](const DeviceArg& where) { return stats_dict(memory_stats(where.value)); }, device,
      "Bytes of live and cached blocks, and how often the cache served a request.");
  m.def("reset_peak_memory_stats", [](const DeviceArg& where) { reset_peak_memory(where.value); }, device);
  m.def(
      "empty_cache", [](const DeviceArg& where) { empty_cache(where.value); }, device,
      "Returns cached blocks to the system.");
  m.def(
      "set_cache_limit", [](int64_t bytes, const DeviceArg& where) { set_cache_limit(where.value, bytes); },
      arg("bytes"), device, "The most bytes kept in the cache of freed blocks.");
}

void bind_threads(py::module_& m) {
  m.def("get_num_threads", num_threads);
  m.def("set_num_threads", set_num_threads, arg("n"));
  m.def("num_threads_source", num_threads_source);
  // For tests: runs `chunks` chunks in parallel, the last of which throws.
  m.def("_fail_in_parallel", [](int64_t chunks) {
    parallel_for(chunks, 1, [chunks](int64_t begin, int64_t) {
      check(begin + 1 < chunks, "chunk ", begin, " of ", chunks, " failed");
    });
  });
}

void bind_random_state(py::module_& m) {
  py::class_<Generator>(m, "Generator",
                        "A stream of random numbers of its own; random functions take it as generator=.")
      .def(py::init([](const DeviceArg&) { return new Generator(Generator(0).seed()); }), arg("device") = py::none())
      .def(
          "manual_seed",
          [](Generator& self, int64_t seed) -> Generator& {
            self.manual_seed(uint64_t(seed));
            return self;
          },
          py::return_value_policy::reference_internal)
      .def("seed", &Generator::seed)
      .def("initial_seed", &Generator::initial_seed)
      .def("get_state", &Generator::get_state)
      .def("set_state", &Generator::set_state);
  m.attr("default_generator") = py::cast(&default_generator(), py::return_value_policy::reference);
  m.def(
      "manual_seed",
      [](int64_t seed) {
        manual_seed(uint64_t(seed));
        return py::cast(&default_generator(), py::return_value_policy::reference);
      },
      arg("seed"));
  m.def("initial_seed", [] { return default_generator().initial_seed(); });
  m.def("get_rng_state", [] { return default_generator().get_state(); });
  m.def("set_rng_state", [](const Tensor& state) { default_generator().set_state(state); }, arg("new_state"));
}

}  // namespace

void bind_runtime(py::module_& m) {
  install_host_hooks();
  bind_devices(m);
  bind_memory(m);
  bind_threads(m);
  bind_random_state(m);
  m.attr("__version__") = FASTNN_VERSION;
  m.def("compiler", [] { return std::string(FASTNN_COMPILER) + " " + __VERSION__; });
  m.def("cpu_level", [] { return cpu_level_name(cpu_level()); });
  m.def("cpu_levels", [] {
    py::list names;
    for (int i = 0; i <= int(best_cpu_level()); ++i) names.append(cpu_level_name(static_cast<CpuLevel>(i)));
    return names;
  });
}

}  // namespace fastnn::python
