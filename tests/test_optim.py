"""Optimizers and averages of weights against PyTorch, against their formulas, and across a save and a load."""

import math

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim

CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "sgd_dampening": ("SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01}),
    "sgd_nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "sgd_maximize": ("SGD", {"lr": 0.01, "momentum": 0.5, "maximize": True}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam_decay": ("Adam", {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
    "adam_amsgrad": ("Adam", {"lr": 0.05, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw_torch_keywords": ("AdamW", {"lr": 0.01, "foreach": True, "capturable": False}),
    "adam_decoupled": ("Adam", {"lr": 0.01, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    "nadam": ("NAdam", {"lr": 0.01, "weight_decay": 0.1}),
    "nadam_decoupled": (
        "NAdam",
        {"lr": 0.01, "momentum_decay": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ),
    "radam": ("RAdam", {"lr": 0.02, "weight_decay": 0.1}),
    "radam_short": ("RAdam", {"lr": 0.02, "betas": (0.8, 0.7), "decoupled_weight_decay": True, "weight_decay": 0.1}),
    "adamax": ("Adamax", {"lr": 0.02, "weight_decay": 0.1}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop_momentum": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.8}),
    "rmsprop_centered": ("RMSprop", {"lr": 0.01, "centered": True}),
    "rmsprop_all": ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9, "maximize": True}),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
    "adadelta": ("Adadelta", {"lr": 0.5, "weight_decay": 0.1}),
    "adamw_all": ("AdamW", {"lr": 0.03, "weight_decay": 0.2, "amsgrad": True, "maximize": True}),
}
STEPS = 50


def start_values():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in ((4, 3), (5,), (2, 1, 3))]


def gradients_at(step):
    rng = np.random.default_rng(100 + step)
    return [rng.normal(size=shape) + 0.2 for shape in ((4, 3), (5,), (2, 1, 3))]


def make_params(dtype=None):
    return [nn.Parameter(fastnn.tensor(v, dtype=dtype or fastnn.float64)) for v in start_values()]


def run(params, optimizer, steps):
    for step in steps:
        for p, g in zip(params, gradients_at(step), strict=True):
            p.grad = fastnn.tensor(g, dtype=p.dtype)
        optimizer.step()


def values_of(params):
    return [p.detach().numpy().copy() for p in params]


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_equal_torch(name):
    import torch

    kind, options = CASES[name]
    ours = make_params()
    run(ours, getattr(optim, kind)(ours, **options), range(STEPS))
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in start_values()]
    optimizer = getattr(torch.optim, kind)(theirs, **options)
    for step in range(STEPS):
        for p, g in zip(theirs, gradients_at(step), strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    # torch keeps NAdam's product of momenta in float32: every step may be off by its rounding so far.
    atol = STEPS * options["lr"] * STEPS * 2**-24 if kind == "NAdam" else 1e-12
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-10, atol=atol)


def test_adam_follows_its_formula_in_float32():
    (p,) = [nn.Parameter(fastnn.tensor([1.0, -2.0, 0.5]))]
    optimizer = optim.Adam([p], lr=0.1)
    x, m, v = np.array([1.0, -2.0, 0.5]), 0, 0
    for t in range(1, 21):
        g = 2 * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        optimizer.zero_grad()
        (p * p).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), x, rtol=0, atol=20 * 20 * 2**-24)


def test_full_batch_descent_reaches_the_closed_form_solution():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 3)), rng.normal(size=(40, 1))
    w = nn.Parameter(fastnn.zeros(3, 1, dtype=fastnn.float64))
    optimizer = optim.SGD([w], lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        F.mse_loss(fastnn.tensor(a) @ w, fastnn.tensor(b)).backward()
        optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), np.linalg.lstsq(a, b, rcond=None)[0], rtol=1e-9)


