"""CUDA kernels against the CPU's, in the layouts and sizes by which they choose how to go: packs of 16 bytes or single
elements, a thread, a warp or a block for a result, one part of a sum or several. The table has mostly small samples."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from cases.case import STORAGE_ROUNDOFF
from helpers import assert_close, gpu

LAYOUTS = {"planes": fastnn.contiguous_format, "channels_last": fastnn.channels_last}
DTYPES = ("float32", "bfloat16")  # the table has the others on the same paths

pytestmark = gpu


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def on(device: str, array: np.ndarray, dtype: str, memory_format: Any = None) -> Any:
    x = fastnn.tensor(array, dtype=getattr(fastnn, dtype)).to(device)
    return (x if memory_format is None else x.contiguous(memory_format=memory_format)).requires_grad_()


def numbers(x: Any) -> np.ndarray:
    return x.cpu().double().numpy() if x.is_floating_point() else x.cpu().numpy()


def results(function: Callable[..., Any], inputs: list[Any]) -> list[np.ndarray]:
    """What the function gives, and the inputs' gradients."""
    ys = function(*inputs)
    ys = list(ys) if isinstance(ys, tuple) else [ys]
    ys[0].backward(fastnn.tensor(normal(*ys[0].shape), dtype=ys[0].dtype).to(ys[0].device))
    grads = [x.grad for x in inputs if x.grad is not None]
    return [numbers(y.detach()) for y in (*ys, *grads)]


def assert_same(function: Callable[..., Any], inputs: Callable[[str], list[Any]], dtype: str, terms: float) -> None:
    """Both devices' results are within the rounding of `terms` additions."""
    roundoff = STORAGE_ROUNDOFF[dtype]
    for got, want in zip(results(function, inputs("cuda")), results(function, inputs("cpu")), strict=True):
        scale = np.abs(want[np.isfinite(want)]).max(initial=1.0)
        assert_close(got, want, terms * roundoff * scale if np.issubdtype(want.dtype, np.floating) else 0, dtype)


