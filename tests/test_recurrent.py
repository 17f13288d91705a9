"""Recurrent layers, cells and packed sequences: against torch in float64, against themselves, and their messages."""

from itertools import product

import numpy as np
import pytest

import fastnn
from fastnn import nn
from fastnn.nn.utils import rnn

torch = pytest.importorskip("torch")

KINDS = {"RNN": {}, "RNN relu": {"nonlinearity": "relu"}, "LSTM": {}, "GRU": {}}
LENGTHS = [3, 7, 1, 7, 5]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def twins(kind, *sizes, **options):
    """The same layer or cell in fastnn and in torch, float64."""
    ours = getattr(nn, kind.split()[0])(*sizes, dtype=fastnn.float64, **options)
    theirs = getattr(torch.nn, kind.split()[0])(*sizes, dtype=torch.float64, **options)
    state = {k: fastnn.from_numpy(v.numpy()) for k, v in theirs.state_dict().items()}
    assert list(state) == list(ours.state_dict())
    ours.load_state_dict(state)
    return ours, theirs


def results(lib, module, arrays, run):
    """The outputs of run(lib, module, *tensors), and the gradients of a weighted sum of them."""
    leaves = [lib.from_numpy(a.copy()).requires_grad_() for a in arrays]
    outputs = run(lib, module, *leaves)
    sum((y * lib.from_numpy(normal(*y.shape, seed=1))).sum() for y in outputs).backward()
    gradients = [v.grad for v in (*leaves, *module.parameters())]
    return [y.detach().numpy() for y in outputs] + [np.zeros(0) if g is None else g.numpy() for g in gradients]


def assert_twins(ours, theirs, arrays, run):
    for got, want in zip(results(fastnn, ours, arrays, run), results(torch, theirs, arrays, run), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12 * max(1, np.abs(want).max(initial=0)))


def flat(y, state):
    return [y, *(state if isinstance(state, tuple) else [state])]


@pytest.mark.parametrize("kind", [*KINDS, "LSTM projected"])
def test_layers_equal_torch(kind: str) -> None:
    """Any two of layers, directions, batch_first, bias, packed, states: outputs, last states and all gradients."""
    projection = {"proj_size": 4} if kind == "LSTM projected" else {}
    for two, first, packed in product([False, True], repeat=3):
        layers, bias, given = 1 + (two ^ first), two ^ packed, first ^ packed
        pair = twins(
            kind,
            3,
            37,
            num_layers=layers,
            bidirectional=two,
            batch_first=first,
            bias=bias,
            **KINDS.get(kind, {}),
            **projection,
        )
        n_states = layers * (1 + two)
        states = [normal(n_states, 5, 4 if projection else 37, seed=2), normal(n_states, 5, 37, seed=3)]
        states = states[: 2 if kind.startswith("LSTM") else 1] if given else []

        def run(lib, module, x, *hx, packed=packed, first=first):
            hx = None if not hx else hx if len(hx) == 2 else hx[0]
            if not packed:
                return flat(*module(x, hx))
            utils = lib.nn.utils.rnn
            y, state = module(utils.pack_padded_sequence(x, LENGTHS, first, enforce_sorted=False), hx)
            return flat(utils.pad_packed_sequence(y, first)[0], state)

        assert_twins(*pair, [normal(5, 7, 3) if first else normal(7, 5, 3), *states], run)


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched_and_cells(kind: str) -> None:
    pair = twins(kind, 3, 6, num_layers=2, bidirectional=True, **KINDS[kind])
    states = [normal(4, 6, seed=s) for s in (1, 2)[: 1 + (kind == "LSTM")]]

    def sequence(lib, module, x, *hx):
        return flat(*module(x, hx if len(hx) == 2 else hx[0]))

    def step(lib, module, x, *hx):
        y = module(x, hx if len(hx) == 2 else hx[0])
        return list(y) if isinstance(y, tuple) else [y]

    assert_twins(*pair, [normal(5, 3), *states], sequence)
    cell = kind.split()[0] + "Cell"
    for shape in ((4,), ()):
        pair = twins(cell, 3, 6, **KINDS[kind])
        states = [normal(*shape, 6, seed=s) for s in (1, 2)[: 1 + (kind == "LSTM")]]
        assert_twins(*pair, [normal(*shape, 3), *states], step)


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths(batch_first: bool) -> None:
    """Beyond its length a sequence has no influence, gives zeros, and its last state is that of its last step."""
    gru = nn.GRU(3, 5, bidirectional=True, batch_first=batch_first, dtype=fastnn.float64)
    x = normal(7, 5, 3)
    x = fastnn.from_numpy(x.transpose(1, 0, 2).copy() if batch_first else x)
    y, h_n = gru(x, lengths=fastnn.tensor([3, 6, 1, 6, 5]))
    assert y.shape == ((5, 7, 10) if batch_first else (7, 5, 10))
    for i, n in enumerate([3, 6, 1, 6, 5]):
        alone = x[i, :n] if batch_first else x[:n, i]
        expected, state = gru(alone)
        got = y[i] if batch_first else y[:, i]
        np.testing.assert_allclose(got[:n].detach().numpy(), expected.detach().numpy(), rtol=0, atol=1e-14)
        assert not got[n:].detach().numpy().any()
        np.testing.assert_allclose(h_n[:, i].detach().numpy(), state.detach().numpy(), rtol=0, atol=1e-14)


