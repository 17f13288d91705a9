"""Matrix products: every pairing of dimensions, transposes come from the strided tests."""

from typing import Any

import numpy as np

from cases.case import BenchRow, Case, Values, error, f32, sample

values = Values(4)
n = values.normal


def _of_magnitudes(formula: Any) -> Any:
    def magnitude(*args: Any, **kwargs: Any) -> Any:
        return formula(*[np.abs(a) if isinstance(a, np.ndarray) else a for a in args], **kwargs)

    return magnitude


def _addmm(c: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Any:
    return (beta * c if beta else 0) + alpha * (a @ b)


def _linear(x: Any, w: Any, b: Any = None) -> Any:
    return x @ w.T + (0 if b is None else b)


def _rows(label: str, flops: float, *shapes: tuple[int, ...], transposed: tuple[int, ...] = ()) -> list[BenchRow]:
    """A product of random arrays of these shapes, in float32 and in bfloat16."""

    def make() -> tuple[Any, ...]:
        rng = np.random.default_rng(0)
        return tuple(rng.standard_normal(shape) for shape in shapes)

    return [BenchRow(label, make, flops, dtype=dtype, transposed=transposed) for dtype in ("float32", "bfloat16")]


LAYOUTS = {"": (), " NT": (1,), " TN": (0,)}  # which operand is stored transposed


def _matmul_rows(rows: int, inner: int, columns: int, layouts: Any = LAYOUTS) -> list[BenchRow]:
    label = str(rows) if rows == inner == columns else f"{rows}x{inner}x{columns}"
    flops, shapes = 2.0 * rows * inner * columns, ((rows, inner), (inner, columns))
    return [row for name in layouts for row in _rows(label + name, flops, *shapes, transposed=LAYOUTS[name])]


LINEAR = ((32, 768, 3072), (32, 3072, 768), (512, 768, 3072), (512, 3072, 768), (1, 4096, 4096), (8, 4096, 4096))


def _linear_rows(rows: int, inner: int, columns: int) -> list[BenchRow]:
    return _rows(f"{rows}x{inner}x{columns}", 2.0 * rows * inner * columns, (rows, inner), (columns, inner))


def _product(name: str, formula: Any, shapes: list[Any], terms: Any, **options: Any) -> Case:
    samples = [sample(n(*a), n(*b)) for a, b in shapes]
    return Case(name, formula, samples, terms=terms, magnitude=_of_magnitudes(formula), **options)


INTS = ("int64", "int32")
inner = lambda a, b: a.shape[-1]  # noqa: E731
CASES = [
    _product(
        "matmul",
        np.matmul,
        [
            ((7,), (7,)),
            ((5, 7), (7,)),
            ((7,), (7, 3)),
            ((5, 7), (7, 3)),
            ((1, 1), (1, 1)),
            ((17, 33), (33, 65)),
            ((2, 5, 7), (2, 7, 3)),
            ((2, 5, 7), (7, 3)),
            ((5, 7), (4, 7, 3)),
            ((3, 1, 5, 7), (2, 7, 3)),
            ((2, 5, 7), (7,)),
            ((7,), (2, 7, 3)),
            ((0, 7), (7, 3)),
            ((5, 0), (0, 3)),
            ((2, 0, 7), (2, 7, 3)),
            ((1, 130), (130, 31)),
            ((131, 1), (1, 7)),
        ],
        inner,
        integers=INTS,
        large=lambda: (values.normal(193, 211), values.normal(211, 307)),
        specials=[sample(np.array([[1.0, np.inf], [np.nan, 1.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]))],
        errors=[
            error(ValueError, r"matmul.*\(5, 7\).*\(8, 3\)", f32(5, 7), f32(8, 3)),
            error(ValueError, r"matmul.*\(2, 5, 7\).*\(3, 7, 3\)", f32(2, 5, 7), f32(3, 7, 3)),
            error(ValueError, r"matmul.*(0-d|\(\))", f32(), f32(3)),
            error(TypeError, r"matmul.*float32.*float64", f32(5, 7), np.ones((7, 3))),
        ],
        numpy=np.matmul,
        bench=[
            *(row for size in (64, 96, 128, 127, 256, 333, 512, 1024, 2048) for row in _matmul_rows(size, size, size)),
            *_matmul_rows(4096, 4096, 4096, [""]),
            *_matmul_rows(1000, 17, 1000),
            *_matmul_rows(1000, 1000, 17),
            *_rows("96 x 128x64x128", 96 * 2.0 * 128 * 64 * 128, (96, 128, 64), (96, 64, 128)),
        ],
    ),
    _product(
        "mm",
        np.matmul,
        [((5, 7), (7, 3)), ((0, 7), (7, 3))],
        inner,
        integers=INTS,
        errors=[
            error(ValueError, r"mm.*\(5, 7\).*\(8, 3\)", f32(5, 7), f32(8, 3)),
            error(ValueError, r"mm.*2-D.*\(2, 5, 7\)", f32(2, 5, 7), f32(7, 3)),
        ],
    ),
    _product(
        "bmm",
        np.matmul,
        [((4, 5, 7), (4, 7, 3)), ((0, 5, 7), (0, 7, 3))],
        inner,
        large=lambda: (values.normal(40, 33, 65), values.normal(40, 65, 31)),
        errors=[
            error(ValueError, r"bmm.*\(4, 5, 7\).*\(3, 7, 3\)", f32(4, 5, 7), f32(3, 7, 3)),
            error(ValueError, r"bmm.*3-D.*\(5, 7\)", f32(5, 7), f32(7, 3)),
        ],
    ),
    _product(
        "mv",
        np.matmul,
        [((5, 7), (7,)), ((300, 129), (129,))],
        inner,
        errors=[error(ValueError, r"mv.*\(5, 7\).*\(8,\)", f32(5, 7), f32(8))],
    ),
    _product(
        "dot",
        np.dot,
        [((7,), (7,)), ((1000,), (1000,)), ((0,), (0,))],
        inner,
        errors=[error(ValueError, r"dot.*\(5,\).*\(6,\)", f32(5), f32(6))],
    ),
    Case(
        "addmm",
        _addmm,
        [
            sample(n(5, 3), n(5, 7), n(7, 3)),
            sample(n(3), n(5, 7), n(7, 3), beta=0.5, alpha=2.0),
            sample(n(5, 1), n(5, 7), n(7, 3), beta=0.0),
        ],
        terms=lambda c, a, b, **_: a.shape[1] + 1,
        magnitude=_of_magnitudes(_addmm),
        specials=[sample(np.array([np.nan, np.inf]), n(3, 4), n(4, 2), beta=0.0)],
        errors=[
            error(ValueError, r"addmm.*\(4,\)", f32(4), f32(5, 7), f32(7, 3)),
            error(ValueError, r"addmm.*\(5, 7\).*\(8, 3\)", f32(3), f32(5, 7), f32(8, 3)),
        ],
    ),
    Case(
        "baddbmm",
        _addmm,
        [sample(n(4, 5, 3), n(4, 5, 7), n(4, 7, 3)), sample(n(5, 3), n(4, 5, 7), n(4, 7, 3), beta=2.0, alpha=0.5)],
        terms=lambda c, a, b, **_: a.shape[2] + 1,
        magnitude=_of_magnitudes(_addmm),
        errors=[error(ValueError, r"baddbmm.*\(4, 5, 7\).*\(4, 8, 3\)", f32(3), f32(4, 5, 7), f32(4, 8, 3))],
    ),
    Case(
        "linear",
        _linear,
        [
            sample(n(5, 7), n(3, 7), n(3)),
            sample(n(5, 7), n(3, 7)),
            sample(n(2, 5, 7), n(3, 7), n(3)),
            sample(n(7), n(3, 7), n(3)),
            sample(n(0, 7), n(3, 7), n(3)),
            sample(n(65, 33), n(17, 33), n(17)),
        ],
        "nn.functional.linear",
        terms=lambda x, w, b=None: w.shape[1] + 1,
        magnitude=_of_magnitudes(_linear),
        large=lambda: (values.normal(211, 193), values.normal(305, 193), values.normal(305)),
        errors=[
            error(ValueError, r"linear.*\(5, 7\).*\(3, 8\)", f32(5, 7), f32(3, 8)),
            error(ValueError, r"linear.*bias.*\(4,\)", f32(5, 7), f32(3, 7), f32(4)),
            error(TypeError, r"linear.*float32.*float64", f32(5, 7), np.ones((3, 7))),
        ],
        numpy=_linear,
        bench=[
            row
            for shape in (
                (32, 768, 3072),
                (32, 3072, 768),
                (512, 768, 3072),
                (512, 3072, 768),
                (1, 4096, 4096),
                (8, 4096, 4096),
            )
            for row in _linear_rows(*shape)
        ],
    ),
]
