"""Convolution layers. The operation is cross-correlation: the kernel is not flipped."""

import math
from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn import init
from fastnn.nn.arguments import Size, conv_padding, sizes
from fastnn.nn.module import Module, Parameter


class _Conv(Module):
    """What the dimensions share: arguments as ready-made tuples, weight, bias, and their first values."""

    n_axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if padding_mode != "zeros":
            raise ValueError(
                f"{name}: padding_mode {padding_mode!r} is not there; only 'zeros' is (pad with F.pad first)"
            )
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups={groups} must be positive and divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = sizes(kernel_size, self.n_axes, "kernel_size")
        self.stride = sizes(stride, self.n_axes, "stride")
        self.dilation = sizes(dilation, self.n_axes, "dilation")
        self.groups = groups
        self.padding, self.same_padding = conv_padding(padding, self.n_axes, self.stride)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(_C.empty(shape, device=device, dtype=dtype))
        self.bias = Parameter(_C.empty((out_channels,), device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            init.fan_in_uniform_(self.bias, math.prod(self.weight.shape[1:]))

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.same_padding:
            text += ", padding=same"
        elif any(self.padding):
            text += f", padding={self.padding}"
        if any(d != 1 for d in self.dilation):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"


class Conv1d(_Conv):
    """(N, in_channels, L) -> (N, out_channels, L'). weight (out, in / groups, K), bias (out)."""

    n_axes = 1

    def forward(self, input: Tensor) -> Tensor:
        return _C.conv1d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.same_padding
        )


class Conv2d(_Conv):
    """(N, in_channels, H, W) -> (N, out_channels, H', W'). weight (out, in / groups, KH, KW), bias (out).

    H' = floor((H + 2 padding - dilation (KH - 1) - 1) / stride) + 1.
    """

    n_axes = 2

    def forward(self, input: Tensor) -> Tensor:
        return _C.conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.same_padding
        )
