// The gateway: arrays of other libraries into tensors, and back.
//
// Everything foreign enters through check_array or check_dlpack: exact element type, native byte
// order, alignment, strides in whole elements, checked sizes. Nothing is converted silently: strings,
// dates, objects, complex numbers and masked arrays are refused. Shared memory keeps its owner alive
// and its read-only flag.
#include <pybind11/numpy.h>

#include "core/cuda_stream.h"
#include "ops/copy/copy.h"
#include "python/casters.h"
#include "python/dlpack.h"
#include "python/interop.h"

namespace py = pybind11;

namespace fastnn::python {
namespace {

// ----------------------------------------------------------------------------------------- numpy

py::handle numpy() {
  static py::handle module = py::module_::import("numpy").release();
  return module;
}

PyObject* numpy_array_type() {
  static PyObject* type = py::object(numpy().attr("ndarray")).release().ptr();
  return type;
}

struct ArrayInfo {
  void* data;
  DType dtype;
  Dims shape, strides;
  bool writable;
};

// What numpy says of an array, checked. Throws TypeError for types, ValueError for layouts.
ArrayInfo check_array(py::handle array) {
  check<TypeError>(!py::hasattr(array, "mask"), "from_numpy: a masked array's mask would be lost; fill it first");
  const py::dtype type = py::reinterpret_borrow<py::dtype>(array.attr("dtype"));
  ArrayInfo info;
  check<TypeError>(dtype_of_kind(type.kind(), type.itemsize(), info.dtype), "from_numpy: arrays of type ",
                   py::str(type).cast<std::string>(),
                   " are not supported; expected bool, uint8, int8 to int64 or float16 to float64");
  const auto untyped = py::reinterpret_borrow<py::array>(array);
  check(type.byteorder() == '=' || type.byteorder() == '|',
        "from_numpy: the array is not in native byte order; convert it with .astype(dtype.newbyteorder('='))");
  check(array.attr("flags").attr("aligned").cast<bool>(),
        "from_numpy: the array's memory is not aligned for its type; use a copy (array.copy())");
  check(untyped.ndim() <= kMaxDims, "from_numpy: at most ", kMaxDims, " dimensions, got ", untyped.ndim());
  for (py::ssize_t i = 0; i < untyped.ndim(); ++i) {
    const int64_t bytes = untyped.strides(i), item = int64_t(item_size(info.dtype));
    check(bytes % item == 0 || untyped.shape(i) <= 1, "from_numpy: a stride of ", bytes,
          " bytes is no multiple of the item size ", item, "; use a copy (array.copy())");
    info.shape.push_back(untyped.shape(i));
    info.strides.push_back(bytes / item);
  }
  // numpy's stride of an axis of one element means nothing; read as PyTorch reads one, it could say channels_last.
  if (untyped.flags() & py::array::c_style) info.strides = contiguous_strides(info.shape);
  info.data = const_cast<void*>(untyped.data());
  info.writable = untyped.writeable();
  return info;
}

Tensor share(const ArrayInfo& info, py::handle owner) {
  const size_t bytes = size_t(checked_numel(info.shape)) * item_size(info.dtype);
  Storage* storage =
      wrap_storage(info.data, bytes, Device(), !info.writable, release_python_owner, py::handle(owner).inc_ref().ptr());
  return from_storage(storage, info.shape, info.strides, info.dtype);
}

}  // namespace

bool dtype_of_kind(char kind, int64_t bytes, DType& dtype) {
  struct Row {
    char kind;
    int64_t bytes;
    DType dtype;
  };
  constexpr Row rows[] = {{'b', 1, DType::Bool},    {'u', 1, DType::UInt8},   {'i', 1, DType::Int8},
                          {'i', 2, DType::Int16},   {'i', 4, DType::Int32},   {'i', 8, DType::Int64},
                          {'f', 2, DType::Float16}, {'f', 4, DType::Float32}, {'f', 8, DType::Float64}};
  for (const Row& row : rows)
    if (row.kind == kind && row.bytes == bytes) return dtype = row.dtype, true;
  return false;
}

char kind_of(DType dtype) {
  return dtype == DType::Bool ? 'b' : dtype == DType::UInt8 ? 'u' : is_floating(dtype) ? 'f' : 'i';
}

void release_python_owner(void* owner) {
  // Tensors may outlive the interpreter's shutdown, where nothing can be released any more.
  if (!Py_IsInitialized()) return;
  const PyGILState_STATE state = PyGILState_Ensure();
  Py_DECREF(static_cast<PyObject*>(owner));
  PyGILState_Release(state);
}

bool is_numpy_array(PyObject* object) {
  return PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(numpy_array_type()));
}

