"""Data loading, activation checkpointing and model summaries, each imported on first use."""

import importlib
from types import ModuleType

_LAZY = ("checkpoint", "data", "summary")


def __getattr__(name: str) -> ModuleType:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
