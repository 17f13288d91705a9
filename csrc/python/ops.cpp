// The operations of tensors, a line each: the Python name, the C++ function, the arguments. No logic but
// what the forms of a Python call ask for. Those that only networks call are in nn_ops.cpp.
#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/index/index.h"
#include "ops/matmul/matmul.h"
#include "ops/random/random.h"
#include "ops/reduce/reduce.h"
#include "ops/reduce/scan.h"
#include "ops/reduce/sort.h"
#include "ops/softmax/softmax.h"
#include "python/bindings.h"

namespace py = pybind11;
using py::arg;

namespace fastnn::python {
namespace {

using Axes = std::optional<Dims>;
using Format = std::optional<MemoryFormat>;

Dims all_or(const Axes& axes) { return axes ? *axes : Dims(); }

py::object named_pair(const std::pair<Tensor, Tensor>& pair) {
  static py::handle type = py::module_::import("collections")
                               .attr("namedtuple")("values_indices", py::make_tuple("values", "indices"))
                               .release();
  return type(pair.first, pair.second);
}

const Scalar* pointer(const std::optional<Scalar>& value) { return value ? &*value : nullptr; }

template <Tensor (*F)(const Operand&, const Operand&)>
Tensor binary(const OperandArg& a, const OperandArg& b) {
  return F(a, b);
}
template <Tensor (*F)(const Tensor&, const Operand&)>
Tensor inplace(const Tensor& a, const OperandArg& b) {
  return F(a, b);
}

// F(a, alpha b): add(x, y, alpha=2).
template <Tensor (*F)(const Operand&, const Operand&)>
Tensor with_alpha(const OperandArg& a, const OperandArg& b, Scalar alpha) {
  const bool one = alpha.kind == Scalar::Kind::Int && alpha.integer == 1;
  return one ? F(a, b) : F(a, mul(b, alpha));
}
template <Tensor (*F)(const Tensor&, const Operand&)>
Tensor with_alpha_(const Tensor& a, const OperandArg& b, Scalar alpha) {
  const bool one = alpha.kind == Scalar::Kind::Int && alpha.integer == 1;
  return one ? F(a, b) : F(a, mul(b, alpha));
}

Tensor divide(const OperandArg& a, const OperandArg& b, const std::optional<std::string>& rounding_mode) {
  if (!rounding_mode) return div(a, b);
  check(*rounding_mode == "floor" || *rounding_mode == "trunc",
        "div: expected rounding_mode None, 'floor' or 'trunc', got '", *rounding_mode, "'");
  return *rounding_mode == "floor" ? floor_divide(a, b) : trunc(div(a, b));
}

template <Tensor (*F)(const Tensor&, const Dims&)>
PyObject* sized(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return guarded([&] { return wrap(F(unwrap(self), dims_from_args(args, n))); });
}

PyObject* view_or_retype(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return guarded([&] {
    DType dtype;
    return n == 1 && as_dtype(args[0], dtype) ? wrap(view_as_type(unwrap(self), dtype)) : sized<view>(self, args, n);
  });
}

Tensor converted(const Tensor& x, const MaybeDType& dtype) { return dtype.given ? to(x, dtype.value) : x; }

void bind_elementwise(Binder& b) {
#define FASTNN_BIND(name, Functor)           \
  b.both(#name, fastnn::name, arg("input")); \
  b.both(#name "_", fastnn::name##_, arg("input"));
  FASTNN_UNARY_BOTH(FASTNN_BIND)
  FASTNN_UNARY_FLOAT(FASTNN_BIND)
  FASTNN_UNARY_ROUND(FASTNN_BIND)
#undef FASTNN_BIND
#define FASTNN_BIND(name, Functor) b.both(#name, fastnn::name, arg("input"));
  FASTNN_UNARY_TEST(FASTNN_BIND)
#undef FASTNN_BIND
  b.both("bitwise_not", bitwise_not, arg("input"));
  b.function("leaky_relu", leaky_relu, arg("input"), arg("negative_slope") = 0.01);
  b.function("elu", elu, arg("input"), arg("alpha") = 1.0);
  b.function("celu", celu, arg("input"), arg("alpha") = 1.0);
  b.function("gelu", gelu, arg("input"), arg("approximate") = "none");
  b.function("softplus", softplus, arg("input"), arg("beta") = 1.0, arg("threshold") = 20.0);
  b.function(
      "relu6",
      [](const Tensor& x) {
        const Scalar low(0), high(6);
        return clamp(x, &low, &high);
      },
      arg("input"));
  b.function(
      "hardtanh", [](const Tensor& x, Scalar low, Scalar high) { return clamp(x, &low, &high); }, arg("input"),
      arg("min_val") = -1.0, arg("max_val") = 1.0);
  for (const char* name : {"clamp", "clip"})
    b.both(
        name,
        [](const Tensor& x, std::optional<Scalar> low, std::optional<Scalar> high) {
          return clamp(x, pointer(low), pointer(high));
        },
        arg("input"), arg("min") = py::none(), arg("max") = py::none());
  b.both(
      "clamp_",
      [](const Tensor& x, std::optional<Scalar> low, std::optional<Scalar> high) {
        return clamp_(x, pointer(low), pointer(high));
      },
      arg("input"), arg("min") = py::none(), arg("max") = py::none());

  const auto bind = [&b](const char* name, auto f) { b.both(name, f, arg("input"), arg("other")); };
#define FASTNN_BIND(name, Functor) bind(#name, binary<fastnn::name>);
  FASTNN_BINARY_COMPARE(FASTNN_BIND)
  FASTNN_BINARY_BITS(FASTNN_BIND)
#undef FASTNN_BIND
  bind("mul", binary<mul>);
  bind("maximum", binary<maximum>);
  bind("minimum", binary<minimum>);
  bind("floor_divide", binary<floor_divide>);
  bind("remainder", binary<remainder>);
  bind("fmod", binary<fmod>);
  bind("atan2", binary<atan2>);
  bind("mul_", inplace<mul_>);
  bind("div_", inplace<div_>);
  bind("floor_divide_", inplace<floor_divide_>);
  bind("remainder_", inplace<remainder_>);
  bind("fmod_", inplace<fmod_>);
  bind("pow_", inplace<pow_>);
  b.both("add", with_alpha<add>, arg("input"), arg("other"), arg("alpha") = 1);
  b.both("sub", with_alpha<sub>, arg("input"), arg("other"), arg("alpha") = 1);
  b.both("add_", with_alpha_<add_>, arg("input"), arg("other"), arg("alpha") = 1);
  b.both("sub_", with_alpha_<sub_>, arg("input"), arg("other"), arg("alpha") = 1);
  b.both("div", divide, arg("input"), arg("other"), arg("rounding_mode") = py::none());
  b.both("pow", binary<pow>, arg("input"), arg("exponent"));
  b.function(
      "where", [](const Tensor& condition, const OperandArg& x, const OperandArg& y) { return where(condition, x, y); },
      arg("condition"), arg("input"), arg("other"));
  b.function("where", nonzero_as_tuple, arg("condition"));
  b.both(
      "lerp", [](const Tensor& x, const Tensor& y, const OperandArg& weight) { return lerp(x, y, weight); },
      arg("input"), arg("end"), arg("weight"));
}

void bind_copy(Binder& b) {
  b.both(
      "clone", [](const Tensor& x, const Format& format) { return clone(x, format.value_or(MemoryFormat::Preserve)); },
      arg("input"), py::kw_only(), arg("memory_format") = py::none());
  b.both("detach", detach, arg("input"));
  b.method(
      "contiguous",
      [](const Tensor& x, const Format& format) { return contiguous(x, format.value_or(MemoryFormat::Contiguous)); },
      arg("self"), py::kw_only(), arg("memory_format") = py::none());
  b.method("fill_", fill_, arg("input"), arg("value"));
  b.method("zero_", [](const Tensor& x) { return fill_(x, Scalar(0)); }, arg("input"));
  b.method("item", item, arg("input"));
  b.function("cat", cat, arg("tensors"), arg("dim") = 0);
  b.function("concat", cat, arg("tensors"), arg("dim") = 0);
  b.function("stack", stack, arg("tensors"), arg("dim") = 0);
  b.function("pad", pad, arg("input"), arg("pad"), arg("mode") = "constant", arg("value") = 0.0);
  b.both("flip", flip, arg("input"), arg("dims"));
  b.both(
      "roll", [](const Tensor& x, const Dims& shifts, const Axes& axes) { return roll(x, shifts, all_or(axes)); },
      arg("input"), arg("shifts"), arg("dims") = py::none());
  b.both("tril", tril, arg("input"), arg("diagonal") = 0);
  b.both("triu", triu, arg("input"), arg("diagonal") = 0);
  b.both("repeat_interleave", repeat_interleave, arg("input"), arg("repeats"), arg("dim"));
  b.direct_method<sized<repeat>>("repeat", "repeat(self: Tensor, *args) -> Tensor");
}

void bind_views(Binder& b) {
  b.direct_method<view_or_retype>("view", "view(self: Tensor, *args) -> Tensor");
  b.method("view_as", [](const Tensor& x, const Tensor& y) { return view(x, y.shape()); }, arg("input"), arg("other"));
  b.direct_method<sized<reshape>>("reshape", "reshape(self: Tensor, *args) -> Tensor");
  b.function("reshape", reshape, arg("input"), arg("shape"));
  b.direct_method<sized<permute>>("permute", "permute(self: Tensor, *args) -> Tensor");
  b.function("permute", permute, arg("input"), arg("dims"));
  b.direct_method<sized<expand>>("expand", "expand(self: Tensor, *args) -> Tensor");
  b.method(
      "expand_as", [](const Tensor& x, const Tensor& y) { return expand(x, y.shape()); }, arg("input"), arg("other"));
  b.function("broadcast_to", expand, arg("input"), arg("shape"));
  b.both("transpose", transpose, arg("input"), arg("dim0"), arg("dim1"));
  b.both(
      "t",
      [](const Tensor& x) {
        check(x.ndim() <= 2, "t: expected at most 2 dimensions, got shape ", x.shape());
        return x.ndim() == 2 ? transpose(x, 0, 1) : x;
      },
      arg("input"));
  b.both("movedim", movedim, arg("input"), arg("source"), arg("destination"));
  b.both("flatten", flatten, arg("input"), arg("start_dim") = 0, arg("end_dim") = -1);
  b.both("unflatten", unflatten, arg("input"), arg("dim"), arg("sizes"));
  b.both(
      "squeeze", [](const Tensor& x, const Axes& axes) { return axes ? squeeze(x, *axes) : squeeze(x); }, arg("input"),
      arg("dim") = py::none());
  b.both("unsqueeze", unsqueeze, arg("input"), arg("dim"));
  b.both("narrow", narrow, arg("input"), arg("dim"), arg("start"), arg("length"));
  b.both("select", select, arg("input"), arg("dim"), arg("index"));
  b.both("diagonal", diagonal, arg("input"), arg("offset") = 0, arg("dim1") = 0, arg("dim2") = 1);
  b.both("unbind", unbind, arg("input"), arg("dim") = 0);
  b.both("chunk", chunk, arg("input"), arg("chunks"), arg("dim") = 0);
  b.both("split", split_size, arg("input"), arg("split_size_or_sections"), arg("dim") = 0);
  b.both("split", split, arg("input"), arg("split_size_or_sections"), arg("dim") = 0);
  b.method("unfold", unfold, arg("input"), arg("dimension"), arg("size"), arg("step"));
}

void bind_reduce(Binder& b) {
  using Reduce = Tensor (*)(const Tensor&, const Dims&, bool);
  const auto bind = [&b](const char* name, Reduce f) {
    b.both(
        name,
        [f](const Tensor& x, const Axes& axes, bool keepdim, const MaybeDType& dtype) {
          return f(converted(x, dtype), all_or(axes), keepdim);
        },
        arg("input"), arg("dim") = py::none(), arg("keepdim") = false, arg("dtype") = py::none());
  };
  bind("sum", sum);
  bind("mean", mean);
  bind("prod", prod);
  const auto bind_plain = [&b](const char* name, Reduce f) {
    b.both(
        name, [f](const Tensor& x, const Axes& axes, bool keepdim) { return f(x, all_or(axes), keepdim); },
        arg("input"), arg("dim") = py::none(), arg("keepdim") = false);
  };
  bind_plain("amax", amax);
  bind_plain("amin", amin);
  bind_plain("all", all);
  bind_plain("any", any);
  bind_plain("logsumexp", logsumexp);
  b.both(
      "count_nonzero", [](const Tensor& x, const Axes& axes) { return count_nonzero(x, all_or(axes)); }, arg("input"),
      arg("dim") = py::none());
  b.both("argmax", argmax, arg("input"), arg("dim") = py::none(), arg("keepdim") = false);
  b.both("argmin", argmin, arg("input"), arg("dim") = py::none(), arg("keepdim") = false);
  const auto bind_spread = [&b](const char* name, Tensor (*f)(const Tensor&, const Dims&, double, bool)) {
    b.both(
        name,
        [f](const Tensor& x, const Axes& axes, bool unbiased, bool keepdim, std::optional<double> correction) {
          return f(x, all_or(axes), correction ? *correction : double(unbiased), keepdim);
        },
        arg("input"), arg("dim") = py::none(), arg("unbiased") = true, arg("keepdim") = false, py::kw_only(),
        arg("correction") = py::none());
  };
  bind_spread("var", var);
  bind_spread("std", stddev);
  b.both(
      "norm",
      [](const Tensor& x, double p, const Axes& axes, bool keepdim) { return norm(x, p, all_or(axes), keepdim); },
      arg("input"), arg("p") = 2.0, arg("dim") = py::none(), arg("keepdim") = false);
  // max(x), max(x, dim) and max(x, y), as in PyTorch.
  b.both("max", [](const Tensor& x) { return max(x); }, arg("input"));
  b.both("max", [](const Tensor& x, const Tensor& y) { return maximum(x, y); }, arg("input"), arg("other"));
  b.both(
      "max", [](const Tensor& x, int64_t axis, bool keepdim) { return named_pair(max(x, axis, keepdim)); },
      arg("input"), arg("dim"), arg("keepdim") = false);
  b.both("min", [](const Tensor& x) { return min(x); }, arg("input"));
  b.both("min", [](const Tensor& x, const Tensor& y) { return minimum(x, y); }, arg("input"), arg("other"));
  b.both(
      "min", [](const Tensor& x, int64_t axis, bool keepdim) { return named_pair(min(x, axis, keepdim)); },
      arg("input"), arg("dim"), arg("keepdim") = false);
  b.both("cumsum", cumsum, arg("input"), arg("dim"));
  b.both("cumprod", cumprod, arg("input"), arg("dim"));
  b.both(
      "sort", [](const Tensor& x, int64_t axis, bool descending) { return named_pair(sort(x, axis, descending)); },
      arg("input"), arg("dim") = -1, arg("descending") = false);
  b.both("argsort", argsort, arg("input"), arg("dim") = -1, arg("descending") = false);
  b.both(
      "topk",
      [](const Tensor& x, int64_t k, int64_t axis, bool largest) { return named_pair(topk(x, k, axis, largest)); },
      arg("input"), arg("k"), arg("dim") = -1, arg("largest") = true);
}

void bind_matmul(Binder& b) {
  b.both("matmul", matmul, arg("input"), arg("other"));
  b.both("mm", mm, arg("input"), arg("mat2"));
  b.both("bmm", bmm, arg("input"), arg("mat2"));
  b.both("mv", mv, arg("input"), arg("vec"));
  b.both("dot", dot, arg("input"), arg("other"));
  b.both("addmm", addmm, arg("input"), arg("mat1"), arg("mat2"), py::kw_only(), arg("beta") = 1.0, arg("alpha") = 1.0);
  b.both("baddbmm", baddbmm, arg("input"), arg("batch1"), arg("batch2"), py::kw_only(), arg("beta") = 1.0,
         arg("alpha") = 1.0);
  b.function(
      "linear",
      [](const Tensor& x, const Tensor& weight, const MaybeTensor& bias) { return linear(x, weight, bias.tensor); },
      arg("input"), arg("weight"), arg("bias") = py::none());
  b.function(
      "fused_linear",
      [](const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& residual,
         const std::string& activation) {
        return fused_linear(x, weight, bias.tensor, residual.tensor,
                            parse_activation("fused_linear", activation.c_str()));
      },
      arg("input"), arg("weight"), arg("bias"), arg("residual"), arg("activation"));
  b.function(
      "set_float32_matmul_precision",
      [](const std::string& precision) { set_float32_matmul_precision(precision.c_str()); }, arg("precision"),
      "How exactly float32 matrix products are computed: \"highest\" (the default) with the accuracy of float32,\n"
      "\"high\" as products of two bfloat16 parts of each number (relative error about 2^-16), \"medium\" of one\n"
      "(2^-8). Sums are float32 always. On CPUs without matrix tiles all three are float32; convolution is always.\n"
      "ValueError for any other word.");
  b.function("get_float32_matmul_precision", float32_matmul_precision,
             "The word that set_float32_matmul_precision was given last.");
}

void bind_softmax(Binder& b) {
  b.both(
      "softmax",
      [](const Tensor& x, int64_t axis, const MaybeDType& dtype) { return softmax(converted(x, dtype), axis); },
      arg("input"), arg("dim"), arg("dtype") = py::none());
  b.both(
      "log_softmax",
      [](const Tensor& x, int64_t axis, const MaybeDType& dtype) { return log_softmax(converted(x, dtype), axis); },
      arg("input"), arg("dim"), arg("dtype") = py::none());
}

void bind_index(Binder& b) {
  b.function(
      "embedding",
      [](const Tensor& ids, const Tensor& weight, int64_t padding_idx) {
        return embedding(ids, weight, padding_idx < 0 ? std::nullopt : std::optional<int64_t>(padding_idx));
      },
      arg("input"), arg("weight"), arg("padding_idx") = -1);
  b.both("index_select", index_select, arg("input"), arg("dim"), arg("index"));
  b.both("gather", gather, arg("input"), arg("dim"), arg("index"));
  b.both("take_along_dim", take_along_dim, arg("input"), arg("indices"), arg("dim") = py::none());
  b.both(
      "scatter",
      [](const Tensor& x, int64_t axis, const Tensor& index, const OperandArg& source) {
        return scatter(x, axis, index, source);
      },
      arg("input"), arg("dim"), arg("index"), arg("src"));
  b.method(
      "scatter_",
      [](const Tensor& x, int64_t axis, const Tensor& index, const OperandArg& source) {
        return scatter_(x, axis, index, source);
      },
      arg("input"), arg("dim"), arg("index"), arg("src"));
  b.both("scatter_add", scatter_add, arg("input"), arg("dim"), arg("index"), arg("src"));
  b.method("scatter_add_", scatter_add_, arg("input"), arg("dim"), arg("index"), arg("src"));
  b.both("index_add", index_add, arg("input"), arg("dim"), arg("index"), arg("source"));
  b.method("index_add_", index_add_, arg("input"), arg("dim"), arg("index"), arg("source"));
  b.function("one_hot", one_hot, arg("tensor"), arg("num_classes") = -1);
  b.both("masked_fill", masked_fill, arg("input"), arg("mask"), arg("value"));
  b.method("masked_fill_", masked_fill_, arg("input"), arg("mask"), arg("value"));
  b.both("masked_select", masked_select, arg("input"), arg("mask"));
  b.both("nonzero", nonzero, arg("input"));
  b.both(
      "index_put",
      [](const Tensor& x, const MaybeTensors& indices, const Tensor& values, bool accumulate) {
        return index_put(x, indices.tensors, values, accumulate);
      },
      arg("input"), arg("indices"), arg("values"), arg("accumulate") = false);
  b.method(
      "index_put_",
      [](const Tensor& x, const MaybeTensors& indices, const Tensor& values, bool accumulate) {
        return index_put_(x, indices.tensors, values, accumulate);
      },
      arg("input"), arg("indices"), arg("values"), arg("accumulate") = false);
}

void bind_random(Binder& b) {
  const auto generator = arg("generator") = py::none();
  b.both("bernoulli", bernoulli, arg("input"), py::kw_only(), generator);
  b.both("multinomial", multinomial, arg("input"), arg("num_samples"), arg("replacement") = false, py::kw_only(),
         generator);
  b.function("dropout", dropout, arg("input"), arg("p") = 0.5, arg("training") = true, generator);
  b.method("uniform_", uniform_, arg("input"), arg("from") = 0.0, arg("to") = 1.0, py::kw_only(), generator);
  b.method("normal_", normal_, arg("input"), arg("mean") = 0.0, arg("std") = 1.0, py::kw_only(), generator);
  b.method("bernoulli_", bernoulli_, arg("input"), arg("p") = 0.5, py::kw_only(), generator);
}

}  // namespace

void bind_ops(py::module_& module) {
  Binder binder(module);
  bind_elementwise(binder);
  bind_copy(binder);
  bind_views(binder);
  bind_reduce(binder);
  bind_matmul(binder);
  bind_softmax(binder);
  bind_index(binder);
  bind_random(binder);
}

}  // namespace fastnn::python