Tensor tensor_from_array(PyObject* array, bool copy) {
  check<TypeError>(is_numpy_array(array), "from_numpy: expected a numpy array, got ", Py_TYPE(array)->tp_name);
  py::object source = py::reinterpret_borrow<py::object>(array);
  if (!copy) return share(check_array(source), source);
  // Byte order and alignment can be mended in a copy; types cannot.
  const auto type = py::reinterpret_borrow<py::dtype>(source.attr("dtype"));
  if (type.byteorder() != '=' && type.byteorder() != '|')
    source = source.attr("astype")(type.attr("newbyteorder")("="));
  if (!source.attr("flags").attr("aligned").cast<bool>()) source = source.attr("copy")();
  return contiguous(clone(share(check_array(source), source)));
}

Tensor tensor_from_data(PyObject* data) {
  Scalar number(int64_t(0));
  if (is_tensor(data)) return clone(detach(unwrap(data)));
  if (has_cuda_array_interface(data)) return contiguous(clone(tensor_from_cuda_array(data)));
  if (is_numpy_array(data)) return tensor_from_array(data, /*copy=*/true);
  if (PyObject_HasAttrString(data, "dtype") && as_scalar(data, number))  // a numpy scalar keeps its type
    return tensor_from_array(numpy().attr("asarray")(py::handle(data)).ptr(), true);
  check<TypeError>(
      data != Py_None && !PyUnicode_Check(data) && !PyBytes_Check(data) && !PyDict_Check(data) && !PyAnySet_Check(data),
      "tensor: expected numbers, sequences of numbers or an array, got ", Py_TYPE(data)->tp_name);
  const bool foreign = PyObject_HasAttrString(data, "__dlpack__") && !PyList_Check(data) && !PyTuple_Check(data);
  if (foreign) return contiguous(clone(from_dlpack(py::reinterpret_borrow<py::object>(data))));
  const bool typed = PyObject_HasAttrString(data, "__array__") || PyObject_CheckBuffer(data);
  py::object array = numpy().attr("array")(py::handle(data));
  const Tensor x = tensor_from_array(array.ptr(), /*copy=*/true);
  // Python floats mean the default float type.
  return x.dtype() == DType::Float64 && !typed ? to(x, DType::Float32) : x;
}

PyObject* numpy_from_tensor(const Tensor& x) {
  check<RuntimeError>(!x.requires_grad(), "numpy: the tensor requires grad; use .detach().numpy()");
  check<TypeError>(!x.device().is_cuda(), "numpy: the tensor lives on ", x.device(), "; use .cpu().numpy()");
  check<TypeError>(x.dtype() != DType::BFloat16, "numpy: numpy has no bfloat16; use .float().numpy()");
  std::vector<py::ssize_t> shape(x.shape().begin(), x.shape().end()), strides;
  for (int64_t stride : x.strides()) strides.push_back(stride * int64_t(x.item_size()));
  const std::string code = std::string(1, kind_of(x.dtype())) + std::to_string(x.item_size());
  auto* owner = new Tensor(x);
  py::capsule base(owner, [](void* tensor) { delete static_cast<Tensor*>(tensor); });
  x.storage()->shared = true;
  py::array array(py::dtype(code), shape, strides, x.raw(), base);
  if (x.storage()->read_only) array.attr("flags").attr("writeable") = false;
  return array.release().ptr();
}

