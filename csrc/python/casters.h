// How arguments and results cross: Tensor, Scalar, Operand, Dims, dtype, device.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "core/autograd.h"
#include "core/scalar.h"
#include "python/tensor_object.h"

namespace fastnn::python {

// An argument that may be None: an undefined Tensor.
struct MaybeTensor {
  Tensor tensor;
};
// A sequence in which None stands for an undefined Tensor; std::vector<Tensor> takes none.
struct MaybeTensors {
  std::vector<Tensor> tensors;
};
// A tensor, a number or a numpy array.
struct OperandArg {
  OperandHolder holder;
  operator Operand() const { return holder.get(); }
};
// dtype=None or a dtype; device=None, a string, the number of a GPU or a device.
struct MaybeDType {
  bool given = false;
  DType value = DType::Float32;
  DType or_else(DType other) const { return given ? value : other; }
};
struct DeviceArg {
  bool given = false;
  Device value;
};

PyObject* dtype_object(DType dtype);  // borrowed: one object per dtype
bool as_dtype(PyObject* object, DType& dtype);
void define_dtypes(pybind11::module_& module);
void define_memory_formats(pybind11::module_& module);
// False unless `object` is a sequence of tensors or, where allowed, None.
bool as_tensors(PyObject* object, bool none_allowed, std::vector<Tensor>& tensors);
bool as_dims(PyObject* object, Dims& dims);  // an int, or a sequence of ints
// f(2, 3) or f((2, 3)).
Dims dims_from_args(PyObject* const* args, Py_ssize_t n);
Dims dims_from_args(const pybind11::args& args);
PyObject* tuple_from_dims(const Dims& dims);

}  // namespace fastnn::python

namespace pybind11::detail {

template <>
struct type_caster<fastnn::Tensor> {
  PYBIND11_TYPE_CASTER(fastnn::Tensor, const_name("Tensor"));
  bool load(handle source, bool) {
    if (!fastnn::python::is_tensor(source.ptr())) return false;
    value = fastnn::python::unwrap(source.ptr());
    return true;
  }
  static handle cast(const fastnn::Tensor& x, return_value_policy, handle) { return fastnn::python::wrap(x); }
};

template <>
struct type_caster<fastnn::python::MaybeTensor> {
  PYBIND11_TYPE_CASTER(fastnn::python::MaybeTensor, const_name("Tensor | None"));
  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!fastnn::python::is_tensor(source.ptr())) return false;
    value.tensor = fastnn::python::unwrap(source.ptr());
    return true;
  }
  static handle cast(const fastnn::python::MaybeTensor& x, return_value_policy, handle) {
    return fastnn::python::wrap(x.tensor);
  }
};

template <>
struct type_caster<fastnn::python::OperandArg> {
  PYBIND11_TYPE_CASTER(fastnn::python::OperandArg, const_name("Tensor | float"));
  bool load(handle source, bool) { return value.holder.load(source.ptr()); }
};

template <>
struct type_caster<fastnn::Scalar> {
  static constexpr auto name = const_name("float");
  template <class>
  using cast_op_type = fastnn::Scalar;
  operator fastnn::Scalar() const { return value; }
  bool load(handle source, bool) { return fastnn::python::as_scalar(source.ptr(), value); }
  static handle cast(const fastnn::Scalar& x, return_value_policy, handle) {
    if (x.kind == fastnn::Scalar::Kind::Bool) return PyBool_FromLong(x.to_bool());
    return x.kind == fastnn::Scalar::Kind::Int ? PyLong_FromLongLong(x.integer) : PyFloat_FromDouble(x.real);
  }
  fastnn::Scalar value{int64_t(0)};
};

template <>
struct type_caster<fastnn::Dims> {
  PYBIND11_TYPE_CASTER(fastnn::Dims, const_name("Sequence[int] | int"));
  bool load(handle source, bool) { return fastnn::python::as_dims(source.ptr(), value); }
  static handle cast(const fastnn::Dims& dims, return_value_policy, handle) {
    return fastnn::python::tuple_from_dims(dims);
  }
};

template <>
struct type_caster<fastnn::DType> {
  PYBIND11_TYPE_CASTER(fastnn::DType, const_name("dtype"));
  bool load(handle source, bool) { return fastnn::python::as_dtype(source.ptr(), value); }
  static handle cast(fastnn::DType dtype, return_value_policy, handle) {
    return handle(fastnn::python::dtype_object(dtype)).inc_ref();
  }
};

template <>
struct type_caster<fastnn::python::MaybeDType> {
  PYBIND11_TYPE_CASTER(fastnn::python::MaybeDType, const_name("dtype | None"));
  bool load(handle source, bool) {
    value.given = !source.is_none();
    return !value.given || fastnn::python::as_dtype(source.ptr(), value.value);
  }
};

template <>
struct type_caster<fastnn::python::DeviceArg> {
  PYBIND11_TYPE_CASTER(fastnn::python::DeviceArg, const_name("device | str | int | None"));
  bool load(handle source, bool) {
    value.given = !source.is_none();
    if (!value.given) return true;
    if (PyUnicode_Check(source.ptr())) {
      value.value = fastnn::parse_device(pybind11::cast<std::string>(source));
      return true;
    }
    if (PyLong_Check(source.ptr()) && !PyBool_Check(source.ptr())) {  // of a GPU, as in PyTorch
      value.value = fastnn::parse_device("cuda:" + std::to_string(pybind11::cast<int64_t>(source)));
      return true;
    }
    if (!isinstance<fastnn::Device>(source)) return false;
    value.value = pybind11::cast<fastnn::Device>(source);
    return true;
  }
};

template <>
struct type_caster<std::vector<fastnn::Tensor>> {
  PYBIND11_TYPE_CASTER(std::vector<fastnn::Tensor>, const_name("Sequence[Tensor]"));
  bool load(handle source, bool) { return fastnn::python::as_tensors(source.ptr(), false, value); }
  static handle cast(const std::vector<fastnn::Tensor>& xs, return_value_policy, handle) {
    PyObject* tuple = PyTuple_New(Py_ssize_t(xs.size()));
    for (size_t i = 0; tuple && i < xs.size(); ++i) PyTuple_SET_ITEM(tuple, Py_ssize_t(i), fastnn::python::wrap(xs[i]));
    return tuple;
  }
};

template <>
struct type_caster<fastnn::python::MaybeTensors> {
  PYBIND11_TYPE_CASTER(fastnn::python::MaybeTensors, const_name("Sequence[Tensor | None]"));
  bool load(handle source, bool) { return fastnn::python::as_tensors(source.ptr(), true, value.tensors); }
};

}  // namespace pybind11::detail
