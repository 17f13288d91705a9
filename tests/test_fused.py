"""The one-pass kernels behind nn.fused: every activation against float64, and weights that are kept but change."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim
from fastnn.nn import fused

ACTIVATIONS = (None, "relu", "gelu", "silu", "sigmoid", "tanh")
STEEPEST = {None: 1.0, "relu": 1.0, "gelu": 1.13, "silu": 1.1, "sigmoid": 0.25, "tanh": 1.0}  # of |derivative|
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}

Operation = Callable[..., fastnn.Tensor]
FORMS: dict[str, tuple[Operation, Operation, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (fused.linear, F.linear, (40, 96), (160, 96), {}),
    "linear of one row": (fused.linear, F.linear, (1, 96), (160, 96), {}),
    "conv2d": (fused.conv2d, F.conv2d, (2, 64, 9, 11), (96, 64, 3, 3), {"padding": 1}),
    "conv2d, strided, in groups": (fused.conv2d, F.conv2d, (2, 64, 9, 11), (96, 32, 3, 2), {"stride": 2, "groups": 2}),
    "conv2d of 1x1": (fused.conv2d, F.conv2d, (2, 64, 9, 11), (96, 64, 1, 1), {}),
    "conv2d of one channel": (fused.conv2d, F.conv2d, (2, 1, 9, 11), (20, 1, 5, 5), {}),
}


class Call:
    """One fused operation with its operands; `check` compares a call with float64."""

    def __init__(self, form: str, dtype: str, residual: bool = True, last: bool = False) -> None:
        self.fused, self.plain, x, weight, self.options = FORMS[form]
        self.dtype = dtype
        memory_format = fastnn.channels_last if last else fastnn.contiguous_format
        make = lambda *shape: fastnn.randn(*shape).to(getattr(fastnn, dtype), memory_format=memory_format)  # noqa: E731
        self.x, self.weight = make(*x), make(*weight)
        self.bias = fastnn.randn(weight[0]).to(self.x.dtype)
        shape = self.plain(self.x, self.weight, None, **self.options).shape
        self.residual = make(*shape) if residual else None

    def check(self, activation: str | None = None) -> None:
        y = self.fused(
            self.x, self.weight, self.bias, **self.options, activation=activation, residual=self.residual
        ).double()
        exact, magnitude = (
            self.plain(*[f(t.detach().double()) for t in (self.x, self.weight, self.bias)], **self.options)
            for f in (fastnn.clone, fastnn.abs)
        )
        if self.residual is not None:
            exact, magnitude = exact + self.residual.double(), magnitude + self.residual.double().abs()
        if activation is not None:
            exact = getattr(F, activation)(exact)
        terms = self.weight.numel() // self.weight.shape[0] + 2
        # Sums in float32, the activation (within 4 roundings of its own scale), one rounding to the dtype.
        bound = STEEPEST[activation] * terms * 2.0**-24 * magnitude + 4 * 2.0**-24 * (1 + exact.abs())
        bound = bound + ROUNDOFF[self.dtype] * exact.abs()
        wrong = ((y - exact).abs() > bound).numpy()
        assert not wrong.any(), f"{int(wrong.sum())} of {wrong.size} are wrong"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("residual", [False, True])
def test_values(form: str, dtype: str, residual: bool) -> None:
    """Three calls each: the third uses the weights that the second packed and kept."""
    call = Call(form, dtype, residual)
    for activation in ACTIVATIONS:
        for _ in range(3):
            call.check(activation)


@pytest.mark.parametrize("dtype", ROUNDOFF)
def test_channels_last(dtype: str) -> None:
    for form in FORMS:
        if "conv2d" in form:
            call = Call(form, dtype, last=True)
            for _ in range(3):
                call.check("relu")
            call.weight.mul_(-2)
            call.check("relu")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ROUNDOFF)
def test_changed_weights_show_in_the_next_result(form: str, dtype: str) -> None:
    call = Call(form, dtype)

    def thrice() -> None:
        for _ in range(3):
            call.check()

    thrice()
    call.weight.add_(1)
    thrice()
    call.weight[0].zero_()  # through a view
    thrice()
    call.weight.data = call.weight.data * 2
    thrice()
    alias = call.weight.detach()
    alias.copy_(fastnn.randn(*alias.shape).to(alias.dtype))
    thrice()
    if dtype != "bfloat16":  # which numpy does not have
        call.weight.numpy()[...] = 0.5
        thrice()
        call.weight.numpy()[-1] *= -3
        thrice()


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, lr=0.1, momentum=0.9), lambda p: optim.Adam(p, lr=0.1)])
@pytest.mark.parametrize("form", ["linear", "conv2d"])
def test_a_step_shows_in_the_next_result(form: str, make: Callable[[list[nn.Parameter]], Any]) -> None:
    call = Call(form, "float32", residual=False)
    call.weight = weight = nn.Parameter(call.weight)
    optimizer = make([weight])
    for _ in range(3):
        with fastnn.no_grad():
            for _ in range(3):
                call.check("relu")
        optimizer.zero_grad()
        call.fused(call.x, weight, call.bias, **call.options, activation="relu").square().mean().backward()
        before = weight.detach().clone()
        optimizer.step()
        assert not np.array_equal(before.numpy(), weight.detach().clone().numpy())


def test_conv_activation_is_one_pass_unless_recorded_or_watched() -> None:
    rng, conv, seen = np.random.default_rng(0), nn.Conv2d(3, 40, 3, stride=2, padding=1), []
    x = fastnn.from_numpy(rng.standard_normal((2, 3, 9, 11)).astype(np.float32))
    with fastnn.no_grad():
        expected, terms = F.relu(conv(x)).numpy(), 3 * 3 * 3 + 1
        magnitude = F.conv2d(x.abs(), conv.weight.abs(), conv.bias.abs(), stride=2, padding=1).numpy().max()
        bound = 2 * terms * ROUNDOFF["float32"] * magnitude  # of two sums
        np.testing.assert_allclose(fused.conv_activation(conv, x, "relu").numpy(), expected, rtol=0, atol=bound)
        conv.register_forward_hook(lambda *_: seen.append("called"))
        np.testing.assert_array_equal(fused.conv_activation(conv, x, "relu").numpy(), expected)
    recorded = fused.conv_activation(conv, x, "relu")
    assert recorded.requires_grad
    assert seen == ["called", "called"]


def test_errors() -> None:
    x, weight = fastnn.randn(2, 8), fastnn.randn(4, 8)
    with pytest.raises(ValueError, match=r"activation.*'swish'"):
        fused.linear(x, weight, activation="swish")
    with pytest.raises(ValueError, match=r"residual of shape \(2, 3\) does not match the result's \(2, 4\)"):
        fused.linear(x, weight, residual=fastnn.zeros(2, 3))
    image, filters = fastnn.randn(1, 2, 5, 5), fastnn.randn(3, 2, 3, 3)
    with pytest.raises(ValueError, match=r"activation.*'swish'"):
        fused.conv2d(image, filters, activation="swish")
    with pytest.raises(ValueError, match=r"residual of shape \(1, 3, 1, 1\) does not match"):
        fused.conv2d(image, filters, residual=fastnn.zeros(1, 3, 1, 1))
