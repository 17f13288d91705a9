// Autograd for Python: modes, backward, hooks, and functions whose backward is written in Python.
#include "core/autograd.h"

#include "python/bindings.h"

namespace py = pybind11;
using py::arg;

namespace fastnn::python {
namespace {

// Python objects may be dropped by any thread, and after the interpreter has gone.
class OwnedObject {
 public:
  explicit OwnedObject(py::object object) : object_(std::move(object)) {}
  ~OwnedObject() {
    if (!Py_IsInitialized()) {
      object_.release();
      return;
    }
    py::gil_scoped_acquire lock;
    object_ = py::object();
  }
  const py::object& get() const { return object_; }

 private:
  py::object object_;
};

class PythonHook final : public GradHook {
 public:
  explicit PythonHook(py::object function) : function_(std::move(function)) {}
  Tensor operator()(const Tensor& grad) override {
    py::gil_scoped_acquire lock;
    py::object result = function_.get()(grad);
    if (result.is_none()) return Tensor();
    check<TypeError>(is_tensor(result.ptr()), "a gradient hook must return a Tensor or None, got ",
                     Py_TYPE(result.ptr())->tp_name);
    return unwrap(result.ptr());
  }
  PyObject* function() const { return function_.get().ptr(); }

 private:
  OwnedObject function_;
};

// What register_hook returns.
struct HookHandle {
  Tensor tensor;
  int64_t id;
  void remove() { remove_hook(tensor, id); }
};

// A call of a custom Function. Saved tensors live here rather than on the Python context, so that a
// saved result does not hold the graph that holds the context.
class FunctionNode final : public Node {
 public:
  FunctionNode(std::string name, py::object function, py::object context)
      : Node("function", Differentiable::Yes),
        name_(std::move(name)),
        function_(std::move(function)),
        context_(std::move(context)) {}

  const char* name() const override { return name_.c_str(); }

  void save(const py::tuple& tensors, const std::vector<Tensor>& results) {
    for (py::handle entry : tensors) {
      Entry saved;
      check<TypeError>(entry.is_none() || is_tensor(entry.ptr()), name_, ": save_for_backward takes tensors or None");
      if (!entry.is_none()) {
        const Tensor& x = unwrap(entry.ptr());
        for (size_t i = 0; i < results.size(); ++i)
          if (results[i].is(x)) saved.output = SavedOutput(x, uint32_t(i)), saved.kind = Entry::Output;
        if (saved.kind == Entry::None) saved.input = Saved(x), saved.kind = Entry::Input;
      }
      saved_.push_back(saved);
    }
  }

  void apply(Backward& b) override {
    py::gil_scoped_acquire lock;
    py::tuple tensors(saved_.size());
    for (size_t i = 0; i < saved_.size(); ++i) tensors[i] = py::cast(unpack(saved_[i], b));
    py::tuple grads(outputs.size());
    for (size_t i = 0; i < outputs.size(); ++i) grads[i] = py::cast(b.grad(uint32_t(i)));
    context_.get().attr("saved_tensors") = tensors;
    py::object result = function_.get().attr("backward")(context_.get(), *grads);
    context_.get().attr("saved_tensors") = py::tuple();
    if (!PyTuple_Check(result.ptr())) result = py::make_tuple(result);
    set_results(b, result);
  }

  void release_saved() override { saved_.clear(); }

  std::vector<int> inputs_of_arguments;  // per argument of forward: which input it is, or -1

 private:
  struct Entry {
    enum { None, Input, Output } kind = None;
    Saved input;
    SavedOutput output;
  };

  static Tensor unpack(const Entry& entry, const Backward& b) {
    if (entry.kind == Entry::None) return Tensor();
    return entry.kind == Entry::Input ? b.get(entry.input) : b.get(entry.output);
  }

  void set_results(Backward& b, const py::tuple& result) {
    size_t given = result.size();  // None may stand for arguments that were left to their defaults
    while (given > inputs_of_arguments.size() && result[given - 1].is_none()) --given;
    check<RuntimeError>(given == inputs_of_arguments.size(), name_, ": backward returned ", result.size(),
                        " gradients for ", inputs_of_arguments.size(), " arguments of forward");
    for (size_t i = 0; i < given; ++i) {
      py::handle gradient = result[i];
      if (gradient.is_none() || inputs_of_arguments[i] < 0) continue;
      check<TypeError>(is_tensor(gradient.ptr()), name_, ": gradient ", i, " must be a Tensor or None, got ",
                       Py_TYPE(gradient.ptr())->tp_name);
      b.set(uint32_t(inputs_of_arguments[i]), unwrap(gradient.ptr()));
    }
  }

