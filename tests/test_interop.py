"""The gateway: arrays of other libraries into tensors and back, shared or copied, never silently converted."""

import gc
import hashlib
import weakref

import numpy as np
import pytest

import fastnn
from helpers import Anything

NUMPY_TYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def sample(dtype: str, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape) % 7
    return (values % 2 == 1) if dtype == "bool" else values.astype(dtype)


def misaligned(dtype: str = "float32") -> np.ndarray:
    raw = np.zeros(4 * np.dtype(dtype).itemsize + 1, dtype=np.uint8)
    return raw[1:].view(dtype)


# ------------------------------------------------------------------------------------------- sharing


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_from_numpy_shares_memory_both_ways(dtype):
    array = sample(dtype)
    tensor = fastnn.from_numpy(array)
    assert str(tensor.dtype) == f"fastnn.{dtype}" and tensor.shape == array.shape
    array[1, 2] = 1
    assert tensor[1, 2].item() == 1
    tensor[0, 0] = 1
    assert array[0, 0] == 1
    assert np.shares_memory(tensor.numpy(), array)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2],
        lambda a: a[:, ::3],
        lambda a: a[::-1],
        lambda a: a[:, ::-2],
        lambda a: a.T,
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[0], (5, 6)),
        lambda a: a[1:3, 2:2],
        lambda a: a[None, :, None],
        lambda a: a[2, 3, ...],
    ],
    ids=[
        "stepped",
        "columns",
        "negative",
        "negative_step",
        "transposed",
        "fortran",
        "broadcast",
        "empty",
        "ones",
        "0d",
    ],
)
def test_strided_arrays_keep_their_values(view):
    array = view(np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32))
    tensor = fastnn.from_numpy(array)
    assert tensor.shape == array.shape
    np.testing.assert_array_equal(tensor.numpy(), array)
    np.testing.assert_array_equal((tensor * 2).numpy(), array * 2)
    np.testing.assert_allclose(tensor.sum().item(), array.sum(dtype=np.float64), rtol=1e-5)


def test_a_c_contiguous_array_gives_contiguous_strides():
    # numpy leaves strides of (256, 4, 32, 4) here, which read as channels_last.
    images = np.zeros((3, 8, 8), np.float32)[:, None][np.arange(3)]
    assert images.flags.c_contiguous
    assert fastnn.from_numpy(images).stride() == (64, 64, 8, 1)


def test_tensor_keeps_the_array_alive_and_releases_it():
    class Tracked(np.ndarray):
        pass

    array = np.ones(5, dtype=np.float32).view(Tracked)
    alive = weakref.ref(array)
    tensor = fastnn.from_numpy(array)
    del array
    gc.collect()
    assert alive() is not None and tensor.sum().item() == 5
    del tensor
    gc.collect()
    assert alive() is None


def test_numpy_keeps_the_tensor_alive():
    array = fastnn.ones(1000).numpy()
    fastnn.zeros(1000)
    assert array.sum() == 1000


def test_tensor_and_as_tensor():
    array = np.ones(3, dtype=np.float32)
    copied, shared = fastnn.tensor(array), fastnn.as_tensor(array)
    array[0] = 7
    assert copied[0].item() == 1 and shared[0].item() == 7
    assert fastnn.as_tensor(shared) is shared


def test_dtypes_of_python_data():
    assert fastnn.tensor([1.5, 2]).dtype is fastnn.float32
    assert fastnn.tensor([1, 2]).dtype is fastnn.int64
    assert fastnn.tensor([True, False]).dtype is fastnn.bool
    assert fastnn.tensor(3.0).shape == ()
    assert fastnn.tensor([[1], [2]]).shape == (2, 1)
    assert fastnn.tensor(np.float64(2)).dtype is fastnn.float64
    assert fastnn.tensor(np.zeros(2)).dtype is fastnn.float64
    assert fastnn.tensor([]).shape == (0,)
    assert fastnn.tensor([fastnn.tensor(1.0), fastnn.tensor(2.0)]).tolist() == [1.0, 2.0]


