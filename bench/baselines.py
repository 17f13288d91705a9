"""Peers: each library in a process of its own, asked over a pipe to build a workload, run it, and time it.

In one process two thread pools would fight for the cores; here the idle ones sleep while one runs. Rounds
alternate between the peers, so that a slow phase of the machine hits all alike.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
PEERS = ("fastnn", "torch", "numpy")
REST = 0.005  # seconds before a timing: the threads of the peer before have stopped spinning


def installed() -> list[str]:
    """The peers that this interpreter can import, fastnn first."""
    return [name for name in PEERS if find_spec(name) is not None]


def _serve(name: str, threads: int, connection: Connection) -> None:
    """The worker: builds workloads by number, times them on request, and sends back their outputs."""
    sys.path[:0] = [str(TESTS), str(Path(__file__).parent)]
    from workloads import WORKLOADS

    library = __import__(name)
    if name != "numpy":
        library.set_num_threads(threads)
    prepared: Callable[[], Any] | None = None
    while (request := connection.recv()) is not None:
        kind, argument = request
        try:
            if kind == "prepare":
                prepared = WORKLOADS[argument].prepare(library)
                connection.send(None if prepared is None else WORKLOADS[argument].outputs(prepared()))
            else:
                connection.send(time_calls(prepared, argument))
        except Exception as failure:  # reported with the row, not hidden
            connection.send(failure)


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


def time_calls(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of one call: the mean over as many as fit into `seconds`, at least one."""
    time.sleep(REST)
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    repeats = max(1, min(100_000, int(seconds / max(once, 1e-9))))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


class Peer:
    """A library in a process of its own."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        count = str(threads)
        # Read by the libraries when they load. OpenBLAS would spin for 30 ms after its work.
        settings = {
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "OPENBLAS_NUM_THREADS": count,
            "OPENBLAS_THREAD_TIMEOUT": "20",
        }
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, threads, theirs), daemon=True)
        with environment(settings):
            self._process.start()

    def _ask(self, kind: str, argument: Any) -> Any:
        self._connection.send((kind, argument))
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self.name}: {type(answer).__name__}: {answer}") from answer
        return answer

    def prepare(self, workload: int) -> list[np.ndarray] | None:
        """Builds the workload and gives its outputs; None where this library has no such call."""
        return self._ask("prepare", workload)

    def time(self, seconds: float) -> float:
        return self._ask("time", seconds)

    def cpu_seconds(self) -> float:
        """CPU time that the worker has used, over all its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._connection.send(None)
        self._process.join(10)
