"""Stochastic gradient descent with momentum."""

from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn.utils import gradients_of
from fastnn.optim.optimizer import Optimizer, Params


class SGD(Optimizer):
    """Gradient descent::

        g = grad + weight_decay * p
        v = momentum * v + (1 - dampening) * g          (the first time v = g)
        p = p - lr * (g + momentum * v  if nesterov else  v)

    Without momentum p = p - lr * g. Polyak 1964; Sutskever et al. 2013.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, {**options, "weight_decay": weight_decay, "nesterov": nesterov, "maximize": maximize})

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        if not group["momentum"] >= 0:
            raise ValueError(f"SGD: momentum must not be negative, got {group['momentum']}")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if group["momentum"] == 0:
            self._update(group, params, None, True)
            return
        fresh = [p for p in params if "momentum_buffer" not in self.state.get(p, {})]
        moving = [p for p in params if "momentum_buffer" in self.state.get(p, {})]
        for p in fresh:
            self.state.setdefault(p, {})["momentum_buffer"] = _C.empty_like(p.detach())
        for members, first_step in ((fresh, True), (moving, False)):
            if members:
                self._update(group, members, [self.state[p]["momentum_buffer"] for p in members], first_step)

    @staticmethod
    def _update(group: dict[str, Any], params: list[Tensor], buffers: list[Tensor] | None, first_step: bool) -> None:
        _C.sgd_step(
            params,
            gradients_of(params),
            buffers,
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            first_step,
        )
