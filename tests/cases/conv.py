"""1-D and 2-D convolution: stride, padding, dilation, groups, and their gradients."""

from typing import Any

import numpy as np

import reference as ref
from cases.case import BenchRow, Case, Values, error, f32, sample

values = Values(5)
n = values.normal
F = "nn.functional."
HUGE = 2**31


def _of_magnitudes(formula: Any) -> Any:
    def magnitude(x: Any, w: Any, b: Any = None, *args: Any, **kwargs: Any) -> Any:
        return formula(np.abs(x), np.abs(w), None if b is None else np.abs(b), *args, **kwargs)

    return magnitude


def _terms(x: Any, w: Any, b: Any = None, *_: Any, **__: Any) -> int:
    return int(np.prod(w.shape[1:])) + 1


def _row(label: str, batch: int, channels: int, size: int, outputs: int, kernel: int, **kwargs: Any) -> list[BenchRow]:
    depth = channels // kwargs.get("groups", 1)

    def make() -> tuple[Any, ...]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, channels, size, size))
        return x, rng.standard_normal((outputs, depth, kernel, kernel)) * 0.1, rng.standard_normal(outputs)

    out = size + 2 * kwargs.get("padding", 0) - kernel + 1
    flops = 2.0 * batch * outputs * out * out * depth * kernel * kernel
    return [BenchRow(label, make, flops, kwargs=kwargs), BenchRow(label, make, 3 * flops, kwargs=kwargs, backward=True)]


# One to a few channels a group.
DEPTHWISE = [
    sample(n(2, 3, 7, 19), n(3, 1, 3, 3), n(3), padding=1, groups=3),
    sample(n(1, 2, 6, 35), n(4, 1, 3, 3), n(4), groups=2),
    sample(n(2, 2, 9, 37), n(2, 1, 3, 3), n(2), stride=2, padding=1, groups=2),
    sample(n(1, 2, 8, 34), n(2, 1, 3, 3), stride=2, padding=2, groups=2),
    sample(n(1, 2, 10, 11), n(2, 1, 3, 3), n(2), stride=3, padding=1, groups=2),
    sample(n(1, 2, 9, 10), n(4, 1, 3, 3), n(4), stride=(1, 2), padding=(3, 2), dilation=2, groups=2),
    sample(n(1, 2, 9, 10), n(2, 1, 3, 2), n(2), stride=(2, 1), padding=(1, 3), dilation=(1, 3), groups=2),
    sample(n(1, 2, 11, 12), n(2, 1, 5, 4), n(2), padding="same", groups=2),
    sample(n(1, 2, 12, 11), n(2, 1, 2, 5), n(2), stride=5, groups=2),
    sample(n(1, 2, 3, 2), n(2, 1, 1, 1), n(2), stride=4, padding=3, groups=2),
    sample(n(2, 1, 6, 5), n(1, 1, 3, 3), n(1), padding=1),
    sample(n(1, 6, 5, 6), n(4, 3, 3, 3), n(4), padding=1, groups=2),
    sample(n(0, 3, 5, 5), n(3, 1, 3, 3), n(3), groups=3),
]

CONV2D = [
    sample(n(2, 3, 7, 9), n(4, 3, 3, 3), n(4)),
    sample(n(2, 3, 7, 9), n(4, 3, 3, 3)),
    sample(n(1, 1, 5, 5), n(2, 1, 1, 1), n(2)),
    sample(n(2, 3, 8, 7), n(4, 3, 3, 2), n(4), stride=2, padding=1),
    sample(n(2, 3, 9, 8), n(4, 3, 2, 3), n(4), stride=(1, 3), padding=(2, 0), dilation=(2, 1)),
    sample(n(2, 4, 6, 6), n(6, 2, 3, 3), n(6), padding=1, groups=2),
    sample(n(2, 4, 6, 6), n(4, 1, 3, 3), n(4), padding=1, groups=4),
    sample(n(2, 3, 6, 5), n(4, 3, 4, 3), n(4), padding="same"),
    sample(n(2, 3, 6, 7), n(4, 3, 2, 3), n(4), padding="same", dilation=2),
    sample(n(2, 3, 6, 5), n(4, 3, 3, 3), padding="valid"),
    sample(n(3, 17, 5, 5), n(19, 17, 1, 1), n(19)),
    sample(n(1, 2, 5, 5), n(3, 2, 5, 5), n(3)),
    sample(n(1, 2, 3, 3), n(3, 2, 3, 3), n(3), padding=3, stride=3),
    sample(n(0, 3, 5, 5), n(4, 3, 3, 3), n(4)),
    *DEPTHWISE,
]

