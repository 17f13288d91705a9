"""Graphs: work of a GPU recorded once and replayed, training steps among it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastnn
from fastnn import nn, optim
from helpers import gpu


def capturing() -> fastnn.cuda.graph:
    return fastnn.cuda.graph(fastnn.cuda.CUDAGraph())


@gpu
def test_a_graph_replays_on_new_inputs() -> None:
    x = fastnn.arange(8, dtype=fastnn.float32, device="cuda")
    graph = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(graph):
        assert fastnn.cuda.is_current_stream_capturing()
        y = (x * 2 + 1).exp().log()
    assert not fastnn.cuda.is_current_stream_capturing()
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == pytest.approx([2 * value + 1] * 8)


@gpu
def test_memory_of_a_graph_is_its_own_until_it_goes() -> None:
    fastnn.cuda.empty_cache()
    before = fastnn.cuda.memory_reserved()
    x = fastnn.ones(1 << 16, device="cuda")
    graph = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(graph):
        y = (x + 1) * 2
    others = [fastnn.zeros(1 << 16, device="cuda") for _ in range(4)]  # would take what x + 1 left, were it free
    graph.replay()
    assert y[3].item() == 4.0
    assert all(other[3].item() == 0.0 for other in others)
    again = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(again, pool=graph.pool()):
        z = x * 3
    again.replay()
    assert z[0].item() == 3.0
    del x, y, z, others, graph, again
    fastnn.cuda.empty_cache()
    assert fastnn.cuda.memory_reserved() == before


@gpu
@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.copy_(fastnn.ones(4)),
        lambda x: repr(x),
        lambda x: fastnn.cuda.synchronize(),
    ],
)
def test_reading_while_capturing_raises(read) -> None:
    x = fastnn.ones(4, device="cuda")
    graph = fastnn.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"), fastnn.cuda.graph(graph):
        read(x)
    assert not fastnn.cuda.is_current_stream_capturing()
    assert x.tolist() == [1.0] * 4
    with pytest.raises(RuntimeError, match="no finished capture"):
        graph.replay()
    with fastnn.cuda.graph(graph):  # and can be used again
        y = x + 1
    graph.replay()
    assert y.tolist() == [2.0] * 4


# ---- a training step ------------------------------------------------------------------------------


class Net(nn.Module):
    """Linear layers about a norm, with dropout: each replay must draw anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: fastnn.Tensor) -> fastnn.Tensor:
        return self.second(self.drop(self.norm(self.first(x)).relu()))


N_BATCHES, N_WARM, BATCH = 8, 3, 10


def batches(device: str = "cuda") -> list[tuple[fastnn.Tensor, fastnn.Tensor]]:
    rng = np.random.default_rng(0)
    numbers = [(rng.normal(size=(BATCH, 6)).astype(np.float32), rng.integers(0, 3, BATCH)) for _ in range(N_BATCHES)]
    return [(fastnn.tensor(x, device=device), fastnn.tensor(y, device=device)) for x, y in numbers]


def train(make: Callable[[Any], Any], captured: bool) -> tuple[list[float], list[np.ndarray], dict[str, Any]]:
    """The losses of each batch, then parameters and buffers, and the optimizer's state."""
    fastnn.manual_seed(3)
    model = Net().to("cuda")
    optimizer = make(model.parameters())

    def step(x: fastnn.Tensor, y: fastnn.Tensor) -> fastnn.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss.detach()

    data = batches()
    n_eager = N_WARM if captured else N_BATCHES
    losses = [step(x, y).item() for x, y in data[:n_eager]]
    if captured:
        x, y = (fastnn.empty_like(part) for part in data[0])
        optimizer.zero_grad()
        graph = fastnn.cuda.CUDAGraph()
        with fastnn.cuda.graph(graph):
            loss = step(x, y)
        for next_x, next_y in data[n_eager:]:
            x.copy_(next_x)
            y.copy_(next_y)
            graph.replay()
            losses.append(loss.item())
    found = [*model.parameters(), *model.buffers()]
    return losses, [tensor.detach().cpu().numpy() for tensor in found], optimizer.state_dict()


