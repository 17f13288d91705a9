"""The caching allocator: statistics, reuse, its limit, and requests that cannot be met."""

import gc

import pytest

import fastnn

MIB = 1 << 20


@pytest.fixture(autouse=True)
def fresh_cache():
    gc.collect()
    fastnn.empty_cache()
    limit = fastnn.memory_stats()["cache_limit"]
    yield
    fastnn.set_cache_limit(limit)


def stats() -> dict[str, int]:
    return fastnn.memory_stats()


def test_live_bytes_and_peak() -> None:
    before = stats()["allocated"]
    fastnn.reset_peak_memory_stats()
    x = fastnn.empty(MIB)
    assert 4 * MIB <= stats()["allocated"] - before <= 5 * MIB, "size classes waste at most a quarter"
    view = x[10:].reshape(-1)
    assert stats()["allocated"] - before <= 5 * MIB, "a view allocates nothing"
    del x
    assert stats()["allocated"] > before, "the view keeps the memory"
    del view
    assert stats()["allocated"] == before
    assert stats()["peak_allocated"] - before >= 4 * MIB
    fastnn.reset_peak_memory_stats()
    assert stats()["peak_allocated"] == before


def test_freed_blocks_are_reused() -> None:
    x = fastnn.empty(1000, 1000)
    place, hits = x.data_ptr(), stats()["cache_hits"]
    del x
    assert stats()["cached"] >= 4_000_000
    y = fastnn.empty(1000, 1000)
    assert y.data_ptr() == place and stats()["cache_hits"] == hits + 1
    del y
    fastnn.empty_cache()
    assert stats()["cached"] == 0


def test_alignment() -> None:
    for n in (1, 3, 17, 1000, 100_003):
        assert fastnn.empty(n).data_ptr() % 64 == 0


def test_limit() -> None:
    fastnn.set_cache_limit(8 * MIB)
    blocks = [fastnn.empty(MIB) for _ in range(10)]
    del blocks
    assert stats()["cached"] <= 8 * MIB
    fastnn.set_cache_limit(0)
    x = fastnn.empty(MIB)
    del x
    assert stats()["cached"] == 0
    with pytest.raises(ValueError, match="-1"):
        fastnn.set_cache_limit(-1)


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 31, 1 << 31), (1 << 62, 2), (1 << 62, 1 << 62), (3, 1 << 61)])
def test_too_large(shape: tuple[int, ...]) -> None:
    """Refused before memory is touched, and the process goes on."""
    before = stats()["allocated"]
    for make in (fastnn.empty, fastnn.zeros, fastnn.ones, fastnn.rand):
        with pytest.raises(MemoryError):
            make(shape)
    assert stats()["allocated"] == before
    assert fastnn.ones(3).sum().item() == 3


def test_large_results_are_refused() -> None:
    x = fastnn.ones(1 << 21, 1)
    for call in (lambda: x + x.t(), lambda: x @ x.t(), lambda: x.expand(1 << 21, 1 << 21).contiguous()):
        with pytest.raises(MemoryError):
            call()


def test_empty_shape_with_a_huge_size() -> None:
    """One zero makes the tensor empty, whatever the other sizes say."""
    shape = (9, 15, 0, 2772747373535906632, 0, 14)
    x = fastnn.empty(shape)
    assert tuple(x.shape) == shape and x.numel() == 0
    assert (x + 1).numel() == 0 and x.sum().item() == 0


def test_training_loop_reaches_a_steady_state() -> None:
    """After the first steps every block comes from the cache."""
    w = fastnn.randn(64, 64, requires_grad=True)
    x = fastnn.randn(32, 64)

    def step() -> None:
        w.grad = None
        (x @ w).relu().sum().backward()

    for _ in range(3):
        step()
    before = stats()
    for _ in range(20):
        step()
    after = stats()
    assert after["allocations"] - before["allocations"] == after["cache_hits"] - before["cache_hits"] > 0
    assert after["allocated"] == before["allocated"]
