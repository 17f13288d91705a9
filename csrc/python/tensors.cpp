// Making tensors, converting them, and asking what they are: what is neither operation nor runtime.
#include <pybind11/numpy.h>

#include "core/cuda.h"
#include "core/cuda_stream.h"
#include "core/random.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/random/random.h"
#include "python/bindings.h"
#include "python/interop.h"

namespace py = pybind11;
using py::arg;

namespace fastnn::python {
namespace {

using Format = std::optional<MemoryFormat>;

Tensor finished(const Tensor& x, bool requires_grad) {
  if (requires_grad) set_requires_grad(x, true);
  return x;
}

Tensor filled(const Tensor& x, Scalar value) {
  fill_into(x, value);
  return x;
}

// A keyword's value in its C++ type; TypeError when it is of another.
template <class T>
T keyword(const std::string& name, py::handle value) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    fail<TypeError>(name, ": unexpected value ", py::repr(value).cast<std::string>());
  }
}

// f(2, 3), f((2, 3)) or f(size=(2, 3)).
Dims shape_of(const py::args& args, const py::kwargs& kwargs) {
  if (!kwargs.contains("size")) return dims_from_args(args);
  Dims shape;
  check<TypeError>(args.empty() && as_dims(py::object(kwargs["size"]).ptr(), shape),
                   "size: expected a sequence of ints");
  return shape;
}

// The keyword arguments that every creating function shares.
struct Options {
  MaybeDType dtype;
  DeviceArg device;
  bool requires_grad = false;
  bool pin_memory = false;
  Generator* generator = nullptr;

  explicit Options(const py::kwargs& kwargs) {
    for (const auto& [key, value] : kwargs) {
      const auto name = py::cast<std::string>(key);
      if (name == "dtype")
        dtype = keyword<MaybeDType>(name, value);
      else if (name == "device")
        device = keyword<DeviceArg>(name, value);
      else if (name == "requires_grad")
        requires_grad = keyword<bool>(name, value);
      else if (name == "pin_memory")
        pin_memory = keyword<bool>(name, value);
      else if (name == "generator")
        generator = value.is_none() ? nullptr : keyword<Generator*>(name, value);
      else
        check<TypeError>(name == "size", "unexpected keyword argument '", name, "'");
    }
  }
  DType type() const { return dtype.or_else(DType::Float32); }
};

Tensor finished(const Tensor& x, const Options& options) {
  return finished(options.pin_memory ? pin_memory(x) : x, options.requires_grad);
}

template <class Make>
void bind_shaped(py::module_& module, const char* name, Make make) {
  module.def(name, [make](const py::args& size, const py::kwargs& kwargs) {
    const Options options(kwargs);
    return finished(make(shape_of(size, kwargs), options), options);
  });
}

// Of x's shape; in x's layout unless another format is asked for.
Tensor made_like(const Tensor& x, DType dtype, Device device, const Format& format) {
  const bool preserve = !format || *format == MemoryFormat::Preserve;
  if (preserve && device == x.device()) return empty_like(x, dtype);
  return empty(x.shape(), dtype, device, preserve ? x.memory_format() : *format);
}

template <class Fill>
void bind_like(py::module_& module, const char* name, Fill fill) {
  module.def(
      name,
      [fill](const Tensor& x, const MaybeDType& dtype, const DeviceArg& device, bool requires_grad,
             const Format& format) {
        const Tensor y = made_like(x, dtype.or_else(x.dtype()), device.given ? device.value : x.device(), format);
        return finished(fill(y), requires_grad);
      },
      arg("input"), py::kw_only(), arg("dtype") = py::none(), arg("device") = py::none(), arg("requires_grad") = false,
      arg("memory_format") = py::none());
}

DType number_type(std::initializer_list<Scalar> values) {
  for (const Scalar& value : values)
    if (value.kind == Scalar::Kind::Float) return DType::Float32;
  return DType::Int64;
}