WINDOWS = {
    "2x2s2": {"kernel_size": 2},
    "3x3s2p1": {"kernel_size": 3, "stride": 2, "padding": 1},
    "3x3s2": {"kernel_size": 3, "stride": 2},
    "3x3s2 ceil": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "3x3s1p1": {"kernel_size": 3, "stride": 1, "padding": 1},
    "5x3": {"kernel_size": (5, 3), "stride": (3, 2), "padding": (2, 1)},
    "7x7s3p3": {"kernel_size": 7, "stride": 3, "padding": 3},
}
SHAPES = [(2, 16, 16, 32), (2, 5, 9, 13)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maximum(dtype: str, layout: str, window: str, shape: tuple[int, ...]) -> None:
    """Ties, NaN and -inf among the values: the same bits, taps included."""
    array = np.round(normal(*shape) * 2)
    array[0, 1, 2:4, 2:6] = np.nan
    array[1, :, :7, :7] = -np.inf

    def pooled(x: Any) -> Any:
        return F.max_pool2d(x, **WINDOWS[window], return_indices=True)

    assert_same(pooled, lambda device: [on(device, array, dtype, LAYOUTS[layout])], dtype, terms=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dilated_maximum(layout: str) -> None:
    def pooled(x: Any) -> Any:
        return F.max_pool2d(x, 4, 2, 2, dilation=(3, 2), return_indices=True)

    assert_same(pooled, lambda device: [on(device, normal(2, 8, 21, 30), "float32", LAYOUTS[layout])], "float32", 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mean(dtype: str, layout: str, window: str, shape: tuple[int, ...]) -> None:
    include = dtype == "float32"
    assert_same(
        lambda x: F.avg_pool2d(x, **WINDOWS[window], count_include_pad=include),
        lambda device: [on(device, normal(*shape), dtype, LAYOUTS[layout])],
        dtype,
        terms=49,
    )


@pytest.mark.parametrize("pool", [F.adaptive_avg_pool2d, F.adaptive_max_pool2d])
@pytest.mark.parametrize("size", [1, (3, 5), (1, 16)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adaptive(layout: str, size: Any, pool: Callable[..., Any]) -> None:
    for dtype in DTYPES:
        for shape in ((2, 40, 14, 16), (3, 5, 7, 16)):
            assert_same(
                lambda x: pool(x, size),
                lambda device, s=shape, d=dtype: [on(device, normal(*s), d, LAYOUTS[layout])],
                dtype,
                terms=14 * 16,
            )


NORMS = {
    "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    "group": lambda x, w, b: F.group_norm(x, 4, w, b),
    "layer": lambda x, w, b: F.group_norm(x, 1, w, b),
}


@pytest.mark.parametrize("shape", [(2, 8, 70, 64), (3, 12, 7, 9), (17, 72, 3, 3)], ids=str)
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm(dtype: str, layout: str, norm: str, shape: tuple[int, ...]) -> None:
    channels = shape[1]

    def inputs(device: str) -> list[Any]:
        return [
            on(device, normal(*shape) + 3, dtype, LAYOUTS[layout]),
            on(device, normal(channels), dtype),
            on(device, normal(channels), dtype),
        ]

    assert_same(NORMS[norm], inputs, dtype, terms=64)  # sums of at most that many before they are float64


@pytest.mark.parametrize("classes", [3, 1000, 1031, 2003])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy(dtype: str, classes: int) -> None:
    rng = np.random.default_rng(0)
    rows = 13
    labels = rng.integers(0, classes, rows)
    labels[5] = -100
    shares = rng.dirichlet(np.ones(classes), rows)
    weights = rng.uniform(0.5, 1.5, classes)
    array = normal(rows, classes) * 3

    def of(device: str, **options: Any) -> Callable[..., Any]:
        weight = fastnn.tensor(weights, dtype=getattr(fastnn, dtype)).to(device)
        target = fastnn.tensor(labels).to(device)
        if options.pop("soft", False):
            target = fastnn.tensor(shares, dtype=getattr(fastnn, dtype)).to(device)
        return lambda x: F.cross_entropy(x, target, weight, **options)

    for options in (
        {},
        {"reduction": "none"},
        {"label_smoothing": 0.1, "reduction": "sum"},
        {"soft": True},
        {"soft": True, "label_smoothing": 0.2, "reduction": "none"},
    ):
        got = results(of("cuda", **options), [on("cuda", array, dtype)])
        want = results(of("cpu", **options), [on("cpu", array, dtype)])
        for ours, theirs in zip(got, want, strict=True):
            assert_close(ours, theirs, 16 * STORAGE_ROUNDOFF[dtype] * np.abs(theirs).max(initial=1), dtype)


def test_losses_of_many_rows() -> None:
    """Several parts of 16384 rows, and of elements."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 17_000)
    array = normal(17_000, 2)
    log_p = np.full_like(array, np.log(0.3))
    target, x = fastnn.tensor(labels).to("cuda"), on("cuda", array, "float32")
    shifted = array - array.max(1, keepdims=True)
    rows = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    np.testing.assert_allclose(F.cross_entropy(x, target).item(), rows.mean(), rtol=1e-6)
    np.testing.assert_allclose(F.nll_loss(on("cuda", log_p, "float32"), target).item(), -np.log(0.3), rtol=1e-6)
    zero = fastnn.zeros(array.shape, device="cuda")
    np.testing.assert_allclose(F.mse_loss(x, zero).item(), (array**2).mean(), rtol=1e-6)


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_bad_label(loss: Callable[..., Any]) -> None:
    """Found by the next call that waits; the others' losses are right."""
    x = fastnn.tensor(normal(4, 3), dtype=fastnn.float32).to("cuda")
    loss(x, fastnn.tensor(np.array([0, 2, 3, -1])).to("cuda"))
    with pytest.raises(IndexError, match=r"label 3 at position \(2,\) is out of range for 3 classes"):
        fastnn.cuda.synchronize()
