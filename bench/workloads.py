"""What is raced: the benchmark rows of tests/cases, optimizer steps, and models.

A workload is written once for fastnn and torch, which share their names; numpy has a call of its own
where it has one, and ONNX Runtime a graph.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import models
import networks
import numpy as np
import onnx_graphs
import streams
from contenders import Contender, Prepared
from models import inference, recurrent, training_step

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
        if contender.channels_last and (not has_layouts or (lib.__name__ == "fastnn" and row.channels_last)):
            return None
        if lib.__name__ == "torch" and case.torch is False:
            return None
        images = has_layouts and (contender.channels_last or (lib.__name__ == "fastnn" and row.channels_last))
        args = _tensors(contender, lib, row, arrays, images)
        if not row.backward:
            return Prepared(lambda: case.run(lib, *args, **row.kwargs), [terms], case.rounds_within)
        positions = range(len(args)) if row.gradients is None else row.gradients
        leaves = [
            args[i].requires_grad_() for i in positions if hasattr(args[i], "grad") and args[i].is_floating_point()
        ]
        y = case.run(lib, *args, **row.kwargs)
        dy = np.random.default_rng(1).standard_normal(tuple(y.shape))
        (weight,) = _tensors(contender, lib, replace(row, transposed=()), [dy], images)
        # Every product of the forward is one product of each gradient, spread over the numbers of that gradient.
        shares = [terms * y.numel() / max(1, x.numel()) for x in leaves]
        rounds = case.rounds_within + (case.rounds_saved(*arrays, **row.kwargs) if case.rounds_saved else 0)
        return Prepared(lambda: lib.autograd.grad(y, leaves, weight, retain_graph=True), shares, rounds)

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


def _recurrent_workload(kind: str, sizes: tuple[int, ...], dtype: str, training: bool) -> Workload:
    n_steps, batch, inputs, hidden, layers = sizes
    products = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind] * hidden * (inputs + hidden + 2 * hidden * (layers - 1))
    name = f"{kind} T{n_steps} B{batch} H{hidden}" + (f" x{layers}" if layers > 1 else "")
    return Workload(
        name + (" bfloat16" if dtype == "bfloat16" else "") + (" training" if training else ""),
        "recurrent",
        recurrent(kind, sizes, dtype, training),
        dtype,
        training,
        flops=(6 if training else 2) * n_steps * batch * products,
    )


SEQUENCES = ((50, 32, 128, 128, 1), (128, 1, 256, 256, 1), (100, 64, 512, 512, 1), (35, 20, 650, 650, 2))
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
    "Adam step LeNet-5",
    "LeNet-5 inference B64",
    "LeNet-5 training step B64",
}
DIGITS = (64, 1, 28, 28)
# The bytes that an optimizer moves for each number in float32.
STEPS: dict[str, tuple[str, dict[str, Any], int]] = {
    "SGD plain": ("SGD", {}, 12),
    "SGD": ("SGD", {"momentum": 0.9}, 20),
    "Adam": ("Adam", {}, 28),
    "Adam fused": ("Adam", {"fused": True}, 28),
    "AdamW": ("AdamW", {}, 28),
    "AdamW fused": ("AdamW", {"fused": True}, 28),
}
LISTS: dict[str, tuple[Callable[[], list[tuple[int, ...]]], int]] = {
    "LeNet-5": (models.lenet_shapes, 61_706),
    "ResNet-50": (models.resnet50_shapes, 25_557_032),
    "GPT-2": (models.gpt2_shapes, 124_439_808),
}


def _step_workload(step: str, of: str) -> Workload:
    (name, options, bytes_each), (shapes, numbers) = STEPS[step], LISTS[of]
    prepare = models.optimizer_step(shapes, name, lr=1e-3, **options)
    return Workload(f"{step} step {of}", "optim", prepare, bytes=bytes_each * numbers)


def _stream_workloads() -> list[Workload]:
    rows = [
        Workload(name, "stream", prepare, backward=name.endswith("backward"), bytes=moved)
        for name, (prepare, moved) in streams.STREAMS.items()
    ]
    prepare = streams.linear_cross_entropy(2048, 768, 50257)
    return [*rows, Workload("linear_cross_entropy 2048x768x50257", "loss", prepare, flops=6 * 2048 * 768 * 50257)]


def _sequence_workloads() -> list[Workload]:
    train, classify = models.sequence_training_step, {"tokens": 10_000}
    gpt = {"tokens": models.GPT["vocabulary"], "classes": models.GPT["vocabulary"]}
    rows = [
        (
            "MLP 1000-500-250-100-1 training step B64",
            train(models.regression_mlp, (64, 1000), (64, 1), "Adam"),
        ),
        ("MLP 784-128-10 training step B1", train(models.digits_mlp, (1, 784), (1,), "SGD", classes=10, lr=0.01)),
        ("MLP 784-128-10 training step B64", train(models.digits_mlp, (64, 784), (64,), "SGD", classes=10, lr=0.01)),
        ("GRU classifier training step B32", train(networks.gru_classifier, (32, 100), (32, 1), "Adam", **classify)),
        (
            "LSTM language model training step B20",
            train(networks.lstm_language_model, (35, 20), (700,), "SGD", classes=10_000, lr=0.1, **classify),
        ),
        ("GPT training step B8", train(models.small_gpt, (8, 256), (2048,), "AdamW", **gpt)),
        (
            "GPT training step B8 bfloat16",
            train(models.small_gpt, (8, 256), (2048,), "AdamW", dtype="bfloat16", **gpt),
        ),
        ("BERT-base inference B1", models.sequence_inference(networks.encoder, (1, 128, 768))),
        ("BERT-base inference B8", models.sequence_inference(networks.encoder, (8, 128, 768))),
        ("GPT-2 decode at 256", models.decoding_step(models.gpt2, models.GPT2["vocabulary"], 256)),
    ]
    return [
        Workload(
            name,
            "training" if "training" in name else "inference",
            prepare,
            "bfloat16" if "bfloat16" in name else "float32",
        )
        for name, prepare in rows
    ]


WORKLOADS = [
    *(_case_workload(case, row) for case in CASES for row in case.bench),
    *_stream_workloads(),
    *(_step_workload(step, of) for of in LISTS for step in STEPS),
    *(
        _recurrent_workload(kind, sizes, dtype, training)
        for kind in ("LSTM", "GRU", "RNN")
        for sizes in SEQUENCES
        for dtype in ("float32", "bfloat16")
        for training in (False, True)
    ),
    Workload("LeNet-5 inference B64", "inference", inference("LeNet5", DIGITS)),
    Workload("LeNet-5 training step B64", "training", training_step("LeNet5", DIGITS)),
    Workload("Keras CNN inference B64", "inference", inference("KerasCNN", (64, 3, 32, 32))),
    Workload("Keras CNN training step B64", "training", training_step("KerasCNN", (64, 3, 32, 32))),
    Workload("ResNet-18 training step B8 64x64", "training", training_step("resnet18", (8, 3, 64, 64))),
    Workload("ResNet-50 inference B1 224x224", "inference", inference("resnet50", (1, 3, 224, 224))),
    *_sequence_workloads(),
]
assert len({w.name for w in WORKLOADS}) == len(WORKLOADS), "two rows share a name"
if unknown := QUICK - {w.name for w in WORKLOADS}:
    raise ValueError(f"no workload is called {sorted(unknown)}")
