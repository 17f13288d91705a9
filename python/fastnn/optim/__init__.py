"""Optimizers, learning rate schedulers and weight averages under PyTorch's names."""

from fastnn.optim import lr_scheduler, swa_utils
from fastnn.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from fastnn.optim.adaptive import Adadelta, Adagrad, RMSprop
from fastnn.optim.lion import Lion
from fastnn.optim.muon import Muon
from fastnn.optim.optimizer import Optimizer
from fastnn.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "lr_scheduler",
    "swa_utils",
]
