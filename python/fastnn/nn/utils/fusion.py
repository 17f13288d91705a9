"""Batch normalization in evaluation is a scale and a shift of each channel: folded into the layer before it.

w' = w * s and b' = (b - mean) * s + bn.bias, with s = bn.weight / sqrt(var + eps).
"""

import copy
from typing import TYPE_CHECKING

from fastnn._C import Tensor
from fastnn.autograd import no_grad
from fastnn.nn.module import Parameter

if TYPE_CHECKING:
    from fastnn.nn.conv import _Conv
    from fastnn.nn.linear import Linear
    from fastnn.nn.norm import _BatchNorm


@no_grad()
def folded(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    axis: int = 0,
) -> tuple[Tensor, Tensor]:
    """The weight, scaled along its output ``axis``, and the bias of the layer that does both steps."""
    scale = (running_var + eps).rsqrt()
    if bn_weight is not None:
        scale = scale * bn_weight
    shift = ((-running_mean if bias is None else bias - running_mean) * scale).to(weight.dtype)
    shape = [1] * weight.dim()
    shape[axis] = -1
    return weight * scale.reshape(shape).to(weight.dtype), shift if bn_bias is None else shift + bn_bias


def fuse_conv_bn_weights(
    conv_w: Tensor,
    conv_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor | None,
    bn_b: Tensor | None,
    transpose: bool = False,
) -> tuple[Parameter, Parameter]:
    """Weight and bias of a convolution with the batch normalization after it folded in.

    ``transpose``: the weight of a transposed convolution, whose output channels are axis 1.
    """
    weight, bias = folded(conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, axis=int(transpose))
    return Parameter(weight, conv_w.requires_grad), Parameter(bias, conv_w.requires_grad)


def fuse_linear_bn_weights(
    linear_w: Tensor,
    linear_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor | None,
    bn_b: Tensor | None,
) -> tuple[Parameter, Parameter]:
    """Weight and bias of a linear layer with the batch normalization after it folded in."""
    return fuse_conv_bn_weights(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b)


def _statistics(name: str, bn: "_BatchNorm", training: bool) -> tuple[Tensor, Tensor]:
    """The running statistics of a layer in evaluation."""
    if training:
        raise RuntimeError(f"{name}: both layers must be in evaluation: call eval() first")
    if bn.running_mean is None or bn.running_var is None:
        raise RuntimeError(f"{name}: {bn!r} keeps no running statistics to fold")
    return bn.running_mean, bn.running_var


def fuse_conv_bn_eval(conv: "_Conv", bn: "_BatchNorm", transpose: bool = False) -> "_Conv":
    """A copy of the convolution that also does the batch normalization. RuntimeError unless both are in eval()."""
    mean, var = _statistics("fuse_conv_bn_eval", bn, conv.training or bn.training)
    fused = copy.deepcopy(conv)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, var, bn.eps, bn.weight, bn.bias, transpose
    )
    return fused


def fuse_linear_bn_eval(linear: "Linear", bn: "_BatchNorm") -> "Linear":
    """A copy of the linear layer that also does the batch normalization after it, over its output features.

    RuntimeError unless both are in eval(); ValueError when the features differ.
    """
    mean, var = _statistics("fuse_linear_bn_eval", bn, linear.training or bn.training)
    if linear.out_features != bn.num_features:
        raise ValueError(
            f"fuse_linear_bn_eval: {linear.out_features} output features do not match the {bn.num_features} of {bn!r}"
        )
    fused = copy.deepcopy(linear)
    fused.weight, fused.bias = fuse_linear_bn_weights(linear.weight, linear.bias, mean, var, bn.eps, bn.weight, bn.bias)
    return fused
