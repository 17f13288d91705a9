"""CUDA: what a machine without a GPU must say, the parts of the kernels that need none, and a GPU's memory and copies.

bench/gpu_check.sh runs the tests of CUDA on a machine with a GPU and sets FASTNN_REQUIRE_CUDA=1: there, no GPU is a
failure. `make cuda-emulated` runs them on the CPU (tests/emulation).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastnn
from cases import CASES
from cases.case import Case, to_tensor
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
        lambda: fastnn.ones(2).cuda(),
        lambda: fastnn.ones(2).pin_memory(),
        lambda: fastnn.zeros(2, pin_memory=True),
        lambda: fastnn.cuda.set_device(0),
        lambda: fastnn.cuda.set_per_process_memory_fraction(0.5),
        lambda: fastnn.cuda.ExternalStream(1).synchronize(),
        lambda: fastnn.cuda.Event().record(),
        fastnn.cuda.init,
        fastnn.cuda.synchronize,
        fastnn.cuda.memory_allocated,
        fastnn.cuda.max_memory_allocated,
        fastnn.cuda.memory_reserved,
        fastnn.cuda.max_memory_reserved,
        fastnn.cuda.reset_peak_memory_stats,
        fastnn.cuda.mem_get_info,
        fastnn.cuda.get_device_name,
        fastnn.cuda.get_device_capability,
        fastnn.cuda.get_device_properties,
        fastnn.cuda.current_stream,
        fastnn.cuda.default_stream,
        fastnn.cuda.Stream,
        fastnn.cuda.CUDAGraph,
        lambda: fastnn.cuda.graph(None),
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


def test_questions_that_need_no_gpu() -> None:
    assert fastnn.cuda.current_device() == 0
    assert not fastnn.cuda.is_current_stream_capturing()
    assert fastnn.cuda.is_bf16_supported() == fastnn.cuda.is_available()
    assert not fastnn.ones(2).is_pinned()
    assert not fastnn.ones(2).is_cuda
    with fastnn.cuda.device_of(fastnn.ones(2)), fastnn.cuda.stream(None):
        pass


def test_one_seed_is_for_all_devices() -> None:
    fastnn.manual_seed(5)
    expected = fastnn.rand(4).tolist()
    fastnn.cuda.manual_seed_all(5)
    assert fastnn.cuda.initial_seed() == 5
    state = fastnn.cuda.get_rng_state()
    assert fastnn.rand(4).tolist() == expected
    fastnn.cuda.set_rng_state(state)
    assert fastnn.rand(4).tolist() == expected


def test_out_of_memory_is_both_errors_that_users_catch() -> None:
    assert issubclass(fastnn.cuda.OutOfMemoryError, MemoryError)
    assert issubclass(fastnn.cuda.OutOfMemoryError, RuntimeError)
    assert fastnn.cuda.OutOfMemoryError.__module__ == "fastnn.cuda"


@no_gpu
def test_a_loader_pins_nothing_without_a_gpu() -> None:
    loader = fastnn.utils.data.DataLoader(fastnn.utils.data.TensorDataset(fastnn.arange(4)), 2, pin_memory=True)
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3]]


def test_arrays_of_the_cpu_have_no_cuda_interface() -> None:
    assert not hasattr(fastnn.ones(2), "__cuda_array_interface__")


def test_device_numbers_are_of_gpus() -> None:
    assert fastnn.device(1) == fastnn.device("cuda:1") == fastnn.device("cuda", 1)
    with pytest.raises(ValueError, match="device"):
        fastnn.device(-1)


def test_a_cpu_device_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a CUDA device, got 'cpu'"):
        fastnn.cuda.synchronize("cpu")


@pytest.mark.skipif(not shutil.which("ldd"), reason="ldd is not installed")
def test_the_module_links_no_driver() -> None:
    libraries = subprocess.run(["ldd", fastnn._C.__file__], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"libcuda|libcudart|libnvidia", libraries)


# ---- by the compilers -----------------------------------------------------------------------------


@in_source_tree
def test_the_allocator_of_streams(tmp_path: Path) -> None:
    sources = [ROOT / "tests/stream_allocator.cpp", *(SOURCES / "core").glob("*_allocator.cpp")]
    program = tmp_path / "stream_allocator"
    command = ["c++", "-std=c++17", "-O0", "-I", str(SOURCES), *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


INDEX_CHECKS = """
#include "core/cuda_index.h"
#include "core/divisor.h"
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

