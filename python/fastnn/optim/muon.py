"""Muon: momentum whose matrices are made orthogonal."""

import math
from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn.utils import gradients_of
from fastnn.optim.optimizer import Optimizer, Params


class Muon(Optimizer):
    """For weight matrices (2-D parameters); embeddings, heads and vectors are left to AdamW. Jordan et al. 2024::

        b = momentum * b + (1 - momentum) * g
        u = orthogonalised(g + momentum * (b - g)  if nesterov else  b)
        p = p - lr * weight_decay * p - lr * adjustment * u

    ``adjust_lr_fn``: "original", sqrt(max(1, rows / columns)), or "match_rms_adamw", 0.2 sqrt(max(rows, columns))
    (Liu et al. 2025). ValueError for a parameter that is not 2-D.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        options |= {"ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(params, options)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        self._check_not_negative(group, "momentum")
        if not 0 <= group["ns_steps"] < 100:
            raise ValueError(f"Muon: ns_steps must be in [0, 100), got {group['ns_steps']}")
        if len(group["ns_coefficients"]) != 3:
            raise ValueError(f"Muon: ns_coefficients must be three numbers, got {group['ns_coefficients']}")
        if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
            raise ValueError(
                f"Muon: adjust_lr_fn must be 'original' or 'match_rms_adamw', got {group['adjust_lr_fn']!r}"
            )
        for p in group["params"]:
            if p.dim() != 2:
                raise ValueError(f"Muon: expected 2-D parameters, got shape {tuple(p.shape)}")

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        momentum = group["momentum"]
        grads, buffers = gradients_of(params), self._state_of(params, "momentum_buffer")
        _C.optimizer_step("average", buffers, grads, [], [1 - momentum])
        for p, grad, buffer in zip(params, grads, buffers, strict=True):
            direction = _C.lerp(grad, buffer, momentum) if group["nesterov"] else buffer
            update = orthogonalised(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
            rate = group["lr"] * _adjustment(group["adjust_lr_fn"], *p.shape)
            shrink = 1 - group["lr"] * group["weight_decay"]
            _C.optimizer_step("descent", [p], [update.to(p.dtype)], [], [rate], 0.0, shrink)


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int = 5, eps: float = 1e-7
) -> Tensor:
    """About U V^T of the matrix U S V^T, in bfloat16: Newton and Schulz's iteration in odd polynomials of degree 5.

    Its coefficients make small singular values grow fast, and leave them between about 0.7 and 1.2.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16()
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)  # its largest singular value is now at most 1
    for _ in range(steps):
        gram = x @ x.T
        x = _C.addmm(x, _C.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _adjustment(name: str | None, rows: int, columns: int) -> float:
    if name == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