void bind_creation(py::module_& m) {
  m.def(
      "empty",
      [](const py::args& size, const Format& format, const py::kwargs& kwargs) {
        const Options o(kwargs);
        return finished(
            empty(shape_of(size, kwargs), o.type(), o.device.value, format.value_or(MemoryFormat::Contiguous)), o);
      },
      arg("memory_format") = py::none());
  bind_shaped(m, "zeros", [](const Dims& shape, const Options& o) { return zeros(shape, o.type(), o.device.value); });
  bind_shaped(m, "ones", [](const Dims& shape, const Options& o) { return ones(shape, o.type(), o.device.value); });
  bind_shaped(m, "rand",
              [](const Dims& shape, const Options& o) { return rand(shape, o.type(), o.device.value, o.generator); });
  bind_shaped(m, "randn",
              [](const Dims& shape, const Options& o) { return randn(shape, o.type(), o.device.value, o.generator); });
  bind_like(m, "empty_like", [](const Tensor& y) { return y; });
  bind_like(m, "zeros_like", [](const Tensor& y) { return filled(y, Scalar(0)); });
  bind_like(m, "ones_like", [](const Tensor& y) { return filled(y, Scalar(1)); });
  bind_like(m, "rand_like", [](const Tensor& y) { return uniform_(y, 0, 1); });
  bind_like(m, "randn_like", [](const Tensor& y) { return normal_(y, 0, 1); });
  m.def(
      "full_like",
      [](const Tensor& x, Scalar value, const MaybeDType& dtype, const DeviceArg& device, bool requires_grad,
         const Format& format) {
        const Device where = device.given ? device.value : x.device();
        return finished(filled(made_like(x, dtype.or_else(x.dtype()), where, format), value), requires_grad);
      },
      arg("input"), arg("fill_value"), py::kw_only(), arg("dtype") = py::none(), arg("device") = py::none(),
      arg("requires_grad") = false, arg("memory_format") = py::none());
  m.def(
      "full",
      [](const Dims& shape, Scalar value, const py::kwargs& kwargs) {
        const Options o(kwargs);
        return finished(full(shape, value, o.dtype.or_else(value.dtype()), o.device.value), o);
      },
      arg("size"), arg("fill_value"));
  m.def(
      "arange",
      [](Scalar start, std::optional<Scalar> end, Scalar step, const py::kwargs& kwargs) {
        const Options o(kwargs);
        const Scalar first = end ? start : Scalar(0), last = end ? *end : start;
        return finished(arange(first, last, step, o.dtype.or_else(number_type({first, last, step})), o.device.value),
                        o);
      },
      arg("start"), arg("end") = py::none(), arg("step") = 1);
  m.def(
      "linspace",
      [](double start, double end, int64_t steps, const py::kwargs& kwargs) {
        const Options o(kwargs);
        return finished(linspace(start, end, steps, o.type(), o.device.value), o);
      },
      arg("start"), arg("end"), arg("steps"));
  m.def(
      "eye",
      [](int64_t rows, std::optional<int64_t> columns, const py::kwargs& kwargs) {
        const Options o(kwargs);
        return finished(eye(rows, columns ? *columns : rows, o.type(), o.device.value), o);
      },
      arg("n"), arg("m") = py::none());
  const auto integers = [](int64_t low, int64_t high, const Dims& shape, const py::kwargs& kwargs) {
    const Options o(kwargs);
    return finished(randint(low, high, shape, o.dtype.or_else(DType::Int64), o.device.value, o.generator), o);
  };
  m.def("randint", integers, arg("low"), arg("high"), arg("size"));
  m.def(
      "randint",
      [integers](int64_t high, const Dims& shape, const py::kwargs& kwargs) {
        return integers(0, high, shape, kwargs);
      },
      arg("high"), arg("size"));
  m.def(
      "randperm",
      [](int64_t n, const py::kwargs& kwargs) {
        const Options o(kwargs);
        return finished(randperm(n, o.dtype.or_else(DType::Int64), o.device.value, o.generator), o);
      },
      arg("n"));
  m.def(
      "normal",
      [](double mean, double std, const Dims& shape, const py::kwargs& kwargs) {
        const Options o(kwargs);
        return finished(normal_(empty(shape, o.type(), o.device.value), mean, std, o.generator), o);
      },
      arg("mean"), arg("std"), arg("size"));
}

// ------------------------------------------------------------------------------------- exchange

