"""Calls that only move memory, on arrays far larger than the caches, and random numbers."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from contenders import Contender, Prepared

Inputs = Callable[[np.random.Generator], tuple[Any, ...]]
Call = Callable[..., Any]
MILLION = 1 << 20


def _tensor(contender: Contender, lib: ModuleType, array: np.ndarray) -> Any:
    """float32 arrays become float64 for the reference; integers stay."""
    tensor = lib.from_numpy(array)
    return tensor.double() if contender.float64 and array.dtype == np.float32 else tensor


def stream(inputs: Inputs, call: Call, terms: int = 1, random: bool = False) -> Any:
    """Prepares ``call(lib, *tensors)`` without gradients; results of ``random`` calls have no reference."""

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if not hasattr(lib, "nn") or contender.channels_last or (random and contender.float64):
            return None
        tensors = [_tensor(contender, lib, a) for a in inputs(np.random.default_rng(0))]

        def run() -> Any:
            with lib.no_grad():
                return call(lib, *tensors)

        return Prepared(run, [terms])

    return prepare


def gradient(inputs: Inputs, call: Call, of: int, terms: int = 1) -> Any:
    """Prepares forward and backward of ``call(lib, *tensors)``; gives the gradient of tensor number ``of``."""

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if not hasattr(lib, "nn") or contender.channels_last:
            return None
        tensors = [_tensor(contender, lib, a) for a in inputs(np.random.default_rng(0))]
        tensors[of].requires_grad_()
        y = call(lib, *tensors)
        dy = _tensor(contender, lib, np.random.default_rng(1).standard_normal(tuple(y.shape)).astype(np.float32))
        return Prepared(lambda: lib.autograd.grad(y, tensors[of], dy, retain_graph=True), [terms])

    return prepare


def normal(*shapes: tuple[int, ...]) -> Inputs:
    return lambda rng: tuple(rng.standard_normal(shape, np.float32) for shape in shapes)


def uniform(*shapes: tuple[int, ...]) -> Inputs:
    return lambda rng: tuple(rng.random(shape, np.float32) for shape in shapes)


def tokens_and_table(rng: np.random.Generator) -> tuple[Any, ...]:
    return rng.integers(0, 50257, (16, 1024)), rng.standard_normal((50257, 768), np.float32)


VECTOR, MATRIX, IMAGES = (16 * MILLION,), (4096, 4096), (16, 64, 112, 112)
SIZE = 4 * 16 * MILLION  # bytes of VECTOR and of MATRIX
IMAGE_SIZE = 4 * int(np.prod(IMAGES))
EMBEDDED = 4 * 16 * 1024 * 768

# name -> (how it is prepared, the bytes that it must move)
STREAMS: dict[str, tuple[Any, int]] = {
    "add 16M": (stream(normal(VECTOR, VECTOR), lambda lib, x, y: x + y), 3 * SIZE),
    "relu 16M": (stream(normal(VECTOR), lambda lib, x: lib.relu(x)), 2 * SIZE),
    "exp 16M": (stream(normal(VECTOR), lambda lib, x: lib.exp(x)), 2 * SIZE),
    "gelu 16M": (stream(normal(VECTOR), lambda lib, x: lib.nn.functional.gelu(x)), 2 * SIZE),
    "gelu 16M backward": (gradient(normal(VECTOR), lambda lib, x: lib.nn.functional.gelu(x), 0), 3 * SIZE),
    "sum 16M": (stream(uniform(VECTOR), lambda lib, x: x.sum(), VECTOR[0]), SIZE),
    "sum 4096x4096 over 0": (stream(uniform(MATRIX), lambda lib, x: x.sum(0), MATRIX[0]), SIZE),
    "sum 4096x4096 over 1": (stream(uniform(MATRIX), lambda lib, x: x.sum(1), MATRIX[1]), SIZE),
    "transposed copy 4096x4096": (stream(normal(MATRIX), lambda lib, x: x.t().contiguous()), 2 * SIZE),
    "channels_last copy 16x64x112x112": (
        stream(normal(IMAGES), lambda lib, x: x.permute(0, 2, 3, 1).contiguous()),
        2 * IMAGE_SIZE,
    ),
    "cat 4096x4096 twice over 0": (stream(normal(MATRIX, MATRIX), lambda lib, x, y: lib.cat([x, y], 0)), 4 * SIZE),
    "cat 4096x4096 twice over 1": (stream(normal(MATRIX, MATRIX), lambda lib, x, y: lib.cat([x, y], 1)), 4 * SIZE),
    "pad 16x64x112x112 by 1": (
        stream(normal(IMAGES), lambda lib, x: lib.nn.functional.pad(x, (1, 1, 1, 1))),
        2 * IMAGE_SIZE,
    ),
    "embedding 16x1024 of 50257x768": (
        stream(tokens_and_table, lambda lib, ids, table: lib.nn.functional.embedding(ids, table)),
        2 * EMBEDDED,
    ),
    "embedding 16x1024 of 50257x768 backward": (
        gradient(tokens_and_table, lambda lib, ids, table: lib.nn.functional.embedding(ids, table), 1, terms=8),
        2 * EMBEDDED + 4 * 50257 * 768,
    ),
    "dropout 16M": (
        stream(normal(VECTOR), lambda lib, x: lib.nn.functional.dropout(x, 0.1, True), random=True),
        2 * SIZE,
    ),
    "rand 16M": (stream(lambda rng: (), lambda lib: lib.rand(VECTOR[0]), random=True), SIZE),
    "randn 16M": (stream(lambda rng: (), lambda lib: lib.randn(VECTOR[0]), random=True), SIZE),
}


def linear_cross_entropy(rows: int, width: int, classes: int) -> Any:
    """Prepares the loss of ``rows`` positions and its gradients, forward and backward: torch has no fused form."""

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if not hasattr(lib, "nn") or contender.channels_last:
            return None
        rng, F = np.random.default_rng(0), lib.nn.functional
        loss = getattr(F, "linear_cross_entropy", lambda x, table, y: F.cross_entropy(F.linear(x, table), y))
        x = _tensor(contender, lib, rng.standard_normal((rows, width), np.float32)).requires_grad_()
        table = _tensor(contender, lib, 0.02 * rng.standard_normal((classes, width), np.float32)).requires_grad_()
        targets = lib.from_numpy(rng.integers(0, classes, rows))
        return Prepared(lambda: lib.autograd.grad(loss(x, table, targets), [x, table]), [classes, width + rows])

    return prepare
