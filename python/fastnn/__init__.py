"""fastnn: PyTorch's names over a small C++ tensor whose every operation is a hand-written kernel."""

from fastnn import _C, autograd, nn, optim
from fastnn._C import *
from fastnn._C import Tensor
from fastnn.autograd import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from fastnn.config import __version__, show_config
from fastnn.debug import is_debug, set_debug
from fastnn.nn.functional import (
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
from fastnn.serialization import load, load_model, save, save_model
from fastnn.utils.summary import summary
