"""Embedding: a table of rows looked up by integer ids."""

from typing import Any, Self

from fastnn import _C
from fastnn._C import Tensor
from fastnn.autograd import no_grad
from fastnn.nn import init
from fastnn.nn.functional import checked_padding_idx
from fastnn.nn.module import Module, Parameter


class Embedding(Module):
    """Integer ids (...) -> (..., embedding_dim). The weight (num_embeddings, embedding_dim) starts normal.

    The row ``padding_idx`` starts as zeros and gets no gradient. An id outside the table raises IndexError.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = None if padding_idx is None else checked_padding_idx(padding_idx, num_embeddings)
        self._row = -1 if self.padding_idx is None else self.padding_idx
        self.weight = Parameter(_C.empty((num_embeddings, embedding_dim), device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None) -> Self:
        """A layer over an existing table (V, D), whose memory it shares; by default not trained further."""
        if embeddings.dim() != 2:
            raise ValueError(f"Embedding: a table (V, D) is expected, got shape {tuple(embeddings.shape)}")
        layer = cls(embeddings.shape[0], embeddings.shape[1], padding_idx)
        layer.weight = Parameter(embeddings.detach(), requires_grad=not freeze)
        return layer

    def reset_parameters(self) -> None:
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx].zero_()

    def forward(self, input: Tensor) -> Tensor:
        return _C.embedding(input, self.weight, self._row)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"
