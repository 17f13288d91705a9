"""The ceilings of this machine, measured: float32 and AMX peaks, bandwidth by array size, cost of a parallel region.

    python bench/ceilings.py [--threads N] [--json PATH] [--quick]

The loops are in ceilings.cpp, compiled here with the system's C++ compiler for this very CPU. Every
figure is the best of several rounds: a ceiling is what the machine can do, not what it does on average.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("ceilings.cpp")
FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu++17"]
KIB = 1024
SIZES = {"L2": 384 * KIB, "L3": 16 * KIB * KIB, "DRAM": 256 * KIB * KIB}  # bytes of all arrays together


def compile_library() -> ctypes.CDLL | None:
    """The measuring loops, or None where there is no compiler."""
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "ceilings.so"
        done = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} failed:\n{done.stderr}")
        library = ctypes.CDLL(str(target))
    for name in ("flops_fma", "flops_amx", "copy", "triad", "fork_join"):
        getattr(library, name).restype = ctypes.c_double
    library.make_array.restype = ctypes.c_void_p
    library.free_array.argtypes = [ctypes.c_void_p]
    return library


def best_rate(run: Callable[[int], tuple[float, float]], seconds: float, rounds: int) -> float:
    """The best work per second of `run(repeats) -> (seconds, work)` in rounds of about `seconds` each."""
    repeats, rates = 1, []
    while len(rates) < rounds:
        spent, work = run(repeats)
        if spent > seconds / 4:  # a round that the scheduler interrupted is followed by one that is too short
            rates.append(work / spent)
        repeats = max(1, round(repeats * min(64.0, seconds / spent)))
    return max(rates)


def flops_rate(function: Any, threads: int, seconds: float, rounds: int) -> float:
    def run(repeats: int) -> tuple[float, float]:
        flops = ctypes.c_double()
        spent = function(threads, ctypes.c_int64(repeats), ctypes.byref(flops))
        return spent, flops.value

    return best_rate(run, seconds, rounds)


def bandwidth(library: ctypes.CDLL, kind: str, size: int, threads: int, seconds: float, rounds: int) -> float:
    """Bytes per second that the loop reads and writes, over arrays of `size` bytes together."""
    n_arrays = 2 if kind == "copy" else 3
    n = size // n_arrays // 4
    arrays = [library.make_array(ctypes.c_int64(n), threads) for _ in range(n_arrays)]

    def run(repeats: int) -> tuple[float, float]:
        pointers = [ctypes.c_void_p(a) for a in arrays]
        spent = getattr(library, kind)(*pointers, ctypes.c_int64(n), threads, ctypes.c_int64(repeats))
        return spent, 4.0 * n * n_arrays * repeats

    try:
        return best_rate(run, seconds, rounds)
    finally:
        for array in arrays:
            library.free_array(array)


def measure(threads: int, quick: bool = False) -> dict[str, Any]:
    """Every ceiling at 1 thread and at `threads`: GFLOP/s, GB/s, microseconds. Empty without a compiler."""
    library = compile_library()
    if library is None:
        return {}
    seconds, rounds = (0.02, 5) if quick else (0.1, 9)
    result: dict[str, Any] = {"threads": threads, "vector_lanes": library.vector_lanes(), "rows": {}}

    def row(name: str, unit: str, value: Callable[[int], float]) -> None:
        result["rows"][name] = {"unit": unit, **{str(t): value(t) for t in sorted({1, threads})}}

    row("fma float32", "GFLOP/s", lambda t: flops_rate(library.flops_fma, t, seconds, rounds) / 1e9)
    if library.amx_available():
        row("amx bfloat16", "GFLOP/s", lambda t: flops_rate(library.flops_amx, t, seconds, rounds) / 1e9)
    for level, size in SIZES.items():
        if quick and level == "DRAM":
            size //= 2
        for kind in ("copy", "triad"):
            row(f"{kind} {level}", "GB/s", lambda t, k=kind, s=size: bandwidth(library, k, s, t, seconds, rounds) / 1e9)

    def fork_join(t: int) -> float:
        rate = best_rate(lambda repeats: (library.fork_join(t, ctypes.c_int64(repeats)), repeats), seconds / 4, rounds)
        return 1e6 / rate

    row("fork and join", "us", fork_join)
    return result


def show(result: dict[str, Any]) -> str:
    """The ceilings as a table."""
    if not result:
        return "ceilings: no C++ compiler found, none measured"
    counts = sorted({1, result["threads"]})
    lines = [f"{'ceiling':16} {'unit':8}" + "".join(f"{f'{t} thread' + 's' * (t > 1):>12}" for t in counts)]
    for name, values in result["rows"].items():
        lines.append(f"{name:16} {values['unit']:8}" + "".join(f"{values[str(t)]:12.2f}" for t in counts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--quick", action="store_true", help="shorter rounds: about 4 seconds in all")
    options = parser.parse_args()
    result = measure(options.threads, options.quick)
    print(show(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
