"""The fused steps: parameters, gradients and states in, parameters and states out, on copies."""

import math
from typing import Any

import numpy as np

from cases.case import Case, Values, error, f32, sample

values = Values(11)
n = values.normal


def _like(p: Any, state: Any) -> Any:
    """A copy of a state in the layout of its parameter."""
    return p.detach().clone().copy_(state.detach())


def _sgd(lib: Any, p: Any, g: Any, m: Any, *options: Any) -> Any:
    p = p.detach().clone()
    m = _like(p, m)
    lib._C.sgd_step([p], [g], [m], *options)
    return p, m


def _sgd_formula(
    p: Any, g: Any, m: Any, lr: float, momentum: float, dampening: float, decay: float, nesterov: bool, maximize: bool, first: bool
) -> Any:
    g = (-g if maximize else g) + decay * p
    m = g if first else momentum * m + (1 - dampening) * g
    return p - lr * (g + momentum * m if nesterov else m), m


def _adam(lib: Any, p: Any, g: Any, m: Any, v: Any, largest: Any, *options: Any) -> Any:
    p = p.detach().clone()
    m, v, largest = _like(p, m), _like(p, v), _like(p, largest)
    lib._C.adam_step([p], [g], [m], [v], [largest], *options)
    return p, m, v, largest


def _adam_formula(
    p: Any, g: Any, m: Any, v: Any, largest: Any, step: int, lr: float, beta1: float, beta2: float, eps: float, decay: float, decoupled: bool, maximize: bool
) -> Any:
    p = p * (1 - lr * decay) if decoupled else p
    g = (-g if maximize else g) + (0 if decoupled else decay * p)
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    largest = np.maximum(largest, v)
    return p - lr / (1 - beta1**step) * m / (np.sqrt(largest) / math.sqrt(1 - beta2**step) + eps), m, v, largest


def _largest(*args: Any, **_: Any) -> Any:
    """Every term of an update is of the size of the largest argument, squared at the most."""
    top = max(float(np.abs(a).max(initial=0)) for a in args if isinstance(a, np.ndarray))
    return (1 + top) ** 2


def _adam_args(*shape: int) -> tuple[Any, ...]:
    return n(*shape), n(*shape), n(*shape), np.abs(n(*shape)) + 0.1, np.abs(n(*shape))


def _norm(grads: Any, p: float = 2) -> Any:
    flat = np.concatenate([np.abs(g).ravel() for g in grads]) if grads else np.zeros(0)
    return np.asarray(flat.max(initial=0) if p == math.inf else (flat**p).sum() ** (1 / p))


def _clip(lib: Any, grads: Any, limit: float, p: float = 2) -> Any:
    grads = [g.detach().clone() for g in grads]
    return [lib._C.clip_grad_norm_(grads, limit, p), *grads]


def _clip_formula(grads: Any, limit: float, p: float = 2) -> Any:
    return [_norm(grads, p), *[g * min(1, limit / (float(_norm(grads, p)) + 1e-6)) for g in grads]]


CASES = [
    Case("sgd_step", _sgd_formula, [sample(n(4, 5, 3), n(4, 5, 3), n(4, 5, 3), *options) for options in
                                    ((0.1, 0.9, 0.0, 0.0, False, False, False), (0.1, 0.9, 0.3, 0.01, False, True, False),
                                     (0.05, 0.8, 0.0, 0.1, True, False, False), (0.05, 0.8, 0.5, 0.1, False, False, True))]
         + [sample(n(0), n(0), n(0), 0.1, 0.9, 0.0, 0.0, False, False, False)],
         call=_sgd, torch=False, differentiable=False, magnitude=_largest,
         large=lambda: (n(70_001), n(70_001), n(70_001), 0.1, 0.9, 0.0, 0.01, False, False, False)),
    Case("adam_step", _adam_formula, [sample(*_adam_args(4, 5, 3), *options) for options in
                                      ((1, 0.01, 0.9, 0.999, 1e-8, 0.0, False, False), (7, 0.02, 0.8, 0.99, 1e-6, 0.1, False, True),
                                       (3, 0.02, 0.9, 0.999, 1e-8, 0.1, True, False))],
         call=_adam, torch=False, differentiable=False, magnitude=_largest, ulps=16,
         large=lambda: (*_adam_args(70_001), 3, 0.01, 0.9, 0.999, 1e-8, 0.01, True, False)),
    Case("grad_norm", _norm, [sample([n(4, 5), n(3)], p) for p in (2.0, 1.0, math.inf, 3.0)] + [sample([n(0), n(2)])], "_C.grad_norm",
         torch=False, differentiable=False, ulps=8, large=lambda: ([n(70_001), n(301, 33)],),
         errors=[error(ValueError, "grad_norm.*-1", [f32(3)], -1.0), error(TypeError, "grad_norm.*int64", [np.arange(3)])]),
    Case("clip_grad_norm_", _clip_formula, [sample([n(4, 5), n(3)], limit, p) for limit, p in ((0.5, 2.0), (100.0, 2.0), (0.5, math.inf))],
         call=_clip, torch=False, differentiable=False, ulps=16, large=lambda: ([n(70_001), n(301, 33)], 1.0)),
]  # fmt: skip
