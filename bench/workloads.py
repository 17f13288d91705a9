"""What is raced: the benchmark rows of tests/cases, optimizer steps, and models.

A workload is written once for fastnn and torch, which share their names; numpy has a call of its own
where it has one, and ONNX Runtime a graph.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import onnx_graphs
from contenders import Contender, Prepared

from cases import CASES
from cases.case import BenchRow, Case, rounded, to_tensor

IMAGE_FAMILIES = ("conv", "pool", "norm")


@dataclass(frozen=True)
class Workload:
    name: str
    family: str
    prepare: Callable[[Contender, ModuleType, int], Prepared | None]  # None: this contender has no such call
    dtype: str = "float32"
    backward: bool = False
    flops: float = 0
    bytes: float = 0

    @property
    def quick(self) -> bool:
        return self.name in QUICK

    @property
    def group(self) -> str:
        """The rows that are summed up together."""
        return f"{self.family} {self.dtype}" + (" backward" if self.backward else "")


def channels_last(image: Any) -> Any:
    """The same tensor, the channels of a pixel next to each other in memory."""
    return image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _numpy_call(case: Case, row: BenchRow, arrays: tuple[Any, ...], float64: bool) -> Callable[[], Any] | None:
    if row.backward:
        return None
    if float64:
        exact = [rounded(a, row.dtype) for a in arrays]
        return lambda: case.reference(*exact, **row.kwargs)
    if case.numpy is None or row.dtype != "float32":
        return None
    plain = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in arrays]
    for i in row.transposed:
        plain[i] = np.ascontiguousarray(plain[i].swapaxes(-1, -2)).swapaxes(-1, -2)
    options = {{"dim": "axis", "keepdim": "keepdims"}.get(k, k): v for k, v in row.kwargs.items()}
    return lambda: case.numpy(*plain, **options)


def _tensors(contender: Contender, lib: ModuleType, row: BenchRow, arrays: Any, images: bool) -> list[Any]:
    """The arrays as tensors of the row's dtype and layout; for the reference as float64 with the same values."""
    args = []
    for i, array in enumerate(arrays):
        if i in row.transposed:
            array = array.swapaxes(-1, -2)
        value = rounded(array, row.dtype) if contender.float64 else array
        tensor = to_tensor(lib, value, "float64" if contender.float64 else row.dtype)
        if i in row.transposed:
            tensor = tensor.transpose(-1, -2)
        elif images and isinstance(array, np.ndarray) and array.ndim == 4:
            tensor = channels_last(tensor)
        args.append(tensor)
    return args


def _case_workload(case: Case, row: BenchRow) -> Workload:
    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if lib.__name__ == "onnxruntime":
            call = onnx_graphs.row_call(lib, case.name, row, threads)
            return None if call is None else Prepared(call, [])
        arrays = row.make()
        terms = case.terms(*arrays, **row.kwargs) if callable(case.terms) else case.terms
        if lib is np:
            call = _numpy_call(case, row, arrays, contender.float64)
            return None if call is None else Prepared(call, [terms])
        has_layouts = case.family in IMAGE_FAMILIES and arrays[0].ndim == 4
        if (contender.channels_last and not has_layouts) or (lib.__name__ == "torch" and case.torch is False):
            return None
        images = has_layouts and (contender.channels_last or (lib.__name__ == "fastnn" and row.channels_last))
        args = _tensors(contender, lib, row, arrays, images)
        if not row.backward:
            return Prepared(lambda: case.run(lib, *args, **row.kwargs), [terms])
        positions = range(len(args)) if row.gradients is None else row.gradients
        leaves = [
            args[i].requires_grad_() for i in positions if hasattr(args[i], "grad") and args[i].is_floating_point()
        ]
        y = case.run(lib, *args, **row.kwargs)
        dy = np.random.default_rng(1).standard_normal(tuple(y.shape))
        (weight,) = _tensors(contender, lib, replace(row, transposed=()), [dy], images)
        # Every product of the forward is one product of each gradient, spread over the numbers of that gradient.
        shares = [terms * y.numel() / max(1, x.numel()) for x in leaves]
        return Prepared(lambda: lib.autograd.grad(y, leaves, weight, retain_graph=True), shares)

    name = " ".join([case.name, row.label, *(["bfloat16"] if row.dtype == "bfloat16" else [])])
    return Workload(
        name + (" backward" if row.backward else ""),
        case.family,
        prepare,
        row.dtype,
        row.backward,
        row.flops,
        row.bytes,
    )


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


