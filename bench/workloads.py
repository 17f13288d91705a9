"""What is raced: the benchmark rows of tests/cases, optimizer steps, and a training step on digits.

A workload is written once for fastnn and torch, which share their names; numpy has a call of its own
where it has one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from cases import CASES
from cases.case import BenchRow, Case, to_numpy, to_tensor

Call = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    name: str
    family: str
    prepare: Callable[[ModuleType], Call | None]  # None: this library has no such call
    flops: float = 0
    bytes: float = 0
    quick: bool = False
    tolerance: float = 1e-4  # of the outputs against each other, relative to the largest value

    @staticmethod
    def outputs(result: Any) -> list[np.ndarray]:
        return [np.asarray(y, dtype=np.float64) for y in _flat(to_numpy(result))]


def _flat(value: Any) -> list[Any]:
    return [v for part in value for v in _flat(part)] if isinstance(value, list) else [value]


def _case_workload(case: Case, row: BenchRow, quick: bool) -> Workload:
    def prepare(lib: ModuleType) -> Call | None:
        arrays = row.make()
        if lib is np:
            if case.numpy is None or row.backward:
                return None
            plain = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in arrays]
            options = {{"dim": "axis", "keepdim": "keepdims"}.get(k, k): v for k, v in row.kwargs.items()}
            return lambda: case.numpy(*plain, **options)
        if lib.__name__ == "torch" and case.torch is False:
            return None
        args = [to_tensor(lib, a, "float32") for a in arrays]
        if not row.backward:
            return lambda: case.run(lib, *args, **row.kwargs)
        leaves = [a.requires_grad_() for a in args if hasattr(a, "requires_grad_") and a.is_floating_point()]
        y = case.run(lib, *args, **row.kwargs).detach()
        # No constant: the gradient of a normalization would be its rounding errors.
        weights = np.random.default_rng(3).standard_normal(tuple(y.shape))
        weight = lib.empty_like(y).copy_(to_tensor(lib, np.asarray(weights), "float32"))

        def step() -> Any:
            y = case.run(lib, *args, **row.kwargs)
            return lib.autograd.grad(y, leaves, weight)

        return step

    name = f"{case.name} {row.label}" + (" forward+backward" if row.backward else "")
    return Workload(name, case.family, prepare, row.flops, row.bytes, quick)


def lenet(lib: ModuleType) -> Any:
    """The network of the digits example: 61,706 parameters, with the same start in every library."""
    nn = lib.nn
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )
    rng = np.random.default_rng(0)
    with lib.no_grad():
        for p in model.parameters():
            shape = tuple(p.shape)
            p.copy_(
                lib.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32) / np.sqrt(max(1, int(np.prod(shape[1:])))))
            )
    return model


def _training_step(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    model, rng = lenet(lib), np.random.default_rng(1)
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)
    x = lib.from_numpy(rng.uniform(0, 1, (64, 1, 32, 32)).astype(np.float32))
    labels = lib.from_numpy(rng.integers(0, 10, 64))

    def step() -> Any:
        optimizer.zero_grad()
        loss = lib.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _inference(lib: ModuleType) -> Call | None:
    if lib is np:
        return None
    model = lenet(lib)
    x = lib.from_numpy(np.random.default_rng(1).uniform(0, 1, (64, 1, 32, 32)).astype(np.float32))

    def forward() -> Any:
        with lib.no_grad():
            return model(x)

    return forward


def _optimizer_step(name: str, **options: Any) -> Callable[[ModuleType], Call | None]:
    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        model, rng = lenet(lib), np.random.default_rng(2)
        for p in model.parameters():
            p.grad = lib.from_numpy(rng.standard_normal(tuple(p.shape)).astype(np.float32))
        optimizer = getattr(lib.optim, name)(model.parameters(), **options)

        def step() -> Any:
            optimizer.step()
            return [p.detach() for p in model.parameters()]

        return step

    return prepare


QUICK = {
    "matmul 64",
    "matmul 256",
    "matmul 512",
    "matmul 1024",
    "linear 64x400x120",
    "conv2d LeNet 1: 64x1x32x32 -> 6 k5",
    "conv2d LeNet 1: 64x1x32x32 -> 6 k5 forward+backward",
    "conv2d LeNet 2: 64x6x14x14 -> 16 k5",
    "conv2d LeNet 2: 64x6x14x14 -> 16 k5 forward+backward",
    "max_pool2d 64x6x28x28 k2",
    "softmax 64x10",
    "softmax 1024x1000",
    "cross_entropy 64x10",
    "cross_entropy 1024x1000 forward+backward",
    "relu 1M",
    "exp 1M",
    "add 1M",
    "sum 1M",
    "sum 1024x1024 dim 0",
}


def _cases() -> list[Workload]:
    rows = [_case_workload(case, row, quick=False) for case in CASES for row in case.bench]
    return [Workload(**{**vars(w), "quick": w.name in QUICK}) for w in rows]


N_PARAMETERS = 61_706
WORKLOADS = [
    *_cases(),
    Workload("SGD step LeNet", "optim", _optimizer_step("SGD", lr=1e-3, momentum=0.9), bytes=20 * N_PARAMETERS),
    Workload("Adam step LeNet", "optim", _optimizer_step("Adam", lr=1e-3), bytes=28 * N_PARAMETERS, quick=True),
    Workload("LeNet forward, batch 64", "model", _inference, quick=True),
    Workload("LeNet training step, batch 64", "model", _training_step, quick=True, tolerance=1e-3),
]