@pytest.mark.parametrize("name", ["sgd_nesterov", "adam_amsgrad", "adamw", "nadam", "adagrad", "rmsprop_all", "radam"])
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path):
    kind, options = CASES[name]
    whole = make_params(fastnn.float32)
    run(whole, getattr(optim, kind)(whole, **options), range(20))

    first = make_params(fastnn.float32)
    optimizer = getattr(optim, kind)(first, **options)
    run(first, optimizer, range(8))
    fastnn.save({"params": [p.detach() for p in first], "optimizer": optimizer.state_dict()}, tmp_path / "run")
    saved = fastnn.load(tmp_path / "run")
    second = [nn.Parameter(p) for p in saved["params"]]
    optimizer = getattr(optim, kind)(second, lr=1.0)
    optimizer.load_state_dict(saved["optimizer"])
    run(second, optimizer, range(8, 20))
    for p, q in zip(values_of(whole), values_of(second), strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta"])
def test_state_dict_has_torch_format_and_loads_torch_state(kind):
    import torch

    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in start_values()]
    optimizer = getattr(torch.optim, kind)(theirs, lr=0.01)
    for p, g in zip(theirs, gradients_at(0), strict=True):
        p.grad = torch.tensor(g)
    optimizer.step()
    saved = optimizer.state_dict()
    state = {
        "state": {
            n: {name: fastnn.from_numpy(value.numpy().copy()) for name, value in entry.items()}
            for n, entry in saved["state"].items()
        },
        "param_groups": saved["param_groups"],
    }
    ours = [nn.Parameter(fastnn.from_numpy(p.detach().numpy().copy())) for p in theirs]
    loaded = getattr(optim, kind)(ours, lr=0.5)
    loaded.load_state_dict(state)
    own = loaded.state_dict()
    assert own["param_groups"][0]["lr"] == 0.01
    assert own["param_groups"][0]["params"] == [0, 1, 2]
    assert own["state"].keys() == state["state"].keys()
    assert set(own["state"][0]) == set(state["state"][0])
    assert own["state"][0]["step"] == 1
    run(ours, loaded, [1])
    for p, g in zip(theirs, gradients_at(1), strict=True):
        p.grad = torch.tensor(g)
    optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-6)  # NAdam's mu_product is float32


def test_lion_follows_its_formula():
    rng, beta1, beta2, lr, decay = np.random.default_rng(0), 0.9, 0.99, 0.01, 0.1
    p = nn.Parameter(fastnn.tensor(rng.normal(size=(4, 3))))
    optimizer = optim.Lion([p], lr=lr, betas=(beta1, beta2), weight_decay=decay)
    x, m = p.detach().numpy().copy(), 0
    for _ in range(20):
        g = rng.normal(size=(4, 3))
        x = x - lr * decay * x - lr * np.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        p.grad = fastnn.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-12)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_makes_its_step_orthogonal(shape):
    """Singular values of the iteration, in exact arithmetic, lie in [0.68, 1.13]; bfloat16 adds a few per cent."""
    from fastnn.optim.muon import orthogonalised

    g = np.random.default_rng(0).normal(size=shape)
    x = orthogonalised(fastnn.tensor(g), (3.4445, -4.7750, 2.0315)).double().numpy()
    u, _, v = np.linalg.svd(g, full_matrices=False)
    singular = np.diag(u.T @ x @ v.T)
    assert singular.min() > 0.6
    assert singular.max() < 1.25


@pytest.mark.torch
@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.5}])
def test_muon_equals_torch(options):
    """Both iterate in bfloat16, whose rounding (2^-8) a step of lr passes on; 50 steps add up."""
    import torch

    rng, lr = np.random.default_rng(0), 0.01
    start = rng.normal(size=(6, 10))
    ours, theirs = nn.Parameter(fastnn.tensor(start)), torch.nn.Parameter(torch.tensor(start))
    first, second = optim.Muon([ours], lr=lr, **options), torch.optim.Muon([theirs], lr=lr, **options)
    for _ in range(STEPS):
        g = rng.normal(size=start.shape)
        ours.grad, theirs.grad = fastnn.tensor(g), torch.tensor(g)
        first.step()
        second.step()
    rate = lr * (0.2 * np.sqrt(10) if "adjust_lr_fn" in options else 1)
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=0, atol=STEPS * rate * 5 * 2**-8)


def test_named_parameters_are_accepted_and_named_in_the_state():
    model = nn.Linear(2, 3)
    optimizer = optim.SGD(model.named_parameters(), lr=0.1)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    with pytest.raises(ValueError, match="names"):
        optim.SGD([("weight", model.weight), model.bias], lr=0.1)


