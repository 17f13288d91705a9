"""Every operation of the table on CUDA: the values, strides and gradients of the CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastnn
from cases import CASES
from cases.case import Case
from helpers import as_list, backward_of, check_rounding, check_values, gpu, layouts, replace, tensors


@pytest.fixture(autouse=True)
def fresh_memory() -> Iterator[None]:
    """The emulation fills fresh memory with NaN and protects released memory: every block is fresh."""
    if not fastnn.cuda.is_emulated():
        yield
        return
    limit = fastnn.cuda.memory_stats()["cache_limit"]
    fastnn.cuda.empty_cache()
    fastnn._C.set_cache_limit(0, "cuda")
    yield
    fastnn._C.set_cache_limit(limit, "cuda")


def on_cuda(args: Any, dtype: str) -> list[Any]:
    return tensors(args, dtype, device="cuda")


def run_on_cuda(case: Case, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The results, which must be on the device, brought to the CPU."""
    where = {"device": "cuda"} if case.family == "create" else {}
    results = as_list(case.run(fastnn, *args, **kwargs, **where))
    for result in results:
        assert not isinstance(result, fastnn.Tensor) or result.device.type == "cuda", f"{case}: a result on the CPU"
    return [result.cpu() if isinstance(result, fastnn.Tensor) else result for result in results]


def each(wanted: Callable[[Case], Any], dtypes: Callable[[Case], Any] | None = None) -> pytest.MarkDecorator:
    """Cases, or pairs of case and dtype."""
    chosen = [case for case in CASES if wanted(case)]
    if dtypes is None:
        return pytest.mark.parametrize("case", chosen, ids=str)
    pairs = [(case, dtype) for case in chosen for dtype in dtypes(case)]
    return pytest.mark.parametrize(("case", "dtype"), pairs, ids=[f"{case}-{dtype}" for case, dtype in pairs])


def with_float16(case: Case) -> tuple[str, ...]:
    """The CPU's cases leave it out where bfloat16 runs the same code; CUDA has kernels for each."""
    return (*case.dtypes, "float16") if "bfloat16" in case.dtypes else case.dtypes


def differentiable(case: Case) -> bool:
    return case.differentiable is not False and "float64" in case.dtypes


@gpu
@each(lambda case: True, lambda case: (*with_float16(case), *case.integers))
def test_value(case: Case, dtype: str) -> None:
    for sample in (*case.samples, *(case.specials if dtype in case.dtypes else ())):
        results = run_on_cuda(case, on_cuda(sample.args, dtype), sample.kwargs)
        check_values(case, results, dtype, sample.args, sample.kwargs)


@gpu
@each(lambda case: case.family != "optim")  # a step wants states laid out as their parameter
def test_strided(case: Case) -> None:
    """Transposed, stepped and offset arguments give what contiguous ones give."""
    dtype = (*case.dtypes, *case.integers)[0]
    for sample in case.samples[:3]:
        for array in [a for group in sample.args for a in as_list(group) if isinstance(a, np.ndarray)]:
            for layout, strided in layouts(on_cuda([array], dtype)[0]):
                args = on_cuda(replace(sample.args, array, strided), dtype)
                try:
                    results = run_on_cuda(case, args, sample.kwargs)
                except RuntimeError as refusal:  # a view that these strides do not allow says so
                    if case.name != "view" or "view" not in str(refusal):
                        raise
                    continue
                try:
                    check_values(case, results, dtype, sample.args, sample.kwargs)
                except AssertionError as wrong:
                    raise AssertionError(f"{layout}: {wrong}") from wrong


@gpu
@each(differentiable)
def test_gradient_is_the_cpus(case: Case) -> None:
    """In float64: both compute one formula, with mathematical functions of a few units in the last place."""
    for sample in case.samples:
        expected = backward_of(case, sample.args, sample.kwargs, "float64")
        actual = backward_of(case, sample.args, sample.kwargs, "float64", device="cuda")
        for got, want in zip(actual, expected, strict=True):
            scale = max(np.abs(want).max(initial=0.0), 1.0)
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * scale, err_msg=f"{case} {sample.kwargs}")


@gpu
@each(differentiable, lambda case: [dtype for dtype in with_float16(case) if dtype != "float64"])
def test_gradient_rounding(case: Case, dtype: str) -> None:
    """Backward in the smaller types against backward in float64 on the CPU."""
    for sample in case.samples:
        check_rounding(case, sample.args, sample.kwargs, dtype, device="cuda")
