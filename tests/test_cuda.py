"""CUDA: what a machine without a GPU must say, and devices, streams and events of one with a GPU.

bench/gpu_check.sh runs the tests of CUDA on a machine with a GPU and sets FASTNN_REQUIRE_CUDA=1: there, no GPU is a
failure. `make cuda-emulated` runs them on the CPU (tests/emulation).
"""

import re
import shutil
import subprocess

import pytest

import fastnn
from helpers import gpu, passes

no_gpu = pytest.mark.skipif(fastnn.cuda.is_available(), reason="is about machines without a GPU")


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


# ---- on a GPU -------------------------------------------------------------------------------------


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
def test_a_number_meets_a_tensor_of_the_gpu() -> None:
    x = fastnn.full((5,), 2.0, device="cuda")
    assert (3 * x + 1).cpu().tolist() == [7.0] * 5
    assert x[0].item() == 2.0


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


@gpu
def test_an_import_asks_no_driver() -> None:
    assert passes("import fastnn; print(fastnn.cuda.is_initialized())") == "False"
