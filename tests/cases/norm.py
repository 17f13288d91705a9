"""Batch normalization: training and evaluation, two to five dimensions, running statistics, channels last."""

from typing import Any

import numpy as np

import reference as ref
from cases.case import BenchRow, Case, Values, error, f32, sample

values = Values(12)
n, u = values.normal, values.uniform


def _channels(c: int) -> tuple[Any, ...]:
    """Running mean and variance, weight and bias."""
    return n(c), u(0.5, 2, c), u(0.5, 1.5, c), n(c)


def _samples() -> list[Any]:
    """Planes of one register or less, of several, and of several blocks; channels that fit the cache and do not."""
    shapes = [(4, 5, 3, 7), (6, 3), (3, 4, 6), (2, 9, 2, 2), (1, 2, 67, 65), (2, 3, 2, 3, 4), (70, 530), (3, 1, 4, 4)]
    found = [sample(n(*shape) * 2 + 1, *_channels(shape[1]), True) for shape in shapes]
    found += [sample(n(*shape) * 2 + 1, *_channels(shape[1]), False) for shape in shapes[:4]]
    found += [
        sample(n(4, 3, 5), None, None, None, None, True),
        sample(n(4, 3, 5), *_channels(3)[:2]),
        sample(n(4, 3, 5), *_channels(3)[:3], training=True, momentum=0.5, eps=1e-2),
        sample(n(4, 3, 5), None, None, None, n(3), True),
        sample(n(1, 3), *_channels(3), False),
        sample(n(0, 3, 4, 4), *_channels(3), True),
        sample(n(0, 3), *_channels(3), False),
        sample(n(2, 3, 0), *_channels(3), True),
    ]
    return found


def _magnitude(x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """The roundings of x and of the mean are relative to them, however small their difference."""
    if x.size == 0:
        return np.abs(x)
    training = args[0] if args else kwargs.get("training", False)
    centre, spread = ref.channel_statistics(x)[:2] if training else (mean, var)
    weight = np.ones_like(centre) if weight is None else np.abs(weight)
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = (weight / np.sqrt(spread + 1e-5)).reshape(shape)
    return (np.abs(x) + np.abs(centre).reshape(shape)) * scale + (0 if bias is None else np.abs(bias).reshape(shape))


def _values_per_channel(x: Any, *_: Any, **__: Any) -> int:
    return x.size // max(x.shape[1], 1)


def _running(lib: Any, x: Any, mean: Any, var: Any, momentum: float = 0.1) -> Any:
    """A training step's running statistics."""
    mean, var = mean.detach(), var.detach()
    lib.nn.functional.batch_norm(x, mean, var, None, None, True, momentum)
    return mean, var


def _far(shape: tuple[int, ...]) -> Any:
    """A mean a thousand times the deviation, with an outlier in front."""
    x = n(*shape) + 1000
    x[0] += 50
    return x


def _as_channels_last(lib: Any, x: Any, *args: Any) -> Any:
    """x (N, H, W, C), seen as (N, C, H, W)."""
    return lib.nn.functional.batch_norm(x.permute(0, 3, 1, 2), *args)


def _moved(function: Any) -> Any:
    return lambda x, *args: function(np.moveaxis(x, -1, 1), *args)


def _errors() -> list[Any]:
    x, three = f32(4, 3, 2, 2), f32(3)
    return [
        error(
            ValueError, r"batch_norm.*more than 1 value per channel.*\(1, 3\)", f32(1, 3), None, None, None, None, True
        ),
        error(ValueError, r"batch_norm.*weight.*\(4,\).*3 channels", x, three, three, f32(4), three),
        error(ValueError, r"batch_norm.*bias.*\(3, 1\).*3 channels", x, three, three, three, f32(3, 1)),
        error(ValueError, r"batch_norm.*running_mean.*\(2,\)", x, f32(2), three),
        error(ValueError, r"batch_norm.*running_var.*\(5,\)", x, three, f32(5)),
        error(ValueError, r"batch_norm.*both or neither", x, three, None, None, None, True),
        error(ValueError, r"batch_norm.*training=False.*needs", x, None, None),
        error(ValueError, r"batch_norm.*\(N, C, \.\.\.\).*\(7,\)", f32(7), three, three),
        error(ValueError, r"batch_norm.*eps.*-1", x, three, three, eps=-1.0),
        error(TypeError, r"batch_norm.*int64", np.ones((2, 3), np.int64), three, three),
        error(TypeError, r"batch_norm.*weight.*float64.*float32", x, three, three, np.ones(3)),
    ]


def _rows(shape: tuple[int, ...], channels: int, label: str) -> list[BenchRow]:
    """bytes, at the least: x and y forward, and then dy, x and dx backward."""

    def make() -> tuple[Any, ...]:
        x = np.random.default_rng(0).standard_normal(shape)
        return x, None, None, np.ones(channels), np.zeros(channels), True

    size = 4.0 * np.prod(shape)
    return [BenchRow(label, make, bytes=2 * size), BenchRow(label, make, bytes=5 * size, backward=True)]


CASES = [
    Case(
        "batch_norm",
        ref.batch_norm,
        _samples(),
        "nn.functional.batch_norm",
        differentiable=(0, 3, 4),
        terms=_values_per_channel,
        magnitude=_magnitude,
        gradient_scale=2,
        large=lambda: (n(9, 5, 130, 70), *_channels(5), True),
        errors=_errors(),
        bench=[*_rows((32, 64, 56, 56), 64, "32x64x56x56"), *_rows((8, 512, 4, 4), 512, "8x512x4x4")],
    ),
    Case(
        "batch_norm_far_mean",
        ref.batch_norm,
        [sample(_far((8, 3, 40, 50)), *_channels(3), True), sample(_far((900, 5)), *_channels(5), True)],
        "nn.functional.batch_norm",
        torch=False,  # its float64 gradient of the weight is off by 5e-10 here
        dtypes=("float32", "float64"),
        differentiable=(0, 3, 4),
        terms=_values_per_channel,
        magnitude=_magnitude,
    ),
    Case(
        "batch_norm_running",
        ref.batch_norm_running,
        [
            sample(n(4, 5, 3, 7) * 2 + 1, n(5), u(0.5, 2, 5)),
            sample(n(600, 5) * 2 + 1, n(5), u(0.5, 2, 5), momentum=0.7),
            sample(n(2, 9, 50, 41) + 3, n(9), u(0.5, 2, 9)),
        ],
        call=_running,
        differentiable=False,
        terms=_values_per_channel,
        magnitude=lambda x, *_, **__: np.abs(x).max() ** 2,
    ),
    Case(
        "batch_norm_channels_last",
        _moved(ref.batch_norm),
        [
            sample(n(2, 5, 4, 3), *_channels(3), True),
            sample(n(3, 7, 6, 70), *_channels(70), True),
            sample(n(2, 3, 3, 530), *_channels(530), True),
            sample(n(2, 5, 4, 3), *_channels(3), False),
        ],
        call=_as_channels_last,
        differentiable=(0, 3, 4),
        terms=lambda x, *_: x.size // x.shape[-1],
        magnitude=_moved(_magnitude),
        gradient_scale=2,
        large=lambda: (n(5, 60, 50, 9), *_channels(9), True),
        bench=_rows((32, 56, 56, 64), 64, "32x64x56x56"),
    ),
]
