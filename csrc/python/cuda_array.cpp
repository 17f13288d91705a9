// __cuda_array_interface__, version 3: how CuPy and Numba exchange memory of a GPU.
// https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
#include "core/cuda.h"
#include "core/cuda_stream.h"
#include "python/casters.h"
#include "python/interop.h"

namespace py = pybind11;

namespace fastnn::python {
namespace {

constexpr int kVersion = 3;
constexpr const char* kName = "__cuda_array_interface__";

DType dtype_of_typestr(const std::string& type) {
  DType dtype;
  check<TypeError>(type.size() >= 3 && (type[0] == '<' || type[0] == '|') &&
                       dtype_of_kind(type[1], std::atoll(type.c_str() + 2), dtype),
                   kName, ": arrays of type '", type,
                   "' are not supported; expected little-endian bool, uint8, int8 to int64 or float16 to float64");
  return dtype;
}

// Strides in elements; row-major when the array names none.
Dims strides_of(const py::dict& array, const Dims& shape, int64_t item) {
  if (!array.contains("strides") || array["strides"].is_none()) return contiguous_strides(shape);
  Dims strides;
  for (py::handle bytes : array["strides"]) {
    const auto stride = bytes.cast<int64_t>();
    check(stride % item == 0, kName, ": a stride of ", stride, " bytes is no multiple of the item size ", item);
    strides.push_back(stride / item);
  }
  check(strides.size() == shape.size(), kName, ": ", strides.size(), " strides for ", shape.size(), " dimensions");
  return strides;
}

// Our work comes behind that of the stream that the array names, if it names one.
void wait_for(const py::dict& array, Device device) {
  if (!array.contains("stream") || array["stream"].is_none()) return;
  const auto handle = array["stream"].cast<intptr_t>();
  check(handle != 0, kName, ": stream 0 is ambiguous");
  cuda_wait_stream(cuda_current_stream(device), {device, reinterpret_cast<void*>(handle)});
}

}  // namespace

PyObject* cuda_array_interface(const Tensor& x) {
  if (!x.device().is_cuda() || x.dtype() == DType::BFloat16) {
    PyErr_Format(PyExc_AttributeError, "%s: a tensor of type %s on %s has none", kName, dtype_name(x.dtype()),
                 str(x.device()).c_str());
    throw PythonError();
  }
  check<RuntimeError>(!x.requires_grad(), kName, ": the tensor requires grad; use .detach()");
  py::dict array;
  py::list strides;
  for (int64_t stride : x.strides()) strides.append(stride * int64_t(x.item_size()));
  array["version"] = kVersion;
  array["shape"] = py::reinterpret_steal<py::object>(tuple_from_dims(x.shape()));
  array["strides"] = x.is_contiguous() ? py::object(py::none()) : py::object(py::tuple(strides));
  array["typestr"] = str(x.item_size() == 1 ? '|' : '<', kind_of(x.dtype()), x.item_size());
  array["data"] = py::make_tuple(x.numel() ? reinterpret_cast<uintptr_t>(x.raw()) : 0, x.storage()->read_only);
  array["stream"] = reinterpret_cast<uintptr_t>(cuda_current_stream(x.device()).handle);
  x.storage()->shared = true;
  return array.release().ptr();
}

bool has_cuda_array_interface(PyObject* object) { return PyObject_HasAttrString(object, kName); }

Tensor tensor_from_cuda_array(PyObject* object) {
  const py::object owner = py::reinterpret_borrow<py::object>(object);
  const auto array = owner.attr(kName).cast<py::dict>();
  check<TypeError>(!array.contains("mask") || array["mask"].is_none(), kName,
                   ": a masked array's mask would be lost; fill it first");
  Dims shape;
  check<TypeError>(as_dims(py::object(array["shape"]).ptr(), shape), kName, ": shape is no tuple of ints");
  const DType dtype = dtype_of_typestr(array["typestr"].cast<std::string>());
  const auto item = int64_t(item_size(dtype));
  const Dims strides = strides_of(array, shape, item);
  const auto [address, read_only] = array["data"].cast<std::pair<uintptr_t, bool>>();
  const int64_t numel = checked_numel(shape);
  if (numel == 0) return empty(shape, dtype, {DeviceType::CUDA, int8_t(cuda_current_device())});
  check(address % size_t(item) == 0, kName, ": the memory is not aligned for ", dtype);
  void* data = reinterpret_cast<void*>(address);
  const Device device = cuda_device_of(data);
  wait_for(array, device);
  Storage* storage =
      wrap_storage(data, size_t(numel * item), device, read_only, release_python_owner, owner.inc_ref().ptr());
  return from_storage(storage, shape, strides, dtype);
}

}  // namespace fastnn::python
