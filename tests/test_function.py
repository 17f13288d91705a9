"""What is built on autograd: custom functions, gradcheck, checkpoint, detect_anomaly."""

import gc
import weakref

import numpy as np
import pytest

import fastnn
from fastnn.autograd import Function, detect_anomaly, gradcheck, gradgradcheck
from fastnn.utils.checkpoint import checkpoint
from helpers import leaf

# ---- custom functions ----------------------------------------------------------------------------------


class Cube(Function):
    @staticmethod
    def forward(ctx, x, power=3):
        ctx.save_for_backward(x)
        ctx.power = power
        return x**power

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return dy * ctx.power * x ** (ctx.power - 1), None


class Split(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2, x * 3

    @staticmethod
    def backward(ctx, da, db):
        return da * 2 + db * 3


class Wrong(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, dy):
        return dy


class Failing(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, dy):
        raise KeyError("from backward")


def test_function() -> None:
    x = leaf(1, 2)
    Cube.apply(x).sum().backward()
    assert x.grad.tolist() == [3, 12]
    assert gradcheck(Cube.apply, [leaf(0.5, 1.5)])
    assert gradgradcheck(Cube.apply, [leaf(0.5, 1.5)])
    a, b = Split.apply(x)
    x.grad = None
    b.sum().backward()  # the other output's gradient comes as zeros
    assert x.grad.tolist() == [3, 3] and a.requires_grad


def test_function_errors() -> None:
    with pytest.raises(KeyError, match=r"from backward"):
        Failing.apply(leaf(1)).sum().backward()
    x = leaf(1, 2)
    middle = x * 1
    y = Cube.apply(middle)
    middle.add_(1)
    with pytest.raises(RuntimeError, match=r"Cube"):
        y.sum().backward()


def test_function_does_not_leak() -> None:
    y = Cube.apply(leaf(1, 2) * 1)
    alive = weakref.ref(y)
    del y
    gc.collect()
    assert alive() is None


def test_gradcheck_finds_a_wrong_gradient() -> None:
    with pytest.raises(RuntimeError, match=r"gradcheck"):
        gradcheck(Wrong.apply, [leaf(1, 2)])
    assert not gradcheck(Wrong.apply, [leaf(1, 2)], raise_exception=False)
    with pytest.raises(TypeError, match=r"float64"):
        gradcheck(Cube.apply, [fastnn.ones(2, requires_grad=True)])


# ---- checkpoint ----------------------------------------------------------------------------------------


def test_checkpoint() -> None:
    calls = []

    def block(x, w):
        calls.append(1)
        return (x @ w).tanh() * x

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((4, 4)) for _ in range(2)]
    grads = []
    for run in (block, lambda x, w: checkpoint(block, x, w)):
        x, w = (fastnn.tensor(a, requires_grad=True) for a in arrays)
        run(run(x, w), w).sum().backward()
        grads.append((x.grad.numpy(), w.grad.numpy()))
    for plain, checkpointed in zip(*grads, strict=True):
        np.testing.assert_array_equal(plain, checkpointed)
    assert len(calls) == 2 + 4


def test_checkpoint_repeats_dropout() -> None:
    x = fastnn.ones(1000, requires_grad=True)
    fastnn.manual_seed(5)
    y = checkpoint(lambda t: fastnn.dropout(t, 0.5, True), x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())


# ---- anomaly -------------------------------------------------------------------------------------------


def test_detect_anomaly() -> None:
    x = leaf(0.0, 1.0)
    with pytest.raises(RuntimeError, match=r"sqrt") as caught, detect_anomaly():
        y = (x.sqrt() * 0).sum()  # the gradient of sqrt at 0 is 0 * inf
        y.backward()
    assert "test_function" in str(caught.value), "it shows where the operation was called"
    x.grad = None
    (x.sqrt() * 0).sum().backward()
    assert np.isnan(x.grad.numpy()[0])