def test_array_protocols():
    tensor = fastnn.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert np.shares_memory(np.asarray(tensor), tensor.numpy())
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
    assert np.add(tensor, 1).tolist() == [[2, 3], [4, 5]]
    assert isinstance(np.ones((2, 2), np.float32) * tensor, fastnn.Tensor)
    view = memoryview(tensor.T)
    assert view.shape == (2, 2) and view.strides == (4, 8) and view.format == "f" and view.tolist() == [[1, 3], [2, 4]]
    with pytest.raises(BufferError, match="contiguous"):
        hashlib.sha256(tensor.T)  # asks for plain bytes
    with pytest.raises(ValueError, match="copy"):
        np.asarray(tensor, dtype=np.float64, copy=False)


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "data",
    [
        "1",
        ["1", "2"],
        b"1",
        None,
        [None, 1.0],
        np.array(["1"]),
        np.array([1 + 2j]),
        np.array([Anything()]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([1], dtype="timedelta64[s]"),
        np.zeros(2, dtype=[("x", "f4")]),
        np.ma.masked_array([1.0, 2.0], mask=[0, 1]),
        {"a": 1},
        {1, 2},
        np.zeros(2, dtype=np.longdouble),
        np.zeros(2, dtype=np.uint32),
    ],
    ids=str,
)
def test_other_types_are_refused(data):
    with pytest.raises(TypeError, match=r"numpy|tensor"):
        fastnn.tensor(data)
    if isinstance(data, np.ndarray):
        with pytest.raises(TypeError, match="from_numpy"):
            fastnn.from_numpy(data)


def test_ragged_lists_are_refused():
    with pytest.raises(ValueError):
        fastnn.tensor([[1.0, 2.0], [3.0]])


def test_from_numpy_wants_an_array():
    with pytest.raises(TypeError, match="numpy array, got list"):
        fastnn.from_numpy([1.0])


def test_big_endian_is_copied_or_refused():
    array = np.arange(4, dtype=">f4")
    with pytest.raises(ValueError, match="byte order"):
        fastnn.from_numpy(array)
    assert fastnn.tensor(array).tolist() == [0, 1, 2, 3]


def test_misaligned_is_copied_or_refused():
    array = misaligned()
    array[:] = [1, 2, 3, 4]
    with pytest.raises(ValueError, match="aligned"):
        fastnn.from_numpy(array)
    assert fastnn.tensor(array).tolist() == [1, 2, 3, 4]


def test_strides_inside_an_element_are_refused():
    array = np.lib.stride_tricks.as_strided(np.zeros(8, np.int16), shape=(3,), strides=(2,)).view(np.int16)
    odd = np.ndarray((2,), dtype=np.int32, buffer=np.zeros(16, np.uint8), strides=(6,))
    assert fastnn.from_numpy(array).shape == (3,)
    with pytest.raises(ValueError, match=r"stride|aligned"):
        fastnn.from_numpy(odd)


def test_too_many_dimensions():
    with pytest.raises(ValueError, match="8 dimensions"):
        fastnn.from_numpy(np.zeros((1,) * 9, np.float32))


def test_ints_beyond_64_bits():
    with pytest.raises((ValueError, TypeError, OverflowError)):
        fastnn.tensor([2**63])
    with pytest.raises(ValueError, match="64 bits"):
        fastnn.ones(2) + 2**70


# ------------------------------------------------------------------------------------------ read-only


def test_read_only_arrays_can_be_read_but_not_written():
    array = np.ones(3, dtype=np.float32)
    array.flags.writeable = False
    tensor = fastnn.from_numpy(array)
    assert (tensor + 1).tolist() == [2, 2, 2]
    for write in (lambda: tensor.add_(1), lambda: tensor.zero_(), lambda: tensor.__setitem__(0, 5.0), tensor.relu_):
        with pytest.raises(ValueError, match="read-only"):
            write()
    with pytest.raises(ValueError, match="read-only"):
        tensor[1:].mul_(2)
    assert not tensor.numpy().flags.writeable
    assert tensor.clone().add_(1).tolist() == [2, 2, 2]
    assert memoryview(tensor).readonly


def test_writes_to_a_broadcast_array_are_refused():
    tensor = fastnn.from_numpy(np.broadcast_to(np.ones(1, np.float32), (3,)).copy())
    expanded = tensor[:1].expand(3)
    with pytest.raises(ValueError, match="several indices"):
        expanded.add_(1)


# --------------------------------------------------------------------------------------------- DLPack


