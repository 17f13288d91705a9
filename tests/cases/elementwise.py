"""Elementwise operations: unary from one table of formulas, binary with broadcasting, where and clamp."""

from typing import Any

import numpy as np

import reference as ref
from cases.case import SPECIAL, BenchRow, Case, Values, error, f32, sample

values = Values(1)
n = values.normal
F = "nn.functional."
MEGA = 1 << 20
LARGE = 300_007  # odd, and enough for several threads


def _unary(name: str, formula: Any, low: float, high: float, path: str = "", **options: Any) -> Case:
    """Samples: an odd vector, a matrix, a scalar, nothing. kwargs (a list) gives the parameter sets."""
    parameters = options.pop("kwargs", [{}])
    first, *others = parameters
    samples = [sample(values.uniform(low, high, *shape), **first) for shape in ((37,), (3, 5, 7), (), (0, 3))]
    samples += [sample(values.uniform(low, high, 4, 9), **p) for p in others]
    options.setdefault("specials", [sample(SPECIAL, **p) for p in parameters])
    options.setdefault("large", lambda: (np.random.default_rng(0).uniform(low, high, LARGE),))
    options.setdefault(
        "bench", [BenchRow("1M", lambda: (np.random.default_rng(0).uniform(low, high, MEGA),), bytes=8 * MEGA)]
    )
    return Case(name, formula, samples, path, **options)


def _plus_input(formula: Any) -> Any:
    """Where the formula subtracts nearly equal numbers of the size of x, the error is relative to |x|."""
    return lambda x, **kwargs: np.abs(x) + np.abs(formula(x, **kwargs))


def _clamp_large() -> tuple[Any, ...]:
    return np.random.default_rng(0).uniform(-3, 3, LARGE), -1.0, 0.5


