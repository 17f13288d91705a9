"""Losses: every reduction, weights, ignored and smoothed labels, soft targets."""

from typing import Any

import numpy as np

import reference as ref
from cases.case import BenchRow, Case, Values, error, f32, sample

values = Values(7)
n, u = values.normal, values.uniform
F = "nn.functional."
REDUCTIONS = ("mean", "sum", "none")


def _labels(n_classes: int, *shape: int) -> Any:
    return values.integers(0, n_classes, *shape)


def _probabilities(*shape: int) -> Any:
    return ref.softmax(n(*shape), 1)


def _ignored(*shape: int) -> Any:
    labels = _labels(5, *shape)
    labels.flat[1] = labels.flat[3] = -100
    return labels


def _elementwise(name: str, formula: Any, pairs: Any, options: list[dict[str, Any]], **more: Any) -> Case:
    samples = [sample(*pairs(4, 7), reduction=r, **o) for o in options for r in REDUCTIONS]
    samples += [sample(*pairs(5), **options[0]), sample(*pairs(0, 3), reduction="none", **options[0])]
    errors = [
        error(ValueError, rf"{name}.*\(5, 1\).*\(5,\)", f32(5, 1), f32(5)),
        error(ValueError, rf"{name}.*reduction.*'average'", f32(5), f32(5), reduction="average"),
        *more.pop("errors", []),
    ]
    more.setdefault(
        "magnitude", lambda *a, reduction="mean", **k: 1 + formula(*[np.abs(x) for x in a], reduction=reduction, **k)
    )
    return Case(name, formula, samples, F + name, errors=errors, terms=lambda x, *_, **__: x.size, **more)


def _magnitude(formula: Any) -> Any:
    """Logarithms of a softmax have errors relative to the largest logit."""

    def magnitude(x: Any, target: Any, weight: Any = None, **kwargs: Any) -> Any:
        size = 1 + np.abs(x).max(initial=0)
        return size * (x.size if kwargs.get("reduction") == "sum" else 1) * (1 if weight is None else np.max(weight))

    return magnitude


def _class_errors(name: str) -> list[Any]:
    x, labels = f32(4, 5), np.array([0, 1, 2, 3])
    return [
        error(IndexError, rf"{name}.*7.*5", x, np.array([0, 7, 2, 3])),
        error(IndexError, rf"{name}.*-1", x, np.array([0, 1, -1, 3])),
        error(ValueError, rf"{name}.*\(4, 5\).*\(3,\)", x, labels[:3]),
        error(ValueError, rf"{name}.*\(4, 10, 5\).*|{name}.*\(4,\)", f32(4, 10, 5), labels),
        error(ValueError, rf"{name}.*weight.*\(4,\)", x, labels, f32(4)),
        error(ValueError, rf"{name}.*reduction.*'average'", x, labels, reduction="average"),
    ]


def _mse(x: Any, y: Any, reduction: str = "mean") -> Any:
    return ref.reduced((x - y) ** 2, reduction)


def _l1(x: Any, y: Any, reduction: str = "mean") -> Any:
    return ref.reduced(np.abs(x - y), reduction)


def _two(*shape: int) -> Any:
    return n(*shape), n(*shape)


def _probability_pairs(*shape: int) -> Any:
    return u(0.05, 0.95, *shape), u(0, 1, *shape)


def _logit_pairs(*shape: int) -> Any:
    return n(*shape) * 3, u(0, 1, *shape)


def _kl_pairs(*shape: int) -> Any:
    return np.log(u(0.05, 1, *shape)), u(0.05, 1, *shape)


def _row(batch: int, classes: int, dtype: str = "float32") -> list[BenchRow]:
    def make() -> tuple[Any, ...]:
        rng = np.random.default_rng(0)
        return rng.standard_normal((batch, classes)), rng.integers(0, classes, batch)

    size = (4 if dtype == "float32" else 2) * batch * classes
    return [
        BenchRow(f"{batch}x{classes}", make, bytes=size, dtype=dtype),
        BenchRow(f"{batch}x{classes}", make, bytes=2 * size, dtype=dtype, backward=True),
    ]


