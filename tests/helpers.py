"""What several test files share: comparison, numerical gradients, layouts, and code run in a fresh interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastnn
from cases.case import COMPUTE_ROUNDOFF, SMALLEST_NORMAL, STORAGE_ROUNDOFF, Case, rounded, to_numpy, to_tensor


class Anything:
    """An object of no use to any call. Its name is the same in every process, as those of tests must be."""

    def __repr__(self) -> str:
        return "Anything()"


gpu = pytest.mark.skipif(
    not fastnn.cuda.is_available() and os.environ.get("FASTNN_REQUIRE_CUDA") != "1",
    reason=f"needs a GPU: {fastnn.cuda.unavailable_reason()}",
)


def run_python(code: str, *flags: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that finds the same fastnn as this one."""
    package = str(Path(fastnn.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([package, str(Path(__file__).parent)]), **environment}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def passes(code: str, *flags: str, timeout: float = 60, **environment: str) -> str:
    """Runs code that must exit with 0; gives what it printed."""
    done = run_python(code, *flags, timeout=timeout, **environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def leaf(*values: float) -> fastnn.Tensor:
    return fastnn.tensor(values, dtype=fastnn.float64, requires_grad=True)


def array(x: Any) -> np.ndarray:
    return x.detach().numpy()


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def assert_close(actual: Any, expected: Any, tolerance: Any, dtype: str, what: str = "") -> None:
    """Finite values within the tolerance; NaN and infinities, after a rounding to the dtype, in the same places."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if dtype not in COMPUTE_ROUNDOFF or not np.issubdtype(actual.dtype, np.floating):
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return
    stored = rounded(expected.astype(np.float64), dtype)
    finite = np.isfinite(stored)
    with np.errstate(invalid="ignore"):
        difference = np.where(finite, np.abs(actual - expected), 0)
        right = np.where(finite, difference <= tolerance, (actual == stored) | (np.isnan(actual) & np.isnan(stored)))
    if np.all(right):
        return
    first = np.unravel_index(np.argmin(right), right.shape)
    allowed = np.broadcast_to(tolerance, right.shape)[first]
    raise AssertionError(
        f"{what} {dtype}: at {tuple(map(int, first))} got {actual[first]!r}, expected {expected[first]!r} within "
        f"{allowed:.3g} ({int((~right).sum())} of {right.size} differ)"
    )


def check_values(case: Case, result: Any, dtype: str, args: Any, kwargs: Any) -> None:
    """A result against the reference of the rounded arguments."""
    exact_args = [rounded(a, dtype) for a in args]
    with np.errstate(all="ignore"):
        expected = as_list(case.reference(*exact_args, **kwargs))
    actual = as_list(to_numpy(result))
    assert len(actual) == len(expected), f"{case.name}: {len(actual)} results, expected {len(expected)}"
    for got, want in zip(actual, expected, strict=True):
        want = np.asarray(want)
        floating = np.issubdtype(want.dtype, np.floating) and dtype in COMPUTE_ROUNDOFF
        tolerance = case.tolerance(dtype, exact_args, kwargs, want) if floating else 0
        assert_close(got, want, tolerance, dtype, f"{case.name} {kwargs or ''}")


def replace(tree: Any, old: np.ndarray, new: Any) -> Any:
    """The arguments with one array exchanged."""
    if isinstance(tree, list | tuple):
        return [replace(t, old, new) for t in tree]
    return new if tree is old else tree


def float_arrays(case: Case, args: Any) -> list[np.ndarray]:
    """The arrays that the case is differentiable in."""
    if case.differentiable is False:
        return []
    positions = range(len(args)) if case.differentiable is True else case.differentiable
    found = []
    for i in positions:
        for value in as_list(args[i]) if i < len(args) else []:
            if isinstance(value, np.ndarray) and value.dtype == np.float64:
                found.append(value)
    return found


def central_difference(
    function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5, most: int = 48
) -> Any:
    """(positions, derivatives): at most `most` elements of x, chosen at random."""
    rng = np.random.default_rng(0)
    positions = rng.choice(x.size, min(x.size, most), replace=False)
    derivatives = np.empty(len(positions))
    for k, position in enumerate(positions):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved.flat[position] += sign * step
            sides.append(function(moved))
        derivatives[k] = (sides[0] - sides[1]) / (2 * step)
    return positions, derivatives


def layouts(x: Any) -> Iterator[tuple[str, Any]]:
    """The values of a contiguous tensor with other strides."""
    if x.numel() == 0 or x.dim() == 0:
        return
    order = tuple(reversed(range(x.dim())))
    if x.dim() > 1:
        yield "transposed", x.permute(order).contiguous().permute(order)
    yield "stepped", fastnn.stack([x, x], -1).reshape(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    yield "offset", fastnn.cat([x[:1], x], 0)[1:]
    if x.device.type == "cpu" and x.dtype != fastnn.bfloat16:
        yield "reversed", fastnn.from_numpy(np.ascontiguousarray(x.numpy()[::-1])[::-1])


def tensors(args: Any, dtype: str, lib: Any = None, device: str | None = None) -> list[Any]:
    """The arguments with their arrays as tensors, on a device where one is named."""
    return [_moved(to_tensor(lib or fastnn, a, dtype), device) for a in args]


def _moved(value: Any, device: str | None) -> Any:
    if isinstance(value, list):
        return [_moved(v, device) for v in value]
    return value.to(device) if device and hasattr(value, "to") else value


def floating(results: Any) -> list[Any]:
    return [y for y in as_list(results) if y.is_floating_point()]


def cotangents(outputs: list[Any], dtype: str, lib: Any = None) -> list[Any]:
    """Weights of the outputs, the same in every run."""
    rng = np.random.default_rng(1)
    weights = [np.asarray(rng.uniform(0.5, 1.5, tuple(y.shape))) for y in outputs]
    return [to_tensor(lib or fastnn, w, dtype).to(y.device) for w, y in zip(weights, outputs, strict=True)]


def recorded(case: Case, args: Any, dtype: str, lib: Any = None, device: str | None = None) -> tuple[list, list]:
    """Arguments with requires_grad on what the case is differentiable in; those tensors apart."""
    arrays = float_arrays(case, args)
    leaves = [x.requires_grad_() for x in tensors(arrays, dtype, lib, device)]
    built = list(args)
    for array, leaf in zip(arrays, leaves, strict=True):
        built = replace(built, array, leaf)
    return tensors(built, dtype, lib, device), leaves


def backward_of(case: Case, args: Any, kwargs: Any, dtype: str, lib: Any = None, device: str | None = None) -> list:
    """The gradients of a weighted sum of the results, as float64 arrays."""
    lib = lib or fastnn
    built, leaves = recorded(case, args, dtype, lib, device)
    outputs = floating(case.run(lib, *built, **kwargs))
    return [to_numpy(g.cpu()) for g in gradients(lib, outputs, leaves, cotangents(outputs, dtype, lib))]


def check_rounding(case: Case, args: Any, kwargs: Any, dtype: str, device: str | None = None) -> None:
    """Backward in a smaller type against backward in float64, on the CPU, of the same rounded inputs."""
    exact = [rounded(a, dtype) for a in args]
    actual = backward_of(case, exact, kwargs, dtype, device=device)
    built, leaves = recorded(case, exact, "float64")
    outputs = floating(case.run(fastnn, *built, **kwargs))
    weights = [w.to(getattr(fastnn, dtype)).double() for w in cotangents(outputs, "float64")]
    expected = [to_numpy(g) for g in gradients(fastnn, outputs, leaves, weights)]
    terms = case.terms(*exact, **kwargs) if callable(case.terms) else case.terms
    for got, want in zip(actual, expected, strict=True):
        size = max(np.abs(want).max(initial=0), case.gradient_scale)
        repeats = np.sqrt(max(terms, 1)) + np.sqrt(max((y.numel() for y in outputs), default=1))
        tolerance = size * (8 * repeats * COMPUTE_ROUNDOFF[dtype] + 8 * STORAGE_ROUNDOFF[dtype])
        assert_close(got, want, tolerance + SMALLEST_NORMAL[dtype], dtype, f"{case} {kwargs} gradient")


def gradients(lib: Any, outputs: Any, inputs: list[Any], weights: list[Any], create_graph: bool = False) -> list[Any]:
    """The gradients of sum(weight * output) over the outputs that have a history; zeros where there is none."""
    pairs = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if not pairs:
        return [lib.zeros_like(x) for x in inputs]
    ys, ws = zip(*pairs, strict=True)
    found = lib.autograd.grad(ys, inputs, ws, create_graph=create_graph, allow_unused=True)
    return [lib.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
