// x[...] read and written: Python's index objects into views, and into index tensors for the rest.
#include <vector>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/index/index.h"
#include "python/casters.h"

namespace py = pybind11;

namespace fastnn::python {
namespace {

// An index, applied as far as views go. `advanced` goes over the axes of `view`: an undefined entry
// takes all of one axis, integers index one axis, a bool mask as many as it has.
struct Indexed {
  Tensor view;
  std::vector<Tensor> advanced;
  bool has_advanced = false;
};

bool is_index_array(PyObject* entry) {
  return is_tensor(entry) || PyList_Check(entry) || is_numpy_array(entry) || PyBool_Check(entry);
}

Tensor index_array(PyObject* entry, Device device) {
  Tensor index = is_tensor(entry) ? unwrap(entry) : tensor_from_data(entry);
  if (index.numel() == 0 && !is_tensor(entry)) index = to(index, DType::Int64);
  check<IndexError>(!index.is_floating(), "index: tensors used as indices must hold integers or bools, got ",
                    index.dtype());
  return to(index, device);
}

// How many axes an entry consumes: a bool mask as many as it has, an integer tensor one.
int axes_of(PyObject* entry) {
  if (entry == Py_None || entry == Py_Ellipsis || PyBool_Check(entry)) return 0;
  if (is_tensor(entry) && unwrap(entry).dtype() == DType::Bool) return unwrap(entry).ndim();
  if (is_numpy_array(entry)) {
    py::handle array(entry);
    if (array.attr("dtype").attr("kind").cast<std::string>() == "b") return array.attr("ndim").cast<int>();
  }
  return 1;
}

int64_t slice_bound(PyObject* bound, int64_t missing) {
  if (bound == Py_None) return missing;
  py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(bound));
  if (!index) {
    PyErr_Clear();
    fail<TypeError>("index: slice bounds must be ints or None, got ", Py_TYPE(bound)->tp_name);
  }
  const Py_ssize_t value = PyNumber_AsSsize_t(index.ptr(), nullptr);  // saturates, as Python's slices do
  return value;
}

Indexed apply(const Tensor& x, PyObject* index) {
  py::object entries =
      PyTuple_Check(index) ? py::reinterpret_borrow<py::object>(index) : py::object(py::make_tuple(py::handle(index)));
  const Py_ssize_t n = PyTuple_GET_SIZE(entries.ptr());
  int consumed = 0;
  for (Py_ssize_t i = 0; i < n; ++i) consumed += axes_of(PyTuple_GET_ITEM(entries.ptr(), i));
  check<IndexError>(consumed <= x.ndim(), "index: ", consumed, " indices for a tensor of shape ", x.shape());
  Indexed result{x, {}, false};
  int64_t axis = 0;
  bool seen_ellipsis = false;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* entry = PyTuple_GET_ITEM(entries.ptr(), i);
    if (entry == Py_None) {
      result.view = unsqueeze(result.view, axis++);
      result.advanced.emplace_back();
    } else if (entry == Py_Ellipsis) {
      check<IndexError>(!seen_ellipsis, "index: only one ellipsis (...) is allowed");
      seen_ellipsis = true;
      axis += x.ndim() - consumed;
      result.advanced.resize(result.advanced.size() + size_t(x.ndim() - consumed));
    } else if (PySlice_Check(entry)) {
      auto* s = reinterpret_cast<PySliceObject*>(entry);
      const int64_t step = slice_bound(s->step, 1);
      const int64_t stop = slice_bound(s->stop, INT64_MAX);
      result.view = slice(result.view, axis, slice_bound(s->start, 0), stop, step);
      result.advanced.emplace_back();
      ++axis;
    } else if (is_tensor(entry) && unwrap(entry).ndim() == 0 && is_integral(unwrap(entry).dtype())) {
      result.view = select(result.view, axis, item(unwrap(entry)).to_int());  // a number, as in PyTorch
    } else if (is_index_array(entry)) {
      result.has_advanced = true;
      if (PyBool_Check(entry)) result.view = unsqueeze(result.view, axis);
      const Tensor array =
          PyBool_Check(entry) ? reshape(index_array(entry, x.device()), {1}) : index_array(entry, x.device());
      result.advanced.push_back(array);
      axis += array.dtype() == DType::Bool ? array.ndim() : 1;
    } else {
      result.view = select(result.view, axis, as_int(entry, "index"));
    }
  }
  return result;
}

}  // namespace

Tensor get_item(const Tensor& x, PyObject* index) {
  if (PyLong_Check(index) && !PyBool_Check(index)) return select(x, 0, as_int(index, "index"));
  const Indexed indexed = apply(x, index);
  if (indexed.has_advanced) return fastnn::index(indexed.view, indexed.advanced);
  return indexed.view.is(x) ? view(x, x.shape()) : indexed.view;
}

void set_item(const Tensor& x, PyObject* index, PyObject* value) {
  const Indexed indexed = apply(x, index);
  Tensor source;
  Scalar number(int64_t(0));
  if (is_tensor(value)) {
    source = to(unwrap(value), x.device());
  } else if (as_scalar(value, number)) {
    if (!indexed.has_advanced) {
      fill_(indexed.view, number);
      return;
    }
    source = scalar_tensor(number, x.dtype(), x.device());
  } else {
    source = to(tensor_from_data(value), x.device());
  }
  if (indexed.has_advanced) {
    index_put_(indexed.view, indexed.advanced, to(source, x.dtype()), /*accumulate=*/false);
  } else {
    // Leading axes of size 1 may be dropped, as in numpy.
    while (source.ndim() > indexed.view.ndim() && source.shape()[0] == 1) source = squeeze(source, {0});
    copy_(indexed.view, source);
  }
}

}  // namespace fastnn::python
