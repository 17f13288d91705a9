"""Dropout: active in training, the identity after ``eval()``. ValueError for a p outside [0, 1]."""

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn import functional as F
from fastnn.nn.arguments import probability
from fastnn.nn.module import Module


class Dropout(Module):
    """(...) -> (...): zeroes elements with probability p, scales the others by 1 / (1 - p). Srivastava et al. 2014."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = probability(f"{type(self).__name__}: p", p)

    def forward(self, input: Tensor) -> Tensor:
        return _C.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout1d(Dropout):
    """Dropout of whole channels of (N, C, L). Tompson et al. 2015."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout1d(input, self.p, self.training)


class Dropout2d(Dropout):
    """Dropout of whole channels of (N, C, H, W). Tompson et al. 2015."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout2d(input, self.p, self.training)
