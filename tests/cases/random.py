"""Random numbers: what is drawn, and the distribution that it must follow."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

normal_cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))


@dataclass(frozen=True)
class RandomCase:
    name: str
    draw: Callable[[Any, int], Any]  # draw(fastnn, n): a tensor of at least n values
    mean: float
    variance: float
    cdf: Callable[[Any], Any] | None = None  # of continuous distributions
    covers: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.name


def _uniform(low: float, high: float) -> Callable[[Any], Any]:
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


RANDOM_CASES = [
    RandomCase("rand", lambda lib, n: lib.rand(n), 1 / 2, 1 / 12, _uniform(0, 1)),
    RandomCase("rand float64", lambda lib, n: lib.rand(n, dtype=lib.float64), 1 / 2, 1 / 12, _uniform(0, 1)),
    RandomCase("rand_like", lambda lib, n: lib.rand_like(lib.empty(n)), 1 / 2, 1 / 12, _uniform(0, 1)),
    RandomCase("randn", lambda lib, n: lib.randn(n), 0, 1, normal_cdf),
    RandomCase("randn float64", lambda lib, n: lib.randn(n, dtype=lib.float64), 0, 1, normal_cdf),
    RandomCase("randn bfloat16", lambda lib, n: lib.randn(n, dtype=lib.bfloat16), 0, 1),
    RandomCase("randn_like", lambda lib, n: lib.randn_like(lib.empty(n)), 0, 1, normal_cdf),
    RandomCase("normal", lambda lib, n: lib.normal(2.0, 3.0, (n,)), 2, 9, lambda x: normal_cdf((x - 2) / 3)),
    RandomCase("normal_", lambda lib, n: lib.empty(n).normal_(2.0, 3.0), 2, 9, lambda x: normal_cdf((x - 2) / 3)),
    RandomCase("uniform_", lambda lib, n: lib.empty(n).uniform_(-1.0, 3.0), 1, 16 / 12, _uniform(-1, 3)),
    RandomCase("randint", lambda lib, n: lib.randint(-3, 7, (n,)), 1.5, 99 / 12),
    RandomCase("bernoulli", lambda lib, n: lib.bernoulli(lib.full((n,), 0.3)), 0.3, 0.21),
    RandomCase("bernoulli_", lambda lib, n: lib.empty(n).bernoulli_(0.3), 0.3, 0.21),
    RandomCase("dropout", lambda lib, n: lib.dropout(lib.ones(n), 0.2, True), 1, 0.25),
    RandomCase("multinomial", lambda lib, n: lib.multinomial(lib.tensor([1.0, 0.0, 3.0]), n, True), 1.5, 0.75),
    RandomCase("randperm", lambda lib, n: lib.randperm(n), 0, 0),
]
