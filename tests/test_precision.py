"""fastnn.set_float32_matmul_precision: what each word promises, against float64 sums.

Per element the bounds are relative to sum |a| |b|. "highest": k + 2 roundings of float32 (a fused multiply-add or an
exact split has no more). "high" and "medium": what the bfloat16 parts leave of the operands.
"""

from collections.abc import Iterator

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F

WORDS = ("highest", "high", "medium")
SMALLEST_NORMAL = 2.0**-126
SHAPES = ((128, 128, 128), (160, 192, 257), (256, 333, 512))
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = fastnn.get_float32_matmul_precision()
    yield
    fastnn.set_float32_matmul_precision(before)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def bound_of(word: str, k: int) -> float:
    return (k + 2) * 2.0**-24 + {"highest": 0.0, "high": 2.0**-15, "medium": 2.0**-7}[word]


def products(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """a b as users write it; the linear layer three times, so that its packed weights are kept and used."""
    x, y = fastnn.from_numpy(a), fastnn.from_numpy(b)
    weight = fastnn.tensor(np.ascontiguousarray(b.T))
    yield "matmul", (x @ y).numpy()
    yield "transposed", (fastnn.from_numpy(np.asfortranarray(a)) @ fastnn.from_numpy(np.asfortranarray(b))).numpy()
    for call in range(3):
        yield f"linear, call {call}", F.linear(x, weight).numpy()


def check(a: np.ndarray, b: np.ndarray, word: str = "highest", least: float = 0.0) -> None:
    """`least`: what is lost where operands or products are below the smallest normal number."""
    fastnn.set_float32_matmul_precision(word)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    magnitude = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    for form, actual in products(a, b):
        error = np.abs(actual - exact)
        allowed = bound_of(word, a.shape[1]) * magnitude + least
        worst = np.unravel_index(np.argmax(error - allowed), error.shape)
        assert (error <= allowed).all(), f"{form} {word}: {actual[worst]} for {exact[worst]}"


def test_words() -> None:
    assert fastnn.get_float32_matmul_precision() == "highest"
    for word in WORDS:
        fastnn.set_float32_matmul_precision(word)
        assert fastnn.get_float32_matmul_precision() == word
    for other in ("", "Highest", "low", "tf32"):
        with pytest.raises(ValueError, match="expected 'highest', 'high' or 'medium'"):
            fastnn.set_float32_matmul_precision(other)
    with pytest.raises(TypeError):
        fastnn.set_float32_matmul_precision(1)  # type: ignore[arg-type]
    assert fastnn.get_float32_matmul_precision() == "medium"
    assert "bfloat16" in (fastnn.set_float32_matmul_precision.__doc__ or "")


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(word: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    check(normal(m, k), normal(k, n), word)


@pytest.mark.parametrize("word", WORDS)
def test_the_word_counts_at_the_next_product(word: str) -> None:
    """Weights packed under one word are not read under another."""
    a, b = normal(160, 256), normal(256, 128)
    x, weight = fastnn.from_numpy(a), fastnn.tensor(np.ascontiguousarray(b.T))
    magnitude = np.abs(a).astype(np.float64) @ np.abs(b)
    for now in (word, *WORDS, *reversed(WORDS)):
        fastnn.set_float32_matmul_precision(now)
        for _ in range(3):
            error = np.abs(F.linear(x, weight).numpy() - a.astype(np.float64) @ b)
            assert (error <= bound_of(now, 256) * magnitude).all()


def test_gradients_take_the_word_too() -> None:
    a, b, dy = normal(160, 128), normal(128, 192), normal(160, 192)
    for word in WORDS:
        fastnn.set_float32_matmul_precision(word)
        x, y = (fastnn.from_numpy(t).requires_grad_() for t in (a, b))
        dx, dw = fastnn.autograd.grad(x @ y, (x, y), fastnn.from_numpy(dy))
        for actual, left, right in ((dx, dy, b.T), (dw, a.T, dy)):
            magnitude = np.abs(left).astype(np.float64) @ np.abs(right)
            error = np.abs(actual.numpy() - left.astype(np.float64) @ right)
            assert (error <= bound_of(word, left.shape[1]) * magnitude).all()


# ---- "highest" is float32 for every input ------------------------------------------------------------


def test_cancellation() -> None:
    """[x, y, -x, -y] against itself: the exact sums are far below their terms."""
    half = normal(128, 128)
    a = np.concatenate([half, -half], 1)
    b = np.concatenate([normal(128, 128)] * 2, 0)
    check(a, b)
    check(a, b + np.float32(2.0**-20) * normal(256, 128))


def test_mixed_exponents() -> None:
    scale = np.exp2(RNG.integers(-60, 61, (160, 256))).astype(np.float32)
    check(normal(160, 256) * scale, normal(256, 128))
    check(normal(160, 256) * scale, (normal(160, 256) * scale)[:, :128].repeat(2, 0)[:256])


def test_tiny_numbers() -> None:
    """Near 1e-30 the parts of a number would be subnormal; against 1 the products are normal, against 1e-10 not."""
    tiny = np.float32(1e-30)
    check(normal(128, 256) * tiny, normal(256, 160))
    check(normal(128, 256) * tiny, normal(256, 160) * tiny, least=256 * SMALLEST_NORMAL)
    check(normal(128, 256) * tiny, normal(256, 160) * np.float32(1e-10), least=256 * SMALLEST_NORMAL)


def test_subnormals_are_zeros() -> None:
    a = normal(128, 256)
    a[:, ::2] *= np.float32(2.0**-128)
    b = np.full((256, 160), 2.0**100, np.float32)
    b[1::2] = 0
    fastnn.set_float32_matmul_precision("highest")
    subnormal = np.abs(a) < SMALLEST_NORMAL
    flushed = np.where(subnormal, 0, a).astype(np.float64) @ b.astype(np.float64)
    magnitude = np.abs(a).astype(np.float64) @ b.astype(np.float64)
    for form, actual in products(a, b):
        assert (np.abs(actual - flushed) <= bound_of("highest", 256) * magnitude).all(), form


def test_huge_numbers_overflow_where_float32_does() -> None:
    """1e30 * 1e9 is infinite, and 1e30 * 1e8 is not."""
    a, b = normal(128, 256), normal(256, 160)
    a[3], b[:, 5], b[:, 6] = 0, 0, 0
    a[3, 7], b[7, 5], b[7, 6] = 1e30, 1e9, 1e8
    fastnn.set_float32_matmul_precision("highest")
    exact, magnitude = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    for form, actual in products(a, b):
        assert actual[3, 5] == np.inf, form
        assert np.isinf(actual).sum() == 1, form
        finite = np.isfinite(actual)
        assert (np.abs(actual - exact)[finite] <= (bound_of("highest", 256) * magnitude)[finite]).all(), form


def test_infinities_and_nans_stay_in_their_rows_and_columns() -> None:
    a, b = normal(160, 256), normal(256, 128)
    a[2, 9], a[5, 200], a[70, 3], b[17, 8] = np.inf, np.nan, -np.inf, np.inf
    b[9, 100] = 0
    fastnn.set_float32_matmul_precision("highest")
    with np.errstate(invalid="ignore"):
        exact, magnitude = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    assert np.isnan(exact[2, 100])
    assert np.isnan(exact[5]).all()
    assert np.isinf(exact[70]).sum() > 100
    finite = np.isfinite(exact)
    for form, actual in products(a, b):
        np.testing.assert_array_equal(actual[~finite], exact[~finite], err_msg=form)
        assert (np.abs(actual[finite] - exact[finite]) <= (bound_of("highest", 256) * magnitude)[finite]).all(), form


# ---- convolution is float32 whatever the word ----------------------------------------------------------


def test_rows_after_infinities_are_exact() -> None:
    """One block of rows leaves the tiles for the vector engine; those after it, thousands of rows on, do not suffer."""
    a, b = normal(4500, 96), normal(96, 80)
    a[3, 5] = np.inf
    actual = (fastnn.from_numpy(np.asfortranarray(a)) @ fastnn.from_numpy(b)).numpy()
    assert np.isinf(actual[3]).all()
    rest = np.arange(4500) != 3
    error = np.abs(actual[rest] - a[rest].astype(np.float64) @ b)
    assert (error <= bound_of("highest", 96) * (np.abs(a[rest]).astype(np.float64) @ np.abs(b))).all()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e18])
