"""The tape: accumulation, modes, hooks, changes in place, and its errors."""

import gc

import numpy as np
import pytest

import fastnn
from fastnn.autograd import grad
from helpers import leaf

MILLION = 1_000_000


# ---- backward -----------------------------------------------------------------------------------------


def test_backward_accumulates() -> None:
    x = leaf(1, 2, 3)
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 4, 6]
    first = x.grad
    (x * 3).sum().backward()
    assert x.grad.tolist() == [5, 7, 9]
    assert first is x.grad
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3, 3, 3]


def test_shared_and_reused_inputs() -> None:
    x = leaf(2)
    y = x * x * x + x
    y.sum().backward()
    assert x.grad.item() == 13
    a = leaf(3)
    b = a * 2
    (b * b + b).sum().backward()
    assert a.grad.item() == 26


def test_gradient_argument() -> None:
    x = leaf(1, 2)
    (x * 2).backward(fastnn.tensor([1.0, 10.0], dtype=fastnn.float64))
    assert x.grad.tolist() == [2, 20]
    with pytest.raises((RuntimeError, ValueError), match=r"\(3,\).*\(2,\)|\(2,\).*\(3,\)"):
        (x * 2).backward(fastnn.ones(3, dtype=fastnn.float64))


def test_integers_and_detached_have_no_history() -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"int64|floating"):
        fastnn.tensor([1, 2], requires_grad=True)
    x = leaf(1)
    assert not x.detach().requires_grad and (x > 0).requires_grad is False
    assert (x.detach() * x).requires_grad
    with pytest.raises(RuntimeError, match=r"grad"):
        fastnn.ones(1).sum().backward()
    with pytest.raises(RuntimeError, match=r"requires_grad|detach"):
        x.numpy()


def test_grad_leaves_others_alone() -> None:
    x, y = leaf(2), leaf(3)
    z = (x * x * y).sum()
    dx, dy = grad(z, [x, y])
    assert (dx.item(), dy.item()) == (12, 4)
    assert x.grad is None and y.grad is None
    with pytest.raises(RuntimeError, match=r"input 1|unused|not used|not reach"):
        grad((x * 2).sum(), [x, y])
    assert grad((x * 2).sum(), [x, y], allow_unused=True)[1] is None


def test_grad_of_an_intermediate() -> None:
    x = leaf(2)
    y = x * 3
    z = (y * y).sum()
    (dy,) = grad(z, y)
    assert dy.item() == 12


def test_second_order() -> None:
    x = leaf(2)
    (dx,) = grad((x**3).sum(), x, create_graph=True)
    assert dx.item() == 12 and dx.requires_grad
    (ddx,) = grad(dx.sum(), x)
    assert ddx.item() == 12


def test_retain_graph() -> None:
    x = leaf(1, 2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4, 8]


# ---- errors that name the operation ----------------------------------------------------------------------

USES = {
    "mul": (lambda x: x * x, "mul"),
    "exp": (lambda x: x.exp(), "exp"),
    "sigmoid": (lambda x: x.sigmoid(), "sigmoid"),
    "matmul": (lambda x: x.reshape(1, -1) @ x.reshape(-1, 1), "matmul"),
    "softmax": (lambda x: fastnn.softmax(x, 0), "softmax"),
    "norm": (lambda x: x.norm(), "norm"),
    "conv1d": (lambda x: fastnn.nn.functional.conv1d(x.reshape(1, 1, -1), x.reshape(1, 1, -1)), "conv"),
}


@pytest.mark.parametrize("name", USES)
def test_backward_twice(name: str) -> None:
    use, expected = USES[name]
    y = use(leaf(1, 2, 3)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=rf"(?s){expected}.*|.*retain_graph") as caught:
        y.backward()
    assert "retain_graph" in str(caught.value)


