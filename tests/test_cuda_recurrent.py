"""Recurrent layers on CUDA: tiles, launches, sequences in a graph. Their values are in test_cuda_ops.py."""

from typing import Any

import numpy as np
import pytest

import fastnn
from fastnn import nn
from fastnn.nn.utils import rnn
from helpers import gpu


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@gpu
@pytest.mark.parametrize(("dtype", "roundoff"), [("float32", 2.0**-24), ("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
@pytest.mark.parametrize(("kind", "hidden"), [("LSTM", 72), ("GRU", 72), ("LSTM", 32), ("GRU", 32)])
def test_tiles(kind: str, hidden: int, dtype: str, roundoff: float) -> None:
    """Packed rows of more than one tile, read 16 bytes at a time, against float64 on the CPU.

    In the emulation, of four processors, 32 units are walked by one kernel, and 72 take a kernel a step.
    """
    small = getattr(fastnn, dtype)
    layer = getattr(nn, kind)(16, hidden, bias=False, dtype=small)
    batch_sizes = fastnn.tensor([40, 33, 2, 1])
    x, dy = (fastnn.from_numpy(normal(76, n)).to(small) for n in (16, hidden))
    seen = []
    for where in ({"dtype": fastnn.float64}, *[{"dtype": small, "device": "cuda"}] * 2):
        layer = layer.to(**where)
        layer.zero_grad()
        leaf = x.to(**where).detach().requires_grad_()
        y, state = layer(rnn.PackedSequence(leaf, batch_sizes))
        y.data.backward(dy.to(**where))
        results = [y.data, state[0] if kind == "LSTM" else state, leaf.grad, *(p.grad for p in layer.parameters())]
        seen.append([v.detach().cpu().double().numpy() for v in results])
    # A state is rounded each step, its products with weights below 1 / sqrt(hidden) carry that on, four steps add up.
    for want, got, again in zip(*seen, strict=True):
        np.testing.assert_array_equal(got, again)
        assert np.abs(got - want).max() <= 4 * np.sqrt(hidden) * roundoff * np.abs(want).max()


@gpu
def test_a_captured_sequence_replays() -> None:
    """Everything that a kernel learns of a packed sequence travels with its launch."""
    lstm = nn.LSTM(8, 16).to("cuda")
    batch_sizes = fastnn.tensor([3, 2, 1])
    x, fresh = (fastnn.from_numpy(normal(6, 8, seed=seed)).float().to("cuda") for seed in (1, 2))
    expected = [lstm(rnn.PackedSequence(v, batch_sizes))[0].data.detach().cpu().numpy() for v in (x, fresh)]
    graph = fastnn.cuda.CUDAGraph()
    with fastnn.no_grad(), fastnn.cuda.graph(graph):
        y = lstm(rnn.PackedSequence(x, batch_sizes))[0].data
    for data, want in zip((None, fresh), expected, strict=True):
        if data is not None:
            x.copy_(data)
        graph.replay()
        np.testing.assert_array_equal(y.cpu().numpy(), want)


def training_nodes(layer: nn.Module, n_steps: int) -> int:
    """Kernels, copies and fills of a forward and a backward pass."""
    x = fastnn.zeros(n_steps, 2, 8, device="cuda")
    graph = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(graph):
        layer(x)[0].sum().backward()
    for p in layer.parameters():
        p.grad = None
    return graph.node_count()


@gpu
@pytest.mark.parametrize(
    ("kind", "options"), [("RNN", {}), ("LSTM", {}), ("GRU", {}), ("LSTM", {"proj_size": 8})], ids=str
)
def test_a_sequence_of_any_length_takes_one_launch_each_way(kind: str, options: dict[str, Any]) -> None:
    layer = getattr(nn, kind)(8, 32, **options).to("cuda")
    assert training_nodes(layer, 3) == training_nodes(layer, 9)


@gpu
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_step_of_a_wide_layer_takes_one_launch_each_way(kind: str) -> None:
    """In the emulation, of four processors, 72 units are too many for one walk."""
    layer = getattr(nn, kind)(8, 72).to("cuda")
    more = training_nodes(layer, 9) - training_nodes(layer, 3)
    assert more == 2 * 6 if fastnn.cuda.is_emulated() else more <= 2 * 6