def test_groups_have_their_own_options_and_can_be_added():
    a, b, c = make_params()
    optimizer = optim.SGD([{"params": [a], "lr": 1.0}, {"params": b}], lr=0.1)
    optimizer.add_param_group({"params": [c], "lr": 0.0})
    before = values_of([a, b, c])
    run([a, b, c], optimizer, [0])
    for p, old, g, lr in zip([a, b, c], before, gradients_at(0), (1.0, 0.1, 0.0), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), old - lr * g, rtol=1e-14)
    assert "lr: 0.1" in repr(optimizer)
    assert "Parameter Group 2" in repr(optimizer)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["sgd_momentum", "adam"])
def test_a_parameter_unfrozen_later_counts_from_its_own_start(name):
    import torch

    kind, options = CASES[name]
    ours = make_params()
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in start_values()]
    first, second = getattr(optim, kind)(ours, **options), getattr(torch.optim, kind)(theirs, **options)
    for step in range(6):
        for i, g in enumerate(gradients_at(step)):
            if i != 1 or step >= 3:
                ours[i].grad, theirs[i].grad = fastnn.tensor(g), torch.tensor(g)
        first.step()
        second.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-12)


def test_closure_is_recorded_and_its_loss_returned():
    p = nn.Parameter(fastnn.tensor([3.0]))
    optimizer = optim.SGD([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with fastnn.no_grad():
        assert optimizer.step(closure).item() == 9
    assert p.item() == 0
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.item() == 0
    optimizer.zero_grad()
    assert p.grad is None


def test_a_step_keeps_bfloat16_parameters_in_bfloat16():
    p = nn.Parameter(fastnn.ones(4, dtype=fastnn.bfloat16))
    optimizer = optim.Adam([p], lr=0.5)
    p.grad = fastnn.ones(4, dtype=fastnn.bfloat16)
    optimizer.step()
    assert p.dtype is fastnn.bfloat16
    np.testing.assert_allclose(p.detach().float().numpy(), 0.5, atol=2**-8)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda p: optim.SGD(p, lr=0.1), TypeError, "single Tensor"),
        (lambda p: optim.SGD([], lr=0.1), ValueError, "empty"),
        (lambda p: optim.SGD([p, p], lr=0.1), ValueError, "twice"),
        (lambda p: optim.SGD([p * 2], lr=0.1), ValueError, "non-leaf"),
        (lambda p: optim.SGD([3.0], lr=0.1), TypeError, "float"),
        (lambda p: optim.SGD([p], lr=-1), ValueError, "lr"),
        (lambda p: optim.SGD([p], lr=math.nan), ValueError, "lr"),
        (lambda p: optim.SGD([p], nesterov=True), ValueError, "nesterov"),
        (lambda p: optim.SGD([p], momentum=-0.1), ValueError, "momentum"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        (lambda p: optim.Adam([p], eps=-1), ValueError, "eps"),
        (lambda p: optim.RMSprop([p], alpha=-1), ValueError, "alpha"),
        (lambda p: optim.Adagrad([p], lr_decay=-1), ValueError, "lr_decay"),
        (lambda p: optim.Adadelta([p], rho=1.5), ValueError, "rho"),
        (lambda p: optim.NAdam([p], momentum_decay=-1), ValueError, "momentum_decay"),
        (lambda p: optim.Lion([p], betas=(1.0, 0.9)), ValueError, r"betas\[0\]"),
        (lambda p: optim.Muon([p]), ValueError, "2-D"),
        (lambda p: optim.Muon([p.detach().reshape(1, 2)], adjust_lr_fn="x"), ValueError, "adjust_lr_fn"),
        (lambda p: optim.SGD([p], differentiable=True), ValueError, "differentiable"),
        (lambda p: optim.SGD([p], foreech=True), TypeError, "foreech"),
        (lambda p: optim.AdamW([p], weight_decay=-1), ValueError, "weight_decay"),
        (lambda p: optim.Adam([p]).load_state_dict({"state": {}, "param_groups": []}), ValueError, "groups"),
    ],
)
def test_wrong_arguments_raise(make, error, text):
    with pytest.raises(error, match=text):
        make(nn.Parameter(fastnn.ones(2)))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (None, "NoneType"),
        ({}, "param_groups"),
        ({"state": None, "param_groups": []}, "state"),
        ({"state": {0: 3}, "param_groups": []}, "state"),
        ({"state": {}, "param_groups": {"params": [0]}}, "param_groups"),
        ({"state": {}, "param_groups": [{"lr": 1.0}]}, "params"),
    ],
    ids=repr,
)
def test_loading_what_is_no_state(bad, named):
    optimizer = optim.Adam([fastnn.ones(2, requires_grad=True)])
    with pytest.raises(TypeError, match=f"Adam: state_dict.*{named}"):
        optimizer.load_state_dict(bad)