// The prepared walk is the same one, in 32 bits where it says so: a transposed, a reversed and a broadcast operand.
constexpr bool walks_alike(int64_t step, bool narrow) {
  const int64_t shape[4] = {2, 3, 5, 7}, transposed[4] = {step, 2, 6, 30}, reversed[4] = {-105, 35, -7, 1};
  const int64_t none[4] = {};
  const int64_t* const strides[3] = {transposed, reversed, none};
  for (int ndim = 0; ndim <= 4; ++ndim) {
    const StridedWalk walk(ndim, shape, strides);
    if (walk.narrow() != (narrow || ndim == 0)) return false;
    int64_t numel = 1;
    for (int axis = 0; axis < ndim; ++axis) numel *= shape[axis];
    for (int64_t position = 0; position < numel; ++position) {
      const Offsets<3> offsets = walk.offsets(position, strides);
      const Offsets<3> expected = strided_offsets(position, ndim, shape, strides);
      for (int k = 0; k < 3; ++k)
        if (offsets.of[k] != expected.of[k]) return false;
      if (walk.offset(position, transposed) != expected.of[0]) return false;
    }
  }
  return true;
}
static_assert(walks_alike(1, true) && walks_alike((int64_t(1) << 31) - 1 - 4 - 24 - 180, true));
static_assert(walks_alike(int64_t(1) << 31, false) && walks_alike(-(int64_t(1) << 40), false));

// Too many positions, strides that overflow 64 bits together, an operand that does not count, and no positions at all.
constexpr bool knows_its_width() {
  const int64_t many[2] = {1 << 16, 1 << 15}, far[2] = {int64_t(1) << 62, int64_t(1) << 62}, none[2] = {};
  const int64_t empty[2] = {3, 0};
  const int64_t* const still[1] = {none};
  const int64_t* const apart[1] = {far};
  const int64_t* const absent[1] = {nullptr};
  return !StridedWalk(2, many, still).narrow() && !StridedWalk(2, many, apart).narrow() &&
         StridedWalk(2, empty, still).narrow() && StridedWalk(1, many, absent).narrow();
}
static_assert(knows_its_width());

// At the edges of a divisor's multiples, the last below 2^31, and beyond 32 bits.
constexpr bool divides(int64_t divisor) {
  const Divisor by(divisor);
  const int64_t most = (int64_t(1) << 31) - 1, many = (int64_t(1) << 62) / divisor * divisor;
  const int64_t last = most / divisor * divisor;
  const int64_t multiples[] = {1, divisor, 7 * divisor, last, most, most + 1, many};
  for (const int64_t multiple : multiples)
    for (int64_t n = multiple - 1; n <= multiple + 1; ++n) {
      if (n < 0) continue;
      const Division division = by.divide(n);
      if (division.quotient != n / divisor || division.rest != n % divisor) return false;
    }
  return true;
}
constexpr bool divides() {
  for (int64_t divisor = 1; divisor < 300; ++divisor)
    if (!divides(divisor) || !divides(divisor * 7919 + 1)) return false;
  for (int shift = 8; shift < 34; ++shift)
    for (int64_t off = -1; off <= 1; ++off)
      if (!divides((int64_t(1) << shift) + off)) return false;
  return true;
}
static_assert(divides());
"""

TILE_CHECKS = """
#include "gemm/tile_cuda.h"
using namespace fastnn;

// Every tile of every matrix and part once, and never more than 8 rows of tiles apart within a group.
constexpr bool visits_all(int64_t rows, int64_t columns, int64_t items, int splits) {
  const GemmGrid grid{rows, columns, items, splits};
  bool seen[256] = {};
  for (int64_t block = 0; block < grid.blocks(); ++block) {
    const GemmTile tile = grid.at(block);
    if (tile.row < 0 || tile.row >= rows || tile.column < 0 || tile.column >= columns) return false;
    if (tile.item < 0 || tile.item >= items || tile.split < 0 || tile.split >= splits) return false;
    bool& mark = seen[((tile.split * items + tile.item) * rows + tile.row) * columns + tile.column];
    if (mark) return false;
    mark = true;
    if (tile.row / 8 != block % (rows * columns) / (8 * columns)) return false;
  }
  return true;
}
static_assert(visits_all(1, 1, 1, 1) && visits_all(3, 5, 2, 3) && visits_all(17, 3, 2, 1) && visits_all(8, 8, 1, 2));

