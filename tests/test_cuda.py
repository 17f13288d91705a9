"""CUDA: what a machine without a GPU must say, the parts of the kernels that need none, and a GPU's memory and copies.

bench/gpu_check.sh runs the tests of CUDA on a machine with a GPU and sets FASTNN_REQUIRE_CUDA=1: there, no GPU is a
failure. `make cuda-emulated` runs them on the CPU (tests/emulation).
"""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import fastnn
from helpers import gpu

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"

no_gpu = pytest.mark.skipif(fastnn.cuda.is_available(), reason="is about machines without a GPU")
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


# ---- on a GPU -------------------------------------------------------------------------------------


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
