"""Optimizer steps on lists of tensors: each case updates copies in place and returns all that changed."""

from typing import Any

import numpy as np

import reference as ref
from cases.case import Case, Values, error, f32, sample

values = Values(10)
n = values.normal
SHAPES = ((4, 5), (7,), (), (0, 3))


def _copies(tensors: Any) -> Any:
    return [t.detach().clone() for t in tensors]


def _sgd(lib: Any, params: Any, grads: Any, buffers: Any, *options: Any) -> Any:
    params, buffers = _copies(params), _copies(buffers)
    lib._C.sgd_step(params, grads, buffers if options[1] else None, *options)
    return params + (buffers if options[1] else [])


def _sgd_reference(params: Any, grads: Any, buffers: Any, *options: Any) -> Any:
    *plain, first_step = options
    lr, momentum, dampening, decay, nesterov, maximize = plain
    step = 1 if first_step else 2
    pairs = [
        ref.sgd_step(p, g, b, step, lr, momentum, dampening, decay, nesterov, maximize)
        for p, g, b in zip(params, grads, buffers, strict=True)
    ]
    return [p for p, _ in pairs] + ([b for _, b in pairs] if momentum else [])


def _adam(lib: Any, params: Any, grads: Any, m: Any, v: Any, v_max: Any, *options: Any) -> Any:
    params, m, v = _copies(params), _copies(m), _copies(v)
    v_max = _copies(v_max) if v_max else None
    lib._C.adam_step(params, grads, m, v, v_max, *options)
    return params + m + v + (v_max or [])


def _adam_reference(params: Any, grads: Any, m: Any, v: Any, v_max: Any, *options: Any) -> Any:
    rows = [
        ref.adam_step(*state, *options)
        for state in zip(params, grads, m, v, v_max or [None] * len(params), strict=True)
    ]
    return [row[k] for k in range(4 if v_max else 3) for row in rows]


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
    return [np.asarray(n(*shape) ** 2) for shape in SHAPES]


def _case(name: str, formula: Any, samples: list[Any], **options: Any) -> Case:
    return Case(name, formula, samples, torch=False, differentiable=False, **options)


def _magnitude(*args: Any, **kwargs: Any) -> float:
    return 8.0  # parameters, states and gradients are normal values, and steps are below 1


# lr, momentum, dampening, weight_decay, nesterov, maximize, first_step
SGD = [
    (0.1, 0.0, 0.0, 0.0, False, False, True),
    (0.1, 0.9, 0.0, 0.01, False, False, True),
    (0.1, 0.9, 0.5, 0.0, False, True, False),
    (0.1, 0.9, 0.0, 0.1, True, False, False),
]
# step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize
ADAM = [
    (1, 1e-2, 0.9, 0.999, 1e-8, 0.0, False, False),
    (7, 1e-2, 0.8, 0.99, 1e-6, 0.1, False, True),
    (3, 1e-2, 0.9, 0.999, 1e-8, 0.1, True, False),
]

LISTS = ([f32(2, 3)], [f32(2, 3)], [f32(2, 3)], [f32(2, 3)])
CASES = [
    _case(
        "sgd_step",
        _sgd_reference,
        [sample(_normals(), _normals(), _normals(), *o) for o in SGD],
        call=_sgd,
        magnitude=_magnitude,
        errors=[
            error(ValueError, r"sgd_step.*\(2, 3\).*|sgd_step.*\(3, 2\)", [f32(2, 3)], [f32(3, 2)], [], *SGD[0]),
            error(
                ValueError, "sgd_step.*nesterov", [f32(2, 3)], [f32(2, 3)], [], 0.1, 0.0, 0.0, 0.0, True, False, True
            ),
            error(TypeError, "sgd_step.*float64", [f32(2, 3)], [np.ones((2, 3))], [], *SGD[0]),
        ],
    ),
    _case(
        "adam_step",
        _adam_reference,
        [
            sample(_normals(), _normals(), _normals(0.1), _squares(), v_max, *o)
            for o in ADAM
            for v_max in ([], _squares())
        ],
        call=_adam,
        magnitude=_magnitude,
        errors=[
            error(ValueError, r"adam_step.*\(3, 2\)", LISTS[0], [f32(3, 2)], LISTS[2], LISTS[3], [], *ADAM[0]),
            error(ValueError, "adam_step.*step.*0", *LISTS, [], 0, *ADAM[0][1:]),
            error(ValueError, "adam_step.*exp_avgs", *LISTS[:2], [], LISTS[3], [], *ADAM[0]),
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
