// fastnn._C: the extension module.
#include "core/kernel.h"
#include "python/bindings.h"

namespace py = pybind11;
using namespace fastnn::python;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Tensors, operations and autograd of fastnn.";
  // Here rather than on first use: an unknown FASTNN_CPU is an error of the import.
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const fastnn::Error&) {
      set_python_error();
    }
  });
  py::object error = py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
      "fastnn.DeviceError", "A device that is absent, or tensors on different ones.", PyExc_RuntimeError, nullptr));
  device_error = error.inc_ref().ptr();
  m.attr("DeviceError") = error;
  py::object out_of_memory = py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
      "fastnn.cuda.OutOfMemoryError", "A GPU has no memory left for a tensor.",
      py::make_tuple(py::handle(PyExc_MemoryError), py::handle(PyExc_RuntimeError)).ptr(), nullptr));
  out_of_memory_error = out_of_memory.inc_ref().ptr();
  m.attr("OutOfMemoryError") = out_of_memory;
  try {
    fastnn::load_kernels();
  } catch (const fastnn::Error&) {
    set_python_error();
    throw py::error_already_set();
  }
  define_dtypes(m);
  define_memory_formats(m);
  define_tensor(m);
  bind_runtime(m);
  bind_cuda(m);
  bind_tensors(m);
  bind_ops(m);
  bind_autograd(m);
}
