"""Optimizer steps on lists of tensors: each case updates copies in place and returns all that changed."""

import itertools
from typing import Any

import numpy as np

import reference as ref
from cases.case import Case, Values, error, f32, sample

values = Values(10)
n = values.normal
SHAPES = ((4, 5), (7,), (), (0, 3))


def _copies(tensors: Any) -> Any:
    return [t.detach().clone() for t in tensors]


def _step(lib: Any, rule: str, params: Any, grads: Any, states: Any, *options: Any) -> Any:
    params, states = _copies(params), [_copies(state) for state in states]
    lib._C.optimizer_step(rule, params, grads, states, *options)
    return [*params, *itertools.chain.from_iterable(states)]


def _step_reference(rule: str, params: Any, grads: Any, states: Any, *options: Any) -> Any:
    rows = [
        ref.optimizer_step(rule, p, g, [state[i] for state in states], *options)
        for i, (p, g) in enumerate(zip(params, grads, strict=True))
    ]
    return [row[k] for k in range(1 + len(states)) for row in rows]


def _clip(lib: Any, grads: Any, max_norm: float, p: float) -> Any:
    grads = _copies(grads)
    return [lib._C.clip_grad_norm_(grads, max_norm, p), *grads]


def _norm(grads: Any, p: float) -> Any:
    return ref.norm(np.concatenate([g.ravel() for g in grads]), p)


def _clip_reference(grads: Any, max_norm: float, p: float) -> Any:
    total = _norm(grads, p)
    return [total, *[g * min(1.0, max_norm / (total + 1e-6)) for g in grads]]


def _normals(scale: float = 1.0) -> list[Any]:
    return [np.asarray(n(*shape) * scale) for shape in SHAPES]


def _squares() -> list[Any]:
    """Away from zero, so that a gradient over their root stays below `_magnitude`."""
    return [np.asarray(0.5 + n(*shape) ** 2) for shape in SHAPES]


def _case(name: str, formula: Any, samples: list[Any], **options: Any) -> Case:
    return Case(name, formula, samples, torch=False, differentiable=False, **options)


def _magnitude(*args: Any, **kwargs: Any) -> float:
    return 8.0  # parameters, states and gradients are normal values, and steps are below 1


# The states of a rule as makers of lists, and its coefficients.
RULES: dict[str, tuple[tuple[Any, ...], list[float]]] = {
    "descent": ((), [0.1]),
    "average": ((), [0.25]),
    "momentum": ((_normals,), [0.1, 0.9, 0.9, 0.5]),
    "nesterov": ((_normals,), [0.1, 0.9, 0.9, 1.0]),
    "adam": ((_normals, _squares), [0.8, 0.99, 0.02, 1e-6]),
    "amsgrad": ((_normals, _squares, _squares), [0.9, 0.99, 0.02, 1e-8]),
    "nadam": ((_normals, _squares), [0.9, 0.99, 0.03, 0.01, 1e-8]),
    "radam": ((_normals, _squares), [0.9, 0.99, 0.01, 1e-8]),  # its variance becomes tractable at the 6th step
    "adamax": ((_normals, _squares), [0.9, 0.999, 0.01, 1e-8]),
    "rmsprop": ((_squares,), [0.9, 0.01, 1e-8, 0.0]),
    "rmsprop_momentum": ((_squares, _normals), [0.9, 0.01, 1e-8, 0.8]),
    # A mean far below the root of the mean square: their difference does not cancel.
    "rmsprop_centered": ((_squares, lambda: _normals(0.01)), [0.99, 0.01, 1e-2, 0.0]),
    "rmsprop_centered_momentum": ((_squares, lambda: _normals(0.01), _normals), [0.99, 0.01, 1e-2, 0.8]),
    "adagrad": ((_squares,), [0.1, 0.01, 1e-10]),
    "adadelta": ((_squares, _squares), [0.9, 0.5, 1e-6]),
    "lion": ((_normals,), [0.9, 0.99, 1e-2]),
}


def _sample(rule: str, *options: Any) -> Any:
    states, coefficients = RULES[rule]
    return sample(rule, _normals(), _normals(), [make() for make in states], coefficients, *options)


ONE = ([f32(2, 3)], [f32(2, 3)])
CASES = [
    _case(
        "optimizer_step",
        _step_reference,
        # (weight_decay, shrink, maximize, step)
        [_sample(rule, *options) for rule in RULES for options in ((0.0, 1.0, False, 5), (0.1, 0.97, True, 20))],
        call=_step,
        magnitude=_magnitude,
        errors=[
            error(ValueError, r"optimizer_step.*\(3, 2\).*\(2, 3\)", "descent", ONE[0], [f32(3, 2)], [], [0.1]),
            error(TypeError, "optimizer_step.*float64", "descent", ONE[0], [np.ones((2, 3))], [], [0.1]),
            error(ValueError, "optimizer_step.*expected 1 grads.*0", "descent", ONE[0], [], [], [0.1]),
            error(ValueError, "no rule 'ascent'", "ascent", *ONE, [], [0.1]),
            error(ValueError, "'adam' has 2 states.*got 1", "adam", *ONE, [ONE[0]], [0.0] * 4),
            error(ValueError, "'adam' has 4 coefficients.*got 1", "adam", *ONE, [ONE[0], ONE[0]], [0.0]),
            error(ValueError, "steps count from 1, got 0", "descent", *ONE, [], [0.1], 0.0, 1.0, False, 0),
        ],
    ),
    _case(
        "grad_norm",
        lambda grads, p: _norm(grads, p),
        [sample(_normals(), p) for p in (2.0, 1.0, float("inf"), 3.0)],
        call=lambda lib, grads, p: lib._C.grad_norm(grads, p),
        terms=28,
        ulps=8,
        errors=[error(ValueError, "grad_norm.*-1", [f32(3)], -1.0)],
    ),
    _case(
        "clip_grad_norm_",
        _clip_reference,
        [sample(_normals(), 1.0, 2.0), sample(_normals(0.01), 1.0, 2.0), sample(_normals(), 0.5, float("inf"))],
        call=_clip,
        terms=28,
        ulps=8,
    ),
]
