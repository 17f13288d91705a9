"""Two listings in Keras's layout and words, repaired: an image network, and an embedding with a GRU."""

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
import reference
from fastnn import models, nn, optim

# ---- the network of 93,322 parameters, with weights as Keras lays them out ---------------------------------


def keras_weights(rng):
    """Kernels (height, width, in, out), matrices (in, out), biases: of the layers in order."""
    shapes = [(3, 3, 1, 32), (3, 3, 32, 64), (3, 3, 64, 64), (576, 64), (64, 10)]
    return [(rng.standard_normal(s) * np.sqrt(2 / np.prod(s[:-1])), rng.standard_normal(s[-1])) for s in shapes]


def keras_forward(x, weights):
    """The logits of images (N, height, width, channels), as Keras computes them: flattened channels last."""
    for i, (kernel, bias) in enumerate(weights[:3]):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        x = np.maximum(np.einsum("nyxcij,ijco->nyxo", windows, kernel, optimize=True) + bias, 0)
        if i < 2:
            n, height, width, channels = x.shape
            x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2, channels)
            x = x.max((2, 4))
    (hidden, hidden_bias), (out, out_bias) = weights[3:]
    return np.maximum(x.reshape(len(x), -1) @ hidden + hidden_bias, 0) @ out + out_bias


def state_from_keras(weights, reorder_flat):
    """(height, width, in, out) -> (out, in, height, width); the rows behind the flattening from height, width,
    channel to channel, height, width."""
    state = {}
    for i, (kernel, bias) in enumerate(weights[:3], 1):
        state[f"conv{i}.weight"], state[f"conv{i}.bias"] = kernel.transpose(3, 2, 0, 1), bias
    for i, (matrix, bias) in enumerate(weights[3:], 1):
        if i == 1 and reorder_flat:
            matrix = matrix.reshape(3, 3, 64, 64).transpose(2, 0, 1, 3).reshape(576, 64)
        state[f"fc{i}.weight"], state[f"fc{i}.bias"] = matrix.T, bias
    return {key: fastnn.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()}


@pytest.mark.parametrize("reorder_flat", [True, False])
def test_keras_weights_give_equal_logits(reorder_flat: bool) -> None:
    """With both maps; and not without that of the flattening, which no shape would give away."""
    rng = np.random.default_rng(0)
    weights, x = keras_weights(rng), rng.standard_normal((4, 28, 28, 1))
    model = models.KerasCNN(1, 28).double()
    assert sum(p.numel() for p in model.parameters()) == 93_322
    model.load_state_dict(state_from_keras(weights, reorder_flat))
    with fastnn.no_grad():
        logits = model(fastnn.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))).numpy()
    want = keras_forward(x, weights)
    error = np.abs(logits - want).max() / np.abs(want).max()
    assert error < 1e-13 if reorder_flat else error > 0.1


# ---- Embedding(10000, 64), GRU(64, return_sequences, dropout .1), Dense 64, Dense 10 -----------------------


class Tagger(nn.Module):
    """Tokens (N, T) -> logits (N, T, 10): the listing as printed, without its softmax."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10_000, 64)
        self.gru = nn.GRU(64, 64, batch_first=True, input_dropout=0.1)
        self.hidden = nn.Linear(64, 64)
        self.out = nn.Linear(64, 10)

    def head(self, x):
        return self.out(F.relu(self.hidden(x)))

    def forward(self, tokens):
        return self.head(self.gru(self.embedding(tokens))[0])


class Classifier(Tagger):
    """Tokens (N, T), padded behind `lengths` (N,) of them -> logits (N, 10), from each one's last valid step."""

    def forward(self, tokens, lengths):
        _, last = self.gru(self.embedding(tokens), lengths=lengths)
        return self.head(last[-1])


def listing_reference(model, tokens):
    """The logits of every step in float64 numpy."""
    p = {key: value.numpy().astype(np.float64) for key, value in model.state_dict().items()}
    gru = [p[f"gru.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    y, _ = reference.recurrent("gru", p["embedding.weight"][tokens], *gru, batch_first=True)
    hidden = np.maximum(y @ p["hidden.weight"].T + p["hidden.bias"], 0)
    return hidden @ p["out.weight"].T + p["out.bias"]


def batch(n=16, length=12):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 10_000, (n, length))
    return tokens, rng.integers(1, length + 1, n)


def trained(model, loss_of, steps=60):
    """The losses before and after some steps of Adam on one batch."""
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_listing_sizes() -> None:
    model = Tagger()
    assert sum(p.numel() for p in model.parameters()) == 669_770
    assert sum(p.numel() for p in model.gru.parameters()) == 24_960


def test_listing_with_a_label_for_each_token() -> None:
    fastnn.manual_seed(0)
    model, (tokens, _) = Tagger(), batch()
    x, labels = fastnn.from_numpy(tokens), fastnn.from_numpy(tokens % 10)
    with fastnn.no_grad():
        logits, want = model.eval()(x).numpy(), listing_reference(model, tokens)
    # a chain of 12 steps of sums over 64 and 128 numbers
    np.testing.assert_allclose(logits, want, rtol=0, atol=12 * np.sqrt(128) * 2.0**-24 * np.abs(want).max())
    model.train()
    first, last = trained(model, lambda: F.cross_entropy(model(x).flatten(0, 1), labels.flatten()))
    assert first == pytest.approx(np.log(10), abs=0.3) and last < first / 4


def test_listing_with_a_label_for_each_sequence() -> None:
    fastnn.manual_seed(0)
    model, (tokens, lengths) = Classifier(), batch()
    x, steps = fastnn.from_numpy(tokens), fastnn.from_numpy(lengths)
    final = tokens[np.arange(len(tokens)), lengths - 1]
    labels = fastnn.from_numpy(final % 10)
    other = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 0)
    with fastnn.no_grad():
        logits = model.eval()(x, steps).numpy()
        padded = model(fastnn.from_numpy(other), steps).numpy()
        want = listing_reference(model, tokens)[np.arange(len(tokens)), lengths - 1]
    np.testing.assert_allclose(logits, want, rtol=0, atol=12 * np.sqrt(128) * 2.0**-24 * np.abs(want).max())
    np.testing.assert_array_equal(logits, padded)  # what stands behind the last valid step does not matter
    model.train()
    first, last = trained(model, lambda: F.cross_entropy(model(x, steps), labels))
    assert first == pytest.approx(np.log(10), abs=0.3) and last < first / 4


def test_listing_as_printed_says_what_is_wrong() -> None:
    model, (tokens, _) = Tagger(), batch(4, 7)
    with pytest.raises(ValueError, match=r"\(4, 7, 10\).*\(4, 10\).*\(4,\).*output\[:, -1\]"):
        F.cross_entropy(model(fastnn.from_numpy(tokens)), fastnn.zeros(4, dtype=fastnn.int64))