  std::string name_;
  OwnedObject function_, context_;
  std::vector<Entry> saved_;
};

std::vector<Tensor> forward_results(const std::string& name, py::handle result, const py::tuple& args) {
  const py::tuple list =
      PyTuple_Check(result.ptr()) ? py::reinterpret_borrow<py::tuple>(result) : py::make_tuple(result);
  std::vector<Tensor> results;
  for (py::handle entry : list) {
    check<TypeError>(is_tensor(entry.ptr()), name, ": forward must return tensors, got ",
                     Py_TYPE(entry.ptr())->tp_name);
    Tensor y = unwrap(entry.ptr());
    for (py::handle argument : args)
      if (argument.is(entry)) y = detach(y);  // an argument passed through is a result of its own
    results.push_back(y);
  }
  return results;
}

py::object apply_function(py::object function, py::object context, const py::tuple& args) {
  const auto name = function.attr("__name__").cast<std::string>();
  py::object result;
  {
    GradMode off(false);
    result = function.attr("forward")(context, *args);
  }
  const std::vector<Tensor> results = forward_results(name, result, args);
  std::vector<TensorRef> inputs;
  std::vector<int> positions;
  for (py::handle argument : args) {
    const bool tensor = is_tensor(argument.ptr());
    positions.push_back(tensor ? int(inputs.size()) : -1);
    if (tensor) inputs.push_back(unwrap(argument.ptr()));
  }
  if (needs_grad(inputs)) {
    auto* made = new FunctionNode(name, function, context);
    NodePtr node(made);
    made->inputs_of_arguments = positions;
    made->save(context.attr("_to_save"), results);
    connect(node, inputs, results.data(), results.size());
    for (py::handle entry : context.attr("_non_differentiable")) {
      for (const Tensor& y : results) {
        if (!is_tensor(entry.ptr()) || !unwrap(entry.ptr()).is(y)) continue;
        y.impl()->requires_grad = false;
        autograd_meta(y).node = NodePtr();
      }
    }
  }
  context.attr("_to_save") = py::tuple();
  context.attr("_non_differentiable") = py::tuple();
  if (!PyTuple_Check(result.ptr())) return py::cast(results[0]);
  return py::cast(results);
}

std::string python_stack() {
  py::gil_scoped_acquire lock;
  py::object lines = py::module_::import("traceback").attr("format_stack")();
  return py::str("").attr("join")(lines).cast<std::string>();
}

// The hooks that die with x: those of a leaf, or of a node that x alone holds.
std::vector<Hook>* own_hooks(const Tensor& x) {
  AutogradMeta* meta = x.impl()->autograd;
  if (!meta || x.impl()->references.load() != 1) return nullptr;
  if (!meta->node) return &meta->hooks;
  return meta->node->references.load() == 1 ? &meta->node->hooks : nullptr;
}

}  // namespace

int visit_hooks(const Tensor& x, visitproc visit, void* arg) {
  const std::vector<Hook>* hooks = own_hooks(x);
  if (!hooks) return 0;
  for (const Hook& hook : *hooks)
    if (auto* python = dynamic_cast<PythonHook*>(hook.function.get())) Py_VISIT(python->function());
  return 0;
}

void clear_hooks(const Tensor& x) {
  if (std::vector<Hook>* hooks = own_hooks(x)) std::vector<Hook>().swap(*hooks);
}

void bind_autograd(py::module_& m) {
  Binder b(m);
  anomaly_tracer = python_stack;
  py::class_<NodePtr>(m, "Node", "A recorded operation.")
      .def("name", [](const NodePtr& self) { return std::string(self->name()); })
      .def_property_readonly("next_functions",
                             [](const NodePtr& self) {
                               py::list next;
                               for (const Edge& edge : self->inputs)
                                 next.append(edge.node ? py::cast(edge.node) : py::object(py::none()));
                               return py::tuple(next);
                             })
      .def("__repr__", [](const NodePtr& self) { return str("<backward of ", self->name(), ">"); });
  py::class_<HookHandle>(m, "RemovableHandle", "Takes a hook off again.").def("remove", &HookHandle::remove);

  m.def("is_grad_enabled", grad_enabled);
  m.def("set_grad_enabled", set_grad_enabled, arg("mode"));
  m.def("is_inference_mode", inference_mode);
  m.def("set_inference_mode", set_inference_mode, arg("mode"));
  m.def("anomaly_mode", anomaly_mode);
  m.def("set_anomaly_mode", set_anomaly_mode, arg("mode"));
  m.def("backward", [](const std::vector<Tensor>& outputs, const MaybeTensors& grads, bool retain_graph,
                       bool create_graph) { backward(outputs, grads.tensors, {retain_graph, create_graph}); });
  m.def("gradients", [](const std::vector<Tensor>& outputs, const MaybeTensors& grads,
                        const std::vector<Tensor>& inputs, bool retain_graph, bool create_graph, bool allow_unused) {
    return gradients(outputs, grads.tensors, inputs, {retain_graph, create_graph}, allow_unused);
  });
  m.def("apply_function", apply_function);

  b.method(
      "backward",
      [](const Tensor& x, const MaybeTensor& gradient, std::optional<bool> retain_graph, bool create_graph) {
        backward({x}, {gradient.tensor}, {retain_graph ? *retain_graph : create_graph, create_graph});
      },
      arg("self"), arg("gradient") = py::none(), arg("retain_graph") = py::none(), arg("create_graph") = false);
  b.method(
      "requires_grad_",
      [](const Tensor& x, bool requires_grad) {
        set_requires_grad(x, requires_grad);
        return x;
      },
      arg("self"), arg("requires_grad") = true);
  b.method(
      "detach_",
      [](const Tensor& x) {
        AutogradMeta& meta = autograd_meta(x);
        check<RuntimeError>(!meta.base.defined(), "detach_: a view cannot be detached in place; use detach()");
        meta.node = NodePtr();
        x.impl()->requires_grad = false;
        return x;
      },
      arg("self"));
  b.method("retain_grad", retain_grad, arg("self"));
  b.method(
      "register_hook",
      [](const Tensor& x, py::object hook) {
        check<TypeError>(PyCallable_Check(hook.ptr()), "register_hook: expected a callable, got ",
                         Py_TYPE(hook.ptr())->tp_name);
        return HookHandle{x, add_hook(x, std::make_shared<PythonHook>(hook))};
      },
      arg("self"), arg("hook"));
}

}  // namespace fastnn::python
