"""Whole networks for the race: the same network with the same start in fastnn and in torch."""

import io
from collections.abc import Callable
from types import ModuleType
from typing import Any

import networks
import numpy as np
import onnx_graphs
from contenders import Contender, Prepared

Step = Callable[[], Any]
Prepare = Callable[[Contender, ModuleType, int], Prepared | None]


def build(lib: ModuleType, name: str, **options: Any) -> Any:
    """``fastnn.models.<name>(**options)`` or its torch twin; weights and biases from one random sequence."""
    if lib.__name__ == "torch":
        import torch_models as models
    else:
        from fastnn import models
    return seeded(lib, getattr(models, name)(**options))


def seeded(lib: ModuleType, model: Any) -> Any:
    """The model, its weights and biases from one random sequence; the scales of normalizations stay 1."""
    rng = np.random.default_rng(0)
    with lib.no_grad():
        for key, p in sorted(model.named_parameters()):
            shape = tuple(p.shape)
            if len(shape) > 1 or key.split(".")[-1] != "weight":
                scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.01
                p.copy_(lib.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32)))
    return model


def rounding_terms(model: Any) -> int:
    """Rounding errors of the layers add up like those of one sum as long as all of theirs."""
    return sum(int(np.prod(p.shape[1:])) for p in model.parameters() if p.dim() > 1)


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
        return Prepared(make(lib, model, x), [rounding_terms(model)])

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


# ---- networks that do not see images, and optimizers -------------------------------------------------


def _sequence_network(
    build_model: Callable[[ModuleType], Any], make: Callable[[ModuleType, Any], Step], dtype: str = "float32"
) -> Prepare:
    """Prepares `make(lib, model)`; the reference computes in float64 from weights of the dtype."""

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if not hasattr(lib, "nn") or contender.channels_last:
            return None
        model = seeded(lib, build_model(lib)).to(getattr(lib, dtype))
        if contender.float64:
            model = model.double()
        return Prepared(make(lib, model), [rounding_terms(model)])

    return prepare


def _input(lib: ModuleType, model: Any, shape: tuple[int, ...], tokens: int | None) -> Any:
    """Token ids below `tokens`, or numbers of the model's dtype."""
    rng = np.random.default_rng(1)
    if tokens is not None:
        return lib.from_numpy(rng.integers(0, tokens, shape))
    return lib.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(next(model.parameters()).dtype)


def sequence_training_step(
    build_model: Callable[[ModuleType], Any],
    shape: tuple[int, ...],
    targets: tuple[int, ...],
    optimizer: str,
    tokens: int | None = None,
    classes: int | None = None,
    dtype: str = "float32",
    **options: Any,
) -> Prepare:
    """Prepares forward, loss, backward and a step of the optimizer on one batch; gives the loss.

    The loss is the cross-entropy over `classes`, or without them the mean square error.
    """

    def make(lib: ModuleType, model: Any) -> Step:
        F, update = lib.nn.functional, getattr(lib.optim, optimizer)(model.parameters(), **options)
        x, rng = _input(lib, model, shape, tokens), np.random.default_rng(2)
        if classes is None:
            y, loss_of = lib.from_numpy(rng.standard_normal(targets).astype(np.float32)), F.mse_loss
            y = y.to(next(model.parameters()).dtype)
        else:
            y, loss_of = lib.from_numpy(rng.integers(0, classes, targets)), F.cross_entropy

        def step() -> Any:
            update.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            update.step()
            return loss

        return step

    return _sequence_network(build_model, make, dtype)


def sequence_inference(
    build_model: Callable[[ModuleType], Any], shape: tuple[int, ...], tokens: int | None = None
) -> Prepare:
    """Prepares the forward pass in ``eval()`` without gradients."""

    def make(lib: ModuleType, model: Any) -> Step:
        model.eval()
        x = _input(lib, model, shape, tokens)

        def forward() -> Any:
            with lib.no_grad():
                return model(x)

        return forward

    return _sequence_network(build_model, make)


