"""Language models over bytes: a GRU, an LSTM and a small GPT beside a 4-gram model and bz2.

    python examples/char_lm.py [--models gru lstm gpt] [--steps N] [--output FOLDER]

The text is Python's own reference, `pydoc_data.topics`. It repeats itself from topic to topic, so repeated paragraphs
are dropped before the last tenth is held out. Every method is judged by the bits that it needs for a held-out byte.
Ends with status 1 if the GPT, trained in full, does not beat the 4-gram model.
"""

import argparse
import bz2
import math
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from tqdm import tqdm

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim

SYMBOLS = 256
BATCH, WINDOW = 8, 256  # bytes that a step of training sees
ORDER = 4  # bytes of context of the n-gram model


def split_text():
    """Bytes to train on and held-out bytes: uint8 arrays, no paragraph twice."""
    paragraphs = dict.fromkeys(p for topic in topics.values() for p in re.split("\n\n+", topic.strip("\n")))
    data = np.frombuffer("\n\n".join(paragraphs).encode(), np.uint8)
    return np.split(data, [len(data) * 9 // 10])


# ---- what the networks have to beat -----------------------------------------------------------------------


class NGram:
    """Bytes after contexts of 0 to ORDER bytes, interpolated as in Witten and Bell 1991, equation of method C.

    p(b | context) = (count(context b) + kinds(context) p(b | shorter context)) / (count(context) + kinds(context))
    """

    def __init__(self, data):
        self.counts = [defaultdict(lambda: defaultdict(int)) for _ in range(ORDER + 1)]
        text = data.tobytes()
        for i, symbol in enumerate(data.tolist()):
            for order in range(min(i, ORDER) + 1):
                self.counts[order][text[i - order : i]][symbol] += 1

    def probability(self, symbol, context):
        p = 1 / SYMBOLS
        for order in range(min(len(context), ORDER) + 1):
            seen = self.counts[order].get(context[len(context) - order :])
            if seen is None:
                break
            p = (seen.get(symbol, 0) + len(seen) * p) / (sum(seen.values()) + len(seen))
        return p

    def bits_per_byte(self, data):
        text = data.tobytes()
        bits = (-math.log2(self.probability(s, text[max(0, i - ORDER) : i])) for i, s in enumerate(data.tolist()))
        return sum(bits) / len(data)


def bz2_bits_per_byte(train, held_out):
    """What compressing the held-out bytes after the others adds."""
    alone, both = (len(bz2.compress(x.tobytes(), 9)) for x in (train, np.concatenate([train, held_out])))
    return 8 * (both - alone) / len(held_out)


# ---- the networks -----------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Bytes (N, T) -> logits (N, T, 256) and the state after them. `layer` is nn.GRU or nn.LSTM."""

    def __init__(self, layer, width=512):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 128)
        self.layer = layer(128, width, batch_first=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x, state=None):
        hidden, state = self.layer(self.embedding(x), state)
        return self.head(self.dropout(hidden)), state


class Block(nn.Module):
    """Attention to earlier bytes, and two linear layers, each added to its input."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        n, length, width = x.shape
        heads = self.attention(self.norm_1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.dropout(self.merge(y.transpose(1, 2).reshape(n, length, width)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))


class Gpt(nn.Module):
    """Bytes (N, T) -> logits (N, T, 256), T <= WINDOW. Radford et al. 2019, the head tied to the embedding."""

    def __init__(self, layers=4, width=192, heads=6):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(SYMBOLS, width), nn.Embedding(WINDOW, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x):
        x = self.embedding(x) + self.positions(fastnn.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


MODELS = {  # how to make it, steps of training, largest learning rate
    "gru": (lambda: Recurrent(nn.GRU), 1200, 4e-3),
    "lstm": (lambda: Recurrent(nn.LSTM), 1200, 4e-3),
    "gpt": (Gpt, 2400, 3e-3),
}


def logits_of(model, x):
    return model(x)[0] if isinstance(model, Recurrent) else model(x)


def train(model, data, steps, rate, name):
    """Minimises the cross-entropy of the next byte over random windows."""
    rng = np.random.default_rng(0)
    optimizer = optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
    windows = np.lib.stride_tricks.sliding_window_view(data, WINDOW + 1)
    model.train()
    average = None
    with tqdm(total=steps, desc=f"training the {name}", unit="step") as bar:
        for _ in range(steps):
            batch = fastnn.from_numpy(windows[rng.integers(0, len(windows), BATCH)].astype(np.int64))
            loss = F.cross_entropy(logits_of(model, batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            bits = loss.item() / math.log(2)
            average = bits if average is None else 0.98 * average + 0.02 * bits
            bar.set_postfix(bits=f"{average:.3f}", refresh=False)
            bar.update()


@fastnn.no_grad()
def bits_per_byte(model, data):
    """Mean bits for the bytes of `data` after the first, each with what came before it: all of it for recurrent
    layers, at least half a window for the GPT (the first half window apart)."""
    model.eval()
    x = fastnn.from_numpy(data.astype(np.int64)[None])
    if isinstance(model, Recurrent):
        return F.cross_entropy(logits_of(model, x[:, :-1])[0], x[0, 1:]).item() / math.log(2)
    total, length = 0.0, x.shape[1]
    for scored in range(1, length, WINDOW // 2):
        end = min(scored + WINDOW // 2, length)
        start = max(0, end - 1 - WINDOW)
        logits = model(x[:, start : end - 1])[0, scored - 1 - start :]
        total += F.cross_entropy(logits, x[0, scored:end], reduction="sum").item()
    return total / (length - 1) / math.log(2)


@fastnn.no_grad()
def sample(model, prompt, length, temperature=0.8):
    """The prompt and `length` more bytes, each drawn from what the model expects."""
    model.eval()
    rng = np.random.default_rng(1)
    text, state, fresh = list(prompt), None, list(prompt)
    for _ in range(length):
        if isinstance(model, Recurrent):
            logits, state = model(fastnn.tensor([fresh]), state)
        else:
            logits = model(fastnn.tensor([text[-WINDOW:]]))
        p = F.softmax(logits[0, -1] / temperature, dim=0).numpy().astype(np.float64)
        fresh = [int(rng.choice(SYMBOLS, p=p / p.sum()))]
        text += fresh
    return bytes(text).decode(errors="replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, help="of training, instead of each model's own number")
    parser.add_argument("--output", type=Path, default=Path("build/char_lm"), help="folder of the trained models")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    training, held_out = split_text()
    print(f"{len(training):,} bytes to train on, {len(held_out):,} held out; bits per held-out byte:\n")
    baselines = {
        f"{ORDER}-gram": NGram(training).bits_per_byte(held_out),
        "bz2": bz2_bits_per_byte(training, held_out),
    }
    for name, bits in baselines.items():
        print(f"  {name:<6} {bits:.3f}")

    results = {}
    for name in options.models:
        make, steps, rate = MODELS[name]
        fastnn.manual_seed(0)
        model, start = make(), time.perf_counter()
        train(model, training, options.steps or steps, rate, name)
        results[name] = bits_per_byte(model, held_out)
        against = ", ".join(f"{'beats' if results[name] < b else 'LOSES TO'} {n}" for n, b in baselines.items())
        size = sum(p.numel() for p in model.parameters())
        print(
            f"\n  {name:<6} {results[name]:.3f}   {size:,} parameters, {time.perf_counter() - start:.0f} s: {against}"
        )
        print("\n" + "\n".join("    | " + line for line in sample(model, b"The ", 400).splitlines()))
        fastnn.save_model(model, options.output / f"{name}.safetensors")

    if options.steps is None and results.get("gpt", 0) >= baselines[f"{ORDER}-gram"]:
        sys.exit(f"FAILED: the GPT must beat the {ORDER}-gram model")


if __name__ == "__main__":
    main()
