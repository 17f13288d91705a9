"""Sequences of different lengths in one tensor: padded, or packed without the padding.

A packed batch holds step after step, and in each step only the sequences that are still running, the longest first:
``batch_sizes[t]`` rows for step t. Recurrent layers then do no work on padding.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import index
from typing import Any, NamedTuple, Self

from fastnn import _C
from fastnn._C import Tensor


class PackedSequence(NamedTuple):
    """Sequences (longest first) as rows of one tensor.

    ``data`` is (rows, ...), ``batch_sizes`` an int64 tensor with the rows of each step. ``sorted_indices`` says which
    sequence of the batch came first, second, ...; ``unsorted_indices`` is its inverse. Both are None when the batch
    came sorted. Made by ``pack_padded_sequence`` and ``pack_sequence``.
    """

    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same rows in another dtype or on another device."""
        return self._replace(data=self.data.to(*args, **kwargs))


def _as_ids(values: Sequence[int]) -> Tensor:
    return _C.tensor(list(values), dtype=_C.int64)


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """``inverse[permutation[i]] = i``; None stays None."""
    if permutation is None:
        return None
    order = permutation.tolist()
    inverse = [0] * len(order)
    for place, item in enumerate(order):
        inverse[item] = place
    return _as_ids(inverse)


def _checked_lengths(lengths: Tensor | Iterable[int], batch: int, longest: int) -> list[int]:
    values = [index(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(values) != batch:
        raise ValueError(f"pack_padded_sequence: {len(values)} lengths came for a batch of {batch} sequences")
    if not values or min(values) < 1 or max(values) > longest:
        raise ValueError(f"pack_padded_sequence: lengths must be in 1..{longest} (the padded length), got {values}")
    return values


def _batch_sizes(descending: list[int]) -> list[int]:
    sizes = []
    running = len(descending)
    for step in range(descending[0]):
        while descending[running - 1] <= step:
            running -= 1
        sizes.append(running)
    return sizes


def pack_padded_sequence(
    input: Tensor, lengths: Tensor | Iterable[int], batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Padded sequences (T, B, ...), or (B, T, ...) with ``batch_first``, and their lengths (B,) as a PackedSequence.

    ``enforce_sorted=False`` sorts them by length; otherwise lengths that increase raise ValueError, as do lengths
    outside 1..T.
    """
    if input.dim() < 2:
        raise ValueError(f"pack_padded_sequence: padded sequences (T, B, ...) are expected, got {tuple(input.shape)}")
    n_steps, batch = (input.shape[1], input.shape[0]) if batch_first else (input.shape[0], input.shape[1])
    known = _checked_lengths(lengths, batch, n_steps)
    order = sorted(range(batch), key=lambda i: -known[i])
    descending = [known[i] for i in order]
    if enforce_sorted and known != descending:
        raise ValueError(
            f"pack_padded_sequence: lengths must not increase, got {known}; enforce_sorted=False has them sorted"
        )
    sizes = _batch_sizes(descending)
    step_stride, sequence_stride = (1, n_steps) if batch_first else (batch, 1)
    rows = [t * step_stride + order[i] * sequence_stride for t, size in enumerate(sizes) for i in range(size)]
    flat = input.reshape(n_steps * batch, *input.shape[2:])
    sorted_indices = None if enforce_sorted else _as_ids(order)
    return PackedSequence(
        _C.index_select(flat, 0, _as_ids(rows)), _as_ids(sizes), sorted_indices, invert_permutation(sorted_indices)
    )


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """A PackedSequence as padded sequences (T, B, ...), or (B, T, ...), in their first order, and their lengths (B,).

    T is the longest length, or ``total_length``, which must not be less (ValueError).
    """
    sizes: list[int] = sequence.batch_sizes.tolist()
    batch, longest = sizes[0], len(sizes)
    n_steps = longest if total_length is None else total_length
    if n_steps < longest:
        raise ValueError(f"pad_packed_sequence: total_length {n_steps} is less than the longest sequence's {longest}")
    places: list[int] = list(range(batch)) if sequence.unsorted_indices is None else sequence.unsorted_indices.tolist()
    begins = [0, *accumulate(sizes)]
    n_rows = begins[-1]  # also the row of padding

    def row(step: int, i: int) -> int:
        return begins[step] + places[i] if step < longest and places[i] < sizes[step] else n_rows

    if batch_first:
        rows = [row(t, i) for i in range(batch) for t in range(n_steps)]
    else:
        rows = [row(t, i) for t in range(n_steps) for i in range(batch)]
    data = sequence.data
    padding = _C.full((1, *data.shape[1:]), padding_value, dtype=data.dtype, device=data.device)
    padded = _C.index_select(_C.cat([data, padding], 0), 0, _as_ids(rows))
    lengths = [sum(size > place for size in sizes) for place in places]
    leading = (batch, n_steps) if batch_first else (n_steps, batch)
    return padded.reshape(*leading, *data.shape[1:]), _as_ids(lengths)


def pad_sequence(
    sequences: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Tensors (L_i, ...) of equal trailing shapes, padded to the longest: (T, B, ...), or (B, T, ...)."""
    if not sequences:
        raise ValueError("pad_sequence: at least one sequence is expected, got none")
    if padding_side not in ("left", "right"):
        raise ValueError(f"pad_sequence: padding_side must be 'left' or 'right', got {padding_side!r}")
    longest = max(s.shape[0] for s in sequences)

    def padded(s: Tensor) -> Tensor:
        missing = longest - s.shape[0]
        if missing == 0:
            return s
        padding = _C.full((missing, *s.shape[1:]), padding_value, dtype=s.dtype, device=s.device)
        return _C.cat([s, padding] if padding_side == "right" else [padding, s], 0)

    return _C.stack([padded(s) for s in sequences], 0 if batch_first else 1)


def unpad_sequence(
    padded_sequences: Tensor, lengths: Tensor | Iterable[int], batch_first: bool = False
) -> list[Tensor]:
    """The inverse of ``pad_sequence``: the first ``lengths[i]`` steps of each sequence."""
    sequences = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    known = [index(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(known) != sequences.shape[0]:
        raise ValueError(f"unpad_sequence: {len(known)} lengths came for {sequences.shape[0]} sequences")
    return [sequences[i][:n] for i, n in enumerate(known)]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Tensors (L_i, ...) as a PackedSequence; longest first unless ``enforce_sorted`` is False."""
    lengths = [s.shape[0] for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The inverse of ``pack_sequence``."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)
