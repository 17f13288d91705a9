"""softmax and log_softmax along one axis."""

import numpy as np

import reference as ref
from cases.case import BenchRow, Case, Values, error, f32, sample

values = Values(3)
F = "nn.functional."
SAMPLES = [
    sample(values.normal(*shape) * 3, dim)
    for shape, dim in (
        ((5, 7), 1),
        ((5, 7), 0),
        ((2, 3, 9), 1),
        ((2, 3, 4, 5), -1),
        ((130,), 0),
        ((0, 4), 1),
        ((3, 1), 1),
        ((4, 1037), 1),
    )
]
PEAKED = sample(np.array([[1e4, 0.0, -1e4], [1e4, 1e4, -1e4]]), 1)
NAN = sample(np.array([[np.nan, 0.0, 1.0], [0.0, -np.inf, 1.0]]), 1)


def _errors(name):
    return [
        error(IndexError, rf"{name}.*2", f32(2, 3), 2),
        error(TypeError, rf"{name}.*int64", np.ones((2, 3), np.int64), 1),
    ]


def _large():
    return np.random.default_rng(0).standard_normal((301, 1009)), 1


def _row(shape):
    n = int(np.prod(shape))
    return BenchRow(
        "x".join(map(str, shape)), lambda: (np.random.default_rng(0).standard_normal(shape), 1), bytes=8 * n
    )


def _numpy_softmax(x, dim):
    e = np.exp(x - x.max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


ROWS = [_row((64, 10)), _row((1024, 1000))]
CASES = [
    Case(
        "softmax",
        ref.softmax,
        [*SAMPLES, PEAKED],
        F + "softmax",
        terms=lambda x, dim: x.shape[dim],
        large=_large,
        # e^(x - max): the rounding of the difference is relative to x
        magnitude=lambda x, dim: ref.softmax(x, dim) * (1 + np.abs(x - np.max(x, dim, keepdims=True))) if x.size else 0,
        specials=[NAN],
        errors=_errors("softmax"),
        numpy=_numpy_softmax,
        bench=ROWS,
    ),
    Case(
        "log_softmax",
        ref.log_softmax,
        [*SAMPLES, PEAKED],
        F + "log_softmax",
        terms=lambda x, dim: x.shape[dim],
        large=_large,
        magnitude=lambda x, dim: (
            1 + np.abs(x).max(initial=0, where=np.isfinite(x)) + np.abs(ref.log_softmax(x, dim)) if x.size else 0
        ),
        specials=[NAN],
        errors=_errors("log_softmax"),
        bench=ROWS,
    ),
]
