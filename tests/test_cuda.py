"""CUDA: what a machine without a GPU must say, the parts of the kernels that need none, and on a GPU the same values.

bench/gpu_check.sh runs this file on a machine with a GPU and sets FASTNN_REQUIRE_CUDA=1: there, no GPU is a failure.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastnn
from cases import CASES
from cases.case import Case
from helpers import as_list, backward_of, check_rounding, check_values, layouts, replace, tensors

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"

AVAILABLE = fastnn.cuda.is_available()
gpu = pytest.mark.skipif(
    not AVAILABLE and os.environ.get("FASTNN_REQUIRE_CUDA") != "1",
    reason=f"needs a GPU: {fastnn.cuda.unavailable_reason()}",
)
no_gpu = pytest.mark.skipif(AVAILABLE, reason="is about machines without a GPU")
in_source_tree = pytest.mark.skipif(not SOURCES.exists(), reason="compiles the C++, and there is none here")


# ---- without a GPU --------------------------------------------------------------------------------


def test_unavailable_has_a_reason() -> None:
    assert fastnn.cuda.is_available() == (fastnn.cuda.device_count() > 0)
    assert fastnn.cuda.is_available() == (fastnn.cuda.unavailable_reason() == "")


def test_config_tells_about_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    fastnn.show_config()
    assert re.search(r"CUDA (available|not available: \S+)", capsys.readouterr().out)


@no_gpu
@pytest.mark.parametrize(
    "use",
    [
        lambda: fastnn.zeros(2, 3, device="cuda"),
        lambda: fastnn.tensor([1.0], device="cuda:0"),
        lambda: fastnn.ones(2).to("cuda"),
        lambda: fastnn.nn.Linear(2, 3).to("cuda"),
        fastnn.cuda.synchronize,
        fastnn.cuda.memory_allocated,
        fastnn.cuda.max_memory_allocated,
        fastnn.cuda.memory_reserved,
        fastnn.cuda.reset_peak_memory_stats,
    ],
)
def test_a_use_of_cuda_raises_the_reason(use) -> None:
    with pytest.raises(RuntimeError, match=re.escape(fastnn.cuda.unavailable_reason())):
        use()


@no_gpu
def test_the_cpu_goes_on_after_a_failed_use_of_cuda() -> None:
    x = fastnn.ones(3)
    with pytest.raises(RuntimeError):
        x.to("cuda")
    assert (x + x).tolist() == [2.0, 2.0, 2.0]
    fastnn.cuda.empty_cache()


def test_a_cpu_device_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a CUDA device, got 'cpu'"):
        fastnn.cuda.synchronize("cpu")


@pytest.mark.skipif(not shutil.which("ldd"), reason="ldd is not installed")
def test_the_module_links_no_driver() -> None:
    libraries = subprocess.run(["ldd", fastnn._C.__file__], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"libcuda|libcudart|libnvidia", libraries)


# ---- by the compilers -----------------------------------------------------------------------------

INDEX_CHECKS = """
#include "core/cuda_index.h"
using namespace fastnn;

static_assert(blocks_for(1) == 1 && blocks_for(kBlockThreads) == 1 && blocks_for(kBlockThreads + 1) == 2);
static_assert(blocks_for(int64_t(1) << 40) * kBlockThreads == int64_t(1) << 40);

// Every position against the nested loops it stands for: a transposed and a broadcast operand.
constexpr bool walks_like_loops() {
  const int64_t shape[3] = {2, 3, 5}, transposed[3] = {1, 2, 6}, broadcast[3] = {0, -1, 0};
  int64_t position = 0;
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 3; ++j)
      for (int64_t k = 0; k < 5; ++k, ++position) {
        const int64_t* const strides[2] = {transposed, broadcast};
        const Offsets<2> offsets = strided_offsets(position, 3, shape, strides);
        if (offsets.of[0] != i + 2 * j + 6 * k || offsets.of[1] != -j) return false;
      }
  return true;
}
static_assert(walks_like_loops());

