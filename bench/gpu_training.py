"""The rows of the race on a GPU that train: steps of optimizers, and whole steps of a LeNet-5 and a GPT."""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import models
from gpu_row import Call, Place, Row


def optimizer_rows(quick: bool) -> Iterator[Row]:
    shapes = models.lenet_shapes() if quick else models.resnet50_shapes()
    numbers, of = sum(map(prod, shapes)), "LeNet-5" if quick else "ResNet-50"

    def step_of(name: str, **options: Any) -> Callable[[Place, list[Any]], Call]:
        def prepare(place: Place, tensors: list[Any]) -> Call:
            params = [place.lib.nn.Parameter(value.clone()) for value in tensors[: len(shapes)]]
            for p, gradient in zip(params, tensors[len(shapes) :], strict=True):
                p.grad = gradient.clone()
            optimizer = getattr(place.lib.optim, name)(params, lr=1e-3, **options, **_fused(place))

            def step() -> Any:
                optimizer.step()
                return [p.detach().reshape(-1)[:256] for p in params]

            return step

        return prepare

    for name, options, each in (("Adam", {}, 28), ("AdamW", {}, 28), ("SGD", {"momentum": 0.9}, 20)):
        yield Row(
            f"{name} step {of}",
            "optim",
            lambda s: [s.normal(*shape) for shape in shapes * 2],
            step_of(name, **options),
            bytes=each * numbers,
        )


def _fused(place: Place) -> dict[str, Any]:
    return {"fused": True} if place.tuned and not place.float64 else {}


def training_rows(quick: bool) -> Iterator[Row]:
    """Forward, cross-entropy, backward and a step of the optimizer on one batch; gives the loss."""
    batch = 2 if quick else 64

    def lenet(place: Place, tensors: list[Any]) -> Call:
        return _step(place, models.build(place.lib, "LeNet5", num_classes=10), "SGD", tensors)

    yield Row(
        f"LeNet-5 training step B{batch}",
        "training",
        lambda s: [s.normal(batch, 1, 28, 28), s.below(10, batch)],
        lenet,
        terms=10_000,
        rounds_within=8,
    )
    size = {**models.GPT, **({"layers": 1, "width": 32, "heads": 2, "vocabulary": 64, "context": 16} if quick else {})}
    rows, length = (2 if quick else 32), size["context"]

    def gpt(dtype: str) -> Callable[[Place, list[Any]], Call]:
        def prepare(place: Place, tensors: list[Any]) -> Call:
            model = models.seeded(place.lib, models.networks.gpt(place.lib, **size)).to(getattr(place.lib, dtype))
            return _step(place, model, "AdamW", tensors)

        return prepare

    for dtype in ("bfloat16", "float32"):
        yield Row(
            f"GPT training step B{rows}" + (" bfloat16" if dtype == "bfloat16" else ""),
            "training",
            lambda s: [s.below(size["vocabulary"], rows, length), s.below(size["vocabulary"], rows * length)],
            gpt(dtype),
            dtype,
            terms=size["layers"] * 12 * size["width"] + size["vocabulary"],
            rounds_within=4 * size["layers"],
        )


def _step(place: Place, model: Any, optimizer: str, tensors: list[Any]) -> Call:
    lib, (x, y) = place.lib, tensors
    model = model.to(place.device)
    if place.float64:
        model = model.double()
    if place.channels_last and x.ndim == 4:
        model = model.to(memory_format=lib.channels_last)
    update = getattr(lib.optim, optimizer)(model.parameters(), lr=1e-4, **_fused(place))

    def step() -> Any:
        update.zero_grad()
        loss = lib.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        update.step()
        return loss

    return step
