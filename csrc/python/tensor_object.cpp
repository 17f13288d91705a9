#include "python/tensor_object.h"

#include <structmember.h>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/matmul/matmul.h"
#include "python/casters.h"

namespace py = pybind11;

namespace fastnn::python {

PyTypeObject* tensor_type = nullptr;

namespace {

struct TensorObject {
  PyObject_HEAD Tensor tensor;
  PyObject* weak_references;
};

TensorObject* object_of(PyObject* self) { return reinterpret_cast<TensorObject*>(self); }

PyObject* allocate(PyTypeObject* type, const Tensor& x) {
  PyObject* self = type->tp_alloc(type, 0);
  if (!self) return nullptr;
  new (&object_of(self)->tensor) Tensor(x);
  object_of(self)->weak_references = nullptr;
  x.impl()->python_object = self;
  return self;
}

void deallocate(PyObject* self) {
  PyObject_GC_UnTrack(self);
  TensorObject* object = object_of(self);
  if (object->weak_references) PyObject_ClearWeakRefs(self);
  PyTypeObject* type = Py_TYPE(self);
  if (object->tensor.defined()) object->tensor.impl()->python_object = nullptr;
  object->tensor.~Tensor();
  type->tp_free(self);
  Py_DECREF(type);
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Tensor& x = unwrap(self);
  return x.defined() ? visit_hooks(x, visit, arg) : 0;
}

int clear(PyObject* self) {
  if (unwrap(self).defined()) clear_hooks(unwrap(self));
  return 0;
}

// ----------------------------------------------------------------------------------- operators

template <Tensor (*F)(const Operand&, const Operand&)>
PyObject* binary_slot(PyObject* a, PyObject* b) {
  return guarded([&]() -> PyObject* {
    OperandHolder left, right;
    if (!left.load(a) || !right.load(b)) Py_RETURN_NOTIMPLEMENTED;
    return wrap(F(left.get(), right.get()));
  });
}

template <Tensor (*F)(const Tensor&, const Operand&)>
PyObject* inplace_slot(PyObject* self, PyObject* other) {
  return guarded([&]() -> PyObject* {
    OperandHolder right;
    if (!right.load(other)) Py_RETURN_NOTIMPLEMENTED;
    F(unwrap(self), right.get());
    return Py_NewRef(self);
  });
}

template <Tensor (*F)(const Tensor&)>
PyObject* unary_slot(PyObject* self) {
  return guarded([&] { return wrap(F(unwrap(self))); });
}

PyObject* power_slot(PyObject* a, PyObject* b, PyObject* modulus) {
  if (modulus != Py_None) Py_RETURN_NOTIMPLEMENTED;
  return binary_slot<pow>(a, b);
}

PyObject* matmul_slot(PyObject* a, PyObject* b) {
  return guarded([&]() -> PyObject* {
    if (!is_tensor(a) || !is_tensor(b)) Py_RETURN_NOTIMPLEMENTED;
    return wrap(matmul(unwrap(a), unwrap(b)));
  });
}

PyObject* positive_slot(PyObject* self) { return Py_NewRef(self); }

PyObject* compare_slot(PyObject* a, PyObject* b, int operation) {
  return guarded([&]() -> PyObject* {
    OperandHolder right;
    if (!right.load(b)) Py_RETURN_NOTIMPLEMENTED;
    const Tensor& x = unwrap(a);
    const Operand y = right.get();
    switch (operation) {
      case Py_EQ: return wrap(eq(x, y));
      case Py_NE: return wrap(ne(x, y));
      case Py_LT: return wrap(lt(x, y));
      case Py_LE: return wrap(le(x, y));
      case Py_GT: return wrap(gt(x, y));
      default: return wrap(ge(x, y));
    }
  });
}

// bool & bool is logical for tensors of bool.
template <Tensor (*Bits)(const Operand&, const Operand&), Tensor (*Logic)(const Operand&, const Operand&)>
Tensor bits(const Operand& a, const Operand& b) {
  return result_type(a, b) == DType::Bool ? Logic(a, b) : Bits(a, b);
}

// ---------------------------------------------------------------------------------- conversions

int bool_slot(PyObject* self) {
  int result = -1;
  guarded([&]() -> PyObject* {
    const Tensor& x = unwrap(self);
    check<RuntimeError>(x.numel() == 1, "bool: the truth of a tensor of shape ", x.shape(),
                        " is ambiguous; use .any() or .all()");
    result = item(x).to_bool();
    return nullptr;
  });
  return result;
}

PyObject* float_slot(PyObject* self) {
  return guarded([&] { return PyFloat_FromDouble(item(unwrap(self)).to_double()); });
}

PyObject* int_slot(PyObject* self) {
  return guarded([&] {
    const Scalar value = item(unwrap(self));
    return value.kind == Scalar::Kind::Float ? PyLong_FromDouble(value.real) : PyLong_FromLongLong(value.integer);
  });
}

PyObject* index_slot(PyObject* self) {
  return guarded([&] {
    const Tensor& x = unwrap(self);
    check<TypeError>(!x.is_floating() && x.numel() == 1, "index: only a tensor of one integer is an index, got type ",
                     x.dtype(), " and shape ", x.shape());
    return PyLong_FromLongLong(item(x).to_int());
  });
}

Py_ssize_t length_slot(PyObject* self) {
  const Tensor& x = unwrap(self);
  if (x.ndim() == 0) {
    PyErr_SetString(PyExc_TypeError, "len() of a 0-d tensor");
    return -1;
  }
  return Py_ssize_t(x.shape()[0]);
}

PyObject* subscript_slot(PyObject* self, PyObject* index) {
  return guarded([&] { return wrap(get_item(unwrap(self), index)); });
}

int assign_slot(PyObject* self, PyObject* index, PyObject* value) {
  PyObject* done = guarded([&]() -> PyObject* {
    check<TypeError>(value != nullptr, "index: elements of a tensor cannot be deleted");
    set_item(unwrap(self), index, value);
    return Py_None;
  });
  return done ? 0 : -1;
}

PyObject* iterate_slot(PyObject* self) {
  return guarded([&]() -> PyObject* {
    const Tensor& x = unwrap(self);
    check<TypeError>(x.ndim() > 0, "iteration over a 0-d tensor");
    py::object rows = py::cast(unbind(x, 0));
    return PyObject_GetIter(rows.ptr());
  });
}

PyObject* repr_slot(PyObject* self) {
  return guarded(
      [&] { return py::module_::import("fastnn._repr").attr("tensor_repr")(py::handle(self)).release().ptr(); });
}

Py_hash_t hash_slot(PyObject* self) { return Py_hash_t(reinterpret_cast<uintptr_t>(unwrap(self).impl()) >> 4); }

// Tensor(data), Tensor(2, 3): PyTorch's older constructor, float32 always.
PyObject* new_slot(PyTypeObject* type, PyObject* args, PyObject*) {
  return guarded([&]() -> PyObject* {
    Tensor x;
    if (PyTuple_GET_SIZE(args) == 1 && !PyLong_Check(PyTuple_GET_ITEM(args, 0)))
      x = to(tensor_from_data(PyTuple_GET_ITEM(args, 0)), DType::Float32);
    else
      x = empty(dims_from_args(py::reinterpret_borrow<py::args>(args)), DType::Float32);
    return allocate(type, x.impl()->python_object ? detach(x) : x);
  });
}

// ----------------------------------------------------------------------------------- attributes

template <class F>
PyObject* getter(PyObject* self, void*) {
  return guarded([&] { return F::get(unwrap(self)); });
}

#define FASTNN_GETTER(Name, expression)                                           \
  struct Name {                                                                   \
    static PyObject* get([[maybe_unused]] const Tensor& x) { return expression; } \
  };
FASTNN_GETTER(GetShape, tuple_from_dims(x.shape()))
FASTNN_GETTER(GetDType, Py_NewRef(dtype_object(x.dtype())))
FASTNN_GETTER(GetDevice, py::cast(x.device()).release().ptr())
FASTNN_GETTER(GetNdim, PyLong_FromLong(x.ndim()))
FASTNN_GETTER(GetRequiresGrad, PyBool_FromLong(tracks_grad(x)))
FASTNN_GETTER(GetIsLeaf, PyBool_FromLong(is_leaf(x)))
FASTNN_GETTER(GetGrad, wrap(grad_of(x)))
FASTNN_GETTER(GetData, wrap(detach(x)))
FASTNN_GETTER(GetItemSize, PyLong_FromSize_t(x.item_size()))
FASTNN_GETTER(GetBytes, PyLong_FromLongLong(x.numel() * int64_t(x.item_size())))
FASTNN_GETTER(GetVersion, PyLong_FromUnsignedLong(x.version()))
FASTNN_GETTER(GetIsCuda, PyBool_FromLong(x.device().is_cuda()))
FASTNN_GETTER(GetCudaArray, cuda_array_interface(x))
#undef FASTNN_GETTER

struct GetT {
  static PyObject* get(const Tensor& x) {
    check(x.ndim() <= 2, "T: expected at most 2 dimensions, got shape ", x.shape(), "; use mT or permute");
    return wrap(x.ndim() == 2 ? transpose(x, 0, 1) : x);
  }
};
struct GetMT {
  static PyObject* get(const Tensor& x) {
    check(x.ndim() >= 2, "mT: expected at least 2 dimensions, got shape ", x.shape());
    return wrap(transpose(x, -2, -1));
  }
};
struct GetGradFn {
  static PyObject* get(const Tensor& x) {
    NodePtr node = grad_node(x);
    if (!node) Py_RETURN_NONE;
    return py::cast(node).release().ptr();
  }
};

int set_grad_slot(PyObject* self, PyObject* value, void*) {
  PyObject* done = guarded([&]() -> PyObject* {
    check<TypeError>(!value || value == Py_None || is_tensor(value), "grad: expected a Tensor or None");
    set_grad(unwrap(self), value && value != Py_None ? unwrap(value) : Tensor());
    return Py_None;
  });
  return done ? 0 : -1;
}

int set_requires_grad_slot(PyObject* self, PyObject* value, void*) {
  PyObject* done = guarded([&]() -> PyObject* {
    check<TypeError>(value && PyBool_Check(value), "requires_grad: expected a bool");
    set_requires_grad(unwrap(self), value == Py_True);
    return Py_None;
  });
  return done ? 0 : -1;
}

// x.data = y: x shows y's elements from now on. Shape and type may change; history does not.
int set_data_slot(PyObject* self, PyObject* value, void*) {
  PyObject* done = guarded([&]() -> PyObject* {
    check<TypeError>(value && is_tensor(value), "data: expected a Tensor");
    TensorImpl* to = unwrap(self).impl();
    const TensorImpl* from = unwrap(value).impl();
    check<TypeError>(from->dtype == to->dtype || !to->requires_grad || is_floating(from->dtype),
                     "data: a tensor that requires grad cannot become ", from->dtype);
    from->storage->references.fetch_add(1);
    if (to->storage->references.fetch_sub(1) == 1) free_storage(to->storage);
    to->storage = from->storage;
    to->offset = from->offset;
    to->numel = from->numel;
    to->shape = from->shape;
    to->strides = from->strides;
    to->dtype = from->dtype;
    return Py_None;
  });
  return done ? 0 : -1;
}

PyGetSetDef attributes[] = {
    {"shape", getter<GetShape>, nullptr, "The sizes, a tuple of ints.", nullptr},
    {"dtype", getter<GetDType>, nullptr, "The element type.", nullptr},
    {"device", getter<GetDevice>, nullptr, "Where the elements live.", nullptr},
    {"ndim", getter<GetNdim>, nullptr, "The number of dimensions.", nullptr},
    {"requires_grad", getter<GetRequiresGrad>, set_requires_grad_slot, "Are gradients computed for it?", nullptr},
    {"is_leaf", getter<GetIsLeaf>, nullptr, "True when no recorded operation made it.", nullptr},
    {"grad", getter<GetGrad>, set_grad_slot, "The accumulated gradient, or None.", nullptr},
    {"grad_fn", getter<GetGradFn>, nullptr, "The recorded operation that made it, or None.", nullptr},
    {"data", getter<GetData>, set_data_slot, "The same elements without history.", nullptr},
    {"T", getter<GetT>, nullptr, "The transpose of a matrix.", nullptr},
    {"mT", getter<GetMT>, nullptr, "The last two axes exchanged.", nullptr},
    {"itemsize", getter<GetItemSize>, nullptr, "Bytes per element.", nullptr},
    {"nbytes", getter<GetBytes>, nullptr, "Bytes of all elements.", nullptr},
    {"is_cuda", getter<GetIsCuda>, nullptr, "Does it live on a GPU?", nullptr},
    {"__cuda_array_interface__", getter<GetCudaArray>, nullptr, "How CuPy and Numba read it, on a GPU.", nullptr},
    {"_version", getter<GetVersion>, nullptr, "How often it was changed in place.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMemberDef members[] = {{"__weaklistoffset__", T_PYSSIZET, offsetof(TensorObject, weak_references), READONLY, nullptr},
                         {nullptr, 0, 0, 0, nullptr}};

template <class F>
PyType_Slot slot(int id, F* function) {
  return {id, reinterpret_cast<void*>(function)};
}

}  // namespace

// ------------------------------------------------------------------------------------- the type

void define_tensor(py::module_& module) {
  using BinarySlot = PyObject*(PyObject*, PyObject*);
  BinarySlot* const and_slot = binary_slot<bits<bitwise_and, logical_and>>;
  BinarySlot* const or_slot = binary_slot<bits<bitwise_or, logical_or>>;
  BinarySlot* const xor_slot = binary_slot<bits<bitwise_xor, logical_xor>>;
  PyType_Slot slots[] = {slot(Py_nb_add, binary_slot<add>),
                         slot(Py_nb_subtract, binary_slot<sub>),
                         slot(Py_nb_multiply, binary_slot<mul>),
                         slot(Py_nb_true_divide, binary_slot<div>),
                         slot(Py_nb_floor_divide, binary_slot<floor_divide>),
                         slot(Py_nb_remainder, binary_slot<remainder>),
                         slot(Py_nb_power, power_slot),
                         slot(Py_nb_matrix_multiply, matmul_slot),
                         slot(Py_nb_and, and_slot),
                         slot(Py_nb_or, or_slot),
                         slot(Py_nb_xor, xor_slot),
                         slot(Py_nb_inplace_add, inplace_slot<add_>),
                         slot(Py_nb_inplace_subtract, inplace_slot<sub_>),
                         slot(Py_nb_inplace_multiply, inplace_slot<mul_>),
                         slot(Py_nb_inplace_true_divide, inplace_slot<div_>),
                         slot(Py_nb_inplace_floor_divide, inplace_slot<floor_divide_>),
                         slot(Py_nb_inplace_remainder, inplace_slot<remainder_>),
                         slot(Py_nb_negative, unary_slot<neg>),
                         slot(Py_nb_positive, positive_slot),
                         slot(Py_nb_absolute, unary_slot<abs>),
                         slot(Py_nb_invert, unary_slot<bitwise_not>),
                         slot(Py_nb_bool, bool_slot),
                         slot(Py_nb_float, float_slot),
                         slot(Py_nb_int, int_slot),
                         slot(Py_nb_index, index_slot),
                         slot(Py_mp_length, length_slot),
                         slot(Py_mp_subscript, subscript_slot),
                         slot(Py_mp_ass_subscript, assign_slot),
                         slot(Py_tp_iter, iterate_slot),
                         slot(Py_tp_richcompare, compare_slot),
                         slot(Py_tp_hash, hash_slot),
                         slot(Py_tp_repr, repr_slot),
                         slot(Py_tp_new, new_slot),
                         slot(Py_tp_dealloc, deallocate),
                         slot(Py_tp_traverse, traverse),
                         slot(Py_tp_clear, clear),
                         slot(Py_bf_getbuffer, get_buffer),
                         slot(Py_bf_releasebuffer, release_buffer),
                         {Py_tp_getset, attributes},
                         {Py_tp_members, members},
                         {Py_tp_doc, const_cast<char*>("A strided array of one element type, with gradients.")},
                         {0, nullptr}};
  PyType_Spec spec = {"fastnn.Tensor", sizeof(TensorObject), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};
  PyObject* type = PyType_FromSpec(&spec);
  if (!type) throw py::error_already_set();
  tensor_type = reinterpret_cast<PyTypeObject*>(type);
  // numpy then leaves `array * tensor` to the tensor.
  py::handle(type).attr("__array_priority__") = 1000;
  module.attr("Tensor") = py::handle(type);
}

const Tensor& unwrap(PyObject* object) { return object_of(object)->tensor; }

PyObject* wrap(const Tensor& x) {
  if (!x.defined()) Py_RETURN_NONE;
  if (auto* existing = static_cast<PyObject*>(x.impl()->python_object)) return Py_NewRef(existing);
  return allocate(tensor_type, x);
}

PyObject* wrap_as(PyTypeObject* type, const Tensor& x, bool requires_grad) {
  const Tensor made = detach(x);
  set_requires_grad(made, requires_grad);
  return allocate(type, made);
}

// ------------------------------------------------------------------------------------- operands

bool as_scalar(PyObject* object, Scalar& scalar) {
  if (PyFloat_Check(object)) return scalar = Scalar(PyFloat_AS_DOUBLE(object)), true;
  if (PyBool_Check(object)) return scalar = Scalar(object == Py_True), true;
  if (PyLong_Check(object)) {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    check(overflow == 0, "the int does not fit 64 bits");
    return scalar = Scalar(int64_t(value)), true;
  }
  if (is_tensor(object)) {
    const Tensor& x = unwrap(object);
    if (x.numel() != 1 || x.requires_grad()) return false;
    return scalar = item(x), true;
  }
  // numpy's scalars: float32, int64, bool_.
  if (!PyObject_HasAttrString(object, "dtype") || is_numpy_array(object)) return false;
  py::object value = py::reinterpret_borrow<py::object>(object).attr("item")();
  return !is_numpy_array(value.ptr()) && !PyObject_HasAttrString(value.ptr(), "dtype") &&
         as_scalar(value.ptr(), scalar);
}

bool OperandHolder::load(PyObject* object) {
  if (is_tensor(object)) {
    tensor_ = unwrap(object);
    return true;
  }
  if (is_numpy_array(object)) {
    tensor_ = tensor_from_array(object, /*copy=*/true);
    return true;
  }
  return as_scalar(object, scalar_);
}

}  // namespace fastnn::python