def test_reset_before_is_the_papers_form() -> None:
    """Cho et al. write h' = z n + (1 - z) h: negating the z weights converts, to the last bits."""
    gru = nn.GRU(4, 6, reset_after=False, dtype=fastnn.float64)
    w, u, b, c = (p.detach().numpy() for p in gru.all_weights[0])
    x, h = normal(9, 2, 4), np.zeros((2, 6))

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    (wr, wz, wn), (ur, uz, un), (br, bz, bn) = np.split(w, 3), np.split(u, 3), np.split(b + c, 3)
    for step in x:
        r, z = sigmoid(step @ wr.T + h @ ur.T + br), sigmoid(-step @ wz.T - h @ uz.T - bz)
        h = z * np.tanh(step @ wn.T + (r * h) @ un.T + bn) + (1 - z) * h
    np.testing.assert_allclose(gru(fastnn.from_numpy(x))[1][0].detach().numpy(), h, rtol=0, atol=1e-15)


def test_input_dropout_holds_over_time() -> None:
    x = fastnn.ones(50, 8, 40)
    for cell, packed in ((nn.GRU, False), (nn.LSTM, True), (nn.RNN, False)):
        layer = cell(40, 4, input_dropout=0.5)
        masked = layer._masked(x.reshape(400, 40) if packed else x, [8] * 50 if packed else []).numpy().reshape(x.shape)
        assert (masked == masked[0]).all() and set(np.unique(masked)) == {0.0, 2.0}
        assert abs(masked[0].mean() - 1) < 5 / np.sqrt(320)
        layer.eval()
        assert (layer._masked(x, []) == x).all()


def test_dropout_between_layers() -> None:
    layer = nn.LSTM(3, 8, num_layers=2, dropout=1.0)
    x = fastnn.randn(5, 2, 3)
    torch_layer = torch.nn.LSTM(3, 8, num_layers=2, dropout=1.0)
    torch_layer.load_state_dict({k: torch.from_numpy(v.numpy().copy()) for k, v in layer.state_dict().items()})
    expected = torch_layer(torch.from_numpy(x.numpy().copy()))[0].detach().numpy()
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match="between layers"):
        nn.GRU(3, 4, dropout=0.5)


@pytest.mark.parametrize("dtype, roundoff", [("float32", 2.0**-24), ("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_large_batches(kind: str, dtype: str, roundoff: float) -> None:
    """Batches that matrix tiles take, of every dtype, against float64 of the same numbers; on 1 and 3 threads."""
    small = getattr(fastnn, dtype)
    layer = getattr(nn, kind)(40, 70, dtype=small)
    exact = getattr(nn, kind)(40, 70, dtype=fastnn.float64)
    exact.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
    x = fastnn.from_numpy(normal(6, 45, 40)).to(small)
    dy = fastnn.from_numpy(normal(6, 45, 70)).to(small)
    seen = []
    for threads in (1, 3):
        fastnn.set_num_threads(threads)
        leaf = x.detach().requires_grad_()
        layer.zero_grad()
        y = layer(leaf)[0]
        y.backward(dy)
        seen.append(
            [y.detach().double().numpy(), leaf.grad.double().numpy()]
            + [p.grad.double().numpy() for p in layer.parameters()]
        )
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)
    leaf = x.double().requires_grad_()
    y = exact(leaf)[0]
    y.backward(dy.double())
    expected = [y.detach().numpy(), leaf.grad.numpy(), *(p.grad.numpy() for p in exact.parameters())]
    # A state is rounded each step, its 70 products with weights below 0.12 carry that on, and six steps add up.
    for got, want in zip(seen[0], expected, strict=True):
        assert np.abs(got - want).max() <= 6 * np.sqrt(70) * roundoff * np.abs(want).max()


def test_packed_rows_stay_with_their_thread() -> None:
    """Steps of fewer and fewer rows, enough work for several threads: as on one thread."""
    lstm = nn.LSTM(32, 64)
    packed = rnn.pack_sequence([fastnn.from_numpy(normal(n, 32, seed=n)).float() for n in range(48, 0, -2)])
    seen = []
    for threads in (1, 3):
        fastnn.set_num_threads(threads)
        lstm.zero_grad()
        lstm(packed)[0].data.square().sum().backward()
        seen.append([p.grad.numpy() for p in lstm.parameters()])
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.GRU])
def test_kept_weights_follow_changes(make: type) -> None:
    """Weights packed for keeping are packed again after every change of them."""
    layer, exact = make(16, 32), make(16, 32, dtype=fastnn.float64)
    x = fastnn.from_numpy(normal(2, 3, 16)).float()
    for scale in (1.0, 0.5, 2.0):
        with fastnn.no_grad():
            for p in layer.parameters():
                p.mul_(scale)
        exact.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
        for _ in range(3):
            ours, theirs = (m(v if make is nn.GRU else v[0])[0] for m, v in ((layer, x), (exact, x.double())))
            np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=0, atol=1e-5)


