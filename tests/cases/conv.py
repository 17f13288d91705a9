"""Convolution and its transpose: stride, padding, dilation, groups, and their gradients."""

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


def _rows(
    label: str, x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, first: bool = False, **kwargs: Any
) -> list[BenchRow]:
    """Forward and backward, float32 and bfloat16; the first layer of a network needs no gradient of its input."""

    def make() -> tuple[Any, ...]:
        rng = np.random.default_rng(0)
        return rng.standard_normal(x), rng.standard_normal(w) * 0.1, rng.standard_normal(w[0]) if bias else None

    stride, padding, dilation = (kwargs.get(name, 0 if name == "padding" else 1) for name in _WINDOW)
    pixels = [(size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k in zip(x[2:], w[2:], strict=True)]
    flops = 2.0 * x[0] * int(np.prod(pixels)) * int(np.prod(w))
    backward = {"backward": True, "gradients": (1, 2) if first else None}
    return [
        row
        for dtype in ("float32", "bfloat16")
        for row in (
            BenchRow(label, make, flops, kwargs=kwargs, dtype=dtype),
            BenchRow(label, make, (1 if first else 2) * flops, kwargs=kwargs, dtype=dtype, **backward),
        )
    ]


_WINDOW = ("stride", "padding", "dilation")


def _resnet(label: str, c: int, o: int, k: int, size: int, groups: int = 1, **kwargs: Any) -> list[BenchRow]:
    """A layer of a batch of 8, without bias, padded to keep its size (over its stride)."""
    kwargs = {"padding": kwargs.get("dilation", 1) * (k // 2), **({"groups": groups} if groups > 1 else {}), **kwargs}
    return _rows(f"{label} k{k} {size} B8", (8, c, size, size), (o, c // groups, k, k), **kwargs)


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
    sample(n(1, 8, 9, 19), n(10, 4, 3, 3), n(10), padding=1, groups=2),
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


CONV3D = [
    sample(n(2, 3, 4, 5, 6), n(4, 3, 2, 3, 3), n(4)),
    sample(n(1, 2, 5, 4, 4), n(3, 2, 3, 2, 1), stride=(2, 1, 1), padding=(1, 0, 1)),
    sample(n(2, 4, 7, 3, 4), n(6, 2, 3, 2, 2), n(6), padding=(2, 1, 0), dilation=(2, 1, 1), groups=2),
    sample(n(1, 2, 4, 3, 5), n(2, 2, 2, 3, 3), n(2), padding="same"),
    sample(n(1, 3, 7, 3, 3), n(2, 3, 1, 1, 1), n(2), stride=3),
    sample(n(0, 3, 4, 5, 5), n(4, 3, 2, 3, 3), n(4)),
]

TRANSPOSE2D = [
    sample(n(2, 3, 4, 5), n(3, 4, 3, 3), n(4)),
    sample(n(2, 3, 4, 5), n(3, 4, 3, 2), stride=2, padding=1, output_padding=1),
    sample(n(2, 3, 4, 3), n(3, 2, 2, 3), n(2), stride=(1, 3), padding=(0, 2), output_padding=(0, 1), dilation=(2, 1)),
    sample(n(2, 4, 3, 4), n(4, 3, 3, 3), n(6), stride=2, groups=2),
    sample(n(2, 4, 3, 4), n(4, 1, 3, 3), n(4), stride=2, padding=1, groups=4),
    sample(n(1, 2, 3, 3), n(2, 3, 2, 2), n(3), output_padding=2, dilation=3),
    sample(n(3, 17, 5, 5), n(17, 19, 1, 1), n(19)),
    sample(n(1, 2, 1, 1), n(2, 3, 4, 4), n(3)),
    sample(n(0, 3, 4, 5), n(3, 4, 3, 3), n(4)),
]

TRANSPOSE1D = [
    sample(n(2, 3, 7), n(3, 4, 3), n(4)),
    sample(n(2, 3, 5), n(3, 4, 4), stride=3, padding=2, output_padding=1),
    sample(n(2, 4, 5), n(4, 3, 3), n(6), stride=2, dilation=2, groups=2),
    sample(n(0, 3, 5), n(3, 4, 3), n(4)),
]


def _transposed_terms(x: Any, w: Any, b: Any = None, stride: Any = 1, *_: Any, groups: int = 1, **__: Any) -> int:
    return w.shape[0] // groups * int(np.prod(w.shape[2:])) + 1


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


def _transposed_errors(name: str, x: Any, w: Any) -> list[Any]:
    """x has 3 channels, w makes 4 of them with kernels of size 3."""
    return [
        error(ValueError, rf"{name}.*4 channels.*expects 3", np.concatenate([x, x[:, :1]], 1), w, None),
        error(ValueError, rf"{name}.*3 input channels.*groups=2", x, w, None, groups=2),
        error(ValueError, rf"{name}.*groups.*0", x, w, None, groups=0),
        error(ValueError, rf"{name}.*bias.*\(5,\).*4", x, w, f32(5)),
        error(ValueError, rf"{name}.*output_padding.*smaller.*2.*stride 2", x, w, stride=2, output_padding=2),
        error(ValueError, rf"{name}.*output_padding.*-1", x, w, output_padding=-1),
        error(ValueError, rf"{name}.*padding.*-1", x, w, padding=-1),
        error(ValueError, rf"{name}.*stride.*0", x, w, stride=0),
        error(ValueError, rf"{name}.*too small.*-", x, w, padding=20),
        error(ValueError, rf"{name}.*(overflows|too small)", x, w, stride=2**62),
        error((ValueError, MemoryError), name + "|shape|allocate", x, w, dilation=2**40),
        error(ValueError, rf"{name}.*positive input size.*0", x[..., :0], w),
        error(TypeError, rf"{name}.*float32.*float64", x, w.astype(np.float64)),
        error(ValueError, rf"{name}.*\(7,\)", f32(7), w),
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
            *_rows("lenet 1>6 k5 28 B64", (64, 1, 28, 28), (6, 1, 5, 5), bias=True, first=True),
            *_rows("lenet 1>6 k5 224 B64", (64, 1, 224, 224), (6, 1, 5, 5), bias=True, first=True),
            *_rows("lenet 6>16 k5 12 B64", (64, 6, 12, 12), (16, 6, 5, 5), bias=True),
            *_rows("lenet 6>16 k5 110 B64", (64, 6, 110, 110), (16, 6, 5, 5), bias=True),
            *_resnet("3>64 s2", 3, 64, 7, 224, stride=2, first=True),
            *_resnet("64>64", 64, 64, 3, 56),
            *_resnet("128>128", 128, 128, 3, 28),
            *_resnet("256>256", 256, 256, 3, 14),
            *_resnet("512>512", 512, 512, 3, 7),
            *_resnet("64>256", 64, 256, 1, 56),
            *_resnet("1024>256", 1024, 256, 1, 14),
            *_resnet("128>128 s2", 128, 128, 3, 56, stride=2),
            *_resnet("depthwise 32", 32, 32, 3, 112, groups=32),
            *_resnet("depthwise 384", 384, 384, 3, 14, groups=384),
            *_resnet("128>128 g32", 128, 128, 3, 56, groups=32),
            *_resnet("64>64 d2", 64, 64, 3, 56, dilation=2),
            *_rows("keras 32>64 k3 26 B128", (128, 32, 26, 26), (64, 32, 3, 3), bias=True),
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
        bench=_rows("256>256 k3 1024 B8", (8, 256, 1024), (256, 256, 3)),
    ),
    Case(
        "conv3d",
        ref.conv3d,
        CONV3D,
        F + "conv3d",
        terms=_terms,
        magnitude=_of_magnitudes(ref.conv3d),
        errors=_errors("conv3d", f32(2, 3, 7, 7, 7), f32(4, 3, 3, 3, 3), lambda o, c, k: f32(o, c, k, k, k)),
    ),
    Case(
        "conv_transpose2d",
        ref.conv_transpose2d,
        TRANSPOSE2D,
        F + "conv_transpose2d",
        terms=_transposed_terms,
        magnitude=_of_magnitudes(ref.conv_transpose2d),
        large=lambda: (values.normal(5, 7, 17, 15), values.normal(7, 19, 3, 3), values.normal(19), 2),
        errors=_transposed_errors("conv_transpose2d", f32(2, 3, 7, 7), f32(3, 4, 3, 3)),
    ),
    Case(
        "conv_transpose1d",
        ref.conv_transpose1d,
        TRANSPOSE1D,
        F + "conv_transpose1d",
        terms=_transposed_terms,
        magnitude=_of_magnitudes(ref.conv_transpose1d),
        errors=_transposed_errors("conv_transpose1d", f32(2, 3, 7), f32(3, 4, 3)),
    ),
]
