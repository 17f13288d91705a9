"""Averages of a model's weights over training: exponential (EMA) or equal (SWA, Izmailov et al. 2018)."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.autograd import no_grad
from fastnn.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastnn.nn.module import Module
from fastnn.optim.lr_scheduler import LRScheduler
from fastnn.optim.optimizer import Optimizer

AverageFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
MultiAverageFunction = Callable[[list[Tensor], list[Tensor], Tensor], None]


def _check_decay(decay: float) -> None:
    if not 0 <= decay <= 1:
        raise ValueError(f"the decay of an average must be in [0, 1], got {decay}")


def _move(averaged: list[Tensor], current: list[Tensor], share: float) -> None:
    """averaged += share * (current - averaged): one fused call for each dtype."""
    by_dtype: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for mean, value in zip(averaged, current, strict=True):
        pair = by_dtype.setdefault((mean.dtype, mean.device), ([], []))
        pair[0].append(mean)
        pair[1].append(value.to(mean.dtype))
    for means, values in by_dtype.values():
        if means[0].is_floating_point():
            _C.optimizer_step("average", means, values, [], [share])
        else:
            for mean, value in zip(means, values, strict=True):
                mean.copy_(mean.double().lerp(value.double(), share))


def get_ema_multi_avg_fn(decay: float = 0.999) -> MultiAverageFunction:
    """mean = decay * mean + (1 - decay) * value, for whole lists. ValueError for a decay outside [0, 1]."""
    _check_decay(decay)
    return no_grad()(lambda averaged, current, n_averaged: _move(averaged, current, 1 - decay))


def get_swa_multi_avg_fn() -> MultiAverageFunction:
    """The equal average of all values so far, for whole lists."""
    return no_grad()(lambda averaged, current, n_averaged: _move(averaged, current, 1 / (int(n_averaged) + 1)))


def get_ema_avg_fn(decay: float = 0.999) -> AverageFunction:
    """decay * mean + (1 - decay) * value, for one tensor. ValueError for a decay outside [0, 1]."""
    _check_decay(decay)
    return no_grad()(lambda averaged, current, n_averaged: decay * averaged + (1 - decay) * current)


def get_swa_avg_fn() -> AverageFunction:
    """The equal average of all values so far, for one tensor."""
    return no_grad()(lambda averaged, current, n_averaged: averaged + (current - averaged) / (n_averaged + 1))


class AveragedModel(Module):
    """A copy of a model that follows an average of its parameters::

        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        ...                                             # after every optimizer.step():
        ema.update_parameters(model)

    Without a function the average is equal (SWA). Buffers are copied, or with ``use_buffers`` averaged too.
    ``state_dict`` keys: ``n_averaged`` and ``module.*``. ValueError when both functions are given.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: Module,
        device: Any = None,
        avg_fn: AverageFunction | None = None,
        multi_avg_fn: MultiAverageFunction | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise ValueError("AveragedModel: give avg_fn or multi_avg_fn, not both")
        self.module = copy.deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", _C.zeros((), dtype=_C.int64, device=device))
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn
        self.use_buffers = use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def _tensors(self, model: Module) -> list[Tensor]:
        both = itertools.chain(model.parameters(), model.buffers()) if self.use_buffers else model.parameters()
        return [x.detach() for x in both]

    @no_grad()
    def update_parameters(self, model: Module) -> None:
        """Takes the model's present parameters into the average; the first time copies them."""
        averaged = self._tensors(self.module)
        current = [x.to(mean.device) for mean, x in zip(averaged, self._tensors(model), strict=True)]
        if int(self.n_averaged) == 0:
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)
        elif self.avg_fn is not None:
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(self.avg_fn(mean, value, self.n_averaged))
        else:
            (self.multi_avg_fn or get_swa_multi_avg_fn())(averaged, current, self.n_averaged)
        if not self.use_buffers:
            for mean, value in zip(self.module.buffers(), model.buffers(), strict=True):
                mean.copy_(value.to(mean.device))
        self.n_averaged.add_(1)


@no_grad()
def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Recomputes the running statistics of the batch norms with one pass over the data.

    A batch is a tensor, or a list or tuple whose first item it is.
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm1d | BatchNorm2d | BatchNorm3d)]
    if not norms:
        return
    momenta, was_training = [norm.momentum for norm in norms], model.training
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        for batch in loader:
            x = batch[0] if isinstance(batch, list | tuple) else batch
            model(x if device is None else x.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)


class SWALR(LRScheduler):
    """From the present rates to ``swa_lr`` within ``anneal_epochs``, then constant. One rate, or one for each group.

    ``anneal_strategy``: "cos" or "linear"; ValueError for another.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ) -> None:
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"SWALR: anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
        if anneal_epochs < 0:
            raise ValueError(f"SWALR: anneal_epochs must not be negative, got {anneal_epochs}")
        n_groups = len(optimizer.param_groups)
        self.swa_lrs = list(swa_lr) if isinstance(swa_lr, list | tuple) else [swa_lr] * n_groups
        if len(self.swa_lrs) != n_groups:
            raise ValueError(f"SWALR: {len(self.swa_lrs)} rates for {n_groups} parameter groups")
        self.start_lrs = [group["lr"] for group in optimizer.param_groups]
        self.anneal_epochs = anneal_epochs
        self.anneal_strategy = anneal_strategy
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        share = max(0.0, min(1.0, self.last_epoch / max(1, self.anneal_epochs)))
        if self.anneal_strategy == "cos":
            share = (1 - math.cos(math.pi * share)) / 2
        return [end * share + start * (1 - share) for start, end in zip(self.start_lrs, self.swa_lrs, strict=True)]