INTS = ("int64", "int32", "uint8")
UNARY = [
    _unary("neg", np.negative, -3, 3, exact=True, integers=("int64", "int32", "int8"), inplace=True),
    _unary("abs", np.abs, -3, 3, exact=True, integers=("int64", "int32", "int8"), inplace=True),
    _unary("sign", np.sign, -3, 3, exact=True, integers=INTS, inplace=True, torch=True),
    _unary("square", np.square, -3, 3, integers=INTS, inplace=True),
    _unary(
        "relu",
        ref.relu,
        -3,
        3,
        exact=True,
        integers=("int64", "int32", "int8"),
        inplace=True,
        numpy=lambda x: np.maximum(x, 0),
    ),
    _unary("sqrt", np.sqrt, 0.1, 4, inplace=True, numpy=np.sqrt),
    _unary("rsqrt", lambda x: 1 / np.sqrt(x), 0.1, 4, inplace=True),
    _unary("reciprocal", np.reciprocal, 0.2, 3, inplace=True),
    _unary("exp", np.exp, -4, 4, inplace=True, numpy=np.exp),
    _unary("exp2", np.exp2, -4, 4, inplace=True),
    _unary("expm1", np.expm1, -2, 2, inplace=True),
    _unary("log", np.log, 0.05, 5, inplace=True, numpy=np.log),
    _unary("log2", np.log2, 0.05, 5, inplace=True),
    _unary("log10", np.log10, 0.05, 5, inplace=True),
    _unary("log1p", np.log1p, -0.9, 5, inplace=True),
    _unary("sin", np.sin, -6, 6, inplace=True),
    _unary("cos", np.cos, -6, 6, inplace=True),
    _unary("tan", np.tan, -1.4, 1.4, inplace=True),
    _unary("asin", np.arcsin, -0.95, 0.95, inplace=True),
    _unary("acos", np.arccos, -0.95, 0.95, inplace=True),
    _unary("atan", np.arctan, -4, 4, inplace=True),
    _unary("sinh", np.sinh, -3, 3, inplace=True),
    _unary("cosh", np.cosh, -3, 3, inplace=True),
    _unary("tanh", np.tanh, -4, 4, inplace=True, numpy=np.tanh, gradient_scale=1),
    _unary("erf", ref.erf, -3, 3, inplace=True),
    _unary("sigmoid", ref.sigmoid, -5, 5, inplace=True, gradient_scale=1),
    _unary("logsigmoid", ref.logsigmoid, -5, 5, F + "logsigmoid", inplace=True),
    _unary("selu", ref.selu, -4, 4, F + "selu", inplace=True),
    _unary("silu", ref.silu, -5, 5, F + "silu", inplace=True),
    _unary("mish", ref.mish, -5, 5, F + "mish", inplace=True),
    _unary("softsign", lambda x: x / (1 + np.abs(x)), -5, 5, F + "softsign", inplace=True),
    _unary(
        "hardsigmoid",
        ref.hardsigmoid,
        -5,
        5,
        F + "hardsigmoid",
        magnitude=lambda x: 1 + 0 * x,
        inplace=True,
        torch=False,
    ),
    _unary("hardswish", lambda x: x * ref.hardsigmoid(x), -5, 5, F + "hardswish", magnitude=np.abs, inplace=True),
    _unary("relu6", lambda x: np.clip(x, 0, 6), -8, 8, F + "relu6", exact=True),
    _unary(
        "hardtanh",
        lambda x, min_val=-1, max_val=1: np.clip(x, min_val, max_val),
        -3,
        3,
        F + "hardtanh",
        exact=True,
        kwargs=[{}, {"min_val": -2, "max_val": 0.5}],
    ),
    _unary("leaky_relu", ref.leaky_relu, -3, 3, F + "leaky_relu", kwargs=[{}, {"negative_slope": 0.2}]),
    _unary("elu", ref.elu, -4, 4, F + "elu", kwargs=[{}, {"alpha": 0.5}]),
    _unary(
        "celu",
        ref.celu,
        -4,
        4,
        F + "celu",
        kwargs=[{}, {"alpha": 2.0}],
        errors=[error(ValueError, "celu.*alpha.*0", f32(3), alpha=0.0)],
    ),
    _unary(
        "gelu",
        ref.gelu,
        -4,
        4,
        F + "gelu",
        kwargs=[{}, {"approximate": "tanh"}],
        magnitude=_plus_input(ref.gelu),
        errors=[error(ValueError, "gelu.*'cube'", f32(3), approximate="cube")],
    ),
    _unary("softplus", ref.softplus, -5, 5, F + "softplus", kwargs=[{}, {"beta": 2.0, "threshold": 3.0}]),
    _unary("floor", np.floor, -4, 4, exact=True, inplace=True, integers=INTS),
    _unary("ceil", np.ceil, -4, 4, exact=True, inplace=True, integers=INTS),
    _unary("trunc", np.trunc, -4, 4, exact=True, inplace=True, integers=INTS),
    _unary("round", np.round, -4, 4, exact=True, inplace=True, integers=INTS),
    _unary("isnan", np.isnan, -2, 2, differentiable=False, exact=True),
    _unary("isinf", np.isinf, -2, 2, differentiable=False, exact=True),
    _unary("isfinite", np.isfinite, -2, 2, differentiable=False, exact=True),
    _unary("logical_not", np.logical_not, -2, 2, differentiable=False, exact=True, integers=(*INTS, "bool")),
    _unary(
        "clip",
        lambda x, min=None, max=None: np.clip(x, min, max),
        -3,
        3,
        exact=True,
        large=_clamp_large,
        bench=(),
        kwargs=[{"min": -1.0, "max": 0.5}],
    ),
    _unary(
        "clamp",
        lambda x, min=None, max=None: np.clip(x, min, max),
        -3,
        3,
        exact=True,
        inplace=True,
        large=_clamp_large,
        bench=(),
        kwargs=[{"min": -1.0, "max": 0.5}, {"min": 0.25}, {"max": -0.25}],
        errors=[error(ValueError, "clamp.*min or max", f32(3))],
    ),
]


def _pairs(low: float, high: float, low_b: float, high_b: float) -> list[Any]:
    shapes = [
        ((5, 7), (5, 7)),
        ((5, 7), (7,)),
        ((3, 1, 4), (2, 1)),
        ((), (6,)),
        ((0, 3), (1, 3)),
        ((2, 3, 4, 5), (3, 1, 5)),
    ]
    return [sample(values.uniform(low, high, *a), values.uniform(low_b, high_b, *b)) for a, b in shapes]


