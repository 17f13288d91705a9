"""Matrix products over the shapes at which the engine changes its way: thin, short and odd ones, in any layout."""

from typing import Any

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from cases.case import COMPUTE_ROUNDOFF, STORAGE_ROUNDOFF, to_numpy

LAYOUTS = ("rows", "columns", "padded", "strided")
# Two bfloat16 parts of a float16 leave out the product of the lower ones.
PRODUCT_ROUNDOFF = COMPUTE_ROUNDOFF | {"float16": 2.0**-17}


def laid_out(x: np.ndarray, dtype: str, layout: str) -> tuple[Any, np.ndarray]:
    """x as a tensor of the layout, whatever lies between its elements being NaN, and the values it has."""
    values = fastnn.from_numpy(x.astype(np.float32)).to(getattr(fastnn, dtype))
    m, n = x.shape
    if layout == "rows":
        return values, to_numpy(values)
    shape, view = {
        "columns": ((n, m), lambda t: t.T),
        "padded": ((m, n + 3), lambda t: t[:, :n]),
        "strided": ((2 * m, 2 * n), lambda t: t[::2, ::2]),
    }[layout]
    result = view(fastnn.full(shape, float("nan"), dtype=values.dtype))
    result.copy_(values)
    return result, to_numpy(values)


def check_product(m: int, k: int, n: int, dtype: str, layouts: tuple[str, str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, a_values = laid_out(rng.standard_normal((m, k)), dtype, layouts[0])
    b, b_values = laid_out(rng.standard_normal((k, n)), dtype, layouts[1])
    bias, bias_values = laid_out(rng.standard_normal((1, n)), dtype, "rows")
    want = a_values @ b_values + bias_values
    magnitude = np.abs(a_values) @ np.abs(b_values) + np.abs(bias_values)
    outcomes = []
    for threads in (1, 2):
        fastnn.set_num_threads(threads)
        outcomes.append(to_numpy(F.linear(a, b.T, bias[0])))
    np.testing.assert_array_equal(outcomes[0], outcomes[1])
    tolerance = (k + 2) * PRODUCT_ROUNDOFF[dtype] * magnitude + 1.01 * STORAGE_ROUNDOFF[dtype] * np.abs(want)
    wrong = np.abs(outcomes[0] - want) - tolerance
    assert wrong.max() <= 0, f"({m}, {k}) @ ({k}, {n}), {dtype}, {layouts}: {wrong.max()} beyond the tolerance"


@pytest.fixture(autouse=True)
def threads() -> Any:
    count = fastnn.get_num_threads()
    yield
    fastnn.set_num_threads(count)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_short_k(dtype: str, layout: str) -> None:
    for k in range(1, 41):
        check_product(65 + k % 3, k, 97, dtype, (layout, LAYOUTS[k % 4]), k)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_few_rows_or_columns(dtype: str, layout: str) -> None:
    for thin in range(1, 41):
        check_product(thin, 160 + thin, 129, dtype, (layout, LAYOUTS[thin % 4]), thin)
        check_product(129, 160 + thin, thin, dtype, (LAYOUTS[thin % 4], layout), thin)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 2050, 1030), (4, 1030, 1030), (17, 2300, 333), (333, 2300, 17), (70, 257, 4133)])
def test_long_and_thin(shape: tuple[int, int, int], dtype: str) -> None:
    for layouts in (("rows", "columns"), ("rows", "rows"), ("columns", "padded")):
        check_product(*shape, dtype, layouts, 0)


def check_against_float64(result: Any, a: np.ndarray, b: np.ndarray, addend: Any = 0.0) -> None:
    """Of a float32 a @ b + addend: infinities and NaN where float64 has them, elsewhere k roundings at most."""
    with np.errstate(invalid="ignore"):
        want = a.astype(np.float64) @ b.astype(np.float64) + addend
        magnitude = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)) + np.abs(addend)
    got, finite = to_numpy(result), np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    assert (np.abs(got[finite] - want[finite]) <= (a.shape[1] + 3) * 2.0**-24 * magnitude[finite]).all()


@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS[:2] for b in LAYOUTS[:2]])
@pytest.mark.parametrize("shape", [(700, 1300, 800), (300, 1500, 777)])
def test_extreme_magnitudes_in_large_operands(shape: tuple[int, int, int], layouts: tuple[str, str]) -> None:
    """Float32 that no three bfloat16 make up exactly, in few of the many panels of either operand."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    a[5, 7], a[m // 2, 40], a[m - 1, k - 1] = np.inf, 1e30, 1e-35
    b[100, 3], b[k // 2, n // 2], b[k - 2, n - 1] = np.nan, 1e-38, 3e20
    outcomes = []
    for threads in (1, 2):
        fastnn.set_num_threads(threads)
        outcomes.append(laid_out(a, "float32", layouts[0])[0] @ laid_out(b, "float32", layouts[1])[0])
        check_against_float64(outcomes[-1], a, b)
    np.testing.assert_array_equal(to_numpy(outcomes[0]), to_numpy(outcomes[1]))


@pytest.mark.parametrize("values", [(1e37, 1e-37), (np.inf, 1.0), (np.nan, 1.0), (3e38, 2e-20)])
@pytest.mark.parametrize("transposed", [False, True])
def test_extreme_magnitudes(values: tuple[float, float], transposed: bool) -> None:
    """Float32 that no three bfloat16 make up exactly, in some rows of the long operand: as exact as the rest."""
    rng = np.random.default_rng(0)
    long, thin = rng.standard_normal((150, 300)).astype(np.float32), rng.standard_normal((20, 300)).astype(np.float32)
    long[70, 5], thin[:, 5] = values
    long[3, 7] = 1e-39
    pair = (thin, long) if transposed else (long, thin)
    addend = rng.standard_normal((len(pair[0]), len(pair[1]))).astype(np.float32)
    result = fastnn.addmm(fastnn.from_numpy(addend), fastnn.from_numpy(pair[0]), fastnn.from_numpy(pair[1]).T, beta=2.0)
    check_against_float64(result, pair[0], pair[1].T, 2.0 * addend.astype(np.float64))
