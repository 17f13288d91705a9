"""Steps scaled by the size of past gradients: Adagrad, Adadelta, RMSprop."""

from typing import Any, Unpack

from fastnn._C import Tensor
from fastnn.optim.optimizer import Implementation, Optimizer, Params


class _Adaptive(Optimizer):
    """What they share: options of which none may be negative."""

    def _check_options(self, group: dict[str, Any]) -> None:
        self._check_not_negative(group, *(name for name, value in self.defaults.items() if not isinstance(value, bool)))


class Adagrad(_Adaptive):
    """Duchi et al. 2011::

    s = s + g^2                                     (the first time s = initial_accumulator_value + g^2)
    p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "maximize": maximize}
        super().__init__(params, {**options, "initial_accumulator_value": initial_accumulator_value}, **implementation)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        coefficients = [group["lr"], group["lr_decay"], group["eps"]]
        for step, members in self._by_step(group, params):
            self._state_of(members, "sum", group["initial_accumulator_value"])
            self._update("adagrad", group, members, ("sum",), coefficients, step=step)


class Adadelta(_Adaptive):
    """Zeiler 2012::

    v = rho * v + (1 - rho) * g^2
    d = sqrt(a + eps) / sqrt(v + eps) * g
    a = rho * a + (1 - rho) * d^2
    p = p - lr * d
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options, **implementation)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        if not group["rho"] <= 1:
            raise ValueError(f"Adadelta: rho must be in [0, 1], got {group['rho']}")

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        coefficients = [group["rho"], group["lr"], group["eps"]]
        for step, members in self._by_step(group, params):
            self._update("adadelta", group, members, ("square_avg", "acc_delta"), coefficients, step=step)


class RMSprop(_Adaptive):
    """Tieleman and Hinton 2012; ``centered``: Graves 2013::

    v = alpha * v + (1 - alpha) * g^2
    a = alpha * a + (1 - alpha) * g                 (centered: sqrt(v - a^2) in place of sqrt(v))
    b = momentum * b + g / (sqrt(v) + eps)
    p = p - lr * b
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**options, "centered": centered, "maximize": maximize}, **implementation)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        rule, states = "rmsprop", ["square_avg"]
        if group["centered"]:
            rule, states = f"{rule}_centered", [*states, "grad_avg"]
        if group["momentum"] > 0:
            rule, states = f"{rule}_momentum", [*states, "momentum_buffer"]
        coefficients = [group["alpha"], group["lr"], group["eps"], group["momentum"]]
        for step, members in self._by_step(group, params):
            self._update(rule, group, members, states, coefficients, step=step)
