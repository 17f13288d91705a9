"""CUDA devices: are they there, and if not, why not; their memory, streams, events and graphs.

Asking starts the driver; importing fastnn does not. A device is given as an index, ``"cuda:1"`` or a
``fastnn.device``; without one, the current one is meant (``set_device``). Everything here can be called
in a build without CUDA and on a machine without a driver: what needs a GPU then raises
``fastnn.DeviceError`` with the reason.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from fastnn import _C
from fastnn._C import CUDAGraph, Event, OutOfMemoryError, Stream, Tensor

__all__ = [
    "CUDAGraph",
    "Event",
    "ExternalStream",
    "OutOfMemoryError",
    "Stream",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "device_of",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_rng_state",
    "graph",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_current_stream_capturing",
    "is_emulated",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_peak_memory_stats",
    "set_device",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_stream",
    "stream",
    "synchronize",
    "unavailable_reason",
]

Device = int | str | _C.device | None


def _device(device: Device) -> _C.device:
    found = _C.device("cuda" if device is None else device)
    if found.type != "cuda":
        raise ValueError(f"expected a CUDA device, got {device!r}")
    return found


# ---- devices --------------------------------------------------------------------------------------


def is_available() -> bool:
    """Whether fastnn was built with CUDA and a driver and a GPU that it supports are there."""
    return _C.cuda_is_available()


def unavailable_reason() -> str:
    """Why ``is_available`` is False; empty when it is True."""
    return _C.cuda_unavailable_reason()


def is_emulated() -> bool:
    """Whether this build runs CUDA kernels on the CPU, thread by thread, for tests (``make cuda-emulated``)."""
    return _C.cuda_is_emulated()


def init() -> None:
    """Opens the current device, which its first use would do."""
    _C.cuda_init()


def is_initialized() -> bool:
    """Whether a device has been used by this process."""
    return _C.cuda_is_initialized()


def device_count() -> int:
    """The number of GPUs; 0 when CUDA is not available."""
    return _C.cuda_device_count()


def current_device() -> int:
    """The index of the device that ``"cuda"`` without an index means on this thread; at first 0."""
    return _C.cuda_current_device()


def set_device(device: Device) -> None:
    """Makes a device the current one of this thread."""
    _C.cuda_set_device(_device(device))


class device:
    """``with fastnn.cuda.device(1):`` makes a device the current one; the end brings back the one before."""

    def __init__(self, device: Device) -> None:
        self.index = _device(device).index
        self._before = 0

    def __enter__(self) -> None:
        self._before = current_device()
        set_device(self.index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_device(self._before)


@contextmanager
def device_of(tensor: Tensor) -> Iterator[None]:
    """Makes the tensor's GPU the current device; does nothing for a tensor on the CPU."""
    if not tensor.is_cuda:
        yield
        return
    with device(tensor.device):
        yield


def get_device_properties(device: Device = None) -> _C.CudaDeviceProperties:
    """What the device is: name, compute capability, memory, multiprocessors."""
    return _C.cuda_properties(_device(device))


def get_device_name(device: Device = None) -> str:
    """The product name, such as ``"NVIDIA H200"``."""
    return get_device_properties(device).name


def get_device_capability(device: Device = None) -> tuple[int, int]:
    """The compute capability, such as ``(9, 0)``."""
    found = get_device_properties(device)
    return found.major, found.minor


def is_bf16_supported() -> bool:
    """Whether the devices compute in bfloat16; every device that fastnn supports does."""
    return is_available()


def synchronize(device: Device = None) -> None:
    """Waits until the device has done all its work; raises if some of it failed."""
    _C.cuda_synchronize(_device(device))


# ---- random numbers -------------------------------------------------------------------------------
# The CPU and all GPUs draw from one default generator: the same seed gives the same numbers anywhere.


def manual_seed(seed: int) -> None:
    """Seeds the default generator, which the CPU and all GPUs share."""
    _C.manual_seed(seed)


manual_seed_all = manual_seed


def initial_seed() -> int:
    """The seed of the default generator."""
    return _C.initial_seed()


def get_rng_state(device: Device = None) -> Tensor:
    """The state of the default generator, a uint8 tensor on the CPU."""
    return _C.get_rng_state()


def set_rng_state(new_state: Tensor, device: Device = None) -> None:
    """Sets the state of the default generator."""
    _C.set_rng_state(new_state)


# ---- memory ---------------------------------------------------------------------------------------


