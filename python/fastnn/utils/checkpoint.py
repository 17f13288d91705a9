"""Activation checkpointing: memory for time. Chen et al. 2016, "Training deep nets with sublinear memory cost"."""

from collections.abc import Callable
from typing import Any

from fastnn import _C
from fastnn._C import Tensor, get_rng_state, set_rng_state
from fastnn.autograd import Function, backward, enable_grad


class _Checkpoint(Function):
    """Forward keeps only the inputs; backward runs the function again, now recorded, and goes through it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, function: Callable[..., Any], kwargs: dict[str, Any], *args: Any) -> Any:
        ctx.function, ctx.kwargs = function, kwargs
        ctx.rng_state = get_rng_state()
        ctx.others = [None if isinstance(a, Tensor) else a for a in args]
        ctx.is_tensor = [isinstance(a, Tensor) for a in args]
        ctx.save_for_backward(*(a for a in args if isinstance(a, Tensor)))
        return function(*args, **kwargs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        args = []
        for is_tensor, other in zip(ctx.is_tensor, ctx.others, strict=True):
            if is_tensor:
                tensor = next(saved)
                other = tensor.detach().requires_grad_(tensor.requires_grad)
            args.append(other)
        now = get_rng_state()
        set_rng_state(ctx.rng_state)  # the same dropout masks as in the forward
        try:
            with enable_grad():
                outputs = ctx.function(*args, **ctx.kwargs)
        finally:
            set_rng_state(now)
        results = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        reached = [(y, dy) for y, dy in zip(results, grads, strict=True) if dy is not None and y.requires_grad]
        if reached:
            backward([y for y, _ in reached], [dy for _, dy in reached])
        return (None, None, None, *(a.grad if isinstance(a, Tensor) else None for a in args))


def checkpoint(function: Callable[..., Any], *args: Any, use_reentrant: bool | None = None, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)`` whose intermediate results are computed again in the backward.

    The random state is put back for the second run, so dropout is the same. The gradients of the
    parameters that ``function`` uses go straight into their ``.grad``: use ``backward``, not
    ``autograd.grad``, for them. Gradients with respect to keyword arguments are not computed.
    ``use_reentrant`` is taken for PyTorch's sake; there is one way here.
    """
    anchor = _C.zeros((), requires_grad=True)  # keeps the output recorded when only parameters need gradients
    return _Checkpoint.apply(anchor, function, kwargs, *args)
