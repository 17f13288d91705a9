"""What a case is: one operation, how to call it, what is right, and how nearly right is right.

A case calls by torch's names, so the same row runs fastnn, and torch where it is installed. Arrays of
float64 take the dtype under test; integer and bool arrays keep theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from types import ModuleType
from typing import Any

import numpy as np

import reference

FLOATS = ("float32", "float64", "bfloat16")
# Unit roundoff of what a dtype computes in, and of what it is stored in.
COMPUTE_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-24, "float16": 2.0**-24}
STORAGE_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SMALLEST_NORMAL = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}


@dataclass(frozen=True)
class Sample:
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorSample:
    """A bad call: the exception that must come and a pattern its message must match. Arrays keep their dtypes."""

    kind: type[BaseException]
    pattern: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class BenchRow:
    """A call to time. `make` builds its arrays; flops and bytes are what the formula must do at the least."""

    label: str
    make: Callable[[], tuple[Any, ...]]
    flops: float = 0
    bytes: float = 0
    kwargs: dict[str, Any] = field(default_factory=dict)
    backward: bool = False  # the backward alone, its forward done before
    dtype: str = "float32"
    gradients: tuple[int, ...] | None = None  # the arguments that the backward is for; None: every float array
    transposed: tuple[int, ...] = ()  # the arguments whose last two axes are swapped in memory
    channels_last: bool = False  # fastnn, too, is given its images that way


def _arrays(value: Any) -> Any:
    """numpy turns 0-d results into scalars; a sample's scalars are 0-d arrays."""
    if isinstance(value, list):
        return [_arrays(v) for v in value]
    return np.asarray(value) if isinstance(value, np.generic) else value


def sample(*args: Any, **kwargs: Any) -> Sample:
    return Sample(tuple(_arrays(a) for a in args), kwargs)


def error(kind: type[BaseException], pattern: str, *args: Any, **kwargs: Any) -> ErrorSample:
    return ErrorSample(kind, pattern, args, kwargs)


@dataclass
class Case:
    name: str
    reference: Callable[..., Any]
    samples: Sequence[Sample]
    path: str = ""  # where the function is, in fastnn as in torch; the name itself when empty
    call: Callable[..., Any] | None = None  # call(lib, *args) where a path is not enough
    torch: Callable[..., Any] | bool = True  # another call for torch, or False when it has none
    covers: tuple[str, ...] = ()  # further names in fastnn._C that this case exercises
    errors: Sequence[ErrorSample] = ()
    specials: Sequence[Sample] = ()  # NaN, infinities, signed zeros: values only
    dtypes: tuple[str, ...] = FLOATS
    integers: tuple[str, ...] = ()  # integer dtypes under which the samples, rounded, are exact
    differentiable: bool | tuple[int, ...] = True  # True: every float array; or the positions of those that are
    exact: bool = False  # moves or selects values: no rounding at all
    terms: Callable[..., int] | int = 1  # how many values are added up for one result
    magnitude: Callable[..., Any] | None = None  # the sum of the magnitudes of the terms; |result| when left out
    ulps: float = 4  # rounding errors allowed for each term
    rounds_within: int = 0  # intermediate results, one after the other, that are rounded to the storage type too
    # What the rounding of a saved result does to the gradient, in roundings of the largest number of the gradient.
    rounds_saved: Callable[..., float] | None = None
    gradient_scale: float = 0  # the derivative is a difference of numbers of this size, and keeps their rounding errors
    inplace: bool = False  # x.name_(...) exists
    large: Callable[[], tuple[Any, ...]] | None = None  # arguments that need several threads
    bench: Sequence[BenchRow] = ()
    numpy: Callable[..., Any] | None = None  # the fast numpy call, for the race
    family: str = ""

    def __repr__(self) -> str:
        return self.name

    @cached_property
    def _function(self) -> Callable[..., Any]:
        if self.call is not None:
            return self.call
        find = attrgetter(self.path or self.name)
        return lambda lib, *args, **kwargs: find(lib)(*args, **kwargs)

    def run(self, lib: ModuleType, *args: Any, **kwargs: Any) -> Any:
        """The operation in fastnn or in torch."""
        if lib.__name__ == "torch" and callable(self.torch):
            return self.torch(lib, *args, **kwargs)
        return self._function(lib, *args, **kwargs)

    def tolerance(self, dtype: str, args: tuple[Any, ...], kwargs: dict[str, Any], expected: np.ndarray) -> np.ndarray:
        """|result - expected| may reach ulps sqrt(terms) u sum|terms|, plus one rounding to the storage type."""
        if self.exact:
            return np.zeros_like(expected, dtype=np.float64)
        terms = self.terms(*args, **kwargs) if callable(self.terms) else self.terms
        with np.errstate(all="ignore"):
            magnitude = np.abs(expected) if self.magnitude is None else self.magnitude(*args, **kwargs)
            magnitude = np.nan_to_num(magnitude, nan=0, posinf=0)  # infinite and NaN results are compared exactly
        computed = self.ulps * np.sqrt(max(terms, 1)) * COMPUTE_ROUNDOFF[dtype] * magnitude
        stored = np.abs(expected) + self.rounds_within * magnitude
        return computed + STORAGE_ROUNDOFF[dtype] * stored + SMALLEST_NORMAL[dtype]


def rounded(value: Any, dtype: str) -> Any:
    """The argument as float64 after a rounding to `dtype`: what the operation really gets."""
    if isinstance(value, list):
        return [rounded(v, dtype) for v in value]
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        return value
    if dtype == "bfloat16":
        with np.errstate(over="ignore"):
            return reference.round_to_bfloat16(value)
    if dtype in ("bool", "uint8", "int8", "int16", "int32", "int64"):
        return np.rint(value).astype(dtype)
    with np.errstate(over="ignore"):
        return value.astype(dtype).astype(np.float64)


def to_tensor(lib: ModuleType, value: Any, dtype: str | None = None) -> Any:
    """Arrays become contiguous tensors of their own memory; lists element by element; the rest stays."""
    if isinstance(value, list):
        return [to_tensor(lib, v, dtype) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    if dtype is None or value.dtype != np.float64:
        return lib.from_numpy(np.array(value, order="C"))
    if dtype in ("float16", "bfloat16"):
        return lib.from_numpy(rounded(value, dtype).astype(np.float32)).to(getattr(lib, dtype))  # rounded once
    return lib.from_numpy(np.array(rounded(value, dtype), dtype=dtype, order="C"))


def to_numpy(value: Any) -> Any:
    """Results as arrays; floats as float64. Several results as a list."""
    if isinstance(value, list | tuple):
        return [to_numpy(v) for v in value]
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach()
    return (value.double() if value.is_floating_point() else value).numpy()


class Values:
    """Sample arrays, the same in every run."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def normal(self, *shape: int) -> np.ndarray:
        return np.asarray(self._rng.standard_normal(shape))

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        return np.asarray(self._rng.uniform(low, high, shape))

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        return np.asarray(self._rng.integers(low, high, shape))

    def bools(self, *shape: int) -> np.ndarray:
        return self._rng.integers(0, 2, shape).astype(bool)

    def distinct(self, *shape: int) -> np.ndarray:
        """Values at least 0.1 apart in random order: no ties and no kinks for a central difference."""
        return (self._rng.permutation(int(np.prod(shape))).reshape(shape) + 0.5) * 0.1 - 0.05 * np.prod(shape)


def f32(*shape: int) -> np.ndarray:
    """A float32 array for error samples, where values do not matter."""
    return np.ones(shape, np.float32)


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 2.0**-130, -(2.0**-130), 2.0**100])