def _torch_linear_cross_entropy(lib: Any, x: Any, w: Any, t: Any, *b: Any, **options: Any) -> Any:
    logits = lib.nn.functional.linear(x, w, *b)
    loss = lib.nn.functional.cross_entropy(logits.reshape(-1, len(w)), t.reshape(-1), **options)
    return loss.reshape(t.shape) if options.get("reduction") == "none" else loss


CASES = [
    Case(
        "cross_entropy",
        ref.cross_entropy,
        [
            *[sample(n(6, 5) * 2, _labels(5, 6), reduction=r) for r in REDUCTIONS],
            *[sample(n(6, 5), _ignored(6), reduction=r) for r in REDUCTIONS],
            *[sample(n(6, 5), _ignored(6), u(0.5, 2, 5), reduction=r) for r in REDUCTIONS],
            *[sample(n(6, 5), _ignored(6), u(0.5, 2, 5), reduction=r, label_smoothing=0.1) for r in REDUCTIONS],
            *[sample(n(6, 5), _probabilities(6, 5), reduction=r) for r in REDUCTIONS],
            sample(n(6, 5), _probabilities(6, 5), u(0.5, 2, 5), label_smoothing=0.2),
            sample(n(3, 5, 4), _labels(5, 3, 4)),
            sample(n(2, 5, 3, 4), _ignored(2, 3, 4), reduction="none"),
            sample(n(2, 5, 3), _probabilities(2, 5, 3)),
            sample(n(6, 5), np.where(_labels(5, 6) == 1, 1, 2), ignore_index=1),
            sample(n(3, 1037), _labels(1037, 3)),
        ],
        F + "cross_entropy",
        differentiable=(0,),
        terms=lambda x, *_, **__: x.size,
        magnitude=_magnitude(ref.cross_entropy),
        specials=[sample(np.array([[1e4, 0.0], [-1e4, 1e4]]), np.array([1, 1]))],
        errors=[
            *_class_errors("cross_entropy"),
            error(TypeError, "cross_entropy.*int32|cross_entropy.*(float|dtype)", f32(4, 5), f32(4)),
            error(
                ValueError, "cross_entropy.*label_smoothing.*1.5", f32(4, 5), np.zeros(4, np.int64), label_smoothing=1.5
            ),
        ],
        large=lambda: (values.normal(1024, 301), _labels(301, 1024)),
        bench=[
            *_row(64, 10),
            *[
                row
                for dtype in ("float32", "bfloat16")
                for size in ((1024, 1000), (2048, 8192), (512, 32000), (512, 50257))
                for row in _row(*size, dtype)
            ],
        ],
    ),
    Case(
        "linear_cross_entropy",
        ref.linear_cross_entropy,
        [
            *[
                sample(n(7, 3), n(5, 3), _ignored(7), n(5), reduction=r, label_smoothing=s)
                for r in REDUCTIONS
                for s in (0.0, 0.1)
            ],
            sample(n(2, 7, 3), n(5, 3), _labels(5, 2, 7)),
            sample(n(3), n(5, 3), np.array(2), n(5)),
        ],
        call=lambda lib, x, w, t, *b, **k: lib.nn.functional.linear_cross_entropy(x, w, t, *b, chunk=3, **k),
        torch=_torch_linear_cross_entropy,
        dtypes=("float32", "float64"),
        differentiable=(0, 1, 3),
        terms=lambda x, *_, **__: x.size,
        magnitude=lambda x, w, t, b=0.0, **k: (1 + (np.abs(x) @ np.abs(w).T).max() + np.abs(b).max()) * t.size,
        errors=[
            error(ValueError, r"linear_cross_entropy.*\(4, 3\).*\(5, 2\)", f32(4, 3), f32(5, 2), np.zeros(4, np.int64)),
            error(ValueError, r"linear_cross_entropy.*\(4,\).*\(3,\)", f32(4, 3), f32(5, 3), np.zeros(3, np.int64)),
            error(IndexError, r"linear_cross_entropy.*7.*row 3.*5", f32(4, 3), f32(5, 3), np.array([0, 1, 2, 7])),
            error(TypeError, r"linear_cross_entropy.*integers.*float32", f32(4, 3), f32(5, 3), f32(4)),
        ],
    ),
    Case(
        "nll_loss",
        ref.nll_loss,
        [
            *[sample(n(6, 5), _ignored(6), reduction=r) for r in REDUCTIONS],
            sample(n(6, 5), _labels(5, 6), u(0.5, 2, 5)),
            sample(n(3, 5, 4), _labels(5, 3, 4)),
            sample(n(2, 5, 3, 4), _ignored(2, 3, 4), u(0.5, 2, 5), reduction="sum"),
        ],
        F + "nll_loss",
        differentiable=(0,),
        terms=lambda x, *_, **__: x.size,
        magnitude=_magnitude(ref.nll_loss),
        errors=_class_errors("nll_loss"),
    ),
    _elementwise(
        "mse_loss",
        _mse,
        _two,
        [{}],
        large=lambda: (n(301, 1003), n(301, 1003)),
        magnitude=lambda x, y, reduction="mean": ref.reduced((np.abs(x) + np.abs(y)) ** 2, reduction) if x.size else 0,
        numpy=lambda x, y: np.mean((x - y) ** 2),
    ),
    _elementwise("l1_loss", _l1, _two, [{}]),
    _elementwise(
        "huber_loss",
        ref.huber_loss,
        _two,
        [{}, {"delta": 0.5}],
        magnitude=lambda x, y, reduction="mean", delta=1.0: (
            ref.reduced((np.abs(x) + np.abs(y)) ** 2, reduction) if x.size else 0
        ),
        errors=[error(ValueError, "huber_loss.*delta.*-1", f32(3), f32(3), delta=-1.0)],
    ),
    _elementwise(
        "smooth_l1_loss",
        ref.smooth_l1_loss,
        _two,
        [{}, {"beta": 0.5}, {"beta": 0.0}],
        magnitude=lambda x, y, reduction="mean", beta=1.0: (
            ref.reduced((1 + np.abs(x) + np.abs(y)) ** 2 * (1 + (1 / beta if beta else 0)), reduction) if x.size else 0
        ),
        errors=[error(ValueError, "smooth_l1_loss.*beta.*-1", f32(3), f32(3), beta=-1.0)],
    ),
    _elementwise(
        "binary_cross_entropy",
        ref.binary_cross_entropy,
        _probability_pairs,
        [{}],
        differentiable=(0,),
        magnitude=lambda x, y, reduction="mean", weight=None: ref.reduced(8 + 0 * x, reduction) if x.size else 0,
        specials=[sample(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 0.0]), reduction="none")],
    ),
    _elementwise(
        "binary_cross_entropy_with_logits",
        ref.binary_cross_entropy_with_logits,
        _logit_pairs,
        [{}],
        differentiable=(0,),
        magnitude=lambda x, y, reduction="mean", weight=None, pos_weight=None: (
            ref.reduced(3 * (1 + np.abs(x)), reduction) if x.size else 0
        ),
        specials=[sample(np.array([1e4, -1e4, 1e4, -1e4]), np.array([0.0, 0.0, 1.0, 1.0]), reduction="none")],
    ),
    Case(
        "weighted_bce",
        lambda p, y, w, v: (ref.binary_cross_entropy(p, y, w), ref.binary_cross_entropy_with_logits(p, y, w, "sum", v)),
        [sample(u(0.05, 0.95, 4, 3), u(0, 1, 4, 3), u(0.5, 2, 4, 3), u(0.5, 2, 3))],
        differentiable=(0,),
        terms=12,
        magnitude=lambda *_: 100.0,
        call=lambda lib, p, y, w, v: (
            lib.nn.functional.binary_cross_entropy(p, y, weight=w),
            lib.nn.functional.binary_cross_entropy_with_logits(p, y, weight=w, reduction="sum", pos_weight=v),
        ),
    ),
    _elementwise(
        "kl_div",
        ref.kl_div,
        _kl_pairs,
        [{}],
        differentiable=(0,),
        magnitude=lambda x, y, reduction="mean", log_target=False: (
            ref.reduced(y * (3 + np.abs(x)), reduction) if x.size else 0
        ),
    ),
    Case(
        "kl_div_forms",
        ref.kl_div,
        [
            sample(*_kl_pairs(4, 3), reduction="batchmean"),
            sample(n(4, 3), n(4, 3), log_target=True),
            sample(n(4, 3), np.array([[0, 0.5, 0.5]] * 4)),
        ],
        F + "kl_div",
        differentiable=(0,),
        terms=12,
        magnitude=lambda *_, **__: 100.0,
    ),
]
