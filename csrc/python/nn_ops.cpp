// The operations that only networks call, a line each, as in ops.cpp; the functions and modules of
// fastnn.nn pass them ready-made arguments. None is a method of Tensor.
#include "ops/attention/attention.h"
#include "ops/conv/conv.h"
#include "ops/loss/loss.h"
#include "ops/norm/norm.h"
#include "ops/optim/optim.h"
#include "ops/pool/pool.h"
#include "ops/recurrent/recurrent.h"
#include "python/bindings.h"

namespace py = pybind11;
using py::arg;

namespace fastnn::python {
namespace {

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

void bind_loss(Binder& b) {
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

void bind_nn_ops(py::module_& module) {
  Binder binder(module);
  bind_conv(binder);
  bind_pool(binder);
  bind_norm(binder);
  bind_loss(binder);
  bind_attention(binder);
  bind_recurrent(binder);
  bind_optim(binder);
}

}  // namespace fastnn::python
