#include "python/casters.h"

namespace py = pybind11;

namespace fastnn::python {
namespace {

PyObject* dtype_objects[kDTypeCount] = {};

// The Python object behind fastnn.float32 and its siblings.
struct DTypeObject {
  DType dtype;
};

}  // namespace

PyObject* dtype_object(DType dtype) { return dtype_objects[static_cast<int>(dtype)]; }

bool as_dtype(PyObject* object, DType& dtype) {
  for (int i = 0; i < kDTypeCount; ++i) {
    if (dtype_objects[i] != object) continue;
    dtype = static_cast<DType>(i);
    return true;
  }
  // Python's own types stand for the defaults, as in PyTorch.
  if (object == reinterpret_cast<PyObject*>(&PyFloat_Type)) return dtype = DType::Float32, true;
  if (object == reinterpret_cast<PyObject*>(&PyLong_Type)) return dtype = DType::Int64, true;
  if (object == reinterpret_cast<PyObject*>(&PyBool_Type)) return dtype = DType::Bool, true;
  return false;
}

void define_dtypes(py::module_& module) {
  py::class_<DTypeObject>(module, "dtype", "An element type, such as fastnn.float32.")
      .def_property_readonly("name", [](const DTypeObject& self) { return dtype_name(self.dtype); })
      .def_property_readonly("itemsize", [](const DTypeObject& self) { return item_size(self.dtype); })
      .def_property_readonly("is_floating_point", [](const DTypeObject& self) { return is_floating(self.dtype); })
      .def_property_readonly(
          "is_signed", [](const DTypeObject& self) { return self.dtype != DType::Bool && self.dtype != DType::UInt8; })
      .def("__repr__", [](const DTypeObject& self) { return std::string("fastnn.") + dtype_name(self.dtype); })
      // copy and pickle give the one object back.
      .def("__reduce__", [](const DTypeObject& self) {
        return py::make_tuple(py::module_::import("fastnn._C").attr("_dtype"), py::make_tuple(dtype_name(self.dtype)));
      });
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    py::object object = py::cast(DTypeObject{dtype});
    dtype_objects[i] = object.inc_ref().ptr();
    module.attr(dtype == DType::Bool ? "bool" : dtype_name(dtype)) = object;
  }
  const std::pair<const char*, DType> aliases[] = {{"float", DType::Float32}, {"double", DType::Float64},
                                                   {"half", DType::Float16},  {"long", DType::Int64},
                                                   {"int", DType::Int32},     {"short", DType::Int16}};
  for (const auto& [name, dtype] : aliases) module.attr(name) = py::handle(dtype_object(dtype));
  module.def("_dtype", [](const std::string& name) {
    for (int i = 0; i < kDTypeCount; ++i)
      if (name == dtype_name(static_cast<DType>(i))) return py::reinterpret_borrow<py::object>(dtype_objects[i]);
    fail("dtype: unknown name '", name, "'");
  });
}

void define_memory_formats(py::module_& module) {
  const std::pair<const char*, MemoryFormat> formats[] = {{"contiguous_format", MemoryFormat::Contiguous},
                                                          {"channels_last", MemoryFormat::ChannelsLast},
                                                          {"preserve_format", MemoryFormat::Preserve}};
  const auto name_of = [formats](MemoryFormat self) {
    for (const auto& [name, format] : formats)
      if (format == self) return std::string(name);
    fail("memory_format: unknown");
  };
  py::class_<MemoryFormat>(module, "memory_format",
                           "The order of a tensor's elements in memory, such as fastnn.channels_last.")
      .def("__repr__", [name_of](MemoryFormat self) { return "fastnn." + name_of(self); })
      .def("__reduce__", name_of);  // copy and pickle give the one object of that name back
  for (const auto& [name, format] : formats) module.attr(name) = py::cast(format);
}

bool as_tensors(PyObject* object, bool none_allowed, std::vector<Tensor>& tensors) {
  if (is_tensor(object) || !PySequence_Check(object)) return false;
  auto sequence = py::reinterpret_steal<py::object>(PySequence_Fast(object, "expected a sequence of tensors"));
  if (!sequence) throw py::error_already_set();
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(sequence.ptr());
  tensors.reserve(size_t(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* entry = PySequence_Fast_GET_ITEM(sequence.ptr(), i);
    const bool none = entry == Py_None;
    if (none ? !none_allowed : !is_tensor(entry)) return false;
    tensors.push_back(none ? Tensor() : unwrap(entry));
  }
  return true;
}

int64_t as_int(PyObject* object, const char* what) {
  PyObject* index = PyLong_CheckExact(object) ? Py_NewRef(object) : PyNumber_Index(object);
  if (!index) {
    PyErr_Clear();
    fail<TypeError>(what, ": expected an int, got ", Py_TYPE(object)->tp_name);
  }
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(index, &overflow);
  Py_DECREF(index);
  check(overflow == 0, what, ": the int does not fit 64 bits");
  return value;
}

bool as_dims(PyObject* object, Dims& dims) {
  if (PyLong_Check(object)) {
    dims = Dims{as_int(object, "size")};
    return true;
  }
  if (!PyTuple_Check(object) && !PyList_Check(object)) {
    if (PyIndex_Check(object) && !is_tensor(object)) {
      dims = Dims{as_int(object, "size")};
      return true;
    }
    return false;
  }
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(object);
  dims = Dims();
  for (Py_ssize_t i = 0; i < n; ++i) dims.push_back(as_int(PySequence_Fast_GET_ITEM(object, i), "sizes"));
  return true;
}

Dims dims_from_args(PyObject* const* args, Py_ssize_t n) {
  if (n == 1 && (PyTuple_Check(args[0]) || PyList_Check(args[0]))) {
    n = PySequence_Fast_GET_SIZE(args[0]);
    args = PySequence_Fast_ITEMS(args[0]);
  }
  Dims dims;
  for (Py_ssize_t i = 0; i < n; ++i) dims.push_back(as_int(args[i], "sizes"));
  return dims;
}

Dims dims_from_args(const py::args& args) {
  return dims_from_args(PySequence_Fast_ITEMS(args.ptr()), PySequence_Fast_GET_SIZE(args.ptr()));
}

PyObject* tuple_from_dims(const Dims& dims) {
  PyObject* tuple = PyTuple_New(dims.size());
  for (int i = 0; tuple && i < dims.size(); ++i) PyTuple_SET_ITEM(tuple, i, PyLong_FromLongLong(dims[i]));
  return tuple;
}

}  // namespace fastnn::python
