"""Gradients clipped, parameters as one vector and back."""

from collections.abc import Iterable

from fastnn import _C
from fastnn._C import Tensor
from fastnn.autograd import no_grad


def gradients_of(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The gradients that are there."""
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [grad for p in tensors if (grad := p.grad) is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scales all gradients together so that their total norm is at most ``max_norm``; returns the norm before.

    Pascanu et al. 2013. RuntimeError for a norm that is not finite, with ``error_if_nonfinite``.
    """
    return _C.clip_grad_norm_(gradients_of(parameters), max_norm, norm_type, error_if_nonfinite)


@no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clips every element of the gradients to [-clip_value, clip_value], in place."""
    for gradient in gradients_of(parameters):
        gradient.clamp_(-clip_value, clip_value)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters, flattened and joined: a tensor of one dimension."""
    return _C.cat([p.reshape(-1) for p in parameters])


@no_grad()
def vector_to_parameters(vector: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copies the parts of one vector into the parameters, in their order. ValueError for another length."""
    tensors = list(parameters)
    total = sum(p.numel() for p in tensors)
    if vector.dim() != 1 or vector.numel() != total:
        raise ValueError(
            f"vector_to_parameters: a vector of {total} values is expected, got shape {tuple(vector.shape)}"
        )
    begin = 0
    for parameter in tensors:
        end = begin + parameter.numel()
        parameter.copy_(vector[begin:end].reshape(parameter.shape))
        begin = end