def _binary(name: str, formula: Any, interval: tuple[float, ...] = (-3, 3, 0.3, 3), **options: Any) -> Case:
    """Samples: all ways of broadcasting, and numbers. The interval is that of the first and of the second operand."""
    number = options.pop("number", 1.5)
    samples = _pairs(*interval)
    samples += [sample(samples[0].args[0], number)] if number is not None else []
    first, second = np.repeat(SPECIAL, len(SPECIAL)), np.tile(SPECIAL, len(SPECIAL))
    options.setdefault("specials", [sample(first, second)])
    options.setdefault(
        "errors",
        [
            error(ValueError, rf"{name}.*\(2, 3\).*\(4,\)", f32(2, 3), f32(4)),
            error(ValueError, rf"{name}.*\(5, 1, 3\).*\(2, 2\)", f32(5, 1, 3), f32(2, 2)),
        ],
    )
    options.setdefault(
        "large", lambda: (values.uniform(*interval[:2], 211, 1409), values.uniform(*interval[2:], 211, 1409))
    )
    return Case(name, formula, samples, **options)


def _race(formula: Any) -> dict[str, Any]:
    def make() -> tuple[Any, ...]:
        rng = np.random.default_rng(0)
        return rng.uniform(0.5, 2, MEGA), rng.uniform(0.5, 2, MEGA)

    return {"numpy": formula, "bench": [BenchRow("1M", make, bytes=12 * MEGA)]}


def _of_tensors(name: str) -> Any:
    """torch's function takes no numbers: they go in as tensors."""
    return lambda torch, x, y: getattr(torch, name)(x, torch.as_tensor(y))


def _compare(name: str, formula: Any, **options: Any) -> Case:
    return _binary(
        name, formula, (-1.4, 1.4, -1.4, 1.4), differentiable=False, exact=True, integers=(*INTS, "bool"), **options
    )


def _pow_magnitude(a: Any, b: Any) -> Any:
    """exp(b log a): an error in the logarithm is multiplied by b log a."""
    with np.errstate(all="ignore"):
        return np.nan_to_num(np.abs(a**b) * (1 + np.abs(b * np.log(np.abs(a)))), nan=0, posinf=0)


def _remainder_magnitude(a: Any, b: Any) -> Any:
    return np.abs(a) + np.abs(b)


BITS = (-9, 9, -9, 9)
BINARY = [
    _binary("add", np.add, (-3, 3, -3, 3), integers=INTS, inplace=True, **_race(np.add)),
    _binary(
        "sub", np.subtract, (-3, 3, -3, 3), integers=("int64", "int32", "int8"), inplace=True, **_race(np.subtract)
    ),
    _binary("mul", np.multiply, (-3, 3, -3, 3), integers=INTS, inplace=True, **_race(np.multiply)),
    _binary("div", np.divide, inplace=True, **_race(np.divide)),
    _binary("maximum", np.maximum, (-3, 3, -3, 3), integers=INTS, exact=True, torch=_of_tensors("maximum")),
    _binary("minimum", np.minimum, (-3, 3, -3, 3), integers=INTS, exact=True, torch=_of_tensors("minimum")),
    _binary(
        "floor_divide",
        np.floor_divide,
        (-9, 9, 1, 4),
        integers=INTS,
        exact=True,
        specials=(),
        inplace=True,
        number=2,
        torch=False,
        errors=[error(RuntimeError, "floor_divide.*zero", np.array([3]), np.array([0]))],
    ),
    *[
        _binary(
            name,
            formula,
            (-9, 9, 1, 4),
            integers=INTS,
            magnitude=_remainder_magnitude,
            specials=(),
            inplace=True,
            number=2.5,
            errors=[error(RuntimeError, f"{name}.*zero", np.array([3]), np.array([0]))],
        )
        for name, formula in (("remainder", np.remainder), ("fmod", np.fmod))
    ],
    _binary("pow", np.power, (0.2, 3, -2, 2), magnitude=_pow_magnitude, number=2.5, inplace=True),
    _binary("atan2", np.arctan2, (-3, 3, -3, 3), torch=_of_tensors("atan2")),
    _compare("eq", np.equal),
    _compare("ne", np.not_equal),
    _compare("lt", np.less),
    _compare("le", np.less_equal),
    _compare("gt", np.greater),
    _compare("ge", np.greater_equal),
    _compare("logical_and", np.logical_and, torch=_of_tensors("logical_and")),
    _compare("logical_or", np.logical_or, torch=_of_tensors("logical_or")),
    _compare("logical_xor", np.logical_xor, torch=_of_tensors("logical_xor")),
    *[
        _binary(
            name,
            formula,
            BITS,
            dtypes=(),
            integers=(*INTS, "bool"),
            differentiable=False,
            exact=True,
            specials=(),
            number=None,
            large=None,
            errors=[error(TypeError, f"{name}.*float32", f32(3), f32(3))],
        )
        for name, formula in (
            ("bitwise_and", np.bitwise_and),
            ("bitwise_or", np.bitwise_or),
            ("bitwise_xor", np.bitwise_xor),
        )
    ],
]

