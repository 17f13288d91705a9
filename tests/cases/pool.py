"""Max, min, average and adaptive pooling in one and two dimensions."""

from functools import partial
from typing import Any

import numpy as np

import reference as ref
from cases.case import BenchRow, Case, Values, error, f32, sample

values = Values(6)
F = "nn.functional."
PLANE, LINE, VOLUME = (2, 3, 7, 9), (2, 3, 13), (2, 2, 5, 6, 7)
# kernel, stride, padding, dilation, ceil_mode
MAX = [
    ((2,), {}),
    ((3, 2), {}),
    ((3, 2, 1), {}),
    ((2, 1, 0, 2), {}),
    ((3, 2, 0, 1), {"ceil_mode": True}),
    ((3, 3, 1), {"ceil_mode": True}),
]
PLANE_MAX = [*MAX, (((3, 2), (2, 1), (1, 0)), {}), (((2, 3), None, 0, (1, 2)), {})]
AVERAGE = [
    ((2,), {}),
    ((3, 2, 1), {}),
    ((3, 2, 1), {"count_include_pad": False}),
    ((3, 2, 1), {"ceil_mode": True}),
    ((3, 2, 1), {"ceil_mode": True, "count_include_pad": False}),
]
PLANE_AVERAGE = [*AVERAGE, (((3, 2), (2, 1), (1, 0)), {}), ((2,), {"divisor_override": 3})]
VOLUME_MAX = [*MAX[1:], (((2, 3, 2), (1, 2, 2), (0, 1, 1)), {}), (((2, 1, 2), None, (1, 0, 1), (2, 1, 1)), {})]
VOLUME_AVERAGE = [*AVERAGE, (((3, 2, 2), (1, 2, 1), (1, 0, 1)), {}), ((2,), {"divisor_override": 3})]
NAN = values.normal(1, 1, 4, 6)
NAN[0, 0, 1, 1], NAN[0, 0, 3, 5], NAN[0, 0, 0, 4] = np.nan, -np.inf, np.inf


def _samples(shape: tuple[int, ...], parameters: list[Any], make: Any = values.distinct) -> list[Any]:
    return [sample(make(*shape), *args, **kwargs) for args, kwargs in parameters] + [sample(make(0, *shape[1:]), 2)]


def _errors(name: str, x: Any) -> list[Any]:
    return [
        error(ValueError, rf"{name}.*kernel.*0", x, 0),
        error(ValueError, rf"{name}.*stride.*0", x, 2, 0),
        error(ValueError, rf"{name}.*stride.*-1", x, 2, -1),
        error(ValueError, rf"{name}.*padding.*2", x, 3, 1, 2),
        error(ValueError, rf"{name}.*padding.*-1", x, 3, 1, -1),
        error(ValueError, rf"{name}.*(output|size|window).*", x, 50),
        error(ValueError, name, x, 2**62),
        error(ValueError, rf"{name}.*\(7,\)", f32(7), 2),
    ]


def _negated(pool: Any) -> Any:
    return lambda x, *args, **kwargs: -pool(-x, *args, **kwargs)


def _torch_min(name: str) -> Any:
    return lambda torch, x, *args, **kwargs: -getattr(torch.nn.functional, name)(-x, *args, **kwargs)


def _with_indices(name: str) -> Any:
    return lambda lib, x, *args, **kwargs: getattr(lib.nn.functional, name)(x, *args, return_indices=True, **kwargs)


def _average_terms(x: Any, kernel: Any, *_: Any, **__: Any) -> int:
    return int(np.prod(np.broadcast_to(kernel, np.ndim(x) - 2)))