// Beyond 32 bits, and of a number (no dimensions).
constexpr bool is_wide() {
  const int64_t shape[2] = {1 << 20, 1 << 20}, stride[2] = {1 << 20, 1};
  const int64_t* const strides[1] = {stride};
  const int64_t last = (int64_t(1) << 40) - 1;
  return strided_offsets(last, 2, shape, strides).of[0] == last && strided_offsets(0, 0, shape, strides).of[0] == 0;
}
static_assert(is_wide());
"""


@in_source_tree
def test_index_mathematics(tmp_path: Path) -> None:
    (tmp_path / "index.cpp").write_text(INDEX_CHECKS)
    command = ["c++", "-std=c++17", "-fsyntax-only", "-I", str(SOURCES), str(tmp_path / "index.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@in_source_tree
@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
@pytest.mark.parametrize("source", sorted(SOURCES.rglob("*_cuda.cu")), ids=lambda path: path.stem)
def test_kernels_do_not_spill(source: Path, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_80", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-cubin"]
    command += ["-I", str(SOURCES), str(source), "-o", str(tmp_path / "kernels.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills
    assert set(spills) == {("0", "0")}


# ---- on a GPU -------------------------------------------------------------------------------------

# Kernels without a CUDA version as yet: what needs one of them is left out. Who adds the version takes the name away.
MISSING = {
    *("attention", "scaled_dot_product_attention", "scaled_dot_product_attention_backward"),
    *("batch_norm", "batch_norm_backward", "group_norm", "group_norm_backward", "layer_norm", "layer_norm_backward"),
    *("conv", "conv2d", "conv_input_grad", "conv_packing", "conv_weight_grad"),
    *("cross_entropy", "cross_entropy_backward", "nll_loss", "nll_loss_backward"),
    *("element_loss", "element_loss_backward"),
    *("dropout", "random"),
    *("gemm_pack", "matmul"),
    *("grad_norm", "optimizer_step", "scale_"),
    *("index_read", "index_write", "index_wrap", "nonzero"),
    *("avg_pool", "avg_pool_backward", "avg_pool_channels_last", "avg_pool_channels_last_backward"),
    *("max_pool", "max_pool_backward", "max_pool_channels_last", "max_pool_channels_last_backward", "max_pool_gather"),
    *("recurrent", "recurrent_backward"),
    *("reduce", "reduce_find_first", "scan", "sort"),
    *("softmax", "softmax_backward"),
}


@contextlib.contextmanager
def kernels() -> Iterator[None]:
    """Skips the test where it meets a kernel that is known to be missing; any other refusal is a failure."""
    try:
        yield
    except NotImplementedError as refusal:
        name = str(refusal).partition(":")[0]
        if "there is no CUDA kernel yet" not in str(refusal) or name not in MISSING:
            raise
        pytest.skip(f"no CUDA kernel: {name}")


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
    with kernels():
        for sample in (*case.samples, *(case.specials if dtype in case.dtypes else ())):
            results = run_on_cuda(case, on_cuda(sample.args, dtype), sample.kwargs)
            check_values(case, results, dtype, sample.args, sample.kwargs)


@gpu
@each(lambda case: case.family != "optim")  # a step wants states laid out as their parameter
def test_strided(case: Case) -> None:
    """Transposed, stepped and offset arguments give what contiguous ones give."""
    dtype = (*case.dtypes, *case.integers)[0]
    with kernels():
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
    with kernels():
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
    with kernels():
        for sample in case.samples:
            check_rounding(case, sample.args, sample.kwargs, dtype, device="cuda")


@gpu
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float64"])
def test_copies_between_devices(dtype: str) -> None:
    x = fastnn.arange(24).reshape(2, 3, 4).to(getattr(fastnn, dtype))
    there = x.to("cuda")
    assert there.permute(2, 0, 1).cpu().tolist() == x.permute(2, 0, 1).tolist()
    assert (
        fastnn.zeros(4, 3, 2, dtype=x.dtype, device="cuda").copy_(x.permute(2, 1, 0)).cpu().tolist()
        == x.permute(2, 1, 0).tolist()
    )


@gpu
def test_large_copies_keep_every_element() -> None:
    x = fastnn.arange(3_000_017)
    np.testing.assert_array_equal((x.to("cuda") + 1).cpu().numpy(), np.arange(1, 3_000_018))


@gpu
def test_a_number_meets_a_tensor_of_the_gpu() -> None:
    x = fastnn.full((5,), 2.0, device="cuda")
    assert (3 * x + 1).cpu().tolist() == [7.0] * 5
    assert x[0].item() == 2.0


@gpu
def test_tensors_of_two_devices_do_not_mix() -> None:
    with pytest.raises(RuntimeError, match="cuda"):
        fastnn.ones(3, device="cuda") + fastnn.ones(3)


@gpu
def test_memory_is_counted_and_comes_back() -> None:
    before = fastnn.cuda.memory_allocated()
    x = fastnn.zeros(1 << 20, device="cuda")
    assert fastnn.cuda.memory_allocated() - before == 4 << 20
    assert fastnn.cuda.max_memory_allocated() >= fastnn.cuda.memory_allocated()
    del x
    assert fastnn.cuda.memory_allocated() == before
    assert fastnn.cuda.memory_reserved() >= before + (4 << 20)
    fastnn.cuda.empty_cache()
    assert fastnn.cuda.memory_reserved() == before


@gpu
def test_too_much_memory_is_an_error_and_the_device_goes_on() -> None:
    with pytest.raises(MemoryError, match="cannot allocate"):
        fastnn.empty(1 << 45, device="cuda")
    sixteenth = fastnn.cuda.memory_stats()["cache_limit"] // 4
    held = []

    def fill() -> None:
        for _ in range(17):
            held.append(fastnn.empty(sixteenth, dtype=fastnn.uint8, device="cuda"))

    with pytest.raises(MemoryError, match="cannot allocate"):
        fill()
    held.clear()
    fastnn.cuda.empty_cache()
    assert fastnn.ones(2, device="cuda").cpu().tolist() == [1.0, 1.0]