def test_loading_a_state_of_other_shapes_names_both():
    p, q = nn.Parameter(fastnn.ones(2)), nn.Parameter(fastnn.ones(3))
    first, second = optim.Adam([p]), optim.Adam([q])
    p.grad = fastnn.ones(2)
    first.step()
    with pytest.raises(ValueError, match=r"exp_avg has shape \(2,\).*\(3,\)"):
        second.load_state_dict(first.state_dict())
    assert second.state == {}


# ---- averages of weights ------------------------------------------------------------------------------


def small_net(package):
    return package.nn.Sequential(package.nn.Linear(3, 4), package.nn.BatchNorm1d(4), package.nn.Linear(4, 2))


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["ema", "swa", "ema_each", "swa_each", "buffers"])
def test_averaged_model_equals_torch(kind):
    import torch

    def averaged(package, utils, model):
        options = {
            "ema": lambda: {"multi_avg_fn": utils.get_ema_multi_avg_fn(0.8)},
            "swa": dict,
            "ema_each": lambda: {"avg_fn": utils.get_ema_avg_fn(0.8)},
            "swa_each": lambda: {"avg_fn": utils.get_swa_avg_fn()},
            "buffers": lambda: {"multi_avg_fn": utils.get_ema_multi_avg_fn(0.8), "use_buffers": True},
        }[kind]()
        return utils.AveragedModel(model, **options)

    ours, theirs = small_net(fastnn).double(), small_net(torch).double()
    rng, pair = np.random.default_rng(0), None
    for _ in range(5):
        for key, p in theirs.state_dict().items():
            if p.is_floating_point():
                value = rng.normal(size=tuple(p.shape))
                p.copy_(torch.tensor(value))
                ours.state_dict()[key].copy_(fastnn.tensor(value))
        if pair is None:
            pair = averaged(fastnn, optim.swa_utils, ours), averaged(torch, torch.optim.swa_utils, theirs)
        pair[0].update_parameters(ours)
        pair[1].update_parameters(theirs)
    first, second = pair[0].state_dict(), pair[1].state_dict()
    assert list(first) == list(second)
    for key, expected in second.items():
        np.testing.assert_allclose(first[key].numpy(), expected.numpy(), rtol=1e-12, err_msg=key)
    x = rng.normal(size=(6, 3))
    assert pair[0](fastnn.tensor(x)).shape == (6, 2)


@pytest.mark.torch
def test_update_bn_equals_torch():
    import torch

    ours, theirs = small_net(fastnn).double(), small_net(torch).double()
    for key, p in theirs.state_dict().items():
        ours.state_dict()[key].copy_(fastnn.from_numpy(p.numpy()))
    batches = [np.random.default_rng(i).normal(size=(6, 3)) for i in range(4)]
    ours.eval()
    optim.swa_utils.update_bn([(fastnn.tensor(x), None) for x in batches], ours)
    torch.optim.swa_utils.update_bn([torch.tensor(x) for x in batches], theirs)
    assert not ours.training
    assert ours[1].momentum == 0.1
    np.testing.assert_allclose(ours[1].running_mean.numpy(), theirs[1].running_mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours[1].running_var.numpy(), theirs[1].running_var.numpy(), rtol=1e-12)


def test_wrong_averages_raise():
    net = small_net(fastnn)
    with pytest.raises(ValueError, match="decay"):
        optim.swa_utils.get_ema_multi_avg_fn(1.5)
    with pytest.raises(ValueError, match="not both"):
        optim.swa_utils.AveragedModel(net, avg_fn=lambda *x: x[0], multi_avg_fn=lambda *x: None)
    with pytest.raises(ValueError, match="anneal_strategy"):
        optim.swa_utils.SWALR(optim.SGD(net.parameters()), 0.1, anneal_strategy="step")
