"""The errors of float32 functions, in units in the last place of the result, over the whole range of floats."""

import math

import numpy as np
import pytest

import fastnn

# name -> float64 reference, largest error
FUNCTIONS = {
    "exp": (np.exp, 1.1),
    "exp2": (np.exp2, 1.1),
    "expm1": (np.expm1, 2.0),
    "log": (np.log, 1.0),
    "log2": (np.log2, 2.0),
    "log10": (np.log10, 2.0),
    "log1p": (np.log1p, 2.0),
    "tanh": (np.tanh, 2.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2.0),
    "erf": (np.vectorize(math.erf, otypes=[float]), 2.0),
    "sin": (np.sin, 1.6),
    "cos": (np.cos, 1.6),
    "tan": (np.tan, 3.7),
    "sinh": (np.sinh, 2.5),
    "cosh": (np.cosh, 2.5),
    "sqrt": (np.sqrt, 0.5),
}


def floats(step):
    """Every step-th float32 by its bits: all magnitudes, both signs, infinities and NaN."""
    bits = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0], np.float32)
    return np.concatenate([bits.view(np.float32), special, np.linspace(-20, 20, 200_001, dtype=np.float32)])


def units(actual, expected):
    """|actual - expected| in units in the last place of the float32 nearest to expected."""
    nearest = np.maximum(np.abs(expected.astype(np.float32)), np.float32(2.0**-126))
    return np.abs(actual.astype(np.float64) - expected) / np.spacing(nearest).astype(np.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_units_in_the_last_place(name):
    reference, bound = FUNCTIONS[name]
    x = floats(30_011 if name == "erf" else 5_003)
    with np.errstate(all="ignore"):
        actual, expected = getattr(fastnn, name)(fastnn.from_numpy(x)).numpy(), reference(x.astype(np.float64))
        stored = expected.astype(np.float32)
        # exp(89) overflows in float32; sigmoid(-89) is 0 where the exact value is subnormal.
        finite = np.isfinite(stored)
        np.testing.assert_array_equal(actual[~finite], stored[~finite])
        worst = units(actual[finite], expected[finite])
        worst[np.abs(expected[finite]) < 2.0**-126] = 0
    assert worst.max() <= bound, f"{worst.max()} at {x[finite][worst.argmax()]}"


def test_subnormal_results_are_rounded_or_zero():
    x = np.linspace(-104, -87.5, 1001, dtype=np.float32)
    np.testing.assert_allclose(
        fastnn.exp(fastnn.from_numpy(x)).numpy(), np.exp(x.astype(np.float64)), rtol=0, atol=2e-45
    )
    assert (fastnn.sigmoid(fastnn.from_numpy(x)).numpy() < 2.0**-126).all()


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_far_arguments_in_place_and_their_gradients(name):
    """Beyond 2^20 the arguments are reduced in double; the derivatives are too."""
    x = np.array([1e6, 1.1e6, 3e38, -2e7, 0.5] * 300, np.float32)
    t = fastnn.from_numpy(x.copy()).requires_grad_()
    getattr(fastnn, name)(t).sum().backward()
    wide = x.astype(np.float64)
    slope = {"sin": np.cos(wide), "cos": -np.sin(wide), "tan": 1 + np.tan(wide) ** 2}[name]
    np.testing.assert_allclose(t.grad.numpy(), slope, rtol=2e-6)
    t = fastnn.from_numpy(x.copy())
    getattr(t, f"{name}_")()
    np.testing.assert_allclose(t.numpy(), getattr(np, name)(wide), rtol=5e-7)
