"""Stochastic gradient descent with momentum."""

from typing import Any, Unpack

from fastnn._C import Tensor
from fastnn.optim.optimizer import Implementation, Optimizer, Params


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
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov, "maximize": maximize}, **implementation)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        self._check_not_negative(group, "momentum")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        if momentum == 0:
            self._update("descent", group, params, (), [lr])
            return
        rule, states = "nesterov" if group["nesterov"] else "momentum", ("momentum_buffer",)
        fresh = [p for p in params if "momentum_buffer" not in self.state.get(p, {})]
        moving = [p for p in params if "momentum_buffer" in self.state.get(p, {})]
        if fresh:
            self._update(rule, group, fresh, states, [lr, momentum, 0.0, 1.0])
        if moving:
            self._update(rule, group, moving, states, [lr, momentum, momentum, 1 - group["dampening"]])
