"""Whole networks for the race: the same network with the same start in fastnn and in torch.

Workload("ResNet-18 training step, batch 8, 64x64", "model", training_step("resnet18", (8, 3, 64, 64)))
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

Call = Callable[[], Any]


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


def training_step(name: str, shape: tuple[int, ...], num_classes: int = 10, **options: Any) -> Any:
    """Prepares forward, cross-entropy, backward and an SGD step with momentum on one batch; gives the loss."""

    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        model, rng = build(lib, name, num_classes=num_classes, **options), np.random.default_rng(1)
        optimizer = lib.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        x = lib.from_numpy(rng.standard_normal(shape).astype(np.float32))
        labels = lib.from_numpy(rng.integers(0, num_classes, shape[0]))

        def step() -> Any:
            optimizer.zero_grad()
            loss = lib.nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        return step

    return prepare


def inference(name: str, shape: tuple[int, ...], **options: Any) -> Any:
    """Prepares the forward pass in ``eval()`` without gradients; gives the logits."""

    def prepare(lib: ModuleType) -> Call | None:
        if lib is np:
            return None
        model = build(lib, name, **options).eval()
        x = lib.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))

        def forward() -> Any:
            with lib.no_grad():
                return model(x)

        return forward

    return prepare
