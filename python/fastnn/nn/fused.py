"""Fused forms: a matrix product or convolution, a residual and an activation as one step.

``activation(conv2d(x) + residual)``: what networks in evaluation are made of once batch normalization is folded
into the weights. ``ConvBN`` does that folding for a pair of layers, whenever no gradient is wanted.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastnn import _C
from fastnn._C import Tensor
from fastnn.autograd import is_grad_enabled
from fastnn.nn.arguments import ConvOptions, Size, conv_options
from fastnn.nn.utils.fusion import folded

if TYPE_CHECKING:
    from fastnn.nn.conv import Conv2d
    from fastnn.nn.norm import BatchNorm2d

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": _C.relu,
    "gelu": _C.gelu,
    "silu": _C.silu,
    "sigmoid": _C.sigmoid,
    "tanh": _C.tanh,
}


def _finish(y: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
    """activation(y + residual)."""
    if activation is not None and activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {sorted(_ACTIVATIONS)}, got {activation!r}")
    if residual is not None:
        if residual.shape != y.shape:
            raise ValueError(f"residual of shape {tuple(residual.shape)} does not match the result's {tuple(y.shape)}")
        y = y + residual
    return y if activation is None else _ACTIVATIONS[activation](y)


def _recorded(*operands: Tensor | None) -> bool:
    """Will an operation on these be recorded? The one-pass kernels have no backward."""
    return is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x W^T + b + residual). input (..., in), weight (out, in), bias (out), residual (..., out).

    ``activation``: None, "relu", "gelu", "silu", "sigmoid" or "tanh"; ValueError for another.
    """
    if _recorded(input, weight, bias, residual) or not input.is_floating_point():
        return _finish(_C.linear(input, weight, bias), activation, residual)
    return _C.fused_linear(input, weight, bias, residual, activation or "")


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(conv2d(x) + residual); the residual has the result's shape (N, O, H', W').

    ``activation``: None, "relu", "gelu", "silu", "sigmoid" or "tanh"; ValueError for another.
    """
    options = conv_options(2, stride, padding, dilation, groups)
    return _conv2d(input, weight, bias, options, activation, residual)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: ConvOptions,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """The same with ready-made arguments."""
    if _recorded(input, weight, bias, residual):
        return _finish(_C.conv2d(input, weight, bias, *options), activation, residual)
    return _C.fused_conv2d(input, weight, bias, *options, residual, activation or "")


def add_layer_norm(
    input: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(s, layer_norm(s)) with s = input + residual, in one pass; both (..., *weight.shape). With gradients."""
    total, normed = _C.add_layer_norm(input, residual, weight, bias, eps)
    return total, normed


def add_rms_norm(input: Tensor, residual: Tensor, weight: Tensor, eps: float | None = None) -> tuple[Tensor, Tensor]:
    """(s, rms_norm(s)) with s = input + residual, in one pass; both (..., *weight.shape). With gradients."""
    total, normed = _C.add_rms_norm(input, residual, weight, eps)
    return total, normed


class ConvBN:
    """activation(bn(conv(x)) + residual), as one convolution with folded weights when no gradient is wanted.

    It holds no layers, only the folded weights of those it was called with last, and folds again once one of
    their tensors was written to or exchanged. In training, while recording, and when a hook watches one of the
    layers, it calls them one after the other.
    """

    def __init__(self) -> None:
        self._sources: tuple[Tensor | None, ...] = ()  # aliases: they keep the memory that the versions count for
        self._state: tuple[object, ...] = ()
        self._folded: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        conv: "Conv2d",
        bn: "BatchNorm2d",
        input: Tensor,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        weights = self._weights(conv, bn, input)
        if weights is None:
            return _finish(bn(conv(input)), activation, residual)
        options = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.same_padding)
        return _conv2d(input, *weights, options, activation, residual)

    def _weights(self, conv: "Conv2d", bn: "BatchNorm2d", input: Tensor) -> tuple[Tensor, Tensor] | None:
        """The folded weight and bias, or None where folding does not apply."""
        mean, var = bn.running_mean, bn.running_var
        if bn.training or mean is None or var is None:
            self._folded, self._sources = None, ()
            return None
        if conv._hooks is not None or bn._hooks is not None:
            return None
        tensors = (conv.weight, conv.bias, mean, var, bn.weight, bn.bias)
        if is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, *tensors)):
            return None
        state = (bn.eps, *[None if t is None else (t.data_ptr(), t._version) for t in tensors])
        if self._folded is None or state != self._state:
            self._folded = folded(conv.weight, conv.bias, mean, var, bn.eps, bn.weight, bn.bias)
            self._sources = tuple(None if t is None else t.detach() for t in tensors)
            self._state = state
        return self._folded
