"""Pooling beyond the table of cases: channels_last, ties and NaN, results that are streamed, second derivatives."""

from functools import partial

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from cases.case import to_numpy


def fixed(name: str):
    """Windows that take every way through the kernels, of the functions of fastnn or of torch."""
    return {
        "pairs": lambda f, x: getattr(f, name)(x, 2),
        "overlapping": lambda f, x: getattr(f, name)(x, 3, 2, 1),
        "same": lambda f, x: getattr(f, name)(x, 3, 1, 1),
        "gaps": lambda f, x: getattr(f, name)(x, 2, 3),
        "oblong": lambda f, x: getattr(f, name)(x, (5, 2), (4, 5), (2, 1)),
        "ceil": lambda f, x: getattr(f, name)(x, 3, 2, 0, ceil_mode=True),
        "wide": lambda f, x: getattr(f, name)(x, 11, 1, 5),
    }


MAXIMA = fixed("max_pool2d") | {
    "dilated": lambda f, x: f.max_pool2d(x, 3, 2, 1, 2),
    "adaptive": lambda f, x: f.adaptive_max_pool2d(x, (5, 4)),
    "global": lambda f, x: f.adaptive_max_pool2d(x, 1),
}
MEANS = fixed("avg_pool2d") | {
    "exclusive": lambda f, x: f.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "divisor": lambda f, x: f.avg_pool2d(x, 2, divisor_override=3),
    "adaptive": lambda f, x: f.adaptive_avg_pool2d(x, (5, 4)),
    "enlarging": lambda f, x: f.adaptive_avg_pool2d(x, (23, 40)),
    "global": lambda f, x: f.adaptive_avg_pool2d(x, 1),
}
SHAPES = [(2, 3, 17, 37), (1, 6, 18, 36), (2, 16, 17, 37), (1, 70, 16, 21), (2, 131, 14, 15)]
STORAGE_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11, "float64": 2.0**-53}
COMPUTE_ROUNDOFF = {"float64": 2.0**-53}


def contiguous(x: np.ndarray, dtype: str, lib=fastnn):
    return lib.from_numpy(np.array(x, np.float32, order="C")).to(getattr(lib, dtype))


def channels_last(x: np.ndarray, dtype: str, lib=fastnn):
    return contiguous(x.transpose(0, 2, 3, 1), dtype, lib).permute(0, 3, 1, 2)


def is_channels_last(x) -> bool:
    n, c, h, w = x.shape
    return n * c * h * w == c or tuple(x.stride())[1:] == (1, w * c, c)


def data(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Few different values, so that maxima are tied; and a gradient that any result can take its part of."""
    rng = np.random.default_rng(3)
    return rng.integers(-3, 4, shape).astype(np.float64), rng.uniform(0.5, 1.5, (*shape[:2], 40, 40))


def pooled(window, x, dy: np.ndarray, lay, dtype: str, lib=fastnn):
    """y and dx."""
    x = x.detach().requires_grad_()
    y = window(lib.nn.functional, x)
    return y, lib.autograd.grad(y, [x], lay(dy[..., : y.shape[2], : y.shape[3]], dtype, lib))[0]


@pytest.mark.parametrize("dtype", STORAGE_ROUNDOFF)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MAXIMA)
def test_maximum_of_channels_last(name: str, shape: tuple[int, ...], dtype: str) -> None:
    """The same values and the same choice among equal ones as of contiguous planes, in the layout that came."""
    x, dy = data(shape)
    y, dx = pooled(MAXIMA[name], contiguous(x, dtype), dy, contiguous, dtype)
    assert y.is_contiguous() and dx.is_contiguous()
    for lay in (channels_last, contiguous):  # of dy
        y_last, dx_last = pooled(MAXIMA[name], channels_last(x, dtype), dy, lay, dtype)
        assert is_channels_last(y_last) and is_channels_last(dx_last)
        np.testing.assert_array_equal(to_numpy(y_last), to_numpy(y))
        np.testing.assert_array_equal(to_numpy(dx_last), to_numpy(dx))


@pytest.mark.parametrize("dtype", STORAGE_ROUNDOFF)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MEANS)
def test_mean_of_channels_last(name: str, shape: tuple[int, ...], dtype: str) -> None:
    """The layouts add in different orders: each is within 4 roundings a term, as in the table of cases."""
    x, dy = data(shape)
    y, dx = pooled(MEANS[name], contiguous(x, dtype), dy, contiguous, dtype)
    unit, compute = STORAGE_ROUNDOFF[dtype], COMPUTE_ROUNDOFF.get(dtype, 2.0**-24)
    terms = x.shape[2] * x.shape[3]
    for lay in (channels_last, contiguous):
        y_last, dx_last = pooled(MEANS[name], channels_last(x, dtype), dy, lay, dtype)
        assert is_channels_last(y_last) and is_channels_last(dx_last)
        y_tolerance = 2 * unit * np.abs(to_numpy(y)) + 2 * 4 * np.sqrt(terms) * compute * 4 * np.abs(x).max()
        dx_tolerance = 2 * unit * np.abs(to_numpy(dx)) + 2 * 4 * np.sqrt(terms) * compute * np.abs(to_numpy(dx)).max()
        assert np.all(np.abs(to_numpy(y_last) - to_numpy(y)) <= y_tolerance)
        assert np.all(np.abs(to_numpy(dx_last) - to_numpy(dx)) <= dx_tolerance)


@pytest.mark.torch
@pytest.mark.parametrize("lay", [contiguous, channels_last])
@pytest.mark.parametrize("name", MAXIMA)
def test_choice_of_the_maximum(name: str, lay) -> None:
    """The gradient goes to the first of equal values and, as in torch, to the last of NaNs."""
    torch = pytest.importorskip("torch")
    x, dy = data((2, 19, 17, 37))
    x[0, :, 3:9, 4:11] = np.nan
    x[1, :, 2:8] = -np.inf
    y, dx = pooled(MAXIMA[name], lay(x, "float64"), dy, lay, "float64")
    y_torch, dx_torch = pooled(MAXIMA[name], contiguous(x, "float64", torch), dy, contiguous, "float64", torch)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(y_torch))
    np.testing.assert_allclose(to_numpy(dx), to_numpy(dx_torch), rtol=121 * 2.0**-53)


@pytest.mark.parametrize("lay", [contiguous, channels_last])
def test_indices_beside_a_gradient(lay) -> None:
    """Indices are the caller's: changing them does not reach the backward."""
    x, dy = data((2, 5, 16, 36))
    leaf = lay(x, "float32").requires_grad_()
    y, indices = F.max_pool2d(leaf, 3, 2, 1, return_indices=True)
    flat = to_numpy(leaf).reshape(2, 5, -1)
    where = to_numpy(indices).reshape(2, 5, -1)
    np.testing.assert_array_equal(np.take_along_axis(flat, where, 2), to_numpy(y).reshape(2, 5, -1))
    expected = np.zeros_like(flat)
    part = np.float32(dy[..., :8, :18]).reshape(2, 5, -1).astype(np.float64)
    for n, c, o in np.ndindex(part.shape):
        expected[n, c, where[n, c, o]] += part[n, c, o]
    indices.zero_()
    (dx,) = fastnn.autograd.grad(y, [leaf], lay(dy[..., :8, :18], "float32"))
    np.testing.assert_allclose(to_numpy(dx).reshape(2, 5, -1), expected, rtol=9 * 2.0**-24)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d, lambda x, *_: F.adaptive_avg_pool2d(x, 1)])