@pytest.mark.parametrize("name", USES)
def test_changed_after_use(name: str) -> None:
    """A saved value that is overwritten in place is found, and the error names the operation that saved it."""
    use, expected = USES[name]
    x = leaf(1, 2, 3)
    middle = x * 1
    y = use(middle)
    middle.add_(1) if name not in ("exp", "sigmoid", "softmax", "norm") else y.add_(1)
    if name == "norm":
        middle.add_(1)
    with pytest.raises(RuntimeError, match=expected) as caught:
        y.sum().backward()
    assert "place" in str(caught.value) or "version" in str(caught.value)


def test_change_after_use_that_does_not_matter() -> None:
    x = leaf(1, 2)
    y = x * 1
    z = y + 1  # saves nothing
    y.mul_(5)
    z.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_non_scalar() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)(scalar|one element).*\(2,\)|\(2,\).*(scalar|one element)"):
        (leaf(1, 2) * 2).backward()


def test_leaf_in_place() -> None:
    x = leaf(1, 2)
    for change in (
        lambda: x.add_(1),
        lambda: x.fill_(0),
        lambda: x.__setitem__(0, 5.0),
        lambda: x.copy_(fastnn.zeros(2, dtype=fastnn.float64)),
    ):
        with pytest.raises(RuntimeError, match=r"leaf"):
            change()
    with fastnn.no_grad():
        x.add_(1)
    assert x.tolist() == [2, 3]
    with pytest.raises(RuntimeError, match=r"leaf"):
        x[:1].add_(1)


# ---- modes ---------------------------------------------------------------------------------------------


def test_no_grad_and_enable_grad() -> None:
    x = leaf(1)
    with fastnn.no_grad():
        assert not (x * 2).requires_grad
        with fastnn.enable_grad():
            assert (x * 2).requires_grad
        assert not fastnn.is_grad_enabled()

    @fastnn.no_grad()
    def silent():
        return x * 2

    assert not silent().requires_grad and (x * 2).requires_grad
    with fastnn.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    with pytest.raises(KeyError), fastnn.no_grad():
        raise KeyError
    assert fastnn.is_grad_enabled()


def test_inference_mode() -> None:
    x = leaf(1)
    with fastnn.inference_mode():
        y = x * 2
        assert not y.requires_grad
    assert fastnn.is_grad_enabled() and (x * 2).requires_grad


def test_grad_mode_is_per_thread() -> None:
    import threading

    seen = []
    with fastnn.no_grad():
        thread = threading.Thread(target=lambda: seen.append(fastnn.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


# ---- hooks, retain_grad --------------------------------------------------------------------------------


def test_hooks() -> None:
    x = leaf(1, 2)
    seen = []
    handle = x.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: g * 10)
    (x * 3).sum().backward()
    assert seen == [[3, 3]] and x.grad.tolist() == [30, 30]
    handle.remove()
    y = x * 1
    y.register_hook(lambda g: g + 1)
    x.grad = None
    (y * 2).sum().backward()
    assert x.grad.tolist() == [30, 30] and len(seen) == 1


def test_hook_errors() -> None:
    x = leaf(1)
    x.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (x * 2).sum().backward()
    y = leaf(1)
    y.register_hook(lambda g: "text")
    with pytest.raises(TypeError, match=r"hook"):
        (y * 2).sum().backward()
    with pytest.raises(TypeError):
        y.register_hook(3)


def test_retain_grad() -> None:
    x = leaf(2)
    y = x * 3
    y.retain_grad()
    (y * y).sum().backward()
    assert y.grad.item() == 12 and x.grad.item() == 36
    assert not y.is_leaf and x.is_leaf


# ---- in-place operations and views ---------------------------------------------------------------------


def test_inplace_chain() -> None:
    x = leaf(1, 2)
    y = x * 2
    y.add_(1).mul_(3)
    y.sum().backward()
    assert x.grad.tolist() == [6, 6]


VIEW_WRITES = {
    "write through a slice": lambda y: y[0].mul_(3),
    "write the base, read the view": lambda y: (y[1:], y.mul_(2)),
    "setitem": lambda y: y.__setitem__(slice(1), 7.0),
    "setitem tensor": lambda y: y.__setitem__((0, slice(None)), y[1] * 2),
    "view of a view": lambda y: y[0:2][1].add_(5),
    "transposed view": lambda y: y.t()[0].mul_(4),
    "two writes": lambda y: (y[0].mul_(2), y[0:1].add_(1)),
    "masked": lambda y: y.__setitem__(y > 3, 0.0),
    "zero": lambda y: y[:, 1].zero_(),
    "copy": lambda y: y[0].copy_(y[1]),
    "read the base transposed": lambda y: (y[0].mul_(3), y.t().exp())[1:],
    "a base that is not contiguous": lambda y: y.t().clone()[1].mul_(3).sum(),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", VIEW_WRITES)
def test_view_writes_like_torch(name: str) -> None:
    """Writes through views reach the history of the base, as in torch."""
    import torch

    outcomes = []
    for lib in (fastnn, torch):
        x = lib.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=lib.float64, requires_grad=True)
        y = x * x
        made = VIEW_WRITES[name](y)
        total = (y * lib.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=lib.float64)).sum()
        for extra in made if isinstance(made, tuple) else (made,):
            if extra is not None:
                total = total + (extra * lib.arange(extra.numel()).reshape(extra.shape)).sum()
        total.backward()
        outcomes.append((y.detach().numpy(), x.grad.numpy()))
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_view_of_a_changed_base() -> None:
    x = leaf(1, 2, 3)
    y = x * 1
    view = y[1:]
    y.mul_(2)
    view.sum().backward()
    assert x.grad.tolist() == [0, 2, 2]