def decoding_step(build_model: Callable[[ModuleType], Any], vocabulary: int, position: int) -> Prepare:
    """Prepares the generation of one token at a position, earlier keys and values in a cache; gives its logits."""

    def make(lib: ModuleType, model: Any) -> Step:
        model.eval()
        rng, dtype = np.random.default_rng(1), next(model.parameters()).dtype
        cache = model.cache(1, position + 1)
        cache = [
            tuple(lib.from_numpy(rng.standard_normal(tuple(x.shape)).astype(np.float32)).to(dtype) for x in pair)
            for pair in cache
        ]
        token = lib.from_numpy(rng.integers(0, vocabulary, (1, 1)))

        def step() -> Any:
            with lib.no_grad():
                return model.decode(token, position, cache)

        return step

    return _sequence_network(build_model, make)


def recurrent(kind: str, sizes: tuple[int, ...], dtype: str, training: bool) -> Prepare:
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
        rounds = float(np.sqrt(layers * n_steps))  # each step rounds its state, this way and that
        if training:
            leaves = [x.requires_grad_(), *layer.parameters()]
            return Prepared(lambda: lib.autograd.grad(layer(x)[0], leaves, dy), [terms * batch] * len(leaves), rounds)

        def forward() -> Any:
            with lib.no_grad():
                return layer(x)[0]

        return Prepared(forward, [terms], rounds)

    return prepare


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Of ResNet-50's parameters: 25.6 million numbers in 161 tensors."""
    from fastnn import models

    return [tuple(p.shape) for p in models.resnet50().parameters()]


def gpt2_shapes() -> list[tuple[int, ...]]:
    """Of GPT-2's parameters, the small one's: 124.4 million numbers in 148 tensors."""
    w = 768
    block = [(w,), (w,), (3 * w, w), (3 * w,), (w, w), (w,), (w,), (w,), (4 * w, w), (4 * w,), (w, 4 * w), (w,)]
    return [(50257, w), (1024, w), *(block * 12), (w,), (w,)]


def lenet_shapes() -> list[tuple[int, ...]]:
    """Of LeNet-5's parameters: 61,706 numbers in 10 tensors."""
    from fastnn import models

    return [tuple(p.shape) for p in models.LeNet5().parameters()]


def optimizer_step(shapes: Callable[[], list[tuple[int, ...]]], name: str, **options: Any) -> Prepare:
    """Prepares a step on random gradients; gives the first numbers of every parameter."""

    def prepare(contender: Contender, lib: ModuleType, threads: int) -> Prepared | None:
        if not hasattr(lib, "nn") or contender.channels_last:
            return None
        rng, dtype = np.random.default_rng(2), lib.float64 if contender.float64 else lib.float32
        params = []
        for shape in shapes():
            values, gradients = (lib.from_numpy(rng.standard_normal(shape, np.float32)).to(dtype) for _ in range(2))
            params.append(lib.nn.Parameter(values))
            params[-1].grad = gradients
        optimizer = getattr(lib.optim, name)(params, **options)

        def step() -> Any:
            optimizer.step()
            return [p.detach().reshape(-1)[:256] for p in params]

        return Prepared(step, [1])

    return prepare


MLP_WIDTHS = (1000, 500, 250, 100, 1)
GPT = {"layers": 6, "width": 384, "heads": 6, "vocabulary": 8192, "context": 256}
GPT2 = {"layers": 12, "width": 768, "heads": 12, "vocabulary": 50257, "context": 1024}


def small_gpt(lib: ModuleType) -> Any:
    return networks.gpt(lib, **GPT)


def gpt2(lib: ModuleType) -> Any:
    return networks.gpt(lib, **GPT2)


def digits_mlp(lib: ModuleType) -> Any:
    return networks.mlp(lib, 784, 128, 10)


def regression_mlp(lib: ModuleType) -> Any:
    return networks.mlp(lib, *MLP_WIDTHS)
