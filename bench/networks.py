"""Networks of the race that do not see images, written once: fastnn and torch share all their names.

Each function takes the library, and gives a model.
"""

import itertools
from types import ModuleType
from typing import Any


def mlp(lib: ModuleType, *widths: int) -> Any:
    """Linear layers of these widths with ReLU between them."""
    layers: list[Any] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [lib.nn.Linear(inputs, outputs), lib.nn.ReLU()]
    return lib.nn.Sequential(*layers[:-1])


def gru_classifier(lib: ModuleType, vocabulary: int = 10_000, width: int = 64) -> Any:
    """Token ids (N, T) -> a logit (N, 1) from the last state of a GRU."""

    class Classifier(lib.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = lib.nn.Embedding(vocabulary, width)
            self.gru = lib.nn.GRU(width, width, batch_first=True)
            self.head = lib.nn.Linear(width, 1)

        def forward(self, tokens: Any) -> Any:
            _, last = self.gru(self.embedding(tokens))
            return self.head(last[-1])

    return Classifier()


def lstm_language_model(lib: ModuleType, vocabulary: int = 10_000, width: int = 650, layers: int = 2) -> Any:
    """Token ids (T, N) -> logits (T N, vocabulary). The medium model of Zaremba et al. 2014, without dropout."""

    class LanguageModel(lib.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = lib.nn.Embedding(vocabulary, width)
            self.lstm = lib.nn.LSTM(width, width, layers)
            self.head = lib.nn.Linear(width, vocabulary)

        def forward(self, tokens: Any) -> Any:
            hidden, _ = self.lstm(self.embedding(tokens))
            return self.head(hidden).reshape(-1, vocabulary)

    return LanguageModel()


def gpt(lib: ModuleType, layers: int, width: int, heads: int, vocabulary: int, context: int) -> Any:
    """Token ids (N, T) -> logits (N T, vocabulary): the decoder of Radford et al. 2019.

    ``cache(n, length)`` and ``decode(token, position, cache)`` generate with kept keys and values.
    """
    nn, F = lib.nn, lib.nn.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc, self.fc_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def heads_of(self, x: Any) -> list[Any]:
            """Queries, keys and values (N, heads, T, width / heads)."""
            n, length, _ = x.shape
            parts = self.attn(self.ln_1(x)).split(width, dim=2)
            return [part.view(n, length, heads, width // heads).transpose(1, 2) for part in parts]

        def after(self, x: Any, y: Any) -> Any:
            """What follows the attention's result y."""
            x = x + self.proj(y.transpose(1, 2).reshape(x.shape))
            return x + self.fc_proj(F.gelu(self.fc(self.ln_2(x))))

        def forward(self, x: Any) -> Any:
            return self.after(x, F.scaled_dot_product_attention(*self.heads_of(x), is_causal=True))

        def decode(self, x: Any, position: int, keys: Any, values: Any) -> Any:
            query, key, value = self.heads_of(x)
            keys[:, :, position : position + 1] = key
            values[:, :, position : position + 1] = value
            seen = slice(0, position + 1)
            return self.after(x, F.scaled_dot_product_attention(query, keys[:, :, seen], values[:, :, seen]))

    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
            self.blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions(lib.arange(tokens.shape[1], device=tokens.device))
            for block in self.blocks:
                x = block(x)
            return self.head(self.ln_f(x)).reshape(-1, vocabulary)

        def cache(self, n: int, length: int) -> list[tuple[Any, Any]]:
            shape = (n, heads, length, width // heads)
            return [(lib.zeros(*shape), lib.zeros(*shape)) for _ in self.blocks]

        def decode(self, token: Any, position: int, cache: list[tuple[Any, Any]]) -> Any:
            x = self.tokens(token) + self.positions(lib.full((1,), position))
            for block, (keys, values) in zip(self.blocks, cache, strict=True):
                x = block.decode(x, position, keys, values)
            return self.head(self.ln_f(x))

    return Gpt()


def encoder(lib: ModuleType, layers: int = 12, width: int = 768, heads: int = 12) -> Any:
    """Vectors (N, T, width) -> the same shape: the encoder of Devlin et al. 2019."""
    layer = lib.nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
    return lib.nn.TransformerEncoder(layer, layers)
