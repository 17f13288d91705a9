"""Pooling in one, two and three dimensions, as functions and as layers.

Inputs are floating tensors (N, C, ...), or without the batch axis (C, ...), and so are the results. An axis of L
becomes floor((L + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1, with ``ceil_mode`` rounded up where the
last window still starts inside. ``stride`` is the kernel size when left out; ``padding``, at most half the kernel
size, never is a maximum or minimum. ValueError for windows that do not fit, TypeError for other dtypes.
"""

from collections.abc import Callable

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn.arguments import OptionalSize, Size, optional_sizes, output_sizes, partial_sizes, shown, sizes
from fastnn.nn.module import Module

Pooled = Tensor | tuple[Tensor, Tensor]
Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _window(n_axes: int, kernel_size: Size, stride: Size | None, padding: Size) -> Window:
    """Kernel size, stride (the kernel size when None) and padding for every axis."""
    kernel = sizes(kernel_size, n_axes, "kernel_size")
    return kernel, optional_sizes(stride, kernel, "stride"), sizes(padding, n_axes, "padding")


def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest value of each window of (N, C, L); of equal ones the first gets the gradient.

    With ``return_indices`` also its position in the input.
    """
    pool = _C.max_pool1d_with_indices if return_indices else _C.max_pool1d
    window = _window(1, kernel_size, stride, padding)
    return pool(input, *window, sizes(dilation, 1, "dilation"), ceil_mode)


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest value of each window of (N, C, H, W); of equal ones the first gets the gradient.

    With ``return_indices`` also its position in each (H, W) plane, as ``row * W + column``.
    """
    pool = _C.max_pool2d_with_indices if return_indices else _C.max_pool2d
    window = _window(2, kernel_size, stride, padding)
    return pool(input, *window, sizes(dilation, 2, "dilation"), ceil_mode)


def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest value of each window of (N, C, D, H, W); of equal ones the first gets the gradient.

    With ``return_indices`` also its position in each (D, H, W) volume, as ``(depth * H + row) * W + column``.
    """
    pool = _C.max_pool3d_with_indices if return_indices else _C.max_pool3d
    window = _window(3, kernel_size, stride, padding)
    return pool(input, *window, sizes(dilation, 3, "dilation"), ceil_mode)


def min_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The smallest value of each window of (N, C, L): -max_pool1d(-x), gradient included."""
    window = _window(1, kernel_size, stride, padding)
    return _C.min_pool1d(input, *window, sizes(dilation, 1, "dilation"), ceil_mode)


