"""fastnn: PyTorch's names over a small C++ tensor whose every operation is a hand-written kernel."""

import importlib
from typing import TYPE_CHECKING, Any

from fastnn import _C, autograd, cuda, models, nn, optim, utils
from fastnn._C import *
from fastnn._C import Tensor
from fastnn.autograd import (  # context managers in place of plain switches
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from fastnn.config import __version__, show_config
from fastnn.debug import is_debug, set_debug
from fastnn.nn.functional import (  # with PyTorch's defaults
    adaptive_avg_pool1d,
    adaptive_max_pool1d,
    avg_pool1d,
    conv1d,
    conv2d,
    dropout,
    embedding,
    max_pool1d,
    max_pool2d,
)

if TYPE_CHECKING:
    from fastnn.serialization import load, load_model, save, save_model
    from fastnn.utils.summary import summary

# Imported on first use: `import fastnn` stays quick.
_LAZY = {
    "load": "fastnn.serialization",
    "load_model": "fastnn.serialization",
    "save": "fastnn.serialization",
    "save_model": "fastnn.serialization",
    "summary": "fastnn.utils.summary",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fastnn' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value
