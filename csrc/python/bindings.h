// The parts of the module, and how an operation becomes a function and a method.
#pragma once

#include <pybind11/stl.h>

#include "python/casters.h"

namespace fastnn::python {

// function: fastnn.name(...); method: tensor.name(...); both: the two of them.
// Defining a name again adds an overload, tried after the earlier ones.
class Binder {
 public:
  explicit Binder(pybind11::module_& module) : module_(module), type_(reinterpret_cast<PyObject*>(tensor_type)) {}

  template <class F, class... Extra>
  void function(const char* name, F&& f, const Extra&... extra) {
    module_.def(name, std::forward<F>(f), extra...);
  }
  template <class F, class... Extra>
  void method(const char* name, F&& f, const Extra&... extra) {
    const std::string hidden = std::string("_method_") + name;
    pybind11::cpp_function made(std::forward<F>(f), pybind11::name(name), pybind11::scope(module_),
                                pybind11::sibling(pybind11::getattr(methods_, hidden.c_str(), pybind11::none())),
                                extra...);
    methods_.attr(hidden.c_str()) = made;
    attach(name, made);
  }
  // tensor.name(2, 3) and tensor.name((2, 3)), called by CPython itself: what pybind11 adds to a call takes as long as
  // making a view.
  using Direct = PyObject*(PyObject* self, PyObject* const* args, Py_ssize_t n);
  template <Direct* function>
  void direct_method(const char* name, const char* doc) {
    static PyMethodDef definition{name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
                                  METH_FASTCALL, doc};
    auto made = pybind11::reinterpret_steal<pybind11::object>(PyDescr_NewMethod(tensor_type, &definition));
    if (!made) throw pybind11::error_already_set();
    type_.attr(name) = made;
  }
  template <class F, class... Extra>
  void both(const char* name, F&& f, const Extra&... extra) {
    module_.def(name, std::forward<F>(f), extra...);
    attach(name, module_.attr(name));
  }

 private:
  // Built-in functions do not bind `self`; an instance method around one does.
  void attach(const char* name, pybind11::object function) {
    auto bound = pybind11::reinterpret_steal<pybind11::object>(PyInstanceMethod_New(function.ptr()));
    type_.attr(name) = bound;
  }

  pybind11::module_& module_;
  pybind11::handle type_;
  pybind11::object methods_ = pybind11::module_::import("types").attr("SimpleNamespace")();
};

void bind_ops(pybind11::module_& module);      // operations of tensors
void bind_nn_ops(pybind11::module_& module);   // operations of networks
void bind_tensors(pybind11::module_& module);  // creation, conversion, exchange
void bind_autograd(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);     // GPUs, their streams, events and graphs
void bind_runtime(pybind11::module_& module);  // devices, threads, memory, random state, configuration

}  // namespace fastnn::python
