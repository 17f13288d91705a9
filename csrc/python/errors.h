// From C++ exceptions to Python's.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnn::python {

// Adds fastnn.DeviceError and OutOfMemoryError to the module, and has pybind11 translate ours.
void define_errors(pybind11::module_& module);

// Turns the C++ exception in flight into a Python one.
void set_python_error();

// What body returns, or null with a Python exception set. For functions that CPython calls directly.
template <class F>
PyObject* guarded(F&& body) {
  try {
    return body();
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

}  // namespace fastnn::python
