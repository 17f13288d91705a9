"""The race: fastnn beside the peers installed (torch, numpy), in one run, with the machine's measured ceilings.

    python bench/run.py [--quick] [--threads N] [--only PATTERN] [--json PATH] [--plot PATH]

Every peer runs in a process of its own. Rounds alternate between the peers; medians are printed, and the
ratio is the peer's time over fastnn's: above 1 fastnn is faster. All rows are shown, whichever way they
fall. The outputs of the peers are compared in the same run; a row whose outputs differ is an error.
"""

import argparse
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

import ceilings  # noqa: E402
from baselines import Peer, installed  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402

RESULTS = HERE / "results" / "race.json"


def compare(workload: Workload, outputs: dict[str, list[np.ndarray]]) -> None:
    """All peers gave the same numbers."""
    (first, expected), *others = outputs.items()
    for name, actual in others:
        for y, e in zip(actual, expected, strict=True):
            error = np.abs(y - e).max(initial=0) / max(np.abs(e).max(initial=0), 1e-30)
            if y.shape != e.shape or not error <= workload.tolerance:
                raise SystemExit(f"{workload.name}: the outputs of {name} and {first} differ by {error:.1e}")


def race(number: int, workload: Workload, peers: list[Peer], rounds: int, seconds: float) -> dict[str, Any]:
    """Median, best and all times of each peer that has the call."""
    outputs = {peer.name: peer.prepare(number) for peer in peers}
    running = [peer for peer in peers if outputs[peer.name] is not None]
    compare(workload, {name: values for name, values in outputs.items() if values is not None})
    times: dict[str, list[float]] = {peer.name: [] for peer in running}
    for turn in range(rounds):
        for peer in running[turn % len(running) :] + running[: turn % len(running)]:
            times[peer.name].append(peer.time(seconds))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "name": workload.name,
        "family": workload.family,
        "flops": workload.flops,
        "bytes": workload.bytes,
        "seconds": medians,
        "best": {name: min(values) for name, values in times.items()},
    }


def rate(row: dict[str, Any], limits: dict[str, Any], threads: int) -> tuple[str, str]:
    """("123.4 GFLOP/s", "78 %") of fastnn's median: against the FMA peak, or against the copy of as many bytes."""
    seconds = row["seconds"]["fastnn"]
    rows = limits.get("rows", {})
    if row["flops"]:
        value, unit, ceiling = row["flops"] / seconds / 1e9, "GFLOP/s", "fma float32"
    elif row["bytes"]:
        level = next((name for name, size in ceilings.SIZES.items() if row["bytes"] <= 2 * size), "DRAM")
        value, unit, ceiling = row["bytes"] / seconds / 1e9, "GB/s", f"copy {level}"
    else:
        return "", ""
    share = f"{100 * value / rows[ceiling][str(threads)]:.0f} %" if ceiling in rows else ""
    return f"{value:.1f} {unit}", share


def ratio(row: dict[str, Any], peer: str) -> float | None:
    return row["seconds"][peer] / row["seconds"]["fastnn"] if peer in row["seconds"] else None


def show_time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def line(row: dict[str, Any], limits: dict[str, Any], threads: int) -> str:
    speed, share = rate(row, limits, threads)
    cells = [f"{row['name']:52.52}", f"{show_time(row['seconds']['fastnn']):>10}", f"{speed:>15}", f"{share:>6}"]
    for peer in ("torch", "numpy"):
        faster = ratio(row, peer)
        cells += [f"{show_time(row['seconds'].get(peer)):>10}", f"{'-' if faster is None else f'{faster:.2f}x':>7}"]
    return " ".join(cells)


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for peer in ("torch", "numpy"):
        ratios = [r for row in rows if (r := ratio(row, peer)) is not None]
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            wins = sum(r >= 1 for r in ratios)
            lines.append(
                f"against {peer}: geometric mean {mean:.2f}x over {len(ratios)} rows, {wins} of them at 1.0x or more"
            )
    return "\n".join(lines) or "no peer is installed: fastnn's own times only"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.28 * len(rows)))
    for offset, peer in ((-0.2, "torch"), (0.2, "numpy")):
        pairs = [(i, r) for i, row in enumerate(rows) if (r := ratio(row, peer)) is not None]
        if pairs:
            axes.barh([i + offset for i, _ in pairs], [r - 1 for _, r in pairs], 0.38, left=1, label=f"{peer} / fastnn")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time of the peer / time of fastnn (right of 1: fastnn is faster)")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def machine_seconds() -> float:
    """CPU time that all processes have used since the machine started."""
    user, nice, system, _, _, irq, soft, steal, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    model = next(
        (text.split(":")[1].strip() for text in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in text),
        "",
    )
    cpus = len(os.sched_getaffinity(0))
    return f"{model or platform.processor()}, {cpus} CPUs, {platform.system()} {platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the rows and short rounds: under 45 seconds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", metavar="PATTERN", default="", help="rows whose name matches this regular expression")
    parser.add_argument(
        "--json", type=Path, help=f"where to write the figures (a full run: {RESULTS.relative_to(HERE.parent)})"
    )
    parser.add_argument("--plot", type=Path, help="draw the ratios into this PNG")
    options = parser.parse_args()
    chosen = [
        (i, w) for i, w in enumerate(WORKLOADS) if re.search(options.only, w.name) and (w.quick or not options.quick)
    ]
    if not chosen:
        raise SystemExit(f"no workload matches {options.only!r}")
    rounds, seconds = (5, 0.02) if options.quick else (11, 0.1)

    start = time.perf_counter()
    limits = ceilings.measure(options.threads, quick=options.quick)
    print(f"{machine()}; {options.threads} threads\n{ceilings.show(limits)}\n")
    peers = [Peer(name, options.threads) for name in installed()]
    print(f"{'':52} {'fastnn':>10} {'speed':>15} {'of max':>6} {'torch':>10} {'ratio':>7} {'numpy':>10} {'ratio':>7}")
    rows = []
    used = machine_seconds() - sum(peer.cpu_seconds() for peer in peers)
    raced = time.perf_counter()
    try:
        for number, workload in chosen:
            rows.append(race(number, workload, peers, rounds, seconds))
            print(line(rows[-1], limits, options.threads), flush=True)
        used = machine_seconds() - sum(peer.cpu_seconds() for peer in peers) - used
        foreign = used / (time.perf_counter() - raced)
    finally:
        for peer in peers:
            peer.close()
    print(f"\n{summary(rows)}; {time.perf_counter() - start:.0f} s")
    if foreign > 0.3:
        print(f"other processes used {foreign:.1f} CPUs meanwhile: these figures are not to be trusted")
    target = options.json or (None if options.quick or options.only else RESULTS)
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            json.dumps(
                {
                    "machine": machine(),
                    "threads": options.threads,
                    "foreign_cpus": foreign,
                    "ceilings": limits,
                    "rows": rows,
                },
                indent=1,
            )
            + "\n"
        )
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