def test_expanded_view_of_a_changed_base() -> None:
    x = leaf(1, 2)
    y = x * 1
    view = y[:, None].expand(2, 3)
    y.mul_(2)
    view.sum().backward()
    assert x.grad.tolist() == [6, 6]


def test_inplace_on_expanded_view() -> None:
    with pytest.raises(ValueError, match=r"several indices|expand|strides"):
        fastnn.zeros(3, 1).expand(3, 4).add_(1)


# ---- size ----------------------------------------------------------------------------------------------


def test_a_million_chained_adds() -> None:
    """Built, run backward and freed without a stack overflow, and the memory comes back."""
    gc.collect()
    before = fastnn.memory_stats()["allocated"]
    x = fastnn.ones(1, requires_grad=True)
    y = x
    for _ in range(MILLION):
        y = y + 1
    y.backward()
    assert x.grad.item() == 1
    del y
    x.grad = None
    z = x
    for _ in range(MILLION):
        z = z + x
    del z  # freed without a backward
    del x
    gc.collect()
    assert fastnn.memory_stats()["allocated"] == before


def test_many_inputs() -> None:
    leaves = [fastnn.ones(1, requires_grad=True) for _ in range(2000)]
    fastnn.cat(leaves).sum().backward()
    assert all(x.grad.item() == 1 for x in leaves)


def test_backward_frees_saved_tensors() -> None:
    x = fastnn.ones(1000, 1000, requires_grad=True)
    before = fastnn.memory_stats()["allocated"]
    y = x.exp().exp().sum()
    held = fastnn.memory_stats()["allocated"]
    y.backward()
    assert held - before >= 8_000_000
    assert fastnn.memory_stats()["allocated"] - before < 8_000_000, "only the gradient is left"


def test_hook_that_holds_its_tensor_is_collected() -> None:
    before = fastnn._C.memory_stats()["allocated"]
    for _ in range(10):
        x = fastnn.ones(1000, requires_grad=True)
        y = x * 2
        x.register_hook(lambda grad, x=x: grad)
        y.register_hook(lambda grad, y=y: grad)
    y.sum().backward()
    assert x.grad is not None
    del x, y
    gc.collect()  # y and its graph, which held x
    gc.collect()  # x
    assert fastnn._C.memory_stats()["allocated"] == before


def test_reference_cycle_is_collected() -> None:
    gc.collect()
    before = fastnn.memory_stats()["allocated"]
    x = fastnn.nn.Parameter(fastnn.ones(1000))
    x.owner = [x]
    (x * 2).sum().backward()
    del x
    gc.collect()
    assert fastnn.memory_stats()["allocated"] == before
