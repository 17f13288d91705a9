"""Normalization layers: batch (Ioffe and Szegedy 2015), instance (Ulyanov et al. 2016), group (Wu and He 2018), layer
(Ba et al. 2016) and RMS (Zhang and Sennrich 2019).

Weights and biases have the input's dtype, or float32 where that has 16 bits. ValueError for shapes that do not fit,
TypeError for dtypes.
"""

from collections.abc import Sequence
from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn import init
from fastnn.nn.module import Module, Parameter


def _shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    return (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)


class _BatchNorm(Module):
    """What the dimensions share: weight and bias (C,) starting at 1 and 0, and the running statistics.

    In training the batch's own statistics normalize, and running = (1 - momentum) running + momentum batch;
    ``momentum=None`` averages over all batches equally. In evaluation the running ones normalize, or the batch's
    where there are none (``track_running_stats=False``).
    """

    dims: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        shape = (num_features,)
        self.weight = Parameter(_C.empty(shape, device=device, dtype=dtype)) if affine else None
        self.bias = Parameter(_C.empty(shape, device=device, dtype=dtype)) if affine else None
        tracked = track_running_stats
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None
        self.register_buffer("running_mean", _C.empty(shape, device=device, dtype=dtype) if tracked else None)
        self.register_buffer("running_var", _C.empty(shape, device=device, dtype=dtype) if tracked else None)
        self.register_buffer("num_batches_tracked", _C.zeros((), device=device, dtype=_C.int64) if tracked else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, no batch seen."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def _factor(self) -> float:
        """The momentum of this training step, which is counted."""
        if self.num_batches_tracked is None:
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        return 1 / int(self.num_batches_tracked.item()) if self.momentum is None else self.momentum

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in self.dims:
            expected = " or ".join(f"{d}-D" for d in self.dims)
            raise ValueError(f"{type(self).__name__}: expected a {expected} input, got shape {tuple(input.shape)}")
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return _C.batch_norm(input, self.weight, self.bias, mean, var, mean is None, 0.0, self.eps)
        if not self.track_running_stats:
            return _C.batch_norm(input, self.weight, self.bias, None, None, True, 0.0, self.eps)
        return _C.batch_norm(input, self.weight, self.bias, mean, var, True, self._factor(), self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """(N, C) or (N, C, L) -> the same shape, every channel normalized over the rest."""

    dims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """(N, C, H, W) -> the same shape, every channel normalized over the rest; channels_last stays channels_last."""

    dims = (4,)


class BatchNorm3d(_BatchNorm):
    """(N, C, D, H, W) -> the same shape, every channel normalized over the rest."""

    dims = (5,)


class LayerNorm(Module):
    """(..., normalized_shape) -> the same shape, every row of ``normalized_shape`` to mean 0 and variance 1.

    Weight and bias of that shape start at 1 and 0; ``elementwise_affine=False`` leaves both out, ``bias=False`` one.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        shape = self.normalized_shape
        self.weight = Parameter(_C.empty(shape, device=device, dtype=dtype)) if elementwise_affine else None
        self.bias = Parameter(_C.empty(shape, device=device, dtype=dtype)) if elementwise_affine and bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return _C.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(Module):
    """(..., normalized_shape) -> the same shape, every row of ``normalized_shape`` to mean square 1.

    The weight of that shape starts at 1. ``eps=None`` is the machine epsilon of float64 for a float64 input, of float32
    otherwise.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = (
            Parameter(_C.empty(self.normalized_shape, device=device, dtype=dtype)) if elementwise_affine else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return _C.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """(N, C, ...) -> the same shape, each of ``num_groups`` groups of channels of each sample normalized.

    Weight and bias (C,) start at 1 and 0. ValueError where the channels do not divide into the groups.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups != 0:
            raise ValueError(f"GroupNorm: {num_channels} channels do not divide into {num_groups} groups")
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        shape = (num_channels,)
        self.weight = Parameter(_C.empty(shape, device=device, dtype=dtype)) if affine else None
        self.bias = Parameter(_C.empty(shape, device=device, dtype=dtype)) if affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None and self.bias is not None:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return _C.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class _InstanceNorm(_BatchNorm):
    """What the dimensions share: by default no weight, bias or running statistics.

    With ``track_running_stats`` the running statistics are updated in training and normalize in evaluation; as in
    PyTorch batches are not counted, and ``momentum=None`` leaves them as they are. An input without the batch axis is
    one sample.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        single = input.dim() == self.dims[0] - 1
        if input.dim() not in self.dims and not single:
            expected = f"{self.dims[0] - 1}-D or {self.dims[0]}-D"
            raise ValueError(f"{type(self).__name__}: expected a {expected} input, got shape {tuple(input.shape)}")
        y = self._normalize(input.unsqueeze(0) if single else input)
        return y.squeeze(0) if single else y

    def _normalize(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if mean is not None and not self.training:
            return _C.batch_norm(input, self.weight, self.bias, mean, var, False, 0.0, self.eps)
        return _C.instance_norm(input, mean, var, self.weight, self.bias, self.momentum or 0.0, self.eps)


class InstanceNorm1d(_InstanceNorm):
    """(N, C, L) or (C, L) -> the same shape, every channel of every sample normalized."""

    dims = (3,)


class InstanceNorm2d(_InstanceNorm):
    """(N, C, H, W) or (C, H, W) -> the same shape, every channel of every sample normalized."""

    dims = (4,)


class InstanceNorm3d(_InstanceNorm):
    """(N, C, D, H, W) or (C, D, H, W) -> the same shape, every channel of every sample normalized."""

    dims = (5,)
