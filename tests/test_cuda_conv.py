"""Convolution on CUDA where the table of cases does not reach: each kernel's tiles, parts of sums and layouts."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn.autograd import grad
from helpers import gpu

SOURCES = Path(__file__).resolve().parents[1] / "csrc"

# Tiles that are full and not, of 64 and 128; sums in one part and several; strides that do not divide sizes; groups.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "wide": ((1, 20, 11, 13), (72, 20, 3, 3), {"padding": 1}),
    "pointwise": ((1, 66, 9, 9), (68, 66, 1, 1), {}),
    "deep": ((1, 136, 4, 5), (24, 136, 3, 3), {"padding": 1}),
    "strided": ((1, 72, 13, 12), (40, 72, 2, 3), {"stride": (3, 2), "padding": 2, "dilation": (2, 1)}),
    "dilated_strided": ((1, 8, 12, 12), (16, 8, 3, 3), {"stride": 2, "dilation": 2, "padding": 2}),
    "sparse": ((1, 16, 9, 7), (16, 16, 1, 1), {"stride": 3}),
    "groups": ((1, 32, 10, 10), (48, 16, 3, 3), {"groups": 2, "padding": 1}),
    "few_of_a_group": ((1, 16, 9, 33), (16, 4, 3, 3), {"groups": 4, "padding": 1}),
    "first_layer": ((2, 3, 15, 16), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "depthwise": ((2, 16, 9, 14), (16, 1, 3, 3), {"groups": 16, "padding": 1}),
    "depthwise_strided": ((1, 16, 9, 14), (16, 1, 3, 3), {"groups": 16, "padding": 1, "stride": 2}),
    "depthwise_wide": ((1, 12, 9, 70), (12, 1, 5, 5), {"groups": 12, "padding": 2}),
    "depthwise_dilated": ((1, 16, 9, 14), (16, 1, 3, 3), {"groups": 16, "padding": (3, 4), "dilation": 2}),
    "multiplied": ((1, 16, 9, 14), (32, 1, 3, 3), {"groups": 16, "padding": 2}),
}


def small_integers(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).integers(-2, 3, shape).astype(np.float64)


def tensor(array: np.ndarray, dtype: str, last: bool, device: str) -> fastnn.Tensor:
    made = fastnn.from_numpy(array).to(getattr(fastnn, dtype)).to(device)
    return made.contiguous(memory_format=fastnn.channels_last) if last else made


def gradients(name: str, dtype: str, last: bool, device: str) -> list[fastnn.Tensor]:
    x_shape, w_shape, options = SHAPES[name]
    x = tensor(small_integers(x_shape), dtype, last, device).requires_grad_()
    w = tensor(small_integers(w_shape), dtype, False, device).requires_grad_()
    y = F.conv2d(x, w, **options)
    dx, dw = grad(y, (x, w), tensor(small_integers(y.shape), dtype, last, device))
    assert not last or all(t.permute(0, 2, 3, 1).is_contiguous() for t in (y, dx))
    return [t.detach().cpu() for t in (y, dx, dw)]


@pytest.fixture
def tf32() -> Iterator[None]:
    fastnn.set_float32_matmul_precision("high")
    yield
    fastnn.set_float32_matmul_precision("highest")


def check_exact(name: str, dtype: str, last: bool) -> None:
    """Of small integers every sum is exact: the results are those of float64 on the CPU, rounded once."""
    expected = gradients(name, "float64", last, "cpu")
    for result, exact in zip(gradients(name, dtype, last, "cuda"), expected, strict=True):
        rounded = exact.to(result.dtype).to(fastnn.float64)
        np.testing.assert_array_equal(result.to(fastnn.float64).numpy(), rounded.numpy())


@gpu
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_exact(name: str, dtype: str, last: bool) -> None:
    check_exact(name, dtype, last)


@gpu
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ["deep", "strided", "first_layer"])
def test_exact_in_tf32(tf32: None, name: str, last: bool) -> None:
    check_exact(name, "float32", last)


@gpu
def test_tf32_keeps_eleven_bits(tf32: None) -> None:
    """Each factor is rounded by up to 2^-11 of itself, on tensor cores and only there."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((1, 40, 6, 6)), rng.standard_normal((32, 40, 3, 3))
    on_cuda = [fastnn.from_numpy(a).float().cuda() for a in (x, w)]
    rounded = F.conv2d(*on_cuda).cpu().double().numpy()
    exact, magnitude = (F.conv2d(*map(fastnn.from_numpy, pair)).numpy() for pair in ((x, w), (np.abs(x), np.abs(w))))
    error = np.abs(rounded - exact)
    assert np.all(error <= 2.0**-10 * magnitude * 1.01)
    assert error.max() > 2.0**-20 * magnitude.max()


