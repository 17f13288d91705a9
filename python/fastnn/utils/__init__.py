"""Data loading, activation checkpointing and model summaries. The first two are imported when asked for."""

import importlib
from types import ModuleType

_LAZY = ("checkpoint", "data")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
