"""Adam and AdamW."""

from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn.utils import gradients_of
from fastnn.optim.optimizer import Optimizer, Params


class Adam(Optimizer):
    """Adaptive moments, Kingma and Ba 2015, algorithm 1::

        g = grad + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    With ``amsgrad`` the largest v so far takes the place of v. Reddi et al. 2018.
    """

    decoupled = False  # is the weight decay apart from the gradient?

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "amsgrad": amsgrad, "maximize": maximize})

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        for position, beta in enumerate(group["betas"]):
            if not 0 <= beta < 1:
                raise ValueError(f"{type(self).__name__}: betas[{position}] must be in [0, 1), got {beta}")
        if not group["eps"] >= 0:
            raise ValueError(f"{type(self).__name__}: eps must not be negative, got {group['eps']}")

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        by_step: dict[int, list[Tensor]] = {}  # a layer unfrozen later counts from its own start
        for p in params:
            state = self._state_of(p, group["amsgrad"])
            state["step"] += 1
            by_step.setdefault(state["step"], []).append(p)
        for step, members in by_step.items():
            self._update(group, members, step)

    def _state_of(self, p: Tensor, amsgrad: bool) -> dict[str, Any]:
        state = self.state.setdefault(p, {})
        if not state:
            state.update(step=0, exp_avg=_C.zeros_like(p.detach()), exp_avg_sq=_C.zeros_like(p.detach()))
        if amsgrad and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = _C.zeros_like(p.detach())
        return state

    def _update(self, group: dict[str, Any], params: list[Tensor], step: int) -> None:
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        _C.adam_step(
            params,
            gradients_of(params),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else None,
            step,
            group["lr"],
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            self.decoupled,
            group["maximize"],
        )


class AdamW(Adam):
    """Adam whose weight decay acts on the parameter itself: first p = p - lr * weight_decay * p.

    Loshchilov and Hutter 2019.
    """

    decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