def min_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The smallest value of each window of (N, C, H, W): -max_pool2d(-x), gradient included."""
    window = _window(2, kernel_size, stride, padding)
    return _C.min_pool2d(input, *window, sizes(dilation, 2, "dilation"), ceil_mode)


def avg_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of (N, C, L); padding counts as zeros unless ``count_include_pad`` is off."""
    return _C.avg_pool1d(input, *_window(1, kernel_size, stride, padding), ceil_mode, count_include_pad)


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of (N, C, H, W), or its sum over ``divisor_override``; see ``avg_pool1d``."""
    window = _window(2, kernel_size, stride, padding)
    return _C.avg_pool2d(input, *window, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of (N, C, D, H, W), or its sum over ``divisor_override``; see ``avg_pool1d``."""
    window = _window(3, kernel_size, stride, padding)
    return _C.avg_pool3d(input, *window, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool1d(input: Tensor, output_size: Size) -> Tensor:
    """(N, C, L) -> (N, C, output_size): means over windows [floor(i L / out), ceil((i + 1) L / out))."""
    return _C.adaptive_avg_pool1d(input, output_sizes(output_size, input, 1))


def adaptive_avg_pool2d(input: Tensor, output_size: OptionalSize) -> Tensor:
    """(N, C, H, W) -> (N, C, *output_size), an axis as in ``adaptive_avg_pool1d``; None keeps one as it is."""
    return _C.adaptive_avg_pool2d(input, output_sizes(output_size, input, 2))


def adaptive_avg_pool3d(input: Tensor, output_size: OptionalSize) -> Tensor:
    """(N, C, D, H, W) -> (N, C, *output_size), an axis as in ``adaptive_avg_pool1d``; None keeps one as it is."""
    return _C.adaptive_avg_pool3d(input, output_sizes(output_size, input, 3))


def adaptive_max_pool1d(
    input: Tensor, output_size: Size, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """(N, C, L) -> (N, C, output_size): maxima over the windows of ``adaptive_avg_pool1d``.

    With ``return_indices`` also their positions in the input.
    """
    pool = _C.adaptive_max_pool1d_with_indices if return_indices else _C.adaptive_max_pool1d
    return pool(input, output_sizes(output_size, input, 1))


def adaptive_max_pool2d(
    input: Tensor, output_size: OptionalSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """(N, C, H, W) -> (N, C, *output_size): maxima over the windows of ``adaptive_avg_pool2d``.

    With ``return_indices`` also their positions in the input.
    """
    pool = _C.adaptive_max_pool2d_with_indices if return_indices else _C.adaptive_max_pool2d
    return pool(input, output_sizes(output_size, input, 2))


def adaptive_max_pool3d(
    input: Tensor, output_size: OptionalSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """(N, C, D, H, W) -> (N, C, *output_size): maxima over the windows of ``adaptive_avg_pool3d``.

    With ``return_indices`` also their positions in the input.
    """
    pool = _C.adaptive_max_pool3d_with_indices if return_indices else _C.adaptive_max_pool3d
    return pool(input, output_sizes(output_size, input, 3))


# ---- layers -----------------------------------------------------------------------------------------


class _Pool(Module):
    """The window, as ready-made tuples."""

    n_axes: int

    def __init__(self, kernel_size: Size, stride: Size | None, padding: Size, ceil_mode: bool) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = _window(self.n_axes, kernel_size, stride, padding)
        self.ceil_mode = ceil_mode

    def extra_repr(self) -> str:
        return f"kernel_size={shown(self.kernel_size)}, stride={shown(self.stride)}, padding={shown(self.padding)}"


class _DilatedPool(_Pool):
    """A window with gaps: the minimum and maximum pools."""

    _pool: Callable[..., Tensor]

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = sizes(dilation, self.n_axes, "dilation")

    def forward(self, input: Tensor) -> Pooled:
        return self._pool(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dilation={shown(self.dilation)}, ceil_mode={self.ceil_mode}"


class _MaxPool(_DilatedPool):
    _pool_with_indices: Callable[..., Pooled]

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Pooled:
        pool = self._pool_with_indices if self.return_indices else self._pool
        return pool(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxPool1d(_MaxPool):
    """The largest value of each window of (N, C, L); with ``return_indices`` also its position."""

    n_axes = 1
    _pool, _pool_with_indices = staticmethod(_C.max_pool1d), staticmethod(_C.max_pool1d_with_indices)


class MaxPool2d(_MaxPool):
    """The largest value of each window of (N, C, H, W); with ``return_indices`` also its position in the plane."""

    n_axes = 2
    _pool, _pool_with_indices = staticmethod(_C.max_pool2d), staticmethod(_C.max_pool2d_with_indices)


class MaxPool3d(_MaxPool):
    """The largest value of each window of (N, C, D, H, W); with ``return_indices`` also its position in the volume."""

    n_axes = 3
    _pool, _pool_with_indices = staticmethod(_C.max_pool3d), staticmethod(_C.max_pool3d_with_indices)


class MinPool1d(_DilatedPool):
    """The smallest value of each window of (N, C, L)."""

    n_axes = 1
    _pool = staticmethod(_C.min_pool1d)


class MinPool2d(_DilatedPool):
    """The smallest value of each window of (N, C, H, W)."""

    n_axes = 2
    _pool = staticmethod(_C.min_pool2d)


class AvgPool1d(_Pool):
    """The mean of each window of (N, C, L); padding counts as zeros unless ``count_include_pad`` is off."""

    n_axes = 1

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return _C.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class _AvgPool(_Pool):
    _pool: Callable[..., Tensor]

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        window = self.kernel_size, self.stride, self.padding
        return self._pool(input, *window, self.ceil_mode, self.count_include_pad, self.divisor_override)


class AvgPool2d(_AvgPool):
    """The mean of each window of (N, C, H, W), or its sum over ``divisor_override``."""

    n_axes = 2
    _pool = staticmethod(_C.avg_pool2d)


class AvgPool3d(_AvgPool):
    """The mean of each window of (N, C, D, H, W), or its sum over ``divisor_override``."""

    n_axes = 3
    _pool = staticmethod(_C.avg_pool3d)


class _AdaptivePool(Module):
    n_axes: int
    _pool: Callable[..., Tensor]

    def __init__(self, output_size: OptionalSize) -> None:
        super().__init__()
        self.output_size = partial_sizes(output_size, self.n_axes, "output_size")

    def forward(self, input: Tensor) -> Pooled:
        return self._pool(input, output_sizes(self.output_size, input, self.n_axes))

    def extra_repr(self) -> str:
        return f"output_size={shown(self.output_size)}"


class AdaptiveAvgPool1d(_AdaptivePool):
    """The mean over windows chosen so that the output is (N, C, output_size)."""

    n_axes = 1
    _pool = staticmethod(_C.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptivePool):
    """The mean over windows chosen so that the output is (N, C, *output_size); None keeps an axis as it is."""

    n_axes = 2
    _pool = staticmethod(_C.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptivePool):
    """The mean over windows chosen so that the output is (N, C, *output_size); None keeps an axis as it is."""

    n_axes = 3
    _pool = staticmethod(_C.adaptive_avg_pool3d)


class _AdaptiveMaxPool(_AdaptivePool):
    _pool_with_indices: Callable[..., Pooled]

    def __init__(self, output_size: OptionalSize, return_indices: bool = False) -> None:
        super().__init__(output_size)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Pooled:
        pool = self._pool_with_indices if self.return_indices else self._pool
        return pool(input, output_sizes(self.output_size, input, self.n_axes))


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The maximum over windows chosen so that the output is (N, C, output_size); also its position if asked."""

    n_axes = 1
    _pool = staticmethod(_C.adaptive_max_pool1d)
    _pool_with_indices = staticmethod(_C.adaptive_max_pool1d_with_indices)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The maximum over windows chosen so that the output is (N, C, *output_size); also its position if asked."""

    n_axes = 2
    _pool = staticmethod(_C.adaptive_max_pool2d)
    _pool_with_indices = staticmethod(_C.adaptive_max_pool2d_with_indices)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """The maximum over windows chosen so that the output is (N, C, *output_size); also its position if asked."""

    n_axes = 3
    _pool = staticmethod(_C.adaptive_max_pool3d)
    _pool_with_indices = staticmethod(_C.adaptive_max_pool3d_with_indices)
