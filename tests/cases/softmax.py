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
        ((2, 3, 83), 1),
        ((1, 5000), 1),
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


def _rows(shape, dim=1, dtype="float32"):
    def make():
        return np.random.default_rng(0).standard_normal(shape), dim

    label = "x".join(map(str, shape)) + (f" over {dim}" if dim != len(shape) - 1 else "")
    size = (4 if dtype == "float32" else 2) * int(np.prod(shape))
    return [
        BenchRow(label, make, bytes=2 * size, dtype=dtype),
        BenchRow(label, make, bytes=3 * size, dtype=dtype, backward=True),
    ]


def _numpy_softmax(x, dim):
    e = np.exp(x - x.max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


ROWS = _rows((64, 10)) + [
    row
    for dtype in ("float32", "bfloat16")
    for shape in ((1024, 1000), (2048, 8192), (512, 32000), (512, 50257), (32, 21, 64, 64))
    for row in _rows(shape, 1, dtype)
]
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
        rounds_saved=lambda x, dim: 1,
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
        rounds_saved=lambda x, dim: np.abs(ref.log_softmax(x, dim)).max(),  # e^y is off by the rounding of y
        bench=ROWS,
    ),
]
