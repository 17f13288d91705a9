"""Datasets and the DataLoader: order, batches, threads, errors."""

import gc
import threading
import time
from collections import namedtuple

import numpy as np
import pytest

import fastnn
from fastnn.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)
from helpers import passes


class Squares(Dataset):
    """Sample i is (i, i * i); every sample is counted."""

    def __init__(self, n):
        self.n, self.asked = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.asked.append(index)
        return index, np.float32(index * index)


class Broken(Squares):
    def __getitem__(self, index):
        if index == 13:
            raise OSError("sample 13 cannot be read")
        return super().__getitem__(index)


def order_of(loader):
    return [int(i) for batch in loader for i in batch[0].tolist()]


def worker_threads():
    return [t for t in threading.enumerate() if t.name.startswith("fastnn-data")]


def wait_until_no_workers():
    deadline = time.monotonic() + 10
    while worker_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not worker_threads()


# ---- order and batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_sample_comes_once_and_in_order(workers):
    loader = DataLoader(Squares(23), batch_size=5, num_workers=workers)
    batches = list(loader)
    assert [len(b[0]) for b in batches] == [5, 5, 5, 5, 3]
    assert len(loader) == 5
    assert order_of(loader) == list(range(23))
    assert batches[1][1].tolist() == [25, 36, 49, 64, 81]
    assert batches[1][1].dtype is fastnn.float32
    short = DataLoader(Squares(23), batch_size=5, num_workers=workers, drop_last=True)
    assert [len(b[0]) for b in short] == [5] * 4
    assert len(short) == 4


def test_shuffle_is_decided_by_the_seed_and_not_by_the_workers():
    orders = []
    for workers in (0, 1, 3):
        fastnn.manual_seed(5)
        loader = DataLoader(Squares(50), batch_size=7, shuffle=True, num_workers=workers)
        orders.append((order_of(loader), order_of(loader)))
    assert orders[0] == orders[1] == orders[2]
    first, second = orders[0]
    assert first != second
    assert sorted(first) == list(range(50)) == sorted(second)


def test_a_generator_is_apart_from_the_global_stream():
    fastnn.manual_seed(1)
    expected = fastnn.randn(3).tolist()
    fastnn.manual_seed(1)
    loader = DataLoader(Squares(20), shuffle=True, generator=fastnn.Generator().manual_seed(3))
    first, second = order_of(loader), order_of(loader)
    assert fastnn.randn(3).tolist() == expected
    again = DataLoader(Squares(20), shuffle=True, generator=fastnn.Generator().manual_seed(3))
    assert [order_of(again), order_of(again)] == [first, second]
    assert first != second
    assert fastnn.Generator().manual_seed(3).initial_seed() == 3


def test_tensor_dataset_gives_rows_and_whole_batches():
    x, y = fastnn.randn(10, 2, 3), fastnn.arange(10)
    dataset = TensorDataset(x, y)
    np.testing.assert_array_equal(dataset[4][0].numpy(), x.numpy()[4])
    fastnn.manual_seed(0)
    for images, labels in DataLoader(dataset, 4, shuffle=True):
        np.testing.assert_array_equal(images.numpy(), x.numpy()[labels.numpy()])
    with pytest.raises(ValueError, match="one length"):
        TensorDataset(x, fastnn.arange(9))
    with pytest.raises(ValueError, match="one length"):
        TensorDataset(fastnn.tensor(1.0))
    with pytest.raises(ValueError, match="at least one"):
        TensorDataset()


def test_samplers_decide_the_order():
    assert order_of(DataLoader(Squares(9), 2, sampler=[5, 3, 3])) == [5, 3, 3]
    loader = DataLoader(Squares(9), batch_sampler=[[1], [2, 3, 4]])
    assert [b[0].tolist() for b in loader] == [[1], [2, 3, 4]]
    assert len(loader) == 2


def test_subset_split_and_concatenation():
    data = TensorDataset(fastnn.arange(20))
    fastnn.manual_seed(0)
    parts = random_split(data, [12, 8])
    assert sorted(parts[0].indices + parts[1].indices) == list(range(20))
    assert order_of(DataLoader(parts[1], 3)) == parts[1].indices
    shares = random_split(Squares(11), [0.5, 0.3, 0.2], fastnn.Generator().manual_seed(1))
    assert [len(s) for s in shares] == [6, 3, 2]
    assert shares[0].indices == random_split(Squares(11), [6, 5], fastnn.Generator().manual_seed(1))[0].indices
    joined = ConcatDataset([Squares(3), Squares(4)])
    assert len(joined) == 7
    assert joined[3][0] == 0
    assert joined[-1][0] == 3
    with pytest.raises(IndexError, match="position 7 of 7"):
        joined[7]
    assert Subset(Squares(9), [4, 2])[1][0] == 2
    with pytest.raises(ValueError, match="sum to 9"):
        random_split(data, [4, 5])


def test_collate_follows_the_structure_of_a_sample():
    pair = namedtuple("pair", "x name")
    batch = default_collate([pair(fastnn.ones(2), "a"), pair(fastnn.zeros(2), "b")])
    assert isinstance(batch, pair)
    assert batch.name == ["a", "b"]
    assert tuple(batch.x.shape) == (2, 2)
    batch = default_collate([{"v": np.ones(3, np.float32), "n": 1}, {"v": np.zeros(3, np.float32), "n": 2}])
    assert tuple(batch["v"].shape) == (2, 3)
    assert batch["n"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="different lengths"):
        default_collate([(1, 2), (1,)])
    with pytest.raises(TypeError, match="set"):
        default_collate([{1}, {2}])
    loader = DataLoader(Squares(4), 2, collate_fn=lambda samples: [s[0] for s in samples])
    assert list(loader) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"shuffle": True, "sampler": [1]}, "sampler"),
        ({"batch_sampler": [[1]], "batch_size": 3}, "batch_sampler"),
    ],
)
def test_wrong_options_raise(options, text):
    with pytest.raises(ValueError, match=text):
        DataLoader(Squares(3), **options)


# ---- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_sample_reaches_the_caller(workers):
    loader = DataLoader(Broken(30), batch_size=5, num_workers=workers)
    batches = iter(loader)
    assert [len(next(batches)[0]) for _ in range(2)] == [5, 5]
    with pytest.raises(OSError, match="sample 13"):
        next(batches)
    assert wait_until_no_workers()


def test_prefetch_works_ahead_but_only_so_far():
    data = Squares(1000)
    iterator = iter(DataLoader(data, batch_size=10, num_workers=2, prefetch_factor=3))
    next(iterator)
    deadline = time.monotonic() + 10
    while len(data.asked) < 70 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(data.asked) == 70  # the batch taken and 2 * 3 ahead
    iterator.close()


def test_leaving_the_loop_ends_the_threads():
    for _ in DataLoader(Squares(1000), batch_size=2, num_workers=3):
        break
    gc.collect()
    assert wait_until_no_workers()


def test_an_abandoned_iterator_does_not_hold_up_the_exit():
    passes(
        "from fastnn.utils.data import DataLoader, TensorDataset\n"
        "import fastnn\n"
        "it = iter(DataLoader(TensorDataset(fastnn.zeros(100, 2)), 1, num_workers=2))\n"
        "next(it)\n"
    )
