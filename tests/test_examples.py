"""What the examples are made of; the digits example is `make demo`."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import fastnn

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def char_lm():
    specification = importlib.util.spec_from_file_location("char_lm", EXAMPLES / "char_lm.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_no_paragraph_is_on_both_sides(char_lm) -> None:
    training, held_out = (part.tobytes().decode(errors="replace").split("\n\n") for part in char_lm.split_text())
    assert 8.5 < len("".join(training)) / len("".join(held_out)) < 9.5
    assert not set(training[:-1]) & set(held_out[1:])  # one paragraph is cut in two


def test_ngram_probabilities_add_up_to_one(char_lm) -> None:
    model = char_lm.NGram(np.frombuffer(b"abracadabra abracadabra", np.uint8))
    for context in (b"", b"a", b"abra", b"zzzz", b"dabr"):
        assert sum(model.probability(s, context) for s in range(256)) == pytest.approx(1)
    # after "a": b, c, d, b, " ", b, c, d, b, of 9 with 4 kinds; before that 23 symbols of 6 kinds, 4 of them b
    order_0 = (4 + 6 / 256) / (23 + 6)
    assert model.probability(ord("b"), b"a") == pytest.approx((4 + 4 * order_0) / (9 + 4))


def test_bits_count_every_byte_once(char_lm) -> None:
    """A model that expects all bytes alike needs 8 bits for each, however the windows fall."""

    class Uniform(fastnn.nn.Module):
        def forward(self, x):
            assert x.shape[1] <= char_lm.WINDOW
            return fastnn.zeros(*x.shape, 256)

    rng = np.random.default_rng(0)
    for length in (2, char_lm.WINDOW // 2, char_lm.WINDOW + 1, 1000):
        data = rng.integers(0, 256, length).astype(np.uint8)
        assert char_lm.bits_per_byte(Uniform(), data) == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize("name", ["gru", "lstm", "gpt"])
def test_training_and_sampling(char_lm, name: str) -> None:
    fastnn.manual_seed(0)
    make, _, rate = char_lm.MODELS[name]
    model, data = make(), np.frombuffer(b"to be or not to be, " * 40, np.uint8)
    before = char_lm.bits_per_byte(model, data)
    char_lm.train(model, data, 6, rate, name)
    assert char_lm.bits_per_byte(model, data) < before - 0.5
    text = char_lm.sample(model, b"to ", 5)
    assert text.startswith("to ") and len(text.encode()) >= 8
