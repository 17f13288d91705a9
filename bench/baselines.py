"""Each contender in a process of its own, asked over a pipe to build a workload, check it, and time it.

In one process two thread pools would fight for the cores; here the idle ones sleep while one runs. Rounds
alternate between the processes, so that a slow phase of the machine hits all alike.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from contenders import Contender, Prepared, thread_settings

TESTS = Path(__file__).parents[1] / "tests"
REST = 0.005  # seconds before a timing: the threads of the contender before have stopped spinning
ULPS = 4


def _arrays(result: Any) -> list[np.ndarray]:
    """The results as arrays; floats that numpy lacks as float64."""
    from cases.case import to_numpy

    def flat(value: Any) -> list[Any]:
        return [v for part in value for v in flat(part)] if isinstance(value, list) else [value]

    return [np.asarray(y) for y in flat(to_numpy(result))]


def _save(prepared: Prepared, folder: Path) -> list[float]:
    for i, y in enumerate(_arrays(prepared.call())):
        np.save(folder / f"{i}.npy", y)
    return prepared.terms


def allowed_error(magnitude: Any, largest: Any, terms: float, dtype: str, rounds_within: float) -> Any:
    """What rounding may do to results of these magnitudes, arrays or tensors, of which `largest` is the largest.

    A sum of n terms in random order is off by about sqrt(n) roundings of the largest result, and is rounded
    once more to its storage type, as are intermediate results of the size of the largest.
    """
    from cases.case import COMPUTE_ROUNDOFF, STORAGE_ROUNDOFF

    computed = ULPS * np.sqrt(max(terms, 1)) * COMPUTE_ROUNDOFF[dtype] * largest
    return computed + STORAGE_ROUNDOFF[dtype] * (magnitude + rounds_within * largest)


def worst_error(prepared: Prepared, folder: Path, terms: list[float], dtype: str) -> float:
    """The largest error against the reference as a share of what rounding may do: wrong above 1."""
    worst, results = 0.0, _arrays(prepared.call())
    for i, (y, n) in enumerate(zip(results, terms * len(results) if len(terms) == 1 else terms, strict=True)):
        expected = np.load(folder / f"{i}.npy")
        if y.shape != expected.shape:
            raise ValueError(f"a result has shape {y.shape}, expected {expected.shape}")
        magnitude = np.abs(expected)
        allowed = allowed_error(magnitude, magnitude.max(initial=0), n, dtype, prepared.rounds_within)
        worst = max(worst, float(np.max(np.abs(y.astype(np.float64) - expected) / (allowed + 1e-300))))
    return worst


def time_calls(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of one call after another: the mean over as many as fit into `seconds`, or of one that takes longer."""
    time.sleep(REST)
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    if once >= seconds:
        return once
    repeats = min(100_000, int(seconds / max(once, 1e-9)))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _serve(contender: Contender, threads: int, connection: Connection) -> None:
    """The worker: builds workloads by number, and on request saves or checks their results, and times them."""
    sys.path[:0] = [str(TESTS), str(Path(__file__).parent)]
    from workloads import WORKLOADS

    library = contender.load(threads)
    prepared: Prepared | None = None
    while (request := connection.recv()) is not None:
        kind, *arguments = request
        try:
            answer: Any = None
            if kind == "prepare":
                prepared = None  # the arrays of the row before are freed first
                prepared = WORKLOADS[arguments[0]].prepare(contender, library, threads)
                answer = prepared is not None
            elif kind == "save":
                answer = _save(prepared, *arguments)
            elif kind == "check":
                answer = worst_error(prepared, *arguments)
            else:
                answer = time_calls(prepared.call, *arguments)
            connection.send(answer)
        except Exception as failure:  # reported with the row, not hidden
            connection.send(RuntimeError(f"{contender.name}: {type(failure).__name__}: {failure}"))


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """os.environ with other values for a while: a child process started inside gets them."""
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class Peer:
    """A contender in its process."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.name = contender.name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(contender, threads, theirs), daemon=True)
        with environment({**thread_settings(threads), **contender.environment}):
            self._process.start()

    def _ask(self, *request: Any) -> Any:
        self._connection.send(request)
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def prepare(self, workload: int) -> bool:
        """Builds the workload; False where this contender has no such call."""
        return self._ask("prepare", workload)

    def save(self, folder: Path) -> list[float]:
        """Writes the results into the folder, 0.npy and so on; gives the number of terms of each."""
        return self._ask("save", folder)

    def check(self, folder: Path, terms: list[float], dtype: str) -> float:
        return self._ask("check", folder, terms, dtype)

    def time(self, seconds: float) -> float:
        return self._ask("time", seconds)

    def cpu_seconds(self) -> float:
        """CPU time that the worker has used, over all its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._connection.send(None)
        self._process.join(10)
