// One line per operation: its Python name, the C++ function, its arguments. No logic.
#include "ops/attention/attention.h"
#include "ops/conv/conv.h"
#include "ops/copy/copy.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/index/index.h"
#include "ops/loss/loss.h"
#include "ops/matmul/matmul.h"
#include "ops/norm/norm.h"
#include "ops/optim/optim.h"
#include "ops/pool/pool.h"
#include "ops/random/random.h"
#include "ops/recurrent/recurrent.h"
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

// The sum of `alpha` times b: add(x, y, alpha=2).
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

Tensor converted(const Tensor& x, const MaybeDType& dtype) { return dtype.given ? to(x, dtype.value) : x; }

// F is one of the types Pool and PoolWithIndices of pool.h.
template <auto* F>
auto pool(const Tensor& x, const Dims& kernel, const Dims& stride, const Dims& padding, const Dims& dilation,
          bool ceil_mode) {
  return F(x, {kernel, stride, padding, dilation, ceil_mode, true, 0});
}
template <Pool* F>
Tensor average(const Tensor& x, const Dims& kernel, const Dims& stride, const Dims& padding, bool ceil_mode,
               bool count_include_pad, std::optional<int64_t> divisor) {
  check(!divisor || *divisor != 0, "avg_pool: expected divisor_override != 0");
  return F(x, {kernel, stride, padding, Dims(), ceil_mode, count_include_pad, divisor ? *divisor : 0});
}

using Convolution = Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const ConvOptions&);
template <Convolution F>
Tensor convolution(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const Dims& stride,
                   const Dims& padding, const Dims& dilation, int64_t groups, bool same_padding) {
  return F(x, weight, bias.tensor, {stride, padding, dilation, groups, same_padding});
}
using TransposedConvolution = Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const ConvOptions&, const Dims&);
template <TransposedConvolution F>
Tensor transposed_convolution(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const Dims& stride,
                              const Dims& padding, const Dims& output_padding, int64_t groups, const Dims& dilation) {
  return F(x, weight, bias.tensor, {stride, padding, dilation, groups}, output_padding);
}

// ---------------------------------------------------------------------------------------- lists

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

#define FASTNN_BIND(name) \
  b.both(#name, [](const OperandArg& x, const OperandArg& y) { return fastnn::name(x, y); }, arg("input"), arg("other"))
#define FASTNN_BIND_INPLACE(name)                                                                          \
  b.both(                                                                                                  \
      #name "_", [](const Tensor& x, const OperandArg& y) { return fastnn::name##_(x, y); }, arg("input"), \
      arg("other"))
  FASTNN_BIND(mul);
  FASTNN_BIND(maximum);
  FASTNN_BIND(minimum);
  FASTNN_BIND(floor_divide);
  FASTNN_BIND(remainder);
  FASTNN_BIND(fmod);
  FASTNN_BIND(atan2);
  FASTNN_BIND(eq);
  FASTNN_BIND(ne);
  FASTNN_BIND(lt);
  FASTNN_BIND(le);
  FASTNN_BIND(gt);
  FASTNN_BIND(ge);
  FASTNN_BIND(logical_and);
  FASTNN_BIND(logical_or);
  FASTNN_BIND(logical_xor);
  FASTNN_BIND(bitwise_and);
  FASTNN_BIND(bitwise_or);
  FASTNN_BIND(bitwise_xor);
  FASTNN_BIND_INPLACE(mul);
  FASTNN_BIND_INPLACE(floor_divide);
  FASTNN_BIND_INPLACE(remainder);
  FASTNN_BIND_INPLACE(fmod);
  FASTNN_BIND_INPLACE(div);
  FASTNN_BIND_INPLACE(pow);
#undef FASTNN_BIND
#undef FASTNN_BIND_INPLACE
  b.both("add", with_alpha<add>, arg("input"), arg("other"), arg("alpha") = 1);
  b.both("sub", with_alpha<sub>, arg("input"), arg("other"), arg("alpha") = 1);
  b.both("add_", with_alpha_<add_>, arg("input"), arg("other"), arg("alpha") = 1);
  b.both("sub_", with_alpha_<sub_>, arg("input"), arg("other"), arg("alpha") = 1);
  b.both("div", divide, arg("input"), arg("other"), arg("rounding_mode") = py::none());
  b.both("pow", [](const OperandArg& x, const OperandArg& y) { return pow(x, y); }, arg("input"), arg("exponent"));
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
  b.method("repeat", [](const Tensor& x, const py::args& counts) { return repeat(x, dims_from_args(counts)); });
}

