"""CUDA devices: are they there, and if not, why not; their memory; waiting for them.

Asking starts the driver; importing fastnn does not. A device is given as an index, ``"cuda:1"`` or a
``fastnn.device``; without one, the first.
"""

from fastnn import _C

Device = int | str | _C.device | None


def _device(device: Device) -> _C.device:
    if device is None:
        device = 0
    found = _C.device("cuda", device) if isinstance(device, int) else _C.device(device)
    if found.type != "cuda":
        raise ValueError(f"expected a CUDA device, got {device!r}")
    return found


def is_available() -> bool:
    """Whether fastnn was built with CUDA and a driver and a GPU that it supports are there."""
    return _C.cuda_is_available()


def unavailable_reason() -> str:
    """Why ``is_available`` is False; empty when it is True."""
    return _C.cuda_unavailable_reason()


def is_emulated() -> bool:
    """Whether this build runs CUDA kernels on the CPU, thread by thread, for tests (``make cuda-emulated``)."""
    return _C.cuda_is_emulated()


def device_count() -> int:
    """The number of GPUs; 0 when CUDA is not available."""
    return _C.cuda_device_count()


def synchronize(device: Device = None) -> None:
    """Waits until the device has done all its work; raises if some of it failed."""
    _C.cuda_synchronize(_device(device).index)


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
    stats = memory_stats(device)
    return stats["allocated"] + stats["cached"]


def reset_peak_memory_stats(device: Device = None) -> None:
    """Starts ``max_memory_allocated`` anew."""
    _C.reset_peak_memory_stats(_device(device))


def empty_cache() -> None:
    """Returns the cached blocks of all devices to the driver."""
    for index in range(device_count()):
        _C.empty_cache(_device(index))