CONV1D = [
    sample(n(2, 3, 11), n(4, 3, 3), n(4)),
    sample(n(2, 3, 11), n(4, 3, 4), n(4), stride=2, padding=2),
    sample(n(2, 4, 11), n(6, 2, 3), n(6), dilation=2, groups=2),
    sample(n(2, 3, 9), n(4, 3, 4), n(4), padding="same"),
    sample(n(2, 3, 37), n(3, 1, 3), n(3), stride=2, padding=1, groups=3),
    sample(n(0, 3, 9), n(4, 3, 3), n(4)),
]


def _errors(name: str, x: Any, w: Any, one: Any) -> list[Any]:
    """The same mistakes in one and in two dimensions: `one` makes a kernel of size k."""
    return [
        error(ValueError, rf"{name}.*3 channels.*(expects|needs).* 5", x, one(4, 5, 3), None),
        error(ValueError, rf"{name}.*groups.*2", x, w, None, groups=2),
        error(ValueError, rf"{name}.*groups.*0", x, w, None, groups=0),
        error(ValueError, rf"{name}.*bias.*\(5,\)", x, w, f32(5)),
        error(ValueError, rf"{name}.*(output|size).*-", x, one(4, 3, 12), None),
        error(ValueError, rf"{name}.*stride.*0", x, w, None, stride=0),
        error(ValueError, rf"{name}.*stride.*-1", x, w, None, stride=-1),
        error(ValueError, rf"{name}.*padding.*-1", x, w, None, padding=-1),
        error(ValueError, rf"{name}.*dilation.*0", x, w, None, dilation=0),
        error(ValueError, name, x, w, None, dilation=HUGE),
        error(ValueError, name, x, w, None, dilation=2**62),
        error((ValueError, MemoryError), name + "|shape", x, w, None, padding=2**62),
        error(TypeError, rf"{name}.*float32.*float64", x, w.astype(np.float64), None),
        error(ValueError, rf"{name}.*\(7,\)", f32(7), w, None),
        error(ValueError, "same.*stride", x, w, None, padding="same", stride=2),
        error(ValueError, "padding.*'full'", x, w, None, padding="full"),
    ]


CASES = [
    Case(
        "conv2d",
        ref.conv2d,
        CONV2D,
        F + "conv2d",
        terms=_terms,
        magnitude=_of_magnitudes(ref.conv2d),
        large=lambda: (values.normal(5, 7, 33, 31), values.normal(19, 7, 3, 3), values.normal(19)),
        errors=_errors("conv2d", f32(2, 3, 7, 7), f32(4, 3, 3, 3), lambda o, c, k: f32(o, c, k, k)),
        bench=[
            *_row("depthwise 8x32x112x112 k3", 8, 32, 112, 32, 3, padding=1, groups=32),
            *_row("depthwise 8x384x14x14 k3", 8, 384, 14, 384, 3, padding=1, groups=384),
            *_row("grouped 8x128x56x56 -> 128 k3", 8, 128, 56, 128, 3, padding=1, groups=32),
            *_row("LeNet 1: 64x1x32x32 -> 6 k5", 64, 1, 32, 6, 5),
            *_row("LeNet 2: 64x6x14x14 -> 16 k5", 64, 6, 14, 16, 5),
            *_row("8x64x56x56 -> 64 k3", 8, 64, 56, 64, 3, padding=1),
        ],
    ),
    Case(
        "conv1d",
        ref.conv1d,
        CONV1D,
        F + "conv1d",
        terms=_terms,
        magnitude=_of_magnitudes(ref.conv1d),
        errors=_errors("conv1d", f32(2, 3, 7), f32(4, 3, 3), lambda o, c, k: f32(o, c, k)),
    ),
]
