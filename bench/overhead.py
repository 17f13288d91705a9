"""Nanoseconds per operation on tiny tensors: what a call costs before any work is done.

    python bench/overhead.py [--json PATH]

fastnn, and torch and numpy where they are installed, alternate in one process on one thread; the
median of the rounds is printed, and torch's time over fastnn's.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

ROUNDS, SECONDS = 15, 0.01
DEPTH = 100  # operations of the graph whose backward is timed

# Expressions in x, y (8 floats), m (8 x 8), b (1 x 1 x 4 x 4), F, and a layer and an optimizer of that size.
FORWARD = {
    "x + y": "x + y",
    "x * 2": "x * 2",
    "x.view(2, 4)": "x.view(2, 4)",
    "m.transpose(0, 1)": "m.transpose(0, 1)",
    "x[2]": "x[2]",
    "x * y": "x * y",
    "relu(x)": "lib.relu(x)",
    "x.sum()": "x.sum()",
    "m @ m": "m @ m",
    "linear(m, m)": "F.linear(m, m)",
    "max_pool2d(b, 2)": "F.max_pool2d(b, 2)",
    "softmax(x, 0)": "F.softmax(x, 0)",
    "x.add_(y)": "z.add_(y)",
    "Linear(8, 8)(m)": "layer(m)",
    "LSTM(8, 8), one step": "lstm(s)",
    "Adam step, 4 tensors": "adam.step()",
}
NUMPY = {
    "x + y": "x + y",
    "x * 2": "x * 2",
    "x.view(2, 4)": "x.reshape(2, 4)",
    "m.transpose(0, 1)": "m.transpose(0, 1)",
    "x[2]": "x[2]",
    "x * y": "x * y",
    "x.sum()": "x.sum()",
    "m @ m": "m @ m",
    "relu(x)": "lib.maximum(x, 0)",
    "x.add_(y)": "lib.add(z, y, z)",
}
RECORDED = ["x + y", "x * 2", "x.view(2, 4)", "relu(x)", "m @ m", "linear(m, m)", "Linear(8, 8)(m)"]


def names_of(lib: Any, requires_grad: bool) -> dict[str, Any]:
    """The variables of the expressions."""
    make = (lambda *s: np.ones(s, np.float32)) if lib is np else lib.ones
    variables = {"lib": lib, "x": make(8), "y": make(8), "z": make(8), "m": make(8, 8), "b": make(1, 1, 4, 4)}
    if lib is not np:
        variables["F"] = lib.nn.functional
        variables["layer"] = lib.nn.Linear(8, 8)
        variables["lstm"], variables["s"] = lib.nn.LSTM(8, 8), make(1, 1, 8)
        variables["adam"] = adam(lib)
    if requires_grad:
        for name in ("x", "m"):
            variables[name].requires_grad_()
    return variables


def adam(lib: Any) -> Any:
    """An optimizer of four tensors that have gradients."""
    tensors = [lib.ones(8, 8).requires_grad_() for _ in range(4)]
    for p in tensors:
        p.grad = lib.ones(8, 8)
    return lib.optim.Adam(tensors, lr=1e-3)


def loop(expression: str, variables: dict[str, Any]) -> Callable[[int], float]:
    """Seconds of n evaluations of the expression, the loop itself included."""
    source = f"def run(n):\n start = clock()\n for _ in range(n): {expression}\n return clock() - start"
    scope = {**variables, "clock": time.perf_counter}
    exec(source, scope)
    return scope["run"]


def backward_loop(lib: Any) -> Callable[[int], float]:
    """Seconds of the backward of n chains of DEPTH additions; building them is not counted."""
    x, one = lib.ones(8).requires_grad_(), lib.ones(8)

    def run(n: int) -> float:
        spent = 0.0
        for _ in range(n):
            y = x
            for _ in range(DEPTH):
                y = y + one
            start = time.perf_counter()
            y.backward(one)
            spent += time.perf_counter() - start
        return spent

    return run


def chain_loop(lib: Any) -> Callable[[int], float]:
    """Seconds of n chains of ten operations, forward and backward."""
    x, y, one = lib.ones(8).requires_grad_(), lib.ones(8), lib.ones(8)

    def run(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            z = x
            for _ in range(5):
                z = z * 2 + y
            z.backward(one)
        return time.perf_counter() - start

    return run


def race(loops: dict[str, Callable[[int], float]], per_call: int = 1) -> dict[str, float]:
    """Nanoseconds of one call for each library: the median over alternating rounds."""
    counts = {name: max(1, int(SECONDS / max(run(20) / 20, 1e-9))) for name, run in loops.items()}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, run in loops.items():
            times[name].append(run(counts[name]) / counts[name] / per_call * 1e9)
    return {name: statistics.median(values) for name, values in times.items()}


def measure() -> dict[str, dict[str, float]]:
    libraries = {name: import_module(name) for name in ("fastnn", "torch", "numpy") if find_spec(name)}
    for name in ("fastnn", "torch"):
        if name in libraries:
            libraries[name].set_num_threads(1)
    frameworks = {name: lib for name, lib in libraries.items() if name != "numpy"}
    empty = race({"loop": loop("None", {})})["loop"]
    rows = {}
    for label, expression in FORWARD.items():
        loops = {name: loop(expression, names_of(lib, False)) for name, lib in frameworks.items()}
        if label in NUMPY:
            loops["numpy"] = loop(NUMPY[label], names_of(np, False))
        rows[label] = {name: ns - empty for name, ns in race(loops).items()}
    for label in RECORDED:
        loops = {name: loop(FORWARD[label], names_of(lib, True)) for name, lib in frameworks.items()}
        rows[f"{label}, recorded"] = {name: ns - empty for name, ns in race(loops).items()}
    rows["10 operations and backward"] = race({name: chain_loop(lib) for name, lib in frameworks.items()})
    rows["backward, per node"] = race({name: backward_loop(lib) for name, lib in frameworks.items()}, DEPTH)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    rows = measure()
    print(f"{'ns per operation':28}{'fastnn':>10}{'torch':>10}{'numpy':>10}{'torch / fastnn':>16}")
    for label, values in rows.items():
        cells = "".join(
            f"{values[name]:10.0f}" if name in values else f"{'-':>10}" for name in ("fastnn", "torch", "numpy")
        )
        faster = f"{values['torch'] / values['fastnn']:15.2f}x" if "torch" in values else f"{'-':>16}"
        print(f"{label:28}{cells}{faster}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
