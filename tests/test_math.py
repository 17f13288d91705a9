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
    "log1p": (np.log1p, 1.5),
    "tanh": (np.tanh, 2.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2.0),
    "erf": (np.vectorize(math.erf, otypes=[float]), 2.0),
    "sin": (np.sin, 1.6),
    "cos": (np.cos, 1.6),
    "tan": (np.tan, 2.8),
    "asin": (np.arcsin, 1.3),
    "acos": (np.arccos, 1.3),
    "atan": (np.arctan, 1.5),
    "sinh": (np.sinh, 2.0),
    "cosh": (np.cosh, 2.0),
    "sqrt": (np.sqrt, 0.5),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.5),
}
# What the error is not a share of: the smallest normal number.
TINY = 2.0**-126


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
        worst[np.abs(expected[finite]) < TINY] = 0
    assert worst.max() <= bound, f"{worst.max()} at {x[finite][worst.argmax()]}"


@pytest.mark.parametrize("name", ["asin", "atan", "tan", "sinh", "log1p", "expm1"])
def test_odd_functions_keep_small_numbers_and_the_sign_of_zero(name):
    x = np.array([0.0, 1e-45, 1e-40, 2.0**-126, 1e-30], np.float32)
    x = np.concatenate([x, -x])
    np.testing.assert_array_equal(getattr(fastnn, name)(fastnn.from_numpy(x)).numpy().view(np.int32), x.view(np.int32))


def test_arc_functions_at_their_ends():
    x = fastnn.from_numpy(np.array([1, -1, 1.0000001, -np.inf, np.inf, np.nan], np.float32))
    outside = [np.nan] * 4
    np.testing.assert_array_equal(fastnn.acos(x).numpy(), np.array([0, np.pi, *outside], np.float32))
    np.testing.assert_array_equal(fastnn.asin(x).numpy(), np.array([np.pi / 2, -np.pi / 2, *outside], np.float32))
    far = fastnn.from_numpy(np.array([np.inf, -np.inf, 3e38, -1e30, np.nan], np.float32))
    ends = np.array([np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2, np.nan], np.float32)
    np.testing.assert_array_equal(fastnn.atan(far).numpy(), ends)


def test_atan2_in_every_quadrant():
    special = np.array([0, 1, 2, 1e-45, 1e-38, 3e38, np.inf, np.nan], np.float32)
    special = np.concatenate([special, -special])
    y, x = (a.ravel() for a in np.meshgrid(special, special))
    rng = np.random.default_rng(0)
    scale = np.exp2(rng.uniform(-60, 60, (2, 200_000)))
    y = np.concatenate([y, (rng.standard_normal(200_000) * scale[0]).astype(np.float32)])
    x = np.concatenate([x, (rng.standard_normal(200_000) * scale[1]).astype(np.float32)])
    y[-100_000:] = x[-100_000:] * rng.uniform(-4, 4, 100_000).astype(np.float32)
    actual = fastnn.atan2(fastnn.from_numpy(y), fastnn.from_numpy(x)).numpy()
    expected = np.arctan2(y.astype(np.float64), x.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    given = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[given]), np.signbit(expected[given]))
    worst = units(actual[given], expected[given])
    worst[np.abs(expected[given]) < TINY] = 0
    assert worst.max() <= 2


def test_softplus_and_mish_far_from_zero():
    x = np.array([-np.inf, -200, -90, -30, 19.5, 20.5, 88, 1e6, 3e38, np.inf], np.float32)
    t = fastnn.from_numpy(x)
    with np.errstate(all="ignore"):
        e = np.exp(x.astype(np.float64))
        softplus = np.where(x > 20, x, np.log1p(e))
        mish = x * np.tanh(np.log1p(e))
    F = fastnn.nn.functional
    np.testing.assert_allclose(F.softplus(t).numpy(), softplus, rtol=4e-7, atol=TINY)
    np.testing.assert_allclose(F.mish(t).numpy(), mish, rtol=4e-7, atol=128 * TINY)
    large = fastnn.from_numpy(np.array([30.0, 1e6, 1e30], np.float32)).requires_grad_()
    F.mish(large).sum().backward()
    np.testing.assert_array_equal(large.grad.numpy(), 1)


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