// ------------------------------------------------------------------------------- buffer protocol

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  PyObject* done = guarded([&]() -> PyObject* {
    const Tensor& x = unwrap(self);
    check<BufferError>(!x.requires_grad(), "buffer: the tensor requires grad; use .detach()");
    check<BufferError>(!x.device().is_cuda() && x.dtype() != DType::BFloat16, "buffer: a tensor of type ", x.dtype(),
                       " on ", x.device(), " has no buffer");
    check<BufferError>(!(flags & PyBUF_WRITABLE) || !x.storage()->read_only, "buffer: the memory is read-only");
    check<BufferError>((flags & PyBUF_STRIDES) == PyBUF_STRIDES || x.is_contiguous(),
                       "buffer: the tensor is not contiguous; use .contiguous()");
    constexpr const char* formats[kDTypeCount] = {"?", "B", "b", "h", "i", "q", "e", "", "f", "d"};
    auto* sizes = new Py_ssize_t[2 * kMaxDims];
    for (int i = 0; i < x.ndim(); ++i) {
      sizes[i] = Py_ssize_t(x.shape()[i]);
      sizes[kMaxDims + i] = Py_ssize_t(x.strides()[i] * int64_t(x.item_size()));
    }
    view->obj = Py_NewRef(self);
    x.storage()->shared = true;
    view->buf = x.raw();
    view->len = Py_ssize_t(x.numel() * int64_t(x.item_size()));
    view->itemsize = Py_ssize_t(x.item_size());
    view->readonly = x.storage()->read_only;
    view->ndim = x.ndim();
    view->format = flags & PyBUF_FORMAT ? const_cast<char*>(formats[int(x.dtype())]) : nullptr;
    view->shape = flags & PyBUF_ND ? sizes : nullptr;
    view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? sizes + kMaxDims : nullptr;
    view->suboffsets = nullptr;
    view->internal = sizes;
    return Py_None;
  });
  if (!done) view->obj = nullptr;
  return done ? 0 : -1;
}

void release_buffer(PyObject*, Py_buffer* view) { delete[] static_cast<Py_ssize_t*>(view->internal); }

// ---------------------------------------------------------------------------------------- DLPack

namespace {

DLDataType dlpack_type(DType dtype) {
  const auto bits = uint8_t(8 * item_size(dtype));
  if (dtype == DType::Bool) return {kDLBool, bits, 1};
  if (dtype == DType::BFloat16) return {kDLBfloat, bits, 1};
  if (is_floating(dtype)) return {kDLFloat, bits, 1};
  return {uint8_t(dtype == DType::UInt8 ? kDLUInt : kDLInt), bits, 1};
}

DType check_dlpack_type(DLDataType type) {
  for (int i = 0; i < kDTypeCount; ++i) {
    const DLDataType known = dlpack_type(static_cast<DType>(i));
    if (known.code == type.code && known.bits == type.bits && type.lanes == 1) return static_cast<DType>(i);
  }
  fail<BufferError>("from_dlpack: elements of code ", int(type.code), " with ", int(type.bits), " bits and ",
                    type.lanes, " lanes are not supported");
}

// Pinned memory is the CPU's, managed memory the GPU's that it names.
Device dlpack_device(DLDevice device) {
  if (device.device_type == kDLCPU || device.device_type == kDLCUDAHost) return {};
  check<BufferError>(device.device_type == kDLCUDA || device.device_type == kDLCUDAManaged,
                     "from_dlpack: memory on device type ", device.device_type,
                     " is not supported; expected the CPU (1) or CUDA (2)");
  const Device found{DeviceType::CUDA, int8_t(device.device_id)};
  cuda_current_stream(found);  // throws when there is no such device
  return found;
}

// What an exported tensor needs to stay alive for; `managed` comes first, so its address is ours.
template <class Managed>
struct Export {
  Managed managed;
  Tensor tensor;
  int64_t shape[kMaxDims], strides[kMaxDims];

