#include "python/errors.h"

#include <new>

#include "core/check.h"

namespace py = pybind11;

namespace fastnn::python {
namespace {

PyObject* device_error = nullptr;         // fastnn.DeviceError
PyObject* out_of_memory_error = nullptr;  // fastnn.cuda.OutOfMemoryError

}  // namespace

void define_errors(py::module_& module) {
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Error&) {
      set_python_error();
    }
  });
  py::object error = py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
      "fastnn.DeviceError", "A device that is absent, or tensors on different ones.", PyExc_RuntimeError, nullptr));
  device_error = error.inc_ref().ptr();
  module.attr("DeviceError") = error;
  py::object out_of_memory = py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
      "fastnn.cuda.OutOfMemoryError", "A GPU has no memory left for a tensor.",
      py::make_tuple(py::handle(PyExc_MemoryError), py::handle(PyExc_RuntimeError)).ptr(), nullptr));
  out_of_memory_error = out_of_memory.inc_ref().ptr();
  module.attr("OutOfMemoryError") = out_of_memory;
}

void set_python_error() {
  try {
    throw;
  } catch (const PythonError&) {
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const ValueError& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const TypeError& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  } catch (const IndexError& error) {
    PyErr_SetString(PyExc_IndexError, error.what());
  } catch (const OutOfMemoryError& error) {
    PyErr_SetString(out_of_memory_error, error.what());
  } catch (const MemoryError& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  } catch (const BufferError& error) {
    PyErr_SetString(PyExc_BufferError, error.what());
  } catch (const NotImplementedError& error) {
    PyErr_SetString(PyExc_NotImplementedError, error.what());
  } catch (const DeviceError& error) {
    PyErr_SetString(device_error, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, "out of memory");
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

}  // namespace fastnn::python
