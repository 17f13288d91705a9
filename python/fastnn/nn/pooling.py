"""Pooling layers. Each holds its window as ready-made tuples."""

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn.arguments import Size, optional_sizes, shown, sizes
from fastnn.nn.module import Module


class _Pool(Module):
    """The window, as ready-made tuples."""

    n_axes: int

    def __init__(self, kernel_size: Size, stride: Size | None, padding: Size, ceil_mode: bool) -> None:
        super().__init__()
        self.kernel_size = sizes(kernel_size, self.n_axes, "kernel_size")
        self.stride = optional_sizes(stride, self.kernel_size, "stride")
        self.padding = sizes(padding, self.n_axes, "padding")
        self.ceil_mode = ceil_mode

    def extra_repr(self) -> str:
        return f"kernel_size={shown(self.kernel_size)}, stride={shown(self.stride)}, padding={shown(self.padding)}"


class _DilatedPool(_Pool):
    """A window with gaps: the minimum and maximum pools."""

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

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dilation={shown(self.dilation)}, ceil_mode={self.ceil_mode}"


class _MaxPool(_DilatedPool):
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


class MaxPool1d(_MaxPool):
    """The largest value of each window of (N, C, L); with ``return_indices`` also its position."""

    n_axes = 1

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pool = _C.max_pool1d_with_indices if self.return_indices else _C.max_pool1d
        return pool(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxPool2d(_MaxPool):
    """The largest value of each window of (N, C, H, W); with ``return_indices`` also its position in the plane."""

    n_axes = 2

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pool = _C.max_pool2d_with_indices if self.return_indices else _C.max_pool2d
        return pool(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MinPool1d(_DilatedPool):
    """The smallest value of each window of (N, C, L)."""

    n_axes = 1

    def forward(self, input: Tensor) -> Tensor:
        return _C.min_pool1d(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MinPool2d(_DilatedPool):
    """The smallest value of each window of (N, C, H, W)."""

    n_axes = 2

    def forward(self, input: Tensor) -> Tensor:
        return _C.min_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


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


class AvgPool2d(_Pool):
    """The mean of each window of (N, C, H, W), or its sum over ``divisor_override``."""

    n_axes = 2

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
        return _C.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class _AdaptivePool(Module):
    n_axes: int

    def __init__(self, output_size: Size) -> None:
        super().__init__()
        self.output_size = sizes(output_size, self.n_axes, "output_size")

    def extra_repr(self) -> str:
        return f"output_size={shown(self.output_size)}"


class AdaptiveAvgPool1d(_AdaptivePool):
    """The mean over windows chosen so that the output is (N, C, output_size)."""

    n_axes = 1

    def forward(self, input: Tensor) -> Tensor:
        return _C.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(_AdaptivePool):
    """The mean over windows chosen so that the output is (N, C, *output_size)."""

    n_axes = 2

    def forward(self, input: Tensor) -> Tensor:
        return _C.adaptive_avg_pool2d(input, self.output_size)


class _AdaptiveMaxPool(_AdaptivePool):
    def __init__(self, output_size: Size, return_indices: bool = False) -> None:
        super().__init__(output_size)
        self.return_indices = return_indices


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The maximum over windows chosen so that the output is (N, C, output_size); also its position if asked."""

    n_axes = 1

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pool = _C.adaptive_max_pool1d_with_indices if self.return_indices else _C.adaptive_max_pool1d
        return pool(input, self.output_size)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The maximum over windows chosen so that the output is (N, C, *output_size); also its position if asked."""

    n_axes = 2

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pool = _C.adaptive_max_pool2d_with_indices if self.return_indices else _C.adaptive_max_pool2d
        return pool(input, self.output_size)
