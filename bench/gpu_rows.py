"""The rows of the race on a GPU, by family, the most telling ones first; `quick` gives each family's smallest.

A row's inputs are made once, on the device, by torch; fastnn gets the same memory by DLPack.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod, sqrt
from types import ModuleType
from typing import Any

from gpu_row import Call, Place, Row, Shape, Source, backward, forward, in_dtypes
from gpu_training import optimizer_rows, training_rows

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
            yield from in_dtypes(row, tf32=rows > 8)


def _attention(quick: bool) -> Iterator[Row]:
    """Shapes are (batch, heads, query length, key length, head dimension)."""
    shapes = [(1, 2, 64, 64, 32)] if quick else [(4, 16, 2048, 2048, 128), (8, 12, 1024, 1024, 64)]
    for batch, heads, queries, keys, dim in shapes:
        for causal in (True, False):
            flops = 4.0 * batch * heads * queries * keys * dim / (2 if causal else 1)
            yield from in_dtypes(_attention_row((batch, heads, queries, keys, dim), causal, flops, False))
            yield from in_dtypes(_attention_row((batch, heads, queries, keys, dim), causal, 2.5 * flops, True))
    for shape in [(1, 2, 1, 128, 32)] if quick else [(1, 32, 1, 8192, 128), (32, 32, 1, 2048, 128)]:
        yield from in_dtypes(_attention_row(shape, False, 4.0 * prod(shape), False))


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
        yield from in_dtypes(row, tf32=groups == 1)
        gradients = replace(
            row,
            name=row.name + " backward",
            inputs=lambda s, x=x, w=w, y=y: [s.normal(*x), s.normal(*w, scale=1 / sqrt(prod(w[1:]))), s.normal(*y)],
            prepare=backward(function),
            flops=2 * products,
            bytes=2 * row.bytes,
            terms=batch * out * out,
        )
        yield from in_dtypes(gradients, tf32=groups == 1)


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
                yield from in_dtypes(row, tf32=True)


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
    yield from in_dtypes(row)

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
    yield from in_dtypes(gradients)


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
        yield from in_dtypes(row)


def rows(quick: bool) -> list[Row]:
    """Of all families, in the order of FAMILIES."""
    operations = (_matmul, _attention, _conv, _recurrent, _norm, _softmax, _pool, _elementwise)
    found = [row for make in (*operations, optimizer_rows, training_rows) for row in make(quick)]
    if len({row.name for row in found}) != len(found) or {row.family for row in found} != set(FAMILIES):
        raise ValueError("two rows share a name, or a family has none")
    return found
