"""Exchange with other libraries on a GPU: DLPack and ``__cuda_array_interface__``."""

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
