"""The rows of the race on a GPU, by family, the most telling ones first; `quick` gives each family's smallest.

A row's inputs are made once, on the device, by torch; fastnn gets the same memory by DLPack.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod, sqrt
from types import ModuleType
from typing import Any

import models

Shape = tuple[int, ...]
Call = Callable[[], Any]
BYTES = {"float32": 4, "bfloat16": 2}
# The seconds that a family may take; what is left then is raced by the next run.
FAMILIES = {
    "matmul": 50,
    "attention": 45,
    "conv": 60,
    "recurrent": 30,
    "norm": 20,
    "softmax": 20,
    "pool": 20,
    "elementwise": 20,
    "optim": 15,
    "training": 30,
}


@dataclass(frozen=True)
class Place:
    """Where and how a contender computes."""

    lib: ModuleType
    device: str
    float64: bool = False  # the reference
    channels_last: bool = False
    tuned: bool = False  # the fused forms that its users know


@dataclass(frozen=True)
class Source:
    """Random tensors of torch."""

    torch: ModuleType
    device: str
    dtype: str

    def normal(self, *shape: int, scale: float = 1) -> Any:
        x = self.torch.randn(shape, device=self.device)
        return (scale * x).to(getattr(self.torch, self.dtype))

    def below(self, high: int, *shape: int) -> Any:
        return self.torch.randint(high, shape, device=self.device)


@dataclass(frozen=True)
class Row:
    name: str
    family: str
    inputs: Callable[[Source], list[Any]]
    prepare: Callable[[Place, list[Any]], Call]
    dtype: str = "float32"
    tf32: bool = False  # float32 numbers, whose products may be of TF32
    flops: float = 0
    bytes: float = 0
    terms: float = 1  # how many products are added up for a number of the results
    rounds_within: float = 0  # intermediate results that are rounded to the storage type too
    images: bool = False  # raced as NCHW and as channels_last


def forward(function: Callable[..., Any]) -> Callable[[Place, list[Any]], Call]:
    """Prepares ``function(lib, *tensors)``."""
    return lambda place, tensors: lambda: function(place.lib, *tensors)


def backward(function: Callable[..., Any]) -> Callable[[Place, list[Any]], Call]:
    """Prepares the gradients of ``function(lib, *tensors)``, its forward done before; the last tensor is dy."""

    def prepare(place: Place, tensors: list[Any]) -> Call:
        *args, dy = tensors
        leaves = [x.requires_grad_() for x in args if x.is_floating_point()]
        y = function(place.lib, *args)
        return lambda: list(place.lib.autograd.grad(y, leaves, dy, retain_graph=True))

    return prepare


def _in_dtypes(row: Row, tf32: bool = False) -> Iterator[Row]:
    """The row in bfloat16, in float32, and where it has products in TF32."""
    half = replace(row, name=f"{row.name} bfloat16", dtype="bfloat16", bytes=row.bytes / 2)
    return iter([half, row, *([replace(row, name=f"{row.name} tf32", tf32=True)] if tf32 else [])])


# ---- products -----------------------------------------------------------------------------------


def _matmul(quick: bool) -> Iterator[Row]:
    square = [64] if quick else [4096, 8192, 1024]
    shapes = [(n, n, n) for n in square]
    shapes += [(8, 64, 64)] if quick else [(8192, 768, 3072), (8192, 3072, 768), (1, 4096, 4096), (8, 4096, 4096)]
    for rows, inner, columns in shapes:
        label = f"matmul {rows}x{inner}x{columns}"
        for layout in ("", " NT") if rows in (4096, 8, 64) else ("",):
            row = Row(
                label + layout,
                "matmul",
                lambda s, m=rows, k=inner, n=columns, nt=bool(layout): [
                    s.normal(m, k),
                    s.normal(n, k).t() if nt else s.normal(k, n),
                ],
                forward(lambda lib, a, b: a @ b),
                flops=2.0 * rows * inner * columns,
                bytes=4.0 * (rows * inner + inner * columns + rows * columns),
                terms=inner,
            )
            yield from _in_dtypes(row, tf32=rows > 8)


def _attention(quick: bool) -> Iterator[Row]:
    """Shapes are (batch, heads, query length, key length, head dimension)."""
    shapes = [(1, 2, 64, 64, 32)] if quick else [(4, 16, 2048, 2048, 128), (8, 12, 1024, 1024, 64)]
    for batch, heads, queries, keys, dim in shapes:
        for causal in (True, False):
            flops = 4.0 * batch * heads * queries * keys * dim / (2 if causal else 1)
            yield from _in_dtypes(_attention_row((batch, heads, queries, keys, dim), causal, flops, False))
            yield from _in_dtypes(_attention_row((batch, heads, queries, keys, dim), causal, 2.5 * flops, True))
    for shape in [(1, 2, 1, 128, 32)] if quick else [(1, 32, 1, 8192, 128), (32, 32, 1, 2048, 128)]:
        yield from _in_dtypes(_attention_row(shape, False, 4.0 * prod(shape), False))


def _attention_row(shape: Shape, causal: bool, flops: float, gradients: bool) -> Row:
    batch, heads, queries, keys, dim = shape

    def inputs(source: Source) -> list[Any]:
        lengths = (queries, keys, keys, *([queries] if gradients else []))
        return [source.normal(batch, heads, length, dim) for length in lengths]

    def function(lib: ModuleType, q: Any, k: Any, v: Any) -> Any:
        return lib.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    kind = "decode" if queries == 1 else "causal" if causal else "full"
    return Row(
        f"attention {kind} B{batch} H{heads} L{keys} D{dim}" + (" backward" if gradients else ""),
        "attention",
        inputs,
        (backward if gradients else forward)(function),
        flops=flops,
        bytes=8.0 * batch * heads * (queries + keys) * dim,
        terms=keys + dim,
        rounds_within=3,  # the result, which delta is made of, P and dS
    )


# name: (channels, filters, kernel, size of the image, stride, groups)
CONVOLUTIONS = {
    "resnet 64>64 k3 56": (64, 64, 3, 56, 1, 1),
    "resnet 256>256 k3 14": (256, 256, 3, 14, 1, 1),
    "depthwise 256 k3 56": (256, 256, 3, 56, 1, 256),
    "resnet 256>64 k1 56": (256, 64, 1, 56, 1, 1),
    "grouped 256 k3 28 g32": (256, 256, 3, 28, 1, 32),
    "resnet 128>128 k3 28": (128, 128, 3, 28, 1, 1),
    "resnet 512>512 k3 7": (512, 512, 3, 7, 1, 1),
    "resnet 256>512 k1 56 s2": (256, 512, 1, 56, 2, 1),
    "resnet 3>64 k7 224 s2": (3, 64, 7, 224, 2, 1),
}
QUICK_CONVOLUTIONS = {"8>16 k3 8": (8, 16, 3, 8, 1, 1), "depthwise 8 k3 8": (8, 8, 3, 8, 1, 8)}


def _conv(quick: bool) -> Iterator[Row]:
    batch = 2 if quick else 64
    for label, (c, o, k, size, stride, groups) in (QUICK_CONVOLUTIONS if quick else CONVOLUTIONS).items():
        out = (size + 2 * (k // 2) - k) // stride + 1
        x, w, y = (batch, c, size, size), (o, c // groups, k, k), (batch, o, out, out)
        products = 2.0 * batch * out * out * prod(w)

        def function(lib: ModuleType, x: Any, w: Any, options: tuple[int, ...] = (stride, k // 2, groups)) -> Any:
            return lib.nn.functional.conv2d(x, w, stride=options[0], padding=options[1], groups=options[2])

        row = Row(
            f"conv2d {label} B{batch}",
            "conv",
            lambda s, x=x, w=w: [s.normal(*x), s.normal(*w, scale=1 / sqrt(prod(w[1:])))],
            forward(function),
            flops=products,
            bytes=4.0 * (prod(x) + prod(w) + prod(y)),
            terms=prod(w[1:]),
            images=True,
        )
        yield from _in_dtypes(row, tf32=groups == 1)
        gradients = replace(
            row,
            name=row.name + " backward",
            inputs=lambda s, x=x, w=w, y=y: [s.normal(*x), s.normal(*w, scale=1 / sqrt(prod(w[1:]))), s.normal(*y)],
            prepare=backward(function),
            flops=2 * products,
            bytes=2 * row.bytes,
            terms=batch * out * out,
        )
        yield from _in_dtypes(gradients, tf32=groups == 1)


def _recurrent(quick: bool) -> Iterator[Row]:
    for steps, batch, width in [(3, 2, 16)] if quick else [(100, 64, 512), (128, 1, 256)]:
        for kind, gates in (("LSTM", 4), ("GRU", 3)):
            weights: list[Shape] = [(gates * width, width)] * 2 + [(gates * width,)] * 2
            for training in (False, True):
                row = Row(
                    f"{kind} T{steps} B{batch} H{width}" + (" training" if training else ""),
                    "recurrent",
                    lambda s, t=steps, b=batch, h=width, w=weights: [
                        s.normal(t, b, h),
                        s.normal(t, b, h),
                        *(s.normal(*shape, scale=0.5 / sqrt(h)) for shape in w),
                    ],
                    _layer(kind, training),
                    flops=(6.0 if training else 2.0) * steps * batch * gates * width * 2 * width,
                    # Every step's products add to the errors of the steps before.
                    terms=2.0 * steps * width * (batch if training else 1),
                    rounds_within=sqrt(steps),
                )
                yield from _in_dtypes(row, tf32=True)


def _layer(kind: str, training: bool) -> Callable[[Place, list[Any]], Call]:
    """The output; in training forward and backward, and the gradients of input and weights."""

    def prepare(place: Place, tensors: list[Any]) -> Call:
        lib = place.lib
        x, dy, *weights = tensors
        layer = getattr(lib.nn, kind)(x.shape[2], x.shape[2], dtype=x.dtype, device=place.device)
        with lib.no_grad():
            for p, w in zip(layer.parameters(), weights, strict=True):
                p.copy_(w)
        if training:
            leaves = [x.requires_grad_(), *layer.parameters()]
            return lambda: list(lib.autograd.grad(layer(x)[0], leaves, dy))

        def run() -> Any:
            with lib.no_grad():
                return layer(x)[0]

        return run

    return prepare


# ---- bound by memory ----------------------------------------------------------------------------


def _pair(row: Row, function: Callable[..., Any], moves: int, result: Shape | None = None) -> Iterator[Row]:
    """The row and its backward, which moves the first tensor `moves` times; `result` is dy's shape, if not x's."""
    yield from _in_dtypes(row)

    def inputs(source: Source) -> list[Any]:
        made = row.inputs(source)
        return [*made, source.normal(*(made[0].shape if result is None else result))]

    gradients = replace(
        row,
        name=row.name + " backward",
        inputs=inputs,
        prepare=backward(function),
        bytes=moves * row.bytes / 2,
        rounds_within=2,
    )
    yield from _in_dtypes(gradients)


def _norm(quick: bool) -> Iterator[Row]:
    for rows, width in [(16, 64)] if quick else [(16384, 1024), (8192, 4096)]:

        def layer(lib: ModuleType, x: Any, w: Any, b: Any) -> Any:
            return lib.nn.functional.layer_norm(x, w.shape, w, b)

        def root(lib: ModuleType, x: Any, w: Any) -> Any:
            return lib.nn.functional.rms_norm(x, w.shape, w, 1e-5)

        for name, function, scales in (("layer_norm", layer, 2), ("rms_norm", root, 1)):
            row = Row(
                f"{name} {rows}x{width}",
                "norm",
                lambda s, r=rows, w=width, n=scales: [s.normal(r, w), *(s.normal(w) for _ in range(n))],
                forward(function),
                bytes=8.0 * rows * width,
                terms=rows,
            )
            yield from _pair(row, function, 3)
    shape = (2, 8, 6, 6) if quick else (64, 256, 56, 56)
    channels = shape[1]

    def batch(lib: ModuleType, x: Any, w: Any, b: Any) -> Any:
        return lib.nn.functional.batch_norm(x, None, None, w, b, True)

    def group(lib: ModuleType, x: Any, w: Any, b: Any) -> Any:
        return lib.nn.functional.group_norm(x, channels // 8, w, b)

    for name, function in (("batch_norm", batch), ("group_norm", group)):
        row = Row(
            f"{name} {'x'.join(map(str, shape))}",
            "norm",
            lambda s: [s.normal(*shape), s.normal(channels), s.normal(channels)],
            forward(function),
            bytes=8.0 * prod(shape),
            terms=prod(shape) // channels,
            images=True,
        )
        yield from _pair(row, function, 5 if name == "batch_norm" else 3)


def _softmax(quick: bool) -> Iterator[Row]:
    for rows, classes in [(16, 100)] if quick else [(8192, 50257), (32768, 1024), (65536, 128)]:

        def softmax(lib: ModuleType, x: Any) -> Any:
            return lib.softmax(x, -1)

        def loss(lib: ModuleType, x: Any, y: Any) -> Any:
            return lib.nn.functional.cross_entropy(x, y)

        size = 4.0 * rows * classes
        row = Row(
            f"softmax {rows}x{classes}",
            "softmax",
            lambda s, r=rows, c=classes: [s.normal(r, c)],
            forward(softmax),
            bytes=2 * size,
            terms=classes,
            rounds_within=1,
        )
        yield from _pair(row, softmax, 3)
        row = Row(
            f"cross_entropy {rows}x{classes}",
            "softmax",
            lambda s, r=rows, c=classes: [s.normal(r, c), s.below(c, r)],
            forward(loss),
            bytes=size,
            terms=rows + classes,
        )
        yield from _pair(row, loss, 4, ())


def _pool(quick: bool) -> Iterator[Row]:
    shapes = [(2, 4, 8, 8)] if quick else [(64, 64, 112, 112), (64, 512, 28, 28)]
    for shape in shapes:
        n, c, h, w = shape

        def most(lib: ModuleType, x: Any) -> Any:
            return lib.nn.functional.max_pool2d(x, 3, 2, 1)

        def halves(lib: ModuleType, x: Any) -> Any:
            return lib.nn.functional.max_pool2d(x, 2)

        def mean(lib: ModuleType, x: Any) -> Any:
            return lib.nn.functional.avg_pool2d(x, 2)

        def whole(lib: ModuleType, x: Any) -> Any:
            return lib.nn.functional.adaptive_avg_pool2d(x, 1)

        half = (n, c, h // 2, w // 2)
        functions = {"max_pool2d k3 s2": most, "max_pool2d k2": halves, "avg_pool2d k2": mean}
        for name, function in functions.items():
            yield from _pair(_pool_row(name, shape, half, function), function, 2, half)
        name = "adaptive_avg_pool2d 1"
        yield from _pair(_pool_row(name, shape, (n, c, 1, 1), whole), whole, 2, (n, c, 1, 1))


def _pool_row(name: str, x: Shape, y: Shape, function: Callable[..., Any]) -> Row:
    moved, terms = 4.0 * (prod(x) + prod(y)), prod(x) // prod(y)
    label = f"{name} {'x'.join(map(str, x))}"
    return Row(
        label, "pool", lambda s: [s.normal(*x)], forward(function), bytes=moved, terms=max(9, terms), images=True
    )


def _elementwise(quick: bool) -> Iterator[Row]:
    side = 64 if quick else 8192  # 256 MiB of float32: beyond any cache
    calls: dict[str, tuple[Callable[..., Any], int, int]] = {  # (call, matrices, how often it moves one)
        "copy": (lambda lib, x: x.clone(), 1, 2),
        "add": (lambda lib, x, y: x + y, 2, 3),
        "gelu": (lambda lib, x: lib.nn.functional.gelu(x), 1, 2),
        "transposed copy": (lambda lib, x: x.t().contiguous(), 1, 2),
        "sum over 0": (lambda lib, x: x.sum(0), 1, 1),
        "sum over 1": (lambda lib, x: x.sum(1), 1, 1),
        "exp": (lambda lib, x: x.exp(), 1, 2),
        "add a row": (lambda lib, x: x + x[0], 1, 2),
        "relu": (lambda lib, x: lib.relu(x), 1, 2),
        "cat": (lambda lib, x, y: lib.cat([x, y], 1), 2, 4),
    }
    for name, (call, count, moves) in calls.items():
        row = Row(
            f"{name} {side}x{side}",
            "elementwise",
            lambda s, n=count: [s.normal(side, side) for _ in range(n)],
            forward(call),
            bytes=4.0 * moves * side * side,
            terms=side if name.startswith("sum") else 1,
        )
        yield from _in_dtypes(row)


# ---- training -----------------------------------------------------------------------------------


def _optim(quick: bool) -> Iterator[Row]:
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


def _training(quick: bool) -> Iterator[Row]:
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


def rows(quick: bool) -> list[Row]:
    """Of all families, in the order of FAMILIES."""
    makers = (_matmul, _attention, _conv, _recurrent, _norm, _softmax, _pool, _elementwise, _optim, _training)
    found = [row for make in makers for row in make(quick)]
    if len({row.name for row in found}) != len(found) or {row.family for row in found} != set(FAMILIES):
        raise ValueError("two rows share a name, or a family has none")
    return found
