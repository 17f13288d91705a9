"""The one table of cases: tests of values, gradients, strides, threads and messages, and the races, come from it."""

from cases import (
    attention,
    conv,
    copy,
    create,
    elementwise,
    index,
    loss,
    matmul,
    norm,
    optim,
    pool,
    recurrent,
    reduce,
    softmax,
)
from cases.case import Case
from cases.random import RANDOM_CASES

FAMILIES = (
    *(elementwise, copy, create, reduce, index),
    *(matmul, conv, pool, norm, softmax, loss, recurrent, attention, optim),
)

CASES: list[Case] = []
for _module in FAMILIES:
    for _case in _module.CASES:
        _case.family = _module.__name__.removeprefix("cases.")
        CASES.append(_case)

BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases share a name"
