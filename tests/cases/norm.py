"""Normalization over the batch (training and evaluation, two to five dimensions, running statistics, channels last)
and over rows (layer, RMS, and both of a sum).
"""

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


# ---- over rows ------------------------------------------------------------------------------------


def _row_samples(bias: bool) -> list[Any]:
    """Rows of less than a register, of several, of a block and more; several rows of a group and less."""

    def parameters(*shape: int) -> tuple[Any, ...]:
        return (u(0.5, 1.5, *shape), n(*shape)) if bias else (u(0.5, 1.5, *shape),)

    shapes = [((3, 5), 1), ((70, 33), 1), ((2, 3, 4, 5), 2), ((2, 130), 1), ((5, 4150), 1), ((1, 1, 6), 3)]
    found = [sample(n(*x) * 2 + 1, x[-axes:], *parameters(*x[-axes:]), eps=1e-5) for x, axes in shapes]
    found += [sample(n(3, 7) + 1, (7,), eps=1e-2), sample(n(6), (6,), *parameters(6), eps=1e-5)]
    found += [sample(n(3, 19), (19,), u(0.5, 1.5, 19), eps=1e-5)]
    return [*found, sample(n(0, 4), (4,), *parameters(4), eps=1e-5)]


def _row_magnitude(x: Any, shape: tuple[int, ...], weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """The roundings of x and of the mean are relative to them, however small their difference."""
    axes = tuple(range(-len(shape), 0))
    mean, square = np.abs(x.mean(axes, keepdims=True)), (x**2).mean(axes, keepdims=True)
    y = (np.abs(x) + mean) / np.sqrt(np.maximum(square - mean**2, 0) + eps)
    return y * (1 if weight is None else np.abs(weight)) + (0 if bias is None else np.abs(bias))


def _row_length(x: Any, shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    return int(np.prod(shape))


def _sum_and(norm: Any, name: str) -> dict[str, Any]:
    """The reference and the calls of a fused sum and normalization."""

    def fused(lib: Any, x: Any, residual: Any, *parameters: Any, eps: float) -> Any:
        return getattr(lib.nn.fused, "add_" + name)(x, residual, *parameters, eps=eps)

    def separate(lib: Any, x: Any, residual: Any, weight: Any, *bias: Any, eps: float) -> Any:
        total = x + residual
        return total, getattr(lib.nn.functional, name)(total, tuple(weight.shape), weight, *bias, eps=eps)

    def reference(x: Any, residual: Any, weight: Any, *bias: Any, eps: float) -> Any:
        return x + residual, norm(x + residual, weight.shape, weight, *bias, eps=eps)

    return {"reference": reference, "call": fused, "torch": separate}


def _sum_magnitude(x: Any, residual: Any, weight: Any, bias: Any, eps: float) -> Any:
    """The rounding of the sum is relative to its terms."""
    size = (np.abs(x) + np.abs(residual)).max()
    scale = np.abs(weight).max() / np.sqrt((x + residual).var(-1).min() + eps)
    return size + 2 * size * scale + np.abs(bias).max()


def _sum_samples(bias: bool) -> list[Any]:
    shapes = [(3, 5), (70, 33), (2, 3, 130)]
    ends = [(u(0.5, 1.5, x[-1]), n(x[-1])) if bias else (u(0.5, 1.5, x[-1]),) for x in shapes]
    return [sample(n(*x) + 1, n(*x), *end, eps=1e-5) for x, end in zip(shapes, ends, strict=True)]


def _row_errors(name: str, rest: tuple[Any, ...]) -> list[Any]:
    x = f32(4, 6)
    return [
        error(ValueError, rf"{name}.*\(5,\).*\(4, 6\)", x, (5,), *rest),
        error(ValueError, rf"{name}.*\(2, 4, 6\).*\(4, 6\)", x, (2, 4, 6), *rest),
        error(ValueError, rf"{name}.*at least one axis", x, (), *rest),
        error(ValueError, rf"{name}.*weight.*\(4,\).*\(6,\)", x, (6,), f32(4)),
        error(ValueError, rf"{name}.*eps.*-1", x, (6,), eps=-1.0),
        error(TypeError, rf"{name}.*int64", np.ones((2, 3), np.int64), (3,)),
        error(TypeError, rf"{name}.*weight.*float64.*float32", x, (6,), np.ones(6)),
    ]


def _row_bench(rows: int, length: int, dtype: str, bias: bool) -> list[BenchRow]:
    def make() -> tuple[Any, ...]:
        x = np.random.default_rng(0).standard_normal((rows, length))
        return x, (length,), np.ones(length), *([np.zeros(length)] if bias else [])

    size = (4.0 if dtype == "float32" else 2.0) * rows * length
    return [
        BenchRow(f"{rows}x{length}", make, bytes=2 * size, dtype=dtype),
        BenchRow(f"{rows}x{length}", make, bytes=3 * size, dtype=dtype, backward=True),
    ]


def _row_benches(bias: bool) -> list[BenchRow]:
    sizes = [(4096, 768), (8192, 1024), (2048, 4096), (64, 512)]
    return [row for dtype in ("float32", "bfloat16") for size in sizes for row in _row_bench(*size, dtype, bias)]


# ---- over groups of channels ----------------------------------------------------------------------


def _groups_magnitude(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    if x.size == 0:
        return np.abs(x)
    rows = x.reshape(x.shape[0], groups, -1)
    mean, var = np.abs(rows.mean(2, keepdims=True)), rows.var(2, keepdims=True)
    y, shape = ((np.abs(rows) + mean) / np.sqrt(var + eps)).reshape(x.shape), (1, -1, *[1] * (x.ndim - 2))
    return y * (1 if weight is None else np.abs(weight).reshape(shape)) + (0 if bias is None else np.abs(bias).max())


def _group_samples() -> list[Any]:
    """Planes of less than a register, of several, and of several blocks."""
    shapes = [((3, 6, 5, 7), 3), ((2, 4), 2), ((2, 6, 9), 1), ((1, 4, 67, 65), 2), ((2, 2, 2, 3, 4), 2)]
    found = [sample(n(*x) * 2 + 1, groups, u(0.5, 1.5, x[1]), n(x[1])) for x, groups in shapes]
    found += [sample(n(3, 4, 5), 2), sample(n(3, 4, 5), 2, u(0.5, 1.5, 4), eps=1e-2), sample(n(0, 4, 3), 2, n(4), n(4))]
    return found


def _instance(lib: Any, x: Any, weight: Any, bias: Any) -> Any:
    return lib.nn.functional.instance_norm(x, weight=weight, bias=bias)


def _instance_running(lib: Any, x: Any, mean: Any, var: Any) -> Any:
    """A training step's running statistics."""
    mean, var = mean.detach(), var.detach()
    lib.nn.functional.instance_norm(x, mean, var, momentum=0.3)
    return mean, var


def _instance_running_reference(x: Any, mean: Any, var: Any) -> Any:
    rows = x.reshape(*x.shape[:2], -1)
    batch_mean, batch_var = rows.mean(2).mean(0), rows.var(2, ddof=1).mean(0)
    return 0.7 * mean + 0.3 * batch_mean, 0.7 * var + 0.3 * batch_var


def _group_bench(shape: tuple[int, ...], groups: int, dtype: str) -> list[BenchRow]:
    def make() -> tuple[Any, ...]:
        x = np.random.default_rng(0).standard_normal(shape)
        return x, groups, np.ones(shape[1]), np.zeros(shape[1])

    size, label = (4.0 if dtype == "float32" else 2.0) * np.prod(shape), "x".join(map(str, shape)) + f" g{groups}"
    return [
        BenchRow(label, make, bytes=2 * size, dtype=dtype),
        BenchRow(label, make, bytes=3 * size, dtype=dtype, backward=True),
    ]


CASES = [
    Case(
        "group_norm",
        ref.group_norm,
        _group_samples(),
        "nn.functional.group_norm",
        differentiable=(0, 2, 3),
        terms=lambda x, groups, *_, **__: x.size // max(len(x) * groups, 1),
        magnitude=_groups_magnitude,
        gradient_scale=2,
        large=lambda: (n(9, 6, 70, 50), 2, u(0.5, 1.5, 6), n(6)),
        errors=[
            error(ValueError, r"group_norm.*6 channels.*4 groups", f32(2, 6, 3), 4),
            error(ValueError, r"group_norm.*0 groups", f32(2, 6, 3), 0),
            error(ValueError, r"group_norm.*weight.*\(3,\).*6 channels", f32(2, 6, 3), 2, f32(3)),
            error(ValueError, r"group_norm.*\(N, C, \.\.\.\).*\(6,\)", f32(6), 2),
            error(ValueError, r"group_norm.*eps.*-1", f32(2, 6, 3), 2, eps=-1.0),
            error(TypeError, r"group_norm.*int64", np.ones((2, 4), np.int64), 2),
        ],
        bench=[
            row
            for dtype in ("float32", "bfloat16")
            for row in (*_group_bench((32, 64, 56, 56), 32, dtype), *_group_bench((8, 256, 14, 14), 32, dtype))
        ],
    ),
    Case(
        "instance_norm",
        lambda x, weight, bias: ref.group_norm(x, x.shape[1], weight, bias),
        [sample(n(3, 4, 5, 7) + 1, u(0.5, 1.5, 4), n(4)), sample(n(2, 3, 300), u(0.5, 1.5, 3), n(3))],
        call=_instance,
        terms=300,
        magnitude=lambda x, weight, bias: _groups_magnitude(x, x.shape[1], weight, bias),
        gradient_scale=2,
    ),
    Case(
        "instance_norm_running",
        _instance_running_reference,
        [sample(n(3, 4, 5, 7) + 1, n(4), u(0.5, 2, 4))],
        call=_instance_running,
        differentiable=False,
        terms=35,
        magnitude=lambda x, mean, var: np.abs(x).max() ** 2 + np.abs(mean).max() + var.max(),
        gradient_scale=2,
    ),
    Case(
        "layer_norm",
        ref.layer_norm,
        _row_samples(bias=True),
        "nn.functional.layer_norm",
        differentiable=(0, 2, 3),
        terms=_row_length,
        magnitude=_row_magnitude,
        gradient_scale=2,
        large=lambda: (n(301, 517), (517,), u(0.5, 1.5, 517), n(517)),
        errors=[
            *_row_errors("layer_norm", ()),
            error(ValueError, r"layer_norm.*bias.*\(5,\).*\(6,\)", f32(4, 6), (6,), f32(6), f32(5)),
        ],
        bench=_row_benches(bias=True),
    ),
    Case(
        "layer_norm_far_mean",
        ref.layer_norm,
        [sample(n(6, 5000) + 1000, (5000,), u(0.5, 1.5, 5000), n(5000))],
        "nn.functional.layer_norm",
        torch=False,
        dtypes=("float32",),
        differentiable=False,
        terms=_row_length,
        magnitude=_row_magnitude,
    ),
    Case(
        "rms_norm",
        ref.rms_norm,
        _row_samples(bias=False),
        "nn.functional.rms_norm",
        differentiable=(0, 2),
        terms=_row_length,
        gradient_scale=2,
        large=lambda: (n(301, 517), (517,), u(0.5, 1.5, 517), 1e-5),
        errors=_row_errors("rms_norm", ()),
        bench=_row_benches(bias=False),
    ),
    Case(
        "add_layer_norm",
        samples=_sum_samples(bias=True),
        **_sum_and(ref.layer_norm, "layer_norm"),
        dtypes=("float32", "float64"),
        terms=130,
        magnitude=_sum_magnitude,
        gradient_scale=2,
    ),
    Case(
        "add_rms_norm",
        samples=_sum_samples(bias=False),
        **_sum_and(ref.rms_norm, "rms_norm"),
        dtypes=("float32", "float64"),
        terms=130,
        magnitude=lambda x, r, w, eps: _sum_magnitude(x, r, w, np.zeros(1), eps),
        gradient_scale=2,
    ),
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
