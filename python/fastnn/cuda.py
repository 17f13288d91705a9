"""CUDA: is it there, and if not, why not."""

from fastnn import _C


def is_available() -> bool:
    """Whether fastnn was built with CUDA and a driver and a GPU are there."""
    return _C.cuda_device_count() > 0


def device_count() -> int:
    """The number of GPUs that can be used."""
    return _C.cuda_device_count()


def unavailable_reason() -> str:
    """Why ``is_available`` is False; empty when it is True."""
    return _C.cuda_unavailable_reason()
