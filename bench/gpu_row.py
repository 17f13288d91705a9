"""What a row of the race on a GPU is: its inputs, how a contender prepares its call, what it computes and moves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

Shape = tuple[int, ...]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Place:
    """Where and how a contender computes."""

    lib: ModuleType
    device: str
    float64: bool = False  # the reference
    channels_last: bool = False
    tuned: bool = False  # the fused forms that its users know


@dataclass(frozen=True)
class Source:
    """Random tensors of torch."""

    torch: ModuleType
    device: str
    dtype: str

    def normal(self, *shape: int, scale: float = 1) -> Any:
        x = self.torch.randn(shape, device=self.device)
        return (scale * x).to(getattr(self.torch, self.dtype))

    def below(self, high: int, *shape: int) -> Any:
        return self.torch.randint(high, shape, device=self.device)


@dataclass(frozen=True)
class Row:
    name: str
    family: str
    inputs: Callable[[Source], list[Any]]
    prepare: Callable[[Place, list[Any]], Call]
    dtype: str = "float32"
    tf32: bool = False  # float32 numbers, whose products may be of TF32
    flops: float = 0
    bytes: float = 0
    terms: float = 1  # how many products are added up for a number of the results
    rounds_within: float = 0  # intermediate results that are rounded to the storage type too
    images: bool = False  # raced as NCHW and as channels_last


def forward(function: Callable[..., Any]) -> Callable[[Place, list[Any]], Call]:
    """Prepares ``function(lib, *tensors)``."""
    return lambda place, tensors: lambda: function(place.lib, *tensors)


def backward(function: Callable[..., Any]) -> Callable[[Place, list[Any]], Call]:
    """Prepares the gradients of ``function(lib, *tensors)``, its forward done before; the last tensor is dy."""

    def prepare(place: Place, tensors: list[Any]) -> Call:
        *args, dy = tensors
        leaves = [x.requires_grad_() for x in args if x.is_floating_point()]
        y = function(place.lib, *args)
        return lambda: list(place.lib.autograd.grad(y, leaves, dy, retain_graph=True))

    return prepare


def in_dtypes(row: Row, tf32: bool = False) -> Iterator[Row]:
    """The row in bfloat16, in float32, and where it has products in TF32."""
    half = replace(row, name=f"{row.name} bfloat16", dtype="bfloat16", bytes=row.bytes / 2)
    return iter([half, row, *([replace(row, name=f"{row.name} tf32", tf32=True)] if tf32 else [])])
