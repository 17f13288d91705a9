"""Convolution where the table of cases does not reach: derivatives of higher order, adjoints, module arguments,
Winograd's filtering."""

from collections.abc import Iterator

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn
from fastnn.autograd import grad, gradcheck, gradgradcheck

RNG = np.random.default_rng(0)


def normal(*shape: int, requires_grad: bool = True) -> fastnn.Tensor:
    return fastnn.from_numpy(RNG.standard_normal(shape)).requires_grad_(requires_grad)


OPERATIONS = {
    "conv1d": (F.conv1d, (2, 4, 7), (6, 2, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d": (F.conv2d, (2, 3, 5, 6), (4, 3, 3, 2), {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}),
    "conv2d_same": (F.conv2d, (1, 2, 4, 3), (2, 2, 2, 3), {"padding": "same"}),
    "conv3d": (F.conv3d, (1, 2, 4, 3, 4), (2, 1, 2, 2, 3), {"stride": (2, 1, 1), "padding": (1, 0, 1), "groups": 2}),
    "conv_transpose1d": (F.conv_transpose1d, (2, 3, 4), (3, 2, 4), {"stride": 3, "padding": 1, "output_padding": 2}),
    "conv_transpose2d": (F.conv_transpose2d, (2, 4, 3, 2), (4, 1, 3, 2), {"stride": (2, 1), "groups": 2, "padding": 1}),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients(name: str, bias: bool) -> None:
    """First and second derivatives against central differences."""
    operation, x, w, options = OPERATIONS[name]
    outputs = (w[1] if "transpose" in name else w[0] // options.get("groups", 1)) * options.get("groups", 1)
    inputs = [normal(*x), normal(*w), *([normal(outputs)] if bias else [])]
    call = lambda x, w, b=None: operation(x, w, b, **options)  # noqa: E731
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_third_derivative() -> None:
    """y = w x^1 with one weight: sum((w x)^4) has the third derivative 24 w^4 x in x."""
    x, w = normal(1, 1, 3), normal(1, 1, 1)
    value = (F.conv1d(x, w) ** 4).sum()
    for _ in range(2):
        (derivative,) = grad(value, x, create_graph=True)
        value = derivative.sum()
    (third,) = grad(value, x)
    np.testing.assert_allclose(third.numpy(), 24 * w.item() ** 4 * x.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transpose_is_the_input_gradient(dtype: str) -> None:
    """Bit for bit: one kernel does both."""
    x, w = (t.detach().to(getattr(fastnn, dtype)) for t in (normal(2, 6, 9, 8), normal(4, 3, 3, 2)))
    x.requires_grad_()
    y = F.conv2d(x, w, stride=2, padding=1, groups=2)
    dy = normal(*y.shape, requires_grad=False).to(x.dtype)
    (dx,) = grad(y, x, dy)
    transposed = F.conv_transpose2d(dy, w, stride=2, padding=1, output_padding=(0, 0), groups=2)
    height, width = transposed.shape[2:]
    np.testing.assert_array_equal(transposed.float().numpy(), dx[:, :, :height, :width].float().numpy())


def test_output_size_chooses_the_padding() -> None:
    down, up = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1)
    for size in ((8, 7), (7, 8)):
        x = fastnn.ones(1, 2, *size)
        assert up(down(x), output_size=size).shape == x.shape
        assert up(down(x), output_size=x.shape).shape == x.shape
    with pytest.raises(ValueError, match=r"ConvTranspose2d: output_size \(9, 7\) must be from \(7, 7\) to \(8, 8\)"):
        up(down(fastnn.ones(1, 2, 8, 7)), output_size=(9, 7))


def test_module_errors() -> None:
    with pytest.raises(ValueError, match=r"ConvTranspose2d: padding.*'same'"):
        nn.ConvTranspose2d(2, 2, 3, padding="same")
    with pytest.raises(ValueError, match="output_padding"):
        nn.ConvTranspose1d(2, 2, 3, output_padding=(1, 1))
    with pytest.raises(ValueError, match=r"Conv3d: groups=2"):
        nn.Conv3d(3, 4, 3, groups=2)


def test_unbatched_equals_a_batch_of_one() -> None:
    for name, (operation, x, w, options) in OPERATIONS.items():
        image, weight = normal(*x[1:], requires_grad=False), normal(*w, requires_grad=False)
        batched = operation(image.unsqueeze(0), weight, **options).squeeze(0)
        np.testing.assert_array_equal(operation(image, weight, **options).numpy(), batched.numpy(), err_msg=name)


# Images that are taken in parts, rows or columns of them; strides whose gradients are two woven.
LARGE = {
    "rows": ((2, 64, 60, 57), (40, 64, 3, 3), {"padding": 1}),
    "columns": ((1, 40, 120, 121), (72, 40, 1, 1), {}),
    "stride2": ((3, 64, 30, 28), (72, 64, 3, 3), {"stride": 2, "padding": 1}),
    "stride2_even": ((2, 64, 26, 30), (64, 64, 2, 2), {"stride": 2}),
    "stride2_odd": ((2, 64, 29, 31), (64, 64, 3, 3), {"stride": 2, "padding": 1}),
    "stride2_wide": ((2, 64, 31, 42), (40, 64, 5, 7), {"stride": 2, "padding": 3}),
}


# Panels of filters of 32, 16 and fewer; one step of channels and taps, a few, and more than are taken at a time; tiles
# of positions that end with rows, images and tasks, or amid them.
BLOCKS = {
    "pointwise": ((3, 40, 9, 11), (54, 40, 1, 1), {}),
    "pointwise_stride2": ((3, 40, 15, 13), (38, 40, 1, 1), {"stride": 2}),
    "pointwise_deep": ((2, 700, 14, 14), (48, 700, 1, 1), {}),
    "gaps": ((3, 32, 13, 12), (64, 32, 3, 3), {}),
    "gaps_deep": ((2, 96, 17, 15), (48, 96, 3, 3), {"padding": 1}),
    "folded": ((3, 3, 30, 28), (24, 3, 7, 7), {"stride": 2, "padding": 3}),
    "folded_few": ((5, 6, 20, 21), (16, 6, 5, 5), {}),
    "folded_one": ((4, 1, 12, 12), (6, 1, 5, 5), {}),
}


@pytest.mark.parametrize("activation", ["", "relu", "tanh"])
@pytest.mark.parametrize("name", BLOCKS)
def test_bfloat16_blocks(name: str, activation: str) -> None:
    """Of small integers every sum is exact: the results are those of the float64 kernels, rounded once; of tanh, whose
    float32 values may round the other way, within one unit of bfloat16."""
    x_shape, w_shape, options = BLOCKS[name]
    rng = np.random.default_rng(2)
    values = [rng.integers(-2, 3, shape).astype(np.float64) for shape in (x_shape, w_shape, w_shape[:1])]
    stride, padding = ((options.get(key, default),) * 2 for key, default in (("stride", 1), ("padding", 0)))
    results = []
    for dtype in (fastnn.bfloat16, fastnn.float64):
        operands = [fastnn.from_numpy(v).to(dtype) for v in values]
        results.append(fastnn._C.fused_conv2d(*operands, stride, padding, (1, 1), 1, False, None, activation))
    result, expected = results[0].double().numpy(), results[1].to(fastnn.bfloat16).double().numpy()
    np.testing.assert_allclose(result, expected, rtol=2.0**-7 if activation == "tanh" else 0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LARGE)
def test_large_images(winograd: None, name: str, dtype: str, last: bool) -> None:
    """Of small integers every sum is exact: the gradients are those of the float64 kernels, rounded once."""
    fastnn.set_winograd_enabled(False)
    x_shape, w_shape, options = LARGE[name]

    def gradients(dtype: str) -> list[fastnn.Tensor]:
        rng = np.random.default_rng(1)
        x, w = (fastnn.from_numpy(rng.integers(-2, 3, shape).astype(np.float64)) for shape in (x_shape, w_shape))
        dy = fastnn.from_numpy(rng.integers(-2, 3, F.conv2d(x, w, **options).shape).astype(np.float64))
        x, w, dy = (t.to(getattr(fastnn, dtype)) for t in (x, w, dy))
        if last:
            x, dy = (t.contiguous(memory_format=fastnn.channels_last) for t in (x, dy))
        y = F.conv2d(x.requires_grad_(), w.requires_grad_(), **options)
        return [y.detach(), *grad(y, (x, w), dy)]

    for result, expected in zip(gradients(dtype), gradients("float64"), strict=True):
        rounded = expected.to(result.dtype).to(fastnn.float64)
        np.testing.assert_array_equal(result.to(fastnn.float64).numpy(), rounded.numpy())


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_channels_last_stays(name: str, dtype: str) -> None:
    """The same numbers as from row-major images, in results and gradients whose channels are last again."""
    operation, x, w, options = OPERATIONS[name]
    results = []
    image, weight = (normal(*shape, requires_grad=False).to(getattr(fastnn, dtype)) for shape in (x, w))
    for last in (False, True):
        leaf = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if last else image.clone()
        leaves = [leaf.requires_grad_(), weight.clone().requires_grad_()]
        y = operation(*leaves, **options)
        dx, dw = grad(y, leaves, y.detach())
        assert all(t.permute(0, 2, 3, 1).is_contiguous() for t in (y, dx)) == last
        results.append([t.detach().double().numpy() for t in (y, dx, dw)])
    roundoff = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}[dtype]
    for planes, pixels in zip(*results, strict=True):
        np.testing.assert_allclose(pixels, planes, rtol=0, atol=16 * roundoff * np.abs(planes).max())


# ---- Winograd's filtering: 3x3, stride 1, float32, enough channels and tiles; on AMX the tiles do these ----


@pytest.fixture
def winograd() -> Iterator[None]:
    """The switch as it was before."""
    before = fastnn.is_winograd_enabled()
    yield
    fastnn.set_winograd_enabled(before)


def both_ways(x: np.ndarray, w: np.ndarray, padding: tuple[int, int], dtype: type, enabled: bool) -> list[np.ndarray]:
    """The convolution, and its input gradient at small integers."""
    fastnn.set_winograd_enabled(enabled)
    leaf = fastnn.tensor(x.astype(dtype)).requires_grad_()
    y = F.conv2d(leaf, fastnn.tensor(w.astype(dtype)), padding=padding)
    dy = np.random.default_rng(1).integers(-4, 5, y.shape).astype(dtype)
    return [y.detach().numpy(), grad(y, leaf, fastnn.tensor(dy))[0].numpy()]


def float32_normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_winograd_switch(winograd: None) -> None:
    """On to begin with; where it is used, the sums are others than the direct convolution's."""
    assert fastnn.is_winograd_enabled()
    x, w = float32_normal(2, 32, 16, 16), float32_normal(32, 32, 3, 3)
    filtered, direct = (both_ways(x, w, (1, 1), np.float32, enabled) for enabled in (True, False))
    assert not fastnn.is_winograd_enabled()
    for one, other in zip(filtered, direct, strict=True):
        assert np.array_equal(one, other) == (fastnn._C.cpu_level() == "amx")
    with pytest.raises(TypeError):
        fastnn.set_winograd_enabled("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 2), (0, 5)])
@pytest.mark.parametrize(
    "shape", [(40, 16, 17, 1, 1), (12, 19, 33, 5, 7), (1, 33, 19, 56, 56), (2, 18, 71, 9, 23), (1, 70, 16, 3, 130)]
)
def test_winograd_values(winograd: None, shape: tuple[int, ...], padding: tuple[int, int]) -> None:
    """Within 9 C + 2 roundings of sum |x| |w| for every result: tails of channels, filters, tiles and blocks."""
    n, c, k, height, width = shape
    if min(height + 2 * padding[0], width + 2 * padding[1]) < 3:
        padding = (1, 1)
    x, w = float32_normal(n, c, height, width), float32_normal(k, c, 3, 3)
    exact = both_ways(x, w, padding, np.float64, True)
    actual = both_ways(x, w, padding, np.float32, True)
    magnitude = F.conv2d(fastnn.tensor(np.abs(x)), fastnn.tensor(np.abs(w)), padding=padding).numpy()
    assert (np.abs(actual[0] - exact[0]) <= (9 * c + 2) * 2.0**-24 * magnitude).all()
    dy = np.random.default_rng(1).integers(-4, 5, exact[0].shape)
    sums = F.conv_transpose2d(fastnn.tensor(np.abs(dy).astype(np.float64)), fastnn.tensor(np.abs(w).astype(np.float64)))
    rows, columns = (slice(p, p + size) for p, size in zip(padding, (height, width), strict=True))
    assert (np.abs(actual[1] - exact[1]) <= (9 * k + 2) * 2.0**-24 * sums.numpy()[:, :, rows, columns]).all()


@pytest.mark.parametrize("channels", [64, 128, 256, 512])
def test_winograd_error(winograd: None, channels: int) -> None:
    """What set_winograd_enabled promises: at most 4 times the direct convolution's error on normal data."""
    x, w = float32_normal(2, channels, 14, 14), float32_normal(channels, channels, 3, 3)
    exact, filtered, direct = (
        both_ways(x, w, (1, 1), dtype, enabled)
        for dtype, enabled in ((np.float64, False), (np.float32, True), (np.float32, False))
    )
    for truth, actual, reference in zip(exact, filtered, direct, strict=True):
        assert np.linalg.norm(actual - truth) <= 4 * np.linalg.norm(reference - truth)


def test_winograd_leaves_what_is_not_finite_to_the_direct_convolution(winograd: None) -> None:
    x, w = float32_normal(1, 32, 20, 20), float32_normal(32, 32, 3, 3)
    for value in (np.inf, -np.inf, np.nan, 3e38):
        x[0, 5, 4, 4] = value
        with np.errstate(invalid="ignore"):
            filtered, direct = (both_ways(x, w, (1, 1), np.float32, enabled)[0] for enabled in (True, False))
        np.testing.assert_array_equal(filtered, direct)
        assert np.isfinite(filtered).mean() > 0.9


@pytest.mark.parametrize("last", [False, True])
def test_winograd_with_bias_residual_and_activation(winograd: None, last: bool) -> None:
    x, w, b, residual = (
        normal(*s, requires_grad=False) for s in ((3, 20, 13, 15), (37, 20, 3, 3), (37,), (3, 37, 13, 15))
    )
    results = []
    for dtype in (fastnn.float64, fastnn.float32):
        image = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if last else x
        operands = [t.to(dtype) for t in (image, w, b)]
        options = ((1, 1), (1, 1), (1, 1), 1, False)  # stride, padding, dilation, groups, same
        results.append(fastnn._C.fused_conv2d(*operands, *options, residual.to(dtype), "gelu").double().numpy())
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=(9 * 20 + 8) * 2.0**-24 * np.abs(results[0]).max())


@pytest.mark.parametrize("shape", [(2, 24, 40, 56, 56), (2, 80, 40, 14, 14)])
def test_winograd_is_bit_equal_over_thread_counts(winograd: None, shape: tuple[int, ...]) -> None:
    """Tasks of blocks of tiles, and of panels of filters."""
    n, c, k, height, width = shape
    x, w = float32_normal(n, c, height, width), float32_normal(k, c, 3, 3)
    before = fastnn.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            fastnn.set_num_threads(threads)
            results.append(both_ways(x, w, (1, 1), np.float32, True))
    finally:
        fastnn.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_nonfinite_pixels_stay_in_their_windows(value: float) -> None:
    """An infinity or NaN reaches the outputs whose windows hold it and no others, whatever the kernel pads."""
    x, w = RNG.standard_normal((2, 6, 12, 12)), RNG.standard_normal((16, 6, 5, 5))
    x[1, 3, 7, 6] = value
    y = F.conv2d(*(fastnn.from_numpy(a).to(fastnn.bfloat16) for a in (x, w))).float().numpy()
    touched = np.zeros((2, 8, 8), bool)
    touched[1, 3:8, 2:7] = True
    assert (np.isfinite(y) == ~touched[:, None]).all()