@pytest.mark.parametrize("options", [(2,), (3, 2, 1), (3, 1, 1)])
def test_large_results(pool, options: tuple[int, ...], dtype: str) -> None:
    """Results beyond the caches are stored past them: image by image, where they are not, the same bits come out."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((9, 64, 96, 96)), rng.standard_normal((9, 64, 96, 96))
    window = lambda f, x: pool(x, *options)  # noqa: E731
    for lay in (contiguous, channels_last):
        y, dx = pooled(window, lay(x, dtype), dy, lay, dtype)
        for image in (0, 8):
            one = slice(image, image + 1)
            y_one, dx_one = pooled(window, lay(x[one], dtype), dy[one], lay, dtype)
            np.testing.assert_array_equal(to_numpy(y[one]), to_numpy(y_one))
            np.testing.assert_array_equal(to_numpy(dx[one]), to_numpy(dx_one))


@pytest.mark.parametrize("lay", [contiguous, channels_last])
@pytest.mark.parametrize("window", [MAXIMA["overlapping"], MAXIMA["adaptive"], MEANS["overlapping"], MEANS["adaptive"]])
def test_second_derivative(window, lay) -> None:
    """Pooling is linear in x where the maxima stay: the gradient of <dx, u> in dy is the pool of u at the maxima."""
    x, dy = data((2, 5, 16, 21))
    x += 0.01 * np.random.default_rng(1).permutation(x.size).reshape(x.shape) / x.size  # no ties
    leaf = lay(x, "float64").requires_grad_()
    y = window(F, leaf)
    weight = lay(dy[..., : y.shape[2], : y.shape[3]], "float64").requires_grad_()
    (dx,) = fastnn.autograd.grad(y, [leaf], weight, create_graph=True)
    (ddy,) = fastnn.autograd.grad(dx, [weight], leaf.detach())
    np.testing.assert_allclose(to_numpy(ddy), to_numpy(y), rtol=1e-12, atol=1e-12)


def test_output_size_of_none() -> None:
    x = fastnn.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 6, 8)))
    for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        assert tuple(pool(x, (None, 4)).shape) == (2, 3, 6, 4)
        assert tuple(pool(x, None).shape) == (2, 3, 6, 8)
        with pytest.raises(ValueError, match="output_size"):
            pool(x, (None, 4, 4))
    assert repr(fastnn.nn.AdaptiveAvgPool2d((None, 4))) == "AdaptiveAvgPool2d(output_size=(None, 4))"


def test_no_windows() -> None:
    """Sizes of zero: no results, and a gradient of zeros."""
    x = fastnn.zeros(2, 3, 4, 4, requires_grad=True)
    y = F.adaptive_avg_pool2d(x, 0)
    assert tuple(y.shape) == (2, 3, 0, 0)
    (dx,) = fastnn.autograd.grad(y.sum(), [x])
    np.testing.assert_array_equal(to_numpy(dx), np.zeros((2, 3, 4, 4)))
    for pool in (partial(F.max_pool2d, kernel_size=2), partial(F.avg_pool2d, kernel_size=2)):
        assert tuple(pool(fastnn.zeros(0, 3, 4, 4)).shape) == (0, 3, 2, 2)
        assert tuple(pool(fastnn.zeros(2, 0, 4, 4)).shape) == (2, 0, 2, 2)
