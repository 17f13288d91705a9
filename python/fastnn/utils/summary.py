"""A table of a model's layers, output shapes and parameter counts."""

import warnings
from dataclasses import dataclass
from typing import Any

from fastnn import _C
from fastnn._C import Tensor
from fastnn.autograd import no_grad
from fastnn.nn.module import Module

_BATCH = 2  # samples in the trial run: enough to see a batch that changes its size


@dataclass(frozen=True)
class LayerRow:
    """One leaf module, in calling order. ``output_shape`` is without the batch."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    n_parameters: int


@dataclass(frozen=True)
class Summary:
    """What ``summary`` found; printing it shows the table."""

    rows: tuple[LayerRow, ...]
    total_parameters: int
    trainable_parameters: int

    def __str__(self) -> str:
        cells = [("layer", "type", "output", "parameters")]
        cells += [
            (r.name, r.kind, str(("N", *r.output_shape)).replace("'", ""), f"{r.n_parameters:,}") for r in self.rows
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in cells]
        lines.insert(1, "-" * len(lines[0]))
        totals = f"total parameters {self.total_parameters:,}, trainable {self.trainable_parameters:,}"
        return "\n".join([*lines, "-" * len(lines[0]), totals])

    __repr__ = __str__


def _first_tensor(output: Any) -> Tensor | None:
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def summary(model: Module, input_shape: tuple[int, ...], dtype: Any = None) -> Summary:
    """Runs ``model`` once, in eval mode, on zeros of ``(batch, *input_shape)`` and tells what each layer gave.

    Warns when a layer's output does not have the batch size of the input: a wrong ``view(-1, ...)``
    then mixes samples, which trains without any error.
    """
    rows: list[LayerRow] = []
    changed: list[str] = []

    def watch(name: str, module: Module) -> Any:
        def hook(_: Module, args: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            shape = () if tensor is None else tuple(tensor.shape)
            if shape[:1] != (_BATCH,):
                changed.append(f"{name} ({type(module).__name__}) gave {shape[0] if shape else 'no'} rows")
            count = sum(p.numel() for p in module.parameters())
            rows.append(LayerRow(name, type(module).__name__, shape[1:], count))

        return module.register_forward_hook(hook)

    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    handles = [watch(name or type(model).__name__, module) for name, module in leaves]
    modes = [(module, module.training) for module in model.modules()]
    sample = next(model.parameters(), None)
    kind = dtype or (sample.dtype if sample is not None else _C.float32)
    try:
        model.eval()
        with no_grad():
            model(_C.zeros((_BATCH, *input_shape), dtype=kind, device=None if sample is None else sample.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if changed:
        warnings.warn(
            f"summary: the batch dimension changed: {changed[0]} for {_BATCH} samples; "
            "look for a view or reshape that assumes another input size",
            stacklevel=2,
        )
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return Summary(tuple(rows), sum(p.numel() for p in parameters), trainable)
