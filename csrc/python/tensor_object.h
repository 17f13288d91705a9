// The Python type `Tensor`: a CPython heap type that holds a fastnn::Tensor.
//
// It is not a py::class_: an operation's result costs about 500 ns as one, and below 100 ns through
// the number slots here. A tensor alive in Python has one wrapper, found through
// TensorImpl::python_object, so `p.grad is p.grad` holds and attributes set on it stay.
#pragma once

#include <Python.h>

#include <pybind11/pybind11.h>

#include "core/scalar.h"
#include "core/tensor.h"
#include "python/errors.h"

namespace fastnn::python {

extern PyTypeObject* tensor_type;

// Creates the type and adds it to the module.
void define_tensor(pybind11::module_& module);

inline bool is_tensor(PyObject* object) { return PyObject_TypeCheck(object, tensor_type); }
const Tensor& unwrap(PyObject* object);  // trusts is_tensor
PyObject* wrap(const Tensor& x);         // a new reference; None for an undefined tensor
// A wrapper of a subclass around a detached alias of x: how Parameter is made.
PyObject* wrap_as(PyTypeObject* type, const Tensor& x, bool requires_grad);

// A number that Python or numpy made: bool, int, float and their numpy scalars.
bool as_scalar(PyObject* object, Scalar& scalar);
int64_t as_int(PyObject* object, const char* what);  // through __index__; throws TypeError

// An operand of an operator: keeps alive the tensor it may have made of an array.
class OperandHolder {
 public:
  bool load(PyObject* object);  // false when the object is neither tensor, number nor numpy array
  Operand get() const { return tensor_.defined() ? Operand(tensor_) : Operand(scalar_); }

 private:
  Tensor tensor_;
  Scalar scalar_{int64_t(0)};
};

// autograd.cpp: gradient hooks are Python objects that only this tensor holds, so they may be part of a
// reference cycle through it.
int visit_hooks(const Tensor& x, visitproc visit, void* arg);
void clear_hooks(const Tensor& x);

// indexing.cpp
Tensor get_item(const Tensor& x, PyObject* index);
void set_item(const Tensor& x, PyObject* index, PyObject* value);

// interop.cpp
Tensor tensor_from_array(PyObject* array, bool copy);  // numpy.ndarray; throws TypeError / ValueError
Tensor tensor_from_data(PyObject* data);               // numbers, nested sequences, arrays: always a copy
PyObject* numpy_from_tensor(const Tensor& x);          // shares memory
PyObject* cuda_array_interface(const Tensor& x);       // throws AttributeError for what has none
int get_buffer(PyObject* self, Py_buffer* view, int flags);
void release_buffer(PyObject* self, Py_buffer* view);
bool is_numpy_array(PyObject* object);

}  // namespace fastnn::python
