"""Recurrent layers, a step at a time."""

import numpy as np

Array = np.ndarray


def recurrent(
    cell: str,
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih=None,
    bias_hh=None,
    weight_hr=None,
    h0=None,
    c0=None,
    batch_first: bool = False,
    reverse: bool = False,
    batch_sizes=(),
) -> list[Array]:
    """One layer and direction, a row and a step at a time: [output, h_n], and c_n of an LSTM."""
    gates = {"lstm": 4, "gru": 3, "gru_reset_before": 3}.get(cell, 1)
    hidden, outputs = weight_hh.shape[0] // gates, weight_hh.shape[1]
    bias_ih = np.zeros(gates * hidden) if bias_ih is None else bias_ih
    bias_hh = np.zeros(gates * hidden) if bias_hh is None else bias_hh
    if batch_sizes:
        begins = np.cumsum([0, *batch_sizes])
        places = [[(begins[t] + b,) for t, n in enumerate(batch_sizes) if b < n] for b in range(batch_sizes[0])]
    else:
        n_steps, batch = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
        places = [[(b, t) if batch_first else (t, b) for t in range(n_steps)] for b in range(batch)]
    y = np.zeros((*x.shape[:-1], outputs))
    h_n, c_n = np.zeros((len(places), outputs)), np.zeros((len(places), hidden))
    for b, steps in enumerate(places):
        h = np.zeros(outputs) if h0 is None else h0[b]
        c = np.zeros(hidden) if c0 is None else c0[b]
        for place in reversed(steps) if reverse else steps:
            h, c = _cell(cell, weight_ih @ x[place] + bias_ih, weight_hh, bias_hh, weight_hr, h, c)
            y[place] = h
        h_n[b], c_n[b] = h, c
    return [y, h_n, c_n] if cell == "lstm" else [y, h_n]


def _cell(cell: str, gx: Array, weight_hh: Array, bias_hh: Array, weight_hr, h: Array, c: Array) -> tuple[Array, Array]:
    def sigmoid(v: Array) -> Array:
        return 1 / (1 + np.exp(-v))

    gh = weight_hh @ h + bias_hh
    if cell == "lstm":
        i, f, g, o = np.split(gx + gh, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return (h if weight_hr is None else weight_hr @ h), c
    if cell.startswith("rnn"):
        return (np.tanh(gx + gh) if cell == "rnn_tanh" else np.maximum(gx + gh, 0)), c
    n_units = len(h)
    r, z = np.split(sigmoid((gx + gh)[: 2 * n_units]), 2)
    if cell == "gru":
        n = np.tanh(gx[2 * n_units :] + r * gh[2 * n_units :])
    else:
        n = np.tanh(gx[2 * n_units :] + weight_hh[2 * n_units :] @ (r * h) + bias_hh[2 * n_units :])
    return (1 - z) * n + z * h, c