def test_activations() -> None:
    """Cells' own tanh and sigmoid: a few units in the last place, also of results near 0; their limits; NaN."""
    sizes = np.concatenate([np.geomspace(1e-30, 1e-3, 200), np.linspace(0.001, 89, 3000), [np.inf]])
    sums = np.concatenate([-sizes, [0.0, np.nan], sizes]).astype(np.float32)
    n, exact = len(sums), sums.astype(np.float64)
    one, start = fastnn.ones(1, 1, 1), fastnn.ones(1, 1, n)
    column, zeros = fastnn.from_numpy(sums[:, None].copy()), fastnn.zeros(n, 1)
    no_state = fastnn.zeros(n, n)
    tanh = fastnn._C.recurrent("rnn_tanh", one, column, no_state)[0]
    sigmoid = fastnn._C.recurrent(
        "gru", one, fastnn.cat([zeros, column, zeros]), fastnn.cat([no_state] * 3), None, None, None, start[0]
    )[0]  # z h, since n is 0
    power = np.exp(-np.abs(exact))
    for got, want in ((tanh, np.tanh(exact)), (sigmoid, np.where(exact < 0, power, 1) / (1 + power))):
        np.testing.assert_allclose(got.numpy().reshape(-1), want, rtol=5 * 2.0**-23, atol=2e-38)


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e38])
def test_numbers_that_tiles_cannot_cut(bad: float) -> None:
    """Infinities, NaN and huge states in a batch for matrix tiles come out as in a small one."""
    layer = nn.RNN(8, 40, nonlinearity="relu")
    h0 = fastnn.rand(1, 40, 40)
    h0[0, 3, 5] = bad
    x = fastnn.randn(4, 40, 8)
    leaf = h0.detach().requires_grad_()
    y, _ = layer(x, leaf)
    y.backward(fastnn.full((4, 40, 40), bad if np.isfinite(bad) else 1.0))
    alone = h0[:, 3:4].detach().requires_grad_()
    expected, _ = layer(x[:, 3:4], alone)
    expected.backward(fastnn.full((4, 1, 40), bad if np.isfinite(bad) else 1.0))
    np.testing.assert_allclose(y[:, 3].detach().numpy(), expected[:, 0].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(leaf.grad[0, 3].numpy(), alone.grad[0, 0].numpy(), rtol=1e-4)
    assert np.isfinite(y[:, :3].detach().numpy()).all()


def test_long_sequence_has_finite_gradients() -> None:
    lstm = nn.LSTM(4, 8)
    x = fastnn.randn(500, 2, 4).requires_grad_()
    lstm(x)[0][-1].sum().backward()
    assert all(np.isfinite(v.grad.numpy()).all() for v in (x, *lstm.parameters()))


def test_second_derivative_is_refused() -> None:
    x = fastnn.randn(3, 2, 4).requires_grad_()
    y = nn.GRU(4, 5)(x)[0].sum()
    with pytest.raises(RuntimeError, match=r"gru.*create_graph|create_graph.*gru"):
        fastnn.autograd.grad(y, [x], create_graph=True)


def test_frozen_weights_and_bad_changes() -> None:
    layer = nn.GRU(4, 5)
    layer.weight_ih_l0.requires_grad_(False)
    x = fastnn.randn(3, 2, 4)
    y = layer(x)[0]
    y.sum().backward()
    assert layer.weight_ih_l0.grad is None and layer.weight_hh_l0.grad is not None
    y = layer(x)[0]
    with fastnn.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="gru"):
        y.sum().backward()
    layer.flatten_parameters()
    assert repr(nn.LSTM(3, 4, num_layers=2, batch_first=True)) == "LSTM(3, 4, num_layers=2, batch_first=True)"


