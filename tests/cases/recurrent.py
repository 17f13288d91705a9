"""One recurrent layer and direction over a sequence."""

import numpy as np

import reference as ref
from cases.case import Case, Values, error, f32, sample

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
values = Values(23)


def _weights(cell, inputs, hidden, outputs, bias=True, projection=False):
    """Rows that add up to at most one: then an error does not grow from step to step."""
    rows = GATES[cell] * hidden
    return (
        values.uniform(-1 / inputs, 1 / inputs, rows, inputs),
        values.uniform(-1 / outputs, 1 / outputs, rows, outputs),
        *((values.uniform(-1, 1, rows), values.uniform(-1, 1, rows)) if bias else (None, None)),
        values.uniform(-1 / hidden, 1 / hidden, outputs, hidden) if projection else None,
    )


def _sample(cell, shape, hidden, outputs=0, bias=True, state=True, **kwargs):
    sizes = kwargs.get("batch_sizes")
    batch = sizes[0] if sizes else shape[0 if kwargs.get("batch_first") else 1]
    weights = _weights(cell, shape[-1], hidden, outputs or hidden, bias, bool(outputs))
    h0 = values.uniform(-1, 1, batch, outputs or hidden) if state else None
    c0 = values.uniform(-1, 1, batch, hidden) if state and cell == "lstm" else None
    return sample(cell, values.normal(*shape), *weights, h0, c0, **kwargs)


SAMPLES = [
    s
    for cell in GATES
    for s in (
        _sample(cell, (4, 3, 5), 7),
        _sample(cell, (2, 5, 3), 37, batch_first=True, reverse=True, bias=False, state=False),
        _sample(cell, (8, 4), 6, batch_sizes=[3, 2, 2, 1]),
        _sample(cell, (8, 4), 33, batch_sizes=[3, 3, 1, 1], reverse=True),
    )
]
SAMPLES += [
    _sample("lstm", (3, 2, 4), 6, outputs=3),
    _sample("lstm", (6, 3), 5, outputs=2, reverse=True, batch_sizes=[3, 2, 1]),
    _sample("gru", (1, 1, 1), 1),
    _sample("gru", (2, 0, 3), 4),
]


def _terms(cell, x, weight_ih, weight_hh, *rest, **kwargs):
    return weight_ih.shape[1] + weight_hh.shape[1]


def _magnitude(cell, x, weight_ih, weight_hh, bias_ih=None, *rest, **kwargs):
    """A gate's terms add up to at most max |x| + 1 + biases; each step adds their errors to those of the one before."""
    n_steps = len(kwargs.get("batch_sizes") or ()) or x.shape[1 if kwargs.get("batch_first") else 0]
    return n_steps * (np.abs(x).max(initial=0) + 1 + (2 if bias_ih is not None else 0))


def _large():
    return "lstm", values.normal(3, 70, 40), *_weights("lstm", 40, 100, 100)


def _error(kind, pattern, *args, **kwargs):
    return error(kind, pattern, "lstm", *args, **kwargs)


CASES = [
    Case(
        "recurrent",
        ref.recurrent,
        SAMPLES,
        call=lambda lib, *args, **kwargs: lib._C.recurrent(*args, **kwargs),
        torch=False,
        dtypes=("float32", "float64"),  # 16-bit states are rounded at each step: tests/test_recurrent.py
        terms=_terms,
        magnitude=_magnitude,
        large=_large,
        errors=[
            error(ValueError, "rnn_tanh.*'peephole'", "peephole", f32(2, 3, 4), f32(5, 4), f32(5, 5)),
            _error(ValueError, r"lstm.*3-D.*\(3, 4\)", f32(3, 4), f32(8, 4), f32(8, 2)),
            _error(ValueError, r"lstm.*at least one step.*\(0, 3, 4\)", f32(0, 3, 4), f32(8, 4), f32(8, 2)),
            _error(ValueError, r"lstm.*7 rows.*multiple of 4", f32(2, 3, 4), f32(7, 4), f32(7, 2)),
            _error(ValueError, r"lstm.*4 features.*\(8, 5\) expects 5", f32(2, 3, 4), f32(8, 5), f32(8, 2)),
            _error(ValueError, r"weight_hh has shape \(12, 2\).*\(8, 2\)", f32(2, 3, 4), f32(8, 4), f32(12, 2)),
            _error(ValueError, r"bias_hh has shape \(4,\)", f32(2, 3, 4), f32(8, 4), f32(8, 2), f32(8), f32(4)),
            _error(ValueError, "both biases", f32(2, 3, 4), f32(8, 4), f32(8, 2), f32(8)),
            _error(
                ValueError,
                r"h_0 has shape \(2, 2\).*\(3, 2\)",
                f32(2, 3, 4),
                f32(8, 4),
                f32(8, 2),
                None,
                None,
                None,
                f32(2, 2),
            ),
            _error(ValueError, "not increase, got 3 after 2", f32(5, 4), f32(8, 4), f32(8, 2), batch_sizes=[2, 3]),
            _error(ValueError, "add up to 4, but.*5", f32(5, 4), f32(8, 4), f32(8, 2), batch_sizes=[2, 2]),
            _error(ValueError, "more than the 5", f32(5, 4), f32(8, 4), f32(8, 2), batch_sizes=[2**62, 2**62]),
            _error(TypeError, "int64", np.ones((2, 3, 4), np.int64), f32(8, 4), f32(8, 2)),
            error(ValueError, "only an LSTM", "gru", f32(2, 3, 4), f32(6, 4), f32(6, 2), *[None] * 4, f32(3, 2)),
            error(ValueError, "only an LSTM", "gru", f32(2, 3, 4), f32(6, 4), f32(6, 2), None, None, f32(2, 2)),
        ],
    ),
]
