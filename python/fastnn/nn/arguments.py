"""The one place where a layer's arguments are checked: int-or-tuple ones become the tuples that ``_C`` takes."""

from collections.abc import Iterable
from operator import index
from typing import SupportsIndex

from fastnn._C import Tensor

Size = SupportsIndex | Iterable[SupportsIndex]
OptionalSize = SupportsIndex | None | Iterable[SupportsIndex | None]


def positive(name: str, value: int) -> int:
    """The value; ValueError below 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def probability(name: str, value: float) -> float:
    """The value; ValueError outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], got {value}")
    return float(value)


def sizes(value: Size, count: int, name: str) -> tuple[int, ...]:
    """``count`` ints: a single one repeated, or a sequence checked for its length."""
    if type(value) is int:  # most calls; asking for Iterable takes longer than a small kernel
        return (value,) * count
    try:
        values = tuple(index(v) for v in value) if isinstance(value, Iterable) else (index(value),) * count
    except TypeError:
        raise TypeError(f"{name} must be an int or {count} ints, got {value!r}") from None
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise ValueError(f"{name} must be an int or {count} ints, got {values}")
    return values


def optional_sizes(value: Size | None, default: tuple[int, ...], name: str) -> tuple[int, ...]:
    """As ``sizes``, with a default for None (a pool's stride is its kernel size)."""
    return default if value is None else sizes(value, len(default), name)


def partial_sizes(value: OptionalSize, count: int, name: str) -> tuple[int | None, ...]:
    """As ``sizes``, where an axis may be None."""
    values = tuple(value) if isinstance(value, Iterable) else (value,)
    known = sizes([0 if v is None else v for v in values], count, name)
    return tuple(None if v is None else k for v, k in zip(values * (count // len(values)), known, strict=True))


def output_sizes(value: OptionalSize, input: Tensor, count: int) -> tuple[int, ...]:
    """The output size of an adaptive pool; None is the size of the input's axis, of which the last ``count`` pool."""
    values = partial_sizes(value, count, "output_size")
    if None not in values or input.dim() < count:
        return tuple(v or 0 for v in values)
    return tuple(n if v is None else v for v, n in zip(values, input.shape[-count:], strict=True))


ConvOptions = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, bool]


def conv_options(n_axes: int, stride: Size, padding: Size | str, dilation: Size, groups: int) -> ConvOptions:
    """What ``_C.conv1d`` and its like take after the bias: stride, padding, dilation, groups, is padding "same"?

    With "same" the kernel's own size decides how much, so stride must be 1.
    """
    steps, rates = sizes(stride, n_axes, "stride"), sizes(dilation, n_axes, "dilation")
    if not isinstance(padding, str):
        return steps, sizes(padding, n_axes, "padding"), rates, groups, False
    if padding not in ("same", "valid"):
        raise ValueError(f"padding must be 'same', 'valid' or {n_axes} ints, got {padding!r}")
    if padding == "same" and any(step != 1 for step in steps):
        raise ValueError(f"padding='same' is not defined for stride {steps}; use explicit padding")
    return steps, (0,) * n_axes, rates, groups, padding == "same"


def shown(values: tuple[int | None, ...]) -> str:
    """As the user most likely wrote it: one int when all are the same."""
    return str(values[0] if len(set(values)) == 1 else values)
