"""Modules: what they hold, how they load, and how they are shown."""

import copy
import math
import warnings
from collections import OrderedDict

import numpy as np
import pytest

import fastnn
from fastnn import nn
from helpers import array


class Net(nn.Module):
    """One of each thing a module can hold."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(fastnn.ones(3))
        self.register_buffer("mean", fastnn.zeros(3))
        self.register_buffer("cache", fastnn.zeros(2), persistent=False)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        self.plain = fastnn.zeros(5)
        self.bias = None

    def forward(self, x):
        return self.body((x - self.mean) * self.scale)


# ---- what a module holds ---------------------------------------------------------------------------


def test_walk_finds_parameters_buffers_and_children_in_order():
    net = Net()
    expected = ["scale", "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"]
    assert [name for name, _ in net.named_parameters()] == expected
    assert [name for name, _ in net.named_parameters(recurse=False)] == ["scale"]
    assert [name for name, _ in net.named_buffers()] == ["mean", "cache"]
    assert list(net.state_dict()) == ["scale", "mean", *expected[1:]]
    assert [name for name, _ in net.named_modules()] == ["", "body", "body.0", "body.1", "body.2"]
    assert [name for name, _ in net.named_children()] == ["body"]
    assert net.get_submodule("body.2") is net.body[2]
    with pytest.raises(AttributeError, match="no submodule 'head'"):
        net.get_submodule("body.head")


def test_a_shared_parameter_is_listed_once_and_saved_under_both_names():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert len(list(net.parameters())) == 1
    assert list(net.state_dict()) == ["0.weight", "1.weight"]


def test_a_tensor_cannot_silently_replace_a_parameter():
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="parameter 'weight'"):
        layer.weight = fastnn.zeros(2, 2)
    layer.bias = None
    assert len(list(layer.parameters())) == 1


def test_wrong_registrations_raise():
    net = nn.Module()
    with pytest.raises(TypeError, match="Parameter or None"):
        net.register_parameter("w", fastnn.zeros(1))
    with pytest.raises(TypeError, match="Tensor or None"):
        net.register_buffer("b", [1.0])
    with pytest.raises(ValueError, match="dot"):
        net.register_buffer("a.b", None)
    with pytest.raises(TypeError, match="Module or None"):
        net.add_module("m", 3)
    with pytest.raises(NotImplementedError, match="forward"):
        net(1)


def test_parameter_is_a_leaf_sharing_memory_and_survives_deepcopy():
    data = fastnn.zeros(3)
    parameter = nn.Parameter(data)
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert isinstance(parameter, fastnn.Tensor)
    assert not nn.Parameter(data, requires_grad=False).requires_grad
    data.fill_(2)
    assert array(parameter).tolist() == [2, 2, 2]
    assert type(parameter * 2) is fastnn.Tensor
    assert "Parameter containing" in repr(parameter)
    net = Net()
    twin = copy.deepcopy(net)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in net.named_parameters()]
    with fastnn.no_grad():
        twin.scale.fill_(7)
    assert array(net.scale).tolist() == [1, 1, 1]


def test_train_eval_apply_and_requires_grad():
    net = Net()
    assert net.training
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())
    seen = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "ReLU", "Linear", "Sequential", "Net"]
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


def test_conversion_keeps_parameter_objects_and_integer_buffers():
    net = Net()
    net.register_buffer("count", fastnn.zeros(1, dtype=fastnn.int64))
    scale = net.scale
    net(fastnn.ones(1, 3)).sum().backward()
    net.double()
    assert net.scale is scale
    assert scale.dtype is fastnn.float64
    assert scale.grad.dtype is fastnn.float64
    assert net.mean.dtype is fastnn.float64
    assert net.count.dtype is fastnn.int64
    assert net.to(fastnn.bfloat16).scale.dtype is fastnn.bfloat16
    assert net.float().scale.dtype is fastnn.float32
    assert net.to("cpu") is net
    net.zero_grad()
    assert scale.grad is None


def test_zero_grad_can_keep_the_memory():
    net = Net()
    net(fastnn.ones(1, 3)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert all((array(p.grad) == 0).all() for p in net.parameters())


def test_forward_hooks_see_and_replace_and_can_be_removed():
    layer, calls = nn.Linear(2, 2), []
    before = layer.register_forward_pre_hook(lambda m, args: (args[0] * 0,))
    after = layer.register_forward_hook(lambda m, args, y: calls.append(tuple(y.shape)) or y + 1)
    expected = array(layer.bias) + 1
    np.testing.assert_array_equal(array(layer(fastnn.ones(1, 2)))[0], expected)
    assert calls == [(1, 2)]
    before.remove()
    after.remove()
    x = fastnn.ones(1, 2)
    np.testing.assert_array_equal(array(layer(x)), array(layer.forward(x)))


# ---- state_dict ------------------------------------------------------------------------------------


def test_load_reports_everything_at_once_and_changes_nothing():
    net = Net()
    before = {name: array(value).copy() for name, value in net.state_dict().items()}
    state = {name: value + 1 for name, value in net.state_dict().items()}
    del state["scale"], state["body.2.bias"]
    state["head.weight"] = fastnn.zeros(1)
    state["body.0.weight"] = fastnn.zeros(4, 7)
    state["mean"] = [0.0, 0.0, 0.0]
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(state)
    for part in ("scale", "body.2.bias", "head.weight", "(4, 3)", "(4, 7)", "mean", "list"):
        assert part in str(caught.value)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(array(value), before[name])


@pytest.mark.parametrize("bad", [None, 3, "weights", [1.0]], ids=repr)
def test_load_of_what_is_no_state(bad):
    with pytest.raises(TypeError, match=f"state_dict must be a dict.*{type(bad).__name__}"):
        nn.Linear(3, 2).load_state_dict(bad)


def test_load_not_strict_forgives_names_but_not_shapes():
    net = Net()
    result = net.load_state_dict({"scale": fastnn.zeros(3), "extra": fastnn.zeros(1)}, strict=False)
    assert result.unexpected_keys == ["extra"]
    assert "mean" in result.missing_keys
    assert array(net.scale).tolist() == [0, 0, 0]
    with pytest.raises(RuntimeError, match="wrong shape"):
        net.load_state_dict({"scale": fastnn.zeros(4)}, strict=False)


def test_load_warns_of_nan_and_loads():
    layer = nn.Linear(2, 2)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    state["weight"][0, 0] = math.nan
    with pytest.warns(UserWarning, match=r"NaN[\s\S]*weight"):
        layer.load_state_dict(state)
    assert math.isnan(layer.weight[0, 0].item())


def test_load_copies_into_another_dtype_and_assign_takes_the_tensor():
    layer = nn.Linear(2, 2).double()
    layer.load_state_dict({"weight": fastnn.ones(2, 2), "bias": fastnn.ones(2)})
    assert layer.weight.dtype is fastnn.float64
    state = {"weight": fastnn.ones(2, 2), "bias": fastnn.ones(2)}
    layer.load_state_dict(state, assign=True)
    assert layer.weight.dtype is fastnn.float32
    assert isinstance(layer.weight, nn.Parameter)
    state["weight"].fill_(5)
    assert layer.weight[0, 0].item() == 5


def test_state_dict_shares_memory_unless_kept_as_parameters():
    layer = nn.Linear(2, 2)
    assert not layer.state_dict()["weight"].requires_grad
    assert layer.state_dict(keep_vars=True)["weight"] is layer.weight
    assert list(layer.state_dict(prefix="fc.")) == ["fc.weight", "fc.bias"]


# ---- containers ------------------------------------------------------------------------------------


def test_sequential_is_a_list_of_modules_by_position_or_name():
    net = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), act=nn.ReLU()))
    assert list(net.state_dict()) == ["first.weight", "first.bias"]
    assert net.first is net[0]
    assert len(net) == 2
    net.append(nn.Linear(3, 1))
    assert isinstance(net[-1], nn.Linear)
    assert isinstance(net[:2], nn.Sequential)
    assert len(net[:2]) == 2
    net[1] = nn.Tanh()
    assert [type(m).__name__ for m in net] == ["Linear", "Tanh", "Linear"]
    del net[1]
    assert [type(m).__name__ for m in net] == ["Linear", "Linear"]
    assert tuple(net(fastnn.zeros(5, 2)).shape) == (5, 1)
    with pytest.raises(IndexError, match="position 7 of 2"):
        net[7]
    with pytest.raises(TypeError, match="must be a Module"):
        nn.Sequential(nn.ReLU(), lambda x: x)


def test_module_list_dict_and_parameter_list():
    layers = nn.ModuleList([nn.Linear(1, 1)])
    layers.extend([nn.ReLU()]).insert(0, nn.Tanh())
    assert [type(m).__name__ for m in layers] == ["Tanh", "Linear", "ReLU"]
    assert list(layers.state_dict()) == ["1.weight", "1.bias"]
    named = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Linear(1, 1)})
    assert list(named) == ["a", "b"]
    assert "a" in named
    assert len(named) == 2
    assert isinstance(named.pop("a"), nn.ReLU)
    assert "a" not in named
    with pytest.raises(KeyError):
        named["a"]
    with pytest.raises(KeyError, match="attribute of Module"):
        named["forward"] = nn.ReLU()
    values = nn.ParameterList([fastnn.zeros(2), nn.Parameter(fastnn.ones(1))])
    assert len(list(values.parameters())) == 2
    assert list(values.state_dict()) == ["0", "1"]


# ---- looking at a model ----------------------------------------------------------------------------


@pytest.mark.torch
def test_repr_is_torch_style():
    import torch

    def build(n):
        return n.Sequential(
            n.Conv2d(1, 6, 5, bias=False), n.MaxPool2d(2), n.ModuleList([n.Linear(2, 3)]), n.Embedding(3, 2)
        )

    ours, theirs = repr(build(nn)), repr(build(torch.nn))
    assert ours == theirs


def test_summary_counts_and_restores_the_mode():
    net = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10))
    net[0].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fastnn.summary(net, (1, 8, 8))
    assert found.total_parameters == 6 * 25 + 6 + 970
    assert found.trainable_parameters == 970
    assert [row.output_shape for row in found.rows] == [(6, 8, 8), (6, 8, 8), (6, 4, 4), (96,), (10,)]
    assert "1,126" in str(found)
    assert "(N, 6, 8, 8)" in str(found)
    assert net.training
    assert net[0]._hooks.after == {}