// The parts of k cover it, and begin where a stage does.
constexpr bool covers(int64_t blocks, int64_t k) {
  const GemmSplit split = split_k_of(blocks, k, 64, 256, 132);
  const int64_t last = k - (split.splits - 1) * split.split_k;
  const bool whole_stages = split.splits == 1 || (split.split_k % 64 == 0 && split.split_k >= 256);
  return last > 0 && last <= split.split_k && whole_stages &&
         split.splits * blocks <= (blocks > 132 ? blocks : 132);
}
constexpr bool covers_all() {
  for (int64_t blocks = 1; blocks < 140; ++blocks)
    for (int64_t k = 1; k < 40000; k += 997)
      if (!covers(blocks, k)) return false;
  return true;
}
static_assert(covers_all());

// Tiles fill their memory without overlap, and the 8 chunks that a matrix of ldmatrix is lie in different banks.
template <int kItemBytes, int kOuter, bool kAlongK>
constexpr bool lies_well() {
  using Tile = OperandTile<kItemBytes, kOuter, kAlongK>;
  bool seen[Tile::kBytes / 16] = {};
  for (int row = 0; row < Tile::kRows; ++row)
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      bool& mark = seen[Tile::offset(row, chunk) / 16];
      if (mark) return false;
      mark = true;
    }
  for (int row = 0; row < Tile::kRows; row += 8)
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      unsigned banks = 0;
      if (kItemBytes == 4 && !kAlongK)  // words: 4 rows of 8 elements
        for (int i = 0; i < 8; ++i) banks |= 1u << Tile::offset(row + i % 4, chunk / 2 * 2 + i / 4) / 16 % 8;
      else
        for (int i = 0; i < 8; ++i) banks |= 1u << Tile::offset(row + i, chunk) / 16 % 8;
      if (banks != 255) return false;
    }
  return true;
}
static_assert(lies_well<2, 128, true>() && lies_well<2, 128, false>() && lies_well<2, 64, true>());
static_assert(lies_well<2, 64, false>() && lies_well<4, 128, true>() && lies_well<4, 128, false>());
static_assert(lies_well<4, 64, true>() && lies_well<4, 64, false>());

