"""Recurrent layers: RNN, LSTM and GRU over sequences. Their cells over one step are in ``recurrent_cell.py``.

Parameters, their names and layouts are PyTorch's: ``weight_ih_l{k}`` (gates * hidden, inputs), ``weight_hh_l{k}``
(gates * hidden, outputs), ``bias_ih_l{k}``, ``bias_hh_l{k}``, for an LSTM with a projection ``weight_hr_l{k}``
(outputs, hidden); ``_reverse`` is appended for the direction from the end. Gates are stacked as i, f, g, o and
r, z, n. All start uniform in +-1/sqrt(hidden_size). Each layer and direction is one kernel over all steps, whose
backward has no derivative of its own. With 16-bit parameters states stay float32 from step to step; outputs are
rounded.
"""

import warnings
from collections.abc import Iterable
from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.nn import init
from fastnn.nn.arguments import positive, probability
from fastnn.nn.module import Module, Parameter
from fastnn.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Sequences = Tensor | PackedSequence


class _Recurrent(Module):
    """What the three layers share."""

    _gates: int
    _cell: str  # as _C.recurrent calls it

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        input_dropout: float,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.input_size = positive("input_size", input_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.num_layers = positive("num_layers", num_layers)
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = probability("dropout", dropout)
        self.bidirectional = bidirectional
        self.input_dropout = probability("input_dropout", input_dropout)
        if not 0 <= proj_size < hidden_size:
            raise ValueError(f"proj_size must be 0 or less than hidden_size {hidden_size}, got {proj_size}")
        self.proj_size = proj_size
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers and does nothing with num_layers=1; "
                "input_dropout acts on the input of the first",
                stacklevel=3,
            )
        outputs, rows = proj_size or hidden_size, self._gates * hidden_size
        n_directions = 2 if bidirectional else 1
        self._names: list[list[str]] = []  # of the parameters of each layer and direction
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else outputs * n_directions
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, inputs), "weight_hh": (rows, outputs)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if proj_size:
                shapes["weight_hr"] = (proj_size, hidden_size)
            for suffix in ("", "_reverse")[:n_directions]:
                self._names.append([f"{name}_l{layer}{suffix}" for name in shapes])
                for name, shape in zip(self._names[-1], shapes.values(), strict=True):
                    setattr(self, name, Parameter(_C.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            init.fan_in_uniform_(parameter, self.hidden_size)

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._names]

    def flatten_parameters(self) -> None:
        """Does nothing: weights are packed by the kernels. For programs written for PyTorch."""

    def _weights(self, k: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """weight_ih, weight_hh, bias_ih, bias_hh, weight_hr of the k-th layer and direction."""
        found: list[Tensor] = [getattr(self, name) for name in self._names[k]]
        biases = (found[2], found[3]) if self.bias else (None, None)
        return found[0], found[1], *biases, found[-1] if self.proj_size else None

    def _masked(self, x: Tensor, batch_sizes: list[int]) -> Tensor:
        """The input with one dropout mask for all steps of a sequence. Gal and Ghahramani 2016."""
        if not self.training or self.input_dropout == 0:
            return x
        batch = batch_sizes[0] if batch_sizes else x.shape[0 if self.batch_first else 1]
        ones = _C.ones((batch, x.shape[-1]), dtype=x.dtype, device=x.device)
        mask = _C.dropout(ones, self.input_dropout, True)
        if batch_sizes:
            ids = [i for size in batch_sizes for i in range(size)]
            return x * _C.index_select(mask, 0, _C.tensor(ids, dtype=_C.int64))
        return x * mask.unsqueeze(1 if self.batch_first else 0)

    def _checked_state(
        self, name: str, state: Tensor | None, batch: int, width: int, order: Tensor | None
    ) -> list[Any]:
        """One state for each layer and direction, checked and in the order of the rows."""
        n_states = len(self._names)
        if state is None:
            return [None] * n_states
        if tuple(state.shape) != (n_states, batch, width):
            raise ValueError(
                f"{type(self).__name__}: {name} has shape {tuple(state.shape)}, but (layers * directions, batch, size) "
                f"= {(n_states, batch, width)} is expected"
            )
        if order is not None:
            state = _C.index_select(state, 1, order)
        return [state[k] for k in range(n_states)]

    def _run(self, x: Tensor, batch_sizes: list[int], h0: list[Any], c0: list[Any]) -> tuple[Tensor, list[Tensor]]:
        """All layers: the output, and the last states stacked by layer and direction."""
        n_directions = 2 if self.bidirectional else 1
        last: list[list[Tensor]] = []
        x = self._masked(x, batch_sizes)
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(n_directions):
                k = layer * n_directions + direction
                ih, hh, bias_ih, bias_hh, hr = self._weights(k)
                y, *states = _C.recurrent(
                    self._cell,
                    x,
                    ih,
                    hh,
                    bias_ih,
                    bias_hh,
                    hr,
                    h0[k],
                    c0[k],
                    self.batch_first,
                    direction == 1,
                    batch_sizes,
                )
                outputs.append(y)
                last.append(states)
            x = outputs[0] if n_directions == 1 else _C.cat(outputs, -1)
            if self.dropout > 0 and self.training and layer + 1 < self.num_layers:
                x = _C.dropout(x, self.dropout, True)
        if len(last) == 1:
            return x, [state.unsqueeze(0) for state in last[0]]
        return x, [_C.stack(states, 0) for states in zip(*last, strict=True)]

    def _sequences(
        self, x: Sequences, hx: list[Tensor | None], lengths: Tensor | Iterable[int] | None
    ) -> tuple[Any, list[Tensor]]:
        """Any form of input: packed, padded with lengths, a batch, or one sequence without a batch axis."""
        name = type(self).__name__
        if isinstance(x, PackedSequence):
            if lengths is not None:
                raise ValueError(f"{name}: lengths came with a PackedSequence, which has its own")
            return self._packed(x, hx)
        if x.dim() not in (2, 3):
            raise ValueError(f"{name}: a 2-D (unbatched) or 3-D input is expected, got shape {tuple(x.shape)}")
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"{name}: input of shape {tuple(x.shape)} has {x.shape[-1]} features, but input_size is "
                f"{self.input_size}"
            )
        if x.dim() == 2:
            if lengths is not None:
                raise ValueError(f"{name}: lengths are for a batch, and the input of shape {tuple(x.shape)} has none")
            axis = 0 if self.batch_first else 1
            wrong = [s for s in hx if s is not None and s.dim() != 2]
            if wrong:
                raise ValueError(
                    f"{name}: an unbatched input takes 2-D states (layers * directions, size), got shape "
                    f"{tuple(wrong[0].shape)}"
                )
            y, states = self._sequences(x.unsqueeze(axis), [s if s is None else s.unsqueeze(1) for s in hx], None)
            return y.squeeze(axis), [s.squeeze(1) for s in states]
        if lengths is not None:
            packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False)
            y, states = self._packed(packed, hx)
            return pad_packed_sequence(y, self.batch_first, total_length=x.shape[1 if self.batch_first else 0])[
                0
            ], states
        h0, c0 = self._first_states(hx, x.shape[0 if self.batch_first else 1], None)
        return self._run(x, [], h0, c0)

    def _first_states(self, hx: list[Tensor | None], batch: int, order: Tensor | None) -> list[list[Any]]:
        h0 = self._checked_state("h_0", hx[0], batch, self.proj_size or self.hidden_size, order)
        c0 = self._checked_state("c_0", hx[1] if len(hx) > 1 else None, batch, self.hidden_size, order)
        return [h0, c0]

    def _packed(self, x: PackedSequence, hx: list[Tensor | None]) -> tuple[PackedSequence, list[Tensor]]:
        sizes = x.batch_sizes.tolist()
        h0, c0 = self._first_states(hx, sizes[0], x.sorted_indices)
        y, states = self._run(x.data, sizes, h0, c0)
        if x.unsorted_indices is not None:
            states = [_C.index_select(s, 1, x.unsorted_indices) for s in states]
        return x._replace(data=y), states

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "input_dropout": 0.0,
        }
        return text + "".join(f", {k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v)


class RNN(_Recurrent):
    """h' = tanh(x W_ih^T + b_ih + h W_hh^T + b_hh), or relu with ``nonlinearity="relu"``. Elman 1990.

    Input (T, B, input_size), with ``batch_first`` (B, T, input_size), without a batch (T, input_size), or a
    PackedSequence; h_0 (layers * directions, B, hidden_size), zeros when left out. Returns the output, of the input's
    form with hidden_size * directions features, and h_n of h_0's shape. ``lengths`` (B,): the sequences end there;
    h_n is the state at their last valid step and the output beyond is zero. ``dropout`` acts between layers,
    ``input_dropout`` on the input with one mask for all steps. Wrong shapes raise ValueError.
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        input_dropout: float = 0.0,
    ) -> None:
        self._cell = rnn_cell(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            input_dropout,
            device,
            dtype,
        )

    def forward(
        self, input: Sequences, hx: Tensor | None = None, lengths: Tensor | Iterable[int] | None = None
    ) -> tuple[Any, Tensor]:
        output, (h_n,) = self._sequences(input, [hx], lengths)
        return output, h_n


class LSTM(_Recurrent):
    """c' = f c + i g, h' = o tanh(c'), with i, f, o = sigmoid and g = tanh of x W_ih^T + b_ih + h W_hh^T + b_hh.

    Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000. Input, output, ``lengths`` and dropouts
    as in ``RNN``; the state is (h_0, c_0), and (h_n, c_n) is returned with the output. With ``proj_size`` h' is
    projected to that many features by ``weight_hr`` (Sak et al. 2014).
    """

    _gates = 4
    _cell = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            input_dropout,
            device,
            dtype,
        )

    def forward(
        self,
        input: Sequences,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | Iterable[int] | None = None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        output, (h_n, c_n) = self._sequences(input, list(state_pair(hx)), lengths)
        return output, (h_n, c_n)


class GRU(_Recurrent):
    """h' = (1 - z) n + z h, with r, z = sigmoid(x W_ih^T + b_ih + h W_hh^T + b_hh). Cho et al. 2014.

    With ``reset_after`` (the default, as in PyTorch and Keras) n = tanh(x W_in^T + b_in + r (h W_hn^T + b_hn));
    without, the reset comes before the product, as in the paper: n = tanh(x W_in^T + b_in + (r h) W_hn^T + b_hn).
    Texts that write h' = z n + (1 - z) h have the z weights and biases negated. Input, state, output, ``lengths`` and
    dropouts as in ``RNN``.
    """

    _gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
        input_dropout: float = 0.0,
    ) -> None:
        self._cell = "gru" if reset_after else "gru_reset_before"
        self.reset_after = reset_after
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            input_dropout,
            device,
            dtype,
        )

    def forward(
        self, input: Sequences, hx: Tensor | None = None, lengths: Tensor | Iterable[int] | None = None
    ) -> tuple[Any, Tensor]:
        output, (h_n,) = self._sequences(input, [hx], lengths)
        return output, h_n

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


def rnn_cell(nonlinearity: str) -> str:
    """The name of an RNN's cell, as ``_C.recurrent`` calls it."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return f"rnn_{nonlinearity}"


def state_pair(hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    """An LSTM's (h, c), or None for each."""
    if hx is None:
        return None, None
    if isinstance(hx, Tensor) or len(hx) != 2:
        raise TypeError(f"an LSTM's state is a pair (h_0, c_0), got {type(hx).__name__}")
    return hx[0], hx[1]
