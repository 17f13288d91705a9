"""Random shapes and parameters against torch, values and gradients: finds index formulas that are off by one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastnn

pytestmark = pytest.mark.torch

ROUNDS = 120
Make = Callable[[np.random.Generator], Callable[[Any], list[Any]]]


def pair(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    return int(rng.integers(low, high)), int(rng.integers(low, high))


def with_gradients(lib: Any, y: Any, leaves: list[Any]) -> list[Any]:
    """y and the gradients of a weighted sum of it."""
    weights = np.cos(np.arange(y.numel(), dtype=np.float64)).reshape(tuple(y.shape))
    return [y, *lib.autograd.grad(y, leaves, lib.from_numpy(np.asarray(weights)))]


def leaves_of(lib: Any, *arrays: np.ndarray) -> list[Any]:
    return [lib.from_numpy(a.copy()).requires_grad_() for a in arrays]


def conv2d(rng: np.random.Generator) -> Callable[[Any], list[Any]]:
    channels = 2 * int(rng.integers(1, 5))
    groups = int(rng.choice([1, 2, channels]))
    (height, width), kernel = pair(rng, 1, 12), pair(rng, 1, 5)
    stride, padding, dilation = pair(rng, 1, 4), pair(rng, 0, 4), pair(rng, 1, 3)
    x = rng.standard_normal((int(rng.integers(1, 4)), channels, height, width))
    w = rng.standard_normal((groups * int(rng.integers(1, 4)), channels // groups, *kernel))
    b = rng.standard_normal(w.shape[0])

    def run(lib: Any) -> list[Any]:
        leaves = leaves_of(lib, x, w, b)
        return with_gradients(lib, lib.nn.functional.conv2d(*leaves, stride, padding, dilation, groups), leaves)

    return run


def plane(rng: np.random.Generator) -> np.ndarray:
    """Small whole numbers: many ties."""
    return np.round(3 * rng.standard_normal((*pair(rng, 1, 4), *pair(rng, 3, 12))))


def max_pool2d(rng: np.random.Generator) -> Callable[[Any], list[Any]]:
    # Without dilation no window lies in the padding alone: torch 2.13 writes out of bounds there.
    x, options = plane(rng), (pair(rng, 1, 5), pair(rng, 1, 4), pair(rng, 0, 3), 1, bool(rng.integers(2)))

    def run(lib: Any) -> list[Any]:
        (leaf,) = leaves_of(lib, x)
        y, indices = lib.nn.functional.max_pool2d(leaf, *options, return_indices=True)
        return [*with_gradients(lib, y, [leaf]), indices]

    return run


def avg_pool2d(rng: np.random.Generator) -> Callable[[Any], list[Any]]:
    x, options = plane(rng), (pair(rng, 1, 5), pair(rng, 1, 4), pair(rng, 0, 3), *map(bool, pair(rng, 0, 2)))

    def run(lib: Any) -> list[Any]:
        leaves = leaves_of(lib, x)
        return with_gradients(lib, lib.nn.functional.avg_pool2d(*leaves, *options), leaves)

    return run


def adaptive_avg_pool2d(rng: np.random.Generator) -> Callable[[Any], list[Any]]:
    x, size = plane(rng), pair(rng, 1, 14)

    def run(lib: Any) -> list[Any]:
        leaves = leaves_of(lib, x)
        return with_gradients(lib, lib.nn.functional.adaptive_avg_pool2d(*leaves, size), leaves)

    return run


def matmul(rng: np.random.Generator) -> Callable[[Any], list[Any]]:
    m, n, k = int(rng.integers(1, 40)), int(rng.integers(1, 40)), int(rng.integers(0, 20))
    batch = tuple(int(v) for v in rng.integers(1, 4, int(rng.integers(0, 3))))
    shapes = [(*batch, m, k), (*batch[int(rng.integers(0, 3)) :], k, n)]
    if rng.integers(4) == 0:
        shapes[int(rng.integers(2))] = (k,)
    arrays = [rng.standard_normal(s) for s in shapes]
    transposed = [bool(rng.integers(2)) and len(s) > 1 for s in shapes]

    def run(lib: Any) -> list[Any]:
        leaves = leaves_of(lib, *[a.swapaxes(-1, -2) if t else a for a, t in zip(arrays, transposed, strict=True)])
        x, y = (leaf.transpose(-1, -2) if t else leaf for leaf, t in zip(leaves, transposed, strict=True))
        return with_gradients(lib, lib.matmul(x, y), leaves)

    return run


def reduction(rng: np.random.Generator) -> Callable[[Any], list[Any]]:
    x, order = rng.standard_normal((3, 4, 5, 6)), tuple(int(a) for a in rng.permutation(4))
    name = str(rng.choice(["sum", "mean", "amax", "amin", "var", "std", "logsumexp"]))
    axes = tuple(int(a) for a in rng.permutation(4)[: int(rng.integers(1, 5))])
    step, keepdim = int(rng.integers(1, 3)), bool(rng.integers(2))

    def run(lib: Any) -> list[Any]:
        leaves = leaves_of(lib, x)
        view = leaves[0].permute(order)[:, ::step, 1:]
        return with_gradients(lib, getattr(lib, name)(view, axes, keepdim=keepdim), leaves)

    return run


def indexing(rng: np.random.Generator) -> Callable[[Any], list[Any]]:
    """x[key] read and x[key] = number, for a random mixture of basic and advanced indices."""
    x, count, value = rng.standard_normal((3, 4, 5)), int(rng.integers(1, 4)), float(rng.standard_normal())
    key: list[Any] = []
    for size in x.shape[: int(rng.integers(1, 4))]:
        low, high = sorted(int(v) for v in rng.integers(-size, size + 1, 2))
        mask = np.isin(np.arange(size), rng.permutation(size)[: min(count, size)])
        choices = [low if low < size else 0, slice(low, high), slice(None, None, int(rng.integers(1, 4))),
                   rng.integers(-size, size, count), mask, slice(None)]  # fmt: skip
        key.append(choices[int(rng.integers(len(choices)))])
        if rng.integers(5) == 0:
            key.append(None)
    if rng.integers(4) == 0:
        key.insert(int(rng.integers(len(key) + 1)), Ellipsis)

    def run(lib: Any) -> list[Any]:
        leaves = leaves_of(lib, x)
        where = tuple(lib.from_numpy(k) if isinstance(k, np.ndarray) else k for k in key)
        written = leaves[0] * 1
        written[where] = value
        return [*with_gradients(lib, leaves[0][where], leaves), *with_gradients(lib, written * written, leaves)]

    return run


def outcome(run: Callable[[Any], list[Any]], lib: Any) -> list[np.ndarray] | None:
    """The results as arrays, or None for a call that was refused."""
    try:
        return [y.detach().numpy() for y in run(lib)]
    except (ValueError, IndexError, RuntimeError):
        return None


@pytest.mark.parametrize(
    "make",
    [conv2d, max_pool2d, avg_pool2d, adaptive_avg_pool2d, matmul, reduction, indexing],
    ids=lambda make: make.__name__,
)
def test_like_torch(make: Make) -> None:
    import torch

    compared = 0
    for seed in range(ROUNDS):
        ours = outcome(make(np.random.default_rng(seed)), fastnn)
        theirs = outcome(make(np.random.default_rng(seed)), torch)
        assert (ours is None) == (theirs is None), (
            f"seed {seed}: refused by {'fastnn' if ours is None else 'torch'} alone"
        )
        for y, t in zip(ours or [], theirs or [], strict=True):
            np.testing.assert_allclose(y, t, rtol=1e-9, atol=1e-11, err_msg=f"seed {seed}")
        compared += ours is not None
    assert compared > ROUNDS / 4