void bind_exchange(py::module_& m, Binder& b) {
  m.def(
      "tensor",
      [](py::handle data, const MaybeDType& dtype, const DeviceArg& device, bool requires_grad) {
        Tensor x = tensor_from_data(data.ptr());
        if (dtype.given) x = to(x, dtype.value);
        if (device.given) x = to(x, device.value);
        return finished(x, requires_grad);
      },
      arg("data"), arg("dtype") = py::none(), arg("device") = py::none(), arg("requires_grad") = false,
      "A new tensor of numbers, nested sequences or an array; always a copy.");
  const auto as_tensor = [](py::handle data, const MaybeDType& dtype, const DeviceArg& device) {
    Tensor x = is_tensor(data.ptr())                  ? unwrap(data.ptr())
               : is_numpy_array(data.ptr())           ? tensor_from_array(data.ptr(), /*copy=*/false)
               : has_cuda_array_interface(data.ptr()) ? tensor_from_cuda_array(data.ptr())
                                                      : tensor_from_data(data.ptr());
    if (dtype.given) x = to(x, dtype.value);
    return device.given ? to(x, device.value) : x;
  };
  m.def("as_tensor", as_tensor, arg("data"), arg("dtype") = py::none(), arg("device") = py::none());
  m.def("asarray", as_tensor, arg("data"), arg("dtype") = py::none(), arg("device") = py::none());
  m.def(
      "from_numpy", [](py::handle array) { return tensor_from_array(array.ptr(), /*copy=*/false); }, arg("array"),
      "A tensor that shares the array's memory.");
  m.def("from_dlpack", from_dlpack, arg("ext_tensor"));
  b.method("__dlpack__", to_dlpack, arg("self"), py::kw_only(), arg("stream") = py::none(),
           arg("max_version") = py::none(), arg("dl_device") = py::none(), arg("copy") = py::none());
  b.method(
      "__dlpack_device__",
      [](const Tensor& x) { return py::make_tuple(x.device().is_cuda() ? 2 : 1, int(x.device().index)); }, arg("self"));
  const auto numpy_of = [](const Tensor& x, bool force) {
    const Tensor plain = force ? to(detach(x), Device()) : x;
    return py::reinterpret_steal<py::object>(numpy_from_tensor(plain));
  };
  b.method("numpy", numpy_of, arg("self"), py::kw_only(), arg("force") = false);
  b.method(
      "__array__",
      [](const Tensor& x, py::object dtype, py::object copy) {
        py::object array = py::reinterpret_steal<py::object>(numpy_from_tensor(x));
        const bool converts = !dtype.is_none() && !py::dtype::from_args(dtype).is(array.attr("dtype"));
        check(!converts || copy.is_none() || copy.cast<bool>(),
              "__array__: another dtype needs a copy, but copy=False");
        if (converts) return py::object(array.attr("astype")(dtype));
        return !copy.is_none() && copy.cast<bool>() ? py::object(array.attr("copy")()) : array;
      },
      arg("self"), arg("dtype") = py::none(), arg("copy") = py::none());
  b.method(
      "tolist",
      [numpy_of](const Tensor& x) {
        const Tensor plain = detach(x);
        return numpy_of(x.dtype() == DType::BFloat16 ? to(plain, DType::Float32) : plain, true).attr("tolist")();
      },
      arg("self"));
}

// ------------------------------------------------------------------------------------ conversion

// to(dtype), to(device), to(other), to(device, dtype) and their keyword forms; memory_format goes with any of them.
Tensor convert(const Tensor& x, const py::args& args, const py::kwargs& kwargs) {
  Tensor y = x;
  bool copy = false, non_blocking = false;
  Format format;
  if (kwargs.contains("non_blocking")) non_blocking = keyword<bool>("non_blocking", kwargs["non_blocking"]);
  const auto apply = [&](py::handle target) {
    DType dtype;
    if (target.is_none() || PyBool_Check(target.ptr())) return;
    if (is_tensor(target.ptr()))
      y = to(to(y, unwrap(target.ptr()).dtype()), unwrap(target.ptr()).device(), non_blocking);
    else if (as_dtype(target.ptr(), dtype))
      y = to(y, dtype);
    else
      y = to(y, keyword<DeviceArg>("to", target).value, non_blocking);
  };
  for (py::handle target : args) apply(target);
  for (const auto& [key, value] : kwargs) {
    const auto name = py::cast<std::string>(key);
    if (name == "copy")
      copy = keyword<bool>(name, value);
    else if (name == "memory_format")
      format = keyword<Format>(name, value);
    else if (name == "dtype" || name == "device" || name == "other")
      apply(value);
    else
      check<TypeError>(name == "non_blocking", "to: unexpected keyword argument '", name, "'");
  }
  if (format) y = to(y, *format);
  return copy && y.is(x) ? clone(y) : y;
}

// copy.deepcopy(x), of which copies of models and of state dicts are made.
Tensor deep_copy(const Tensor& x, py::handle) {
  check<RuntimeError>(is_leaf(x), "deepcopy: only a leaf can be copied, got a result of shape ", x.shape(),
                      "; detach it first");
  return finished(clone(detach(x)), x.requires_grad());
}

