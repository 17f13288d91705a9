"""Exchange with other libraries on a GPU: DLPack and ``__cuda_array_interface__``."""

from typing import Any

import numpy as np
import pytest

import fastnn
from helpers import gpu


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


@gpu
def test_read_only_memory_stays_so() -> None:
    x = fastnn.arange(4, device="cuda")
    shown = fastnn.as_tensor(CudaArray(x, data=(x.data_ptr(), True)))
    assert shown.tolist() == [0, 1, 2, 3]
    assert shown.__cuda_array_interface__["data"] == (x.data_ptr(), True)
    with pytest.raises(ValueError, match="read-only"):
        shown.add_(1)
    with pytest.raises(BufferError, match="read-only"):
        shown.__dlpack__()  # a consumer from before 1.0 cannot be told
    same = fastnn.from_dlpack(shown.__dlpack__(max_version=(1, 0)))
    assert same.data_ptr() == x.data_ptr()
    with pytest.raises(ValueError, match="read-only"):
        same.zero_()


@gpu
def test_an_array_and_its_owner_live_as_long_as_the_tensor() -> None:
    before = fastnn.cuda.memory_allocated()
    same = fastnn.as_tensor(CudaArray(fastnn.ones(1 << 10, device="cuda")))
    assert fastnn.cuda.memory_allocated() == before + (4 << 10)
    assert same.sum().item() == 1 << 10
    del same
    assert fastnn.cuda.memory_allocated() == before


@gpu
def test_older_arrays_and_those_of_no_elements() -> None:
    x = fastnn.arange(6, device="cuda").reshape(2, 3)
    old = CudaArray(x)
    old.__cuda_array_interface__ = {name: x.__cuda_array_interface__[name] for name in ("shape", "typestr", "data")} | {
        "version": 2
    }
    assert fastnn.as_tensor(old).tolist() == x.tolist()
    empty = fastnn.zeros(0, 3, device="cuda")
    assert empty.__cuda_array_interface__["data"] == (0, False)
    assert fastnn.as_tensor(CudaArray(empty)).shape == (0, 3)


@gpu
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mask": "a mask"}, TypeError, "mask would be lost"),
        ({"typestr": "<c8"}, TypeError, "'<c8' are not supported"),
        ({"strides": (4,)}, ValueError, "a stride of 4 bytes is no multiple of the item size 8"),
        ({"strides": (8, 8)}, ValueError, "2 strides for 1 dimensions"),
        ({"shape": (1 << 62, 4), "strides": None}, (ValueError, MemoryError), "elements|too large|overflow"),
        ({"shape": "wide"}, TypeError, "shape is no tuple"),
    ],
)
def test_arrays_that_are_refused(changes: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fastnn.as_tensor(CudaArray(fastnn.arange(4, device="cuda"), **changes))


@gpu
def test_memory_that_is_not_aligned_is_refused() -> None:
    x = fastnn.arange(4, device="cuda")
    with pytest.raises(ValueError, match="not aligned for int64"):
        fastnn.as_tensor(CudaArray(x, data=(x.data_ptr() + 4, False), shape=(2,)))


class Producer:
    """Another library's array on a GPU, by DLPack: what it was asked with is kept."""

    def __init__(self, tensor: fastnn.Tensor, before_versions: bool = False) -> None:
        self.tensor, self.before_versions = tensor, before_versions
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        if self.before_versions and set(options) - {"stream"}:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        return self.tensor.__dlpack__(**options)


@gpu
@pytest.mark.parametrize("before_versions", [False, True])
def test_a_producer_is_told_the_stream_that_will_use_its_memory(before_versions: bool) -> None:
    x = fastnn.arange(6, device="cuda").reshape(2, 3).T
    producer, side = Producer(x, before_versions), fastnn.cuda.Stream()
    with fastnn.cuda.stream(side):
        same = fastnn.from_dlpack(producer)
    assert (same.data_ptr(), same.stride()) == (x.data_ptr(), x.stride())
    assert same.tolist() == x.tolist()
    assert [options["stream"] for options in producer.asked] == [side.cuda_stream] * len(producer.asked)
    assert set(producer.asked[-1]) == ({"stream"} if before_versions else {"stream", "max_version"})


@gpu
def test_dlpack_refusals() -> None:
    x = fastnn.arange(6, device="cuda")
    capsule = x.__dlpack__()
    assert fastnn.from_dlpack(capsule).is_cuda
    with pytest.raises(BufferError, match="fresh DLPack capsule"):
        fastnn.from_dlpack(capsule)
    with pytest.raises(BufferError, match="requires grad"):
        fastnn.ones(2, device="cuda").requires_grad_().__dlpack__()
    with pytest.raises(BufferError, match="cannot export from cuda:0"):
        x.__dlpack__(dl_device=(2, 1))
    copied = fastnn.from_dlpack(x.__dlpack__(copy=True))
    assert copied.data_ptr() != x.data_ptr()
    assert copied.tolist() == x.tolist()


@gpu
def test_unconsumed_capsules_free_their_tensor_on_a_gpu() -> None:
    before = fastnn.cuda.memory_allocated()
    for version in (None, (1, 0)):
        fastnn.ones(1000, device="cuda").__dlpack__(max_version=version)
    assert fastnn.cuda.memory_allocated() == before


@gpu
@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "int64", "uint8", "bool"])
def test_torch_gets_what_lies_on_a_gpu(dtype: str) -> None:
    """To torch on the CPU by a copy that DLPack asks for; back by one of ours."""
    import torch

    source = (torch.arange(12).reshape(3, 4) % 2).to(getattr(torch, dtype)).T
    there = fastnn.from_dlpack(source).to("cuda")
    back = torch.from_dlpack(fastnn.from_dlpack(there.__dlpack__(dl_device=(1, 0), max_version=(1, 0))))
    assert torch.equal(back, source)
    assert np.array_equal(there.cpu().to(fastnn.float32).numpy(), source.float().numpy())