  explicit Export(const Tensor& x) : managed{}, tensor(x) {
    std::copy(x.shape().begin(), x.shape().end(), shape);
    std::copy(x.strides().begin(), x.strides().end(), strides);
    DLTensor& out = managed.dl_tensor;
    x.storage()->shared = true;
    out.data = x.raw();
    out.device = {x.device().is_cuda() ? kDLCUDA : kDLCPU, x.device().index};
    out.ndim = x.ndim();
    out.dtype = dlpack_type(x.dtype());
    out.shape = shape;
    out.strides = strides;
    out.byte_offset = 0;
    managed.manager_ctx = this;
    managed.deleter = [](Managed* self) { delete static_cast<Export*>(self->manager_ctx); };
  }
};

// Frees an exported tensor that nobody took over.
template <class Managed>
void destroy_capsule(PyObject* capsule) {
  const char* name = PyCapsule_GetName(capsule);
  if (!name || std::string(name).rfind("used_", 0) == 0) return;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  if (managed && managed->deleter) managed->deleter(managed);
}

template <class Managed>
py::object export_capsule(const Tensor& x, const char* name) {
  auto* exported = new Export<Managed>(x);
  return py::reinterpret_steal<py::object>(PyCapsule_New(&exported->managed, name, destroy_capsule<Managed>));
}

template <class Managed>
Tensor import_managed(Managed* managed, bool read_only) {
  const DLTensor& in = managed->dl_tensor;
  const Device device = dlpack_device(in.device);
  check<BufferError>(in.ndim >= 0 && in.ndim <= kMaxDims, "from_dlpack: at most ", kMaxDims, " dimensions, got ",
                     in.ndim);
  const DType dtype = check_dlpack_type(in.dtype);
  const Dims shape(in.shape, in.ndim);
  const int64_t numel = checked_numel(shape);
  const Dims strides = in.strides ? Dims(in.strides, in.ndim) : contiguous_strides(shape);
  char* data = static_cast<char*>(in.data) + in.byte_offset;
  check<BufferError>(numel == 0 || reinterpret_cast<uintptr_t>(data) % item_size(dtype) == 0,
                     "from_dlpack: the memory is not aligned for ", dtype);
  Storage* storage = wrap_storage(
      data, size_t(numel) * item_size(dtype), device, read_only,
      [](void* owner) {
        auto* taken = static_cast<Managed*>(owner);
        if (!taken->deleter || !Py_IsInitialized()) return;
        const PyGILState_STATE state = PyGILState_Ensure();  // the producer may be Python code
        taken->deleter(taken);
        PyGILState_Release(state);
      },
      managed);
  return from_storage(storage, shape, strides, dtype);
}

template <class Managed>
Tensor import_capsule(PyObject* capsule, const char* name, const char* used_name) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  if (!managed) throw py::error_already_set();
  bool read_only = false;
  if constexpr (std::is_same_v<Managed, DLManagedTensorVersioned>) {
    check<BufferError>(managed->version.major == kDLPackMajor, "from_dlpack: version ", managed->version.major, ".",
                       managed->version.minor, " is not supported; expected 1.x");
    read_only = managed->flags & kDLPackReadOnly;
  }
  Tensor x = import_managed(managed, read_only);  // throws before the capsule is marked: it stays its own
  PyCapsule_SetName(capsule, used_name);
  PyCapsule_SetDestructor(capsule, nullptr);
  return x;
}

}  // namespace

namespace {

// The consumer's stream waits for what x's has been asked: None is the legacy default stream, -1 asks for no order.
void order_consumer(const Tensor& x, const py::object& stream) {
  const int64_t handle = stream.is_none() ? 1 : stream.cast<int64_t>();
  check<BufferError>(handle != 0,
                     "__dlpack__: stream 0 is ambiguous; expected 1 (legacy default), 2 (per thread), "
                     "-1 (no order) or the address of a stream");
  if (handle == -1) return;
  cuda_wait_stream({x.device(), reinterpret_cast<void*>(handle)}, cuda_current_stream(x.device()));
}

}  // namespace

