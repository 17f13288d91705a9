"""A GPU's memory: copies, what is counted and limited, pinned memory."""

import numpy as np
import pytest

import fastnn
from helpers import gpu


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
def test_the_cache_is_emptied_before_memory_runs_out() -> None:
    """Freed blocks of one size make room for one of another; what is live does not, and the message counts it."""
    mebibyte = 1 << 20
    fastnn.cuda.empty_cache()
    held, (_, total) = fastnn.cuda.memory_allocated(), fastnn.cuda.mem_get_info()
    fastnn.cuda.set_per_process_memory_fraction((held + 65 * mebibyte) / total)
    try:
        before = fastnn.cuda.memory_stats()["retries"]
        freed = fastnn.empty(40 * mebibyte, dtype=fastnn.uint8, device="cuda")
        del freed
        assert fastnn.cuda.memory_reserved() == held + 40 * mebibyte
        live = fastnn.empty(48 * mebibyte, dtype=fastnn.uint8, device="cuda")
        after = fastnn.cuda.memory_stats()
        assert after["retries"] == before + 1
        assert after["reserved"] == after["allocated"] == held + live.nbytes
        numbers = rf"cannot allocate {24 * mebibyte} bytes: cuda:0 has {total} \(limited to \d+\)"
        whose = f"of which tensors of fastnn hold {held + live.nbytes} and its cache 0"
        with pytest.raises(fastnn.cuda.OutOfMemoryError, match=f"{numbers}, {whose}"):
            fastnn.empty(24 * mebibyte, dtype=fastnn.uint8, device="cuda")
    finally:
        fastnn.cuda.set_per_process_memory_fraction(1.0)


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