// The largest tile where there are many, the smallest for few rows and for few tiles.
constexpr bool takes(int64_t m, int64_t n, int64_t k, int rows, int columns) {
  const WgmmaTile tile = wgmma_tile(m, n, 1, k, 64, 132);
  return tile.rows == rows && tile.columns == columns;
}
static_assert(takes(4096, 4096, 4096, 128, 256) && takes(8192, 8192, 8192, 128, 256));
static_assert(takes(2048, 768, 768, 128, 128) && takes(64, 4096, 4096, 64, 128) && takes(512, 512, 512, 64, 128));
"""


@in_source_tree
@pytest.mark.parametrize("checks", [INDEX_CHECKS, TILE_CHECKS], ids=["index", "tile"])
def test_index_mathematics(checks: str, tmp_path: Path) -> None:
    (tmp_path / "index.cpp").write_text(checks)
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
    turned = x.permute(2, 1, 0)
    assert fastnn.zeros(4, 3, 2, dtype=x.dtype, device="cuda").copy_(turned).cpu().tolist() == turned.tolist()


@gpu
def test_large_copies_keep_every_element() -> None:
    x = fastnn.arange(3_000_017)
    np.testing.assert_array_equal((x.to("cuda") + 1).cpu().numpy(), (x + 1).numpy())


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
    with pytest.raises(fastnn.cuda.OutOfMemoryError, match="cannot allocate"):
        fastnn.empty(1 << 45, device="cuda")
    _, total = fastnn.cuda.mem_get_info()
    held = []
    with pytest.raises(MemoryError, match=r"cuda:0 has \d+, of which tensors of fastnn hold"):
        for _ in range(9):
            held.append(fastnn.empty(total // 8, dtype=fastnn.uint8, device="cuda"))
    held.clear()
    fastnn.cuda.empty_cache()
    assert fastnn.ones(2, device="cuda").cpu().tolist() == [1.0, 1.0]


@gpu
def test_a_fraction_of_the_memory_is_a_limit() -> None:
    fastnn.cuda.empty_cache()
    _, total = fastnn.cuda.mem_get_info()
    fastnn.cuda.set_per_process_memory_fraction(0.125)
    try:
        with pytest.raises(fastnn.cuda.OutOfMemoryError, match="limited to"):
            fastnn.empty(total // 4, dtype=fastnn.uint8, device="cuda")
    finally:
        fastnn.cuda.set_per_process_memory_fraction(1.0)
    with pytest.raises(ValueError, match="0 < fraction <= 1"):
        fastnn.cuda.set_per_process_memory_fraction(0.0)


@gpu
def test_devices_have_names() -> None:
    found = fastnn.cuda.get_device_properties()
    assert fastnn.cuda.get_device_name("cuda:0") == found.name != ""
    assert fastnn.cuda.get_device_capability() == (found.major, found.minor) >= (8, 0)
    assert found.total_memory > 0 < found.multi_processor_count
    fastnn.cuda.init()
    assert fastnn.cuda.is_initialized()
    with fastnn.cuda.device(0):
        assert fastnn.cuda.current_device() == 0
    with pytest.raises(fastnn.DeviceError, match="CUDA device"):
        fastnn.cuda.set_device(fastnn.cuda.device_count())


@gpu
def test_streams_and_events() -> None:
    side = fastnn.cuda.Stream()
    first = fastnn.cuda.current_stream()
    assert first == fastnn.cuda.default_stream() != side
    start, end = fastnn.cuda.Event(enable_timing=True), fastnn.cuda.Event(enable_timing=True)
    x = fastnn.full((1000,), 3.0, device="cuda")
    side.wait_stream(first)
    with fastnn.cuda.stream(side):
        assert fastnn.cuda.current_stream() == side
        start.record()
        y = x * 2
        x.record_stream(side)
        end.record()
    assert fastnn.cuda.current_stream() == first
    first.wait_event(end)
    assert y[7].item() == 6.0
    end.synchronize()
    assert start.query()
    assert end.query()
    assert start.elapsed_time(end) >= 0
    side.synchronize()
    assert side.query()
    with pytest.raises(ValueError, match="enable_timing"):
        start.elapsed_time(side.record_event())


@gpu
def test_a_stream_is_left_when_its_block_raises() -> None:
    before = fastnn.cuda.current_stream()
    with pytest.raises(KeyError), fastnn.cuda.stream(fastnn.cuda.Stream()):
        raise KeyError
    assert fastnn.cuda.current_stream() == before


@gpu
def test_pinned_memory_goes_up_and_down_without_waiting() -> None:
    x = fastnn.arange(1000).pin_memory()
    assert x.is_pinned()
    assert x.pin_memory() is x
    up = x.to("cuda", non_blocking=True)
    down = (up + 1).to("cpu", non_blocking=True)
    assert down.is_pinned()
    fastnn.cuda.synchronize()
    assert down.tolist() == list(range(1, 1001))
    assert fastnn.zeros(3, pin_memory=True).is_pinned()
    with pytest.raises(fastnn.DeviceError, match="on the CPU"):
        up.pin_memory()


@gpu
def test_a_loader_pins_its_batches() -> None:
    data = fastnn.utils.data.TensorDataset(fastnn.arange(6), fastnn.ones(6, 2))
    for workers in (0, 2):
        loader = fastnn.utils.data.DataLoader(data, 3, num_workers=workers, pin_memory=True)
        assert all(member.is_pinned() for batch in loader for member in batch)


@gpu
def test_modules_move() -> None:
    model = fastnn.nn.Sequential(fastnn.nn.Linear(2, 3), fastnn.nn.BatchNorm1d(3)).cuda()
    assert {p.device for p in model.parameters()} == {b.device for b in model.buffers()} == {fastnn.device("cuda:0")}
    assert all(not p.is_cuda for p in model.cpu().parameters())


@gpu
def test_factories_take_a_device() -> None:
    like = fastnn.ones(2, 3)
    made = [
        fastnn.zeros(2, device="cuda"),
        fastnn.full((2,), 1.0, device=0),
        fastnn.full_like(like, 2.0, device="cuda:0"),
        fastnn.arange(3, device="cuda"),
        fastnn.linspace(0, 1, 5, device="cuda"),
        fastnn.eye(3, device="cuda"),
        fastnn.empty_like(like, device="cuda"),
        fastnn.tensor([1, 2], device="cuda"),
        fastnn.as_tensor(like, device="cuda"),
        fastnn.randperm(5, device="cuda"),
    ]
    assert all(x.is_cuda for x in made)
    assert made[3].tolist() == [0, 1, 2]
    assert made[4].tolist() == [0, 0.25, 0.5, 0.75, 1]


@gpu
@pytest.mark.parametrize("name", ["mul", "div", "sub", "pow", "maximum", "atan2"])
def test_a_number_of_the_cpu_gets_its_gradient_there(name: str) -> None:
    gradients = []
    for device in ("cuda", "cpu"):
        x = fastnn.tensor(2.0, device=device).requires_grad_()
        number = fastnn.tensor(1.5).requires_grad_()
        y = getattr(fastnn, name)(x, number)
        dx, dnumber = fastnn.autograd.grad([y], [x, number], [fastnn.ones_like(y)])
        assert dx.device.type == device
        assert dnumber.device.type == "cpu"
        gradients.append((dx.item(), dnumber.item()))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-6)


# Indices and assigned values are moved to where the tensor is.
MOVES = ("copy_", "getitem", "setitem")
TWO_TENSORS = [
    case
    for case in CASES
    if sum(isinstance(a, np.ndarray) for a in case.samples[0].args) >= 2 and not case.name.startswith(MOVES)
]


@gpu
@pytest.mark.parametrize("case", TWO_TENSORS, ids=str)
def test_tensors_of_two_devices_are_refused(case: Case) -> None:
    """Names the devices and the shapes, before anything is computed."""
    sample = case.samples[0]
    dtype = "float32" if "float32" in case.dtypes else case.integers[0]
    arguments = [to_tensor(fastnn, a, dtype) for a in sample.args]
    for moved in (i for i, x in enumerate(arguments) if isinstance(x, fastnn.Tensor)):
        mixed = [x.cuda() if i == moved else x for i, x in enumerate(arguments)]
        others = [x for i, x in enumerate(arguments) if isinstance(x, fastnn.Tensor) and i != moved]
        if not any(x.dim() for x in others):
            continue
        with pytest.raises(fastnn.DeviceError, match=r"one of shape \(.*\) on c.* and one of shape \(.*\) on c"):
            case.run(fastnn, *mixed, **sample.kwargs)


# ---- exchange with other libraries ----------------------------------------------------------------


class CudaArray:
    """What CuPy and Numba show of an array."""

    def __init__(self, tensor: fastnn.Tensor, **changes) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = {**tensor.__cuda_array_interface__, **changes}


@gpu
def test_cuda_array_interface_both_ways() -> None:
    x = fastnn.arange(12, device="cuda").reshape(3, 4)
    shown = x.__cuda_array_interface__
    assert (shown["shape"], shown["typestr"], shown["strides"], shown["version"]) == ((3, 4), "<i8", None, 3)
    assert shown["data"] == (x.data_ptr(), False)
    assert shown["stream"] == fastnn.cuda.current_stream().cuda_stream
    assert x.T.__cuda_array_interface__["strides"] == (8, 32)
    same = fastnn.as_tensor(CudaArray(x.T))
    assert same.data_ptr() == x.data_ptr()
    assert same.tolist() == x.T.tolist()
    copy = fastnn.tensor(CudaArray(x))
    assert copy.data_ptr() != x.data_ptr()
    assert fastnn.as_tensor(CudaArray(x, stream=None, strides=(8, 32), shape=(4, 3))).tolist() == x.T.tolist()
    with pytest.raises(TypeError, match="'>f4'"):
        fastnn.as_tensor(CudaArray(x, typestr=">f4"))
    with pytest.raises(BufferError, match="not in the memory of a GPU"):
        fastnn.as_tensor(CudaArray(x, data=(fastnn.ones(4).data_ptr(), False)))
    with pytest.raises(ValueError, match="stream 0"):
        fastnn.as_tensor(CudaArray(x, stream=0))
    assert not hasattr(x.to(fastnn.bfloat16), "__cuda_array_interface__")


@gpu
def test_dlpack_both_ways() -> None:
    x = fastnn.arange(6, device="cuda").reshape(2, 3)
    assert x.__dlpack_device__() == (2, 0)
    same = fastnn.from_dlpack(x)
    assert same.is_cuda
    assert same.data_ptr() == x.data_ptr()
    assert same.tolist() == x.tolist()
    side = fastnn.cuda.Stream()
    assert fastnn.from_dlpack(x.__dlpack__(stream=side.cuda_stream)).tolist() == x.tolist()
    assert fastnn.from_dlpack(x.__dlpack__(stream=-1)).is_cuda
    there = fastnn.from_dlpack(x.__dlpack__(dl_device=(1, 0)))
    assert not there.is_cuda
    assert there.tolist() == x.tolist()
    with pytest.raises(BufferError, match="stream 0"):
        x.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="without a copy"):
        x.__dlpack__(dl_device=(1, 0), copy=False)


# ---- graphs ---------------------------------------------------------------------------------------


@gpu
def test_a_graph_replays_on_new_inputs() -> None:
    x = fastnn.arange(8, dtype=fastnn.float32, device="cuda")
    graph = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(graph):
        assert fastnn.cuda.is_current_stream_capturing()
        y = (x * 2 + 1).exp().log()
    assert not fastnn.cuda.is_current_stream_capturing()
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == pytest.approx([2 * value + 1] * 8)


@gpu
def test_memory_of_a_graph_is_its_own_until_it_goes() -> None:
    fastnn.cuda.empty_cache()
    before = fastnn.cuda.memory_reserved()
    x = fastnn.ones(1 << 16, device="cuda")
    graph = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(graph):
        y = (x + 1) * 2
    others = [fastnn.zeros(1 << 16, device="cuda") for _ in range(4)]  # would take what x + 1 left, were it free
    graph.replay()
    assert y[3].item() == 4.0
    assert all(other[3].item() == 0.0 for other in others)
    again = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(again, pool=graph.pool()):
        z = x * 3
    again.replay()
    assert z[0].item() == 3.0
    del x, y, z, others, graph, again
    fastnn.cuda.empty_cache()
    assert fastnn.cuda.memory_reserved() == before


@gpu
@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.copy_(fastnn.ones(4)),
        lambda x: repr(x),
        lambda x: fastnn.cuda.synchronize(),
    ],
)
def test_reading_while_capturing_raises(read) -> None:
    x = fastnn.ones(4, device="cuda")
    graph = fastnn.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"), fastnn.cuda.graph(graph):
        read(x)
    assert not fastnn.cuda.is_current_stream_capturing()
    assert x.tolist() == [1.0] * 4
    with pytest.raises(RuntimeError, match="no finished capture"):
        graph.replay()
    with fastnn.cuda.graph(graph):  # and can be used again
        y = x + 1
    graph.replay()
    assert y.tolist() == [2.0] * 4


# ---- faults in data -------------------------------------------------------------------------------


def test_a_fault_in_data_is_an_error_of_the_call_on_the_cpu() -> None:
    fastnn._C._check_none_found(fastnn.tensor(-1))
    with pytest.raises(IndexError, match="a fault at place 3"):
        fastnn._C._check_none_found(fastnn.tensor(3))


@gpu
def test_a_fault_in_data_is_an_error_of_the_next_wait_on_a_gpu() -> None:
    if os.environ.get("FASTNN_CUDA_SYNC") == "1":
        pytest.skip("there it is an error of the call")
    for place in [fastnn.tensor(place, device="cuda") for place in (-1, 3, -1, 7)]:
        fastnn._C._check_none_found(place)
    with pytest.raises(IndexError, match=r"a fault at place 3 \(found by the GPU after the call\)"):
        fastnn.cuda.synchronize()
    fastnn.cuda.synchronize()  # once is enough


# ---- in a process of its own ----------------------------------------------------------------------


def run_python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@gpu
def test_a_forked_child_says_why_it_cannot() -> None:
    program = """
import os, fastnn
x = fastnn.ones(3, device="cuda")
child = os.fork()
if child == 0:
    try:
        x + 1
    except fastnn.DeviceError as error:
        print(error, flush=True)
    del x
    os._exit(0)
os.waitpid(child, 0)
print((x + 1).tolist())
"""
    assert "forked; start it with 'spawn'" in run_python(program)


@gpu
def test_a_failing_kernel_is_named() -> None:
    program = """
import fastnn

class FarAway:
    def __init__(self, x):
        self.__cuda_array_interface__ = {**x.__cuda_array_interface__, "shape": (2,), "strides": (1 << 44,)}

x = fastnn.ones(2, device="cuda")
far = fastnn.as_tensor(FarAway(x))
try:
    far + x
except fastnn.DeviceError as error:
    print(error)
"""
    assert "element" in run_python(program, FASTNN_CUDA_SYNC="1")  # the operation, or the line of the emulation


@gpu
def test_an_import_asks_no_driver() -> None:
    assert run_python("import fastnn; print(fastnn.cuda.is_initialized())") == "False\n"