@pytest.mark.parametrize("dtype", list(NUMPY_TYPES))
def test_dlpack_with_numpy(dtype):
    array = sample(dtype)
    tensor = fastnn.from_dlpack(array)
    assert np.shares_memory(tensor.numpy(), array)
    back = np.from_dlpack(tensor)
    assert np.shares_memory(back, array)
    np.testing.assert_array_equal(back, array)


def test_dlpack_keeps_the_read_only_flag():
    array = np.ones(3, dtype=np.float32)
    array.flags.writeable = False
    tensor = fastnn.from_dlpack(array)
    with pytest.raises(ValueError, match="read-only"):
        tensor.add_(1)
    assert not np.from_dlpack(tensor).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__()  # a consumer from before 1.0 cannot be told


def test_dlpack_strides_copy_and_device():
    tensor = fastnn.tensor(sample("float32")).T[::2]
    assert tensor.__dlpack_device__() == (1, 0)
    np.testing.assert_array_equal(np.from_dlpack(tensor), tensor.numpy())
    copied = fastnn.from_dlpack(tensor.__dlpack__(max_version=(1, 0), copy=True))
    assert not np.shares_memory(copied.numpy(), tensor.numpy())
    with pytest.raises(BufferError, match="device type 2"):
        tensor.__dlpack__(dl_device=(2, 0))


def test_dlpack_capsule_is_consumed_once():
    for version in (None, (1, 0)):
        capsule = fastnn.ones(3).__dlpack__(max_version=version)
        first = fastnn.from_dlpack(capsule)
        with pytest.raises(BufferError, match="once"):
            fastnn.from_dlpack(capsule)
        assert first.tolist() == [1, 1, 1]


def test_unconsumed_capsules_free_their_tensor():
    before = fastnn._C.memory_stats()["allocated"]
    for _ in range(100):
        fastnn.ones(1000).__dlpack__(max_version=(1, 0))
        fastnn.ones(1000).__dlpack__()
    gc.collect()
    assert fastnn._C.memory_stats()["allocated"] == before


def test_dlpack_old_and_lying_producers():
    class Old:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, stream=None):
            return self.array.__dlpack__()

        def __dlpack_device__(self):
            return (1, 0)

    class Liar(Old):
        def __dlpack__(self, **kwargs):
            return 42

    array = np.ones(3, np.float32)
    assert np.shares_memory(fastnn.from_dlpack(Old(array)).numpy(), array)
    with pytest.raises(BufferError, match="capsule"):
        fastnn.from_dlpack(Liar(array))
    with pytest.raises(TypeError, match="__dlpack__"):
        fastnn.from_dlpack(object())
    with pytest.raises(BufferError, match="elements of code"):
        fastnn.from_dlpack(np.ones(2, np.complex64))
    with pytest.raises(BufferError, match="requires grad"):
        fastnn.ones(2, requires_grad=True).__dlpack__()


@pytest.mark.torch
def test_dlpack_with_torch():
    import torch

    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool):
        source = (torch.arange(12).reshape(3, 4) % 2).to(dtype).T
        tensor = fastnn.from_dlpack(source)
        assert tensor.shape == (4, 3) and str(tensor.dtype).split(".")[1] == str(dtype).split(".")[1]
        back = torch.from_dlpack(tensor)
        assert back.data_ptr() == source.data_ptr() and torch.equal(back, source)


# -------------------------------------------------------------------------------------------- numpy()


def test_numpy_refusals():
    with pytest.raises(RuntimeError, match="requires grad"):
        fastnn.ones(2, requires_grad=True).numpy()
    with pytest.raises(TypeError, match="bfloat16"):
        fastnn.ones(2, dtype=fastnn.bfloat16).numpy()
    assert fastnn.ones(2, requires_grad=True).numpy(force=True).tolist() == [1, 1]


@pytest.mark.torch
def test_bfloat16_and_float16_round_to_nearest_even():
    import torch

    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    values = bits.view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 6e-8, 2.9e-8, 1e-45], np.float32)
    values = np.concatenate([values, special])
    for ours, theirs in ((fastnn.bfloat16, torch.bfloat16), (fastnn.float16, torch.float16)):
        actual = fastnn.tensor(values).to(ours).float().numpy()
        expected = torch.from_numpy(values).to(theirs).float().numpy()
        np.testing.assert_array_equal(actual, expected)
