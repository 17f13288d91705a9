"""Random numbers: their distribution, and the same numbers for a seed at any thread count and CPU level."""

import hashlib

import numpy as np
import pytest

import fastnn
from cases.random import RANDOM_CASES, RandomCase
from helpers import passes

N = 200_000
SPREAD = 5  # standard errors: a right generator fails one test of a million
continuous = [case for case in RANDOM_CASES if case.cdf is not None]
moments = [case for case in RANDOM_CASES if case.variance > 0]


def drawn(case: RandomCase, n: int = N, seed: int = 0) -> np.ndarray:
    fastnn.manual_seed(seed)
    return case.draw(fastnn, n).double().numpy()


@pytest.mark.parametrize("case", moments, ids=str)
def test_moments(case: RandomCase) -> None:
    x = drawn(case)
    assert x.size == N
    assert abs(x.mean() - case.mean) < SPREAD * np.sqrt(case.variance / N)
    fourth = ((x - case.mean) ** 4).mean()  # the variance of a squared deviation, from the sample itself
    assert abs(((x - case.mean) ** 2).mean() - case.variance) < SPREAD * np.sqrt(fourth / N) + 1e-3 * case.variance


@pytest.mark.parametrize("case", continuous, ids=str)
def test_distribution(case: RandomCase) -> None:
    """Kolmogorov-Smirnov: the largest gap between the two distribution functions, and no repeats of neighbours."""
    x = np.sort(drawn(case))
    gap = np.abs(case.cdf(x) - (np.arange(N) + 0.5) / N).max()
    assert gap < 2.7 / np.sqrt(N)  # exceeded by chance once in a million


@pytest.mark.parametrize("case", moments, ids=str)
def test_independence(case: RandomCase) -> None:
    """No correlation between neighbours, nor at the distances of a vector, a block, or a chunk; nor between seeds."""
    x = (drawn(case) - case.mean) / np.sqrt(case.variance)
    for lag in (1, 2, 4, 8, 16, 1024, 16384):
        assert abs((x[:-lag] * x[lag:]).mean()) < SPREAD / np.sqrt(N - lag), lag
    other = (drawn(case, seed=1) - case.mean) / np.sqrt(case.variance)
    assert abs((x * other).mean()) < SPREAD / np.sqrt(N)


@pytest.mark.parametrize("case", RANDOM_CASES, ids=str)
def test_seed_and_threads(case: RandomCase) -> None:
    first = drawn(case)
    fastnn.set_num_threads(4)
    np.testing.assert_array_equal(drawn(case), first)
    fastnn.set_num_threads(1)
    np.testing.assert_array_equal(drawn(case), first)
    assert not np.array_equal(drawn(case, seed=1), first)
    fastnn.manual_seed(0)
    case.draw(fastnn, N)
    assert not np.array_equal(case.draw(fastnn, N).double().numpy(), first), "a second draw goes on"


DIGEST = """
import fastnn, hashlib
from cases.random import RANDOM_CASES
digest = hashlib.sha256()
for case in RANDOM_CASES:
    fastnn.manual_seed(7)
    digest.update(case.draw(fastnn, 1037).float().numpy().tobytes())
print(digest.hexdigest())
"""


def test_cpu_levels_draw_the_same() -> None:
    digests = {level: passes(DIGEST, FASTNN_CPU=level) for level in fastnn._C.cpu_levels()}
    assert len(set(digests.values())) == 1, digests


def test_ranges() -> None:
    x = fastnn.rand(1_000_000)
    assert x.min().item() >= 0 and x.max().item() < 1
    counts = np.bincount(fastnn.randint(0, 10, (100_000,)).numpy(), minlength=10)
    assert counts.size == 10 and abs(counts - 10_000).max() < SPREAD * np.sqrt(9000)
    assert sorted(fastnn.randperm(1000).tolist()) == list(range(1000))
    assert fastnn.randint(-(2**62), 2**62, (1000,)).abs().max().item() > 2**60
    assert set(fastnn.randint(0, 256, (5000,), dtype=fastnn.uint8).tolist()) == set(range(256))


