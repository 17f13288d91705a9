"""Reductions over all axes, one, or several."""

import math
from typing import Any

import numpy as np

import reference as ref
from cases.case import SPECIAL, BenchRow, Case, Values, error, f32, sample

values = Values(2)
SHAPE = (4, 5, 7)


def _axes(dim: Any) -> Any:
    return tuple(dim) if isinstance(dim, list | tuple) else dim


def _reduce(function: Any) -> Any:
    """numpy's (axis, keepdims) under torch's names."""

    def formula(x: Any, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
        return function(x, axis=_axes(dim), keepdims=keepdim, **options)

    return formula


def _terms(x: Any, dim: Any = None, *_: Any, **__: Any) -> int:
    axes = range(x.ndim) if dim is None else np.atleast_1d(dim)
    return int(np.prod([x.shape[a] for a in axes]))


def _magnitude(formula: Any) -> Any:
    return lambda x, *args, **kwargs: formula(np.abs(x), *args, **kwargs)


def _samples(make: Any, several: bool = True, **options: Any) -> list[Any]:
    one = [{}, {"dim": 1}, {"dim": -1, "keepdim": True}, {"dim": 0}]
    many = [{"dim": (0, 2)}, {"dim": [1, 2], "keepdim": True}] if several else []
    shapes = [sample(make(*SHAPE), **axes, **options) for axes in one + many]
    return [
        *shapes,
        sample(make(), **options),
        sample(make(1, 9), dim=1, **options),
        sample(make(3, 129), dim=1, **options),
    ]


def _large(*shape: int) -> Any:
    return lambda: (np.random.default_rng(0).standard_normal(shape),)


AXIS_ERRORS = [
    (IndexError, r"{}.*-4", {"dim": -4}),
    (IndexError, r"{}.*3", {"dim": 3}),
    (IndexError, r"{}.*-100", {"dim": -100}),
]


def _errors(name: str, *more: Any) -> list[Any]:
    return [error(kind, pattern.format(name), f32(2, 3, 4), **kwargs) for kind, pattern, kwargs in AXIS_ERRORS] + list(
        more
    )


def _sized(name: str) -> Any:
    """No identity: an empty axis has no result."""
    return error(ValueError, f"{name}.*size 0", f32(3, 0), dim=1)


SUM, MEAN, PROD = _reduce(np.sum), _reduce(np.mean), _reduce(np.prod)


def _variance(x: Any, dim: Any = None, correction: float = 1, keepdim: bool = False) -> Any:
    return np.var(x, axis=_axes(dim), ddof=correction, keepdims=keepdim)


def _spread(x: Any, dim: Any = None, correction: float = 1, keepdim: bool = False) -> Any:
    return np.mean(x * x, axis=_axes(dim), keepdims=keepdim) * 2


def _extreme(pick: Any, place: Any) -> Any:
    """max(x) is a value; max(x, dim) is (values, indices)."""

    def formula(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            return pick(x)
        return pick(x, axis=dim, keepdims=keepdim), place(x, axis=dim, keepdims=keepdim)

    return formula


def _place(place: Any) -> Any:
    return lambda x, dim=None, keepdim=False: place(x, axis=dim, keepdims=keepdim)


def _norm(x: Any, p: float = 2, dim: Any = None, keepdim: bool = False) -> Any:
    return ref.norm(x, p, _axes(dim), keepdim)


def _logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    return ref.logsumexp(x, _axes(dim), keepdim)


def _sort(x: Any, dim: int = -1, descending: bool = False) -> Any:
    order = np.argsort(-x.astype(np.float64) if descending else x, axis=dim, kind="stable")
    return np.take_along_axis(x, order, dim), order


def _topk(x: Any, k: int, dim: int = -1, largest: bool = True) -> Any:
    values, order = _sort(x, dim, largest)
    return np.take(values, range(k), dim), np.take(order, range(k), dim)


MEGA = 1 << 20
VARIANCE = [
    sample(values.normal(*SHAPE), **k)
    for k in (
        {},
        {"dim": 1},
        {"dim": (0, 2), "keepdim": True},
        {"dim": 1, "correction": 0},
        {"dim": 2, "correction": 2},
    )
]
INTS = ("int64", "int32", "uint8", "bool")

CASES = [
    Case(
        "sum",
        SUM,
        [*_samples(values.normal), sample(values.normal(0, 3), dim=0), sample(values.normal(0))],
        terms=_terms,
        magnitude=_magnitude(SUM),
        integers=INTS,
        large=_large(301_003),
        errors=_errors("sum"),
        specials=[sample(np.array([1.0, np.inf])), sample(np.array([np.nan, 1])), sample(np.array([np.inf, -np.inf]))],
        numpy=np.sum,
        bench=[
            BenchRow("1M", _large(MEGA), bytes=4 * MEGA),
            BenchRow("1024x1024 dim 0", _large(1024, 1024), bytes=4 * MEGA, kwargs={"dim": 0}),
            BenchRow("1024x1024 dim 1", _large(1024, 1024), bytes=4 * MEGA, kwargs={"dim": 1}),
        ],
    ),
    Case(
        "mean",
        MEAN,
        _samples(values.normal),
        terms=_terms,
        magnitude=_magnitude(MEAN),
        large=_large(301, 1003),
        errors=_errors("mean", error(TypeError, "mean.*int64", np.arange(3))),
    ),
    Case(
        "prod",
        PROD,
        _samples(lambda *s: values.uniform(0.7, 1.4, *s), several=False),
        terms=lambda *a, **k: _terms(*a, **k) ** 2,
        integers=("int64", "int32"),
        errors=_errors("prod"),
        large=lambda: (values.uniform(0.999, 1.001, 301_003),),
    ),
    Case(
        "max",
        _extreme(np.max, np.argmax),
        _samples(values.distinct, several=False),
        exact=True,
        integers=("int64", "int32", "uint8"),
        errors=_errors("max", _sized("max")),
        specials=[sample(SPECIAL), sample(SPECIAL.reshape(3, 4), dim=1)],
        large=_large(301_003),
        numpy=np.max,
        bench=[BenchRow("1M", _large(MEGA), bytes=4 * MEGA)],
    ),
    Case(
        "min",
        _extreme(np.min, np.argmin),
        _samples(values.distinct, several=False),
        exact=True,
        integers=("int64", "int32", "uint8"),
        errors=_errors("min", _sized("min")),
        specials=[sample(SPECIAL), sample(SPECIAL.reshape(3, 4), dim=1)],
        large=_large(301_003),
    ),
    *[
        Case(
            name,
            _reduce(formula),
            _samples(values.distinct),
            exact=True,
            integers=("int64", "uint8"),
            errors=_errors(name),
            call=lambda lib, x, dim=(), keepdim=False, name=name: getattr(lib, name)(x, dim, keepdim),
        )
        for name, formula in (("amax", np.max), ("amin", np.min))
    ],
    *[
        Case(
            name,
            _place(formula),
            _samples(values.distinct, several=False),
            exact=True,
            differentiable=False,
            integers=("int64", "uint8"),
            errors=_errors(name, _sized(name)),
            specials=[sample(SPECIAL)],
            large=_large(301_003),
        )
        for name, formula in (("argmax", np.argmax), ("argmin", np.argmin))
    ],
    Case("var", _variance, VARIANCE, terms=_terms, magnitude=_spread, errors=_errors("var"), large=_large(301_003)),
    Case(
        "std",
        lambda x, **k: np.sqrt(_variance(x, **k)),
        VARIANCE,
        terms=_terms,
        errors=_errors("std"),
        large=_large(301, 1003),
        magnitude=lambda x, **k: _spread(x, **k) / np.sqrt(_variance(x, **k)),
    ),
    Case(
        "norm",
        _norm,
        [
            sample(values.normal(*SHAPE), **k)
            for k in (
                {},
                {"p": 1},
                {"p": math.inf},
                {"p": 3, "dim": 1},
                {"p": 2, "dim": (0, 2), "keepdim": True},
                {"p": -math.inf, "dim": 0},
            )
        ],
        terms=lambda x, p=2, dim=None, keepdim=False: _terms(x, dim),
        ulps=8,
        large=_large(301_003),
    ),
    Case(
        "cumsum",
        lambda x, dim: np.cumsum(x, dim),
        [sample(values.normal(*SHAPE), d) for d in (0, 1, -1)] + [sample(values.normal(0, 3), 0)],
        terms=lambda x, dim: x.shape[dim],
        magnitude=lambda x, dim: np.cumsum(np.abs(x), dim),
        integers=INTS[:3],
        errors=[error(IndexError, "cumsum.*5", f32(2, 3), 5)],
        large=lambda: (values.normal(301, 1003), 1),
    ),
    Case(
        "cumprod",
        lambda x, dim: np.cumprod(x, dim),
        [sample(values.uniform(0.5, 1.5, *SHAPE), d) for d in (0, 1, -1)],
        terms=lambda x, dim: x.shape[dim] ** 2,
        integers=("int64", "int32"),
        errors=[error(IndexError, "cumprod.*5", f32(2, 3), 5)],
    ),
    Case(
        "sort",
        _sort,
        [sample(values.distinct(*SHAPE), **k) for k in ({}, {"dim": 0}, {"dim": 1, "descending": True})],
        exact=True,
        integers=("int64", "int32"),
        specials=[sample(SPECIAL[[1, 2, 3, 5, 6, 7, 8, 0]])],
        errors=[error(IndexError, "sort.*5", f32(2, 3), dim=5)],
        large=_large(211, 1009),
    ),
    Case(
        "argsort",
        lambda x, **k: _sort(x, **k)[1],
        [sample(values.distinct(*SHAPE), **k) for k in ({}, {"dim": 0}, {"dim": 1, "descending": True})],
        exact=True,
        differentiable=False,
        integers=("int64",),
    ),
    Case(
        "topk",
        _topk,
        [sample(values.distinct(*SHAPE), 3), sample(values.distinct(*SHAPE), 2, dim=1, largest=False)],
        exact=True,
        errors=[error(ValueError, "topk.*9.*7|topk.*7.*9", f32(7), 9), error(ValueError, "topk.*-1", f32(7), -1)],
    ),
    Case(
        "count_nonzero",
        lambda x, dim=None: np.asarray(np.count_nonzero(x, _axes(dim))),
        [sample(values.normal(*SHAPE) * values.bools(*SHAPE), **k) for k in ({}, {"dim": 1}, {"dim": (0, 2)})],
        exact=True,
        differentiable=False,
        integers=INTS,
    ),
    Case(
        "all",
        _reduce(np.all),
        _samples(lambda *s: values.uniform(0.3, 2, *s) * values.bools(*s), several=False),
        exact=True,
        differentiable=False,
        integers=("int64", "int32", "bool"),
        errors=_errors("all"),
    ),
    Case(
        "any",
        _reduce(np.any),
        _samples(lambda *s: values.uniform(0.3, 2, *s) * (values.uniform(0, 1, *s) < 0.2), several=False),
        exact=True,
        differentiable=False,
        integers=("int64", "int32", "bool"),
        errors=_errors("any"),
    ),
    Case(
        "logsumexp",
        _logsumexp,
        [sample(values.normal(*SHAPE) * 10, d) for d in (0, -1)] + [sample(values.normal(*SHAPE), 1, keepdim=True)],
        magnitude=lambda x, dim, keepdim=False: 1 + np.max(np.abs(x)),
        terms=_terms,
        large=lambda: (values.normal(301, 1003), 1),
        specials=[sample(np.array([[-np.inf, -np.inf], [np.inf, 1], [1e3, 1e3]]), 1)],
        errors=[error(IndexError, "logsumexp.*2", f32(2, 3), 2)],
    ),
]