py::object to_dlpack(const Tensor& x, py::object stream, py::object max_version, py::object dl_device,
                     py::object copy) {
  check<BufferError>(!x.requires_grad(), "__dlpack__: the tensor requires grad; use .detach()");
  const bool may_copy = copy.is_none() || copy.cast<bool>();
  bool copies = !copy.is_none() && copy.cast<bool>();
  Tensor source = x;
  if (!dl_device.is_none()) {
    const auto wanted = dl_device.cast<std::pair<int, int>>();
    const bool same =
        x.device().is_cuda() ? wanted == std::pair(int(kDLCUDA), int(x.device().index)) : wanted.first == kDLCPU;
    check<BufferError>(same || (wanted.first == kDLCPU && may_copy), "__dlpack__: cannot export from ", x.device(),
                       " to device type ", wanted.first, " number ", wanted.second, may_copy ? "" : " without a copy");
    if (!same) {
      source = to(x, Device());
      copies = true;
    }
  }
  if (copies && source.is(x)) source = clone(x);
  if (source.device().is_cuda()) order_consumer(source, stream);
  const bool versioned =
      !max_version.is_none() && max_version.cast<std::pair<uint32_t, uint32_t>>().first >= kDLPackMajor;
  if (!versioned) {
    check<BufferError>(!source.storage()->read_only,
                       "__dlpack__: read-only memory needs a consumer of DLPack 1.0 (max_version=(1, 0))");
    return export_capsule<DLManagedTensor>(source, "dltensor");
  }
  py::object capsule = export_capsule<DLManagedTensorVersioned>(source, "dltensor_versioned");
  auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
  managed->version = {kDLPackMajor, kDLPackMinor};
  managed->flags = (source.storage()->read_only ? kDLPackReadOnly : 0) | (copies ? kDLPackCopied : 0);
  return capsule;
}

namespace {

// Asks a producer of GPU memory to make our current stream wait for its work.
py::dict stream_argument(const py::object& source) {
  py::dict arguments;
  if (!py::hasattr(source, "__dlpack_device__")) return arguments;
  const auto [type, index] = source.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  const Device device = dlpack_device({type, index});
  if (device.is_cuda()) arguments["stream"] = reinterpret_cast<intptr_t>(cuda_current_stream(device).handle);
  return arguments;
}

}  // namespace

Tensor from_dlpack(py::object source) {
  py::object capsule = source;
  if (!PyCapsule_CheckExact(source.ptr())) {
    check<TypeError>(py::hasattr(source, "__dlpack__"), "from_dlpack: expected an object with __dlpack__, got ",
                     Py_TYPE(source.ptr())->tp_name);
    py::dict arguments = stream_argument(source);
    arguments["max_version"] = py::make_tuple(kDLPackMajor, kDLPackMinor);
    try {
      capsule = source.attr("__dlpack__")(**arguments);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      capsule = source.attr("__dlpack__")(**stream_argument(source));  // a producer from before 1.0
    }
    check<BufferError>(PyCapsule_CheckExact(capsule.ptr()), "from_dlpack: __dlpack__ returned no capsule");
  }
  const char* name = PyCapsule_GetName(capsule.ptr());
  const std::string kind = name ? name : "";
  if (kind == "dltensor_versioned")
    return import_capsule<DLManagedTensorVersioned>(capsule.ptr(), "dltensor_versioned", "used_dltensor_versioned");
  if (kind == "dltensor") return import_capsule<DLManagedTensor>(capsule.ptr(), "dltensor", "used_dltensor");
  fail<BufferError>("from_dlpack: expected a fresh DLPack capsule, got one named '", kind,
                    "' (a capsule can be consumed once)");
}

}  // namespace fastnn::python