# ---- packed sequences -------------------------------------------------------------------------------


def test_packing_equals_torch() -> None:
    x = normal(7, 5, 2)
    for first, ordered in product([False, True], [False, True]):
        lengths = sorted(LENGTHS, reverse=True) if ordered else LENGTHS
        array = x.transpose(1, 0, 2).copy() if first else x
        leaf = fastnn.from_numpy(array.copy()).requires_grad_()
        ours = rnn.pack_padded_sequence(leaf, fastnn.tensor(lengths), first, enforce_sorted=ordered)
        theirs = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(array), lengths, first, ordered)
        np.testing.assert_array_equal(ours.data.detach().numpy(), theirs.data.numpy())
        np.testing.assert_array_equal(ours.batch_sizes.numpy(), theirs.batch_sizes.numpy())
        assert (ours.sorted_indices is None) == ordered
        padded, known = rnn.pad_packed_sequence(ours, first, padding_value=-1.0, total_length=9)
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs, first, -1.0, 9)
        np.testing.assert_array_equal(padded.detach().numpy(), expected.numpy())
        assert known.tolist() == lengths
        padded.sum().backward()
        assert leaf.grad.sum().item() == 2 * sum(lengths)
    half = ours.to(fastnn.float32)
    assert half.data.dtype == fastnn.float32 and half.batch_sizes is ours.batch_sizes


def test_sequences_of_different_lengths() -> None:
    arrays = [normal(n, 3, seed=n) for n in (2, 5, 1)]
    ours, theirs = [fastnn.from_numpy(a) for a in arrays], [torch.from_numpy(a) for a in arrays]
    for first, side in product([False, True], ["right", "left"]):
        expected = torch.nn.utils.rnn.pad_sequence(theirs, first, 9.0, side)
        np.testing.assert_array_equal(rnn.pad_sequence(ours, first, 9.0, side).numpy(), expected.numpy())
    for a, b in zip(rnn.unpad_sequence(rnn.pad_sequence(ours), [2, 5, 1]), arrays, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)
    packed = rnn.pack_sequence(ours, enforce_sorted=False)
    for a, b in zip(rnn.unpack_sequence(packed), arrays, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


# ---- messages ---------------------------------------------------------------------------------------


def test_messages() -> None:
    x, gru, lstm = fastnn.zeros(5, 3, 4), nn.GRU(4, 6), nn.LSTM(4, 6)
    packed = rnn.pack_padded_sequence(x, [5, 2, 1])
    for kind, pattern, call in (
        (ValueError, r"GRU.*\(5, 3, 7\).*7 features.*4", lambda: gru(fastnn.zeros(5, 3, 7))),
        (ValueError, r"GRU.*2-D .*3-D.*\(4,\)", lambda: gru(fastnn.zeros(4))),
        (ValueError, r"h_0 has shape \(1, 2, 6\).*\(1, 3, 6\)", lambda: gru(x, fastnn.zeros(1, 2, 6))),
        (ValueError, r"c_0 has shape", lambda: lstm(x, (fastnn.zeros(1, 3, 6), fastnn.zeros(1, 3, 5)))),
        (TypeError, r"pair \(h_0, c_0\)", lambda: lstm(x, fastnn.zeros(1, 3, 6))),
        (ValueError, "unbatched.*2-D states", lambda: gru(x[:, 0], fastnn.zeros(1, 1, 6))),
        (ValueError, "has its own", lambda: gru(packed, lengths=[1])),
        (ValueError, r"1\.\.5.*\[6, 1, 1\]", lambda: gru(x, lengths=[6, 1, 1])),
        (ValueError, "2 lengths.*3 sequences", lambda: gru(x, lengths=[1, 1])),
        (ValueError, "enforce_sorted=False", lambda: rnn.pack_padded_sequence(x, [1, 2, 3])),
        (ValueError, "total_length 3.*5", lambda: rnn.pad_packed_sequence(packed, total_length=3)),
        (ValueError, "at least one sequence", lambda: rnn.pad_sequence([])),
        (ValueError, "proj_size.*6.*7", lambda: nn.LSTM(4, 6, proj_size=7)),
        (ValueError, "dropout.*1.5", lambda: nn.GRU(4, 6, 2, dropout=1.5)),
        (ValueError, "hidden_size.*0", lambda: nn.GRU(4, 0)),
        (ValueError, "'tanh' or 'relu'.*'gelu'", lambda: nn.RNN(4, 6, nonlinearity="gelu")),
        (TypeError, "float64", lambda: gru(x.double())),
    ):
        with pytest.raises(kind, match=pattern):
            call()