@gpu
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", ["wide", "deep", "depthwise", "few_of_a_group"])
def test_what_follows_the_sums(name: str, dtype: str, last: bool) -> None:
    """Bias, residual and activation in one pass, as on the CPU."""
    x_shape, w_shape, options = SHAPES[name]
    groups, padding = options.get("groups", 1), options["padding"]
    shape = F.conv2d(fastnn.zeros(*x_shape), fastnn.zeros(*w_shape), **options).shape
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(s) / 8 for s in (x_shape, w_shape, w_shape[:1], shape)]

    def fused(dtype: str, device: str, activation: str, arrays: list[np.ndarray] = arrays) -> np.ndarray:
        x, residual = (tensor(arrays[i], dtype, last, device) for i in (0, 3))
        w, bias = (tensor(arrays[i], dtype, False, device) for i in (1, 2))
        window = ((1, 1), (padding, padding), (1, 1), groups, False)
        return fastnn._C.fused_conv2d(x, w, bias, *window, residual, activation).cpu().double().numpy()

    exact, magnitude = fused("float64", "cpu", "gelu"), fused("float64", "cpu", "", [np.abs(a) for a in arrays])
    # Both factors and the result are rounded to the dtype, each sum to what it is made in; the slope of GELU is below
    # 1.13.
    roundoff = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-9}[dtype]
    terms, of_sums = int(np.prod(w_shape[1:])) + 2, min(roundoff, 2.0**-24)
    bound = 1.13 * (2 * roundoff + terms * of_sums) * magnitude + 4 * roundoff * np.abs(exact)
    assert np.all(np.abs(fused(dtype, "cuda", "gelu") - exact) <= bound)


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_every_time(dtype: str) -> None:
    """The emulation runs blocks and threads in another order each time."""
    rng = np.random.default_rng(4)
    x, w = (
        fastnn.from_numpy(rng.standard_normal(s)).to(getattr(fastnn, dtype)).cuda().requires_grad_()
        for s in ((1, 20, 16, 17), (24, 20, 3, 3))
    )
    runs = []
    for _ in range(2):
        y = F.conv2d(x, w, padding=1)
        runs.append([t.detach().cpu().float().numpy() for t in (y, *grad(y, (x, w), y.detach()))])
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


GATHER_CHECKS = """
#include "ops/conv/gather_cuda.h"
using namespace fastnn;

// The taps and positions of each phase against the definition: tap r joins position h of x and position o of y where
// o * stride + r * dilation - padding = h.
constexpr bool meets(const ConvAxis& axis) {
  int64_t met = 0, pairs = 0, positions = 0;
  for (int64_t phase = 0; phase < phases_of(axis); ++phase) {
    const GatherAxis g = input_grad_axis(axis, phase);
    positions += g.count;
    for (int64_t i = 0; i < g.count; ++i)
      for (int64_t j = 0; j < g.taps; ++j) {
        const int64_t h = g.first + i * g.step, r = g.tap_first + j * g.tap_step;
        const int64_t o = g.base + i * g.stride + j * g.delta;
        if (h >= axis.input || r >= axis.kernel) return false;
        if (o * axis.stride + r * axis.dilation - axis.padding != h) return false;
        if (o >= 0 && o < axis.output) ++met;
      }
  }
  for (int64_t o = 0; o < axis.output; ++o)
    for (int64_t r = 0; r < axis.kernel; ++r) {
      const int64_t h = o * axis.stride + r * axis.dilation - axis.padding;
      if (h >= 0 && h < axis.input) ++pairs;
    }
  return met == pairs && positions == axis.input;
}
static_assert(meets({9, 9, 3, 1, 1, 1}) && meets({9, 5, 3, 2, 1, 1}) && meets({10, 3, 2, 3, 0, 2}));
static_assert(meets({12, 6, 3, 2, 2, 2}) && meets({13, 4, 5, 4, 3, 2}) && meets({3, 2, 1, 7, 3, 1}));
static_assert(meets({8, 1, 2, 9, 0, 6}) && meets({7, 3, 4, 6, 9, 4}));
"""


@pytest.mark.skipif(not SOURCES.exists() or not shutil.which("c++"), reason="compiles the C++")
def test_gather_mathematics(tmp_path: Path) -> None:
    (tmp_path / "gather.cpp").write_text(GATHER_CHECKS)
    command = ["c++", "-std=c++17", "-fsyntax-only", "-I", str(SOURCES), str(tmp_path / "gather.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
