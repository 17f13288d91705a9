"""Modules, losses and optimizers together on CUDA: a training run follows that of the CPU."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastnn
from fastnn import models, nn
from helpers import gpu


class Bag(nn.Module):
    """The mean of embedded, normalized and gated words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 12, padding_idx=0)
        self.norm = nn.LayerNorm(12)
        self.drop = nn.Dropout(0.2)
        self.gate = nn.Parameter(fastnn.ones(12))

    def forward(self, ids: fastnn.Tensor) -> fastnn.Tensor:
        x = self.drop(self.norm(self.words(ids)))
        return (nn.functional.gelu(x) * self.gate).mean(1).logsumexp(-1)


@gpu
@pytest.mark.parametrize(
    "make",
    [
        lambda params: fastnn.optim.AdamW(params, lr=0.03),
        lambda params: fastnn.optim.SGD(params, lr=0.3, momentum=0.9, nesterov=True),
        lambda params: fastnn.optim.RMSprop(params, lr=0.01),
    ],
    ids=["adamw", "sgd", "rmsprop"],
)
def test_a_training_run_follows_the_cpu(make: Callable[[Any], Any]) -> None:
    ids = np.random.default_rng(0).integers(0, 40, (6, 9))

    def losses(device: str) -> list[float]:
        fastnn.manual_seed(1)
        model = Bag().to(device)
        optimizer = make(model.parameters())
        found = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (model(fastnn.tensor(ids).to(device)) - 3.0).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            found.append(loss.item())
        return found

    expected = losses("cpu")
    assert expected[-1] < expected[0]
    assert np.allclose(losses("cuda"), expected, 1e-4)


class Decoder(nn.Module):
    """Token ids (N, T) -> logits (N, T, vocabulary): causal attention as in GPT-2."""

    def __init__(self, vocabulary: int = 12, width: int = 16, heads: int = 2, context: int = 8) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: fastnn.Tensor) -> fastnn.Tensor:
        length = ids.shape[1]
        x = self.tokens(ids) + self.positions(fastnn.arange(length, device=ids.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device, dtype=x.dtype)
        return self.head(self.norm(self.block(x, src_mask=mask, is_causal=True))).flatten(0, 1)


N_STEPS = 3
ROUNDINGS = 24  # of a value in a step, forward and backward: twelve operations lie between a batch and its loss
LONGEST_SUM = 400


def lenet_losses(device: str, dtype: fastnn.dtype) -> list[float]:
    rng = np.random.default_rng(0)
    fastnn.manual_seed(1)
    model = models.LeNet5().to(device, dtype)
    x = fastnn.tensor(rng.normal(size=(2, 1, 28, 28))).to(device, dtype)
    y = fastnn.tensor(rng.integers(0, 10, 2)).to(device)
    optimizer = fastnn.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return [step(model, optimizer, x, y).item() for _ in range(N_STEPS)]


def decoder_losses(device: str, dtype: fastnn.dtype) -> list[float]:
    """On a GPU all steps but the first are replays of a graph."""
    fastnn.manual_seed(1)
    model = Decoder().to(device, dtype)
    ids = fastnn.tensor(np.random.default_rng(0).integers(0, 12, (2, 9))).to(device)
    x, y = ids[:, :-1], ids[:, 1:].reshape(-1)
    optimizer = fastnn.optim.AdamW(model.parameters(), lr=0.02, capturable=True)
    losses = [step(model, optimizer, x, y).item()]
    if device == "cpu":
        return losses + [step(model, optimizer, x, y).item() for _ in range(1, N_STEPS)]
    optimizer.zero_grad()
    graph = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(graph):
        loss = step(model, optimizer, x, y)
    for _ in range(1, N_STEPS):
        graph.replay()
        losses.append(loss.item())
    return losses


def step(model: nn.Module, optimizer: fastnn.optim.Optimizer, x: fastnn.Tensor, y: fastnn.Tensor) -> fastnn.Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("losses_on", [lenet_losses, decoder_losses], ids=["lenet", "decoder"])
def test_a_network_trains_to_the_losses_of_the_cpu(
    losses_on: Callable[[str, fastnn.dtype], list[float]], dtype: str
) -> None:
    """Each device rounds in its own places: errors add up like random walks, over steps, operations and, of sums in
    float32, their terms.
    """
    kind = getattr(fastnn, dtype)
    expected, found = losses_on("cpu", kind), losses_on("cuda", kind)
    roundoff = 2.0**-24 * math.sqrt(LONGEST_SUM) if dtype == "float32" else 2.0**-9
    tolerance = 2 * math.sqrt(N_STEPS * ROUNDINGS) * roundoff * expected[0]
    assert expected[0] - expected[-1] > 4 * tolerance
    np.testing.assert_allclose(found, expected, 0, tolerance)