void bind_views(Binder& b) {
  b.method("view", [](const Tensor& x, const py::args& shape) {
    DType dtype;
    const bool as_type = shape.size() == 1 && as_dtype(shape[0].ptr(), dtype);
    return as_type ? view_as_type(x, dtype) : view(x, dims_from_args(shape));
  });
  b.method("view_as", [](const Tensor& x, const Tensor& y) { return view(x, y.shape()); }, arg("input"), arg("other"));
  b.method("reshape", [](const Tensor& x, const py::args& shape) { return reshape(x, dims_from_args(shape)); });
  b.function("reshape", reshape, arg("input"), arg("shape"));
  b.method("permute", [](const Tensor& x, const py::args& axes) { return permute(x, dims_from_args(axes)); });
  b.function("permute", permute, arg("input"), arg("dims"));
  b.method("expand", [](const Tensor& x, const py::args& shape) { return expand(x, dims_from_args(shape)); });
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

void bind_conv(Binder& b) {
  b.function(
      "set_winograd_enabled", set_winograd_enabled, arg("enabled"),
      "Whether float32 convolutions of 3 x 3 taps, stride and dilation 1, may run by Winograd's minimal filtering\n"
      "F(4 x 4, 3 x 3) where that is faster (on by default; CPU levels without matrix tiles). Its error, relative\n"
      "to the largest values of a tile, is up to 4 times the direct convolution's. Lavin and Gray,\n"
      "arXiv:1509.09308.");
  b.function("is_winograd_enabled", is_winograd_enabled, "What set_winograd_enabled was given last.");
  b.function(
      "fused_conv2d",
      [](const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const Dims& stride, const Dims& padding,
         const Dims& dilation, int64_t groups, bool same_padding, const MaybeTensor& residual,
         const std::string& activation) {
        return fused_conv2d(x, weight, bias.tensor, {stride, padding, dilation, groups, same_padding}, residual.tensor,
                            parse_activation("fused_conv2d", activation.c_str()));
      },
      arg("input"), arg("weight"), arg("bias"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"),
      arg("same_padding"), arg("residual"), arg("activation"));
  const auto conv = [&](const char* name, auto function) {
    b.function(name, function, arg("input"), arg("weight"), arg("bias"), arg("stride"), arg("padding"), arg("dilation"),
               arg("groups"), arg("same_padding"));
  };
  conv("conv1d", convolution<conv1d>);
  conv("conv2d", convolution<conv2d>);
  conv("conv3d", convolution<conv3d>);
  const auto transposed = [&](const char* name, auto function) {
    b.function(name, function, arg("input"), arg("weight"), arg("bias"), arg("stride"), arg("padding"),
               arg("output_padding"), arg("groups"), arg("dilation"));
  };
  transposed("conv_transpose1d", transposed_convolution<conv_transpose1d>);
  transposed("conv_transpose2d", transposed_convolution<conv_transpose2d>);
}

void bind_pool(Binder& b) {
  const auto bind = [&b](const char* name, auto f) {
    b.function(name, f, arg("input"), arg("kernel_size"), arg("stride"), arg("padding"), arg("dilation"),
               arg("ceil_mode"));
  };
  const auto bind_average = [&b](const char* name, auto f) {
    b.function(name, f, arg("input"), arg("kernel_size"), arg("stride"), arg("padding"), arg("ceil_mode"),
               arg("count_include_pad"), arg("divisor_override") = py::none());
  };
  const auto bind_adaptive = [&b](const char* name, auto f) { b.function(name, f, arg("input"), arg("output_size")); };
  bind("min_pool1d", pool<min_pool1d>);
  bind("min_pool2d", pool<min_pool2d>);
#define FASTNN_BIND(axes)                                                      \
  bind("max_pool" #axes, pool<max_pool##axes>);                                \
  bind("max_pool" #axes "_with_indices", pool<max_pool##axes##_with_indices>); \
  bind_average("avg_pool" #axes, average<avg_pool##axes>);                     \
  bind_adaptive("adaptive_avg_pool" #axes, adaptive_avg_pool##axes);           \
  bind_adaptive("adaptive_max_pool" #axes, adaptive_max_pool##axes);           \
  bind_adaptive("adaptive_max_pool" #axes "_with_indices", adaptive_max_pool##axes##_with_indices);
  FASTNN_BIND(1d)
  FASTNN_BIND(2d)
  FASTNN_BIND(3d)
#undef FASTNN_BIND
}

void bind_norm(Binder& b) {
  b.function(
      "batch_norm",
      [](const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& running_mean,
         const MaybeTensor& running_var, bool training, double momentum, double eps) {
        return batch_norm(x, weight.tensor, bias.tensor, running_mean.tensor, running_var.tensor,
                          {training, momentum, eps});
      },
      arg("input"), arg("weight"), arg("bias"), arg("running_mean"), arg("running_var"), arg("training"),
      arg("momentum"), arg("eps"));
  b.function(
      "layer_norm",
      [](const Tensor& x, const Dims& shape, const MaybeTensor& weight, const MaybeTensor& bias, double eps) {
        return layer_norm(x, shape, weight.tensor, bias.tensor, eps);
      },
      arg("input"), arg("normalized_shape"), arg("weight"), arg("bias"), arg("eps"));
  b.function(
      "rms_norm",
      [](const Tensor& x, const Dims& shape, const MaybeTensor& weight, std::optional<double> eps) {
        return rms_norm(x, shape, weight.tensor, eps);
      },
      arg("input"), arg("normalized_shape"), arg("weight"), arg("eps"));
  b.function(
      "add_layer_norm",
      [](const Tensor& x, const Tensor& residual, const Tensor& weight, const MaybeTensor& bias, double eps) {
        return add_layer_norm(x, residual, weight, bias.tensor, eps);
      },
      arg("input"), arg("residual"), arg("weight"), arg("bias"), arg("eps"));
  b.function(
      "group_norm",
      [](const Tensor& x, int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias, double eps) {
        return group_norm(x, groups, weight.tensor, bias.tensor, eps);
      },
      arg("input"), arg("num_groups"), arg("weight"), arg("bias"), arg("eps"));
  b.function(
      "instance_norm",
      [](const Tensor& x, const MaybeTensor& running_mean, const MaybeTensor& running_var, const MaybeTensor& weight,
         const MaybeTensor& bias, double momentum, double eps) {
        return instance_norm(x, running_mean.tensor, running_var.tensor, weight.tensor, bias.tensor, momentum, eps);
      },
      arg("input"), arg("running_mean"), arg("running_var"), arg("weight"), arg("bias"), arg("momentum"), arg("eps"));
  b.function("add_rms_norm", add_rms_norm, arg("input"), arg("residual"), arg("weight"), arg("eps"));
}

void bind_softmax_and_loss(Binder& b) {
  b.both(
      "softmax",
      [](const Tensor& x, int64_t axis, const MaybeDType& dtype) { return softmax(converted(x, dtype), axis); },
      arg("input"), arg("dim"), arg("dtype") = py::none());
  b.both(
      "log_softmax",
      [](const Tensor& x, int64_t axis, const MaybeDType& dtype) { return log_softmax(converted(x, dtype), axis); },
      arg("input"), arg("dim"), arg("dtype") = py::none());
  b.function(
      "cross_entropy",
      [](const Tensor& x, const Tensor& target, const MaybeTensor& weight, int64_t ignore_index,
         const std::string& reduction, double label_smoothing) {
        return cross_entropy(x, target, weight.tensor, ignore_index, reduction, label_smoothing);
      },
      arg("input"), arg("target"), arg("weight") = py::none(), arg("ignore_index") = -100, arg("reduction") = "mean",
      arg("label_smoothing") = 0.0);
  b.function(
      "nll_loss",
      [](const Tensor& x, const Tensor& target, const MaybeTensor& weight, int64_t ignore_index,
         const std::string& reduction) { return nll_loss(x, target, weight.tensor, ignore_index, reduction); },
      arg("input"), arg("target"), arg("weight") = py::none(), arg("ignore_index") = -100, arg("reduction") = "mean");
  b.function("mse_loss", mse_loss, arg("input"), arg("target"), arg("reduction") = "mean");
  b.function("l1_loss", l1_loss, arg("input"), arg("target"), arg("reduction") = "mean");
  b.function("smooth_l1_loss", smooth_l1_loss, arg("input"), arg("target"), arg("reduction") = "mean",
             arg("beta") = 1.0);
  b.function("huber_loss", huber_loss, arg("input"), arg("target"), arg("reduction") = "mean", arg("delta") = 1.0);
  b.function(
      "linear_cross_entropy",
      [](const Tensor& x, const Tensor& weight, const Tensor& target, const MaybeTensor& bias, int64_t ignore_index,
         const std::string& reduction, double label_smoothing, int64_t chunk) {
        return linear_cross_entropy(x, weight, target, bias.tensor, ignore_index, reduction, label_smoothing, chunk);
      },
      arg("input"), arg("weight"), arg("target"), arg("bias"), arg("ignore_index"), arg("reduction"),
      arg("label_smoothing"), arg("chunk"));
  b.function(
      "binary_cross_entropy",
      [](const Tensor& x, const Tensor& target, const MaybeTensor& weight, const std::string& reduction) {
        return binary_cross_entropy(x, target, weight.tensor, reduction);
      },
      arg("input"), arg("target"), arg("weight") = py::none(), arg("reduction") = "mean");
  b.function(
      "binary_cross_entropy_with_logits",
      [](const Tensor& x, const Tensor& target, const MaybeTensor& weight, const std::string& reduction,
         const MaybeTensor& pos_weight) {
        return binary_cross_entropy_with_logits(x, target, weight.tensor, reduction, pos_weight.tensor);
      },
      arg("input"), arg("target"), arg("weight") = py::none(), arg("reduction") = "mean",
      arg("pos_weight") = py::none());
  b.function("kl_div", kl_div, arg("input"), arg("target"), arg("reduction") = "mean", arg("log_target") = false);
}

void bind_attention(Binder& b) {
  b.function(
      "scaled_dot_product_attention",
      [](const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& mask, double dropout_p, bool is_causal,
         std::optional<double> scale, bool enable_gqa) {
        return scaled_dot_product_attention(q, k, v, mask.tensor, dropout_p, is_causal, scale, enable_gqa);
      },
      arg("query"), arg("key"), arg("value"), arg("attn_mask") = py::none(), arg("dropout_p") = 0.0,
      arg("is_causal") = false, arg("scale") = py::none(), arg("enable_gqa") = false);
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
  b.both("index_put", index_put, arg("input"), arg("indices"), arg("values"), arg("accumulate") = false);
  b.method("index_put_", index_put_, arg("input"), arg("indices"), arg("values"), arg("accumulate") = false);
}

void bind_recurrent(Binder& b) {
  b.function(
      "recurrent",
      [](const std::string& cell, const Tensor& x, const Tensor& ih, const Tensor& hh, const MaybeTensor& bias_ih,
         const MaybeTensor& bias_hh, const MaybeTensor& hr, const MaybeTensor& h0, const MaybeTensor& c0,
         bool batch_first, bool reverse, const std::vector<int64_t>& batch_sizes) {
        return recurrent(x, {ih, hh, bias_ih.tensor, bias_hh.tensor, hr.tensor}, h0.tensor, c0.tensor,
                         {parse_cell(cell), batch_first, reverse, batch_sizes});
      },
      arg("cell"), arg("input"), arg("weight_ih"), arg("weight_hh"), arg("bias_ih") = py::none(),
      arg("bias_hh") = py::none(), arg("weight_hr") = py::none(), arg("h0") = py::none(), arg("c0") = py::none(),
      arg("batch_first") = false, arg("reverse") = false, arg("batch_sizes") = std::vector<int64_t>(),
      "One layer and direction over a sequence: (T, B, I), (B, T, I) with batch_first, or packed rows (rows, I) with\n"
      "the batch size of each step. `cell`: \"rnn_tanh\", \"rnn_relu\", \"lstm\", \"gru\" or \"gru_reset_before\".\n"
      "Returns [output, h_n], and c_n of an LSTM. The nn.RNN, nn.LSTM and nn.GRU modules are made of it.");
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

void bind_optim(Binder& b) {
  using Tensors = std::vector<Tensor>;
  b.function(
      "optimizer_step",
      [](const std::string& rule, const Tensors& params, const Tensors& grads, const std::vector<Tensors>& states,
         const std::vector<double>& coefficients, double weight_decay, double shrink, bool maximize,
         const StepCount& step) {
        optimizer_step(rule, params, grads, states, coefficients, {weight_decay, shrink, maximize}, step);
      },
      arg("rule"), arg("params"), arg("grads"), arg("states"), arg("coefficients"), arg("weight_decay") = 0.0,
      arg("shrink") = 1.0, arg("maximize") = false, arg("step") = 1);
  b.function("grad_norm", grad_norm, arg("grads"), arg("norm_type") = 2.0);
  b.function("clip_grad_norm_", clip_grad_norm_, arg("grads"), arg("max_norm"), arg("norm_type") = 2.0,
             arg("error_if_nonfinite") = false);
}

}  // namespace

void bind_ops(py::module_& module) {
  Binder binder(module);
  bind_elementwise(binder);
  bind_copy(binder);
  bind_views(binder);
  bind_reduce(binder);
  bind_matmul(binder);
  bind_conv(binder);
  bind_pool(binder);
  bind_norm(binder);
  bind_softmax_and_loss(binder);
  bind_attention(binder);
  bind_index(binder);
  bind_recurrent(binder);
  bind_random(binder);
  bind_optim(binder);
}

}  // namespace fastnn::python