def memory_stats(device: Device = None) -> dict[str, int]:
    """Bytes of live and cached blocks, and how often the cache served a request."""
    return _C.memory_stats(_device(device))


def memory_allocated(device: Device = None) -> int:
    """Bytes that live tensors occupy on the device."""
    return memory_stats(device)["allocated"]


def max_memory_allocated(device: Device = None) -> int:
    """The highest value of ``memory_allocated`` since the start or ``reset_peak_memory_stats``."""
    return memory_stats(device)["peak_allocated"]


def memory_reserved(device: Device = None) -> int:
    """Bytes of live tensors and of cached blocks."""
    return memory_stats(device)["reserved"]


def max_memory_reserved(device: Device = None) -> int:
    """The highest value of ``memory_reserved`` since the start or ``reset_peak_memory_stats``."""
    return memory_stats(device)["peak_reserved"]


def reset_peak_memory_stats(device: Device = None) -> None:
    """Starts ``max_memory_allocated`` and ``max_memory_reserved`` anew."""
    _C.reset_peak_memory_stats(_device(device))


def set_per_process_memory_fraction(fraction: float, device: Device = None) -> None:
    """The part of the device's memory, in (0, 1], beyond which this process gets an ``OutOfMemoryError``."""
    _C.cuda_set_memory_fraction(fraction, _device(device))


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Bytes that are free on the device, and all that it has, for all processes."""
    return _C.cuda_memory(_device(device))


def empty_cache() -> None:
    """Returns the cached blocks of all devices to the driver."""
    if is_initialized():
        for index in range(device_count()):
            _C.empty_cache(_device(index))


# ---- streams --------------------------------------------------------------------------------------


def current_stream(device: Device = None) -> Stream:
    """The stream on which this thread's work runs on the device."""
    return _C.cuda_current_stream(_device(device))


def default_stream(device: Device = None) -> Stream:
    """The stream that is the current one at first. It keeps order with the default streams of other libraries."""
    return _C.cuda_default_stream(_device(device))


def set_stream(stream: Stream) -> None:
    """Makes a stream the current one of its device, for this thread."""
    _C.cuda_set_stream(stream)


def ExternalStream(stream_ptr: int, device: Device = None) -> Stream:
    """The stream of another library, by its address. The library keeps it alive."""
    return _C.cuda_external_stream(stream_ptr, _device(device))


@contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    """Inside, this thread's work runs on the stream, and its device is the current one; None changes nothing.

    The memory of a tensor belongs to the stream that it was made on. Work of another stream must wait for
    it (``wait_stream``), and ``tensor.record_stream(stream)`` keeps the memory until that work is done.
    """
    if stream is None:
        yield
        return
    before = current_stream(stream.device)
    with device(stream.device):
        set_stream(stream)
        try:
            yield
        finally:
            set_stream(before)


# ---- graphs ---------------------------------------------------------------------------------------


def is_current_stream_capturing() -> bool:
    """Whether this thread is capturing a graph."""
    return _C.cuda_is_capturing()


class graph:
    """``with fastnn.cuda.graph(g):`` records the work inside instead of doing it; ``g.replay()`` does it.

    A replay runs the same kernels on the same memory. Its inputs are tensors made before, to be overwritten
    with ``copy_``; its outputs are those made inside. Run the step a few times before the capture, on a side
    stream, and set gradients to None just before it. Reading a tensor on the CPU inside (``item()``, ``if``,
    ``print``) raises ``RuntimeError``; random numbers differ from replay to replay, as if the operations were
    called one by one.

    Args:
        cuda_graph: a fresh ``CUDAGraph``.
        pool: ``other.pool()``, to share the memory of a graph that never runs at the same time.
        stream: where the work is recorded; by default a stream of its own.
    """

    def __init__(
        self, cuda_graph: CUDAGraph, pool: _C.CudaGraphPool | None = None, stream: Stream | None = None
    ) -> None:
        self.cuda_graph = cuda_graph
        self.pool = pool
        self.stream = Stream() if stream is None else stream
        self._on_stream = ExitStack()

    def __enter__(self) -> None:
        synchronize(self.stream.device)
        with ExitStack() as entered:
            entered.enter_context(stream(self.stream))
            self.cuda_graph.capture_begin(self.pool)
            self._on_stream = entered.pop_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._on_stream:
            if kind is None:
                self.cuda_graph.capture_end()
            else:
                self.cuda_graph.reset()