def test_permutations_are_uniform() -> None:
    """Every value stands at every place equally often."""
    counts = np.zeros((5, 5))
    for _ in range(4000):
        counts[np.arange(5), fastnn.randperm(5).numpy()] += 1
    assert abs(counts - 800).max() < SPREAD * np.sqrt(640)


def test_multinomial_without_replacement() -> None:
    weights = fastnn.tensor([[1.0, 2.0, 0.0, 4.0]])
    picks = fastnn.multinomial(weights.expand(5000, 4), 3).numpy()
    assert (np.sort(picks, 1) == [0, 1, 3]).all()
    first = np.bincount(picks[:, 0], minlength=4) / 5000
    np.testing.assert_allclose(first, [1 / 7, 2 / 7, 0, 4 / 7], atol=SPREAD * 0.5 / np.sqrt(5000))


def test_state() -> None:
    state = fastnn.get_rng_state()
    first = fastnn.rand(5).tolist()
    fastnn.set_rng_state(state)
    assert fastnn.rand(5).tolist() == first
    one, two = fastnn.Generator().manual_seed(3), fastnn.Generator().manual_seed(3)
    fastnn.manual_seed(0)
    before = fastnn.get_rng_state()
    assert fastnn.rand(4, generator=one).tolist() == fastnn.rand(4, generator=two).tolist()
    assert (
        hashlib.sha256(before.numpy().tobytes()).digest()
        == hashlib.sha256(fastnn.get_rng_state().numpy().tobytes()).digest()
    )


def test_dropout() -> None:
    x = fastnn.ones(10_000, requires_grad=True)
    y = fastnn.dropout(x, 0.25, True)
    assert set(np.unique(y.detach().numpy())) == {0.0, np.float32(1 / 0.75)}
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())
    images = fastnn.ones(2, 3, 8, 9).to(memory_format=fastnn.channels_last).requires_grad_()
    y = fastnn.dropout(images, 0.5, True)
    (fastnn.ones(2, 3, 8, 9) * y).sum().backward()  # a row-major gradient
    np.testing.assert_array_equal(images.grad.numpy(), y.detach().numpy())
    assert y.stride() == images.grad.stride() == images.stride()
    assert fastnn.dropout(x, 0.5, False).tolist() == x.tolist()
    assert not fastnn.dropout(x, 1.0, True).any() and fastnn.dropout(x, 0.0, True).sum().item() == 10_000


def test_errors() -> None:
    for call, pattern in (
        (lambda: fastnn.dropout(fastnn.ones(2), 1.5, True), "dropout.*1.5"),
        (lambda: fastnn.dropout(fastnn.ones(2), -0.1, True), "dropout.*-0.1"),
        (lambda: fastnn.randint(5, 5, (2,)), "randint.*5"),
        (lambda: fastnn.randperm(-1), "randperm.*-1"),
        (lambda: fastnn.bernoulli(fastnn.tensor([1.5])), "bernoulli.*1.5"),
        (lambda: fastnn.empty(2).bernoulli_(2.0), "bernoulli_.*2"),
        (lambda: fastnn.empty(2).uniform_(3.0, 1.0), "uniform_.*3.*1"),
        (lambda: fastnn.empty(2).normal_(0.0, -1.0), "normal_.*-1"),
        (lambda: fastnn.multinomial(fastnn.tensor([0.0, 0.0]), 1), "multinomial.*0"),
        (lambda: fastnn.multinomial(fastnn.tensor([1.0, -1.0]), 1), "multinomial.*-1"),
        (lambda: fastnn.multinomial(fastnn.tensor([1.0, 0.0]), 2), "multinomial.*2"),
        (lambda: fastnn.randint(0, 300, (2,), dtype=fastnn.uint8), "randint.*uint8"),
    ):
        with pytest.raises(ValueError, match=pattern):
            call()
    for call in (
        lambda: fastnn.rand(2, dtype=fastnn.int64),
        lambda: fastnn.bernoulli(fastnn.ones(2, dtype=fastnn.int64)),
    ):
        with pytest.raises(TypeError, match="int64"):
            call()