OTHERS = [
    Case(
        "bitwise_not",
        np.invert,
        [sample(values.uniform(-9, 9, 5, 7))],
        dtypes=(),
        integers=(*INTS, "bool"),
        differentiable=False,
        exact=True,
        errors=[error(TypeError, "bitwise_not.*float32", f32(3))],
    ),
    Case(
        "where",
        np.where,
        [
            sample(values.bools(5, 7), values.normal(5, 7), values.normal(5, 7)),
            sample(values.bools(5, 1), values.normal(7), values.normal(2, 1, 1)),
            sample(values.bools(4), values.normal(4), 0.5),
            sample(values.bools(0, 3), values.normal(0, 3), values.normal(3)),
        ],
        exact=True,
        integers=INTS,
        errors=[
            error(TypeError, "where.*bool.*int64", np.ones(3, np.int64), f32(3), f32(3)),
            error(ValueError, r"where.*\(3,\).*\(2,\)", np.ones(3, bool), f32(2), f32(3)),
        ],
    ),
    Case(
        "lerp",
        lambda x, y, w: x + w * (y - x),
        [sample(n(5, 7), n(5, 7), 0.3), sample(n(5, 7), n(7), values.uniform(0, 1, 5, 1))],
        magnitude=lambda x, y, w: np.abs(x) + np.abs(y) + 0 * w,
        dtypes=("float32", "float64"),
    ),
    Case(
        "pow_scalar",
        lambda x, exponent: x**exponent,
        [sample(values.uniform(0.2, 3, 5, 7), e) for e in (2, 3, 0.5, -1.0, 2.5, 0, 1)],
        call=lambda lib, x, e: x**e,
        magnitude=_pow_magnitude,
        specials=[sample(SPECIAL, e) for e in (2, 3, 0.5, -1.0, 0)],
    ),
    Case(
        "rpow_scalar",
        lambda x, base: base**x,
        [sample(values.uniform(-3, 3, 5, 7), 2.0)],
        call=lambda lib, x, base: base**x,
        magnitude=lambda x, base: _pow_magnitude(base, x),
    ),
    Case(
        "operators",
        lambda a, b: (a + b, a - b, a * b, a / b, 2 + a, 2 - a, 2 * a, 2 / b, -a, abs(a), a % b),
        [sample(values.uniform(-3, 3, 5, 7), values.uniform(0.5, 2, 7))],
        call=lambda lib, a, b: (a + b, a - b, a * b, a / b, 2 + a, 2 - a, 2 * a, 2 / b, -a, abs(a), a % b),
        magnitude=lambda a, b: 10.0,
    ),
    Case(
        "comparisons",
        lambda a, b: (
            a < b,
            a <= b,
            a > b,
            a >= b,
            a == b,
            a != b,
            a > 0.5,
            ~(a > b),
            (a > b) & (a > 0),
            (a > b) | (a > 0),
            (a > b) ^ (a > 0),
        ),
        [sample(values.uniform(-3, 3, 5, 7), values.uniform(-3, 3, 7))],
        call=lambda lib, a, b: (
            a < b,
            a <= b,
            a > b,
            a >= b,
            a == b,
            a != b,
            a > 0.5,
            ~(a > b),
            (a > b) & (a > 0),
            (a > b) | (a > 0),
            (a > b) ^ (a > 0),
        ),
        exact=True,
        differentiable=False,
    ),
]

CASES = [*UNARY, *BINARY, *OTHERS]
