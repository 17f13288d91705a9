"""Matrix products on CUDA beyond the table: edges of tiles, layouts, parts of k, batches, epilogues."""

from collections.abc import Iterator

import numpy as np
import pytest

import fastnn
from fastnn.nn import fused
from helpers import gpu

pytestmark = gpu

DTYPES = ("float32", "float64", "bfloat16", "float16")
ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8, "float16": 2.0**-11}
LAYOUTS = ("rows", "columns", "stepped")


def random(shape: tuple[int, ...], dtype: str, layout: str = "rows", seed: int = 0) -> fastnn.Tensor:
    """Normal numbers on the device, adjacent along the last dimension, along the one before it, or along neither."""
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    x = fastnn.tensor(values).to(getattr(fastnn, dtype)).to("cuda")
    if layout == "columns":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "stepped":
        wide = fastnn.zeros(*shape[:-1], 2 * shape[-1], dtype=x.dtype, device="cuda")[..., ::2]
        return wide.copy_(x)
    return x


def exact(x: fastnn.Tensor) -> np.ndarray:
    return x.cpu().to(fastnn.float64).numpy()


def check_product(
    result: fastnn.Tensor, a: np.ndarray, b: np.ndarray, dtype: str, product: float | None = None
) -> None:
    """Within the rounding of k products and their sum in float32 (float64), and of the result. `product`: the relative
    error of one product, where operands are rounded first."""
    own, k = ROUNDING[dtype], a.shape[-1]
    sums = product or min(own, ROUNDING["float32"])
    bound = (np.abs(a) @ np.abs(b)) * sums * (k + 1) + np.abs(a @ b) * own
    assert result.shape == bound.shape
    error = np.abs(exact(result) - a @ b)
    assert (error <= bound * (1 + 2.0**-10)).all(), f"{np.max(error / bound):.3g} of the bound"


@pytest.fixture
def high_precision() -> Iterator[None]:
    fastnn.set_float32_matmul_precision("high")
    yield
    fastnn.set_float32_matmul_precision("highest")


# Inside a tile, across its edges, of strides that suit 16-byte copies and that do not; then tile after tile in a block,
# through the whole ring: tiles of 64 x 128, 128 x 128 and 128 x 256 on the emulated GPU.
SIZES = [(9, 17, 33), (65, 72, 40), (16, 200, 16), (530, 24, 264), (1000, 136, 128), (500, 72, 504)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_layouts_and_edges(left: str, right: str, dtype: str) -> None:
    for m, k, n in SIZES if dtype == "bfloat16" and "stepped" not in (left, right) else SIZES[:3]:
        a, b = random((m, k), dtype, left), random((k, n), dtype, right, 1)
        check_product(a @ b, exact(a), exact(b), dtype)


@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_tf32(high_precision: None, left: str, right: str) -> None:
    for m, k, n in SIZES if "stepped" not in (left, right) else SIZES[:2]:
        a, b = random((m, k), "float32", left), random((k, n), "float32", right, 1)
        check_product(a @ b, exact(a), exact(b), "float32", product=2 * 2.0**-10 / (k + 1) + 2.0**-24)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (1, 64, 40),
        (40, 64, 1),
        (3, 72, 17),
        (24, 128, 5),
        (8, 8, 8),
        (1, 4104, 24),
        (24, 4104, 8),
        (2, 7, 3),
        (70, 1, 8),
    ],
)
def test_few_rows_or_columns(m: int, k: int, n: int, dtype: str) -> None:
    for left, right in (("rows", "rows"), ("rows", "columns"), ("columns", "rows")):
        a, b = random((m, k), dtype, left), random((k, n), dtype, right, 1)
        check_product(a @ b, exact(a), exact(b), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_k(dtype: str) -> None:
    """Few tiles and a long k, which is cut; the parts end inside a stage. Every run gives the same bits."""
    for m, k, n, layout in ((20, 1160, 24, "rows"), (20, 1031, 23, "columns")):
        a, b = random((m, k), dtype, layout), random((k, n), dtype, seed=1)
        result = a @ b
        check_product(result, exact(a), exact(b), dtype)
        assert (exact(a @ b) == exact(result)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches(dtype: str) -> None:
    for left, right in (((3, 20, 24), (3, 24, 40)), ((2, 3, 20, 24), (3, 24, 40)), ((2, 1, 3, 24), (2, 24, 16))):
        a, b = random(left, dtype), random(right, dtype, seed=1)
        check_product(a @ b, exact(a), exact(b), dtype)
    heads = random((2, 16, 3, 24), dtype)  # a transposed batch, as attention has it
    a, b = heads.transpose(1, 2), heads.transpose(1, 2).transpose(-1, -2)
    check_product(a @ b, exact(a), exact(b), dtype)


def test_infinite_elements_stay_where_they_are() -> None:
    """What lies beyond a tile is zero, not something times zero."""
    for dtype in ("float32", "bfloat16"):
        a, b = random((33, 24), dtype), random((24, 40), dtype, seed=1)
        a[32, 5] = float("inf")
        finite = np.isfinite(exact(a @ b))
        assert finite[:32].all()
        assert not finite[32].any()


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"])
def test_epilogues(activation: str | None, dtype: str) -> None:
    """The fused form is the CPU's: few rows, one tile, an odd width, parts of k."""
    for rows, inner, columns in ((3, 40, 24), (17, 40, 33), (24, 1152, 24)):
        x, weight = random((rows, inner), dtype), random((columns, inner), dtype, seed=1) * 0.1
        bias, residual = random((columns,), dtype, seed=2), random((rows, columns), dtype, seed=3)
        arguments = (x, weight, bias, residual)
        with fastnn.no_grad():
            actual = fused.linear(*arguments[:3], activation=activation, residual=residual)
            expected = fused.linear(
                *(t.cpu().to(fastnn.float64) for t in arguments[:3]),
                activation=activation,
                residual=residual.cpu().to(fastnn.float64),
            )
        magnitude = np.abs(exact(x)) @ np.abs(exact(weight)).T + np.abs(exact(bias)) + np.abs(exact(residual))
        bound = 2 * magnitude * 2.0**-24 * (inner + 8) + np.abs(expected.numpy()) * ROUNDING[dtype]
        assert (np.abs(exact(actual) - expected.numpy()) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_onto_c(dtype: str) -> None:
    c, a, b = random((33, 40), dtype, seed=2), random((33, 24), dtype), random((24, 40), dtype, seed=1)
    result = exact(fastnn.addmm(c, a, b, beta=0.5, alpha=2.0))
    scale = 0.5 * np.abs(exact(c)) + 2 * np.abs(exact(a)) @ np.abs(exact(b))
    expected = 0.5 * exact(c) + 2 * exact(a) @ exact(b)
    sums = 26 * min(ROUNDING[dtype], 2.0**-24)
    assert (np.abs(result - expected) <= scale * (2 * ROUNDING[dtype] + sums)).all()
