"""Graphs: work of a GPU recorded once and replayed."""

import pytest

import fastnn
from helpers import gpu


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