MAKERS: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda params: optim.AdamW(params, lr=0.05, capturable=True),
    "amsgrad": lambda params: optim.Adam(params, lr=0.05, amsgrad=True, weight_decay=0.1, capturable=True),
    "radam": lambda params: optim.RAdam(params, lr=0.05, capturable=True),  # tractable from the 6th step on
    "adamax": lambda params: optim.Adamax(params, lr=0.05, capturable=True),
    "adagrad": lambda params: optim.Adagrad(params, lr=0.1, lr_decay=0.2, capturable=True),
    "rmsprop": lambda params: optim.RMSprop(params, momentum=0.5, centered=True, capturable=True),
    "sgd": lambda params: optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
}


@gpu
@pytest.mark.parametrize("name", MAKERS)
def test_a_captured_training_step_equals_the_eager_one(name: str) -> None:
    """Both run the same kernels on the same numbers, random ones among them.

    What may differ is a power, by some units in the last place of a float64: counted by the GPU or by the host.
    """
    losses, tensors, counted = train(MAKERS[name], captured=True)
    expected_losses, expected, state = train(counted_by_the_host(MAKERS[name]), captured=False)
    np.testing.assert_allclose(losses, expected_losses, 2.0**-20)
    for got, want in zip(tensors, expected, strict=True):
        np.testing.assert_allclose(got, want, 2.0**-20, 2.0**-22)
    for number, entry in state["state"].items():
        if "step" in entry:
            assert isinstance(counted["state"][number]["step"], fastnn.Tensor)
            assert counted["state"][number]["step"].item() == entry["step"] == N_BATCHES


def counted_by_the_host(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def made(params: Any) -> Any:
        optimizer = make(params)
        for group in optimizer.param_groups:
            group["capturable"] = False
        return optimizer

    return made


@gpu
def test_dropout_of_a_replay_is_that_of_the_next_call() -> None:
    x = fastnn.ones(1000, device="cuda")
    graph = fastnn.cuda.CUDAGraph()
    with fastnn.cuda.graph(graph):
        y = nn.functional.dropout(x, 0.5)
        z = fastnn.rand(4, device="cuda")
    fastnn.manual_seed(11)
    replayed = []
    for _ in range(3):
        graph.replay()
        replayed.append((y.tolist(), z.tolist()))
    fastnn.manual_seed(11)
    for kept, drawn in replayed:
        assert kept == nn.functional.dropout(x, 0.5).tolist()
        assert drawn == fastnn.rand(4, device="cuda").tolist()
    assert replayed[0] != replayed[1]
    with (
        pytest.raises(RuntimeError, match="default generator only"),
        capturing(),
    ):
        fastnn.rand(4, device="cuda", generator=fastnn.Generator())


@gpu
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_first_step_is_not_captured(name: str) -> None:
    """It makes the states: a replay would make them anew."""
    weight = nn.Parameter(fastnn.ones(4, device="cuda"))
    weight.grad = fastnn.ones(4, device="cuda")
    optimizer = MAKERS[name]([weight])
    with (
        pytest.raises(RuntimeError, match="take a step before the capture"),
        capturing(),
    ):
        optimizer.step()
    optimizer.step()
    assert weight.detach().cpu().numpy().max() < 1


@gpu
@pytest.mark.parametrize(("kind", "advice"), [("Adam", "capturable=True"), ("NAdam", "after each replay")])
def test_steps_that_the_host_counts_are_not_captured(kind: str, advice: str) -> None:
    weight = nn.Parameter(fastnn.ones(4, device="cuda"))
    weight.grad = fastnn.ones(4, device="cuda")
    optimizer = getattr(optim, kind)([weight], lr=0.1)
    optimizer.step()
    with (
        pytest.raises(RuntimeError, match=f"{kind}: its steps are counted on the host.*{advice}"),
        capturing(),
    ):
        optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 1


@gpu
def test_a_norm_that_must_be_finite_cannot_be_clipped_in_a_capture() -> None:
    weight = nn.Parameter(fastnn.ones(4, device="cuda"))
    weight.grad = fastnn.ones(4, device="cuda")
    with (
        pytest.raises(RuntimeError, match="while a CUDA graph is captured"),
        capturing(),
    ):
        nn.utils.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)


# ---- counts of steps on the GPU, and their state --------------------------------------------------