def test_convolution_is_always_accurate(word: str, scale: float) -> None:
    """Forward and both gradients: 64 channels of 3x3 are sums of 576, 2 images of 16x16 sums of 512."""
    fastnn.set_float32_matmul_precision(word)
    x, w = normal(2, 64, 16, 16) * np.float32(scale), normal(64, 64, 3, 3)
    dy = normal(2, 64, 16, 16)
    for _ in range(3):
        results = []
        for transform, dtype in ((np.asarray, np.float32), (np.asarray, np.float64), (np.abs, np.float64)):
            leaves = [fastnn.tensor(transform(t).astype(dtype)).requires_grad_() for t in (x, w)]
            y = F.conv2d(*leaves, padding=1)
            gradients = fastnn.autograd.grad(y, leaves, fastnn.tensor(transform(dy).astype(dtype)))
            results.append([t.detach().double().numpy() for t in (y, *gradients)])
        for actual, exact, magnitude in zip(*results, strict=True):
            assert (np.abs(actual - exact) <= bound_of("highest", 576) * magnitude).all()


def test_convolution_keeps_infinities_in_their_windows() -> None:
    x, w = normal(1, 64, 16, 16), normal(64, 64, 3, 3)
    x[0, 5, 4, 4], x[0, 7, 12, 12], x[0, 1, 0, 15] = np.inf, np.nan, 1e30
    w[3, 1, 1, 1] = 1e9
    y = F.conv2d(fastnn.tensor(x), fastnn.tensor(w), padding=1).numpy()
    exact = F.conv2d(fastnn.tensor(x.astype(np.float64)), fastnn.tensor(w.astype(np.float64)), padding=1).numpy()
    exact[np.abs(exact) > np.finfo(np.float32).max] = np.inf
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(exact))
    assert np.isinf(y[0, 3, 0, 15]) and np.isfinite(y).mean() > 0.9
