"""Schedules of the learning rate against PyTorch, and across a save and a load."""

import numpy as np
import pytest

import fastnn
from fastnn import nn, optim
from fastnn.optim import lr_scheduler

SCHEDULES = {
    "step": lambda s, o: s.StepLR(o, 3, 0.5),
    "multi_step": lambda s, o: s.MultiStepLR(o, [2, 7, 7], 0.3),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, 10, 0.01),
    "linear": lambda s, o: s.LinearLR(o, 0.2, 0.9, 6),
    "constant": lambda s, o: s.ConstantLR(o, 0.25, 4),
    "lambda": lambda s, o: s.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "lambda_list": lambda s, o: s.LambdaLR(o, [lambda e: 0.9**e, lambda e: 1.0]),
    "one_cycle": lambda s, o: s.OneCycleLR(o, 0.5, total_steps=20),
    "one_cycle_linear": lambda s, o: s.OneCycleLR(o, [0.5, 2.0], epochs=4, steps_per_epoch=5, anneal_strategy="linear"),
    "one_cycle_three": lambda s, o: s.OneCycleLR(o, 0.5, total_steps=20, three_phase=True, pct_start=0.4),
    "swa": lambda s, o: swa_of(s)(o, 0.05, anneal_epochs=6),
    "swa_linear": lambda s, o: swa_of(s)(o, [0.05, 0.9], anneal_epochs=6, anneal_strategy="linear"),
    "sequential": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, 1.0, 4), s.CosineAnnealingLR(o, 9)], milestones=[4]
    ),
}


def swa_of(schedulers):
    """SWALR lives beside the averages."""
    import importlib

    return importlib.import_module(schedulers.__name__.replace("lr_scheduler", "swa_utils")).SWALR


def groups_of(package, tensor):
    return package.SGD([{"params": [tensor(1.0)]}, {"params": [tensor(2.0)], "lr": 0.4}], lr=0.1, momentum=0.9)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_equals_torch(name):
    import torch

    ours = groups_of(optim, lambda v: nn.Parameter(fastnn.tensor([v])))
    theirs = groups_of(torch.optim, lambda v: torch.nn.Parameter(torch.tensor([v])))
    first, second = SCHEDULES[name](lr_scheduler, ours), SCHEDULES[name](torch.optim.lr_scheduler, theirs)
    for _ in range(20):
        for key in ("lr", "momentum"):
            actual = [group[key] for group in ours.param_groups]
            expected = [group[key] for group in theirs.param_groups]
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-15)
        assert first.get_last_lr() == [group["lr"] for group in ours.param_groups]
        theirs.step()
        first.step()
        second.step()


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_equals_torch(mode):
    import torch

    ours = groups_of(optim, lambda v: nn.Parameter(fastnn.tensor([v])))
    theirs = groups_of(torch.optim, lambda v: torch.nn.Parameter(torch.tensor([v])))
    options = {"mode": mode, "factor": 0.5, "patience": 2, "cooldown": 1, "min_lr": [0.01, 0.0], "threshold": 0.01}
    first = lr_scheduler.ReduceLROnPlateau(ours, **options)
    second = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    for metric in np.random.default_rng(0).uniform(1, 1.1, 60):
        first.step(float(metric))
        second.step(float(metric))
        assert first.get_last_lr() == [group["lr"] for group in theirs.param_groups]
    assert first.get_last_lr()[0] == 0.01


@pytest.mark.parametrize("name", [n for n in SCHEDULES if "lambda" not in n])
def test_schedule_resumes_from_its_state(name):
    def fresh():
        optimizer = groups_of(optim, lambda v: nn.Parameter(fastnn.tensor([v])))
        return SCHEDULES[name](lr_scheduler, optimizer)

    whole, first, second = fresh(), fresh(), fresh()
    for _ in range(12):
        whole.step()
    for _ in range(5):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(7):
        second.step()
    assert second.get_last_lr() == whole.get_last_lr()


def test_schedule_errors():
    optimizer = groups_of(optim, lambda v: nn.Parameter(fastnn.tensor([v])))
    with pytest.raises(ValueError, match="total_steps"):
        lr_scheduler.OneCycleLR(optimizer, 0.1)
    with pytest.raises(ValueError, match="3 functions for 2"):
        lr_scheduler.LambdaLR(optimizer, [abs, abs, abs])
    with pytest.raises(ValueError, match="step_size"):
        lr_scheduler.StepLR(optimizer, 0)
    with pytest.raises(ValueError, match="start_factor"):
        lr_scheduler.LinearLR(optimizer, 0.0)
    short = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2)
    short.step()
    short.step()
    with pytest.raises(ValueError, match="2 steps"):
        short.step()
