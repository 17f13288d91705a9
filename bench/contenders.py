"""Who races: fastnn, and torch, ONNX Runtime and numpy as their users run them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# glibc returns a large block to the system when it is freed, and gets fresh pages for the next: torch pays for
# that at every large result, unless its user knows these settings.
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


@dataclass(frozen=True)
class Contender:
    name: str
    module: str
    channels_last: bool = False  # images and their weights are converted once, before the timing
    float64: bool = False  # the reference: not timed
    environment: dict[str, str] = field(default_factory=dict)

    def load(self, threads: int) -> ModuleType:
        library = import_module(self.module)
        if hasattr(library, "set_num_threads"):
            library.set_num_threads(threads)
        return library


CONTENDERS = [
    Contender("fastnn", "fastnn"),
    Contender("fastnn channels_last", "fastnn", channels_last=True),
    Contender("torch", "torch"),
    Contender("torch channels_last", "torch", channels_last=True),
    Contender("tuned torch", "torch", environment=TUNED_MALLOC),
    Contender("tuned torch channels_last", "torch", channels_last=True, environment=TUNED_MALLOC),
    Contender("onnxruntime", "onnxruntime"),
    Contender("numpy", "numpy"),
]
FASTNN = ("fastnn", "fastnn channels_last")
# The contenders that a ratio is against: the faster of them counts.
RIVALS = {
    "torch": ("torch", "torch channels_last"),
    "tuned torch": ("tuned torch", "tuned torch channels_last"),
    "onnxruntime": ("onnxruntime",),
    "numpy": ("numpy",),
}
QUICK = ("fastnn", "torch", "torch channels_last", "numpy")


def installed(names: list[str]) -> list[Contender]:
    """The contenders of these names (all, where none is given) that this interpreter can import."""
    known = {contender.name for contender in CONTENDERS}
    if unknown := set(names) - known:
        raise SystemExit(f"no contender is called {sorted(unknown)}; there are {sorted(known)}")
    return [c for c in CONTENDERS if (not names or c.name in names) and find_spec(c.module) is not None]


def reference() -> Contender:
    """torch in float64; without torch numpy, which knows the forward rows alone."""
    return Contender("reference", "torch" if find_spec("torch") else "numpy", float64=True)


def thread_settings(threads: int) -> dict[str, str]:
    """Read by the libraries when they load. OpenBLAS would spin for 30 ms after its work."""
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OPENBLAS_THREAD_TIMEOUT": "20",
    }


@dataclass(frozen=True)
class Prepared:
    """A call ready to be timed, and how many products are added up for a number of each result, or of them all."""

    call: Callable[[], Any]
    terms: list[float]
    rounds_within: float = 0  # Case.rounds_within
