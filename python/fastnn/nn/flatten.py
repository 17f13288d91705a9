"""Layers that only change the shape."""

from math import prod

from fastnn._C import Tensor
from fastnn.nn.module import Module


class Flatten(Module):
    """(N, ...) -> (N, product): joins the axes ``start_dim`` to ``end_dim``, by default all but the batch."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Splits the axis ``dim`` into ``unflattened_size``, of which one may be -1."""

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]) -> None:
        super().__init__()
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, input: Tensor) -> Tensor:
        shape = tuple(input.shape)
        axis = self.dim + len(shape) if self.dim < 0 else self.dim
        if not 0 <= axis < len(shape):
            raise IndexError(f"Unflatten: axis {self.dim} does not exist in shape {shape}")
        parts = self.unflattened_size
        if shape[axis] != prod(parts) and -1 not in parts:
            raise ValueError(f"Unflatten: axis {self.dim} of size {shape[axis]} cannot be split into {parts}")
        return input.reshape(shape[:axis] + parts + shape[axis + 1 :])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
