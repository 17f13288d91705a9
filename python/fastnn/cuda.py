"""CUDA: is it there, and if not, why not."""

from fastnn import _C


def is_available() -> bool:
    """Whether fastnn was built with CUDA and a driver and a GPU are there."""
    return _C.cuda_is_available()


def unavailable_reason() -> str:
    """Why ``is_available`` is False; empty when it is True."""
    return _C.cuda_unavailable_reason()


def device_count() -> int:
    """The number of GPUs that can be used."""
    return _C.cuda_device_count()


def synchronize(device: int = 0) -> None:
    """Waits until all work on a GPU is done."""
    _C.cuda_synchronize(device)
