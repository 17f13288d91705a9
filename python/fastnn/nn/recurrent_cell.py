"""One step of the recurrent layers: ``RNNCell``, ``LSTMCell`` and ``GRUCell``.

Parameters are those of a layer and direction of ``recurrent.py`` without the ``_l0``, and start the same. Each step is
the layer's kernel over a sequence of one.
"""

from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn import init
from fastnn.nn.arguments import positive
from fastnn.nn.module import Module, Parameter
from fastnn.nn.recurrent import rnn_cell, state_pair


class _Cell(Module):
    """What the three cells share."""

    _gates: int
    _cell: str

    def __init__(self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        self.input_size = positive("input_size", input_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.bias = bias
        rows = self._gates * hidden_size
        self.weight_ih = Parameter(_C.empty((rows, input_size), device=device, dtype=dtype))
        self.weight_hh = Parameter(_C.empty((rows, hidden_size), device=device, dtype=dtype))
        self.bias_ih = Parameter(_C.empty((rows,), device=device, dtype=dtype)) if bias else None
        self.bias_hh = Parameter(_C.empty((rows,), device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            init.fan_in_uniform_(parameter, self.hidden_size)

    def _step(self, x: Tensor, h: Tensor | None, c: Tensor | None = None) -> list[Tensor]:
        """The states after one step of (B, input_size), or of (input_size,)."""
        name = type(self).__name__
        if x.dim() not in (1, 2):
            raise ValueError(f"{name}: an input (B, input_size) or (input_size,) is expected, got {tuple(x.shape)}")
        if x.dim() == 1:
            batched = [s if s is None else s.unsqueeze(0) for s in (h, c)]
            return [s.squeeze(0) for s in self._step(x.unsqueeze(0), *batched)]
        _, *states = _C.recurrent(
            self._cell, x.unsqueeze(0), self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None, h, c
        )
        return states

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        return text if self.bias else f"{text}, bias=False"


class RNNCell(_Cell):
    """One step of ``RNN``: input (B, input_size) and h (B, hidden_size), zeros when left out -> h'.

    Both may come without the batch axis.
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self._cell = rnn_cell(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step(input, hx)[0]


class LSTMCell(_Cell):
    """One step of ``LSTM``: input (B, input_size) and (h, c), each (B, hidden_size) -> (h', c')."""

    _gates = 4
    _cell = "lstm"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self._step(input, *state_pair(hx))
        return h, c


class GRUCell(_Cell):
    """One step of ``GRU``, with ``reset_after`` as there: input (B, input_size) and h (B, hidden_size) -> h'."""

    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
    ) -> None:
        self._cell = "gru" if reset_after else "gru_reset_before"
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step(input, hx)[0]