def _adaptive_terms(x: Any, size: Any) -> int:
    """Elements of the largest window."""
    sizes = np.broadcast_to(size, np.ndim(x) - 2)
    return int(np.prod([min(n, -(-n // int(out)) + 1) for n, out in zip(np.shape(x)[2:], sizes, strict=True)]))


def _adaptive(name: str, formula: Any, shape: tuple[int, ...], sizes: list[Any], **options: Any) -> Case:
    samples = [sample(values.distinct(*shape), size) for size in sizes] + [
        sample(values.distinct(0, *shape[1:]), sizes[0])
    ]
    wrong = [error(ValueError, rf"{name}.*-2", f32(*shape), -2), error(ValueError, rf"{name}.*\(7,\)", f32(7), 2)]
    return Case(name, formula, samples, F + name, errors=wrong, **options)


def _one_dimension(reduce: Any) -> Any:
    return lambda x, size: ref.adaptive_pool2d(x[..., None, :], (1, size), reduce)[..., 0, :]


def _adaptive_indices_1d(x: Any, size: int) -> Any:
    y, where = ref.adaptive_max_pool2d(x[..., None, :], (1, size))
    return y[..., 0, :], where[..., 0, :]


max_pool1d, avg_pool1d = ref.in_one_dimension(ref.max_pool2d), ref.in_one_dimension(ref.avg_pool2d)


def _dilated_1d(
    x: Any, size: Any, stride: Any = None, padding: int = 0, dilation: int = 1, *rest: Any, **options: Any
) -> Any:
    return max_pool1d(x, size, stride, padding, (1, dilation), *rest, **options)


def _large() -> tuple[Any, ...]:
    return np.random.default_rng(0).standard_normal((3, 16, 65, 63)), 2


STAGE, LENET = (32, 64, 112, 112), ((64, 6, 28, 28), (64, 16, 10, 10))
BOTTLENECK, HEAD = (32, 256, 56, 56), (64, 2048, 7, 7)


def _rows(
    label: str, shape: tuple[int, ...], args: tuple[int, ...], outputs: int, large: bool = True
) -> list[BenchRow]:
    """Forward reads x and writes y, `outputs` a plane; backward reads dy and writes dx. Large ones in every form."""
    make = lambda: (np.random.default_rng(0).standard_normal(shape), *args)  # noqa: E731
    name = f"{'x'.join(map(str, shape))} {label}"
    elements = float(np.prod(shape) + np.prod(shape[:2]) * outputs)
    forms = [(dtype, last) for dtype in ("float32", "bfloat16")[: 1 + large] for last in (False, True)]
    return [
        BenchRow(
            name + " channels_last" * last,
            make,
            bytes=elements * (4 if dtype == "float32" else 2),
            backward=backward,
            dtype=dtype,
            channels_last=last,
        )
        for dtype, last in forms
        for backward in (False, True)
    ]


def _fixed_rows() -> list[BenchRow]:
    return [
        *_rows("k2", LENET[0], (2,), 14 * 14, large=False),
        *_rows("k2", LENET[1], (2,), 5 * 5, large=False),
        *_rows("k2", STAGE, (2,), 56 * 56),
        *_rows("k3 s2 p1", STAGE, (3, 2, 1), 56 * 56),
        *_rows("k3 s1 p1", STAGE, (3, 1, 1), 112 * 112),
    ]


def _adaptive_rows(*sizes: int) -> list[BenchRow]:
    seven = [*_rows("to 7x7", BOTTLENECK, (7,), 49), *_rows("to 7x7", STAGE, (7,), 49)] if 7 in sizes else []
    one = [*_rows("to 1x1", BOTTLENECK, (1,), 1), *_rows("to 1x1", HEAD, (1,), 1)] if 1 in sizes else []
    return [*seven, *one]


CASES = [
    Case(
        "max_pool2d",
        ref.max_pool2d,
        _samples(PLANE, PLANE_MAX),
        F + "max_pool2d",
        exact=True,
        large=_large,
        specials=[sample(NAN, 2), sample(np.full((1, 1, 4, 4), -np.inf), 2)],
        errors=_errors("max_pool2d", f32(2, 3, 7, 9)),
        bench=_fixed_rows(),
    ),
    Case(
        "max_pool2d_with_indices",
        partial(ref.max_pool2d, return_indices=True),
        _samples(PLANE, PLANE_MAX),
        exact=True,
        call=_with_indices("max_pool2d"),
        specials=[sample(NAN, 2)],
    ),
    Case(
        "max_pool1d",
        _dilated_1d,
        _samples(LINE, MAX),
        F + "max_pool1d",
        exact=True,
        errors=_errors("max_pool1d", f32(2, 3, 13)),
    ),
    Case(
        "max_pool1d_with_indices",
        partial(_dilated_1d, return_indices=True),
        _samples(LINE, MAX),
        exact=True,
        call=_with_indices("max_pool1d"),
    ),
    Case(
        "min_pool2d",
        _negated(ref.max_pool2d),
        _samples(PLANE, PLANE_MAX),
        F + "min_pool2d",
        exact=True,
        torch=_torch_min("max_pool2d"),
        errors=_errors("min_pool2d", f32(2, 3, 7, 9)),
        specials=[sample(NAN, 2)],
    ),
    Case(
        "min_pool1d",
        _negated(_dilated_1d),
        _samples(LINE, MAX),
        F + "min_pool1d",
        exact=True,
        torch=_torch_min("max_pool1d"),
        errors=_errors("min_pool1d", f32(2, 3, 13)),
    ),
    Case(
        "avg_pool2d",
        ref.avg_pool2d,
        _samples(PLANE, PLANE_AVERAGE, values.normal),
        F + "avg_pool2d",
        terms=_average_terms,
        large=_large,
        magnitude=lambda x, *a, **k: ref.avg_pool2d(np.abs(x), *a, **k),
        errors=_errors("avg_pool2d", f32(2, 3, 7, 9)),
        bench=_fixed_rows(),
    ),
    Case(
        "avg_pool1d",
        avg_pool1d,
        _samples(LINE, AVERAGE, values.normal),
        F + "avg_pool1d",
        terms=_average_terms,
        magnitude=lambda x, *a, **k: avg_pool1d(np.abs(x), *a, **k),
        errors=_errors("avg_pool1d", f32(2, 3, 13)),
    ),
    _adaptive(
        "adaptive_avg_pool2d",
        ref.adaptive_pool2d,
        PLANE,
        [1, (3, 4), (7, 9), (2, 11)],
        terms=_adaptive_terms,
        magnitude=lambda x, size: ref.adaptive_pool2d(np.abs(x), size),
        bench=_adaptive_rows(7, 1),
    ),
    _adaptive(
        "adaptive_max_pool2d",
        partial(ref.adaptive_pool2d, reduce=np.max),
        PLANE,
        [1, (3, 4), (7, 9)],
        exact=True,
        bench=_adaptive_rows(7),
    ),
    Case(
        "adaptive_max_pool2d_with_indices",
        ref.adaptive_max_pool2d,
        [sample(values.distinct(*PLANE), (3, 4))],
        exact=True,
        call=lambda lib, x, size: lib.nn.functional.adaptive_max_pool2d(x, size, return_indices=True),
    ),
    Case(
        "adaptive_max_pool1d_with_indices",
        _adaptive_indices_1d,
        [sample(values.distinct(*LINE), 4)],
        exact=True,
        call=lambda lib, x, size: lib.nn.functional.adaptive_max_pool1d(x, size, return_indices=True),
    ),
    _adaptive(
        "adaptive_avg_pool1d",
        _one_dimension(np.mean),
        LINE,
        [1, 4, 13],
        terms=_adaptive_terms,
        magnitude=lambda x, size: _one_dimension(np.mean)(np.abs(x), size),
    ),
    _adaptive("adaptive_max_pool1d", _one_dimension(np.max), LINE, [1, 4, 13], exact=True),
    Case(
        "max_pool3d",
        ref.max_pool3d,
        _samples(VOLUME, VOLUME_MAX),
        F + "max_pool3d",
        exact=True,
        specials=[sample(np.stack([NAN, NAN], 2), 2)],
        errors=_errors("max_pool3d", f32(*VOLUME)),
    ),
    Case(
        "max_pool3d_with_indices",
        partial(ref.max_pool3d, return_indices=True),
        _samples(VOLUME, VOLUME_MAX[:-1]),
        exact=True,
        call=_with_indices("max_pool3d"),
    ),
    Case(
        "avg_pool3d",
        ref.avg_pool3d,
        _samples(VOLUME, VOLUME_AVERAGE, values.normal),
        F + "avg_pool3d",
        terms=_average_terms,
        magnitude=lambda x, *a, **k: ref.avg_pool3d(np.abs(x), *a, **k),
        errors=_errors("avg_pool3d", f32(*VOLUME)),
    ),
    _adaptive(
        "adaptive_avg_pool3d",
        ref.adaptive_pool3d,
        VOLUME,
        [1, (3, 4, 2), (5, 6, 7)],
        terms=_adaptive_terms,
        magnitude=lambda x, size: ref.adaptive_pool3d(np.abs(x), size),
    ),
    _adaptive(
        "adaptive_max_pool3d",
        partial(ref.adaptive_pool3d, reduce=np.max),
        VOLUME,
        [1, (3, 4, 2), (5, 6, 7)],
        exact=True,
    ),
    Case(
        "adaptive_max_pool3d_with_indices",
        ref.adaptive_max_pool3d,
        [sample(values.distinct(*VOLUME), (3, 4, 2))],
        exact=True,
        call=lambda lib, x, size: lib.nn.functional.adaptive_max_pool3d(x, size, return_indices=True),
    ),
]
