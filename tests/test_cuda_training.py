"""Modules, losses and optimizers together on CUDA: a training run follows that of the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastnn
from fastnn import nn
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