def stepped(state: dict[str, Any] | None, capturable: bool, device: str = "cuda") -> tuple[Any, list[float]]:
    """A step of Adam that goes on from a state: its state then, and the parameter."""
    weight = nn.Parameter(fastnn.tensor([1.0, -2.0, 3.0], device=device))
    optimizer = optim.Adam([weight], lr=0.1, capturable=capturable)
    if state is not None:
        optimizer.load_state_dict(state)
        optimizer.param_groups[0]["capturable"] = capturable
    weight.grad = fastnn.tensor([0.5, 0.25, -1.0], device=device)
    optimizer.step()
    return optimizer.state_dict(), weight.tolist()


@gpu
def test_a_state_goes_from_one_count_to_the_other(tmp_path: Path) -> None:
    counted, _ = stepped(None, capturable=True)
    step = counted["state"][0]["step"]
    assert (step.device.type, step.dtype, step.shape, step.item()) == ("cuda", fastnn.float32, (), 1.0)
    assert counted["param_groups"][0]["capturable"] is True
    fastnn.save(counted, tmp_path / "state")
    by_host, weight = stepped(fastnn.load(tmp_path / "state"), capturable=False)
    assert by_host["state"][0]["step"] == 2
    on_cpu, cpu_weight = stepped(fastnn.load(tmp_path / "state"), capturable=True, device="cpu")
    assert on_cpu["state"][0]["step"] == 2  # capturable is about parameters of a GPU
    by_gpu, gpu_weight = stepped(by_host, capturable=True)
    assert by_gpu["state"][0]["step"].item() == 3.0
    assert counted["state"][0]["step"].item() == 1.0  # a loaded state is a copy
    np.testing.assert_allclose(weight, cpu_weight, 1e-6)
    np.testing.assert_allclose(gpu_weight, stepped(by_host, capturable=False)[1], 1e-6)


@gpu
@pytest.mark.torch
def test_a_state_with_counts_of_the_gpu_is_torchs() -> None:
    import torch

    counted, _ = stepped(None, capturable=True)
    state = {
        number: {name: torch.tensor(value.cpu().numpy()) for name, value in entry.items()}
        for number, entry in counted["state"].items()
    }
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = torch.optim.Adam([weight], lr=0.5)
    optimizer.load_state_dict({"state": state, "param_groups": [{**counted["param_groups"][0], "capturable": False}]})
    weight.grad = torch.tensor([0.5, 0.25, -1.0])
    optimizer.step()
    np.testing.assert_allclose(stepped(counted, capturable=True)[1], weight.tolist(), 1e-6)


@gpu
def test_each_parameter_has_its_count() -> None:
    """Of more parameters than a launch takes, two are frozen for a step each: as on the CPU, where the host counts."""
    results = []
    for device in ("cuda", "cpu"):
        weights = [nn.Parameter(fastnn.full((n % 3 + 1,), 1.0, device=device)) for n in range(58)]
        optimizer = optim.AdamW(weights, lr=0.1, capturable=True)
        for frozen in (3, 57, None):
            for number, weight in enumerate(weights):
                gradient = fastnn.full_like(weight.detach(), 0.1 * (number + 1))
                weight.grad = None if number == frozen else gradient
            optimizer.step()
        counts = [int(optimizer.state[weight]["step"]) for weight in weights]
        assert [number for number, count in enumerate(counts) if count == 2] == [3, 57]
        results.append(np.concatenate([weight.detach().cpu().numpy() for weight in weights]))
    np.testing.assert_allclose(*results, 2.0**-20)


def test_counts_of_another_device_shape_or_type_are_refused() -> None:
    weight, grad = fastnn.ones(2), fastnn.ones(2)
    states = [[fastnn.zeros(2)], [fastnn.zeros(2)]]
    coefficients = [0.9, 0.99, 0.1, 1e-8]

    def step(counts: Any) -> None:
        fastnn._C.optimizer_step("adam", [weight], [grad], states, coefficients, 0.0, 1.0, False, counts)

    with pytest.raises(ValueError, match="expected 1 counts of steps, one a parameter, got 0"):
        step([])
    with pytest.raises(ValueError, match=r"step\[0\] has shape \(1,\) and type float32; expected one float32 number"):
        step([fastnn.zeros(1)])
    with pytest.raises(fastnn.DeviceError, match=r"step\[0\] is on cpu; counts that are tensors are kept on a GPU"):
        step([fastnn.tensor(1.0)])
