"""Lion: steps of one size, in the direction of an average's sign."""

from typing import Any, Unpack

from fastnn._C import Tensor
from fastnn.optim.optimizer import Implementation, Optimizer, Params


class Lion(Optimizer):
    """Chen et al. 2023, algorithm 2; weight decay acts on the parameter itself::

        p = p - lr * weight_decay * p - lr * sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g

    Its rate is commonly 3 to 10 times smaller than AdamW's, its weight decay as much larger.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **implementation: Unpack[Implementation],
    ) -> None:
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options, **implementation)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        for position, beta in enumerate(group["betas"]):
            self._check_beta(f"betas[{position}]", beta)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        self._update("lion", group, params, ("exp_avg",), [beta1, beta2, group["lr"]], decoupled=True)
