"""Whole networks for the race: the same network with the same start in fastnn and in torch."""

import io
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnx_graphs
from contenders import Contender, Prepared

Step = Callable[[], Any]


def build(lib: ModuleType, name: str, **options: Any) -> Any:
    """``fastnn.models.<name>(**options)`` or its torch twin; weights and biases from one random sequence."""
    if lib.__name__ == "torch":
        import torch_models as models
    else:
        from fastnn import models
    model, rng = getattr(models, name)(**options), np.random.default_rng(0)
    with lib.no_grad():
        for key, p in sorted(model.named_parameters()):
            if ".bn" not in f".{key}" and ".downsample.1" not in key:  # normalizations start at 1 and 0
                shape = tuple(p.shape)
                scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.01
                p.copy_(lib.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32)))
    return model


def images(lib: ModuleType, shape: tuple[int, ...]) -> Any:
    return lib.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def _network(
    name: str, shape: tuple[int, ...], options: dict[str, Any], make: Callable[[ModuleType, Any, Any], Step]
) -> Any:
    """Prepares `make(lib, model, x)`; the reference computes in float64."""

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if not hasattr(lib, "nn"):
            return None
        model, x = build(lib, name, **options), images(lib, shape)
        if contender.float64:
            model, x = model.double(), x.double()
        elif contender.channels_last:
            model, x = (value.to(memory_format=lib.channels_last) for value in (model, x))
        # Rounding errors of the layers add up like those of one sum as long as all of theirs.
        terms = sum(int(np.prod(p.shape[1:])) for p in model.parameters() if p.dim() > 1)
        return Prepared(make(lib, model, x), [terms])

    return prepare


def training_step(name: str, shape: tuple[int, ...], num_classes: int = 10, **options: Any) -> Any:
    """Prepares forward, cross-entropy, backward and an SGD step with momentum on one batch; gives the loss."""

    def make(lib: ModuleType, model: Any, x: Any) -> Step:
        optimizer = lib.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        labels = lib.from_numpy(np.random.default_rng(2).integers(0, num_classes, shape[0]))

        def step() -> Any:
            optimizer.zero_grad()
            loss = lib.nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        return step

    return _network(name, shape, {"num_classes": num_classes, **options}, make)


def inference(name: str, shape: tuple[int, ...], **options: Any) -> Any:
    """Prepares the forward pass in ``eval()`` without gradients; gives the logits."""

    def make(lib: ModuleType, model: Any, x: Any) -> Step:
        model.eval()

        def forward() -> Any:
            with lib.no_grad():
                return model(x)

        return forward

    eager = _network(name, shape, options, make)

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if lib.__name__ != "onnxruntime":
            return eager(contender, lib, threads)
        import torch

        model, x, file = build(torch, name, **options).eval(), images(torch, shape), io.BytesIO()
        torch.onnx.export(model, (x,), file, input_names=["x"], dynamo=False)
        ready, data = onnx_graphs.session(lib, file.getvalue(), threads), x.numpy()
        return Prepared(lambda: ready.run(None, {"x": data}), [])

    return prepare


def optimizer_step(network: str, name: str, **options: Any) -> Any:
    """Prepares a step on random gradients; gives the parameters."""

    def make(lib: ModuleType, model: Any, x: Any) -> Step:
        rng = np.random.default_rng(2)
        for p in model.parameters():
            p.grad = lib.from_numpy(rng.standard_normal(tuple(p.shape)).astype(np.float32)).to(p.dtype)
        optimizer = getattr(lib.optim, name)(model.parameters(), **options)

        def step() -> Any:
            optimizer.step()
            return [p.detach() for p in model.parameters()]

        return step

    eager = _network(network, (1,), {}, make)
    return lambda contender, lib, threads: None if contender.channels_last else eager(contender, lib, threads)


def recurrent(kind: str, sizes: tuple[int, ...], dtype: str, training: bool) -> Any:
    """Prepares a layer ``nn.<kind>`` over a sequence; ``sizes`` are (steps, batch, inputs, hidden, layers).

    Without gradients it gives the output; in training forward and backward, and the gradients of input and weights.
    """
    n_steps, batch, inputs, hidden, layers = sizes

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if not hasattr(lib, "nn") or contender.channels_last:
            return None
        rng = np.random.default_rng(0)

        def tensor(values: np.ndarray) -> Any:
            stored = lib.from_numpy(values.astype(np.float32)).to(getattr(lib, dtype))
            return stored.double() if contender.float64 else stored

        layer_dtype = lib.float64 if contender.float64 else getattr(lib, dtype)
        layer = getattr(lib.nn, kind)(inputs, hidden, layers, dtype=layer_dtype)
        with lib.no_grad():
            for _, p in sorted(layer.named_parameters()):
                p.copy_(tensor(rng.uniform(-1, 1, tuple(p.shape)) / np.sqrt(hidden)))
        x = tensor(rng.standard_normal((n_steps, batch, inputs)))
        dy = tensor(rng.standard_normal((n_steps, batch, hidden)))
        # Every step's products add to the errors of the steps before.
        terms = layers * n_steps * (inputs + hidden)
        if training:
            leaves = [x.requires_grad_(), *layer.parameters()]
            return Prepared(lambda: lib.autograd.grad(layer(x)[0], leaves, dy), [terms * batch] * len(leaves))

        def forward() -> Any:
            with lib.no_grad():
                return layer(x)[0]

        return Prepared(forward, [terms])

    return prepare
