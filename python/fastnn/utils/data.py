"""Datasets and the DataLoader.

Shuffling follows ``fastnn.manual_seed`` or a generator of its own, and the order of the batches
does not depend on the number of workers. Workers are threads: kernels and numpy release Python's
lock, and nothing is copied between processes.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from fastnn import _C, cuda
from fastnn._C import Generator, Tensor

__all__ = [
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "Subset",
    "TensorDataset",
    "default_collate",
    "random_split",
]


class Dataset:
    """Anything with ``__len__`` and ``__getitem__``.

    A dataset that can make a whole batch at once may add ``batch(indices)``; the DataLoader then
    calls it in place of collecting and collating single samples.
    """

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} has no __len__")

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __getitem__")


class TensorDataset(Dataset):
    """Tensors of one length; sample i is the tuple of their rows i."""

    def __init__(self, *tensors: Tensor) -> None:
        if not tensors:
            raise ValueError("TensorDataset: at least one tensor is expected")
        lengths = [t.shape[0] if t.dim() else None for t in tensors]
        if None in lengths or len(set(lengths)) != 1:
            raise ValueError(
                f"TensorDataset: tensors of one length are expected, got {[tuple(t.shape) for t in tensors]}"
            )
        self.tensors = tensors

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def batch(self, indices: Sequence[int]) -> list[Tensor]:
        """The rows at the indices, of every tensor."""
        rows = _C.from_numpy(np.asarray(indices, dtype=np.int64))
        return [_C.index_select(t, 0, rows) for t in self.tensors]


class Subset(Dataset):
    """The samples of a dataset at the given positions."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = [int(i) for i in indices]
        if hasattr(dataset, "batch"):
            self.batch = self._batch

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]

    def _batch(self, indices: Sequence[int]) -> Any:
        return self.dataset.batch([self.indices[i] for i in indices])


class ConcatDataset(Dataset):
    """Datasets one after the other."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        self.ends = np.cumsum([len(d) for d in self.datasets]).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Any:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"ConcatDataset: position {index} of {len(self)} samples")
        part = int(np.searchsorted(self.ends, position, side="right"))
        return self.datasets[part][position - (self.ends[part - 1] if part else 0)]


def random_split(dataset: Any, lengths: Sequence[int | float], generator: Generator | None = None) -> list[Subset]:
    """Disjoint random parts: lengths that sum to ``len(dataset)``, or fractions that sum to 1."""
    total = len(dataset)
    if any(length < 0 for length in lengths):
        raise ValueError(f"random_split: lengths must not be negative, got {list(lengths)}")
    if math.isclose(sum(lengths), 1) and total != 1:
        counts = [math.floor(total * share) for share in lengths]
        for i in range(total - sum(counts)):  # what rounding left over goes round
            counts[i % len(counts)] += 1
    else:
        counts = [int(length) for length in lengths]
    if sum(counts) != total:
        raise ValueError(
            f"random_split: lengths {list(lengths)} sum to {sum(lengths)}, the dataset has {total} samples"
        )
    order = _permutation(total, generator)
    begins = [sum(counts[:i]) for i in range(len(counts))]
    return [Subset(dataset, order[begin : begin + n]) for begin, n in zip(begins, counts, strict=True)]


def _permutation(n: int, generator: Generator | None) -> list[int]:
    order: list[int] = _C.randperm(n, generator=generator).tolist()
    return order


def default_collate(samples: Sequence[Any]) -> Any:
    """A list of samples as a batch: tensors stacked, numbers as a tensor, tuples and dicts member by member."""
    first = samples[0]
    if isinstance(first, Tensor):
        return _C.stack(list(samples))
    if isinstance(first, np.ndarray | np.generic):
        return _C.from_numpy(np.stack(samples))
    if isinstance(first, bool | int | float):
        return _C.tensor(list(samples))
    if isinstance(first, str | bytes):
        return list(samples)
    if isinstance(first, Mapping):
        return {key: default_collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in samples):
            raise ValueError(f"default_collate: samples of different lengths: {sorted({len(s) for s in samples})}")
        members = [default_collate(member) for member in zip(*samples, strict=True)]
        return type(first)(*members) if hasattr(first, "_fields") else members
    raise TypeError(f"default_collate: cannot make a batch of {type(first).__name__}; give the DataLoader a collate_fn")


def _pinned(batch: Any) -> Any:
    """A batch with its tensors in pinned memory; objects of other types may bring a ``pin_memory`` of their own."""
    if hasattr(batch, "pin_memory"):
        return batch.pin_memory()
    if isinstance(batch, Mapping):
        return {key: _pinned(member) for key, member in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_pinned, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(_pinned, batch))
    return batch


class DataLoader:
    """Batches of a dataset, in order or shuffled.

    With ``num_workers`` threads up to ``num_workers * prefetch_factor`` batches are made ahead, in
    the background. An error in a worker is raised in the loop that asked for the batch; leaving the
    loop early ends the threads.

    With ``pin_memory`` the batches lie where a GPU copies from while the CPU goes on
    (``batch.to("cuda", non_blocking=True)``); without a GPU it does nothing.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        drop_last: bool = False,
        generator: Generator | None = None,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be at least 1, got {batch_size}")
        if num_workers < 0 or prefetch_factor < 1:
            raise ValueError(
                f"DataLoader: num_workers must not be negative and prefetch_factor at least 1, "
                f"got {num_workers} and {prefetch_factor}"
            )
        if shuffle and sampler is not None:
            raise ValueError("DataLoader: a sampler decides the order; shuffle must be off")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise ValueError("DataLoader: a batch_sampler replaces batch_size, shuffle, sampler and drop_last")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self.generator = generator
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        if self.batch_sampler is not None:
            return len(self.batch_sampler)  # type: ignore[arg-type]
        n = len(self.dataset if self.sampler is None else self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        batches = self._batches()
        if self.num_workers == 0:
            return map(self._load, batches)
        return self._prefetched(batches)

    def _batches(self) -> Iterator[Sequence[int]]:
        """The positions of each batch. The random order is drawn here, before any worker starts."""
        if self.batch_sampler is not None:
            return iter(self.batch_sampler)
        n = len(self.dataset)
        order: Iterable[int] = range(n) if self.sampler is None else self.sampler
        return self._cut(_permutation(n, self.generator) if self.shuffle else order)

    def _cut(self, order: Iterable[int]) -> Iterator[Sequence[int]]:
        batch: list[int] = []
        for index in order:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def _load(self, indices: Sequence[int]) -> Any:
        batch = self._collected(indices)
        return _pinned(batch) if self.pin_memory and cuda.is_available() else batch

    def _collected(self, indices: Sequence[int]) -> Any:
        if self.collate_fn is None and hasattr(self.dataset, "batch"):
            return self.dataset.batch(indices)
        collate = default_collate if self.collate_fn is None else self.collate_fn
        return collate([self.dataset[i] for i in indices])

    def _prefetched(self, batches: Iterator[Sequence[int]]) -> Iterator[Any]:
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="fastnn-data")
        waiting: deque[Future[Any]] = deque()

        def submit_next() -> None:
            indices = next(batches, None)
            if indices is not None:
                waiting.append(pool.submit(self._load, indices))

        try:
            for _ in range(self.num_workers * self.prefetch_factor):
                submit_next()
            while waiting:
                batch = waiting.popleft().result()
                submit_next()
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