void bind_conversion(Binder& b) {
  b.method("to", convert);
  b.method("__deepcopy__", deep_copy, arg("self"), arg("memo"));
  const std::pair<const char*, DType> types[] = {
      {"float", DType::Float32}, {"double", DType::Float64}, {"half", DType::Float16}, {"bfloat16", DType::BFloat16},
      {"long", DType::Int64},    {"int", DType::Int32},      {"short", DType::Int16},  {"bool", DType::Bool}};
  for (const auto& [name, dtype] : types)
    b.method(name, [dtype = dtype](const Tensor& x) { return to(x, dtype); }, arg("self"));
  b.method("type_as", [](const Tensor& x, const Tensor& y) { return to(x, y.dtype()); }, arg("self"), arg("other"));
  b.method("cpu", [](const Tensor& x) { return to(x, Device()); }, arg("self"));
  b.method(
      "cuda",
      [](const Tensor& x, const DeviceArg& device, bool non_blocking) {
        const Device target = device.given ? device.value : parse_device("cuda");
        check(target.is_cuda(), "cuda: expected a CUDA device, got '", target, "'");
        return to(x, target, non_blocking);
      },
      arg("self"), arg("device") = py::none(), arg("non_blocking") = false);
  b.method(
      "copy_", [](const Tensor& x, const Tensor& src, bool non_blocking) { return copy_(x, src, non_blocking); },
      arg("self"), arg("src"), arg("non_blocking") = false);
  b.method(
      "pin_memory", [](const Tensor& x) { return pin_memory(x); }, arg("self"),
      "The tensor in memory that a GPU copies from while the CPU goes on; itself when it is there already.");
  b.method("is_pinned", [](const Tensor& x) { return x.storage()->pinned; }, arg("self"));
  b.method(
      "record_stream",
      [](const Tensor& x, const CudaStream& stream) { cuda_record_stream(*x.storage(), stream.handle); }, arg("self"),
      arg("stream"),
      "Work of the stream uses the tensor's memory too: it is not handed out again before that is done.");
}

void bind_questions(py::module_& m, Binder& b) {
  b.method(
      "size",
      [](const Tensor& x, std::optional<int64_t> axis) -> py::object {
        return axis ? py::object(py::int_(x.size(*axis))) : py::cast(x.shape());
      },
      arg("self"), arg("dim") = py::none());
  b.method(
      "stride",
      [](const Tensor& x, std::optional<int64_t> axis) -> py::object {
        return axis ? py::object(py::int_(x.stride(*axis))) : py::cast(x.strides());
      },
      arg("self"), arg("dim") = py::none());
  b.both("numel", [](const Tensor& x) { return x.numel(); }, arg("input"));
  b.method("dim", [](const Tensor& x) { return x.ndim(); }, arg("self"));
  b.method("element_size", [](const Tensor& x) { return x.item_size(); }, arg("self"));
  b.method("storage_offset", [](const Tensor& x) { return x.offset(); }, arg("self"));
  b.method(
      "data_ptr",
      [](const Tensor& x) {
        x.storage()->shared = true;
        return reinterpret_cast<uintptr_t>(x.raw());
      },
      arg("self"));
  b.method(
      "is_contiguous",
      [](const Tensor& x, const Format& format) {
        return format == MemoryFormat::ChannelsLast ? x.is_channels_last() : x.is_contiguous();
      },
      arg("self"), py::kw_only(), arg("memory_format") = py::none());
  b.both("is_floating_point", [](const Tensor& x) { return x.is_floating(); }, arg("input"));
  m.def("is_tensor", [](py::handle x) { return is_tensor(x.ptr()); }, arg("obj"));
  m.def(
      "result_type", [](const OperandArg& x, const OperandArg& y) { return result_type(x, y); }, arg("tensor1"),
      arg("tensor2"));
  m.def("promote_types", promote, arg("type1"), arg("type2"));
}

}  // namespace

void bind_tensors(py::module_& module) {
  Binder binder(module);
  bind_creation(module);
  bind_exchange(module, binder);
  bind_conversion(binder);
  bind_questions(module, binder);
  py::handle type(reinterpret_cast<PyObject*>(tensor_type));
  type.attr("_make_subclass") =
      py::module_::import("builtins")
          .attr("staticmethod")(py::cpp_function(
              [](py::handle subclass, const Tensor& x, bool requires_grad) {
                check<TypeError>(PyType_Check(subclass.ptr()) &&
                                     PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(subclass.ptr()), tensor_type),
                                 "_make_subclass: expected a subclass of Tensor");
                return py::reinterpret_steal<py::object>(
                    wrap_as(reinterpret_cast<PyTypeObject*>(subclass.ptr()), x, requires_grad));
              },
              py::name("_make_subclass"), arg("cls"), arg("data"), arg("requires_grad") = false));
}

}  // namespace fastnn::python
