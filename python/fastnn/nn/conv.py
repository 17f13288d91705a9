"""Convolution in one, two and three dimensions, as functions and as layers.

The operation is cross-correlation: the kernel is not flipped. Input and weight are of one floating dtype; the input
may come without its batch axis, and so does the result then. ValueError for shapes and settings that do not fit,
TypeError for dtypes.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn import init
from fastnn.nn.arguments import Size, conv_options, sizes
from fastnn.nn.module import Module, Parameter


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """input (N, C, L), weight (O, C/groups, K), bias (O) -> (N, O, L').

    L' = floor((L + 2 padding - dilation (K - 1) - 1) / stride) + 1; with ``padding="same"``, for stride 1, L' = L.
    """
    steps, pads, rates, groups, same = conv_options(1, stride, padding, dilation, groups)
    return _C.conv1d(input, weight, bias, steps, pads, rates, groups, same)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """input (N, C, H, W), weight (O, C/groups, KH, KW), bias (O) -> (N, O, H', W').

    H' = floor((H + 2 padding - dilation (KH - 1) - 1) / stride) + 1; with ``padding="same"``, for stride 1, H' = H.
    """
    steps, pads, rates, groups, same = conv_options(2, stride, padding, dilation, groups)
    return _C.conv2d(input, weight, bias, steps, pads, rates, groups, same)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """input (N, C, D, H, W), weight (O, C/groups, KD, KH, KW), bias (O) -> (N, O, D', H', W').

    Sizes as in ``conv2d``.
    """
    steps, pads, rates, groups, same = conv_options(3, stride, padding, dilation, groups)
    return _C.conv3d(input, weight, bias, steps, pads, rates, groups, same)


def _transpose_options(
    n_axes: int, stride: Size, padding: Size, output_padding: Size, dilation: Size
) -> tuple[tuple[int, ...], ...]:
    return (
        sizes(stride, n_axes, "stride"),
        sizes(padding, n_axes, "padding"),
        sizes(output_padding, n_axes, "output_padding"),
        sizes(dilation, n_axes, "dilation"),
    )


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """The gradient of ``conv1d`` in its input: input (N, C, L), weight (C, O/groups, K), bias (O) -> (N, O, L').

    L' as H' in ``conv_transpose2d``.
    """
    steps, pads, extra, rates = _transpose_options(1, stride, padding, output_padding, dilation)
    return _C.conv_transpose1d(input, weight, bias, steps, pads, extra, groups, rates)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """The gradient of ``conv2d`` in its input, also called a deconvolution. Zeiler et al. 2010.

    input (N, C, H, W), weight (C, O/groups, KH, KW), bias (O) -> (N, O, H', W').

    H' = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1; ``output_padding`` must be smaller than
    the stride or the dilation, else ValueError.
    """
    steps, pads, extra, rates = _transpose_options(2, stride, padding, output_padding, dilation)
    return _C.conv_transpose2d(input, weight, bias, steps, pads, extra, groups, rates)


# ---- layers -----------------------------------------------------------------------------------------


class _Conv(Module):
    """What the dimensions share: arguments as ready-made tuples, weight, bias, and their first values."""

    n_axes: int
    _convolve: Callable[..., Tensor]  # the function of _C

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
        options = conv_options(self.n_axes, stride, padding, dilation, groups)
        self.stride, self.padding, self.dilation, self.groups, self.same_padding = options
        self.weight = Parameter(_C.empty((*self._weight_axes(), *self.kernel_size), device=device, dtype=dtype))
        self.bias = Parameter(_C.empty((out_channels,), device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def _weight_axes(self) -> tuple[int, int]:
        return self.out_channels, self.in_channels // self.groups

    def reset_parameters(self) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            init.fan_in_uniform_(self.bias, math.prod(self.weight.shape[1:]))

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.same_padding
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.same_padding:
            text += ", padding=same"
        elif any(self.padding):
            text += f", padding={self.padding}"
        if any(d != 1 for d in self.dilation):
            text += f", dilation={self.dilation}"
        text += self._extra()
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"

    def _extra(self) -> str:
        return ""


class Conv1d(_Conv):
    """(N, in_channels, L) -> (N, out_channels, L'). weight (out, in / groups, K), bias (out).

    L' = floor((L + 2 padding - dilation (K - 1) - 1) / stride) + 1.
    """

    n_axes = 1
    _convolve = staticmethod(_C.conv1d)


class Conv2d(_Conv):
    """(N, in_channels, H, W) -> (N, out_channels, H', W'). weight (out, in / groups, KH, KW), bias (out).

    H' = floor((H + 2 padding - dilation (KH - 1) - 1) / stride) + 1.
    """

    n_axes = 2
    _convolve = staticmethod(_C.conv2d)


class Conv3d(_Conv):
    """(N, in_channels, D, H, W) -> (N, out_channels, D', H', W'). weight (out, in / groups, KD, KH, KW), bias (out).

    Each size becomes floor((D + 2 padding - dilation (KD - 1) - 1) / stride) + 1.
    """

    n_axes = 3
    _convolve = staticmethod(_C.conv3d)


class _ConvTranspose(_Conv):
    """The transposes: their weight has the input's channels first, and ``output_padding`` completes their size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if isinstance(padding, str):
            raise ValueError(f"{type(self).__name__}: padding must be {self.n_axes} ints, got {padding!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.output_padding = sizes(output_padding, self.n_axes, "output_padding")

    def _weight_axes(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels // self.groups

    def _extra(self) -> str:
        return f", output_padding={self.output_padding}" if any(self.output_padding) else ""

    def forward(self, input: Tensor, output_size: Size | None = None) -> Tensor:
        output_padding = self._output_padding(input, output_size)
        return self._convolve(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )

    def _output_padding(self, input: Tensor, output_size: Size | None) -> tuple[int, ...]:
        """The padding that gives the wanted size: the stride leaves a choice of so many."""
        if output_size is None:
            return self.output_padding
        wanted = tuple(output_size) if isinstance(output_size, Iterable) else (output_size,)
        wanted = sizes(wanted[-self.n_axes :], self.n_axes, "output_size")
        settings = zip(
            input.shape[-self.n_axes :], self.stride, self.padding, self.dilation, self.kernel_size, strict=True
        )
        least = [(n - 1) * stride - 2 * pad + rate * (k - 1) + 1 for n, stride, pad, rate, k in settings]
        extra = tuple(size - low for size, low in zip(wanted, least, strict=True))
        if any(e < 0 or e >= stride for e, stride in zip(extra, self.stride, strict=True)):
            most = [low + stride - 1 for low, stride in zip(least, self.stride, strict=True)]
            raise ValueError(
                f"{type(self).__name__}: output_size {wanted} must be from {tuple(least)} to {tuple(most)} "
                f"for an input of {tuple(input.shape)}"
            )
        return extra


class ConvTranspose1d(_ConvTranspose):
    """(N, in_channels, L) -> (N, out_channels, L'). weight (in, out / groups, K), bias (out).

    L' = (L - 1) stride - 2 padding + dilation (K - 1) + output_padding + 1. With ``output_size`` the padding is
    chosen for that size; ValueError when there is none.
    """

    n_axes = 1
    _convolve = staticmethod(_C.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """(N, in_channels, H, W) -> (N, out_channels, H', W'). weight (in, out / groups, KH, KW), bias (out).

    H' = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1. With ``output_size`` the padding is
    chosen for that size; ValueError when there is none.
    """

    n_axes = 2
    _convolve = staticmethod(_C.conv_transpose2d)
