"""Convolution where the table of cases does not reach: derivatives of higher order, adjoints, module arguments."""

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
