"""Sizes at which CUDA kernels go another way than at those of the case table: chunks, long runs, many tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastnn
from fastnn import nn
from helpers import gpu


def pair(array: np.ndarray, dtype: str = "float32") -> tuple[fastnn.Tensor, fastnn.Tensor]:
    """The same values on the CPU and on the GPU."""
    there = fastnn.tensor(array).to(getattr(fastnn, dtype))
    return there, there.to("cuda")


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- reductions: sums of n float32 differ by the rounding of float32 runs, eps times what is summed ----


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int32"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((300_001,), None),  # chunks, without packs
        ((400_000,), None),  # chunks in packs
        ((3, 40_000), 1),  # blocks a row
        ((40_000, 3), 0),  # few columns
        ((9000, 40), 0),  # packs of columns, in chunks
        ((9000, 37), 0),
        ((60, 20, 30), (0, 2)),  # two reduced axes around a kept one
        ((2, 700, 33), (0, 1)),
    ],
)
def test_sums(shape: tuple[int, ...], axes: Any, dtype: str) -> None:
    here, there = pair(numbers(*shape) * 4 + 1, dtype)
    exact = np.asarray(here.to(fastnn.float64)).sum(axis=axes)
    sizes = np.abs(np.asarray(here.to(fastnn.float64))).sum(axis=axes)
    result = (there.sum() if axes is None else there.sum(axes)).cpu()
    rounding = {"bfloat16": 2.0**-8, "float32": 2.0**-24 * 600, "float64": 2.0**-52 * 600, "int32": 0.0}[dtype]
    assert (np.abs(np.asarray(result.to(fastnn.float64)) - exact) <= rounding * sizes).all()
    extreme = there.amax() if axes is None else there.amax(axes)
    assert (np.asarray(extreme.cpu().to(fastnn.float64)) == np.asarray(here.to(fastnn.float64)).max(axis=axes)).all()


# ---- index arithmetic: 32 bits where every offset fits, else 64 ----


@gpu
@pytest.mark.parametrize("step", [1 << 10, 1 << 30])
def test_far_offsets(step: int) -> None:
    """Operands whose elements are up to 2^31 elements of a byte apart: elementwise, copy, transpose, reduce, index."""
    values = np.random.default_rng(0).integers(0, 100, (3, 10, 12)).astype(np.uint8)
    far = fastnn.empty(3, step, dtype=fastnn.uint8, device="cuda")[:, :170].reshape(3, 10, 17)[:, :, :12]
    assert far.stride() == (step, 17, 1)
    far.copy_(fastnn.tensor(values).to("cuda"))
    np.testing.assert_array_equal(far.cpu().numpy(), values)
    np.testing.assert_array_equal((far + far).cpu().numpy(), values + values)
    np.testing.assert_array_equal(far.transpose(1, 2).contiguous().cpu().numpy(), values.swapaxes(1, 2))
    np.testing.assert_array_equal(far.permute(2, 0, 1).contiguous().cpu().numpy(), values.transpose(2, 0, 1))
    np.testing.assert_array_equal(far.sum((0, 2)).cpu().numpy(), values.sum((0, 2)))
    np.testing.assert_array_equal(far.amax((0, 1)).cpu().numpy(), values.max((0, 1)))
    np.testing.assert_array_equal(far.argmax(0).cpu().numpy(), values.argmax(0))
    del far
    fastnn.cuda.empty_cache()


@gpu
@pytest.mark.parametrize(("shape", "axis"), [((50_000,), 0), ((3, 40_000), 1), ((40_000, 3), 0), ((9000, 40), 0)])
def test_first_of_ties(shape: tuple[int, ...], axis: int) -> None:
    values = np.random.default_rng(0).integers(0, 50, shape).astype(np.float32)
    for array in (values, np.where(values == 49, np.nan, values)):
        assert (pair(array)[1].argmax(axis).cpu().numpy() == array.argmax(axis)).all()


@gpu
@pytest.mark.parametrize("shape", [(2, 9001), (1, 40_000), (3, 17), (5, 6, 70)])
def test_cumulative_sums(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(-9, 9, shape)
    for axis in range(array.ndim):
        here, there = pair(array, "int64")
        assert (there.cumsum(axis).cpu().numpy() == array.cumsum(axis)).all()
        weight = here.to(fastnn.float32).to("cuda").requires_grad_()
        (weight.cumsum(axis) * there.to(fastnn.float32)).sum().backward()
        expected = np.flip(np.flip(array, axis).cumsum(axis), axis)
        assert weight.grad is not None
        assert (weight.grad.cpu().numpy() == expected).all()


@gpu
@pytest.mark.parametrize("n", [2, 33, 2048, 2049, 4097, 11_000])
def test_sort_is_stable(n: int) -> None:
    array = np.random.default_rng(n).integers(0, 40, (3, n)).astype(np.float32)
    array[1, ::7] = np.nan
    array[2, ::5] = -0.0
    here, there = pair(array)
    for descending in (False, True):
        for expected, result in zip(here.sort(-1, descending), there.sort(-1, descending), strict=True):
            assert np.array_equal(expected.numpy(), result.cpu().numpy(), equal_nan=True)
    for expected, result in zip(here.topk(2), there.topk(2), strict=True):
        assert np.array_equal(expected.numpy(), result.cpu().numpy(), equal_nan=True)


# ---- indexed writes: the bits of the CPU, which adds in the order of the positions ----


@gpu
@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_additions_are_ordered(width: int, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, 30, 5000)
    here, there = pair(numbers(30, width), dtype)
    source, source_there = pair(numbers(5000, width), dtype)
    index, index_there = pair(ids, "int64")
    expected = here.index_add(0, index, source)
    assert np.array_equal(
        expected.to(fastnn.float64).numpy(),
        there.index_add(0, index_there, source_there).cpu().to(fastnn.float64).numpy(),
    )


@gpu
def test_last_assignment_wins() -> None:
    ids = np.random.default_rng(0).integers(0, 7, (5000, 4))
    x, x_there = pair(np.zeros((7, 4)))
    source, source_there = pair(numbers(5000, 4))
    index, index_there = pair(ids, "int64")
    x.scatter_(0, index, source)
    x_there.scatter_(0, index_there, source_there)
    assert np.array_equal(x.numpy(), x_there.cpu().numpy())


@gpu
def test_nonzero_over_chunks() -> None:
    array = (np.random.default_rng(0).random((3, 50, 700)) < 0.3).astype(np.float32)
    assert np.array_equal(pair(array)[1].nonzero().cpu().numpy(), np.argwhere(array))


# ---- random numbers ----


@gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("n", [1, 7, 1025])
def test_draws_are_those_of_the_cpu(n: int, dtype: str) -> None:
    wanted = getattr(fastnn, dtype)

    def draws(device: str) -> list[np.ndarray]:
        fastnn.manual_seed(3)
        made = [
            fastnn.rand(n, dtype=wanted, device=device),
            fastnn.empty(n, dtype=wanted, device=device).uniform_(-2, 5),
            fastnn.randint(-3, 90, (n,), dtype=wanted, device=device),
            fastnn.bernoulli(fastnn.full((n,), 0.3, dtype=wanted, device=device)),
            nn.functional.dropout(fastnn.ones(n, dtype=wanted, device=device), 0.4),
            fastnn.randperm(n, device=device),
        ]
        return [x.cpu().to(fastnn.float64).numpy() for x in made]

    for expected, result in zip(draws("cpu"), draws("cuda"), strict=True):
        assert np.array_equal(expected, result)
    fastnn.manual_seed(3)
    normal = fastnn.randn(n, dtype=fastnn.float64)
    fastnn.manual_seed(3)
    assert np.allclose(normal.numpy(), fastnn.randn(n, dtype=fastnn.float64, device="cuda").cpu().numpy(), 0, 1e-14)


# ---- optimizers ----


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "make",
    [
        lambda params: fastnn.optim.AdamW(params, lr=0.1),
        lambda params: fastnn.optim.SGD(params, lr=0.1, momentum=0.9),
    ],
    ids=["adamw", "sgd"],
)
def test_steps_of_many_tensors(make: Callable[[list[nn.Parameter]], Any], dtype: str) -> None:
    shapes = [(n,) for n in range(1, 120)] + [(40_003,), (2, 20_000)]

    def stepped(device: str) -> list[np.ndarray]:
        params = [
            nn.Parameter(fastnn.tensor(numbers(*shape)).to(getattr(fastnn, dtype)).to(device)) for shape in shapes
        ]
        optimizer = make(params)
        for step in range(2):
            for i, p in enumerate(params):
                p.grad = fastnn.tensor(numbers(*p.shape, seed=i + step)).to(p.dtype).to(device)
            nn.utils.clip_grad_norm_(params, 50.0)
            optimizer.step()
        return [p.detach().cpu().to(fastnn.float64).numpy() for p in params]

    rounding = {"float32": 2.0**-20, "bfloat16": 2.0**-7, "float64": 2.0**-48}[dtype]
    for expected, result in zip(stepped("cpu"), stepped("cuda"), strict=True):
        assert np.allclose(expected, result, rounding, rounding)


# ---- copies and elementwise: packs, turned tiles, and what fits neither ----


@gpu
@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32", "int64"])
@pytest.mark.parametrize("shape", [(2, 40, 3, 33), (3, 8, 16, 32), (1, 5, 70, 9)])
def test_turned_copies(shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 100, shape)
    there = pair(array, dtype)[1]
    for order in ((0, 2, 3, 1), (3, 2, 1, 0), (0, 1, 3, 2), (1, 0, 2, 3)):
        turned = there.permute(*order)
        assert np.array_equal(turned.contiguous().cpu().to(fastnn.int64).numpy(), array.transpose(order))
        part = turned[:, 1:].contiguous()
        assert np.array_equal(part.cpu().to(fastnn.int64).numpy(), array.transpose(order)[:, 1:])


@gpu
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "bfloat16", "float32", "float64", "int64"])
def test_packs_of_elements(dtype: str) -> None:
    here, there = pair(np.random.default_rng(0).integers(0, 2, (6, 36)), dtype)
    column, column_there = pair(np.arange(6).reshape(6, 1))
    row, row_there = pair(numbers(36))
    for part in (slice(None), slice(4, None), slice(1, 33)):  # aligned; with a stride; not aligned
        x, y = here[:, part], there[:, part]
        assert np.array_equal((x * row[part] + column).numpy(), (y * row_there[part] + column_there).cpu().numpy())
        assert np.array_equal(x.to(fastnn.float32).numpy(), y.to(fastnn.float32).cpu().numpy())
        assert np.array_equal((x > row[part]).numpy(), (y > row_there[part]).cpu().numpy())
        assert np.allclose(x.to(fastnn.float32).exp().numpy(), y.to(fastnn.float32).exp().cpu().numpy(), 1e-6)