LENET_TERMS = 416_520  # multiply-adds of one image, in a row
PIXELS = (64, 1, 32, 32)


def _of_lenet(make: Callable[[ModuleType, Any, Any], Callable[[], Any]], terms: float = LENET_TERMS) -> Any:
    """A workload of the model and its images; the reference computes both in float64."""

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if not hasattr(lib, "nn"):
            return None
        model, x = lenet(lib), lib.from_numpy(np.random.default_rng(1).uniform(0, 1, PIXELS).astype(np.float32))
        if contender.float64:
            model, x = model.double(), x.double()
        elif contender.channels_last:
            x = channels_last(x)
        return Prepared(make(lib, model, x), [terms])

    return prepare


def _training_step(lib: ModuleType, model: Any, x: Any) -> Callable[[], Any]:
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)
    labels = lib.from_numpy(np.random.default_rng(2).integers(0, 10, len(x)))

    def step() -> Any:
        optimizer.zero_grad()
        loss = lib.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _inference(lib: ModuleType, model: Any, x: Any) -> Callable[[], Any]:
    def forward() -> Any:
        with lib.no_grad():
            return model(x)

    return forward


def _optimizer_step(name: str, **options: Any) -> Callable[[ModuleType, Any, Any], Callable[[], Any]]:
    def make(lib: ModuleType, model: Any, x: Any) -> Callable[[], Any]:
        rng = np.random.default_rng(2)
        for p in model.parameters():
            p.grad = lib.from_numpy(rng.standard_normal(tuple(p.shape)).astype(np.float32)).to(p.dtype)
        optimizer = getattr(lib.optim, name)(model.parameters(), **options)

        def step() -> Any:
            optimizer.step()
            return [p.detach() for p in model.parameters()]

        return step

    return make


QUICK = {
    "matmul 64",
    "matmul 256",
    "matmul 512",
    "matmul 1024",
    "linear 32x768x3072",
    "conv2d lenet 1>6 k5 28 B64",
    "conv2d lenet 1>6 k5 28 B64 backward",
    "conv2d lenet 6>16 k5 12 B64",
    "conv2d lenet 6>16 k5 12 B64 backward",
    "max_pool2d 64x6x28x28 k2",
    "softmax 64x10",
    "softmax 1024x1000",
    "cross_entropy 64x10",
    "cross_entropy 1024x1000 backward",
    "relu 1M",
    "exp 1M",
    "add 1M",
    "sum 1M",
    "sum 1024x1024 dim 0",
    "Adam step LeNet",
    "LeNet forward, batch 64",
    "LeNet training step, batch 64",
}
N_PARAMETERS = 61_706
SGD, ADAM = _optimizer_step("SGD", lr=1e-3, momentum=0.9), _optimizer_step("Adam", lr=1e-3)
ADAM_TERMS = 64  # the quotient of the first step is a sign: it keeps the roundings of both moments
WORKLOADS = [
    *(_case_workload(case, row) for case in CASES for row in case.bench),
    Workload("SGD step LeNet", "optim", _of_lenet(SGD, 4), bytes=20 * N_PARAMETERS),
    Workload("Adam step LeNet", "optim", _of_lenet(ADAM, ADAM_TERMS), bytes=28 * N_PARAMETERS),
    Workload("LeNet forward, batch 64", "model", _of_lenet(_inference)),
    Workload("LeNet training step, batch 64", "model", _of_lenet(_training_step)),
]
assert len({w.name for w in WORKLOADS}) == len(WORKLOADS), "two rows share a name"
if unknown := QUICK - {w.name for w in WORKLOADS}:
    raise ValueError(f"no workload is called {sorted(unknown)}")
