"""Adam and its relatives: steps scaled by running moments of the gradient."""

from typing import Any, Unpack

from fastnn._C import Tensor
from fastnn.optim.optimizer import Count, Implementation, Optimizer, Params


class _Moments(Optimizer):
    """What the relatives share: ``betas`` and ``eps``, and a fused step of all that have taken as many steps."""

    states: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        for position, beta in enumerate(group["betas"]):
            self._check_beta(f"betas[{position}]", beta)
        self._check_not_negative(group, "eps")

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for step, members in self._by_step(group, params):
            self._step_members(group, members, step)

    def _step_members(self, group: dict[str, Any], params: list[Tensor], step: Count) -> None:
        raise NotImplementedError


class Adam(_Moments):
    """Adaptive moments, Kingma and Ba 2015, algorithm 1::

        g = grad + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    With ``amsgrad`` the largest v so far takes the place of v. Reddi et al. 2018.
    ``decoupled_weight_decay``: as AdamW.
    """

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
        decoupled_weight_decay: bool = False,
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        options |= {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, options, **implementation)

    def _step_members(self, group: dict[str, Any], params: list[Tensor], step: Count) -> None:
        amsgrad = group["amsgrad"]
        self._update(
            "amsgrad" if amsgrad else "adam",
            group,
            params,
            (*self.states, "max_exp_avg_sq") if amsgrad else self.states,
            [*group["betas"], group["lr"], group["eps"]],
            group["decoupled_weight_decay"],
            step,
        )


class AdamW(Adam):
    """Adam whose weight decay acts on the parameter itself: first p = p - lr * weight_decay * p.

    Loshchilov and Hutter 2019.
    """

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
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"maximize": maximize, "decoupled_weight_decay": True}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options, **implementation)


class NAdam(_Moments):
    """Adam with Nesterov's momentum, whose strength mu grows with the steps. Dozat 2016::

    mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2)
    p = p - lr * ((1 - mu_t) * g / (1 - mu_1 ... mu_t) + mu_(t+1) * m / (1 - mu_1 ... mu_(t+1)))
               / (sqrt(v / (1 - beta2^t)) + eps)

    The product of mu is kept by the host, so that a step cannot be captured.
    """

    _capture_advice = "capture the forward and backward pass only, and call step() after each replay"

    def __init__(
        self,
        params: Params,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options |= {"momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, {**options, "maximize": maximize}, **implementation)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        self._check_not_negative(group, "momentum_decay")

    def _counts_on_gpu(self, group: dict[str, Any], p: Tensor) -> bool:
        return False

    def _step_members(self, group: dict[str, Any], params: list[Tensor], step: Count) -> None:
        assert isinstance(step, int)
        (beta1, beta2), lr, decay = group["betas"], group["lr"], group["momentum_decay"]
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in (step, step + 1))
        by_product: dict[float, list[Tensor]] = {}  # parameters of one age, unless their options ever differed
        for p in params:
            self.state[p]["mu_product"] = product = self.state[p].get("mu_product", 1.0) * mu
            by_product.setdefault(product, []).append(p)
        for product, members in by_product.items():
            of_g, of_m = lr * (1 - mu) / (1 - product), lr * mu_next / (1 - product * mu_next)
            coefficients = [beta1, beta2, of_g, of_m, group["eps"]]
            self._update("nadam", group, members, self.states, coefficients, group["decoupled_weight_decay"], step)


class RAdam(_Moments):
    """Adam that starts with plain averages until the variance of its step is tractable. Liu et al. 2020."""

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, {**options, "decoupled_weight_decay": decoupled_weight_decay}, **implementation)

    def _step_members(self, group: dict[str, Any], params: list[Tensor], step: Count) -> None:
        coefficients = [*group["betas"], group["lr"], group["eps"]]
        self._update("radam", group, params, self.states, coefficients, group["decoupled_weight_decay"], step)


class Adamax(_Moments):
    """Adam with the infinity norm, Kingma and Ba 2015, algorithm 2::

    m = beta1 * m + (1 - beta1) * g
    u = max(beta2 * u, |g| + eps)
    p = p - lr / (1 - beta1^t) * m / u
    """

    states = ("exp_avg", "exp_inf")

    def __init__(
        self,
        params: Params,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options, **implementation)

    def _step_members(self, group: dict[str, Any], params: list[Tensor], step: Count) -> None:
        coefficients = [*group["betas"], group["lr"], group["eps"]]
        self._update("adamax", group, params, self.states, coefficients, step=step)
